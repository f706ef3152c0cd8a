"""Divides a reply into tasks by its headings and separators.

A task begins at an Instruction heading
- after a line of ###, or
- after the reply's own separator (---, ***), if it has its own Input and Output, or
- after a blank line or none, if it has these and the number that comes next.
Any other Instruction heading makes the task around it ambiguous, and that is dropped. A line of
# other than ### is a separator gone wrong: the tasks on both sides are dropped.
A line of ### in a task is part of its text, unless a heading or a remark follows.
Headings without a number count in a task without numbered ones, and the names "Task", "Response"
and "Answer" where the usual ones are missing; so answers may contain them.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, replace

from alpaca_lib.generation.headings import (
    Heading,
    begins_heading,
    find_bare,
    find_content_end,
    find_headings,
)
from alpaca_lib.generation.remarks import is_remark
from alpaca_lib.generation.reply import NOT_A_TASK, PREFACE, REMARK
from alpaca_lib.generation.task_rules import make_task
from alpaca_lib.prompts import unescape_task_text
from alpaca_lib.records import Example

_HASHES = re.compile(r"^[ \t]*[#＃]{3}[ \t]*$", re.MULTILINE)
# One mark again and again, or a long dash; not ``` or ~~~, which delimit code, nor "..." or ">>>".
_RULE = re.compile(
    r"[ \t]*(?P<rule>[#＃][#＃ \t]*(?<![ \t])"
    r"|(?P<mark>_|[^\w\s#＃`~.…>|])(?:[ \t]?(?P=mark)){2,}|[—─⸻]{1,2})"
    r"[ \t]*"
)
_WORD = re.compile(r"\w")
_BLANK_LINES = re.compile(r"\s*\n")
# A line that only numbers the task below it.
_LABEL = re.compile(
    r"[^\w\n]{0,8}(?:[^\W\d_]{1,12}[^\w\n]{0,4})?(\d{1,6})(?:[个個]?[^\W\d_]{0,2})?[^\w\n]{0,8}"
)


@dataclass(frozen=True)
class Part:
    """A part of a reply: a task with its Instruction heading, or another part and its reason."""

    start: int
    end: int
    heading: Heading | None = None
    reason: str = ""
    is_cut: bool = False


class Layout:
    """The headings of a reply, and how they divide it; ``starts`` may begin tasks.

    >>> layout = Layout("4. Instruction: Name a colour.\\n4. Input:\\n4. Output:\\nRed.")
    >>> [layout.parse(part) for part in layout.split(4, is_cut=False)]
    """

    def __init__(self, text: str, is_implied: bool = False) -> None:
        self.text = text
        self.heads = find_headings(text)
        self._places = [head.start for head in self.heads]
        self.starts = self._find_starts(is_implied)

    def _find_starts(self, is_implied: bool) -> list[Heading]:
        """Returns the Instruction headings: with a number, else under another name, else bare.

        is_implied: the first is the prompt's, which says nothing about the reply's own style.
        """
        found = [h for h in self.heads if h.field == "instruction" and not h.is_other]
        if len(found) > is_implied:
            return found
        others = [h for h in self.heads if h.field == "instruction" and h.is_other]
        bare: list[Heading] = []
        while head := find_bare("instruction", self.text, bare[-1].end if bare else 0):
            bare.append(head)
        bare = self._with_labels(bare)
        for heads in (others, bare):
            ends = [*(head.start for head in heads[1:]), len(self.text)]
            pairs = zip(heads, ends, strict=False)  # one end more if there is no heading
            if complete := [head for head, end in pairs if self._find_fields(head, end)]:
                return found + complete
        return found

    def _with_labels(self, bare: list[Heading]) -> list[Heading]:
        """Returns headings that begin with the label above them, such as **5.** or Example 5:.

        Only numbers in order are labels.
        """
        labels = []
        for head in bare:
            start, end = _line_above(self.text, head.start)
            label = _LABEL.fullmatch(self.text, start, min(end, start + 80))
            labels.append((start, int(label[1])) if label and end <= start + 80 else (0, None))
        out = []
        for place, (head, (start, number)) in enumerate(zip(bare, labels, strict=True)):
            near = {one[1] for one in labels[max(place - 1, 0) : place + 2]}
            if number is not None and {number - 1, number + 1} & near:
                head = replace(head, start=start, number=number)
            out.append(head)
        return out

    def has_fields_before(self, limit: int) -> bool:
        """Returns whether a task's headings stand before the first Instruction heading."""
        if any(h.start < limit and h.field != "instruction" for h in self.heads if not h.is_other):
            return True
        given = find_bare("input", self.text, 0, limit)
        return bool(given and find_bare("output", self.text, given.end, limit, others=True))

    def split(self, first_number: int, is_cut: bool) -> list[Part]:
        """Returns the parts of the reply in order; is_cut: the last task may be incomplete."""
        first = self.starts[0]
        parts = []
        if _WORD.search(self.text, 0, first.start):
            is_broken = _HASHES.search(self.text, 0, first.start) and first.number != first_number
            parts = [Part(0, first.start, reason=NOT_A_TASK if is_broken else PREFACE)]
        above = [self._separator_above(head) for head in self.starts]
        kinds = Counter(kind for _, kind in above[1:])
        rules = {kind for kind in kinds if len(kind) == 1 and kind != "#"}
        rules = {kind for kind in rules if kinds[kind] >= kinds["###"]}
        current = first
        following = [head.start for head in self.starts[1:]] + [len(self.text)]
        for place, head in enumerate(self.starts[1:], start=1):
            separator, kind = above[place]
            is_last = is_cut and place == len(self.starts) - 1
            has_fields = is_last or self._find_fields(head, following[place]) is not None
            is_next = head.number == (current.number or 0) + 1
            if head.number is None:
                is_next = kind == "blank"
            is_ruled = kind in rules
            if kind == "###" or (has_fields and kind != "#" and (is_ruled or is_next)):
                end = separator if kind == "###" or is_ruled else head.start
                parts += self._divide(current, end)
                current = head
        return parts + self._divide_last(current, rules, is_cut)

    def _separator_above(self, head: Heading) -> tuple[int, str]:
        """Returns (where the line above a heading begins, what it is).

        "###", "#" for a separator gone wrong, the character of another rule, "blank" or "text".
        """
        start, end = _line_above(self.text, head.start)
        rule = _RULE.fullmatch(self.text, start, end)
        if rule is None:
            gap = self.text.count("\n", end, head.start)
            return start, "blank" if gap > 1 else "text"
        kind = rule["rule"].replace("＃", "#")
        return start, kind if kind == "###" else kind[0]

    def _divide(self, head: Heading, end: int) -> list[Part]:
        """Returns the task that begins at a heading, and what follows it before ``end``."""
        lines = list(_HASHES.finditer(self.text, head.end, end))
        while lines and not _WORD.search(self.text, lines[-1].end(), end):
            end = lines.pop().start()
        for line in lines:
            blanks = _BLANK_LINES.match(self.text, line.end())
            start = blanks.end() if blanks else end
            place = bisect_left(self._places, start)
            following = self.heads[place] if place < len(self.heads) else None
            if following and following.start == start < end and not following.is_other:
                return [Part(head.start, line.start(), head), Part(line.end(), end)]
        return self._divide_remark(head, lines, end)

    def _divide_remark(self, head: Heading, lines: list[re.Match[str]], end: int) -> list[Part]:
        if lines and is_remark(self.text[lines[-1].end() : end]):
            last = lines[-1]
            return [Part(head.start, last.start(), head), Part(last.end(), end, reason=REMARK)]
        return [Part(head.start, end, head)]

    def _divide_last(self, head: Heading, rules: set[str], is_cut: bool) -> list[Part]:
        """Returns the last task, and what follows it; a separator at the end closes the task."""
        end = len(self.text)
        start, stop = _line_above(self.text, end)
        rule = _RULE.fullmatch(self.text, start, stop)
        if (
            rule
            and start > head.end
            and (_HASHES.fullmatch(self.text, start, stop) or rule["rule"][0] in rules)
        ):
            return self._divide(head, start)
        if not is_cut:
            return self._divide(head, end)
        lines = list(_HASHES.finditer(self.text, head.end))
        if lines and begins_heading(self.text[lines[-1].end() :][:80]):
            end = lines[-1].start()
            return [*self._divide(head, end), Part(lines[-1].end(), len(self.text), is_cut=True)]
        parts = self._divide(head, end)
        last = parts[-1]
        return [*parts[:-1], Part(last.start, last.end, last.heading, last.reason, is_cut=True)]

    def parse(self, part: Part) -> Example | None:
        """Returns the task of a part, or None if it is none."""
        head = part.heading
        if head is None or self._has_instruction(head.end, part.end):
            return None
        fields = self._find_fields(head, part.end)
        if fields is None:
            return None
        given, output = fields
        texts = [
            self._text(head, given.start),
            unescape_task_text(self._text(given, output.start)),
            unescape_task_text(self._text(output, part.end)),
        ]
        if head.is_other and (again := find_bare("instruction", texts[0], 0)) and not again.start:
            texts[0] = texts[0][again.end :].strip()
        return make_task(*texts) if texts[0] else None

    def _between(self, start: int, end: int) -> list[Heading]:
        return self.heads[bisect_left(self._places, start) : bisect_left(self._places, end)]

    def _has_instruction(self, start: int, end: int) -> bool:
        return any(start <= head.start < end for head in self.starts)

    def _text(self, head: Heading, end: int) -> str:
        return self.text[head.end : end].strip().removesuffix(head.mark).strip()

    def _find_fields(self, head: Heading, end: int) -> tuple[Heading, Heading] | None:
        """Returns the Input and Output headings of the task that begins at a heading, or None.

        With numbers, there is one of each, besides items of a list; without, the first ones.
        """
        found = [h for h in self._between(head.end, end) if h.number == head.number]
        found = [h for h in found if h.field != "instruction"]
        alike = [h for h in found if h.form == head.form]
        found = alike or found
        usual = {h.field for h in found if not h.is_other}
        found = [h for h in found if not (h.is_other and h.field in usual)]
        while len(found) > 2 and self._is_list_item(found[-1]):
            found.pop()
        if len(found) == 2:
            return (found[0], found[1]) if [h.field for h in found] == ["input", "output"] else None
        given = found[0] if found else find_bare("input", self.text, head.end, end)
        if len(found) > 2 or given is None or given.field != "input":
            return None
        for others in (False, True):
            output = find_bare("output", self.text, given.end, end, others, given.is_alone)
            if output:
                return given, output
        return None

    def _is_list_item(self, head: Heading) -> bool:
        """Returns whether the line above has the number before a heading's own."""
        start, end = _line_above(self.text, head.start)
        number = re.compile(rf"[ \t]*{(head.number or 0) - 1}[.)．、]")
        return number.match(self.text, start, end) is not None


def _line_above(text: str, at: int) -> tuple[int, int]:
    """Returns where the last line before a place that is not blank starts and ends."""
    end = find_content_end(text, at)
    return text.rfind("\n", 0, end) + 1, end
