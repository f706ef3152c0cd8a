"""Reads other people's files: JSON, JSON lines, CSV, TSV, Parquet -> rows in Alpaca's columns.

A file is first read as rows with the columns that it has (``read_table``), whatever they mean;
then a mapping of columns, detected or given, turns each row into one of Alpaca's
(``convert_rows``). What a mapping cannot express is refused, never guessed.

>>> table = read_table("dolly.jsonl")
>>> converted = convert_rows(table, detect_columns(table))
>>> save_rows(converted.rows, "dolly.json")
"""

from __future__ import annotations

import csv
import importlib
import io
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alpaca_lib.errors import DataError, UsageError
from alpaca_lib.json_rows import SURROGATE, describe, name_row, read_rows, read_text, show, walk
from alpaca_lib.optional import require
from alpaca_lib.options import nearest
from alpaca_lib.records import (
    A_CHAT,
    COLUMN_NAMES,
    FIELDS,
    find_chat,
    find_unused,
    is_blank,
    similar_columns,
)

# What a mapping of columns is called; the first whose columns are all there names the layout.
LAYOUTS = {
    "Alpaca": ("instruction", "output"),
    "Self-Instruct seed tasks": ("instruction", "instances"),
    "Dolly": ("instruction", "context", "response"),
}
_REPLACEMENT = "\ufffd"


@dataclass(frozen=True)
class Table:
    """The rows of a file, as they are; ``lines`` is empty if the file has no lines."""

    path: Path
    rows: list[dict[str, Any]]
    lines: list[int] = field(default_factory=list)

    @property
    def columns(self) -> list[str]:
        """The columns of all rows, in order of appearance."""
        return list(dict.fromkeys(column for row in self.rows for column in row))

    def name(self, number: int) -> str:
        """Returns "row 3 (line 17)"; rows are numbered from 1."""
        return name_row(number, self.lines)


@dataclass(frozen=True)
class Converted:
    """Rows in Alpaca's columns, and what happened on the way.

    A row without an answer has no ``output``; the numbers of such rows are in ``unanswered``.
    """

    rows: list[dict[str, Any]]
    unanswered: list[int]
    dropped: Counter[str]  # rows with text in each column that was dropped
    replaced: int  # rows in which lone surrogates were replaced


