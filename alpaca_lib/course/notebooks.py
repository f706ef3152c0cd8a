"""What every notebook needs around its lesson: a folder, earlier outputs, results.

    runs/03_full_finetune_fsdp/002/     one run: parameters.json, its files, result.json

A run without result.json did not finish; started again with the same parameters
it is continued, and each stage resumes from what is in the folder.
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

from alpaca_lib.files import dump_json, write_text

REPO = Path(__file__).resolve().parents[2]
LESSONS = (
    "01_self_instruct",
    "02_dataset_inspection",
    "03_full_finetune_fsdp",
    "04_lora_finetune",
    "05_inference_comparison",
)


def runs_folder() -> Path:
    """Where outputs go: ALPACA_RUNS, or runs/ in the project."""
    return Path(os.environ.get("ALPACA_RUNS") or REPO / "runs").resolve()


def short(path: str | os.PathLike[str]) -> str:
    """A path as it is shown: from the project's folder on, if it lies in there."""
    path = Path(path).resolve()
    for root, name in ((runs_folder(), "runs"), (REPO, "")):
        if path.is_relative_to(root):
            return (Path(name) / path.relative_to(root)).as_posix()
    return str(path)


def find_data(name: str) -> Path:
    """A data file by its path: as given, or from the project's folder on."""
    path = Path(name).expanduser()
    return path if path.is_absolute() or path.exists() else REPO / path


@dataclass
class Lesson:
    """One run of one notebook."""

    name: str
    folder: Path
    parameters: dict[str, Any]
    continued: bool
    _lock: Any = field(default=None, repr=False)

    def record(self, headline: str, **results: Any) -> None:
        """Writes result.json, which marks the run as finished, and shows it."""
        result = {"headline": headline, "results": results, "parameters": self.parameters}
        write_text(self.folder / "result.json", dump_json(result, indent=1) + "\n")
        show_table(["result", "value"], [[k, _figure(v)] for k, v in results.items()])


def start(name: str, variables: Mapping[str, Any]) -> Lesson:
    """Opens the run folder of a notebook; ``variables`` is its globals().

    The parameters are the scalars among them: called right after the parameters
    cell, that is what it set. Shows them, and whether an unfinished run goes on.
    """
    if name not in LESSONS:
        raise ValueError(f"no lesson {name!r}; there are {', '.join(LESSONS)}")
    hidden = ("In", "Out", "exit", "quit")
    parameters = {
        key: value
        for key, value in variables.items()
        if isinstance(value, str | int | float | bool)
        and not key.startswith("_")
        and not key.isupper()  # a constant that was imported
        and key not in hidden
    }
    root = runs_folder() / name
    root.mkdir(parents=True, exist_ok=True)
    numbers = sorted(int(p.name) for p in root.iterdir() if p.name.isdigit())
    lesson = None
    if numbers:
        newest = root / f"{numbers[-1]:03d}"
        same = _read(newest / "parameters.json") == parameters
        if same and not (newest / "result.json").exists():
            lock = _lock(newest)
            if lock is not None:
                lesson = Lesson(name, newest, parameters, True, lock)
    if lesson is None:
        folder = root / f"{(numbers[-1] if numbers else 0) + 1:03d}"
        folder.mkdir()
        write_text(folder / "parameters.json", dump_json(parameters, indent=1) + "\n")
        lesson = Lesson(name, folder, parameters, False, _lock(folder))
    show_table(["parameter", "value"], [[k, Markup(f"`{v!r}`")] for k, v in parameters.items()])
    if lesson.continued:
        say(f"Run {lesson.folder.name} did not finish: it is **continued**.")
    return lesson


def newest(name: str, file: str) -> Path | None:
    """The file of that name in a lesson's newest finished run, if there is one."""
    root = runs_folder() / name
    folders = root.iterdir() if root.is_dir() else []
    for folder in sorted((p for p in folders if p.name.isdigit()), reverse=True):
        if (folder / "result.json").exists() and (folder / file).exists():
            return folder / file
    return None


def say(text: str) -> None:
    """Shows Markdown: prose whose numbers come from the run."""
    from IPython.display import Markdown, display

    display(Markdown(text))


class Markup(str):
    """Text that is meant as Markdown, in a table that shows everything else as it is."""


def cut(text: str, most: int) -> str:
    """A text, or its beginning with a mark that more follows."""
    return text if len(text) <= most else text[: most - 2].rstrip() + " …"


def show_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Shows a table. Cells are shown as they are, whatever stands in the data; what is
    meant as Markdown is a Markup."""
    lines = [head, ["---"] * len(head), *rows]
    say("\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines))


def progress(total: int, label: str) -> Any:
    """A progress bar for people; silent where nobody watches (papermill, nbval, CI)."""
    from tqdm.auto import tqdm

    return tqdm(total=total, desc=label, disable=headless())


def headless() -> bool:
    """Whether the notebook is run by a program rather than a person."""
    return "ALPACA_HEADLESS" in os.environ or "PYTEST_CURRENT_TEST" in os.environ


def _cell(value: Any) -> str:
    text = _figure(value)
    if not isinstance(value, Markup):
        text = re.sub(r"([\\`*_\[\]~$#])", r"\\\1", html.escape(text, quote=False))
    return text.replace("|", "\\|").replace("\r", "").replace("\n", "<br>")


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _lock(folder: Path) -> Any:
    """A lock that lives as long as this kernel; None if another one holds it."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        print(f"{short(folder)} is in use by another kernel", file=sys.stderr)
        return None
    return lock
