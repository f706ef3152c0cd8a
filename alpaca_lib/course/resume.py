"""Decides which notebooks ``course.py run --resume`` skips: those that would give the same again.

A finished run's folder holds RUN_FILE with a fingerprint of everything that its result came from:
parameters, the notebook's code, the library's code, the files that parameters name, and the
outputs of earlier lessons that the notebook reads. A run counts as finished only if each is equal.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import papermill

from alpaca_lib.course.notebooks import (
    REPO,
    RUN_FILE,
    find_data,
    find_newest,
    numbered_folders,
    read_object,
    runs_folder,
    shorten_path,
)
from alpaca_lib.errors import RunError
from alpaca_lib.files import dump_json, sha256_file, sha256_text

HASHED = 1 << 28  # bytes; of larger files, size and time of the last change count
MOST_FILES = 10_000  # of a folder

Fingerprint = dict[str, str]  # {what the result came from: its checksum}


def take_fingerprint(notebook: Path, parameters: dict[str, Any]) -> Fingerprint:
    """Returns the fingerprint of a run of a notebook with these ``parameters`` set.

    Raises RunError for a notebook or a file that cannot be read.
    """
    cells = read_object(notebook).get("cells", [])
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    found = {
        "the notebook": sha256_text("\n\n".join(code)),
        "the library's code": _of_folder(REPO / "alpaca_lib", "*.py"),
    }
    for key, info in papermill.inspect_notebook(str(notebook)).items():
        value = parameters.get(key, _default(info["default"]))
        found[f"parameter {key}"] = dump_json(value)
        path = find_data(value) if isinstance(value, str) and value else None
        if path and "\0" not in value and path.exists():
            found[shorten_path(path)] = _of_folder(path) if path.is_dir() else _of_file(path)
    for lesson, file in re.findall(
        r"find_newest\(\s*\"([^\"]+)\",\s*\"([^\"]+)\"", "\n".join(code)
    ):
        if newest := find_newest(lesson, file):
            name = f"the newest {file} of {lesson}"
            found[name] = f"{shorten_path(newest)} {_of_file(newest)}"
    return found


def find_finished(lesson: str, wanted: Fingerprint) -> tuple[Path | None, str]:
    """Returns (the folder of the newest finished run with a fingerprint, ""), or None and why.

    The reason is empty if the lesson has no finished run at all.
    """
    reason = ""
    for _, folder in sorted(numbered_folders(runs_folder() / lesson), reverse=True):
        known = read_object(folder / RUN_FILE).get("fingerprint")
        if not isinstance(known, dict) or not read_object(folder / "result.json"):
            continue
        changed = [name for name in {**known, **wanted} if known.get(name) != wanted.get(name)]
        if not changed:
            return folder, ""
        reason = reason or f"{', '.join(changed[:3])} changed since {shorten_path(folder)}"
    return None, reason


def _default(source: str) -> Any:
    """Returns the value of a default in a parameters cell; the source if it is no literal."""
    try:
        return ast.literal_eval(source)
    except (ValueError, SyntaxError):
        return source


def _of_file(path: Path) -> str:
    """Returns a checksum of a file: of its content, or of its size and time if it is large."""
    try:
        status = path.stat()
        if path.is_file() and status.st_size <= HASHED:
            return sha256_file(path)
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror})") from None
    return f"{status.st_size} bytes, {status.st_mtime_ns}"


def _of_folder(path: Path, pattern: str = "*") -> str:
    """Returns a checksum of the names, sizes and times of a folder's files.

    Of the library's code it is of the contents, so that another copy of it is equal.
    """
    files = sorted(p for p in path.rglob(pattern) if p.is_file())[:MOST_FILES]
    if pattern != "*":
        return sha256_text("".join(f"{p.relative_to(path)} {sha256_file(p)}\n" for p in files))
    status = ((p.relative_to(path), p.stat()) for p in files)
    return sha256_text("".join(f"{p} {s.st_size} {s.st_mtime_ns}\n" for p, s in status))
