"""Judges the exercises of lesson 01: ROUGE-L, parsers, filters, retries, files."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from alpaca_lib.course import replays
from alpaca_lib.course.checks.verdict import (
    Hint,
    exercise,
    need,
    need_answer,
    need_number,
    need_same,
)
from alpaca_lib.course.notebooks import REPO
from alpaca_lib.dataset import NoveltyIndex, filter_novel, rouge_l
from alpaca_lib.records import Example, load_examples, words

RAIN = ("Explain to a child how rain forms.", "How does rain form? Explain it to a child.")
THRESHOLDS = (0.3, 0.5, 0.7, 0.9)


class ApiError(Exception):
    """Reports a request that a server refused.

    status: of HTTP. code: the server's own, if it gives one. retry_after: the seconds that it
    asks to wait; 0 if it asks for nothing.
    """

    def __init__(self, status: int, code: str = "", retry_after: float = 0.0) -> None:
        super().__init__(f"error {status} {code}".strip())
        self.status, self.code, self.retry_after = status, code, retry_after


def _need_function(answer: Any) -> None:
    need_answer(answer)
    need(callable(answer), f"that is {type(answer).__name__}; a function is wanted")


@exercise
def rouge(answer: Any) -> str:
    """Compares a number with the ROUGE-L of the two instructions about rain."""
    need_answer(answer, (int, float))
    hints = {
        0.75: "that counts words in common in any order; a subsequence keeps the order",
        0.6: "that divides the words in common by all different words; LCS needs the order, and "
        "F is 2 LCS / (m + n)",
        0.571: "that is LCS / m alone, one of the two shares; F combines both",
        0.444: "that is LCS / n alone, one of the two shares; F combines both",
        0.508: "that is the arithmetic mean of the two shares; F is their harmonic mean",
        0.875: "`form` and `forms` are different words here, and the order counts",
        4: "that is the length of the LCS; divide it as the formula says",
    }
    for wrong, hint in hints.items():
        need(abs(answer - wrong) > 0.002, hint)
    where = "mark in both lists of words the longest sequence that has the same order in both"
    need_number(answer, rouge_l(*RAIN), where, 0.002)
    return "the two ask for the same thing, and stay below 0.7: ROUGE-L sees words, not meaning"


@exercise
def novelty(answer: Any) -> str:
    """Runs keep_novel(instructions, known, threshold) on texts that the exercise does not show."""
    _need_function(answer)
    africa, asia = (f"Name three rivers that flow through {x}." for x in ("Africa", "Asia"))
    large = "Name three large rivers in Africa."
    ten = "One two three four five six seven eight nine ten."
    edge = "One two three four five six seven and no more."  # F is 0.7 exactly
    # The second is near the first and dropped; the third is near the second alone.
    chain = ["a b c d e f g h i j", "a b c d e f g h x y", "c d e f g h x y z w"]
    cases = [
        ([asia, large], [africa], 0.7, "compare with every known instruction"),
        ([edge], [ten], 0.7, "this one scores exactly the threshold, and is not above it"),
        ([ten, ten], [], 0.7, "these two are equal: a text that is kept is known from then on"),
        (chain, [], 0.7, "a dropped text is not a known one"),
        (["Sum up this text.", "Say it again."], ["sum up this TEXT"], 0.99, "use rouge_l"),
    ]
    for texts, known, threshold, hint in cases:
        given = list(known)
        got = answer(list(texts), given, threshold)
        need(got is not None, "your function returns None: end with `return`")
        need(given == known, "your function changes the list `known` of its caller; copy it first")
        decided = zip(texts, filter_novel(texts, known, threshold), strict=True)
        right = [text for text, decision in decided if decision.kept]
        need(list(got) == right, f"{hint}; of {texts} your function kept {got}")
    return "the first of two stays, so the order of the replies decides what is kept"


def _count_kept(threshold: float) -> int:
    """Returns how many of the course's tasks a threshold keeps."""
    seeds = load_examples(REPO / "data" / "seed_tasks.jsonl")
    index = NoveltyIndex([seed.instruction for seed in seeds], threshold)
    tasks = [task.instruction for task in replays.recorded_tasks()]
    return sum(decision.kept for decision in index.extend(tasks))


@exercise
def thresholds(answer: Any) -> str:
    """Compares {threshold: tasks kept} with the counts of the library."""
    need_answer(answer, dict)
    missing = [t for t in THRESHOLDS if t not in answer]
    need(not missing, f"there is no count for {', '.join(map(str, missing))} yet")
    for threshold in THRESHOLDS:
        right = _count_kept(threshold)
        hint = f"not the number at {threshold}: begin each count with a new index of the seeds"
        need_number(answer[threshold], right, hint)
    return "between 0.5 and 0.7 nothing changes: here the exact value of the threshold is not vital"


