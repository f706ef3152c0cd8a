"""Runs the notebooks headless, in order, and prints one table.

    python course.py run                         all five, laptop scale
    python course.py run --only 03 -p epochs=1   one notebook, a parameter changed
    python course.py run --profile quick         the shortest run that does everything
    python course.py run --out my_runs           outputs into another folder than runs/
    python course.py run --resume                after a stop: skip what has finished

-p sets the parameter in every notebook that has it. The profiles, data/profiles/*.toml,
hold sets of parameters; a -p goes over a profile.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import json
import os
import sys
import threading
import time
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alpaca_lib.course.notebooks import LESSONS, REPO, runs_folder
from alpaca_lib.errors import RunError
from alpaca_lib.files import dump_json, write_text

PROFILES = REPO / "data" / "profiles"
NOTEBOOKS = REPO / "notebooks"


@dataclass
class Entry:
    """One notebook's line in the table."""

    notebook: str
    status: str = "not run"
    minutes: float = 0.0
    peak_gb: float = 0.0
    result: str = ""
    output: str = ""
    key: str = ""  # of the notebook and its parameters: what --resume compares


def main(arguments: list[str]) -> int:
    """The command line; exit code 0 only if every notebook ran."""
    parser = argparse.ArgumentParser(
        prog="course.py run", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--profile", default="laptop", help="a file of data/profiles, or a path (laptop)")
    add("--only", action="append", default=[], metavar="NN", help="a notebook, e.g. 03; repeatable")
    add("-p", "--parameter", action="append", default=[], metavar="name=value")
    add("--out", default="", metavar="DIR", help="where outputs go (runs)")
    add("--resume", action="store_true", help="skip the notebooks that the last run finished")
    options = parser.parse_args(arguments)
    try:
        names = _chosen(options.only)
        parameters = plan(names, options.profile, options.parameter)
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.out:
        os.environ["ALPACA_RUNS"] = str(Path(options.out).resolve())
    try:
        runs_folder().mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"error: {runs_folder()}: cannot be written ({error.strerror})", file=sys.stderr)
        return 2
    return run(parameters, resume=options.resume)


def plan(names: list[str], profile: str, given: list[str]) -> dict[str, dict[str, Any]]:
    """For each notebook the parameters that differ from its defaults, checked."""
    import papermill

    kinds: dict[str, dict[str, Any]] = {}
    for name in names:
        found = papermill.inspect_notebook(str(NOTEBOOKS / f"{name}.ipynb"))
        kinds[name] = {key: info["default"] for key, info in found.items()}
    chosen = _profile(profile, kinds)
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            raise RunError(f"-p {text}: write name=value")
        places = [name for name in names if key in kinds[name]]
        if not places:
            known = sorted({k for found in kinds.values() for k in found})
            near = difflib.get_close_matches(key, known, n=1)
            raise RunError(
                f"-p {key}: no parameter of that name in {', '.join(names)}"
                + (f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}")
            )
        for name in places:
            chosen[name][key] = _typed(key, value, kinds[name][key])
    return chosen


def run(parameters: dict[str, dict[str, Any]], resume: bool = False) -> int:
    """Runs the notebooks of ``parameters`` in order; stops at the first that fails."""
    os.environ["ALPACA_HEADLESS"] = "1"
    state = runs_folder() / "run.json"
    before = {e["notebook"]: Entry(**e) for e in _read_state(state)} if resume else {}
    entries = []
    for name, values in parameters.items():
        key = _key(name, values)
        old = before.get(name)
        again = not (old and old.status == "done" and old.key == key and Path(old.output).exists())
        entries.append(Entry(name, key=key) if again else old or Entry(name))
        if not again:
            print(f"{name}: finished before, skipped", flush=True)
    for entry in entries:
        if entry.status == "done":
            continue
        _run_one(entry, parameters[entry.notebook])
        write_text(state, dump_json([asdict(e) for e in entries], indent=1) + "\n")
        if entry.status != "done":
            break
    print("\n" + table(entries), flush=True)
    return 0 if all(entry.status == "done" for entry in entries) else 1


