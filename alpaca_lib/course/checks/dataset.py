"""Judges the exercises of lesson 02: ROUGE-L, tokenizers, loaders, stop sequences, detectors."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from rapidfuzz.distance import LCSseq

from alpaca_lib.course.checks.verdict import (
    Hint,
    exercise,
    need,
    need_answer,
    need_number,
    need_same,
)
from alpaca_lib.dataset import rouge_l, tokenize

# Exercise 1: all words of A occur in B, in another order.
ORDER_A = "Sort these dates from oldest to newest"
ORDER_B = "From newest to oldest, sort these five dates and give a reason"
TOKENS, THRESHOLD = 20, 0.7  # exercise 2


@exercise
def rouge_by_hand(answer: float) -> str:
    """Decides whether exercise 1 is solved: the ROUGE-L of two sentences."""
    need_answer(answer, (int, float))
    a, b = tokenize(ORDER_A), tokenize(ORDER_B)
    bag, common = sum((Counter(a) & Counter(b)).values()), LCSseq.similarity(a, b)
    wrong = {
        2 * bag / (len(a) + len(b)): "that counts shared words in any order; a subsequence keeps "
        "the order of both texts",
        common / len(b): "that is the precision; F is the harmonic mean of precision and recall",
        common / len(a): "that is the recall; F is the harmonic mean of precision and recall",
        (common / len(a) + common / len(b)) / 2: "that is the arithmetic mean of precision and "
        "recall; F is their harmonic mean",
        float(common): "that is the length of the subsequence; F divides by the lengths of both",
    }
    for value, hint in wrong.items():
        need(abs(float(answer) - value) > 0.005, hint)
    hint = (
        "write both sentences as lists of words, cross out what is not in the longest common "
        "subsequence, and count: F = 2L / (m + n)"
    )
    need_number(answer, rouge_l(ORDER_A, ORDER_B), hint, tolerance=0.02)
    return (
        "counted without order these two would be above 0.7 and one would be dropped, though they "
        "ask for opposite things."
    )


@exercise
def longest_partner(answer: int) -> str:
    """Decides whether exercise 2 is solved: the largest length with F above 0.7."""
    need_answer(answer, (int, float))

    def can_be_above(n: int) -> bool:
        return 2 * min(TOKENS, n) / (TOKENS + n) > THRESHOLD

    lengths = [n for n in range(1, 10 * TOKENS) if can_be_above(n)]
    exact = 2 * TOKENS / THRESHOLD - TOKENS
    whole = "a number of tokens is whole, and F has to be above the threshold, not at it"
    need(float(answer) not in (lengths[-1] + 1, round(exact, 1), round(exact, 2)), whole)
    need(
        float(answer) not in (lengths[0], lengths[0] - 1),
        "that is near the shortest partner; the longest one is wanted",
    )
    need(
        int(answer) not in (int(TOKENS / THRESHOLD), int(TOKENS / THRESHOLD) + 1),
        "that bounds the precision alone; F divides 2L by the sum of both lengths",
    )
    hint = "set L to the largest value that it can have, min(m, n), and solve F > 0.7 for n"
    need_number(answer, lengths[-1], hint)
    return (
        "pairs of other lengths need no comparison. A filter that uses this, and the same idea "
        "for shared words, skips most pairs and decides exactly alike."
    )


PAIRS = (
    ("name three rivers", "name three rivers"),
    ("a b c d e", "e d c b a"),
    ("b a b a", "a b a b a"),
    ("the cat sat on the mat", "on the mat the cat sat"),
    ("x a b c", "a y b z c x"),
    ("", "a b"),
    ("a b", ""),
    ("p q", "r s"),
    ("a c b", "a b c b"),
)


@exercise
def shared_words(answer: Callable[[list[str], list[str]], list[str]]) -> str:
    """Decides whether exercise 3 is solved: one longest common subsequence of two lists."""
    need_answer(answer)
    need(callable(answer), "define the function shared_words")
    for first, second in PAIRS:
        a, b = first.split(), second.split()
        got = answer(list(a), list(b))
        need(got is not None, "your function returns None: write it, and end with `return`")
        need(isinstance(got, list), f"that is {type(got).__name__}; a list of words is wanted")
        shown = f"for {a} and {b} your function returns {got}: "
        if not (_is_part(got, a) and _is_part(got, b)):
            turned = _is_part(got[::-1], a) and _is_part(got[::-1], b)
            need(not turned, shown + "backwards. The way through the table starts at its end")
            raise Hint(shown + "not in that order in both. Take a word only where both move on")
        need(
            len(got) == LCSseq.similarity(a, b),
            shown + "a longer one exists. Compare best[i - 1][j] with best[i][j - 1]",
        )
    return (
        "the length alone decides, but the words show why: print them for pairs near the "
        "threshold and you see whether they share a task or only a form of words."
    )


def _is_part(part: Sequence[str], text: Sequence[str]) -> bool:
    """Returns whether a list is a subsequence of another."""
    rest = iter(text)
    return all(word in rest for word in part)


@exercise
def false_duplicates(answer: int) -> str:
    """Decides whether exercise 4 is solved: the true near-duplicates among the pairs."""
    from alpaca_lib.course.notebooks import REPO
    from alpaca_lib.dataset import near_pairs
    from alpaca_lib.records import load_examples

    need_answer(answer, (int, float))
    rows = [e.instruction for e in load_examples(REPO / "data" / "chinese_120.json")]
    reported = near_pairs(rows, THRESHOLD, "rouge")
    need(answer != len(reported), "that is how many are reported. Print their tokens, too")
    need_number(
        answer,
        len(near_pairs(rows, THRESHOLD, "unicode")),
        "read the pairs, or a translation of them: do the two rows ask for the same?",
    )
    return (
        "a tokenizer that does not know a script fails both ways: most pairs are never compared, "
        "and rows that share one number are equal."
    )


TEXTS = (
    ("Name three rivers in 2024!",),
    ("",),
    ("给我写一首诗",),
    ("请用 Python 3 写一首诗。",),
    ("你好，世界！",),
    ("Un café, s'il vous plaît",),
    ("Назови три реки",),
)


@exercise
def tokens(answer: Callable[[str], list[str]]) -> str:
    """Decides whether exercise 5 is solved: a tokenizer that knows other scripts."""
    need_answer(answer)
    need(callable(answer), "define the function tokens")
    chinese = answer("给我写一首诗")
    need(
        chinese != ["给我写一首诗"],
        "a Chinese sentence is one token now: two sentences that differ in one character would "
        "share nothing. Chinese has no spaces between words",
    )
    english = answer("Name three rivers.")
    need(
        isinstance(english, list) and english[:1] != ["N"] and english[:1] != ["n"],
        "English is cut into letters now, so unrelated texts would share most of them",
    )
    need_same(
        answer,
        lambda text: tokenize(text, "unicode"),
        TEXTS,
        "tokens({arguments}) is {got}. Every letter and digit belongs to a token, in lower case; "
        "punctuation does not",
    )
    return "identical texts now score 1.0 in every script, and English scores are as before."


LIST = "1. torch\n2. soap\n20. card games\n21. maps"
BODY = "4. Instruction: Pack.\n4. Input:\n<noinput>\n4. Output:\n"
NEXT = "20. Instruction: Name a river.\n20. Input:\n<noinput>\n20. Output:\nThe Nile."
REPLIES = (
    (BODY + "In 1920. Then came 1921.\n###\n" + NEXT, "an answer that holds a year before a stop"),
    (BODY + LIST, "an answer with a numbered list"),
    (BODY + "Twenty is written 20. That is all.", "an answer with a number at the end"),
    (BODY + LIST + "\n###\n" + NEXT, "a list, and after it the 20th task"),
    (BODY + "Open it with 20. Instruction: in a line.", "a heading quoted inside a line"),
    (BODY + "So it says:\n120. Instruction: no.", "a larger number"),
    (BODY + "Soap.\n###\n" + NEXT, "the 20th task alone"),
    ("", "an empty reply"),
)


@exercise
def before_the_20th(answer: Callable[[str], str]) -> str:
    """Decides whether exercise 6 is solved: where a list of tasks ends."""
    need_answer(answer)
    need(callable(answer), "define the function before_the_20th")
    for reply, what in REPLIES:
        got = answer(reply)
        need(isinstance(got, str), f"that returns {type(got).__name__}; text is wanted")
        right = re.split(r"^20\. Instruction:", reply, maxsplit=1, flags=re.MULTILINE)[0]
        if got.rstrip() == right.rstrip():
            continue
        if len(got.rstrip()) < len(right.rstrip()):
            raise Hint(f"{what} is cut: your result ends in {got[-25:]!r}")
        raise Hint(f"{what} is not ended where it should be: your result ends in {got[-25:]!r}")
    return (
        "a heading at the start of a line ends a task, a number does not. Better still: send no "
        "stop sequence, and parse the complete reply."
    )


GOOD_ROWS = (
    {"instruction": "Say hello.", "input": "", "output": "Hello."},
    {"instruction": "Say nothing.", "output": ""},
    {"instruction": "Shorten it.", "input": "Good morning to you.", "output": "Morning."},
)
BAD_ROW = {"instruction": "Say goodbye.", "input": "", "ouput": "Goodbye."}


@exercise
def load_rows(answer: Callable[[list[dict[str, str]]], list[tuple[str, str, str]]]) -> str:
    """Decides whether exercise 7 is solved: a loader that refuses a row without an output."""
    need_answer(answer)
    need(callable(answer), "define the function load_rows")
    try:
        got = answer([dict(row) for row in GOOD_ROWS])
    except Exception as error:
        raise Hint(
            f"three sound rows raise {type(error).__name__}: {error}. An empty or missing input "
            "is allowed; so is an output that somebody wrote as empty"
        ) from None
    right = [(r["instruction"], r.get("input", ""), r["output"]) for r in GOOD_ROWS]
    need(got is not None, "your function returns None: end with `return`")
    need(
        [tuple(row) for row in got] == right,
        f"of {len(right)} sound rows (one without input, one with an empty output) your function "
        f"returns {len(got)}, or changes one; it should return all as they are",
    )
    for place in (2, 4):
        rows: list[dict[str, str]] = [dict(row) for row in GOOD_ROWS]
        rows.insert(place - 1, dict(BAD_ROW))
        _need_refusal(answer, rows, place)
    return (
        "the message names the row and its keys, so the fix takes a minute; an empty answer would "
        "have been trained, and no number would have shown it."
    )


def _need_refusal(answer: Callable[..., Any], rows: list[dict[str, str]], place: int) -> None:
    """Raises Hint unless a function refuses rows with a ValueError that names the bad one."""
    try:
        got = answer(rows)
    except KeyError:
        raise Hint("a KeyError names neither the row nor what the row has instead") from None
    except ValueError as error:
        text = str(error)
        need("ouput" in text, "say which keys the row has: then a spelling mistake is seen")
        need(
            re.search(rf"(?<!\d){place}(?!\d)", text),
            f"name the row: people count rows from 1. Your message is {text!r}",
        )
        return
    dropped = len(got) < len(rows)
    need(not dropped, "a row without output disappears without a message: raise ValueError")
    raise Hint("the row whose key is `ouput` is loaded with an answer that nobody wrote")


SPACES = "[\\s\u200c]"
SIDES = (
    ("  two  words \n",),
    ("\u200c \u200c\tx\u200cy \u200c \u200c",),
    ("\u3000全角 空格\u3000\xa0",),
    ("none",),
    ("",),
    (" \n\t \u200c",),
)
SECONDS = 0.2  # for 20,000 spaces; a linear function needs a thousandth


@exercise
def trim(answer: Callable[[str], str]) -> str:
    """Decides whether exercise 8 is solved: the same result in linear time."""
    need_same(
        answer,
        lambda text: re.sub(f"^{SPACES}+|{SPACES}+$", "", text),
        SIDES,
        "trim({arguments}) is {got}; the result should stay that of the pattern. It removes "
        "white space of every script and U+200C, in any mixture, at both ends only",
    )
    for text in ("a" + " " * 20_000 + "b", "a" + "\u200c" * 20_000 + "b"):
        start = time.thread_time()
        answer(text)
        need(
            time.thread_time() - start < SECONDS,
            "the results are right, but 20,000 spaces inside a text take too long. A search "
            "begins again at each of them; possessive quantifiers do not change that",
        )
    return (
        "this reads each character at most once. Detectors run on texts that strangers wrote: "
        "time them on long runs of one character."
    )