TASK = "4. Instruction: Name a river.\n4. Input:\n<noinput>\n4. Output:\nThe Nile.\n"
DRAFT = "First a draft.\n4. Instruction: Draw a river.\n###\nNo, it should need only text.\n"
TAGS = TASK.replace("The Nile.", "Put <think> before your notes and </think> after them.")
ONE_TAG = TASK.replace("The Nile.", "Begin your notes with <think>.")
THOUGHTFUL_REPLIES = (  # (reply, answer, what is odd)
    (TASK, TASK, "there is no reasoning in this reply, and all of it is the answer"),
    (f"<think>\n{DRAFT}</think>\n\n{TASK}", TASK, "both marks are there, on different lines"),
    (f"<think>\n\n</think>\n\n{TASK}", TASK, "the reasoning is empty"),
    (f"{DRAFT}</think>\n\n{TASK}", TASK, "the prompt held `<think>`, so only `</think>` is here"),
    (
        f"<think>\n{DRAFT}{DRAFT}",
        "",
        "this reply was cut off before `</think>`: all of it is drafts",
    ),
    (
        f"<think>\n{DRAFT}</think>\n{TAGS}",
        TAGS,
        "after its reasoning, the answer writes of both marks",
    ),
    (ONE_TAG, ONE_TAG, "`<think>` is a word of the answer here, not at the beginning"),
)


@exercise
def reasoning(answer: Any) -> str:
    """Runs answer_of(reply) on replies with and without reasoning."""
    _need_function(answer)
    for reply, right, what in THOUGHTFUL_REPLIES:
        got = answer(reply)
        need(got is not None, "your function returns None: end each branch with `return`")
        need_answer(got, str)
        cut = got.strip() if len(got) <= 60 else f"{got.strip()[:60]}..."
        need(got.strip() == right.strip(), f"{what}; your function returned {cut!r}")
    return "a closing mark ends reasoning even if another program wrote the opening one"


def _entry(number: int, text: str, close: str = "###\n") -> str:
    return (
        f"{number}. Instruction: {text}\n{number}. Input:\n<noinput>\n"
        f"{number}. Output:\nDone.\n{close}"
    )


def _reply(*entries: str) -> str:
    return "".join(entries).removeprefix("4. Instruction:").removesuffix("###\n")


RIVER, LAKE, SEA = "Name a river.", "Name a lake.", "Name a sea."
README = _entry(4, "Shorten it.").replace("<noinput>", "# Sorter\n### Usage\nRun it.")
NO_INPUT = _entry(5, LAKE).replace("5. Input:\n", "")
FAULTY_REPLIES: Any = (  # (entries, instructions, what is odd)
    ((_entry(4, RIVER), _entry(5, LAKE)), [RIVER, LAKE], "nothing is wrong in this reply"),
    ((_entry(4, RIVER, "##\n"), _entry(5, LAKE), _entry(6, SEA)), [RIVER, LAKE, SEA], "a ##"),
    (
        (_entry(4, RIVER), _entry(6, LAKE), _entry(7, SEA)),
        [RIVER, LAKE, SEA],
        "number 5 is skipped",
    ),
    ((_entry(4, RIVER), NO_INPUT, _entry(6, SEA)), [RIVER, SEA], "entry 5 has no input heading"),
    ((README, _entry(5, LAKE)), ["Shorten it.", LAKE], "### stands in an input"),
    ((), [], "the reply is empty"),
)


@exercise
def parser(answer: Any) -> str:
    """Runs parse(reply, number) on replies with one fault each."""
    _need_function(answer)
    for entries, right, what in FAULTY_REPLIES:
        got = answer(_reply(*entries), 4)
        need(got is not None, "your function returns None: end with `return found`")
        need(list(got) == right, f"{what}: of {len(right)} good tasks your parser returned {got}")
    return "headings say where a task begins; counting separators lets one fault spoil the rest"


class _Server:
    """Refuses a number of calls with an error, then answers; notes calls and waits."""

    def __init__(self, error: ApiError, refusals: int = 40) -> None:
        self.error, self.refusals, self.calls = error, refusals, 0
        self.waits: list[float] = []

    def send(self) -> str:
        """Answers, or raises the error."""
        self.calls += 1
        if self.calls <= self.refusals:
            raise self.error
        return "a reply"

    def sleep(self, seconds: float) -> None:
        """Notes a wait."""
        self.waits.append(seconds)


def _outcome(answer: Callable[..., Any], server: _Server) -> Any:
    try:
        return answer(server.send, server.sleep)
    except ApiError as error:
        return error


