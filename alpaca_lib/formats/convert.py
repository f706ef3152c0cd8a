"""Converts files of any layout into one file of Alpaca's rows, or of rows of messages.

The rows are Alpaca's if each is one question and answer without a system message, else
messages. JSON lines (also compressed) are converted as they are read, in constant memory and
in several processes; so are Parquet and data sets of the hub, a batch at a time. Other files are
read into memory. Nothing is written before every row is good.

>>> reports = convert_files(["sharegpt.jsonl"], "out.jsonl")
>>> reports[0].describe()
'sharegpt.jsonl: ShareGPT, 3.1 turns on average, 8,000 rows, all with an answer'
"""

from __future__ import annotations

import gzip
import os
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from alpaca_lib.errors import DataError, UsageError
from alpaca_lib.files import atomic_path, write_text
from alpaca_lib.formats.columns import COLUMN_NAMES, plain
from alpaca_lib.formats.layouts import Counts
from alpaca_lib.formats.parts import Fault, Part, Plan
from alpaca_lib.formats.streams import (
    Lines,
    Progress,
    Source,
    has_conversation,
    iter_parts,
    open_source,
)
from alpaca_lib.options import nearest

OUT_SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
_SHOWN = 5  # rows named in a message; the others are counted, or listed in a file


@dataclass
class Report:
    """What a file was, and which of its rows were left out.

    ``name`` names a row by its number; ``listings`` are the files that list rows, by label.
    """

    path: Path
    plan: Plan
    source: Source
    counts: Counts = field(default_factory=Counts)
    faults: list[Fault] = field(default_factory=list)
    rows: int = 0
    bad: int = 0  # rows with a fault
    blanks: array[int] = field(default_factory=lambda: array("q"))

    def name(self, row: int) -> str:
        """Returns "row 3 (line 17)"; rows are numbered from 1."""
        if not isinstance(self.source, Lines):
            return self.source.name(row)
        return f"row {row} (line {row + bisect_left(self.blanks, row)})"

    def add(self, part: Part) -> None:
        """Adds the next part of the file."""
        self.counts.merge(part.counts, self.rows)
        self.bad += len(part.faults)
        if not self.plan.drop_bad:
            part.faults = part.faults[: max(_SHOWN - len(self.faults), 0)]
        self.faults += [fault._replace(row=fault.row + self.rows) for fault in part.faults]
        self.blanks.extend(before + self.rows for before in part.blanks)
        self.rows += part.rows

    @property
    def layout(self) -> str:
        """The name of the file's layout: that of its first row, unless others have more fields."""
        found = self.counts.layouts
        return max(found, key=lambda one: len(one.fields)).name if found else "nothing"

    def describe(self) -> str:
        """Returns one line: the layout, the turns, the rows, and how many have no answer."""
        counts, rows = self.counts, f"{self.rows:,} rows"
        note = "" if isinstance(self.source, Lines) else self.source.note
        turns = f"{counts.turns / max(counts.rows, 1):.3g} turns on average, "
        missing = len(counts.unanswered)
        answers = f"{missing:,} of {rows} without an answer" if missing else f"{rows}, all answered"
        if missing and self.plan.drop_unanswered:
            answers += " (left out)"
        return (
            f"{self.path}: {note or self.layout}, {turns if counts.conversations else ''}{answers}"
        )

    def raise_faults(self) -> None:
        """Raises UsageError for an option that fits no row, DataError for rows that are bad."""
        self._check_options()
        if mixture := self.counts.find_mixture(self.name):
            raise DataError(f"{self.path}: {mixture}")
        if self.faults and not self.plan.drop_bad:
            shown = [f"{self.name(fault.row)} {fault.text}" for fault in self.faults[:_SHOWN]]
            more = self.bad - _SHOWN
            rest = f"\n  and {more:,} more rows" if more > 0 else ""
            flags = dict.fromkeys(fault.flags for fault in self.faults if fault.flags)
            good = f"{self.counts.rows:,} rows are good"
            fixes = [f"{flag} " for flag in flags]
            if self.counts.rows:
                fixes.append(f"--drop-bad ({good}) ")
            fix = f"\n  add {'or '.join(fixes)}".rstrip() if fixes else ""
            raise DataError(f"{self.path}: " + "\n  also ".join(shown) + rest + fix)

    def _check_options(self) -> None:
        options, seen = self.plan.options, self.counts.columns
        columns = {**dict(options.given), **({"messages": options.chat} if options.chat else {})}
        for name, column in columns.items():
            if column not in seen:
                near, has = (
                    nearest(column, list(seen)),
                    ", ".join(f"`{one}`" for one in [*seen][:12]),
                )
                raise UsageError(
                    f"--map {name}={column}: {self.path} has no such column{near} ({has})"
                )
        for column in options.drop:
            if column not in seen:
                near = nearest(column, list(seen))
                raise UsageError(f"--drop {column}: {self.path} has no such column{near}")
            for name in ("instruction", "output"):
                layouts = [dict(one.fields) for one in self.counts.layouts]
                is_only = not any(name in one or "messages" in one for one in layouts)
                if is_only and plain(column) in COLUMN_NAMES[name]:
                    raise UsageError(f"--drop {column}: it is the {name}, which is needed")


