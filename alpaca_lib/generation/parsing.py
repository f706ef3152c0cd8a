"""A teacher's reply -> tasks, and the reason for each one that is not kept.

The prompt ends with the heading of the next task ("4. Instruction:"), and the
reply goes on from there: blocks between lines of ###, each with the headings
"N. Instruction:", "N. Input:", "N. Output:" (Stanford Alpaca's format).
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass, field

from alpaca_lib.records import Example

# Words that name what a text model cannot see, hear or make (Stanford's list).
KEYWORDS = (
    *("image", "images", "graph", "graphs", "picture", "pictures", "file", "files"),
    *("map", "maps", "draw", "plot", "go to", "video", "audio", "music", "flowchart", "diagram"),
)
_KEYWORD = re.compile(r"\b(" + "|".join(KEYWORDS) + r")\b", re.IGNORECASE)
_SEPARATOR = re.compile(r"^[ \t]*###[ \t]*$", re.MULTILINE)
_HEADING = re.compile(
    r"^[ \t]*(\d+)[.)][ \t]*(Instruction|Input|Output)[ \t]*:", re.MULTILINE | re.IGNORECASE
)
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_REFUSAL = re.compile(
    r"^((i['’]?m|i am) sorry,? (but )?i (can|am|['’]m)|sorry, (but )?i can|as an ai\b"
    r"|i can(no|['’])t (help|assist|do|provide))",
    re.IGNORECASE,
)
_NO_INPUT = re.compile(r"^[<\[(]?\s*(no\s?input|none|n/a)\s*[>\])]?\.?$", re.IGNORECASE)


@dataclass(frozen=True)
class Rejected:
    """A piece of a reply that is not kept, and why."""

    reason: str
    text: str


@dataclass(frozen=True)
class Reply:
    """What one reply gave: tasks in order, and the rest with reasons."""

    tasks: list[Example] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)


def parse_reply(
    text: str, finish_reason: str | None, first_number: int, compat: bool = False
) -> Reply:
    """The tasks in a reply whose prompt ended in "{first_number}. Instruction:".

    finish_reason "length" means that the last task is cut off: it is dropped.
    compat=True does exactly what Stanford's post_process_gpt3_response does, its
    faults included: a reply that misses one ### loses every later task.
    """
    if compat:
        return _parse_stanford(text, finish_reason, first_number)
    text = text.replace("\r\n", "\n")
    if not _HEADING.match(text.lstrip("# \n")):
        text = f"{first_number}. Instruction:{text}"
    pieces = _SEPARATOR.split(text)
    # Cut right after a ###, the last task is whole.
    cut_off = finish_reason == "length" and bool(pieces[-1].strip())
    blocks = [block for block in pieces if block.strip()]
    reply = Reply()
    for place, block in enumerate(blocks, start=1):
        task = _task(block)
        if place == len(blocks) and cut_off:
            reason: str | None = "cut off by the length limit"
        elif task is None:
            reason = "not one Instruction, Input and Output with one number"
        else:
            reason = rule_broken(task)
        if reason is None and task is not None:
            reply.tasks.append(task)
        else:
            reply.rejected.append(Rejected(str(reason), block.strip()))
    return reply


def rule_broken(task: Example) -> str | None:
    """The first of the filter rules that a task breaks, or None."""
    words = len(task.instruction.split()) + len(_CJK.findall(task.instruction))
    if words <= 3:
        return "instruction too short (3 words or fewer)"
    if words > 150:
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


def _task(block: str) -> Example | None:
    """The Example in a block that has its three headings, in order, with one number."""
    found = list(_HEADING.finditer(block))
    names = [match[2].lower() for match in found]
    if names != ["instruction", "input", "output"] or len({match[1] for match in found}) != 1:
        return None
    ends = [match.start() for match in found[1:]] + [len(block)]
    parts = [block[m.end() : end].strip() for m, end in zip(found, ends, strict=True)]
    if not parts[0]:
        return None
    return Example(parts[0], "" if _NO_INPUT.match(parts[1]) else parts[1], parts[2])


def _parse_stanford(text: str, finish_reason: str | None, first_number: int) -> Reply:
    """As in stanford_alpaca's generate_instruction.py (761dc5b)."""
    blocks = re.split("###", f"{first_number}. Instruction:{text}")
    reply = Reply()
    for place, block in enumerate(blocks):
        number = first_number + place
        parts = re.split(rf"{number}\.\s+(Instruction|Input|Output):", block)
        if place == len(blocks) - 1 and finish_reason == "length":
            reply.rejected.append(Rejected("cut off by the length limit", block))
        elif len(parts) != 7:
            reply.rejected.append(Rejected(f"does not split into 7 parts at {number}.", block))
        else:
            given = parts[4].strip()
            given = "" if given.lower() == "<noinput>" else given
            task = Example(parts[2].strip(), given, parts[6].strip())
            reason = _stanford_rule_broken(task.instruction)
            if reason is None:
                reply.tasks.append(task)
            else:
                reply.rejected.append(Rejected(reason, block))
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
