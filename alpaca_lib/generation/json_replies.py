"""Parses a reply in JSON into tasks: {"tasks": [{"instruction", "input", "output"}, ...]}.

Also under another key, as a bare list, as one object per line or after another, in a code fence,
with words around it. If it breaks off, the tasks that are complete are kept.
"""

from __future__ import annotations

import json
import re
from typing import Any

from alpaca_lib.generation.lenient_json import find_json
from alpaca_lib.generation.reasoning import Split, split_reasoning
from alpaca_lib.generation.reply import PREFACE, REASONING, REMARK, Reply, open_reply
from alpaca_lib.generation.task_rules import make_task, rule_broken
from alpaca_lib.records import Example

NOT_A_ROW = "not an instruction, input and output in text"
TWICE = "one of its keys stands there twice"
_FENCE = re.compile(r"^[ \t]*```\w*[ \t]*$", re.MULTILINE)
_MATERIAL = ("context", "material", "passage", "text", "content", "inputs", "输入", "材料")
_DEPTH = 5  # of objects around the list of tasks


def parse_json_reply(text: str, finish_reason: str | None) -> Reply:
    """Returns the tasks in a reply that is JSON: {"tasks": [...]} or a bare list, fenced or not.

    If a reply is cut off, the complete tasks before the cut are kept.
    """
    text = text.replace("\r\n", "\n").strip().lstrip("\ufeff")
    split = Split(text) if _is_json(text) else split_reasoning(text)
    reply, cut = open_reply(split, finish_reason)
    text = split.answer
    if not _FENCE.sub("", text).strip():
        if not split.is_open:
            reply.reject(cut or "empty reply", "")
        return reply
    broken = cut or "not JSON"
    found = list(find_json(text))
    rows = [(one, _find_rows(one.value, one.is_broken)) for one in found]
    used = [(one, its) for one, its in rows if its is not None]
    at, is_broken = 0, not used
    unused = [one.start for one, its in rows if its is None and text[one.start] == "{"]
    for one, its in used:
        _add_between(text, at, one.start, broken if is_broken else "", reply)
        for row, place in its:
            _add_row(row, text[slice(*one.places[place])], id(row) in one.repeated, reply)
        at, is_broken = one.end, one.is_broken
    is_broken = is_broken or any(start >= at for start in unused)
    if is_broken:
        reply.reject(broken, text[at:])
    else:
        _add_between(text, at, len(text), "", reply)
    return reply


def reply_schema() -> dict[str, Any]:
    """Returns the response_format for JSON tasks (structured output)."""
    from pydantic import BaseModel, ConfigDict, Field

    class Task(BaseModel):
        model_config = ConfigDict(extra="forbid")
        instruction: str = Field(description="what to do, one or two sentences")
        input: str = Field(description="the material it is about, or an empty text")
        output: str = Field(description="the correct and complete answer")

    class Tasks(BaseModel):
        model_config = ConfigDict(extra="forbid")
        tasks: list[Task]

    schema = {"name": "tasks", "strict": True, "schema": Tasks.model_json_schema()}
    return {"type": "json_schema", "json_schema": schema}


def _is_json(text: str) -> bool:
    """Returns whether a text is JSON as a whole, so that a tag in it is a string's."""
    try:
        json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return False
    return True


def _find_rows(value: Any, is_broken: bool) -> list[tuple[Any, Any]] | None:
    """Returns the (rows, keys of their places) in a JSON value, or None if it holds no tasks."""
    if is_broken:
        return [(one, id(one)) for one in value] if any(map(_is_row, value)) else None
    return _search_rows(value, _DEPTH)


def _is_row(value: Any) -> bool:
    return isinstance(value, dict) and "instruction" in value


def _search_rows(value: Any, depth: int) -> list[tuple[Any, Any]] | None:
    if _is_row(value):
        return [(value, id(value))]
    tasks = value.get("tasks") if isinstance(value, dict) else value
    if isinstance(tasks, list) and (tasks is not value or not tasks or any(map(_is_row, tasks))):
        return [(one, (id(tasks), place)) for place, one in enumerate(tasks)]
    inside = value.values() if isinstance(value, dict) else value
    if not depth or not isinstance(value, dict | list):
        return None
    found = [_search_rows(one, depth - 1) for one in inside if isinstance(one, dict | list)]
    lists = [one for one in found if one is not None]
    return [row for one in lists for row in one] if lists else None


def _add_row(row: Any, text: str, is_repeated: bool, reply: Reply) -> None:
    task, reason = _parse_row(row, reply)
    if is_repeated:
        reason = TWICE
    reply.add(task, reason or (rule_broken(task) if task else NOT_A_ROW), text)


def _parse_row(row: Any, reply: Reply) -> tuple[Example | None, str | None]:
    """Returns the task of a row, or why there is none; reasoning in its output is rejected."""
    if not isinstance(row, dict) or not isinstance(row.get("output"), str):
        return None, NOT_A_ROW
    if "input" not in row and any(row.get(name) for name in _MATERIAL):
        return None, f"{NOT_A_ROW} (its material is under another name than input)"
    given = "" if row.get("input") is None else row["input"]
    texts = [row.get("instruction"), given, row["output"]]
    if not all(isinstance(text, str) for text in texts) or not texts[0].strip():
        return None, NOT_A_ROW
    if texts[2].lstrip()[:1] in ("<", "[", "◁"):
        split = split_reasoning(texts[2])
        if split.is_open:
            return None, "its output is reasoning that never ends"
        for one in split.reasoning:
            reply.reject(REASONING, one)
        texts[2] = split.answer
    return make_task(*texts), None


def _add_between(text: str, start: int, end: int, broken: str, reply: Reply) -> None:
    """Rejects what stands between two values: broken JSON, or words."""
    part = _FENCE.sub("", text[start:end]).strip(" \t\n,;]}")
    if re.search(r"\w", part):
        reply.reject(broken or (REMARK if start else PREFACE), part)
