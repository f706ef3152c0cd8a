"""Converts the rows of a table in memory, by a mapping of columns that is found or given.

>>> table = read_table("dolly.jsonl")
>>> converted = convert_rows(table, detect_columns(table))
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alpaca_lib.errors import DataError, UsageError
from alpaca_lib.formats.columns import find_columns, list_columns
from alpaca_lib.formats.layouts import Options
from alpaca_lib.formats.parts import Part, Plan
from alpaca_lib.formats.tables import Table
from alpaca_lib.json_rows import RowError
from alpaca_lib.options import nearest


@dataclass(frozen=True)
class Converted:
    """Rows in Alpaca's columns, and the numbers of those without an answer.

    dropped: rows with text in each column that was left out. replaced: rows in which lone
    surrogates were replaced.
    """

    rows: list[dict[str, Any]]
    unanswered: list[int]
    dropped: Counter[str]
    replaced: int


def detect_columns(table: Table, given: Mapping[str, str] | None = None) -> dict[str, str]:
    """Returns {field: column}: those that are ``given``, the others by the columns' names.

    Raises DataError if no instruction is found, or several columns may be the same field, and
    UsageError for a given column that does not exist.
    """
    columns = table.columns
    for name, column in (given or {}).items():
        if column not in columns:
            near = nearest(column, columns)
            raise UsageError(f"--map {name}={column}: {table.path} has no such column{near}")
    try:
        found = find_columns(tuple(columns), tuple((given or {}).items())).fields
    except RowError as error:
        raise DataError(f"{table.path}: {error}; {error.flags}") from None
    if "instruction" not in found:
        raise DataError(
            f"{table.path}: none of its columns ({list_columns(columns)}) is known as an "
            "instruction; name it with --map instruction=COLUMN"
        )
    return found


def convert_rows(
    table: Table,
    columns: Mapping[str, str],
    drop: Sequence[str] = (),
    drop_unanswered: bool = False,
) -> Converted:
    """Returns the rows of a table in Alpaca's columns; the other columns are kept behind them.

    columns: see ``detect_columns``. Raises DataError, naming the first row that cannot be read.
    """
    options = Options(tuple(columns.items()), frozenset(drop), "", "optional", is_strict=False)
    plan, part = Plan(options, drop_unanswered=drop_unanswered), Part()
    for number, row in enumerate(table.rows, start=1):
        part.convert(row, plan, table.find_damage(number), table.is_json)
    if part.faults:
        fault = part.faults[0]
        fix = f"; {fault.flags}" if fault.flags else ""
        raise DataError(f"{table.path}: {table.name(fault.row)} {fault.text}{fix}")
    rows = [json.loads(text) for text in part.pieces]
    counts = part.counts
    return Converted(rows, list(counts.unanswered), counts.left_out, counts.replaced)
