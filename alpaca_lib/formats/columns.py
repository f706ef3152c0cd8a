"""Rows whose fields are columns: which column is which field, and the record of a row.

The names of columns are those of public data sets: Alpaca, Dolly, prompt/completion,
query/response, question/answer, Chinese keys. A row with a system prompt or a history is a
conversation.
"""

from __future__ import annotations

import difflib
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from alpaca_lib.conversations import Conversation, Turn
from alpaca_lib.examples import FIELDS, Example, chat_content
from alpaca_lib.json_rows import RowError, describe, show, walk

Answers = Literal["required", "optional"]
# Names that other people's files give to the three fields; the first is Alpaca's.
COLUMN_NAMES = {
    "instruction": (
        *("instruction", "question", "query", "prompt", "problem"),
        *("指令", "问题", "提问"),
    ),
    "input": ("input", "context", "输入", "上下文"),
    "output": (
        *("output", "response", "answer", "completion", "reply", "target", "solution"),
        *("输出", "回答", "答案"),
    ),
}
SYSTEM_COLUMNS = ("system", "system_prompt", "system_message", "系统")
HISTORY_COLUMNS = ("history", "历史")
CHAT_COLUMNS = (
    *("messages", "conversation", "conversations", "dialogue", "dialog", "chat", "对话"),
    "data",  # UltraChat's
)
# Columns that change what a row means and have no place in a prompt of ours.
UNUSED_COLUMNS = frozenset(
    (
        *(*SYSTEM_COLUMNS, *HISTORY_COLUMNS, *CHAT_COLUMNS[:-1]),
        *("tools", "functions", "image", "images", "video", "videos", "audio", "audios"),
    )
)
# What a mapping of columns is called; the first whose columns are all there names the layout.
LAYOUTS = {
    "Alpaca": ("instruction", "output"),
    "Self-Instruct seed tasks": ("instruction", "instances"),
    "Dolly": ("instruction", "context", "response"),
}
_UNANSWERED = "--drop-unanswered"


class Layout(NamedTuple):
    """What a row's layout is called, and its fields as (field, column)."""

    name: str
    fields: tuple[tuple[str, str], ...]

    def fits(self, other: Layout) -> bool:
        """Returns whether rows of both can be in one file: no field is in two columns."""
        mine, theirs = dict(self.fields), dict(other.fields)
        both = set(mine) & set(theirs)
        return bool(both) and all(mine[name] == theirs[name] for name in both)


@dataclass(frozen=True)
class Columns:
    """The columns of a row: ``fields`` maps a field to its column, ``rest`` is everything else.

    ``rivals`` are (field, column) whose text would be lost if the field's own column is empty;
    ``watched`` are columns that must be empty; ``shadowed`` have a field's name, and another
    column was given for it.
    """

    fields: dict[str, str]
    rest: tuple[str, ...]
    layout: Layout
    rivals: tuple[tuple[str, str], ...] = ()
    watched: tuple[str, ...] = ()
    shadowed: tuple[str, ...] = ()

    @property
    def turns_it(self) -> bool:
        """Whether a column could make the row a conversation: a system prompt, a history."""
        return "system" in self.fields or "history" in self.fields


def plain(column: object) -> str:
    """Returns a column's name for comparisons."""
    return str(column).strip().lower()


