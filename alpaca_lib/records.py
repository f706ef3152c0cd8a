"""Reads, validates and writes instruction-following examples.

Two layouts are read: Alpaca's rows (``instruction``, ``input``, ``output``), and Self-Instruct's
seed tasks, whose ``instances`` list holds input and output. Only the first instance is used, as
in Stanford's script.

>>> examples = load_examples("data/alpaca_520.json")
>>> save_examples(examples[:10], "runs/ten.jsonl")
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alpaca_lib.errors import DataError
from alpaca_lib.files import dump_json, write_text

FIELDS = ("instruction", "input", "output")
CJK = re.compile(r"[\u3041-\u30ff\u3400-\u9fff\uac00-\ud7af]")  # ideographs, kana, Hangul


@dataclass(frozen=True)
class Example:
    """One instruction-following example.

    ``input`` is "" if the instruction needs none; ``extra`` keeps the row's other keys and does
    not count in comparisons.
    """

    instruction: str
    input: str = ""
    output: str = ""
    extra: dict[str, Any] = field(default_factory=dict, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Returns the row that is written to a file: the three fields, then ``extra``."""
        row = {name: getattr(self, name) for name in FIELDS}
        return {**row, **{k: v for k, v in self.extra.items() if k not in row}}


def words(text: str) -> int:
    """Returns the number of words: runs between white space; each CJK character counts as one."""
    characters = len(CJK.findall(text))
    if not characters:
        return len(text.split())
    rest = CJK.sub(" ", text).split()
    return characters + sum(any(c.isalnum() for c in piece) for piece in rest)


def example_from_row(row: object) -> Example:
    """Returns the Example of one decoded JSON row.

    Raises ValueError with what is wrong with the row; the caller adds the file and the line.
    """
    if not isinstance(row, dict):
        raise ValueError(f"is {_kind(row)}, not an object")
    extra = {str(k): v for k, v in row.items() if k not in FIELDS}
    if "instances" in row and "output" not in row:
        instances = row["instances"]
        if not isinstance(instances, list) or not instances:
            raise ValueError("has `instances` that is not a list with an instance in it")
        if not isinstance(instances[0], dict):
            raise ValueError(f"has a first instance that is {_kind(instances[0])}, not an object")
        del extra["instances"]
        row = {"instruction": row.get("instruction"), **instances[0]}
        if row["instruction"] is None:
            del row["instruction"]
    if "instruction" not in row:
        known = ", ".join(f"`{name}`" for name in row) or "nothing"
        raise ValueError(f"has no `instruction` (it has {known})")
    values = {name: row.get(name, "") for name in FIELDS}
    for name, value in values.items():
        if not isinstance(value, str):
            raise ValueError(f'has `{name}` that is {_kind(value)}, not text (write "" for none)')
    if not values["instruction"].strip():
        raise ValueError("has an empty `instruction`")
    return Example(**values, extra=extra)


def load_examples(path: str | os.PathLike[str]) -> list[Example]:
    """Returns the examples of a .json file (one array) or a .jsonl file (one object per line).

    Raises DataError, naming the file, the row or line, and the fix.
    """
    path = Path(path)
    text = read_text(path)
    by_line = path.suffix == ".jsonl" or (path.suffix != ".json" and text.lstrip()[0] != "[")
    examples: list[Example] = []
    faults: list[tuple[int, str]] = []
    for number, row in _json_lines(text, path) if by_line else _json_array(text, path):
        try:
            examples.append(example_from_row(row))
        except ValueError as error:
            faults.append((number, str(error)))
    if faults:
        shown = [f"line {number} {fault}" for number, fault in faults[:5]]
        if not by_line:
            lines = _row_lines(text)
            shown = [f"row {n} (line {lines[n - 1]}) {fault}" for n, fault in faults[:5]]
        rest = f"\n  and {len(faults) - 5} more rows" if len(faults) > 5 else ""
        raise DataError(
            f"{path}: " + "\n  also ".join(shown) + rest + "\n"
            '  a row is {"instruction": text, "input": text or "", "output": text}'
        )
    if not examples:
        raise DataError(f"{path}: contains no examples; put at least one row into it")
    return examples