@exercise
def retries(answer: Any) -> str:
    """Runs ask(send, sleep) with servers that refuse for different reasons."""
    _need_function(answer)
    need(_outcome(answer, _Server(ApiError(500), 0)) == "a reply", "return what send() returns")
    for error, what in (
        (ApiError(401), "a wrong key (401)"),
        (ApiError(404), "an unknown model (404)"),
        (ApiError(429, "insufficient_quota"), "an account without credit (429)"),
    ):
        server = _Server(error)
        got = _outcome(answer, server)
        need(server.calls == 1, f"{what} was tried {server.calls} times; no retry can help there")
        need(got is error, f"{what}: raise the error, so that the reader sees it")
    for error in (ApiError(429, "rate_limit_exceeded"), ApiError(503)):
        server = _Server(error, 2)
        need(_outcome(answer, server) == "a reply", f"{error}, twice, and then an answer: retry")
        need(len(server.waits) == 2, "call sleep(seconds) once before each new attempt")
        need(server.waits[1] >= 1.5 * server.waits[0] > 0, "wait longer before each new attempt")
    server = _Server(ApiError(503))
    got = _outcome(answer, server)
    need(server.calls <= 10, f"a server that is down was tried {server.calls} times")
    need(server.calls >= 3, "a busy server deserves at least three attempts")
    need(got is server.error, "after the last attempt raise its error")
    server = _Server(ApiError(429, retry_after=90), 1)
    _outcome(answer, server)
    need(server.waits and server.waits[0] >= 90, "the server asked to wait 90 seconds")
    return "an error is retried only if the same request can succeed later; the rest is reported"


class _Killed(Exception):
    """Ends a write in the middle, as a kill does."""


class _Bomb(dict[str, Any]):
    """A task at which writing stops."""

    def items(self) -> Any:
        raise _Killed

    __iter__ = keys = values = items


@exercise
def saving(answer: Any) -> str:
    """Runs save(tasks, path) and interrupts it halfway through the file."""
    _need_function(answer)
    one = [{"instruction": f"Task {n}."} for n in range(3)]
    two = [*one, {"instruction": "Nenne drei Flüsse."}]
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "regen.json"
        answer(one, path)
        need(path.exists(), "no file was written")
        _need_rows(path, one)
        inode = path.stat().st_ino
        with contextlib.suppress(_Killed, TypeError, ValueError):
            answer([*two, _Bomb(instruction="x")], path)
        _need_rows(path, one, "the run was killed while it wrote, and the old file is gone")
        answer(two, path)
        _need_rows(path, two)
        hint = "the file is written in place: a kill between the first and the last byte breaks it"
        need(path.stat().st_ino != inode, hint)
        left = sorted(p.name for p in Path(name).iterdir() if p != path)
        need(len(left) <= 1, f"each save leaves a file behind: {', '.join(left)}")
    return "at every moment the name stands for one complete file, the old one or the new one"


def _need_rows(path: Path, rows: list[dict[str, Any]], hint: str = "the file differs") -> None:
    try:
        same = json.loads(path.read_text(encoding="utf-8")) == rows
    except (OSError, ValueError) as error:
        raise Hint(f"{hint} ({type(error).__name__})") from None
    need(same, hint)


LENGTHS = (
    ("Explain why ice floats on water.", "a plain English instruction"),
    ("Translate this word.", "an English instruction of three words"),
    ("word " * 151, "an English instruction of 151 words"),
    ("解释为什么冰浮在水面上。", "a Chinese instruction of eleven characters"),
    ("翻译。", "a Chinese instruction of two characters"),
    ("你好吗？", "a Chinese instruction of three characters and a question mark"),
    ("用Python写一个函数", "Chinese and English in one instruction"),
    ("字" * 151, "a Chinese instruction of 151 characters"),
    ("Écris un poème sur la mer.", "a French instruction"),
    ("- List four citrus fruits.", "an instruction that starts with a symbol"),
)


def _fits(instruction: str) -> bool:
    return instruction[0].isalnum() and 3 < words(instruction) <= 150


@exercise
def lengths(answer: Any) -> str:
    """Runs fits(instruction) on instructions in three languages."""
    for text, what in LENGTHS:
        verb = "should be kept" if _fits(text) else "should be dropped"
        need_same(answer, _fits, [(text,)], f"{what} {verb}: {{arguments}}")
    return "a filter that counts words of one language deletes the others without a message"


@exercise
def rule(answer: Any, bad: Sequence[Example]) -> str:
    """Counts what a rule drops: of bad tasks, and of the course's rows."""
    _need_function(answer)
    good = load_examples(REPO / "data" / "alpaca_520.json")
    found = [bool(answer(task)) for task in bad]
    wrong = [task for task in good if answer(task)]
    need(any(found) or wrong, "your rule drops nothing yet: return True for a task to drop")
    need(
        len(wrong) <= 5,
        f"your rule drops {len(wrong)} of the course's {len(good)} rows, five are allowed; one is: "
        f"{wrong[0].instruction if wrong else ''!r}",
    )
    need(2 * sum(found) >= len(bad), f"your rule finds {sum(found)} of {len(bad)}; find half")
    return (
        f"it drops {sum(found)} of {len(bad)} and {len(wrong)} of {len(good)}; these counts are of "
        "the tasks that you looked at, so expect less on new ones"
    )
