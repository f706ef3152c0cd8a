"""Provides what every notebook needs: a run folder, earlier outputs, tables and results.

    runs/03_full_finetune_fsdp/002/     one run: parameters.json, its files, result.json

A run without result.json is unfinished. The next start with the same parameters continues it,
and each stage resumes from the files in the folder. `course.py run` says in the environment
variable ALPACA_RUN, {"id": text, "folders": {lesson: folder}}, which folders are its own.
"""

from __future__ import annotations

import html
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alpaca_lib.errors import FileError, RunError
from alpaca_lib.files import acquire_lock, dump_json, write_text
from alpaca_lib.models import EMBEDDED, Placement
from alpaca_lib.records import Example, load_examples

REPO = Path(__file__).resolve().parents[2]
LESSONS = (
    "01_self_instruct",
    "02_dataset_inspection",
    "03_full_finetune_fsdp",
    "04_lora_finetune",
    "05_inference_comparison",
)


RUN_FILE = ".run.json"  # in a run's folder: which `course.py run` it belongs to, and its key


def runs_folder() -> Path:
    """Returns the folder of all outputs: ALPACA_RUNS, or runs/ in the project."""
    return Path(os.environ.get("ALPACA_RUNS") or REPO / "runs").resolve()


def make_folder(path: Path) -> Path:
    """Creates a folder with its parents and returns it. Raises RunError if that is impossible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"{path}: cannot be written ({error.strerror}); set ALPACA_RUNS to a folder that can "
            "be written, or use another --out"
        ) from None
    return path


def shorten_path(path: str | os.PathLike[str]) -> str:
    """Returns a path for display: relative to the project's folder if it is inside."""
    path = Path(path).resolve()
    for root, name in ((runs_folder(), "runs"), (REPO, "")):
        if path.is_relative_to(root):
            return (Path(name) / path.relative_to(root)).as_posix()
    return str(path)


# A list of advice, an edit of a given text, and a sum: they go through all five lessons.
THREE_TASKS = ("seed_task_11", "seed_task_28", "seed_task_159")


def three_tasks() -> list[Example]:
    """Returns the three seed tasks that every lesson comes back to; no lesson trains on them."""
    seeds = load_examples(REPO / "data" / "seed_tasks.jsonl")
    return [seeds[int(name.rpartition("_")[2])] for name in THREE_TASKS]


