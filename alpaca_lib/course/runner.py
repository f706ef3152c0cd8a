"""Runs the notebooks headless, in order, and prints one table.

    python course.py run                            all five, laptop scale
    python course.py run --only 03 -p max_steps=4   one notebook, a parameter changed
    python course.py run --profile quick            the shortest run of every stage
    python course.py run --out my_runs              outputs into another folder than runs/
    python course.py run --resume                   after a stop: skip finished notebooks

-p sets the parameter in every notebook that has it. A relative path is the project's folder's.
The profiles, data/profiles/*.toml, hold sets of parameters; a -p takes precedence over a profile.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import threading
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import papermill
import psutil
from papermill.exceptions import PapermillExecutionError

from alpaca_lib import command_line
from alpaca_lib.course.notebooks import LESSONS, REPO, make_folder, read_json, runs_folder
from alpaca_lib.errors import RunError
from alpaca_lib.files import dump_json, sha256_file, sha256_text, write_text
from alpaca_lib.options import nearest

PROFILES = REPO / "data" / "profiles"
NOTEBOOKS = REPO / "notebooks"

Parameters = dict[str, dict[str, Any]]  # {notebook: {parameter: value}}


@dataclass
class Entry:
    """One notebook's row in the table and in run.json."""

    notebook: str
    status: str = "not run"  # or "done", "failed"
    minutes: float = 0.0
    peak_gb: float = 0.0  # memory of all processes, in 1e9 bytes
    result: str = ""  # the headline, or the error
    output: str = ""  # the run's folder
    key: str = ""  # checksum of the notebook and its parameters: what --resume compares


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
    add("--resume", action="store_true", help="skip the notebooks that the last run finished")
    options = parser.parse_args(arguments)

    def work() -> int:
        names = choose_notebooks(options.only)
        parameters = resolve_parameters(names, options.profile, options.parameter)
        if options.out:
            os.environ["ALPACA_RUNS"] = str(Path(options.out).resolve())
        return run_notebooks(parameters, resume=options.resume)

    return command_line.run(work)


def choose_notebooks(only: list[str]) -> list[str]:
    """Returns the full names of the requested notebooks, or of all, in the course's order."""
    names = []
    for text in only:
        found = [n for n in LESSONS if n == text.removesuffix(".ipynb") or n[:2] == text.zfill(2)]
        if not found:
            raise RunError(f"--only {text}: there are {', '.join(LESSONS)}; numbers are enough")
        names += found
    return sorted(set(names or LESSONS))


def resolve_parameters(names: list[str], profile: str, given: list[str]) -> Parameters:
    """Returns each notebook's parameters that a profile or ``name=value`` texts set.

    One that only other notebooks of the course have is named in a line and not used. Raises
    RunError for a name that no notebook of the course has, and for a value of another type.
    """
    course: dict[str, dict[str, str]] = {}  # {notebook: {parameter: type}}
    steps: dict[str, str] = {}  # {notebook: its own max_steps}
    for name in LESSONS:
        found = papermill.inspect_notebook(str(NOTEBOOKS / f"{name}.ipynb"))
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
    for name in names:
        decides = chosen[name].get("max_steps", int(steps[name]))
        if decides and "epochs" in chosen[name]:
            print(f"{name}: max_steps {decides} decides, not epochs; -p max_steps=0 lets epochs")
    return chosen


def run_notebooks(parameters: Parameters, resume: bool = False) -> int:
    """Runs the notebooks in order until one fails, and prints the table; returns 0 or 1.

    ``resume`` skips those that an earlier run finished with the same parameters. Raises
    RunError if the folder of the outputs cannot be written.
    """
    os.environ["ALPACA_HEADLESS"] = "1"
    state = make_folder(runs_folder()) / "run.json"
    earlier = [Entry(**row) for row in read_json(state) or []] if resume else []
    finished = {e.key: e for e in earlier if e.status == "done" and Path(e.output).exists()}
    entries = []
    for name, values in parameters.items():
        key = sha256_text(name + sha256_file(NOTEBOOKS / f"{name}.ipynb") + dump_json(values))
        entries.append(finished.get(key) or Entry(name, key=key))
    for entry in entries:
        if entry.status == "done":
            print(f"{entry.notebook}: finished before, skipped", flush=True)
            continue
        _run_one(entry, parameters[entry.notebook])
        write_text(state, dump_json([asdict(e) for e in entries], indent=1) + "\n")
        if entry.status != "done":
            break
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


