"""Converts a part of a file: rows -> JSON text, what they were, and the faults by row.

A part is some rows of a table, or some lines of a JSON-lines file; parts are converted one by
one, in this process or in several.
"""

from __future__ import annotations

import importlib
import json
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from alpaca_lib.conversations import MESSAGES, REASONING, Conversation, as_conversation
from alpaca_lib.errors import DataError
from alpaca_lib.examples import Example
from alpaca_lib.files import dump_json
from alpaca_lib.formats.layouts import Counts, Options, Record, not_json, read_row
from alpaca_lib.json_rows import SURROGATE, RowDecoder, RowError, find_damage, has_escaped_half

_REPLACEMENT = "\ufffd"
_encode = json.JSONEncoder(ensure_ascii=False).encode
_START = f'{{"{MESSAGES}": ['.encode()
_SYSTEM = b'{"role": "system", "content": '
_BEFORE = {role: f'{{"role": "{role}", "content": '.encode() for role in ("user", "assistant")}
_REASONING = f', "{REASONING[0]}": '.encode()


def _find_quote() -> Callable[[str], bytes]:
    """Returns a function that encodes a text as JSON: orjson's, if it is there, is the faster."""
    try:
        return importlib.import_module("orjson").dumps
    except ImportError:
        return lambda text: json.encoder.encode_basestring(text).encode()


_quote = _find_quote()


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
    def between(self) -> bytes:
        """What is written between two rows."""
        return b",\n" if self.is_array else b"\n"


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
    pieces: list[bytes] = field(default_factory=list)
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
        if plan.as_messages:
            record = as_conversation(record)
        if isinstance(record, Conversation) and not (damage or plan.is_array):
            text = _encode_conversation(record)
        else:
            text = self._encode(record, reading.has_output, plan, damage)
        self.counts.kept += 1
        self.counts.conversations += not reading.is_example
        self.pieces.append(text)

    def _encode(self, record: Record, has_output: bool, plan: Plan, damage: str) -> bytes:
        row = record.to_dict()
        if isinstance(record, Example) and not has_output:
            del row["output"]
        text = _encode(row)
        if damage:
            text = SURROGATE.sub(_REPLACEMENT, text)
            self.counts.replaced += 1
        if plan.is_array:
            text = dump_json([json.loads(text)], indent=4)[2:-2]
        return text.encode("utf-8")

    def finish(self, plan: Plan) -> Part:
        """Joins the rows, and returns the part."""
        self.text = plan.between.join(self.pieces)
        self.pieces = []
        return self


def _encode_conversation(record: Conversation) -> bytes:
    """Returns the JSON of ``record.to_dict()``, in a third of the time of the general encoder."""
    pieces = [_SYSTEM, _quote(record.system), b"}, "] if record.system else []
    for turn in record.turns:
        pieces += (_BEFORE[turn.role], _quote(turn.content))
        if turn.reasoning:
            pieces += (_REASONING, _quote(turn.reasoning))
        pieces.append(b"}, ")
    pieces[-1] = b"}]"
    extra = {key: value for key, value in record.extra.items() if key != MESSAGES}
    rest = b", " + _encode(extra)[1:].encode() if extra else b"}"
    return b"".join((_START, *pieces, rest))


def convert_lines(data: bytes, plan: Plan, path: Path, first_line: int) -> Part:
    """Converts complete lines of a JSON-lines file. Raises DataError for a line that is no JSON."""
    part, decoder = Part(), RowDecoder()
    may_have_surrogates = (b"\\ud" in data or b"\\uD" in data) and has_escaped_half(
        data.decode("utf-8", "replace")
    )
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
