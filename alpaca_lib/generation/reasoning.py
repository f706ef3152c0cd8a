"""Separates a reply's reasoning from its answer: <think> blocks and their many relatives.

Reasoning is never data, and a tag that an answer writes about is never reasoning. Where a tag
stands decides:
- at the beginning of the reply, a block is reasoning, whatever its tag is called;
- later, a block is reasoning if its opening tag begins or ends a line, or follows a heading,
  outside other markup, and it is closed (or the tag has a line of its own);
- a closing tag without an opening one, at the edge of a line or after the end of a sentence,
  ends reasoning that the prompt's template opened: all before it is reasoning;
- a tag in a code block, in backticks or quotation marks, or in the middle of a sentence is text.
Blocks may be nested. If the outermost is never closed, it ends at the last closing tag in it.
Time is linear in the length of the reply.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from alpaca_lib.generation.headings import find_content_end

_CORE = r"think|thinking|thoughts?|thought_process|reasoning|reflection|思考"
_OTHER = r"reason|reflect|analysis|scratchpad|(?:inner_|internal_)?monologue|chain_of_thought|cot"
_TAG = (
    r"(?P<left><\|?|&lt;|＜|\[|◁)[ \t]?(?P<slash>/?)[ \t]?"
    rf"(?:\w{{1,16}}[:_]|ant)?(?:(?P<core>{_CORE})|(?P<other>{_OTHER}))"
    r"(?:\s[^<>\[\]\n]{0,200})?[ \t]?(?P<empty>/?)(?:\|?>|&gt;|＞|\]|▷)"
)
_OPEN = (
    r"<\|(?:begin_of_thought|START_THINKING|inner_prefix|thought_start)\|>|<unused94>(?:thought)?"
    r"|<｜begin▁of▁(?:think|thinking|thought|reasoning)｜>"
    r"|<\|channel>[ \t]?(?:thought|analysis)|<details\b[^<>\n]{0,200}reasoning[^<>\n]{0,200}>"
    r"|(?:<\|start\|>[ \t]?\w{0,12}[ \t]?)?<\|channel\|>[ \t]?(?:analysis|commentary)"
    r"[^<\n]{0,200}(?:<\|constrain\|>\w{0,20}[ \t]?)?<\|message\|>"
)
_CLOSE = r"<\|(?:end_of_thought|END_THINKING|inner_suffix|thought_end)\|>|<unused95>"
_CLOSE += r"|<｜end▁of▁(?:think|thinking|thought|reasoning)｜>"
_CLOSE_INSIDE = r"<channel\|>|</details>|<\|end\|>"  # outside, these are other marks
_FINAL = (
    r"(?:<\|end\|>\s{0,9})?(?:<\|start\|>[ \t]?assistant[ \t]?)?"
    r"<\|channel\|>[ \t]?final[^<\n]{0,200}<\|message\|>"
)
_FENCE = r"^[ \t]{0,3}(?P<fence>```+|~~~+)(?P<info>[^`\n]*)$"
_EVENT = re.compile(
    rf"{_FENCE}|(?P<final>{_FINAL})|(?P<open>{_OPEN})|(?P<close>{_CLOSE})"
    rf"|(?P<inside>{_CLOSE_INSIDE})|{_TAG}",
    re.MULTILINE | re.IGNORECASE,
)
_FIELD = re.compile(
    r"[^\w\n]{0,8}(?:\d{1,6}[^\w\n]{1,6})?(?:Instruction|Input|Output|Response|Answer"
    r"|指令|输入|输出|回答|答案)[ \t]?\d{0,6}[*_ \t]{0,4}[:：][*_ \t]{0,9}",
    re.IGNORECASE,
)
_NEXT_IS_FIELD = re.compile(r"[ \t]{0,9}" + _FIELD.pattern, re.IGNORECASE)
_BLANKS = re.compile(r"[ \t]*")
# Reasoning that is marked in words, at the beginning of a reply alone.
_PHRASES = tuple(
    (re.compile(opening), re.compile(closing, re.MULTILINE))
    for opening, closing in (
        (  # Granite 3
            r"\s*Here(?: is|['’]s) my (?:thought|thinking|reasoning) process:",
            r"^\W*Here(?: is|['’]s) my (?:response|answer)\W*:\W*?$",
        ),
        (r"\s*Thinking\.\.\.\n", r"^\.\.\.done thinking\.$"),  # ollama's command
        (r"\s*analysis(?=[A-Z])", r"assistantfinal"),  # gpt-oss without its marks
    )
)
# Other reasoning at the beginning of a reply that tasks follow: a block of any tag, a comment or a
# code block of thoughts, on lines of their own, or a heading for thoughts and one for the answer.
_LEADING = re.compile(
    r"\s*(?:<(?P<tag>[A-Za-z][\w:.-]{1,40})\b[^<>\n]{0,200}>[\s\S]*?"
    r"(?:^[ \t]*</(?P=tag)>|</(?P=tag)>[ \t]*$)|<!--[\s\S]*?-->"
    rf"|```[ \t]*(?:{_CORE}|{_OTHER})[ \t]*\n[\s\S]*?^[ \t]*```[ \t]*$"
    r"|[#*_\s]{0,8}(?:my )?(?:thinking|thoughts?|thought process|reasoning|chain of thought"
    r"|思考|思考过程|推理)(?:[ \t]*[:：][^\n]{0,2000}|[*_ \t]{0,4}:?[*_ \t]{0,4})\n[\s\S]*?"
    r"^[#*_ \t]{0,8}(?:final |here is my )?(?:answer|response|tasks?|list|答案|最终答案|任务)s?"
    r"[*_ \t]{0,4}[:：]?[*_ \t]{0,4}$)",
    re.MULTILINE | re.IGNORECASE,
)
_NEXT_INPUT = re.compile(rf"^{_FIELD.pattern}", re.MULTILINE | re.IGNORECASE)
_ANSWER = re.compile(
    r"\s*(?:<(?P<name>answer|response|final_answer|final|solution|output)>"
    r"|<\|(?P<mark>begin_of_solution|START_RESPONSE)\|>)",
    re.IGNORECASE,
)
_ANSWER_ENDS = {"begin_of_solution": "<|end_of_solution|>", "start_response": "<|END_RESPONSE|>"}
_TURN_ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|end|>",
    "<|return|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|END_OF_TURN_TOKEN|>",
    "<end_of_turn>",
    "<｜end▁of▁sentence｜>",
    "</s>",
)


@dataclass(frozen=True)
class Split:
    """A reply without its reasoning, the reasoning, and whether that is still open at the end."""

    answer: str
    reasoning: list[str] = field(default_factory=list)
    is_open: bool = False


@dataclass
class _Tag:
    """A tag and what stands around it."""

    start: int
    end: int
    kind: str  # open, close, inside, final, empty
    line: int  # start of its line
    starts_line: bool
    ends_line: bool
    is_core: bool = True
    is_special: bool = False  # a token of a model's format, which no text writes by chance
    is_quoted: bool = False  # in code or quotation marks
    is_glued: bool = False  # directly after a word, or directly before a heading
    is_nested: bool = False  # inside other markup


def split_reasoning(text: str) -> Split:
    """Returns a reply's answer and its reasoning (see the module)."""
    for opening, closing in _PHRASES:
        if begun := opening.match(text):
            ended = closing.search(text, begun.end())
            end = ended.end() if ended else len(text)
            return Split(_unwrap(text[end:]), [text[:end].strip()], ended is None)
    if led := _find_leading(text):
        rest = split_reasoning(text[led:])
        return Split(rest.answer, [text[:led].strip(), *rest.reasoning], rest.is_open)
    if not any(mark in text for mark in "<[◁＜&"):
        return Split(text)
    tags = list(_find_tags(text))
    blocks, is_open = _find_blocks(text, tags, in_code=False)
    if is_open:  # a code block or a sentence in the reasoning may have hidden its end
        blocks, is_open = _find_blocks(text, tags, in_code=True)
    if not blocks:
        return Split(_unwrap(text))
    starts = [0, *(end for _, end in blocks)]
    ends = [*(start for start, _ in blocks), len(text)]
    answer = "".join(text[start:end] for start, end in zip(starts, ends, strict=True))
    reasoning = [text[start:end].strip() for start, end in blocks]
    # An empty block, as templates write one, loses nothing.
    return Split(
        _unwrap(answer), [one for one in reasoning if _EVENT.sub("", one).strip()], is_open
    )