class _NotExamples(Exception):
    """Says that a row is a conversation, and rows of Alpaca's columns were written so far."""


def convert_files(
    paths: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    plan: Plan,
    workers: int = 1,
    progress: Progress = lambda read: None,
) -> list[Report]:
    """Writes the rows of files, in any layout, to one .json or .jsonl file (or .gz of it).

    workers: processes for a large file of JSON lines. progress: gets the bytes as they are read.
    Returns what each file was. Raises DataError with the rows that cannot be read, UsageError for
    options that fit no row; then nothing is written.
    """
    sources = [open_source(path) for path in paths]
    out = Path(out)
    plan = replace(plan, is_array=out.name.removesuffix(".gz").endswith(".json"))
    as_messages = any(has_conversation(source, plan) for source in sources)
    try:
        return _write(
            sources, paths, out, replace(plan, as_messages=as_messages), workers, progress
        )
    except _NotExamples:  # the first conversation stands far down
        return _write(sources, paths, out, replace(plan, as_messages=True), workers, progress)


def _write(
    sources: Sequence[Source],
    paths: Sequence[str | os.PathLike[str]],
    out: Path,
    plan: Plan,
    workers: int,
    progress: Progress,
) -> list[Report]:
    reports = []
    with atomic_path(out) as work, _open_out(work, out) as stream:
        is_first = True
        for source, path in zip(sources, paths, strict=True):
            reports.append(report := Report(Path(path), plan, source))
            for part in iter_parts(source, plan, workers, progress):
                report.add(part)
                if report.counts.conversations and not plan.as_messages:
                    raise _NotExamples
                if part.text and not (report.faults and not plan.drop_bad):
                    start = b"[\n" if plan.is_array else b""
                    stream.write(start if is_first else plan.between)
                    stream.write(part.text)
                    is_first = False
            report.raise_faults()
        if is_first:
            raise DataError(f"{', '.join(map(str, paths))}: no row is left to write")
        stream.write(b"\n]\n" if plan.is_array else b"\n")
    return reports


@contextmanager
def _open_out(work: Path, out: Path) -> Iterator[IO[bytes]]:
    with open(work, "wb") as file:
        if out.suffix != ".gz":
            yield file
            return
        with gzip.GzipFile(
            filename="", mode="wb", fileobj=file, compresslevel=6, mtime=0
        ) as packed:
            yield packed  # type: ignore[misc]


def list_rows(reports: Sequence[Report], out: Path) -> dict[str, Path]:
    """Writes the rows without an answer, and those left out as bad, into files next to ``out``.

    Returns {what they are: path}; a list of an earlier run is removed if there is no such row.
    """
    made = {}
    for label in ("unanswered", "bad"):
        lines = []
        for report in reports:
            if label == "unanswered":
                lines += [f"{report.path}: {report.name(row)}" for row in report.counts.unanswered]
            else:
                lines += [f"{report.path}: {report.name(f.row)} {f.text}" for f in report.faults]
        path = out.with_name(f"{out.name.removesuffix('.gz').rpartition('.')[0]}.{label}.txt")
        if lines:
            made[label] = write_text(path, "\n".join(lines) + "\n")
        else:
            path.unlink(missing_ok=True)
    return made