@lru_cache(maxsize=4096)
def find_columns(
    names: tuple[str, ...],
    given: tuple[tuple[str, str], ...] = (),
    drop: frozenset[str] = frozenset(),
) -> Columns:
    """Returns the columns of rows with these keys: those that are ``given``, others by name.

    A column with the field's own name is that field; else one of COLUMN_NAMES, if only one is
    there. Raises RowError if several may be it, or one seems to be it under another spelling.
    """
    columns = [name for name in names if name not in drop]
    found = {field: column for field, column in given if column in columns}
    if not found and {"inputs", "targets"} <= set(columns):  # as in FLAN
        found = {"instruction": "inputs", "output": "targets"}
    for field in FIELDS:
        if field in found:
            continue
        free = [c for c in columns if c not in found.values()]
        if field in free:
            found[field] = field
            continue
        near = [c for c in free if plain(c) in COLUMN_NAMES[field]]
        if len(near) > 1:
            raise RowError(
                f"has {list_columns(near)}, which may each be the {field}",
                f"--map {shlex.quote(f'{field}={near[0]}')}",
            )
        if near:
            found[field] = near[0]
        elif field != "instruction" or not any(plain(c) == "input" for c in free):
            spelled = similar_columns(field, tuple(free))
            if spelled and "instances" not in columns:
                raise RowError(
                    f"has no `{field}` (it has {list_columns(columns)}; `{show(spelled[0])}` "
                    "looks like it)",
                    f"--map {shlex.quote(f'{field}={spelled[0]}')}",
                )
    if "instruction" not in found and "input" in found and "output" in found:
        found["instruction"] = found.pop("input")  # input/output, as in Firefly
    for field, known in (("system", SYSTEM_COLUMNS), ("history", HISTORY_COLUMNS)):
        if field not in found:
            near = [c for c in columns if plain(c) in known and c not in found.values()]
            if near:
                found[field] = near[0]
    shadowed = tuple(c for c in FIELDS if c in columns and c not in found.values())
    rest = tuple(c for c in columns if c not in found.values() and c not in shadowed)
    rivals = [
        (field, other)
        for field in ("input", "output")
        if field in found
        for other in rest
        if plain(other) in COLUMN_NAMES[field]
    ]
    watched = tuple(c for c in rest if plain(c) in UNUSED_COLUMNS)
    ordered = {field: found[field] for field in (*FIELDS, "system", "history") if field in found}
    return Columns(ordered, rest, _name_layout(columns, ordered), tuple(rivals), watched, shadowed)


def _name_layout(columns: Sequence[str], fields: Mapping[str, str]) -> Layout:
    has = set(map(plain, columns))
    texts = tuple((field, column) for field, column in fields.items() if field in FIELDS)
    known = [name for name, needed in LAYOUTS.items() if has >= set(needed)]
    name = known[0] if known else f"{'/'.join(column for _, column in texts)} rows"
    renamed = ", ".join(f"{column} -> {field}" for field, column in texts if field != column)
    return Layout(f"{name} ({renamed})" if renamed else name, texts)


@lru_cache(maxsize=256)
def similar_columns(name: str, columns: tuple[str, ...]) -> list[str]:
    """Returns the columns that seem to be a field under another name, the likeliest first."""
    known = [one for other in COLUMN_NAMES[name] for one in columns if plain(one) == other]
    taken = {other for names in COLUMN_NAMES.values() for other in names}
    unknown = [one for one in map(str, columns) if plain(one) not in taken | UNUSED_COLUMNS]
    return [*known, *difflib.get_close_matches(name, unknown, cutoff=0.75)]


def read_columns(
    row: Mapping[str, Any], columns: Columns, answers: Answers, is_strict: bool = True
) -> tuple[Example | Conversation, bool]:
    """Returns the record of a row, and whether it has a column with its answer.

    is_strict: refuses null and numbers; else null is a missing text and a number its digits.
    Raises RowError with what is wrong with the row; the caller adds the file and the line.
    """
    fields, rest = columns.fields, columns.rest
    if "instances" in row and "output" not in fields:
        row, fields, rest = _first_instance(row, fields, rest, is_strict)
    if "instruction" not in fields:
        raise RowError(f"has no `instruction` (it has {list_columns(list(row))})",
                       "--map instruction=COLUMN")  # fmt: skip
    if "output" not in fields and answers == "required":
        raise RowError(f"has no `output` (it has {list_columns(list(row))})", _UNANSWERED)
    texts = dict.fromkeys(FIELDS, "")
    has_answer = "output" in fields
    for field in FIELDS:
        if field in fields:
            value = row[fields[field]]
            if isinstance(value, str):
                texts[field] = value
                continue
            text = _cell(value, fields[field], field, is_strict)
            texts[field] = text or ""
            if text is None and field == "output":
                has_answer = False
                if answers == "required":
                    raise RowError(f"has an empty `{show(fields[field])}`", _UNANSWERED)
    if not texts["instruction"].strip():
        raise RowError(f"has an empty `{show(fields['instruction'])}`")
    for field, other in columns.rivals:
        if not texts[field].strip() and not is_blank(row[other]):
            flags = f"--map {shlex.quote(f'{field}={other}')}"
            raise RowError(f"has an empty `{field}`, but text in `{show(other)}`", flags)
    if columns.watched and (unused := [one for one in columns.watched if not is_blank(row[one])]):
        named, flags = "`, `".join(map(show, unused)), f"--drop {shlex.quote(','.join(unused))}"
        raise RowError(f"has `{named}`, which would be silently unused", flags)
    extra = {str(key): row[key] for key in rest}
    if columns.turns_it:
        return _converse(row, fields, texts, extra, answers), has_answer
    return Example(texts["instruction"], texts["input"], texts["output"], extra), has_answer


