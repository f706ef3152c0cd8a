"""Parses a teacher's reply into tasks, with the reason for each one that is dropped.

Text: the prompt ends with the heading of the next task ("4. Instruction:"), and the
reply continues from there: blocks between lines of ###, each with the headings
"N. Instruction:", "N. Input:", "N. Output:" (Stanford Alpaca's format).
JSON: {"tasks": [{"instruction", "input", "output"}, ...]}.
"""

from __future__ import annotations

import json
import re
import string
from dataclasses import dataclass, field
from typing import Any

from alpaca_lib.records import Example, words

# Words for what a text model cannot see, hear or create (Stanford's list).
_KEYWORD = re.compile(
    r"\b(images?|graphs?|pictures?|files?|maps?|draw|plot|go to"
    r"|video|audio|music|flowchart|diagram)\b",
    re.IGNORECASE,
)
_SEPARATOR = re.compile(r"^[ \t]*###[ \t]*$", re.MULTILINE)
# Models also write headings in bold, as Markdown headings or quotations, and in Chinese.
_HEADING = re.compile(
    r"^[ \t]*(?:#{1,4}[ \t]+|>[ \t]*)?"
    r"(?P<a>\*\*|__)?(?P<number>\d+)[.)．、](?P=a)?[ \t]*(?P<b>\*\*|__)?"
    r"(?P<name>Instruction|Input|Output|指令|输入|输出)(?:(?P=a)|(?P=b))?[ \t]*[:：]"
    r"(?:(?P=a)|(?P=b))?",
    re.MULTILINE | re.IGNORECASE,
)
_NAMES = {"指令": "instruction", "输入": "input", "输出": "output"}
_FENCE = re.compile(r"\A\s*```\w*[ \t]*\n(.*?)(?:\n?```)?\s*\Z", re.DOTALL)
_QUOTED = re.compile(r"^>[ \t]?", re.MULTILINE)
_REFUSAL = re.compile(
    r"^((i['’]?m|i am) sorry,? (but )?i (can|am|['’]m)|sorry, (but )?i can|as an ai\b"
    r"|i can(no|['’])t (help|assist|do|provide))",
    re.IGNORECASE,
)
_NO_INPUT = re.compile(
    r"^[<\[(（]?\s*(no\s?input|none|n/a|无|无输入|没有)\s*[>\])）]?[.。]?$", re.IGNORECASE
)


@dataclass(frozen=True)
class Rejected:
    """A part of a reply that is dropped, and why."""

    reason: str
    text: str


@dataclass(frozen=True)
class Reply:
    """The tasks of one reply in order, and its dropped parts with reasons."""

    tasks: list[Example] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)

    def add(self, task: Example | None, reason: str | None, text: str) -> None:
        """Adds a task, or the text that it is from and the reason why it is dropped."""
        if task is not None and reason is None:
            self.tasks.append(task)
        else:
            self.rejected.append(Rejected(str(reason), text))


def parse_reply(
    text: str, finish_reason: str | None, first_number: int, compat: bool = False
) -> Reply:
    """Returns the tasks in a reply whose prompt ended in "{first_number}. Instruction:".

    finish_reason "length" means that the last task is cut off: it is dropped.
    compat=True repeats Stanford's post_process_gpt3_response, its faults included: a reply
    that lacks one ### loses every later task.
    """
    if compat:
        return _parse_stanford(text, finish_reason, first_number)
    text = _FENCE.sub(r"\1", text.replace("\r\n", "\n"))
    if text.strip() and all(line.startswith(">") for line in text.strip().split("\n") if line):
        text = _QUOTED.sub("", text.strip())
    if not text.strip():
        return Reply([], [Rejected(_ended(finish_reason) or "empty reply", "")])
    if not _HEADING.match(text.lstrip("# \n")):
        text = f"{first_number}. Instruction:{text}"
    pieces = _SEPARATOR.split(text)
    # If the reply was cut right after a ###, its last task is complete.
    cut_off = _ended(finish_reason) if pieces[-1].strip() else None
    blocks = [block for block in pieces if block.strip()]
    reply = Reply()
    for place, block in enumerate(blocks, start=1):
        task = _parse_block(block)
        if place == len(blocks) and cut_off:
            reason: str | None = cut_off
        elif task is None:
            reason = "not one Instruction, Input and Output with one number"
        else:
            reason = rule_broken(task)
        reply.add(task, reason, block.strip())
    return reply


def parse_json_reply(text: str, finish_reason: str | None) -> Reply:
    """Returns the tasks in a reply that is JSON: {"tasks": [...]} or a bare list, fenced or not.

    If a reply is cut off, the complete tasks before the cut are kept.
    """
    text = _FENCE.sub(r"\1", text.replace("\r\n", "\n")).strip()
    ended = _ended(finish_reason)
    if not text:
        return Reply([], [Rejected(ended or "empty reply", "")])
    rows, rest = _json_rows(text)
    reply = Reply()
    for row in rows:
        task = _parse_row(row)
        wrong = "not an instruction, input and output in text"
        reason = rule_broken(task) if task else wrong
        reply.add(task, reason, json.dumps(row, ensure_ascii=False))
    if rest is not None:
        reply.rejected.append(Rejected(ended or "not JSON", rest))
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


