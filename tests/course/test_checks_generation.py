"""The exercises of lesson 01: likely wrong answers get a hint of their own, never the answer."""

from __future__ import annotations

import json
import os
import re

import pytest

from alpaca_lib.course.checks import generation as check
from alpaca_lib.dataset import rouge_l
from alpaca_lib.generation.reasoning import split_reasoning
from alpaca_lib.records import Example


@pytest.fixture
def judge(capsys):
    """Runs a check and returns what it printed."""

    def run(name, *answers):
        getattr(check, name)(*answers)
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (0.75, "in any order"),
        (0.6, "all different words"),
        (4 / 7, "LCS / m alone"),
        (4 / 9, "LCS / n alone"),
        (0.508, "harmonic mean"),
        (0.875, "different words"),
        (4, "length of the LCS"),
        (0.3, "longest sequence"),
        ("0.5", "that is str"),
    ],
)
def test_rouge_by_pencil(judge, answer, hint):
    said = judge("rouge", answer)
    assert said.startswith("Not yet: ") and hint in said
    assert "0.5" not in said
    assert judge("rouge", 0.5).startswith("Right: ")


def novel(
    is_near=lambda score, limit: score > limit, forgets=False, remembers=False, changes=False
):
    """A novelty filter with one fault."""

    def keep_novel(instructions, known, threshold):
        pool, kept = known if changes else list(known), []
        for text in instructions:
            near = any(is_near(rouge_l(text, other), threshold) for other in pool)
            if not near:
                kept.append(text)
            if (not near and not forgets) or remembers:
                pool.append(text)
        return kept

    return keep_novel


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (novel(lambda score, limit: score >= limit), "exactly the threshold"),
        (novel(forgets=True), "known from then on"),
        (novel(remembers=True), "a dropped text is not a known one"),
        (novel(changes=True), "changes the list `known`"),
        (lambda instructions, known, threshold: list(instructions), "every known instruction"),
        (lambda instructions, known, threshold: None, "returns None"),
        ([], "a function is wanted"),
    ],
)
def test_the_novelty_filter(judge, answer, hint):
    said = judge("novelty", answer)
    assert said.startswith("Not yet: ") and hint in said
    assert judge("novelty", novel()).startswith("Right: ")


COUNTS = {0.3: 410, 0.5: 520, 0.7: 520, 0.9: 551}


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        ({0.7: 520}, "no count for 0.3, 0.5, 0.9"),
        ({**COUNTS, 0.9: 520}, "not the number at 0.9"),  # one index for all
        (520, "that is int"),
    ],
)
def test_thresholds(judge, answer, hint):
    said = judge("thresholds", answer)
    assert said.startswith("Not yet: ") and hint in said
    assert not any(str(count) in said for count in COUNTS.values())
    assert judge("thresholds", COUNTS).startswith("Right: ")


def answer_of(reply):
    _, mark, answer = reply.partition("</think>")
    is_cut = reply.lstrip().startswith("<think>") and not mark
    return answer if mark else "" if is_cut else reply


def removed(pattern, flags=re.DOTALL):
    """A function that removes what a pattern finds."""
    return lambda reply: re.sub(pattern, "", reply, flags=flags)


def looks_for_both(reply):
    """As vLLM 0.7.2."""
    return removed("<think>.*?</think>")(reply) if "<think>" in reply else reply


def empty_if_open(reply):
    """Takes every opening mark for reasoning that was cut off."""
    return "" if "<think>" in reply and "</think>" not in reply else answer_of(reply)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (looks_for_both, "only `</think>` is here"),
        (lambda reply: reply.partition("</think>")[2], "no reasoning in this reply"),
        (removed("<think>.*</think>", flags=0), "on different lines"),
        (lambda reply: reply.partition("</think>")[2] or reply, "before `</think>`"),
        (lambda reply: answer_of(reply) and reply.split("</think>")[-1], "of both marks"),
        (empty_if_open, "a word of the answer"),
        (lambda reply: None, "returns None"),
        (lambda reply: reply.split("</think>"), "that is list"),
    ],
)
def test_reasoning_of_a_reply(judge, answer, hint):
    said = judge("reasoning", answer)
    assert said.startswith("Not yet: ") and hint in said
    assert judge("reasoning", answer_of).startswith("Right: ")


def test_the_library_separates_these_replies_alike():
    for reply, answer, _ in check.THOUGHTFUL_REPLIES:
        assert split_reasoning(reply).answer.strip() == answer.strip()


def parse(reply, number):
    pieces = re.split(
        r"^(\d+)\. (Instruction|Input|Output):", f"{number}. Instruction:{reply}", flags=re.M
    )[1:]
    heads = list(zip(pieces[0::3], pieces[1::3], pieces[2::3], strict=True))
    found = []
    for three in zip(heads, heads[1:], heads[2:], strict=False):
        numbers, names, texts = zip(*three, strict=True)
        if names == ("Instruction", "Input", "Output") and len(set(numbers)) == 1:
            found.append(texts[0].strip())
    return found