def spread(rows: Sequence[Any], count: int) -> list[Any]:
    """Returns that many rows, evenly spread; all if there are fewer, or for 0.

    Lessons 03 to 05 take the same held-out tasks with it.
    """
    count = min(count, len(rows)) if count else len(rows)
    return [rows[i * len(rows) // count] for i in range(count)]


def find_data(name: str) -> Path:
    """Returns the path of a file or folder that a parameter names.

    A relative path is looked for in the project's folder, ``runs/...`` in the folder of all
    outputs first; then in the kernel's folder, which is notebooks/. So the same path works from
    ``course.py run``, from papermill and in JupyterLab. One that does not exist is returned as
    a path in the project's folder.
    """
    path = Path(name).expanduser()
    inside_runs = path.parts[:1] == ("runs",)
    places = [runs_folder().joinpath(*path.parts[1:])] if inside_runs else []
    places += [REPO / path, path]
    found = next((place for place in places if place.exists()), REPO / path)
    return Path(os.path.abspath(found))


def find_model(name: str) -> str:
    """Returns a model's name; as an absolute path if it is a folder or a file, see find_data.

    Names of embedded models and hub ids are returned unchanged.
    """
    if not name or name in EMBEDDED:
        return name
    path = find_data(name)
    return str(path) if path.exists() else name


# Where HTML could begin, and where a link that is neither of the web nor of this folder does.
_TAG = re.compile(r"<(?=[A-Za-z/!?])")
_OTHER_LINK = re.compile(r"\](?=\((?!https?://|#|[\w./-]+\))|\s*:)")


@dataclass
class Lesson:
    """One run of one notebook, as ``start`` opens it.

    >>> lesson = start("04_lora_finetune", globals())
    >>> lesson.record("held-out loss 1.9", held_out_after=1.9)
    """

    name: str  # of LESSONS
    folder: Path  # of this run: runs/NAME/NNN
    parameters: dict[str, Any]  # what the parameters cell set
    continued: bool  # whether an unfinished run's folder is used again
    _lock: Any = field(default=None, repr=False)  # held until the kernel ends

    def say_placement(self, placement: Placement) -> None:
        """Shows the device, the dtype, why, and the minutes that this lesson takes on a CPU."""
        say(f"Computes on **{placement.device}** in **{placement.dtype}**: {placement.reason}.")
        if placement.device == "cpu":
            from alpaca_lib.course.minutes import predict_minutes

            minutes, rate = predict_minutes(placement)
            say(
                f"The default parameters take about **{minutes[self.name]:.1f} minutes** here: "
                f"large matrix products reach {rate / 1e9:,.0f} GFLOP/s."
            )

    def record(self, headline: str, **results: Any) -> None:
        """Writes result.json, which marks the run as finished, and shows the results."""
        result = {"headline": headline, "results": results, "parameters": self.parameters}
        write_text(self.folder / "result.json", dump_json(result, indent=1) + "\n")
        show_table(["result", "value"], results.items())


def read_json(file: Path) -> Any:
    """Returns the value in a JSON file; None if the file is missing or damaged."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def read_object(file: Path) -> dict[str, Any]:
    """Returns the object in a JSON file; {} if the file is missing, damaged or has no object."""
    found = read_json(file)
    return found if isinstance(found, dict) else {}


def start(name: str, variables: Mapping[str, Any]) -> Lesson:
    """Opens the run folder of a notebook and shows its parameters; ``variables`` is globals().

    It takes the annotated scalars among the variables (``seed: int = 0``) as the run's parameters;
    all scalars if none is annotated. Called again in the same kernel, it releases the folder of
    the variable ``lesson`` first, and continues there if that run is unfinished and the parameters
    are equal. Raises RunError for an unknown lesson or a folder that cannot be written.
    """
    if name not in LESSONS:
        raise RunError(f"no lesson {name!r}; there are {', '.join(LESSONS)}")
    before = variables.get("lesson")
    if isinstance(before, Lesson) and before.name == name and before._lock:
        before._lock.release()
    parameters = {
        key: value
        for key, value in variables.items()
        if key in (variables.get("__annotations__") or variables)
        and isinstance(value, str | int | float | bool)
        and not key.startswith("_")
        and not key.isupper()  # a constant that was imported
        and key not in ("In", "Out", "exit", "quit")
    }
    root = make_folder(runs_folder() / name)
    last, folder = max(numbered_folders(root), default=(0, root / "0"))
    unfinished = not (folder / "result.json").exists()
    same = read_json(folder / "parameters.json") == parameters
    lock = _try_lock(folder) if unfinished and same else None
    continued = lock is not None
    if not continued:
        folder = _make_numbered(root, last + 1)
        lock = _try_lock(folder)  # before another kernel can take the run for an unfinished one
        write_text(folder / "parameters.json", dump_json(parameters, indent=1) + "\n")
    if run_id := _own_run().get("id"):
        write_text(folder / RUN_FILE, dump_json({"id": run_id}) + "\n")
    show_table(["parameter", "value"], [[k, Markup(f"`{v!r}`")] for k, v in parameters.items()])
    if continued:
        say(f"Run {folder.name} is unfinished: it is **continued**.")
    return Lesson(name, folder, parameters, continued, lock)


def find_newest(name: str, file: str, **parameters: Any) -> Path | None:
    """Returns a file of a lesson's newest finished run that has it, or None.

    In `course.py run`, the lesson's folder of that run comes first. Only runs with these
    ``parameters`` count: a model that was trained from another base, for example, is no part of
    a comparison.
    """
    folders = [folder for _, folder in sorted(numbered_folders(runs_folder() / name), reverse=True)]
    own = _own_run().get("folders", {}).get(name)
    for folder in ([Path(own)] if own else []) + folders:
        had = read_object(folder / "parameters.json")
        same = all(had.get(key, value) == value for key, value in parameters.items())
        if same and (folder / "result.json").exists() and (folder / file).exists():
            return folder / file
    return None


def numbered_folders(root: Path) -> list[tuple[int, Path]]:
    """Returns (number, folder) of the runs in a lesson's folder, in no order."""
    found = root.iterdir() if root.is_dir() else ()
    return [(int(p.name), p) for p in found if re.fullmatch("[0-9]{1,18}", p.name) and p.is_dir()]


def _make_numbered(root: Path, number: int) -> Path:
    """Creates the folder of a run, with the first number from ``number`` on that is free."""
    while True:
        folder = root / f"{number:03d}"
        try:
            folder.mkdir()
            return folder
        except FileExistsError:  # of another kernel that started at the same time, or a file
            number += 1
        except OSError as error:
            raise RunError(f"{folder}: cannot be created ({error.strerror})") from None


def _own_run() -> dict[str, Any]:
    """Returns what `course.py run` says of the run that this kernel belongs to; {} without it."""
    try:
        found = json.loads(os.environ.get("ALPACA_RUN") or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def say(text: str) -> None:
    """Shows Markdown: prose whose numbers come from the run.

    HTML and script links in it are shown as text: they came from the data.
    """
    _show_markdown(_disarm(text))


def _disarm(text: str) -> str:
    return _OTHER_LINK.sub("\\\\]", _TAG.sub("&lt;", text))


def _show_markdown(text: str) -> None:
    from IPython.display import Markdown, display

    display(Markdown(text))


class Markup(str):
    """A table cell that is Markdown; every other cell is shown literally."""


def truncate(text: str, most: int) -> str:
    """Returns a text, cut to ``most`` characters with a mark if it is longer."""
    return text if len(text) <= most else text[: most - 2].rstrip() + " …"


def show_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Shows a table. Cells are escaped, except those of type Markup."""
    lines = [head, ["---"] * len(head), *rows]
    _show_markdown("\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines))


def progress_bar(total: int, label: str) -> Any:
    """Returns a tqdm progress bar, which is hidden in a headless run."""
    from tqdm.auto import tqdm

    return tqdm(total=total, desc=label, disable=is_headless())


def is_headless() -> bool:
    """Returns whether a program (papermill, nbval, CI) runs the notebook, not a person."""
    return "ALPACA_HEADLESS" in os.environ or "PYTEST_CURRENT_TEST" in os.environ


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    if isinstance(value, Markup):
        text = _disarm(text)
    else:
        text = re.sub(r"([\\`*_\[\]~$#])", r"\\\1", html.escape(text, quote=False))
        # JupyterLab would show "\$2 to \$3" as a formula; one $ in an element has no partner.
        text = text.replace("\\$", "<span>\\$</span>")
    return text.replace("|", "\\|").replace("\r", "").replace("\n", "<br>")


def _try_lock(folder: Path) -> Any:
    """Locks a run folder for the life of this kernel; None if another kernel holds it."""
    busy = f"{shorten_path(folder)} is in use by another kernel"
    try:
        return acquire_lock(folder / ".lock", wait=False, busy=busy)
    except FileError as error:
        print(error, file=sys.stderr)
        return None