def _ended(finish_reason: str | None) -> str | None:
    """Returns why a reply was cut off, or None."""
    return {
        "length": "cut off by the length limit",
        "content_filter": "stopped by the content filter",
    }.get(finish_reason or "")


def _json_rows(text: str) -> tuple[list[Any], str | None]:
    """Returns (complete rows, the rest of the text that is not JSON, or None)."""
    try:
        value = json.loads(text)
        rows = value.get("tasks", [value]) if isinstance(value, dict) else value
        return (rows, None) if isinstance(rows, list) else ([], text)
    except (ValueError, RecursionError):
        pass
    decoder, rows = json.JSONDecoder(), []
    at = text.find("[") + 1
    while at and (start := text.find("{", at)) >= 0:
        try:
            row, at = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            return rows, text[start:]
        rows.append(row)
    return rows, text[at:]


def _parse_row(row: Any) -> Example | None:
    if not isinstance(row, dict):
        return None
    given = "" if row.get("input") is None else row["input"]
    values = [row.get("instruction"), given, row.get("output")]
    texts = [value.strip() for value in values if isinstance(value, str)]
    if len(texts) < 3 or not texts[0]:
        return None
    instruction, given, output = texts
    return Example(instruction, "" if _NO_INPUT.match(given) else given, output)


def rule_broken(task: Example) -> str | None:
    """Returns the first of the filter rules that a task breaks, or None."""
    length = words(task.instruction)
    if length <= 3:
        return "instruction too short (3 words or fewer)"
    if length > 150:
        return "instruction too long (over 150 words)"
    if found := _KEYWORD.search(task.instruction):
        return f'needs more than text ("{found[0].lower()}")'
    if task.instruction.startswith("Write a program"):
        return 'starts with "Write a program"'
    if task.instruction[0] in string.punctuation:
        return "starts with a symbol"
    if not task.output:
        return "empty output"
    if _REFUSAL.match(task.output):
        return "the teacher refused"
    return None


def _name(heading: re.Match[str]) -> str:
    return _NAMES.get(heading["name"], heading["name"].lower())


def _open_mark(heading: re.Match[str]) -> str:
    """Returns the bold mark that a heading opens and does not close: "**4. Input: x**"."""
    mark = heading["b"] or heading["a"] or ""
    return "" if heading[0].count(mark or "-") > 1 else mark


def _parse_block(block: str) -> Example | None:
    """Returns the Example in a block with its three headings, in order, with one number."""
    found = list(_HEADING.finditer(block))
    # An answer may hold a list of inputs and outputs of its own, with other numbers.
    found = [m for m in found if m["number"] == found[0]["number"] or _name(m) == "instruction"]
    names = [_name(match) for match in found]
    if names != ["instruction", "input", "output"] or len({m["number"] for m in found}) != 1:
        return None
    ends = [match.start() for match in found[1:]] + [len(block)]
    parts = [
        block[m.end() : end].strip().removesuffix(_open_mark(m)).strip()
        for m, end in zip(found, ends, strict=True)
    ]
    if not parts[0]:
        return None
    return Example(parts[0], "" if _NO_INPUT.match(parts[1]) else parts[1], parts[2])


def _parse_stanford(text: str, finish_reason: str | None, first_number: int) -> Reply:
    """Parses as stanford_alpaca's generate_instruction.py does (761dc5b)."""
    blocks = re.split("###", f"{first_number}. Instruction:{text}")
    reply = Reply()
    for place, block in enumerate(blocks):
        number = first_number + place
        parts = re.split(rf"{number}\.\s+(Instruction|Input|Output):", block)
        if place == len(blocks) - 1 and finish_reason == "length":
            reply.add(None, "cut off by the length limit", block)
        elif len(parts) != 7:
            reply.add(None, f"does not split into 7 parts at {number}.", block)
        else:
            given = parts[4].strip()
            given = "" if given.lower() == "<noinput>" else given
            task = Example(parts[2].strip(), given, parts[6].strip())
            reply.add(task, _stanford_rule_broken(task.instruction), block)
    return reply


def _stanford_rule_broken(instruction: str) -> str | None:
    words = len(instruction.split())
    if words <= 3 or words > 150:
        return "instruction too short or too long"
    if _KEYWORD.search(instruction):
        return "keyword"
    if instruction.startswith("Write a program"):
        return 'starts with "Write a program"'
    if instruction[0] in string.punctuation:
        return "starts with a symbol"
    return None if instruction[0].isascii() else "starts with a non-ASCII character"
