"""Reads a text file, or its JSON rows with the line of each.

What JSON leaves open is refused instead of guessed: a key twice in one object, half of a
surrogate pair, nesting without end.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alpaca_lib.compression import inner_suffix, read_decompressed
from alpaca_lib.errors import DataError, FileError
from alpaca_lib.files import parse_json

_ESCAPED_PAIR = re.compile(r"\\u[dD](?:([89abAB])..(?:\\u[dD][c-fC-F])?|[c-fC-F])")
SURROGATE = re.compile("[\ud800-\udfff]")
_ZIP = b"PK\x03\x04"


class RowError(ValueError):
    """Reports what is wrong with a row; ``flags`` are those of `alpaca convert` that mend it.

    None: the command does not help.
    """

    def __init__(self, text: str, flags: str | None = None) -> None:
        super().__init__(text)
        self.flags = flags


class Repeated(dict[str, Any]):
    """A JSON object in which a key occurs twice; ``key`` is the first such key."""

    key = ""


class Rows:
    """The rows of a file; they are numbered from 1.

    ``values`` holds the decoded rows; ``lines`` the line of each (found when first needed).
    """

    def __init__(self, text: str, values: list[object], lines: list[int] | None = None) -> None:
        self.text, self.values = text, values
        self._lines = lines
        self.is_doubtful = has_escaped_half(text)  # or has a key twice

    @property
    def lines(self) -> list[int]:
        """The line of each row; empty if the rows are not the file's outermost array."""
        if self._lines is None:
            self._lines = _row_lines(self.text) if self.text.lstrip()[:1] == "[" else []
        return self._lines

    def name(self, number: int) -> str:
        """Returns "row 3 (line 17)"."""
        return name_row(number, self.lines)

    def find_damage(self, number: int) -> str:
        """Returns what is wrong with the text of a row, by column, or ""."""
        return find_damage(self.values[number - 1]) if self.is_doubtful else ""


def find_damage(row: object) -> str:
    """Returns what is wrong with a decoded row: a key twice, half a character; or ""."""
    for one in walk(row):
        if isinstance(one, Repeated):
            return f"has the key `{show(one.key)}` twice in one object; keep one of them"
    if isinstance(row, dict):
        for column, value in row.items():
            if found := _find_surrogate(value) or _find_surrogate(column):
                return (
                    f"has half a character, the lone surrogate {found}, in `{show(column)}`; "
                    "no model can read it"
                )
    return ""


class RowDecoder:
    """Decodes JSON; an object with a key twice becomes a Repeated.

    ``has_repeated_keys`` says whether there was one.
    """

    def __init__(self) -> None:
        self.has_repeated_keys = False
        self._decode = json.JSONDecoder(object_pairs_hook=self._build).decode

    def _build(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) == len(pairs):
            return row
        keys = [key for key, _ in pairs]
        marked = Repeated(row)
        marked.key = next(key for key in keys if keys.count(key) > 1)
        self.has_repeated_keys = True
        return marked

    def decode(self, text: str, path: Path, line: int) -> object:
        """Returns the value of a JSON text, which begins on a line of a file.

        Raises DataError, naming the line.
        """
        try:
            return self._decode(text)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}, line {line + error.lineno - 1}: is not JSON "
                f"({error.msg}, column {error.colno})"
            ) from None
        except RecursionError:
            fault = "lists or objects are nested too deeply"
            raise DataError(f"{path}, line {line}: cannot be read as JSON ({fault})") from None
        except ValueError as error:
            raise DataError(f"{path}, line {line}: cannot be read as JSON ({error})") from None


def name_row(number: int, lines: list[int] | None = None) -> str:
    """Returns "row 3 (line 17)", or "row 3" if the lines are unknown."""
    return f"row {number} (line {lines[number - 1]})" if lines else f"row {number}"