def read_table(path: str | os.PathLike[str]) -> Table:
    """Returns the rows of a .json, .jsonl, .csv, .tsv or .parquet file.

    The rows of a .json file may be under one key, as in {"data": [...]}. Raises DataError, naming
    the file, the row and the fix, and MissingPackageError for Parquet without pyarrow.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        table = _read_parquet(path)
    elif suffix in (".csv", ".tsv"):
        table = _read_csv(path, "\t" if suffix == ".tsv" else ",;\t")
    else:
        found = read_rows(path, nested=True)
        rows = []
        for number, row in enumerate(found.values, start=1):
            if not isinstance(row, dict):
                raise DataError(f"{path}: {found.name(number)} is {describe(row)}, not an object")
            damage = found.find_damage(number)
            if damage and "surrogate" not in damage:
                raise DataError(f"{path}: {found.name(number)} {damage}")
            rows.append(row)
        table = Table(path, rows, found.lines)
    if not table.rows:
        raise DataError(f"{path}: contains no rows")
    return table


def _read_csv(path: Path, delimiters: str) -> Table:
    text = read_text(path)
    first = text.split("\n", 1)[0]
    delimiter = max(delimiters, key=first.count)
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[dict[str, Any]] = []
    lines = []
    try:
        header = [name.strip() for name in next(reader)]
        if twice := [name for name, count in Counter(header).items() if count > 1]:
            raise DataError(f"{path}: has two columns `{twice[0]}`; rename one of them")
        line = reader.line_num + 1
        for cells in reader:
            if cells and len(cells) != len(header):
                raise DataError(
                    f"{path}: row {len(rows) + 1} (line {line}) has {len(cells)} cells, and the "
                    f"header {len(header)} ({', '.join(header)}); a cell with a {delimiter!r} or "
                    'a line break in it is written in "quotes"'
                )
            if cells:
                rows.append(dict(zip(header, cells, strict=True)))
                lines.append(line)
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: is not CSV ({error})") from None
    return Table(path, rows, lines)


def _read_parquet(path: Path) -> Table:
    arrow = require("pyarrow")
    parquet = importlib.import_module("pyarrow.parquet")
    if not path.is_file():
        read_text(path)  # raises the error of a missing file, a folder or a pipe
    try:
        table = parquet.read_table(path)
        rows = table.to_pylist()
    except (arrow.ArrowException, OSError, ValueError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path}: cannot be read as Parquet ({first})") from None
    names = Counter(table.column_names)
    if twice := [name for name, count in names.items() if count > 1]:
        raise DataError(f"{path}: has two columns `{twice[0]}`; rename one of them")
    return Table(path, rows)


def detect_columns(table: Table, given: Mapping[str, str] | None = None) -> dict[str, str]:
    """Returns {field: column}: those that are ``given``, the others by the columns' names.

    A column with the field's own name is that field; else one of COLUMN_NAMES, if only one is
    there. Raises DataError if no instruction is found, or several columns may be the same field,
    and UsageError for a given field or column that does not exist.
    """
    columns, found = table.columns, dict(given or {})
    for name, column in found.items():
        if name not in FIELDS:
            raise UsageError(f"--map {name}={column}: map to one of {', '.join(FIELDS)}")
        if column not in columns:
            raise UsageError(
                f"--map {name}={column}: {table.path} has no such column{nearest(column, columns)}"
                f" ({_list(columns)})"
            )
    for name in FIELDS:
        if name in found:
            continue
        if name in columns:
            found[name] = name
            continue
        names = COLUMN_NAMES[name]
        near = [c for c in columns if c.strip().lower() in names and c not in found.values()]
        if len(near) > 1:
            raise DataError(
                f"{table.path}: {_list(near)} may each be the {name}; choose one with "
                f"--map {name}={near[0]}"
            )
        if near:
            found[name] = near[0]
            continue
        spelled = [c for c in similar_columns(name, tuple(columns)) if c not in found.values()]
        if spelled:
            raise DataError(
                f"{table.path}: has no `{name}`, but `{spelled[0]}`; if this is what is meant, "
                f"add --map {name}={spelled[0]}"
            )
    if "instruction" not in found and (chat := find_chat(columns)):
        raise DataError(f"{table.path}: holds in `{chat}` {A_CHAT}")
    if "instruction" not in found:
        raise DataError(
            f"{table.path}: none of its columns ({_list(columns)}) is known as an instruction; "
            "name it with --map instruction=COLUMN"
        )
    return {name: found[name] for name in FIELDS if name in found}


def name_layout(table: Table, columns: Mapping[str, str]) -> str:
    """Returns what a mapping is called, with the columns that change their name."""
    has = {column.strip().lower() for column in table.columns}
    renamed = [f"{old} -> {new}" for new, old in columns.items() if new != old]
    known = [name for name, needed in LAYOUTS.items() if has >= set(needed)]
    name = known[0] if known else f"{'/'.join(columns.values())} rows"
    return f"{name} ({', '.join(renamed)})" if renamed else name


def convert_rows(
    table: Table,
    columns: Mapping[str, str],
    drop: Sequence[str] = (),
    drop_unanswered: bool = False,
) -> Converted:
    """Returns the rows of a table in Alpaca's columns; the other columns are kept behind them.

    columns: see ``detect_columns``. drop: columns that are left out. drop_unanswered: leaves out
    rows whose answer is missing. Raises DataError, naming the rows, for cells that are no text
    and for columns that would be silently unused; UsageError for a column that does not exist.
    """
    for column in drop:
        if column not in table.columns:
            near = nearest(column, table.columns)
            raise UsageError(f"--drop {column}: {table.path} has no such column{near}")
        if column in columns.values():
            raise UsageError(f"--drop {column}: it is the column of a field that is needed")
    out, unanswered, dropped, replaced = [], [], Counter[str](), 0
    drop = [*drop, *(c for c in FIELDS if c in table.columns and c not in columns.values())]
    for number, row in enumerate(table.rows, start=1):
        dropped.update(column for column in drop if not is_blank(row.get(column)))
        rest = {k: v for k, v in row.items() if k not in (*drop, *columns.values())}
        one, instance = dict(row), _first_instance(row, columns)
        if instance is not None:
            one = {**row, **instance}
            del rest["instances"]
        where = f"{table.path}: {table.name(number)}"
        new = {name: _cell(one, column, where) for name, column in columns.items()}
        if instance is not None:
            new = {**new, **{n: _cell(one, n, where) for n in ("input", "output") if n in instance}}
        new["input"] = new.get("input") or ""
        if new["instruction"] is None or not new["instruction"].strip():
            raise DataError(f"{where} has an empty `{columns['instruction']}`")
        if unused := find_unused(rest):
            raise DataError(
                f"{where} has `{'`, `'.join(unused)}`, which would be silently unused; "
                f"--drop {','.join(unused)} leaves it out"
            )
        if is_blank(new.get("output")):
            unanswered.append(number)
            if drop_unanswered:
                continue
        if new.get("output") is None:
            new.pop("output", None)
        fields = {name: new[name] for name in FIELDS if name in new}
        clean = _json_value({**fields, **rest}, where)
        replaced += clean != {**fields, **rest}
        out.append(clean)
    if not out:
        raise DataError(f"{table.path}: none of its {len(table.rows)} rows has an answer")
    return Converted(out, unanswered, dropped, replaced)


def _first_instance(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any] | None:
    """Returns the instance of a Self-Instruct seed task that holds its input and output."""
    instances = row.get("instances")
    if "output" in columns or not isinstance(instances, list) or not instances:
        return None
    return instances[0] if isinstance(instances[0], dict) else None


def _cell(row: Mapping[str, Any], column: str, where: str) -> str | None:
    """Returns the text of a cell; None if it is missing or null. A number becomes its digits."""
    value = row.get(column)
    if value is None or value != value:  # NaN is how tables write "missing"
        return None
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    if not isinstance(value, str):
        raise DataError(f"{where} has `{column}` that is {describe(value)}, not text")
    return value


def _json_value(row: dict[str, Any], where: str) -> dict[str, Any]:
    """Returns a row with lone surrogates replaced. Raises DataError for what JSON cannot hold."""
    try:
        text = json.dumps(row, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        bad = next((c for c, v in row.items() if not _is_json(v)), "")
        raise DataError(f"{where}: JSON cannot hold `{bad}` ({error}); --drop {bad}") from None
    if not SURROGATE.search(text):
        return row
    fixed: dict[str, Any] = json.loads(SURROGATE.sub(_REPLACEMENT, text))
    return fixed


def _is_json(value: Any) -> bool:
    known = (str, int, float, bool, list, dict, type(None))
    return all(isinstance(one, known) for one in walk(value))


def _list(columns: Sequence[str]) -> str:
    return ", ".join(f"`{show(str(column))}`" for column in columns[:12]) or "no column"
