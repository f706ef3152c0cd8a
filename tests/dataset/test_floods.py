"""Floods of one character or pattern: every measure takes time in proportion to the text."""

from __future__ import annotations

import random

import pytest

from alpaca_lib.dataset.arithmetic import contains_value, evaluate, find_sum
from alpaca_lib.dataset.checks import check
from alpaca_lib.dataset.detectors import DETECTORS
from alpaca_lib.dataset.endings import ends_properly
from alpaca_lib.dataset.faults import find_faults
from alpaca_lib.dataset.languages import language_of
from alpaca_lib.dataset.statistics import first_word, shared_sentences
from alpaca_lib.dataset.verbs import find_verb_object
from alpaca_lib.records import Example, words
from tests.timing import timed

SIZE = 50_000  # characters; what grows with the square takes ten seconds or more
LIMIT = 1.0  # processor seconds for one measure of three such fields
PIECES = [
    *"\n\t \r\x0b a0A.,-+=*/()[]<>{}!?@#$%&|~`'\":;_^\\水。，\u200b\u0301",
    "a.", "a ", "a. ", "1.", "1. ", "1 ", "1-", "( ", "1x", "1 x ", "[a", "![", "[](", "<a", "##\n",
    "#\n", "##\n\n", "### ", "www.", "http://", "www.a.", "a@", "@a.", "a.a@", "a@a.", "-a", "\n1",
    "\n ", "\n#", "\n1.", "1. Input:", "1. Input:\n", "1. Output: ", "Instruction", "Instruction:",
    "<noinput", "< ", "no input", "none ", "I am sorry ", "sorry, ", "cannot be ", "model ",
    "the following ", "please ", "in a", "given the", "[insert ", "[insert a", "your name", "415-",
    "415-823-", "+1 ", "(415) ", "555", "<|im", "<|a|", "</s>", "[INST", "i have ", "sent ",
    "抱歉", "作为", "以下", "以下的", "无", "（", "word word word word", "e1", "1e1", "1.0e9", "20",
    "### Instruction", "the the ", "http://a.example.", "example.", "lorem ", "a, ", "x = 1\n",
]  # fmt: skip
ENDS = ["", "x", "\n!", "1 example.com", ") 20"]


def seconds(work):
    """Processor seconds of a call."""
    with timed() as spent:
        work()
    return spent.seconds


@pytest.mark.parametrize("piece", PIECES, ids=repr)
def test_a_flood_is_read_in_a_second(piece):
    """Every detector, in each field, whatever follows the flood."""
    flood = piece * (SIZE // len(piece))
    slow = {}
    for end in ENDS:
        text = flood + end
        example = Example(text, text, text)
        measures = {detector.kind: detector.find for detector in DETECTORS}
        for name, find in measures.items():
            if (took := seconds(lambda: list(find(example)))) > LIMIT:  # noqa: B023
                slow[name, end] = took
        for measure in (ends_properly, words, find_verb_object):
            if (took := seconds(lambda: measure(text))) > LIMIT:  # noqa: B023
                slow[measure.__name__, end] = took
        if (took := seconds(lambda: language_of(example))) > LIMIT:  # noqa: B023
            slow["language", end] = took
    assert not slow


@pytest.mark.parametrize(
    "text", ["\n" * 50_000, "a." * 20_000, "#" * 50_000, "水" * 50_000, "( " * 20_000]
)
def test_a_check_with_a_flood_takes_a_second(text):
    """The complete check of a set with one such row."""
    rows = [Example(f"Name the {n}th of the planets.", "", f"It is planet {n}.") for n in range(9)]
    for field in ("input", "output"):
        flooded = [*rows, Example(**{"instruction": "Say it.", "output": "x.", field: text + "x"})]
        assert seconds(lambda: check(flooded)) < 1  # noqa: B023
    assert seconds(lambda: check([*rows, Example("Say " + text, "", "It.")])) < 1
    assert seconds(lambda: shared_sentences(flooded, flooded)) < 1
    assert first_word("a" + text)


def test_random_mixtures():
    """Random repetitions of two pieces."""
    draw = random.Random(8)
    for _ in range(60):
        a, b = draw.choice(PIECES), draw.choice(PIECES)
        text = (a * draw.randint(1, 40) + b) * (SIZE // (20 * len(a) + len(b)) + 1)
        example = Example("Say it. " + text[:20_000], text[:SIZE], text[:SIZE])
        assert seconds(lambda: find_faults([example])) < 1, (a, b)  # noqa: B023


@pytest.mark.parametrize(
    "text",
    ["1.0e999999999", "1" * 10_000, "1/" + "3" * 9_000, "2.5e99999", "-" * 50_000 + "1"],
)
def test_huge_numbers_are_no_answers(text):
    """Neither computed, which would take all memory, nor an exception."""
    assert seconds(lambda: contains_value(text, evaluate("1 + 2"))) < 0.5
    assert not contains_value(text, evaluate("1 + 2"))


@pytest.mark.parametrize(
    "text",
    ["(" * 5_000 + "1 + 2" + ")" * 5_000, "1 + " * 20_000 + "1", "9^64^64", "1" * 9_000 + " + 1"],
)
def test_huge_sums_are_none(text):
    """No traceback of Python's parser."""
    assert seconds(lambda: (find_sum(text), evaluate(text))) < 2
    find_sum(text)
    evaluate(text)


def test_the_same_text_in_many_rows():
    """4,000 tasks about one text, and 4,000 tasks with one answer."""
    text = "The committee met on Tuesday and agreed on three points of order."
    draw = random.Random(3)
    names = ["".join(draw.choices("abcdefghij", k=6)) for _ in range(4_000)]
    rows = [Example(f"{a} {b} {c}", text, a) for a, b, c in zip(names, names[7:], names[99:])]  # noqa: B905
    assert seconds(lambda: find_faults(rows)) < 8
    rows = [Example("Sum up the minutes.", text, text) for _ in range(4_000)]
    faults = []
    assert seconds(lambda: faults.extend(find_faults(rows))) < 8
    assert sum(fault.kind == "repeated input" for fault in faults) == 3_999
    assert faults[-1].fix == "keep one of rows 1 and 4000"