def _find_leading(text: str) -> int:
    """Returns where reasoning of another kind than _EVENT's ends at the beginning, or 0."""
    known = _EVENT.match(text, len(text) - len(text.lstrip()))
    led = None if known and not known["fence"] else _LEADING.match(text)
    if led is None or _NEXT_INPUT.search(text, led.end()) is None:
        return 0
    # A tag that opens again is around each of the tasks.
    is_wrapper = led["tag"] is not None and f"<{led['tag']}" in text[led.end() :]
    return 0 if is_wrapper else led.end()


def _find_tags(text: str) -> Iterator[_Tag]:
    """Yields the tags of a text that may be reasoning's, each with what stands around it."""
    found = list(_EVENT.finditer(text))
    last_bare = {m["fence"][0]: m.start() for m in found if m["fence"] and not m["info"].strip()}
    fence: re.Match[str] | None = None
    line = line_end = -1
    blank_until = counted = 0
    marks = {"`": 0, '"': 0}
    last = dict(marks)
    for match in found:
        start, end = match.span()
        if match["fence"]:
            fence = _next_fence(text, match, fence, last_bare)
            continue
        if start > line_end:
            line = text.rfind("\n", max(line_end, 0), start) + 1
            line_end = text.find("\n", start)
            line_end = len(text) if line_end < 0 else line_end
            heading = _FIELD.match(text, line, line_end)
            blank_until = heading.end() if heading else line
            counted, marks = line, dict.fromkeys(marks, 0)
            last = {mark: text.rfind(mark, line, line_end) for mark in marks}
        for mark in marks:
            marks[mark] += text.count(mark, counted, start)
        counted = start
        blanks = _BLANKS.match(text, blank_until)
        starts_line = blanks is not None and blanks.end() >= start
        after = _BLANKS.match(text, end)
        if starts_line:
            blank_until = end
        kind = next((k for k in ("final", "open", "close", "inside") if match[k]), "")
        is_special = bool(kind)
        if not kind:
            kind = "close" if match["slash"] else "empty" if match["empty"] else "open"
            if match["left"] == "[" and not (match["core"] or match["other"]).isupper():
                continue  # [thinking] is a stage direction
        before = text[start - 1] if start > line else ""
        yield _Tag(
            start,
            end,
            kind,
            line,
            starts_line,
            after is None or after.end() >= line_end,
            is_core=is_special or bool(match["core"]),
            is_special=is_special,
            is_quoted=fence is not None
            or any(marks[mark] % 2 and last[mark] >= end for mark in marks)
            or (before in "'‘“«「『(（" and before != "" and text[end : end + 1] in "'’”»」』)）"),
            is_glued=before in ".!?。！？…" or _NEXT_IS_FIELD.match(text, end) is not None,
            is_nested=_follows_markup(text, line),
        )


