"""Runs the notebooks headless, in order, and prints one table.

    python course.py run                            all five, laptop scale
    python course.py run --only 03 -p max_steps=4   one notebook, a parameter changed
    python course.py run --profile quick            the shortest run of every stage
    python course.py run --out my_runs              outputs into another folder than runs/
    python course.py run --resume                   after a stop: skip finished notebooks whose
                                                    parameters, data and code are unchanged
    python course.py run --language zh              the edition in notebooks/zh

-p sets the parameter in every notebook that has it. A relative path is the project's folder's.
The profiles, data/profiles/*.toml, hold sets of parameters; a -p takes precedence over a profile.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import os
import secrets
import signal
import sys
import threading
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import papermill
from papermill.exceptions import PapermillExecutionError

from alpaca_lib import command_line
from alpaca_lib.course import processes
from alpaca_lib.course.notebooks import (
    LESSONS,
    REPO,
    RUN_FILE,
    make_folder,
    numbered_folders,
    read_object,
    runs_folder,
)
from alpaca_lib.course.parameters import check_value
from alpaca_lib.course.resume import Fingerprint, find_finished, take_fingerprint
from alpaca_lib.errors import FileError, RunError
from alpaca_lib.files import dump_json, move, sha256_text, write_text
from alpaca_lib.options import nearest

PROFILES = REPO / "data" / "profiles"
NOTEBOOKS = REPO / "notebooks"

KINDS = {"bool": "True or False", "int": "a whole number", "float": "a number", "str": "a text"}

Parameters = dict[str, dict[str, Any]]  # {notebook: {parameter: value}}


@dataclass
class Entry:
    """One notebook's row in the table and in run.json."""

    notebook: str
    status: str = "not run"  # or "running", "done", "failed", "stopped"
    minutes: float = 0.0
    peak_gb: float = 0.0  # memory of all processes, in 1e9 bytes
    result: str = ""  # the headline, or the error
    output: str = ""  # the run's folder
    key: str = ""  # checksum of what the result came from: see course.resume


def main(arguments: list[str]) -> int:
    """Runs the command line; returns 0 only if every notebook ran, 2 for a wrong command line."""
    parser = argparse.ArgumentParser(
        prog="course.py run", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--profile", default="laptop", help="a file of data/profiles, or a path (laptop)")
    add("--only", action="append", default=[], metavar="NN", help="a notebook, e.g. 03; repeatable")
    add("-p", "--parameter", action="append", default=[], metavar="name=value")
    add("--out", default="", metavar="DIR", help="folder of the outputs (runs)")
    add("--language", default="", metavar="LL", help="of the notebooks (English)")
    add("--resume", action="store_true", help="skip the notebooks that the last run finished")
    options = parser.parse_args(arguments)

    def work() -> int:
        names = choose_notebooks(options.only)
        parameters = resolve_parameters(names, options.profile, options.parameter)
        if options.out:
            os.environ["ALPACA_RUNS"] = str(Path(options.out).resolve())
        return run_notebooks(parameters, options.resume, options.language)

    numbers = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)]
    handlers = {number: signal.signal(number, _stop) for number in numbers}
    try:
        return command_line.run(work)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _stop(number: int, frame: object) -> None:
    """Ends a run at a signal as Ctrl-C does: the running notebook is stopped in _run_one."""
    processes.remember_children()  # papermill kills the kernel first
    raise KeyboardInterrupt(signal.Signals(number).name)


def choose_notebooks(only: list[str]) -> list[str]:
    """Returns the full names of the requested notebooks, or of all, in the course's order."""
    names = []
    for text in only:
        found = [n for n in LESSONS if n == text.removesuffix(".ipynb") or n[:2] == text.zfill(2)]
        if not found:
            raise RunError(f"--only {text}: there are {', '.join(LESSONS)}; numbers are enough")
        names += found
    return sorted(set(names or LESSONS))


def find_sources(names: list[str], language: str = "") -> dict[str, Path]:
    """Returns {notebook: its file} in a language, "" for English. Raises RunError without it."""
    folder = NOTEBOOKS / language
    sources = {name: folder / f"{name}.ipynb" for name in names}
    if missing := [str(path) for path in sources.values() if not path.is_file()]:
        known = sorted(path.parent.name for path in NOTEBOOKS.glob(f"*/{LESSONS[0]}.ipynb"))
        known = [name for name in known if name not in ("exercises", "solutions")]
        hint = f"; there are {', '.join(known)}" if known else ""
        raise RunError(f"{missing[0]}: there is no such notebook{hint if language else ''}")
    return sources


