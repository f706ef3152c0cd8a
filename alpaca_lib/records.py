"""Example(instruction, input, output): read, write, validate.

Two shapes are read: Alpaca's rows, and Self-Instruct's seed tasks (an
``instances`` list, of which the first counts, as in Stanford's script).
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
    """One instruction-following example; ``extra`` keeps a row's other keys."""

    instruction: str
    input: str = ""
    output: str = ""
    extra: dict[str, Any] = field(default_factory=dict, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """The row as it is written to a file."""
        row = {name: getattr(self, name) for name in FIELDS}
        return {**row, **{k: v for k, v in self.extra.items() if k not in row}}


def words(text: str) -> int:
    """The number of words: pieces between white space, and each CJK character is one."""
    characters = len(CJK.findall(text))
    if not characters:
        return len(text.split())
    rest = CJK.sub(" ", text).split()
    return characters + sum(any(c.isalnum() for c in piece) for piece in rest)


def example_from_row(row: object) -> Example:
    """The Example in one decoded JSON row.

    Raises ValueError with what is wrong, without the place: the caller knows it.
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
    """The examples of a .json (one array) or .jsonl (one object a line) file.

    Raises DataError, naming the file, the row or line, and the cure.
    """
    path = Path(path)
    text = _read(path)
    by_line = _is_json_lines(path, text)
    rows = _json_lines(text, path) if by_line else _json_array(text, path)
    examples: list[Example] = []
    faults: list[tuple[int, str]] = []
    for number, row in rows:
        try:
            examples.append(example_from_row(row))
        except ValueError as error:
            faults.append((number, str(error)))
    if faults:
        lines = [] if by_line else _row_lines(text)
        shown = [
            f"line {number} {fault}"
            if by_line
            else f"row {number} (line {lines[number - 1]}) {fault}"
            for number, fault in faults[:5]
        ]
        rest = f"\n  and {len(faults) - 5} more rows" if len(faults) > 5 else ""
        raise DataError(
            f"{path}: " + "\n  also ".join(shown) + rest + "\n"
            '  a row is {"instruction": text, "input": text or "", "output": text}'
        )
    if not examples:
        raise DataError(f"{path}: holds no examples; put at least one row into it")
    return examples


def load_lines(path: str | os.PathLike[str]) -> list[str]:
    """The lines of a text file that are not empty, without white space around them.

    Raises DataError if there is no such text.
    """
    lines = [line.strip() for line in _read(Path(path)).split("\n")]
    return [line for line in lines if line]


def save_examples(examples: Iterable[Example], path: str | os.PathLike[str]) -> Path:
    """Writes .json (indented array) or .jsonl, whole or not at all; returns the path."""
    path = Path(path)
    rows = [example.to_dict() for example in examples]
    if path.suffix == ".jsonl":
        return write_text(path, "".join(dump_json(row) + "\n" for row in rows))
    if path.suffix == ".json":
        return write_text(path, dump_json(rows, indent=4) + "\n")
    raise DataError(f"{path}: name the file .json or .jsonl, so that its format is known")


def _read(path: Path) -> str:
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
        raise DataError(f"{path}: is empty; put at least one row into it")
    return text


def _nearby(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f" (nor a folder {folder})"
    files = sorted(p.name for p in folder.iterdir() if p.suffix in (".json", ".jsonl"))
    return f"; {folder} has {', '.join(files[:8])}" if files else f"; {folder} has no data file"


def _is_json_lines(path: Path, text: str) -> bool:
    return path.suffix != ".json" if path.suffix in (".json", ".jsonl") else text.lstrip()[0] != "["


def _json_lines(text: str, path: Path) -> Iterator[tuple[int, object]]:
    # Not splitlines(): a JSON string may hold U+2028 and the like unescaped.
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
            "or one row a line into a .jsonl file"
        )
    yield from enumerate(rows, start=1)


def _decode(text: str, path: Path, line: int, hint: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and path.suffix == ".json":
            hint = "; a file with one object a line is named .jsonl"
        raise DataError(
            f"{path}, line {line + error.lineno - 1}: is not JSON "
            f"({error.msg}, column {error.colno}){hint}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}, line {line}: cannot be read as JSON ({error})") from None


def _row_lines(text: str) -> list[int]:
    """The line on which each element of a valid JSON array begins."""
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
    for kind, name in names.items():
        if isinstance(value, kind):
            return name
    return f"the number {value}"