def load_lines(path: str | os.PathLike[str]) -> list[str]:
    """Returns the non-empty lines of a text file, stripped.

    Raises DataError if the file has none or cannot be read.
    """
    lines = [line.strip() for line in read_text(path).split("\n")]
    return [line for line in lines if line]


def save_examples(examples: Iterable[Example], path: str | os.PathLike[str]) -> Path:
    """Writes a .json file (indented array) or a .jsonl file atomically and returns its path.

    Raises DataError for another suffix, and FileError if the file cannot be written.
    """
    path = Path(path)
    rows = [example.to_dict() for example in examples]
    if path.suffix == ".jsonl":
        return write_text(path, "".join(dump_json(row) + "\n" for row in rows))
    if path.suffix == ".json":
        return write_text(path, dump_json(rows, indent=4) + "\n")
    raise DataError(f"{path}: name the file .json or .jsonl, so that its format is known")


def read_text(path: str | os.PathLike[str]) -> str:
    """Returns the text of a UTF-8 file without byte order mark, with \\n as line break.

    Raises DataError if the file is missing, unreadable, empty or not UTF-8.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{path}: no such file{_nearby(path)}") from None
    except IsADirectoryError:
        raise DataError(f"{path}: is a folder; name the .json or .jsonl file in it") from None
    except PermissionError:
        raise DataError(f"{path}: may not be read; check its permissions") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}, line {line}: byte 0x{error.object[error.start]:02x} is not UTF-8; "
            "save the file as UTF-8"
        ) from None
    if not text.strip():
        raise DataError(f"{path}: is empty; put at least one line into it")
    return text.replace("\r\n", "\n")


def _nearby(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f" (nor a folder {folder})"
    files = sorted(p.name for p in folder.iterdir() if p.suffix in (".json", ".jsonl"))
    return f"; {folder} has {', '.join(files[:8])}" if files else f"; {folder} has no data file"


def _json_lines(text: str, path: Path) -> Iterator[tuple[int, object]]:
    # Not splitlines(): a JSON string may contain an unescaped U+2028.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            hint = ""
            if number == 1 and line.lstrip().startswith("["):
                hint = "; a file that is one JSON array is named .json"
            row = _decode(line, path, number, hint)
            if isinstance(row, list) and hint:
                raise DataError(f"{path}, line {number}: is a list, not an object{hint}")
            yield number, row


def _json_array(text: str, path: Path) -> Iterator[tuple[int, object]]:
    rows = _decode(text, path, 1, "")
    if not isinstance(rows, list):
        raise DataError(
            f"{path}: is {_kind(rows)}, not an array of rows; put [ ] around the rows, "
            "or one row per line into a .jsonl file"
        )
    yield from enumerate(rows, start=1)


def _decode(text: str, path: Path, line: int, hint: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and path.suffix == ".json":
            hint = "; a file with one object per line is named .jsonl"
        raise DataError(
            f"{path}, line {line + error.lineno - 1}: is not JSON "
            f"({error.msg}, column {error.colno}){hint}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}, line {line}: cannot be read as JSON ({error})") from None


def _row_lines(text: str) -> list[int]:
    """Returns the line on which each element of a valid JSON array begins, counted from 1."""
    lines: list[int] = []
    decoder, at = json.JSONDecoder(), text.index("[") + 1
    line, seen = text.count("\n", 0, at) + 1, at
    while True:
        while text[at] in " \t\r\n,":
            at += 1
        if text[at] == "]":
            return lines
        line, seen = line + text.count("\n", seen, at), at
        lines.append(line)
        _, at = decoder.raw_decode(text, at)


def _kind(value: object) -> str:
    if value is None:
        return "null"
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
    return names.get(type(value), f"the number {value}")
