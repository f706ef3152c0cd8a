"""Reads, validates and writes instruction-following examples.

Two layouts are read: Alpaca's rows (``instruction``, ``input``, ``output``), and Self-Instruct's
seed tasks, whose ``instances`` list holds input and output. Only the first instance is used, as
in Stanford's script. Other layouts and other file types are refused, with the ``alpaca convert``
command that turns them into rows (see formats).

>>> examples = load_examples("data/alpaca_520.json")
>>> save_examples(examples[:10], "runs/ten.jsonl")
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from alpaca_lib.conversations import Conversation, Turn, conversation_from_row
from alpaca_lib.errors import DataError
from alpaca_lib.files import dump_json, write_text
from alpaca_lib.json_rows import (
    RowError,
    convert_command,
    describe,
    read_rows,
    read_text,
    show,
    walk,
)

__all__ = [
    "Conversation",
    "Example",
    "RowError",
    "Turn",
    "load_examples",
    "load_records",
    "save_examples",
]
FIELDS = ("instruction", "input", "output")
# Names that other people's files give to the three fields; the first is Alpaca's.
COLUMN_NAMES = {
    "instruction": ("instruction", "question", "query", "prompt", "指令", "问题", "提问"),
    "input": ("input", "context", "输入", "上下文"),
    "output": ("output", "response", "answer", "completion", "reply", "输出", "回答", "答案"),
}
# Columns that change what a row means and have no place in a prompt of Alpaca's.
UNUSED_COLUMNS = (
    "system",
    "system_prompt",
    "system_message",
    "history",
    "messages",
    "conversation",
    "conversations",
    "dialogue",
    "tools",
    "functions",
    "image",
    "images",
    "video",
    "videos",
    "audio",
    "audios",
)
CHAT_COLUMNS = ("messages", "conversation", "conversations", "dialogue")
A_CHAT = "a conversation; write its question into `instruction` and its answer into `output`"
CJK = re.compile(r"[\u3041-\u30ff\u3400-\u9fff\uac00-\ud7af]")  # ideographs, kana, Hangul
_FLAGS = {"instruction": "--map instruction=COLUMN", "output": "--drop-unanswered"}
Answers = Literal["required", "optional"]


@dataclass(frozen=True)
class Example:
    """One instruction-following example.

    ``input`` is "" if the instruction needs none; ``extra`` keeps the row's other keys and does
    not count in comparisons.
    """

    instruction: str
    input: str = ""
    output: str = ""
    extra: dict[str, Any] = field(default_factory=dict, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Returns the row that is written to a file: the three fields, then ``extra``."""
        row = {name: getattr(self, name) for name in FIELDS}
        return {**row, **{k: v for k, v in self.extra.items() if k not in row}}


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
    """Returns the Example of one decoded JSON row.

    answers: "optional" for rows whose instruction alone is used; their missing output becomes "".
    Raises RowError with what is wrong with the row; the caller adds the file and the line.
    """
    if not isinstance(row, dict):
        raise RowError(f"is {describe(row)}, not an object")
    extra = {str(k): v for k, v in row.items() if k not in FIELDS}
    columns = list(row)
    if "instances" in row and "output" not in row:
        instances = row["instances"]
        if not isinstance(instances, list) or not instances:
            raise RowError("has `instances` that is not a list with an instance in it")
        if not isinstance(instances[0], dict):
            raise RowError(f"has a first instance that is {describe(instances[0])}, no object")
        del extra["instances"]
        columns += [f"instances: {name}" for name in instances[0]]
        row = {"instruction": row.get("instruction"), **instances[0]}
        if row["instruction"] is None:
            del row["instruction"]
    for name in FIELDS:
        if name in row:
            continue
        other = next((o for o in similar_columns(name, tuple(row)) if not is_blank(row[o])), None)
        has = ", ".join(f"`{show(str(column))}`" for column in columns) or "nothing"
        if other is not None:
            is_known = _plain(other) in COLUMN_NAMES[name]
            flags = "" if is_known else f"--map {shlex.quote(f'{name}={other}')}"
            raise RowError(f"has no `{name}` (it has {has}; `{other}` looks like it)", flags)
        if name == "instruction" or (name == "output" and answers == "required"):
            if chat := find_chat(row):
                raise RowError(f"has no `{name}`, but `{chat}`, {A_CHAT}")
            raise RowError(f"has no `{name}` (it has {has})", _FLAGS[name])
    values = {name: row.get(name, "") for name in FIELDS}
    for name, value in values.items():
        if not isinstance(value, str):
            is_readable = isinstance(value, int | float) or (value is None and name == "input")
            raise RowError(
                f'has `{name}` that is {describe(value)}, not text (write "" for none)',
                "" if is_readable else None,
            )
    if not values["instruction"].strip():
        raise RowError("has an empty `instruction`")
    for name in ("input", "output"):
        if name in row and not values[name].strip():
            known = [one for one in row if one != name and _plain(one) in COLUMN_NAMES[name]]
            if other := next((one for one in known if not is_blank(row[one])), None):
                flags = f"--map {shlex.quote(f'{name}={other}')}"
                raise RowError(f"has an empty `{name}`, but text in `{show(other)}`", flags)
    if unused := find_unused({**extra, **row}):
        named, flags = "`, `".join(unused), f"--drop {shlex.quote(','.join(unused))}"
        raise RowError(f"has `{named}`, which would be silently unused", flags)
    return Example(**values, extra=extra)


