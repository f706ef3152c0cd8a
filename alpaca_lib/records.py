"""Reads, validates and writes records: instruction-following examples and conversations.

Every layout and file type of the formats package is read: Alpaca's rows (``instruction``,
``input``, ``output``), Self-Instruct's seed tasks (their first instance, as in Stanford's
script), Dolly, ShareGPT, messages, preference pairs and others. What is ambiguous, or would
lose something, is refused, with the ``alpaca convert`` command that decides it.

>>> examples = load_examples("data/alpaca_520.json")
>>> save_examples(examples[:10], "runs/ten.jsonl")
>>> conversations = load_records("sharegpt.jsonl.gz")
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from alpaca_lib.conversations import Conversation, Turn
from alpaca_lib.errors import DataError
from alpaca_lib.examples import FIELDS, Example
from alpaca_lib.files import dump_json, write_text
from alpaca_lib.formats.columns import Answers
from alpaca_lib.formats.layouts import Counts, Options, Record, not_json, read_row
from alpaca_lib.formats.tables import open_table
from alpaca_lib.json_rows import RowError, convert_command, read_text

__all__ = [
    "FIELDS",
    "Conversation",
    "Example",
    "RowError",
    "Turn",
    "example_from_row",
    "flatten",
    "load_examples",
    "load_lines",
    "load_records",
    "read_text",
    "save_examples",
    "save_rows",
    "split_words",
    "words",
]
Turns = Literal["refuse", "first", "last", "each"]
_DROP_BAD = "--drop-bad"
_Taken = TypeVar("_Taken")
CJK = re.compile(r"[\u3041-\u30ff\u3400-\u9fff\uac00-\ud7af]")  # ideographs, kana, Hangul


def split_words(text: str) -> list[str]:
    """Returns the words: runs between white space, and each CJK character by itself."""
    if not CJK.search(text):
        return text.split()
    pieces = CJK.sub(lambda found: f" {found[0]} ", text).split()
    return [piece for piece in pieces if any(c.isalnum() for c in piece)]


def words(text: str) -> int:
    """Returns the number of words, see ``split_words``."""
    return len(split_words(text))


def example_from_row(row: object, answers: Answers = "required") -> Example:
    """Returns the Example of one decoded JSON row, in any layout.

    answers: "optional" for rows whose instruction alone is used; their missing output becomes "".
    Raises RowError with what is wrong with the row; the caller adds the file and the line.
    """
    return flatten(read_row(row, Options(answers=answers)).record, "refuse")[0]


def load_records(path: str | os.PathLike[str], answers: Answers = "required") -> list[Record]:
    """Returns the records of a file in any layout, or of a data set of the hub ("owner/name").

    A conversation of one question and answer, without system message and reasoning, is an
    Example. What a layout has besides, such as rejected answers, is left out with a warning.
    answers: "optional" if records need none; a conversation may then end with the
    user's turn. Raises DataError, naming the file, the row, its line, and the fix.
    """
    return _load(path, answers, lambda record: [record])


def load_examples(
    path: str | os.PathLike[str], answers: Answers = "required", turns: Turns = "refuse"
) -> list[Example]:
    """Returns the examples of a file in any layout, see ``load_records``.

    turns: what a conversation becomes that is more than one question and answer. "refuse": an
    error; "first", "last", "each": its first, its last or each question with its answer, without
    the system message and the turns before. Raises DataError, naming the file, the row, its
    line, and the fix.
    """
    return _load(path, answers, lambda record: flatten(record, turns))


def flatten(record: Record, turns: Turns) -> list[Example]:
    """Returns the examples of a record, see ``load_examples``. Raises RowError if it is refused."""
    if isinstance(record, Example):
        return [record]
    if turns == "refuse":
        has = "a system message and " if record.system else ""
        raise RowError(
            f"is a conversation ({has}{len(record.turns)} turns), and single questions with their "
            'answers are needed; load_examples(..., turns="first", "last" or "each") takes them'
        )
    texts = [turn.content for turn in record.turns] + [""] * (len(record.turns) % 2)
    pairs = list(zip(texts[::2], texts[1::2], strict=True))
    chosen = {"first": pairs[:1], "last": pairs[-1:], "each": pairs}[turns]
    return [Example(question, "", answer, record.extra) for question, answer in chosen]


def _load(
    path: str | os.PathLike[str], answers: Answers, take: Callable[[Record], list[_Taken]]
) -> list[_Taken]:
    table, options, counts = open_table(path), Options(answers=answers), Counts()
    taken: list[_Taken] = []
    faults: list[tuple[int, RowError]] = []
    for number, row in enumerate(table.rows, start=1):
        try:
            if damage := table.find_damage(number):
                raise RowError(damage, "" if "surrogate" in damage else None)
            reading = read_row(row, options)
            if not table.is_json and (bad := not_json(reading.record.extra)):
                raise RowError(f"has `{bad}`, which JSON cannot hold", f"--drop {bad}")
        except RowError as error:
            faults.append(
                (number, RowError(str(error), _DROP_BAD if error.flags is None else error.flags))
            )
            continue
        if reading.layout not in counts.layouts:
            counts.layouts[reading.layout] = number
        if reading.left_out:
            counts.left_out.update(reading.left_out)
        try:
            taken += take(reading.record)
        except RowError as error:
            faults.append((number, error))
    if faults:
        shown = "\n  also ".join(f"{table.name(number)} {fault}" for number, fault in faults[:5])
        rest = f"\n  and {len(faults) - 5} more rows" if len(faults) > 5 else ""
        raise DataError(
            f"{path}: {shown}{rest}\n"
            '  a row is {"instruction": text, "input": text or "", "output": text}, or '
            '{"messages": [...]}'
            + _suggest_command(Path(path), [fault for _, fault in faults], bool(taken))
        )
    if mixture := counts.find_mixture(table.name):
        raise DataError(f"{path}: {mixture}")
    lost = [table.note] if table.note else []
    lost += [f"`{column}` of {n:,} rows is left out" for column, n in counts.left_out.items()]
    if lost:
        warnings.warn(f"{path}: {'; '.join(lost)}", stacklevel=3)
    return taken


def _suggest_command(path: Path, faults: Sequence[RowError], some_are_good: bool) -> str:
    """Returns a line with the command that mends the rows, or "" if none does."""
    flags = dict.fromkeys(fault.flags for fault in faults)
    if not some_are_good:
        for drop in (_DROP_BAD, "--drop-unanswered"):  # it would leave no row
            flags.pop(drop, None)
    words = [word for word in flags if word is not None]
    return f"\n  the fix: {convert_command(path, *words)}" if words else ""


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
    return save_rows([example.to_dict() for example in examples], path)


def save_rows(rows: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> Path:
    """Writes rows as ``save_examples`` does."""
    path = Path(path)
    if path.suffix == ".jsonl":
        return write_text(path, "".join(dump_json(row) + "\n" for row in rows))
    if path.suffix == ".json":
        return write_text(path, dump_json(rows, indent=4) + "\n")
    raise DataError(f"{path}: name the file .json or .jsonl, so that its format is known")