def resolve_parameters(names: list[str], profile: str, given: list[str]) -> Parameters:
    """Returns each notebook's parameters that a profile or ``name=value`` texts set.

    One that only other notebooks of the course have is named in a line and not used. Raises
    RunError for a name that no notebook of the course has, and for a value of another type.
    """
    course: dict[str, dict[str, str]] = {}  # {notebook: {parameter: type}}
    steps: dict[str, str] = {}  # {notebook: its own max_steps}
    for name in LESSONS:
        file = NOTEBOOKS / f"{name}.ipynb"
        found = papermill.inspect_notebook(str(file)) if file.is_file() else {}
        course[name] = {key: info["inferred_type_name"] for key, info in found.items()}
        steps[name] = found["max_steps"]["default"] if "max_steps" in found else "0"
    types = {name: course[name] for name in names}
    chosen = _load_profile(profile, types)
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            raise RunError(f"-p {text}: write name=value")
        places = [name for name in names if key in types[name]]
        elsewhere = [name for name in LESSONS if key in course[name]]
        if not elsewhere:
            known = sorted({k for found in course.values() for k in found})
            hint = nearest(key, known) or f"; there are {', '.join(known)}"
            raise RunError(f"-p {key}: no parameter of that name in any notebook{hint}")
        if not places:
            _convert(key, value, course[elsewhere[0]][key])
            print(f"-p {key}: not used here, a parameter of {', '.join(elsewhere)}", flush=True)
        for name in places:
            chosen[name][key] = _convert(key, value, types[name][key])
            check_value(name, key, chosen[name][key], f"-p {text}")
    for name in names:
        decides = chosen[name].get("max_steps", int(steps[name]))
        if decides and "epochs" in chosen[name]:
            print(f"{name}: max_steps {decides} decides, not epochs; -p max_steps=0 lets epochs")
    return chosen


def run_notebooks(parameters: Parameters, resume: bool = False, language: str = "") -> int:
    """Runs the notebooks in order until one fails, and prints the table; returns 0 or 1.

    ``resume`` skips those that an earlier run finished and that would give the same again. Raises
    RunError if the folder of the outputs cannot be written, or a language has no edition.
    """
    sources = find_sources(list(parameters), language)
    os.environ["ALPACA_HEADLESS"] = "1"
    run_id, folders = secrets.token_hex(8), dict[str, str]()
    state = make_folder(runs_folder()) / "run.json"
    entries = [Entry(name) for name in parameters]

    def save() -> None:
        try:
            write_text(state, dump_json([asdict(e) for e in entries], indent=1) + "\n")
        except FileError as error:
            raise RunError(f"{error}; --out names another folder") from None

    save()
    for entry in entries:
        name = entry.notebook
        os.environ["ALPACA_RUN"] = json.dumps({"id": run_id, "folders": folders})
        fingerprint = take_fingerprint(sources[name], parameters[name])
        entry.key = sha256_text(dump_json(fingerprint))
        finished, reason = find_finished(name, fingerprint) if resume else (None, "")
        if finished:
            _fill_in(entry, finished)
            print(f"{name}: finished before, skipped", flush=True)
        else:
            print(f"{name}: running ..." + (f" ({reason})" if reason else ""), flush=True)
            entry.status = "running"
            save()
            try:
                _run_one(entry, sources[name], parameters[name], run_id, fingerprint)
            finally:
                save()
        if entry.status != "done":
            break
        folders[name] = entry.output
    save()
    print("\n" + format_table(entries), flush=True)
    return 0 if all(entry.status == "done" for entry in entries) else 1


def format_table(entries: list[Entry]) -> str:
    """Returns the table of a run as text, with a row of totals."""
    rows = [("notebook", "status", "minutes", "peak GB", "result", "output")]
    minutes = sum(e.minutes for e in entries)
    peak = max((e.peak_gb for e in entries), default=0.0)
    for e in [*entries, Entry("all", "", minutes, peak)]:
        numbers = f"{e.minutes:.1f}", f"{e.peak_gb:.1f}"
        rows.append((e.notebook, e.status, *numbers, e.result, e.output))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)) for row in rows]
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(line.rstrip() for line in lines)


