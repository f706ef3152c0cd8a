"""Reads a file as parts of bounded size, and converts them in order, in one process or several."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from io import BufferedReader
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import IO, Any

from alpaca_lib.compression import TORN, inner_suffix, open_bytes
from alpaca_lib.errors import DataError
from alpaca_lib.files import parse_json
from alpaca_lib.formats.hub import split_name
from alpaca_lib.formats.layouts import read_row
from alpaca_lib.formats.parts import Part, Plan, convert_lines
from alpaca_lib.formats.tables import Table, open_table
from alpaca_lib.formats.trees import TREE_COLUMNS
from alpaca_lib.json_rows import RowError

PART_BYTES = 1 << 20  # of lines, per part
PART_ROWS = 1024  # of a table, per part
_HEAD = 1 << 20
_SEVERAL = 1 << 26  # bytes of a file from which several processes are worth their start
Progress = Callable[[int], object]  # gets the bytes that were read since the last call


@dataclass(frozen=True)
class Lines:
    """A file of JSON lines, which is read as parts; ``first`` are the rows at its beginning."""

    path: Path
    first: list[Any]


Source = Lines | Table


def open_source(path: str | os.PathLike[str]) -> Source:
    """Returns a file as Lines if it has one JSON object per line, else as a Table.

    Raises DataError, naming the file and the fix.
    """
    name = Path(path)
    if split_name(path) is None and inner_suffix(name) not in (".csv", ".tsv", ".parquet"):
        try:
            with open_bytes(name) as stream:
                head = stream.read(_HEAD)
        except (OSError, EOFError):
            return open_table(path)  # raises the error
        if (first := _first_rows(head, name)) and not set(first[0]) >= TREE_COLUMNS:
            return Lines(name, first)
    return open_table(path)


def _first_rows(head: bytes, path: Path) -> list[Any]:
    """Returns the objects on a file's first lines; none if it has not one object per line."""
    lines = head.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if len(head) == _HEAD:
        lines.pop()  # it is cut
    rows: list[Any] = []
    for line in lines:
        if line.isspace() or not line:
            continue
        try:
            row = parse_json(line)
        except ValueError:
            break
        if not isinstance(row, dict):
            break
        rows.append(row)
    return rows if len(rows) > 1 or inner_suffix(path) == ".jsonl" else []


def has_conversation(source: Source, plan: Plan) -> bool:
    """Returns whether one of the first rows is more than one question and answer."""
    rows = source.first if isinstance(source, Lines) else source.rows
    for row in islice(rows, PART_ROWS):
        try:
            reading = read_row(row, plan.options)
        except RowError:
            continue
        is_kept = reading.has_answer or not plan.drop_unanswered
        if is_kept and not reading.is_example:
            return True
    return False


def iter_parts(source: Source, plan: Plan, workers: int, progress: Progress) -> Iterator[Part]:
    """Yields the converted parts of a file in order.

    workers: the processes for a large file of lines. progress: gets the bytes of each part.
    """
    if isinstance(source, Table):
        yield from _table_parts(source, plan)
        return
    size = source.path.stat().st_size
    with ExitStack() as stack:
        stream = stack.enter_context(open_bytes(source.path))
        run: Callable[..., Any] = _run_here
        by_range = False
        if workers > 1 and size >= _SEVERAL:
            pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
            stack.callback(pool.shutdown, cancel_futures=True)
            run, by_range = pool.submit, isinstance(stream, BufferedReader)
        waiting: deque[Future[Part]] = deque()
        start = 0
        for data, first_line in _blocks(stream, source.path):
            block = (start, len(data)) if by_range else data
            waiting.append(run(_convert_block, block, plan, source.path, first_line))
            start += len(data)
            progress(len(data))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _convert_block(block: bytes | tuple[int, int], plan: Plan, path: Path, first_line: int) -> Part:
    """Converts lines: their bytes, or (start, size) of them in a file that is not compressed."""
    if isinstance(block, tuple):
        with open(path, "rb") as stream:
            stream.seek(block[0])
            block = stream.read(block[1])
    return convert_lines(block, plan, path, first_line)


def _run_here(work: Callable[..., Part], *arguments: Any) -> Future[Part]:
    done: Future[Part] = Future()
    done.set_result(work(*arguments))
    return done


def _blocks(stream: IO[bytes], path: Path) -> Iterator[tuple[bytes, int]]:
    """Yields (complete lines, the number of the first) in parts of about PART_BYTES."""
    rest, line = b"", 1
    while True:
        try:
            data = stream.read(PART_BYTES)
        except (*TORN, OSError) as error:
            raise DataError(f"{path}: is damaged or not complete ({error})") from None
        end = data.rfind(b"\n") + 1
        if data and not end:
            rest += data
            continue
        block, rest = rest + data[:end] if data else rest, data[end:]
        if block:
            yield block, line
            line += block.count(b"\n")
        if not data:
            return


def _table_parts(table: Table, plan: Plan) -> Iterator[Part]:
    part = Part()
    for number, row in enumerate(table.rows, start=1):
        part.convert(row, plan, table.find_damage(number), table.is_json)
        if part.rows == PART_ROWS:
            yield part.finish(plan)
            part = Part()
    yield part.finish(plan)