@lru_cache(maxsize=256)
def similar_columns(name: str, columns: tuple[str, ...]) -> list[str]:
    """Returns the columns that seem to be a field under another name, the likeliest first."""
    known = [one for other in COLUMN_NAMES[name] for one in columns if _plain(one) == other]
    taken = {other for names in COLUMN_NAMES.values() for other in names}
    unknown = [one for one in map(str, columns) if _plain(one) not in taken]
    return [*known, *difflib.get_close_matches(name, unknown, cutoff=0.75)]


def _plain(column: str) -> str:
    return str(column).strip().lower()


def find_unused(row: Mapping[str, Any]) -> list[str]:
    """Returns the columns that hold something which no prompt of ours would show."""
    return [name for name in row if name.lower() in UNUSED_COLUMNS and not is_blank(row[name])]


def find_chat(columns: Iterable[object]) -> str:
    """Returns the column that holds a whole conversation, or ""."""
    return next((show(str(one)) for one in columns if _plain(str(one)) in CHAT_COLUMNS), "")


def is_blank(value: object) -> bool:
    """Returns whether a cell holds nothing: null, blanks, or lists and objects of such."""
    if isinstance(value, dict):
        value = list(value.values())
    return all(
        one is None or isinstance(one, list | dict) or (isinstance(one, str) and not one.strip())
        for one in walk(value)
    )


def load_examples(path: str | os.PathLike[str], answers: Answers = "required") -> list[Example]:
    """Returns the examples of a .json file (one array) or a .jsonl file (one object per line).

    answers: "optional" if only instruction and input are used, see ``example_from_row``. Raises
    DataError, naming the file, the row, its line, and the fix.
    """
    rows = read_rows(path)
    examples: list[Example] = []
    faults: list[tuple[int, RowError]] = []
    for number, row in enumerate(rows.values, start=1):
        try:
            if damage := rows.find_damage(number):
                raise RowError(damage, "" if "surrogate" in damage else None)
            examples.append(example_from_row(row, answers))
        except RowError as error:
            faults.append((number, error))
    if faults:
        shown = "\n  also ".join(f"{rows.name(number)} {fault}" for number, fault in faults[:5])
        rest = f"\n  and {len(faults) - 5} more rows" if len(faults) > 5 else ""
        raise DataError(
            f"{path}: {shown}{rest}\n"
            '  a row is {"instruction": text, "input": text or "", "output": text}'
            + _suggest_command(Path(path), [fault for _, fault in faults], bool(examples))
        )
    if not examples:
        raise DataError(f"{path}: contains no examples; put at least one row into it")
    return examples


def load_records(
    path: str | os.PathLike[str], answers: Answers = "required"
) -> list[Example | Conversation]:
    """Returns the examples and conversations of a file; a row with ``messages`` is the latter.

    Raises DataError, as ``load_examples`` does.
    """
    rows = read_rows(path)
    if not any(isinstance(row, dict) and "messages" in row for row in rows.values):
        return [*load_examples(path, answers)]
    found: list[Example | Conversation] = []
    for number, row in enumerate(rows.values, start=1):
        try:
            if damage := rows.find_damage(number):
                raise RowError(damage)
            is_talk = isinstance(row, dict) and "messages" in row
            read = conversation_from_row if is_talk else example_from_row
            found.append(read(row, answers))
        except RowError as error:
            raise DataError(f"{path}: {rows.name(number)} {error}") from None
    return found


def _suggest_command(path: Path, faults: Sequence[RowError], some_are_good: bool) -> str:
    """Returns a line with the command that mends the rows, or "" if none does."""
    flags = dict.fromkeys(fault.flags for fault in faults)
    if not some_are_good:
        flags.pop(_FLAGS["output"], None)  # it would leave no row
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
