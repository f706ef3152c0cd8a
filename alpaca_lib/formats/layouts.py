"""The layout of a row, found from its columns: what is read, and as what.

Every row is read by itself; ``Counts`` adds up what the rows of a file were, so that a file of
two layouts is refused, and so that one line can say what was found.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from alpaca_lib.conversations import Conversation
from alpaca_lib.examples import Example
from alpaca_lib.formats.chats import find_chat, read_chat
from alpaca_lib.formats.columns import (
    CHAT_COLUMNS,
    Answers,
    Layout,
    find_columns,
    is_blank,
    plain,
    read_columns,
)
from alpaca_lib.formats.trees import NESTED, TREE_COLUMNS
from alpaca_lib.json_rows import RowError, describe, walk

Record = Example | Conversation
_JSON = (str, int, float, bool, list, dict, type(None))
_SPECIAL = frozenset((*CHAT_COLUMNS, "chosen", "rejected"))


@dataclass(frozen=True)
class Options:
    """What the user chose: columns that are given for fields, and columns to leave out.

    answers: "optional" for rows that need none. is_strict: see ``columns.read_columns``.
    """

    given: tuple[tuple[str, str], ...] = ()
    drop: frozenset[str] = frozenset()
    chat: str = ""  # the column of the conversation, if it is given
    answers: Answers = "required"
    is_strict: bool = True


class Reading(NamedTuple):
    """A row that was read: its record, whether it has an answer, and what is not kept."""

    record: Record
    has_answer: bool  # false: no text; the row may still have an empty one, see has_output
    has_output: bool
    layout: Layout
    left_out: tuple[str, ...] = ()

    @property
    def is_example(self) -> bool:
        """Whether the row is one question and answer without a system message."""
        return isinstance(self.record, Example)


def read_row(row: object, options: Options) -> Reading:
    """Returns what a row holds, in whichever layout. Raises RowError with what is wrong."""
    if not isinstance(row, dict):
        raise RowError(f"is {describe(row)}, not an object")
    names, given, drop = tuple(row), options.given, options.drop
    left_out = [name for name in drop if name in row and not is_blank(row[name])] if drop else []
    if (options.chat or not given) and (options.chat or _is_special(names)):
        kept = tuple(name for name in names if name not in drop) if drop else names
        if chat := find_chat(row, kept, options.chat):
            record = read_chat(row, kept, chat, options.answers)
            has_answer = bool(record.output if isinstance(record, Example) else record.is_answered)
            layout = _chat_layout(chat.name, chat.column, chat.keys)
            left_out += chat.left_out
            return Reading(record, has_answer, has_answer, layout, tuple(left_out))
        by_name = {plain(name): name for name in kept}
        if "chosen" in by_name and not is_blank(row[by_name["chosen"]]):
            given = (("output", by_name["chosen"]),)
            if "rejected" in by_name:
                left_out.append(by_name["rejected"])
                drop = drop | {by_name["rejected"]}
    if isinstance(row.get("prompt"), dict) and "message_tree_id" in row:
        raise RowError(NESTED)
    columns = find_columns(names, given, drop)
    if set(names) >= TREE_COLUMNS and "instruction" not in columns.fields:
        raise RowError("is a message of a tree, and the row before is none")
    record, has_output = read_columns(row, columns, options.answers, options.is_strict)
    if isinstance(record, Example):
        has_answer = has_output and bool(record.output.strip())
    else:
        has_answer = record.is_answered
    layout = columns.layout
    if given != options.given:
        layout = layout._replace(name=f"preference pairs, {layout.name}")
    left_out += [one for one in columns.shadowed if not is_blank(row[one])]
    return Reading(record, has_answer, has_output, layout, tuple(left_out))


@lru_cache(maxsize=256)
def _chat_layout(name: str, column: str, keys: tuple[str, str]) -> Layout:
    return Layout(name, (("messages", column), ("keys", "/".join(keys))))


@lru_cache(maxsize=4096)
def _is_special(names: tuple[str, ...]) -> bool:
    """Returns whether rows with these keys may hold a conversation or a preference pair."""
    return any(plain(name) in _SPECIAL for name in names)


@dataclass
class Counts:
    """What the rows of a file were; ``add`` counts one, ``merge`` those of a later part."""

    rows: int = 0
    turns: int = 0
    conversations: int = 0  # rows that are kept and are more than one question and answer
    unanswered: array[int] = field(default_factory=lambda: array("q"))
    left_out: Counter[str] = field(default_factory=Counter)
    layouts: dict[Layout, int] = field(default_factory=dict)  # with the number of the first row
    extra: dict[str, None] = field(default_factory=dict)  # the columns that are kept, in order
    columns: dict[str, None] = field(default_factory=dict)  # of all rows, if options name some
    kept: int = 0  # rows that are written
    replaced: int = 0  # rows in which lone surrogates were replaced

    def add(self, number: int, reading: Reading) -> None:
        """Counts row ``number``."""
        self.rows += 1
        if reading.layout not in self.layouts:
            self.layouts[reading.layout] = number
        record = reading.record
        if isinstance(record, Conversation):
            self.turns += len(record.turns)
        else:
            self.turns += 1 + reading.has_answer
        if not reading.has_answer:
            self.unanswered.append(number)
        if reading.left_out:
            self.left_out.update(set(reading.left_out))
        if record.extra.keys() - self.extra.keys():
            self.extra |= dict.fromkeys(record.extra)

    def merge(self, later: Counts, rows_before: int) -> None:
        """Adds the counts of a later part of the file, whose rows were counted from 1."""
        for layout, number in later.layouts.items():
            self.layouts.setdefault(layout, number + rows_before)
        self.unanswered.extend(number + rows_before for number in later.unanswered)
        self.left_out += later.left_out
        self.extra |= later.extra
        self.columns |= later.columns
        self.rows += later.rows
        self.turns += later.turns
        self.conversations += later.conversations
        self.kept += later.kept
        self.replaced += later.replaced

    def find_mixture(self, name: Callable[[int], str]) -> str:
        """Returns how the file has rows of two layouts, with the first row of each, or "".

        ``name(number)`` names a row.
        """
        first = next(iter(self.layouts), None)
        for other, there in self.layouts.items():
            if first is not None and not first.fits(other):
                return (
                    f"{name(self.layouts[first])} is in the layout {first.name}, and "
                    f"{name(there)} in {other.name}; put each layout into its own file"
                )
        return ""


def not_json(row: Mapping[str, Any]) -> str:
    """Returns the first column whose value JSON cannot hold, or ""."""
    return next(
        (str(c) for c, v in row.items() if not all(isinstance(o, _JSON) for o in walk(v))), ""
    )