def _next_fence(
    text: str, found: re.Match[str], fence: re.Match[str] | None, last_bare: dict[str, int]
) -> re.Match[str] | None:
    """Returns the code block that is open after a line of backticks, or None.

    One that is never closed, or that the reply begins with, or directly above a heading, holds
    tasks rather than code.
    """
    bare = not found["info"].strip()
    if fence is not None:
        closes = bare and found["fence"].startswith(fence["fence"])
        return None if closes else fence
    is_closed = last_bare.get(found["fence"][0], -1) > found.start()
    holds_tasks = found.start() < 10 and not text[: found.start()].strip()
    holds_tasks = holds_tasks or _FIELD.match(text, found.end() + 1) is not None
    return found if is_closed and not holds_tasks else None


def _follows_markup(text: str, line: int) -> bool:
    """Returns whether the line above begins with another tag."""
    above = text.rfind("\n", 0, max(line - 1, 0)) + 1
    at = _BLANKS.match(text, above)
    if not line or at is None or not text.startswith("<", at.end()):
        return False
    return _EVENT.match(text, at.end()) is None


def _find_blocks(text: str, tags: list[_Tag], in_code: bool) -> tuple[list[tuple[int, int]], bool]:
    """Returns the spans of reasoning, and whether the last is still open at the end.

    in_code: inside reasoning, closing tags count also in code and in the middle of a sentence.
    """
    last_close = max((tag.start for tag in tags if tag.kind != "open"), default=-1)
    blocks: list[tuple[int, int]] = []
    opened: _Tag | None = None
    depth = unpaired = 0
    ended = -1  # end of the last closing tag in the open block
    at_head, seen = True, 0
    for tag in tags:
        if opened is None:
            at_head = at_head and not text[seen : tag.start].strip()
            seen = tag.start
            if tag.kind == "final":
                if not tag.is_quoted:
                    blocks = [(0, tag.end)]
            elif tag.kind == "empty" and not tag.is_quoted and (at_head or tag.starts_line):
                blocks.append((tag.start, tag.end))
            elif tag.kind == "open":
                if _opens(tag, at_head, tag.start < last_close):
                    opened, depth, ended = tag, 1, -1
                else:
                    unpaired += not tag.is_quoted
            elif tag.kind == "close" and unpaired and not tag.is_special:
                unpaired -= not tag.is_quoted
            elif tag.kind == "close" and blocks and not text[tag.end :].strip():
                blocks.append((tag.start, tag.end))
            elif tag.kind == "close" and _closes_alone(tag):
                blocks = [(0, tag.end)]  # the template opened it
        elif tag.kind == "open":
            depth += (tag.starts_line or tag.ends_line) and not tag.is_quoted
        elif tag.kind == "final":
            blocks.append((opened.start, tag.end))
            opened = None
        elif in_code or tag.kind == "inside" or _closes(tag, opened):
            depth, ended = depth - 1, tag.end
            if not depth:
                blocks.append((opened.start, tag.end))
                opened = None
        if blocks and opened is None and seen < blocks[-1][1]:
            at_head, seen = at_head or blocks[-1][0] == 0, blocks[-1][1]
    if opened is None:
        return blocks, False
    if ended >= 0:
        return [*blocks, (opened.start, ended)], False
    return [*blocks, (opened.start, len(text))], True


