"""Reads a file's rows with the columns that it has, whatever they mean.

JSON, JSON lines, CSV, TSV and Parquet, each also compressed (.gz, .zst), a folder of such files,
and data sets of the Hugging Face hub.
"""

from __future__ import annotations

import csv
import importlib
import io
import os
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpaca_lib.compression import SUFFIXES, inner_suffix, open_bytes
from alpaca_lib.errors import DataError
from alpaca_lib.formats.hub import read_hub, split_name
from alpaca_lib.formats.trees import TREE_COLUMNS, read_trees
from alpaca_lib.json_rows import RowError, Rows, describe, name_row, read_rows, read_text
from alpaca_lib.optional import require


@dataclass(frozen=True)
class Table:
    """The rows of a file, as they are; ``source`` knows their lines and the faults of their text.

    ``note`` is what happened to the rows. ``is_json`` is false if cells may be what JSON cannot
    hold, as dates.
    """

    path: Path
    rows: Collection[Any]
    source: Rows | None = None
    is_json: bool = True
    note: str = ""

    @property
    def lines(self) -> list[int]:
        """The line of each row; empty if the file has no lines."""
        return self.source.lines if self.source else []

    def find_damage(self, number: int) -> str:
        """Returns what is wrong with the text of a row, or ""."""
        return self.source.find_damage(number) if self.source else ""

    @property
    def columns(self) -> list[str]:
        """The columns of all rows, in order of appearance."""
        return list(dict.fromkeys(column for row in self.rows for column in row))

    def name(self, number: int) -> str:
        """Returns "row 3 (line 17)"; rows are numbered from 1."""
        return name_row(number, self.lines)


def read_table(path: str | os.PathLike[str]) -> Table:
    """Returns the rows of a file, a folder or a data set of the hub, see ``open_table``.

    Raises DataError also for a row that is no object, or has a key twice.
    """
    table = open_table(path)
    for number, row in enumerate(table.rows, start=1):
        if not isinstance(row, dict):
            raise DataError(f"{path}: {table.name(number)} is {describe(row)}, not an object")
        damage = table.find_damage(number)
        if damage and "surrogate" not in damage:
            raise DataError(f"{path}: {table.name(number)} {damage}")
    return table


def open_table(path: str | os.PathLike[str]) -> Table:
    """Returns the rows of a .json, .jsonl, .csv, .tsv or .parquet file, or of a data set.

    The rows of a .json file may be under one key, as in {"data": [...]}. Raises DataError, naming
    the file, the line and the fix, and MissingPackageError for Parquet without pyarrow.
    """
    if split_name(path):
        table = Table(Path(path), read_hub(path), is_json=False)
    elif is_parquet(path := Path(path)):
        table = Table(path, ParquetRows(path), is_json=False)
    elif inner_suffix(path) in (".csv", ".tsv"):
        table = _read_csv(path, "\t" if inner_suffix(path) == ".tsv" else ",;\t")
    else:
        found = read_rows(path)
        table = Table(path, found.values, found)
    first = next(iter(table.rows), None)
    if first is None and not len(table.rows):
        raise DataError(f"{path}: contains no rows; put at least one row into it")
    return _join_trees(table) if isinstance(first, dict) and first.keys() >= TREE_COLUMNS else table


def _join_trees(table: Table) -> Table:
    """Returns a table with one conversation per tree of messages."""
    messages = list(table.rows)
    try:
        for number in range(1, len(messages) + 1):
            if (damage := table.find_damage(number)) and "surrogate" not in damage:
                raise RowError(f"{table.name(number)} {damage}")
        rows, firsts, left_out = read_trees(messages)
    except RowError as error:
        raise DataError(f"{table.path}: {error}") from None
    lines = [table.lines[number - 1] for number in firsts] if table.lines else None
    note = f"trees of {len(messages):,} messages, {left_out:,} of them in other branches left out"
    source = Rows("", list(rows), lines)
    source.is_doubtful = True
    return Table(table.path, rows, source, note=note)


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
    return Table(path, rows, Rows("", list(rows), lines))


def is_parquet(path: Path) -> bool:
    """Returns whether a file is called Parquet, or begins as such a file does."""
    if inner_suffix(path) == ".parquet":
        return True
    try:
        with open_bytes(path) as stream:
            return stream.read(4) == b"PAR1"
    except (OSError, EOFError):
        return False


class ParquetRows(Collection[dict[str, Any]]):
    """The rows of a Parquet file; they are read in batches, again for each iteration."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._errors = (require("pyarrow").ArrowException, OSError, EOFError, ValueError)
        if not path.is_file():
            read_text(path)  # raises the error of a missing file, a folder or a pipe
        try:
            stream: Any = open_bytes(path)
            if path.suffix.lower() in SUFFIXES:
                stream = io.BytesIO(stream.read())  # Parquet is read from its end
            self._file = importlib.import_module("pyarrow.parquet").ParquetFile(stream)
        except self._errors as error:
            raise self._explain(error) from None
        names = Counter(self._file.schema_arrow.names)
        if twice := [name for name, count in names.items() if count > 1]:
            raise DataError(f"{path}: has two columns `{twice[0]}`; rename one of them")

    def __contains__(self, row: object) -> bool:
        return any(row == one for one in self)

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        try:
            for batch in self._file.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
        except self._errors as error:
            raise self._explain(error) from None

    def _explain(self, error: BaseException) -> DataError:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        return DataError(f"{self.path}: cannot be read as Parquet ({first})")
