"""The checks of lesson 02's exercises: a likely wrong answer gets its own hint."""

from __future__ import annotations

import re
import string

import pytest

from alpaca_lib.course.checks import dataset as check
from alpaca_lib.course.checks.verdict import verdicts


def judge(capsys, name, answer):
    """Returns (right, text) of a check."""
    getattr(check, name)(answer)
    return verdicts[f"dataset.{name}"], capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "answer", "hint"),
    [
        ("rouge_by_hand", 14 / 19, "in any order"),
        ("rouge_by_hand", 3 / 12, "that is the precision"),
        ("rouge_by_hand", 3 / 7, "that is the recall"),
        ("rouge_by_hand", 0.339, "arithmetic mean"),
        ("rouge_by_hand", 3, "the length of the subsequence"),
        ("rouge_by_hand", 0.5, "cross out"),
        ("rouge_by_hand", "0.3", "float is wanted"),
        ("longest_partner", 38, "above the threshold, not at it"),
        ("longest_partner", 37.14, "a number of tokens is whole"),
        ("longest_partner", 28, "bounds the precision alone"),
        ("longest_partner", 11, "near the shortest"),
        ("longest_partner", 60, "set L to the largest"),
        ("false_duplicates", 2, "how many are reported"),
        ("false_duplicates", 1, "ask for the same"),
    ],
)
def test_a_number_that_is_wrong_gets_its_hint(capsys, name, answer, hint):
    right, text = judge(capsys, name, answer)
    assert not right and hint in text
    assert not re.search(r"0\.31|0\.32|\b37\b", text), "the hint holds the answer"


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("rouge_by_hand", 0.32),
        ("rouge_by_hand", 6 / 19),
        ("longest_partner", 37),
        ("false_duplicates", 0),
    ],
)
def test_a_right_number_passes(capsys, name, answer):
    assert judge(capsys, name, answer)[0]


def greedy(a, b):
    """Takes each word of a at its next place in b: a subsequence, not always the longest."""
    found, at = [], 0
    for word in a:
        if word in b[at:]:
            at = b.index(word, at) + 1
            found.append(word)
    return found


def longest(a, b, better=lambda first, second: first if len(first) >= len(second) else second):
    """Another oracle, by recursion from the front."""
    if not a or not b:
        return []
    if a[0] == b[0]:
        return [a[0], *longest(a[1:], b[1:], better)]
    return better(longest(a[1:], b, better), longest(a, b[1:], better))


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda a, b: [word for word in a if word in b], "not in that order in both"),
        (greedy, "a longer one exists"),
        (lambda a, b: longest(a, b)[::-1], "backwards"),
        (lambda a, b: len(longest(a, b)), "a list of words is wanted"),
        (lambda a, b: None, "returns None"),
        ("shared_words", "define the function"),
    ],
)
def test_other_subsequences_get_a_hint(capsys, answer, hint):
    right, text = judge(capsys, "shared_words", answer)
    assert not right and hint in text


def test_any_longest_subsequence_passes(capsys):
    assert judge(capsys, "shared_words", longest)[0]
    prefer_later = lambda x, y: x if len(x) > len(y) else y  # noqa: E731
    assert judge(capsys, "shared_words", lambda a, b: longest(a, b, prefer_later))[0]


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda text: re.findall(r"\w+", text.lower()), "one token now"),
        (lambda text: [c for c in text.lower() if c.isalnum()], "cut into letters"),
        (lambda text: re.findall(r"[\u4e00-\u9fff]|[a-z0-9]+", text.lower()), "Every letter"),
        (lambda text: re.findall(r"[\u4e00-\u9fff]|[^\W\u4e00-\u9fff]+", text), "lower case"),
        (lambda text: re.findall(r"[\u4e00-\u9fff]|\S+", text.lower()), "punctuation does not"),
    ],
)
def test_tokenizers_that_lose_or_merge_get_a_hint(capsys, answer, hint):
    right, text = judge(capsys, "tokens", answer)
    assert not right and hint in text


def test_a_tokenizer_of_letters_and_characters_passes(capsys):
    pattern = re.compile(r"[\u4e00-\u9fff]|[^\W_\u4e00-\u9fff]+")
    assert judge(capsys, "tokens", lambda text: pattern.findall(text.lower()))[0]


def cut_at(pattern, flags=re.MULTILINE):
    return lambda reply: re.split(pattern, reply, maxsplit=1, flags=flags)[0]


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (cut_at(r"20\."), "a year before a stop is cut"),
        (cut_at(r"^20\."), "a numbered list is cut"),
        (cut_at(r"20\. Instruction:"), "quoted inside a line is cut"),
        (cut_at(r"^\d*20\. Instruction:"), "a larger number is cut"),
        (lambda reply: reply, "is not ended where it should be"),
        (lambda reply: reply.split("\n20. Instruction:"), "text is wanted"),
    ],
)
def test_other_ends_of_a_reply_get_a_hint(capsys, answer, hint):
    right, text = judge(capsys, "before_the_20th", answer)
    assert not right and hint in text


def test_a_heading_at_the_start_of_a_line_passes(capsys):
    assert judge(capsys, "before_the_20th", cut_at(r"^20\. Instruction:"))[0]
    assert judge(capsys, "before_the_20th", lambda r: r.split("\n20. Instruction:")[0])[0]


def load(rows, keep=lambda row: True, test=lambda row: "output" not in row, text="{n} {keys}"):
    found = []
    for n, row in enumerate(rows, 1):
        if test(row):
            raise ValueError(text.format(n=n, m=n - 1, keys=list(row)))
        if keep(row):
            found.append((row["instruction"], row.get("input", ""), row.get("output", "")))
    return found


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda rows: load(rows, test=lambda row: not row.get("output")), "three sound rows raise"),
        (lambda rows: load(rows, keep=lambda row: row.get("input")), "returns 1"),
        (lambda rows: load(rows, lambda r: "output" in r, lambda r: False), "without a message"),
        (lambda rows: load(rows, test=lambda row: False), "nobody wrote"),
        (lambda rows: [(r["instruction"], r.get("input", ""), r["output"]) for r in rows], "KeyEr"),
        (lambda rows: load(rows, text="no output in row {n}"), "which keys"),
        (lambda rows: load(rows, text="row {m} has {keys}"), "count rows from 1"),
        (lambda rows: None, "returns None"),
    ],
)
def test_loaders_that_hide_a_row_get_a_hint(capsys, answer, hint):
    right, text = judge(capsys, "load_rows", answer)
    assert not right and hint in text


def test_a_loader_that_names_the_row_passes(capsys):
    assert judge(capsys, "load_rows", load)[0]


JOINED = "\u200c"


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (str.strip, "the result should stay"),
        (lambda text: text.strip().strip(JOINED).strip(), "the result should stay"),
        (lambda text: text.strip(string.whitespace + JOINED), "white space of every script"),
        (lambda text: text.replace(JOINED, "").strip(), "at both ends only"),
        (lambda text: re.sub(rf"^[\s{JOINED}]++|[\s{JOINED}]++$", "", text), "possessive"),
    ],
)
def test_other_trims_get_a_hint(capsys, answer, hint):
    right, text = judge(capsys, "trim", answer)
    assert not right and hint in text


def test_a_pattern_that_begins_where_the_run_begins_passes(capsys):
    space = rf"[\s{JOINED}]"
    pattern = rf"^{space}+|(?<!{space}){space}+$"
    assert judge(capsys, "trim", lambda text: re.sub(pattern, "", text))[0]