def _run_one(entry: Entry, values: dict[str, Any]) -> None:
    """Executes one notebook into the runs folder and fills in its entry."""
    folder = make_folder(runs_folder() / entry.notebook)
    target = folder / f"{entry.notebook}.ipynb"
    print(f"{entry.notebook}: running ...", flush=True)
    start, ended = time.monotonic(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        peak = pool.submit(sample_peak_memory, ended)
        try:
            papermill.execute_notebook(
                str(NOTEBOOKS / f"{entry.notebook}.ipynb"),
                str(target),
                parameters=values,
                kernel_name="python3",
                cwd=str(NOTEBOOKS),
                progress_bar=sys.stderr.isatty(),
                extra_arguments=["--log-level=40"],  # of the kernel: errors only
            )
            entry.status = "done"
        except Exception as error:  # of a cell; or the kernel died, the disk is full, ...
            entry.status = "failed"
            where, text = entry.notebook, f"{type(error).__name__}: {error}"
            if isinstance(error, PapermillExecutionError):
                where += f", cell {error.exec_count}"
                text = f"{error.ename}: {error.evalue}"
            entry.result = text[:200]
            print(f"error: {where}: {text}", file=sys.stderr)
            print(f"  the executed notebook, with the full traceback: {target}", file=sys.stderr)
        finally:
            ended.set()
    entry.minutes = (time.monotonic() - start) / 60
    entry.peak_gb = peak.result() / 1e9
    if entry.status == "done":
        newest = max(p for p in folder.iterdir() if p.name.isdigit())
        entry.result = read_json(newest / "result.json")["headline"]
        entry.output = str(newest)
        print(f"{entry.notebook}: {entry.minutes:.1f} min, {entry.result}", flush=True)


def sample_peak_memory(ended: threading.Event) -> int:
    """Returns the peak memory of this process and its children until an event, in bytes.

    It is sampled twice per second.
    """
    me, peak = psutil.Process(), 0
    while not ended.wait(0.5):
        total = 0
        for process in [me, *me.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):  # it has ended
                total += process.memory_info().rss
        peak = max(peak, total)
    return peak


def _load_profile(name: str, types: dict[str, dict[str, str]]) -> Parameters:
    """Reads the parameters that a profile sets in each of these notebooks."""
    path = Path(name) if name.endswith(".toml") else PROFILES / f"{name}.toml"
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError:
        known = ", ".join(sorted(p.stem for p in PROFILES.glob("*.toml")))
        raise RunError(f"--profile {name}: no such profile; there are {known}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: is not TOML ({error})") from None
    for section, values in content.items():
        if section not in LESSONS or not isinstance(values, dict):
            raise RunError(f"{path}: [{section}] is no notebook; there are {', '.join(LESSONS)}")
        for key in values:
            if section in types and key not in types[section]:
                hint = nearest(key, types[section])
                raise RunError(f"{path}: {section} has no parameter {key}{hint}")
    return {notebook: dict(content.get(notebook, {})) for notebook in types}


def _convert(key: str, text: str, kind: str) -> Any:
    """Converts a value of the command line to the type of its parameter."""
    try:
        if kind == "bool":
            return {"true": True, "false": False}[text.lower()]
        return {"int": int, "float": float}.get(kind, str)(text)
    except (ValueError, KeyError):
        wanted = {"bool": "True or False", "int": "a whole number", "float": "a number"}
        raise RunError(f"-p {key}={text}: {wanted[kind]} is needed") from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
