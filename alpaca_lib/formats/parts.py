"""Converts a part of a file: rows -> JSON text, what they were, and the faults by row.

A part is some rows of a table, or some lines of a JSON-lines file; parts are converted one by
one, in this process or in several.
"""

from __future__ import annotations

import json
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from alpaca_lib.conversations import Conversation
from alpaca_lib.errors import DataError
from alpaca_lib.files import dump_json
from alpaca_lib.formats.layouts import Counts, Options, Record, not_json, read_row
from alpaca_lib.json_rows import SURROGATE, RowDecoder, RowError, find_damage, has_escaped_half

_REPLACEMENT = "\ufffd"
_encode = json.JSONEncoder(ensure_ascii=False).encode


@dataclass(frozen=True)
class Plan:
    """How rows are converted.

    as_messages: every row becomes a row of messages, also one question and answer. is_array: the
    rows are elements of an indented array, else lines. drop_unanswered, drop_bad: leave
    out rows without an answer, and rows that cannot be read.
    """

    options: Options
    as_messages: bool = False
    is_array: bool = False
    drop_unanswered: bool = False
    drop_bad: bool = False

    @property
    def between(self) -> str:
        """What is written between two rows."""
        return ",\n" if self.is_array else "\n"


class Fault(NamedTuple):
    """What is wrong with a row; ``flags``: see ``RowError``."""

    row: int
    text: str
    flags: str | None


@dataclass
class Part:
    """A part that was converted: its JSON in UTF-8, and what it held, by rows from 1.

    ``blanks`` has, for each blank line, the number of rows before it.
    """

    text: bytes = b""
    pieces: list[str] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    faults: list[Fault] = field(default_factory=list)
    blanks: array[int] = field(default_factory=lambda: array("q"))
    rows: int = 0

    def convert(self, row: object, plan: Plan, damage: str = "", is_json: bool = True) -> None:
        """Converts one more row. ``damage`` is what is wrong with its text."""
        self.rows += 1
        chosen = plan.options
        if (chosen.given or chosen.drop or chosen.chat) and isinstance(row, dict):
            self.counts.columns |= dict.fromkeys(row)
        try:
            if damage and "surrogate" not in damage:
                raise RowError(damage)
            reading = read_row(row, chosen)
            record = reading.record
            if not is_json and (bad := not_json(record.extra)):
                raise RowError(f"has `{bad}`, which JSON cannot hold", f"--drop {bad}")
        except RowError as error:
            self.faults.append(Fault(self.rows, str(error), error.flags))
            return
        self.counts.add(self.rows, reading)
        if plan.drop_unanswered and not reading.has_answer:
            return
        made = to_row(record, plan.as_messages, reading.has_output)
        text = _encode(made)
        if damage:
            text = SURROGATE.sub(_REPLACEMENT, text)
            self.counts.replaced += 1
        if plan.is_array:
            text = dump_json([json.loads(text)], indent=4)[2:-2]
        self.counts.kept += 1
        self.counts.conversations += not reading.is_example
        self.pieces.append(text)

    def finish(self, plan: Plan) -> Part:
        """Joins the rows, and returns the part."""
        self.text = plan.between.join(self.pieces).encode("utf-8")
        self.pieces = []
        return self


def to_row(record: Record, as_messages: bool, has_output: bool = True) -> dict[str, Any]:
    """Returns the row that is written: of Alpaca's columns, or of messages."""
    if isinstance(record, Conversation):
        return record.to_dict()
    if not as_messages:
        row = record.to_dict()
        if not has_output:
            del row["output"]
        return row
    asked = "\n\n".join(filter(None, (record.instruction, record.input)))
    messages = [{"role": "user", "content": asked}]
    if record.output.strip():
        messages.append({"role": "assistant", "content": record.output})
    return {"messages": messages, **{k: v for k, v in record.extra.items() if k != "messages"}}


def convert_lines(data: bytes, plan: Plan, path: Path, first_line: int) -> Part:
    """Converts complete lines of a JSON-lines file. Raises DataError for a line that is no JSON."""
    part, decoder = Part(), RowDecoder()
    may_have_surrogates = b"\\u" in data and has_escaped_half(data.decode("utf-8", "replace"))
    if first_line == 1:
        data = data.removeprefix(b"\xef\xbb\xbf")
    for number, line in enumerate(data.split(b"\n"), start=first_line):
        if not line or line.isspace():
            part.blanks.append(part.rows)
            continue
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise DataError(
                f"{path}, line {number}: byte 0x{byte:02x} is not UTF-8; save the file as UTF-8"
            ) from None
        row = decoder.decode(text, path, number)
        is_doubtful = may_have_surrogates or decoder.has_repeated_keys
        part.convert(row, plan, find_damage(row) if is_doubtful else "")
    if data.endswith(b"\n"):
        part.blanks.pop()  # what follows the last line break is no line
    return part.finish(plan)