def _first_instance(
    row: Mapping[str, Any], fields: dict[str, str], rest: Sequence[str], is_strict: bool
) -> tuple[dict[str, Any], dict[str, str], tuple[str, ...]]:
    """Returns a Self-Instruct seed task with its first instance's input and output in the row."""
    instances = row["instances"]
    if not isinstance(instances, list) or not instances:
        raise RowError("has `instances` that is not a list with an instance in it")
    first = instances[0]
    if not isinstance(first, dict):
        raise RowError(f"has a first instance that is {describe(first)}, no object")
    inside = {name: name for name in ("input", "output") if name in first}
    merged = {**row, **first}
    return merged, {**fields, **inside}, tuple(one for one in rest if one != "instances")


def _cell(value: object, column: str, field: str, is_strict: bool) -> str | None:
    """Returns the text of a cell; None if it is missing. A number becomes its digits."""
    is_number = isinstance(value, bool | int | float)
    if not is_strict:
        if value is None or value != value:  # NaN is how tables write "missing"
            return None
        if is_number:
            return json.dumps(value)
    flags = "" if is_number or (value is None and field == "input") else None
    if value is None and field == "output":
        flags = _UNANSWERED
    text = f'has `{show(column)}` that is {describe(value)}, not text (write "" for none)'
    raise RowError(text, flags)


def _converse(
    row: Mapping[str, Any],
    fields: Mapping[str, str],
    texts: Mapping[str, str],
    extra: dict[str, Any],
    answers: Answers,
) -> Example | Conversation:
    """Returns the conversation of a row with a system prompt or a history."""
    system = row[fields["system"]] if "system" in fields else ""
    if is_blank(system):
        system = ""
    elif not isinstance(system, str):
        column = show(fields["system"])
        raise RowError(f"has `{column}` that is {describe(system)}, not text", f"--drop {column}")
    turns: list[Turn] = []
    history = row[fields["history"]] if "history" in fields else None
    if not is_blank(history):
        column = show(fields["history"])
        drop = f"--drop {shlex.quote(column)}"
        if not isinstance(history, list):
            raise RowError(f"has `{column}` that is {describe(history)}, not a list", drop)
        for number, pair in enumerate(history, start=1):
            is_pair = isinstance(pair, list) and len(pair) == 2
            if not is_pair or not all(isinstance(text, str) and text.strip() for text in pair):
                raise RowError(
                    f"has item {number} in `{column}` that is no question and answer", drop
                )
            turns += [Turn("user", pair[0]), Turn("assistant", pair[1])]
    if not turns and not system:
        return Example(texts["instruction"], texts["input"], texts["output"], extra)
    turns.append(Turn("user", chat_content(Example(texts["instruction"], texts["input"]))))
    if texts["output"].strip():
        turns.append(Turn("assistant", texts["output"]))
    elif answers == "required":
        raise RowError("has a last message without an answer", _UNANSWERED)
    return Conversation(tuple(turns), system, extra)


def list_columns(columns: Iterable[object]) -> str:
    """Returns the names of columns, for an error."""
    return ", ".join(f"`{show(str(column))}`" for column in [*columns][:12]) or "nothing"


def is_blank(value: object) -> bool:
    """Returns whether a cell holds nothing: null, blanks, or lists and objects of such."""
    if isinstance(value, str):
        return not value or value.isspace()
    if isinstance(value, dict):
        for one in value.values():
            if isinstance(one, str) and one and not one.isspace():
                return False
        value = list(value.values())
    return all(
        one is None or isinstance(one, list | dict) or (isinstance(one, str) and not one.strip())
        for one in walk(value)
    )
