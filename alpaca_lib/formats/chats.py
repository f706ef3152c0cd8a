"""Rows that hold a conversation in one column: messages, pairs, texts, or preference pairs.

A message's role and content are under role/content, as in chat APIs, from/value, as in
ShareGPT's files, or similar keys. Other files hold [{"human": ..., "assistant": ...}] or texts
in turn. Of a preference pair only the chosen answer is read.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from alpaca_lib.conversations import (
    CALLS,
    REASONING,
    Conversation,
    conversation_from_messages,
)
from alpaca_lib.examples import Example
from alpaca_lib.files import parse_json
from alpaca_lib.formats.columns import (
    CHAT_COLUMNS,
    COLUMN_NAMES,
    SYSTEM_COLUMNS,
    UNUSED_COLUMNS,
    Answers,
    is_blank,
    plain,
)
from alpaca_lib.json_rows import RowError, describe, show

_ROLE_KEYS = ("role", "from", "speaker", "角色")
_CONTENT_KEYS = ("content", "value", "text", "内容")
_QUESTIONS = (*COLUMN_NAMES["instruction"], "input", "human", "user", "用户")
_ANSWERS = (*COLUMN_NAMES["output"], "assistant", "gpt", "bot", "助手")
_NAMES = {("role", "content"): "messages", ("from", "value"): "ShareGPT"}
_KNOWN_KEYS = frozenset((*_ROLE_KEYS, *_CONTENT_KEYS, *REASONING, *CALLS, "weight", "train"))
_TURN = re.compile(r"\n\n(Human|Assistant):[ \n]?")
_UNKNOWN = "is not read: name the column of messages, or write them as role and content"


@dataclass
class Chat:
    """A conversation found in a row.

    name: its layout; column: where it is; used: the columns that it is made of; left_out: the
    columns and keys of messages that are not kept; repeats: columns whose text it holds.
    """

    name: str
    column: str
    messages: list[dict[str, Any]]
    keys: tuple[str, str] = ("role", "content")
    used: tuple[str, ...] = ()
    left_out: list[str] = field(default_factory=list)
    repeats: list[str] = field(default_factory=list)


def find_chat(row: Mapping[str, Any], names: Sequence[str], given: str = "") -> Chat | None:
    """Returns the conversation in one of a row's columns ``names``; None if there is none.

    given: the column that holds it. Raises RowError if it cannot be read.
    """
    if given:
        if items := _items(row, given if given in names else None):
            return _read_items(items, given)
        raise RowError(f"has no conversation in `{show(given)}`")
    known = _sort_names(tuple(names))
    column, items = None, []
    for column in known.chats:
        if items := _items(row, column):
            break
    else:
        column = None
    if known.chosen is not None and not is_blank(row[known.chosen]):
        by_name = {plain(name): name for name in names}
        return _read_preference(row, by_name, known.chosen, column)
    return None if column is None else _read_items(items, column)


class _Names(NamedTuple):
    """The columns of rows with the same keys: those with a conversation, known ones, others.

    ``known`` are (column, its field or "", whether it must be empty).
    """

    chats: tuple[str, ...]
    chosen: str | None
    known: tuple[tuple[str, str, bool], ...]
    others: tuple[str, ...]


@lru_cache(maxsize=4096)
def _sort_names(names: tuple[str, ...]) -> _Names:
    by_name = {plain(name): name for name in names}
    known = {
        name: (name, _FIELD_OF.get(low, ""), low in UNUSED_COLUMNS)
        for low, name in by_name.items()
        if low in _FIELD_OF or low in UNUSED_COLUMNS
    }
    return _Names(
        chats=tuple(by_name[one] for one in CHAT_COLUMNS if one in by_name),
        chosen=by_name.get("chosen"),
        known=tuple(known.values()),
        others=tuple(name for name in names if name not in known),
    )


def _items(row: Mapping[str, Any], column: str | None) -> list[Any]:
    """Returns the list in a column, which tables write as JSON; [] if it holds none."""
    value = row[column] if column is not None else None
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            value = parse_json(value)
        except ValueError:
            return []
    if not isinstance(value, list):
        return []
    for one in value:
        if not is_blank(one):
            return value
    return []


def _read_items(items: list[Any], column: str) -> Chat:
    first = items[0]
    if isinstance(first, dict):
        for keys, name in _NAMES.items():
            if keys[0] in first and keys[1] in first:
                return Chat(name, column, items, keys, (column,))
        role = next((key for key in _ROLE_KEYS if key in first), None)
        content = next((key for key in _CONTENT_KEYS if key in first), None)
        if role is not None:
            keys = role, content or _CONTENT_KEYS[_ROLE_KEYS.index(role) % 2]
            name = _NAMES.get(keys, "/".join(keys))
            return Chat(name, column, items, keys, (column,))
        pair = [
            next((k for k in first if plain(k) in known), None) for known in (_QUESTIONS, _ANSWERS)
        ]
        if None in pair:
            has = ", ".join(f"`{show(str(key))}`" for key in first) or "nothing"
            raise RowError(
                f"has `{show(column)}` whose messages have neither role nor answer ({has})"
            )
        question, answer = map(str, pair)
        chat = Chat(f"{question}/{answer} turns", column, [], used=(column,))
        for number, item in enumerate(items, start=1):
            if not isinstance(item, dict) or question not in item or answer not in item:
                raise RowError(
                    f"has turn {number} in `{show(column)}` without {question} and {answer}"
                )
            chat.messages += _alternate([item[question], item[answer]])
            chat.left_out += [k for k in item if k not in pair and not is_blank(item[k])]
        return chat
    if isinstance(first, list):
        texts = []
        for number, pair in enumerate(items, start=1):
            if not isinstance(pair, list) or len(pair) != 2:
                raise RowError(
                    f"has item {number} in `{show(column)}` that is no question and answer"
                )
            texts += pair
        return Chat("[question, answer] turns", column, _alternate(texts), used=(column,))
    if isinstance(first, str):
        return Chat("lists of texts", column, _alternate(items), used=(column,))
    raise RowError(f"has `{show(column)}` whose first message is {describe(first)}, not an object")


def _alternate(texts: Sequence[object]) -> list[dict[str, Any]]:
    """Returns messages of the user and the assistant in turn; an answer that is null is none."""
    roles = ("user", "assistant")
    made = [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]
    if made and made[-1]["role"] == "assistant" and made[-1]["content"] is None:
        made.pop()
    return made


def _read_preference(
    row: Mapping[str, Any], by_name: Mapping[str, str], chosen: str, column: str | None
) -> Chat | None:
    """Returns the conversation that ends with the chosen answer; None if it has columns."""
    value = row[chosen]
    used = [chosen]
    left_out = [by_name["rejected"]] if "rejected" in by_name else []
    prompt = next((by_name[one] for one in COLUMN_NAMES["instruction"] if one in by_name), None)
    if isinstance(value, str) and (items := _items(row, chosen)):
        value = items
    if isinstance(value, str):
        if not _TURN.match(value):
            if column is None and prompt is not None:
                return None  # columns: the chosen answer is the output
            value = [{"role": "assistant", "content": value}]
        else:
            parts = _TURN.split(value)[1:]
            roles = {"Human": "user", "Assistant": "assistant"}
            value = [
                {"role": roles[role], "content": text}
                for role, text in zip(parts[::2], parts[1::2], strict=True)
            ]
            return Chat("preference pairs (Human/Assistant)", chosen, value,
                        used=tuple(used), left_out=left_out)  # fmt: skip
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise RowError(f"has `{show(chosen)}` that is {describe(value)}, no answer")
    chat = _read_items(value, chosen)
    is_answer = len(chat.messages) == 1
    if is_answer:
        before: list[Any] = []
        if column is not None:
            other = _read_items(_items(row, column), column)
            before, used = other.messages, [chosen, column]
            if other.keys != chat.keys:
                raise RowError(f"has `{show(chosen)}` and `{show(column)}` in two layouts")
        elif prompt is not None:
            before = _items(row, prompt) or [{chat.keys[0]: "user", chat.keys[1]: row[prompt]}]
            used = [chosen, prompt]
        chat.messages = [*before, *chat.messages]
    elif prompt is not None and (items := _items(row, prompt)):
        if chat.messages[: len(items)] != items:
            chat.messages = [*items, *chat.messages]
        used = [chosen, prompt]
    chat.name, chat.used, chat.left_out = "preference pairs", tuple(used), left_out
    return chat


def read_chat(
    row: Mapping[str, Any], names: Sequence[str], chat: Chat, answers: Answers
) -> Example | Conversation:
    """Returns the record of a row with a conversation; the other columns are kept in ``extra``.

    One question and answer without a system message is an Example. Columns that repeat a text
    of the conversation are not kept. Raises RowError for what is refused.
    """
    extra = _sort_columns(row, names, chat)
    found = conversation_from_messages(chat.messages, answers, None, *chat.keys)
    for message in chat.messages:
        if len(message) > 2:
            chat.left_out += [
                str(k) for k in message if k not in _KNOWN_KEYS and not is_blank(message[k])
            ]
    system = found.system
    for name in [one for one in extra if plain(one) in SYSTEM_COLUMNS]:
        given = extra.pop(name)
        if not isinstance(given, str) or (system and system.strip() != given.strip()):
            raise RowError(
                f"has `{show(name)}`, which is not the system message of `{show(chat.column)}`",
                f"--drop {shlex.quote(name)}",
            )
        system = given
    is_plain = not system and len(found.turns) <= 2 and not found.turns[-1].reasoning
    if is_plain:
        answer = found.turns[1].content if found.is_answered else ""
        return Example(found.turns[0].content, "", answer, extra)
    return Conversation(found.turns, system, extra)


def _sort_columns(row: Mapping[str, Any], names: Sequence[str], chat: Chat) -> dict[str, Any]:
    """Returns the columns that are kept; adds those that repeat the conversation to ``repeats``.

    Raises RowError for columns that hold another question, or what no prompt of ours shows.
    """
    sorted_names = _sort_names(tuple(names))
    gone = (*chat.used, *chat.left_out)
    extra = {str(name): row[name] for name in sorted_names.others if name not in gone}
    known = [one for one in sorted_names.known if one[0] not in gone and not is_blank(row[one[0]])]
    if not known:
        return extra
    contents = (message.get(chat.keys[1]) for message in chat.messages if isinstance(message, dict))
    texts = {text.strip() for text in contents if isinstance(text, str)}
    differing: dict[str, list[str]] = {}
    for name, field_name, is_unused in known:
        value = row[name]
        repeats = isinstance(value, str) and field_name and value.strip() in texts
        if repeats or value == row[chat.column]:
            chat.repeats.append(name)
        elif is_unused and plain(name) not in SYSTEM_COLUMNS:
            flags = f"--drop {shlex.quote(name)}"
            raise RowError(f"has `{show(name)}`, which would be silently unused", flags)
        else:
            extra[str(name)] = value
            if field_name:
                differing.setdefault(field_name, []).append(name)
    if {"instruction", "output"} <= set(differing):
        flags = f"--drop {shlex.quote(chat.column)}"
        raise RowError(f"has `{show(chat.column)}`, which would be silently unused", flags)
    has_question = any(_FIELD_OF.get(plain(name)) == "instruction" for name in chat.repeats)
    if differing and (has_question or set(differing) != {"output"}):
        columns = [name for group in differing.values() for name in group]
        raise RowError(
            f"has `{'`, `'.join(map(show, columns))}`, which `{show(chat.column)}` does not hold",
            f"--drop {shlex.quote(','.join(columns))}",
        )
    return extra


_FIELD_OF = {name: field for field, names in COLUMN_NAMES.items() for name in names}