def _run_one(
    entry: Entry, source: Path, values: dict[str, Any], run_id: str, fingerprint: Fingerprint
) -> None:
    """Executes one notebook into the runs folder and fills in its entry."""
    lesson = make_folder(runs_folder() / entry.notebook)
    target = lesson / f"{entry.notebook}.ipynb"
    work = lesson / f".{entry.notebook}-{run_id}.ipynb"  # another run may execute it, too
    start, ended = time.monotonic(), threading.Event()
    processes.forget_children()
    with ThreadPoolExecutor(1) as pool:
        peak = pool.submit(processes.sample_peak_memory, ended)
        try:
            papermill.execute_notebook(
                str(source),
                str(work),
                parameters=values,
                kernel_name="python3",
                cwd=str(source.parent),
                progress_bar=sys.stderr.isatty(),
                extra_arguments=["--log-level=40"],  # of the kernel: errors only
            )
            entry.status = "done"
        except Exception as error:  # of a cell; or the kernel died, the disk is full, ...
            where, text = entry.notebook, f"{type(error).__name__}: {error}"
            if isinstance(error, PapermillExecutionError):
                where += f", cell {error.exec_count}"
                text = f"{error.ename}: {error.evalue}"
            _fail(entry, where, text)
            processes.end_children()
            print(f"  the executed notebook, with the full traceback: {target}", file=sys.stderr)
        except BaseException:
            entry.status, entry.result = "stopped", "--resume continues it"
            logging.getLogger("asyncio").setLevel(
                logging.CRITICAL
            )  # of papermill's unfinished task
            processes.end_children()
            raise
        finally:
            ended.set()
            with contextlib.suppress(OSError):
                move(work, target)
    entry.minutes = (time.monotonic() - start) / 60
    entry.peak_gb = peak.result() / 1e9
    if entry.status == "done":
        own = [
            folder
            for number, folder in sorted(numbered_folders(lesson))
            if read_object(folder / RUN_FILE).get("id") == run_id
            and read_object(folder / "result.json")
        ]
        if not own:
            _fail(entry, entry.notebook, "it ran, and recorded no result (lesson.record)")
            return
        written = {"id": run_id, "minutes": entry.minutes, "peak_gb": entry.peak_gb}
        write_text(own[-1] / RUN_FILE, dump_json({**written, "fingerprint": fingerprint}) + "\n")
        _fill_in(entry, own[-1])
        print(f"{entry.notebook}: {entry.minutes:.1f} min, {entry.result}", flush=True)


def _fail(entry: Entry, where: str, text: str) -> None:
    """Marks a notebook as failed and prints why."""
    entry.status, entry.result = "failed", text[:200]
    print(f"error: {where}: {text}", file=sys.stderr)


def _fill_in(entry: Entry, folder: Path) -> None:
    """Fills in the entry of a notebook from the folder of its finished run."""
    said = read_object(folder / RUN_FILE)
    entry.status, entry.output = "done", str(folder)
    entry.minutes, entry.peak_gb = said["minutes"], said["peak_gb"]
    entry.result = str(read_object(folder / "result.json").get("headline", ""))


def _load_profile(name: str, types: dict[str, dict[str, str]]) -> Parameters:
    """Reads the parameters that a profile sets in each of these notebooks, and checks them."""
    path = Path(name) if name.endswith(".toml") else PROFILES / f"{name}.toml"
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError:
        known = ", ".join(sorted(p.stem for p in PROFILES.glob("*.toml")))
        raise RunError(f"--profile {name}: no such profile; there are {known}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RunError(f"{path}: is not TOML ({error})") from None
    for section, values in content.items():
        if section not in LESSONS or not isinstance(values, dict):
            raise RunError(f"{path}: [{section}] is no notebook; there are {', '.join(LESSONS)}")
        for key, value in values.items() if section in types else ():
            if key not in types[section]:
                hint = nearest(key, types[section])
                raise RunError(f"{path}: {section} has no parameter {key}{hint}")
            kind, where = types[section][key], f"{path}: {section}: {key} = {value!r}"
            if kind == "float" and type(value) is int:
                values[key] = value = float(value)
            if type(value).__name__ != kind or value in (math.inf, -math.inf) or value != value:
                raise RunError(f"{where}: {KINDS[kind]} is needed")
            check_value(section, key, value, where)
    return {notebook: dict(content.get(notebook, {})) for notebook in types}


def _convert(key: str, text: str, kind: str) -> Any:
    """Converts a value of the command line to the type of its parameter."""
    try:
        if kind == "bool":
            return {"true": True, "false": False}[text.lower()]
        value = {"int": int, "float": float}.get(kind, str)(text)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError
        return value
    except (ValueError, KeyError):
        raise RunError(f"-p {key}={text}: {KINDS[kind]} is needed") from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
