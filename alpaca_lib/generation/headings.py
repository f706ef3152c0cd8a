"""Finds the headings of tasks in a reply, in the ways that models write them.

4. Instruction:   **4. Input:**   ### 4. Output   > 4) 指令：   Instruction 4:   Input:
"""

from __future__ import annotations

import re
import sys
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

NAMES = {
    "instruction": ("Instruction", "指令"),
    "input": ("Input", "输入", "輸入"),
    "output": ("Output", "输出", "輸出"),
}
# Names that some models use instead, and that answers often contain.
OTHER_NAMES = {
    "instruction": ("Task", "任务", "任務"),
    "input": (),
    "output": ("Response", "Answer", "回答", "回复", "答案", "回應"),
}
_FIELD_OF = {
    name.lower(): field
    for table in (NAMES, OTHER_NAMES)
    for field, names in table.items()
    for name in names
}
_GAP = r"[ \t\u00a0\u3000]"
_START = (  # a heading may be an item of a list
    rf"^{_GAP}*(?P<prefix>#{{1,4}}{_GAP}+|>{_GAP}*|[-*+]{_GAP}+)?(?P<a>\*\*\*|\*\*|__|\*|_)?【?"
)
_MARK = r"(?:(?P=a)|(?P=b))?"  # the bold mark that a heading opens with
# Without a colon, a heading is in bold or has a # before it, and a line of its own.
_END = rf"{_MARK}{_GAP}*(?:(?P<colon>[:：]|】[:：]?){_MARK}|(?P<bare>$))"
_ALL = "|".join(name for table in (NAMES, OTHER_NAMES) for one in table.values() for name in one)
_NUMBERED = re.compile(
    rf"{_START}(?:[(\[]?(?P<number>\d{{1,6}}){_GAP}?(?P<stop>[.)\]．、）:：-]|{_GAP})(?P=a)?"
    rf"{_GAP}*(?:-{_GAP}+)?(?P<b>\*\*|__)?(?P<name>{_ALL})|(?P<name2>{_ALL}){_GAP}*[#№]?(?P<number2>\d{{1,6}})){_END}",
    re.MULTILINE | re.IGNORECASE,
)
_OTHERS = frozenset(name.lower() for one in OTHER_NAMES.values() for name in one)


@dataclass(frozen=True)
class Heading:
    """A heading's place, field and number; ``mark`` is a bold mark that it opens only."""

    start: int
    end: int
    field: str  # instruction, input or output
    number: int | None
    mark: str
    is_alone: bool  # nothing else on its line
    is_other: bool  # one of OTHER_NAMES
    form: str  # what stands before the number, and after it; "" if the name comes first


def find_headings(text: str) -> list[Heading]:
    """Returns the headings with a number, in order."""
    return [heading for match in _NUMBERED.finditer(text) if (heading := _read(match, text))]


def find_bare(
    field: str,
    text: str,
    start: int,
    end: int = sys.maxsize,
    others: bool = False,
    alone: bool = False,
) -> Heading | None:
    """Returns the first heading of a field without a number between two places.

    alone: the first one that has a line of its own, if there is one.
    """
    first = None
    for match in _bare(field, others).finditer(text, start, end):
        heading = _read(match, text)
        if heading and (heading.is_alone or not alone):
            return heading
        first = first or heading
    return first


@lru_cache(maxsize=8)
def _bare(field: str, others: bool) -> re.Pattern[str]:
    # Not "input: 5": a line of code or of a list.
    names = "|".join(NAMES[field] + (OTHER_NAMES[field] if others else ()))
    names = f"{names}|{names.upper()}"
    absent = "".join(f"(?P<{group}>(?!))?" for group in ("b", "number", "stop", "number2", "name2"))
    return re.compile(
        rf"{_START}{absent}(?P<name>{names}){_END}",
        re.MULTILINE,
    )


def _read(match: re.Match[str], text: str) -> Heading | None:
    mark = match["b"] or match["a"] or ""
    is_marked = mark or (match["prefix"] or "").startswith("#")
    if match["colon"] is None and not is_marked:
        return None
    number = match["number"] or match["number2"]
    name = (match["name"] or match["name2"]).lower()
    line_end = text.find("\n", match.end())
    after = text[match.end() : len(text) if line_end < 0 else line_end]
    return Heading(
        match.start(),
        match.end(),
        _FIELD_OF[name],
        int(number) if number else None,
        "" if match[0].count(mark or "-") > 1 else mark,
        not after.strip(),
        name in _OTHERS,
        (match["prefix"] or "").strip() + unicodedata.normalize("NFKC", match["stop"] or ""),
    )


_PARTIAL = re.compile(r"[#>*_ \t\n(-]*(?P<number>\d{0,6})(?P<rest>[^\n]{0,40})")


def begins_heading(text: str) -> bool:
    """Returns whether a text may be the beginning of an Instruction heading that was cut."""
    match = _PARTIAL.fullmatch(text.strip())
    if match is None:
        return False
    rest = match["rest"].lstrip(".)．、）:：-*_ \t").rstrip("*_ :：").lower()
    if match["number"]:
        return any(name.lower().startswith(rest) for name in NAMES["instruction"])
    word = rest.rstrip("0123456789").rstrip()
    return not rest or (word != rest and word in map(str.lower, NAMES["instruction"]))


def begins_with_heading(text: str) -> bool:
    """Returns whether the first line that is not blank is the heading of an input."""
    start = text.lstrip()[:200]
    found = [*find_headings(start)[:1], find_bare("input", start, 0)]
    return any(heading is not None and heading.start == 0 for heading in found)


def find_content_end(text: str, at: int) -> int:
    """Returns where a text without the white space before a place ends."""
    size = 64
    while at:
        start = max(at - size, 0)
        if kept := len(text[start:at].rstrip()):
            return start + kept
        at, size = start, 2 * size
    return 0