def _opens(tag: _Tag, at_head: bool, is_closed: bool) -> bool:
    """Returns whether an opening tag outside a block begins one."""
    if tag.is_quoted:
        return False
    if at_head or tag.is_special:
        return True
    at_edge = tag.starts_line or tag.ends_line
    alone = tag.starts_line and tag.ends_line
    return tag.is_core and not tag.is_nested and at_edge and (is_closed or alone)


def _closes(tag: _Tag, opened: _Tag) -> bool:
    """Returns whether a closing tag inside a block counts; in a sentence it is mentioned."""
    at_edge = tag.starts_line or tag.ends_line or tag.is_glued or tag.is_special
    return not tag.is_quoted and (at_edge or tag.line == opened.line)


def _closes_alone(tag: _Tag) -> bool:
    """Returns whether a closing tag without an opening one ends reasoning."""
    at_edge = tag.starts_line or tag.ends_line or tag.is_glued or tag.is_special
    return tag.is_core and not tag.is_quoted and not tag.is_nested and at_edge


def _unwrap(text: str) -> str:
    """Returns an answer without end-of-turn tokens and without a tag around all of it."""
    end = _strip_turn_ends(text)
    begun = _ANSWER.match(text, 0, end)
    if not begun:
        return text if end == len(text) else text[:end]
    closing = f"</{begun['name']}>" if begun["name"] else _ANSWER_ENDS[begun["mark"].lower()]
    inner = text[begun.end() : end].rstrip()
    if inner.lower().endswith(closing.lower()):
        inner = inner[: -len(closing)]
    return inner


def _strip_turn_ends(text: str) -> int:
    """Returns where a text ends without the end-of-turn tokens at its end."""
    stop = end = len(text)
    while True:
        end = find_content_end(text, end)
        token = next((one for one in _TURN_ENDS if text.endswith(one, 0, end)), None)
        if token is None:
            return stop
        stop = end = end - len(token)