def show(text: str) -> str:
    """Returns a text in which lone surrogates are escaped, so that it can be printed."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def read_rows(path: str | os.PathLike[str]) -> Rows:
    """Returns the rows of a file: one array, one object per line, or an array in an object.

    The form is found from the content; the array must be the only one in its object, as in
    {"data": [...]}. Raises DataError, naming the file, the line and the fix.
    """
    path = Path(path)
    text = read_text(path)
    decoder = RowDecoder()
    if text.lstrip()[0] != "[" and _is_one_object_per_line(text, path):
        rows = _json_lines(text, path, decoder)
    else:
        rows = Rows(text, _json_array(text, path, decoder))
    rows.is_doubtful |= decoder.has_repeated_keys
    return rows


def convert_command(path: Path, *flags: str) -> str:
    """Returns the `alpaca convert` command line for a file."""
    out = path.with_suffix(".alpaca.json")
    words = ["alpaca convert", shlex.quote(str(path)), "--out", shlex.quote(str(out)), *flags]
    return " ".join(filter(None, words))


def read_text(path: str | os.PathLike[str]) -> str:
    """Returns the text of a UTF-8 file without byte order mark, with \\n as line break.

    A file that is compressed with gzip or Zstandard is decompressed. Raises DataError if the
    file is missing, unreadable, damaged, empty, not UTF-8, or no regular file.
    """
    path = Path(path)
    data = b""
    try:
        data = read_decompressed(path)
        text = data.decode("utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{path}: no such file{_nearby(path)}") from None
    except IsADirectoryError:
        raise DataError(f"{path}: is a folder; name the .json or .jsonl file in it") from None
    except PermissionError:
        raise DataError(f"{path}: may not be read; check its permissions") from None
    except FileError as error:
        raise DataError(str(error)) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        if data.startswith(_ZIP):
            raise DataError(
                f"{path}: is a ZIP archive, as .xlsx is; unpack it, or save its table as .csv"
            ) from None
        # Where the decoder saw the text without its byte order mark, positions count from there.
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


def _json_lines(text: str, path: Path, decoder: RowDecoder) -> Rows:
    values: list[object] = []
    lines = []
    # Not splitlines(): a JSON string may contain an unescaped U+2028.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            values.append(decoder.decode(line, path, number))
            lines.append(number)
    return Rows(text, values, lines)


def _is_one_object_per_line(text: str, path: Path) -> bool:
    if inner_suffix(path) == ".jsonl":
        return True
    lines = [line for line in text.split("\n") if line.strip()]
    try:
        first = parse_json(lines[0])
    except ValueError:
        return False  # the first of the lines of one document
    return not isinstance(first, dict) or len(lines) > 1 or not _rows_inside(first)


def _json_array(text: str, path: Path, decoder: RowDecoder) -> list[object]:
    rows = decoder.decode(text, path, 1)
    if isinstance(rows, list):
        return rows
    if not isinstance(rows, dict):
        raise DataError(f"{path}: is {describe(rows)}, not an array of rows")
    found = _rows_inside(rows)
    if isinstance(rows, Repeated):
        raise DataError(f"{path}: has the key `{rows.key}` twice; keep one of them")
    if len(found) == 1:
        return list(rows[found[0]])
    has = ", ".join(f"`{show(key)}`" for key in list(rows)[:8]) or "nothing"
    fix = "put [ ] around the rows, or one row per line into a .jsonl file"
    raise DataError(f"{path}: is an object (it has {has}), not an array of rows; {fix}")


def _rows_inside(value: dict[str, Any]) -> list[str]:
    """Returns the keys of an object that hold rows: a list of objects, but no messages."""
    return [
        key
        for key, rows in value.items()
        if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows)
        if not (key == "instances" and "instruction" in value)
        if not any({"role", "content"} <= set(row) or {"from", "value"} <= set(row) for row in rows)
    ]


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


def walk(value: object) -> Iterator[object]:
    """Yields a decoded JSON value and everything in it, keys included, at any depth."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        yield one
        if isinstance(one, dict):
            waiting += [*one, *one.values()]
        elif isinstance(one, list):
            waiting += one


def has_escaped_half(text: str) -> bool:
    """Returns whether JSON may have an escaped half of a surrogate pair without the other."""
    # A pair is found up to its second "\\ud", 9 characters; an escaped backslash before one half
    # only costs a second look.
    return any(len(found[0]) < 9 for found in _ESCAPED_PAIR.finditer(text))


def _find_surrogate(value: object) -> str:
    """Returns the first lone surrogate in a value as an escape, or ""."""
    texts = (one for one in walk(value) if isinstance(one, str))
    found = next(filter(None, map(SURROGATE.search, texts)), None)
    return show(found[0]) if found else ""


def describe(value: object) -> str:
    """Returns what a decoded JSON value is, for an error."""
    if value is None:
        return "null"
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"the number {value}"
    return names.get(type(value), f"a {type(value).__name__}")