def table(entries: list[Entry]) -> str:
    """The table that a run prints."""
    head = ("notebook", "status", "minutes", "peak GB", "result", "output")
    rows = [
        (e.notebook, e.status, f"{e.minutes:.1f}", f"{e.peak_gb:.1f}", e.result, e.output)
        for e in entries
    ]
    total = sum(e.minutes for e in entries)
    peak = max((e.peak_gb for e in entries), default=0.0)
    rows.append(("all", "", f"{total:.1f}", f"{peak:.1f}", "", ""))
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = ["  ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)) for row in rows]
    top = "  ".join(text.ljust(w) for text, w in zip(head, widths, strict=True))
    return "\n".join(line.rstrip() for line in [top, "-" * len(top), *lines])


def _run_one(entry: Entry, values: dict[str, Any]) -> None:
    """Executes one notebook into the runs folder; fills in its entry."""
    import papermill
    from papermill.exceptions import PapermillExecutionError

    folder = runs_folder() / entry.notebook
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{entry.notebook}.ipynb"
    print(f"{entry.notebook}: running ...", flush=True)
    start = time.monotonic()
    with _Watch() as watch:
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
        except PapermillExecutionError as error:
            entry.status, entry.result = "failed", f"{error.ename}: {error.evalue}"[:200]
            print(
                f"error: {entry.notebook}, cell {error.exec_count}: {error.ename}: {error.evalue}\n"
                f"  the executed notebook, with the whole traceback: {target}",
                file=sys.stderr,
                flush=True,
            )
        except Exception as error:  # the kernel died, the disk is full, ...
            entry.status, entry.result = "failed", f"{type(error).__name__}: {error}"[:200]
            print(f"error: {entry.notebook}: {entry.result}", file=sys.stderr, flush=True)
    entry.minutes = (time.monotonic() - start) / 60
    entry.peak_gb = watch.peak / 1e9
    if entry.status == "done":
        newest = max(p for p in folder.iterdir() if p.name.isdigit())
        result = json.loads((newest / "result.json").read_text(encoding="utf-8"))
        entry.result, entry.output = result["headline"], str(newest)
        print(f"{entry.notebook}: {entry.minutes:.1f} min, {entry.result}", flush=True)


class _Watch:
    """Watches the memory of this process and all its children, twice a second."""

    def __enter__(self) -> _Watch:
        self.peak = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _sample(self) -> None:
        import psutil

        me = psutil.Process()
        while not self._end.wait(0.5):
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    total += process.memory_info().rss
                except psutil.Error:
                    continue
            self.peak = max(self.peak, total)


def _chosen(only: list[str]) -> list[str]:
    """The full names of the notebooks asked for, in the course's order."""
    if not only:
        return list(LESSONS)
    names = set()
    for text in only:
        found = [n for n in LESSONS if n == text.removesuffix(".ipynb") or n[:2] == text.zfill(2)]
        if not found:
            raise RunError(f"--only {text}: there are {', '.join(LESSONS)}; their numbers will do")
        names.update(found)
    return [name for name in LESSONS if name in names]


def _profile(name: str, kinds: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The parameters that a profile sets in each of these notebooks."""
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
            if section in kinds and key not in kinds[section]:
                near = difflib.get_close_matches(key, kinds[section], n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise RunError(f"{path}: {section} has no parameter {key}{hint}")
    return {notebook: dict(content.get(notebook, {})) for notebook in kinds}


def _typed(key: str, value: str, default: str) -> Any:
    """A value of the command line as the type that the parameter's default has."""
    kind = type(_literal(default))
    try:
        if kind is bool:
            return {"true": True, "false": False}[value.lower()]
        return kind(value)
    except (ValueError, KeyError):
        words = {bool: "True or False", int: "a whole number", float: "a number"}
        raise RunError(f"-p {key}={value}: {words.get(kind, 'text')} is needed") from None


def _literal(text: str) -> Any:
    import ast

    return ast.literal_eval(text)


def _key(name: str, values: dict[str, Any]) -> str:
    """Changes when the notebook or its parameters do."""
    digest = hashlib.sha256((NOTEBOOKS / f"{name}.ipynb").read_bytes())
    digest.update(dump_json(values).encode("utf-8"))
    return digest.hexdigest()


def _read_state(file: Path) -> list[dict[str, Any]]:
    try:
        entries: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
        return entries
    except (OSError, ValueError):
        return []


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