def split_at(separator, by_place=False):
    """A parser that splits at a separator, as the lesson's and Stanford's do."""

    def parse(reply, number):
        found = []
        for entry in re.split(separator, f"{number}. Instruction:{reply}", flags=re.MULTILINE):
            digits = str(number) if by_place else r"\d+"
            head = rf"{digits}\. (?:Instruction|Input|Output):"
            parts = re.split(head, entry)
            if len(parts) == 4:
                found.append(parts[1].strip())
            number += 1
        return found

    return parse


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (split_at("###", by_place=True), "a ##"),
        (split_at("^##+$", by_place=True), "number 5 is skipped"),
        (split_at("##+"), "### stands in an input"),
        (lambda reply, number: re.findall(r"Instruction: (.+)", reply), "nothing is wrong"),
        (lambda reply, number: None, "returns None"),
    ],
)
def test_the_parser(judge, answer, hint):
    said = judge("parser", answer)
    assert said.startswith("Not yet: ") and hint in said
    assert judge("parser", parse).startswith("Right: ")


def ask_with(attempts=5, wait=lambda attempt, error: max(2.0**attempt, error.retry_after), **fault):
    """A function that retries, with one fault."""

    def ask(send, sleep):
        for attempt in range(attempts):
            try:
                return send()
            except check.ApiError as error:
                is_busy = error.status == 429 or error.status >= 500
                has_credit = error.code != "insufficient_quota" or fault.get("ignores_code")
                is_last = attempt == attempts - 1 and not fault.get("swallows")
                if not (is_busy or fault.get("always")) or not has_credit or is_last:
                    raise
                sleep(wait(attempt, error))
        return None

    return ask


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (ask_with(100, always=True), "a wrong key (401) was tried 41 times"),
        (ask_with(ignores_code=True), "without credit (429) was tried 5 times"),
        (ask_with(1), "and then an answer: retry"),
        (ask_with(wait=lambda attempt, error: 2.0), "wait longer before each"),
        (ask_with(30), "a server that is down was tried 30 times"),
        (ask_with(swallows=True), "after the last attempt raise"),
        (ask_with(wait=lambda attempt, error: 2.0**attempt), "asked to wait 90 seconds"),
        (lambda send, sleep: None, "return what send() returns"),
    ],
)
def test_retries(judge, answer, hint):
    said = judge("retries", answer)
    assert said.startswith("Not yet: ") and hint in said
    assert judge("retries", ask_with()).startswith("Right: ")


def in_place(tasks, path):
    with open(path, "w", encoding="utf-8") as stream:
        json.dump(tasks, stream)


def at_once(tasks, path):
    path.write_text(json.dumps(tasks), encoding="utf-8")


def renamed(tasks, path):
    work = path.with_name("new.json")
    in_place(tasks, work)
    os.replace(work, path)


def untidy(tasks, path):
    renamed(tasks, path)
    for name in ("a.tmp", "b.tmp"):
        path.with_name(name).write_text("")


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (in_place, "the old file is gone"),
        (at_once, "written in place"),
        (untidy, "leaves a file behind"),
        (lambda tasks, path: None, "no file was written"),
        (lambda tasks, path: path.write_text(str(tasks)), "the file differs"),
    ],
)
def test_saving(judge, answer, hint):
    said = judge("saving", answer)
    assert said.startswith("Not yet: ") and hint in said
    assert judge("saving", renamed).startswith("Right: ")


def count_words(text):
    spaced = re.sub(r"([\u4e00-\u9fff])", r" \1 ", text)
    return sum(any(c.isalnum() for c in word) for word in spaced.split())


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda text: 3 < len(text.split()) <= 150 and text[0].isascii(), "eleven characters"),
        (lambda text: 3 < len(text) <= 150 and text[0].isalnum(), "English instruction of three"),
        (lambda text: 3 < count_words(text) <= 150 and text[0].isascii(), "eleven characters"),
        (lambda text: 3 < count_words(text) <= 150, "starts with a symbol"),
        (
            lambda text: (
                text[0].isalnum()
                and 3 < len(re.sub(r"([^\x00-\xff])", r" \1 ", text).split()) <= 150
            ),
            "and a question mark",
        ),
    ],
)
def test_lengths(judge, answer, hint):
    said = judge("lengths", answer)
    assert said.startswith("Not yet: ") and hint in said
    right = judge("lengths", lambda text: text[0].isalnum() and 3 < count_words(text) <= 150)
    assert right.startswith("Right: ")


BAD = [Example(f"What is number {n}?", "", "No, no, no, no, no, no.") for n in range(10)]


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda task: False, "drops nothing yet"),
        (lambda task: True, "drops 520 of the course's 520 rows"),
        (lambda task: task.instruction == BAD[0].instruction, "finds 1 of 10"),
    ],
)
def test_a_rule_of_ones_own(judge, answer, hint):
    said = judge("rule", answer, BAD)
    assert said.startswith("Not yet: ") and hint in said
    said = judge("rule", lambda task: task.output.count("No, no") > 0, BAD)
    assert said.startswith("Right: it drops 10 of 10 and 0 of 520")
