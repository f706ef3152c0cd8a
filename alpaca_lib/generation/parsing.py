"""Parses a teacher's reply into tasks, with the reason for each part that is dropped.

The prompt ends with the heading of the next task ("4. Instruction:"), and the reply continues
from there: blocks with the headings "N. Instruction:", "N. Input:", "N. Output:", between lines
of ### (Stanford Alpaca's format). Models write it in many ways; structure decides:
- Reasoning is taken away first (see reasoning), and code fences around tasks.
- Text before the first Instruction heading is the first task's instruction if an Input heading
  stands in it, as the prompt's heading is its own; else it is a preface.
- Where tasks begin, and which headings and lines of ### are text of an answer: see task_blocks.
- A closing remark after the last task is not part of its output (see remarks).
- If the reply may be cut (see reply.COMPLETE), its last task is dropped, unless a ### closes it.
Prefaces, remarks and reasoning are in ``rejected`` too, so that nothing is lost without a reason.
"""

from __future__ import annotations

import re
from dataclasses import replace

from alpaca_lib.generation.headings import begins_with_heading, find_headings
from alpaca_lib.generation.json_replies import parse_json_reply, reply_schema
from alpaca_lib.generation.reasoning import split_reasoning
from alpaca_lib.generation.remarks import split_closing, split_preface
from alpaca_lib.generation.reply import NOT_A_TASK, PREFACE, REMARK, Rejected, Reply, open_reply
from alpaca_lib.generation.stanford_parser import parse_stanford
from alpaca_lib.generation.task_blocks import Layout
from alpaca_lib.generation.task_rules import rule_broken

__all__ = ["Rejected", "Reply", "parse_json_reply", "parse_reply", "reply_schema", "rule_broken"]

_FENCE = re.compile(r"^[ \t]{0,3}```[^`\n]*$", re.MULTILINE)
_QUOTED = re.compile(r"^>[ \t]?", re.MULTILINE)
_WRAPPER = re.compile(r"\s*<([A-Za-z][\w-]{0,40})>[ \t]*\n")
_BLANK_LINES = re.compile(r"\s*\n")


def parse_reply(
    text: str, finish_reason: str | None, first_number: int, compat: bool = False
) -> Reply:
    """Returns the tasks in a reply whose prompt ended in "{first_number}. Instruction:".

    If finish_reason is not one of a complete reply, the last task is dropped.
    compat=True repeats Stanford's post_process_gpt3_response, its faults included: a reply
    that lacks one ### loses every later task.
    """
    if compat:
        return parse_stanford(text, finish_reason, first_number)
    split = split_reasoning(text.lstrip("\ufeff").replace("\r\n", "\n"))
    reply, cut = open_reply(split, finish_reason)
    text = _remove_tags(_remove_fences(_remove_quotation(split.answer), reply))
    if not text.strip():
        if not split.is_open:
            reply.reject(cut or "empty reply", "")
        return reply
    layout = Layout(text)
    if not layout.starts or layout.has_fields_before(layout.starts[0].start):
        preface, rest = split_preface(text)
        if preface and not begins_with_heading(rest):
            reply.reject(PREFACE, preface)
            text = rest
        layout = Layout(f"{first_number}. Instruction:{text}", is_implied=True)
    _add_tasks(layout, reply, cut, first_number)
    return reply


def _add_tasks(layout: Layout, reply: Reply, cut: str | None, first_number: int) -> None:
    """Adds the tasks of a reply, and its other parts with reasons."""
    parts = layout.split(first_number, is_cut=cut is not None)
    for place, part in enumerate(parts, start=1):
        text = layout.text[part.start : part.end].strip()
        task = layout.parse(part)
        if part.is_cut:
            reply.reject(str(cut), text)
        elif task is None:
            reply.reject(part.reason or NOT_A_TASK, text)
        else:
            output, remark = split_closing(task, is_last=place == len(parts))
            if remark:
                task = replace(task, output=output)
                reply.reject(REMARK, remark)
            reply.add(task, rule_broken(task), text)


def _remove_quotation(text: str) -> str:
    """Returns a text without Markdown's > before its lines.

    Separators may lack it, and the first line, which continues the prompt's, if it does not stand
    before headings alone.
    """
    lines = [line for line in text.strip().split("\n") if line]
    spoken = [line for line in lines[1:] if re.search(r"\w", line)]
    heads = len(find_headings(text))
    if all(line.startswith(">") for line in lines) or (
        2 * len(spoken) >= 3 * heads > 0 and all(line.startswith(">") for line in spoken)
    ):
        return _QUOTED.sub("", text.strip())
    return text


def _remove_tags(text: str) -> str:
    """Returns a text without the lines <tasks>, </tasks> of tags that an Instruction follows."""
    while (opening := _WRAPPER.match(text)) and (heads := find_headings(text)):
        if _next_line(text, opening.end() - 1) != heads[0].start:
            inner = _WRAPPER.match(text, opening.end())
            if inner is None or _next_line(text, inner.end() - 1) != heads[0].start:
                break
        text = re.sub(rf"^[ \t]*</?{opening[1]}>[ \t]*$", "", text, flags=re.MULTILINE)
    return text


def _remove_fences(text: str, reply: Reply) -> str:
    """Returns a text without code fences around all of it or around its tasks.

    Such a fence is the first line, or the line above an Instruction heading; what stands between
    the end of one and the next task is a remark.
    """
    fences = list(_FENCE.finditer(text))
    if not fences:
        return text
    begins = _find_wrappers(text, fences)
    pieces, at = [], 0
    for number, after in zip(begins, [*begins[1:], len(fences)], strict=False):
        pieces.append(text[at : fences[number].start()])
        at = fences[number].end()
        limit = fences[after].start() if after < len(fences) else len(text)
        last = fences[after - 1]
        if (after - number) % 2 == 0 and last[0].strip().strip("`") == "":
            between = text[last.end() : limit]
            if re.search(r"\w", between) and not find_headings(between):
                reply.reject(REMARK, between.strip())
                between = "\n"
            pieces += [text[at : last.start()], between]
            at = limit
    return "".join([*pieces, text[at:]])


def _find_wrappers(text: str, fences: list[re.Match[str]]) -> list[int]:
    """Returns the numbers of the fences that open a block around tasks.

    One above a heading closes an output's code instead, if such a block is open.
    """
    heads = {head.start for head in find_headings(text) if head.field == "instruction"}
    begins: list[int] = []
    since, last_end = 0, 0  # fences since the last wrapper began; where the last fence ends
    for number, fence in enumerate(fences):
        is_bare = not fence[0].strip().strip("`")
        is_apart = not number or not re.search(r"\w", text[last_end : fence.start()])
        is_first = not number and not text[: fence.start()].strip()
        above = _next_line(text, fence.end()) in heads
        if is_first or (above and (not is_bare or is_apart or since % 2 == 0)):
            begins.append(number)
            since = -1
        since, last_end = since + 1, fence.end()
    return begins


def _next_line(text: str, at: int) -> int:
    """Returns where the next line that is not blank begins."""
    found = _BLANK_LINES.match(text, at)
    return found.end() if found else at
