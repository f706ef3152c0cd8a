"""Checks whether a data set is good enough to train on: one line per requirement.

The limits are those that this course's own data meets. They suit sets of hundreds to thousands
of rows in Alpaca's format; each limit is a constant below.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean

from alpaca_lib.dataset.endings import ends_properly
from alpaca_lib.dataset.faults import find_faults
from alpaca_lib.dataset.proofs import prove
from alpaca_lib.dataset.rouge import THRESHOLD
from alpaca_lib.dataset.statistics import (
    Near,
    diversity,
    instructions_of,
    nearest,
    shared_sentences,
    shorten,
)
from alpaca_lib.records import Example, words

WITH_INPUT = (0.3, 0.5)  # share of the rows
MEAN_OUTPUT_WORDS = (45, 80)
LONGEST_OUTPUT_WORDS = 250
LARGEST_CATEGORY = 0.10  # share of the rows
SAME_FIRST_FOUR_WORDS = 4  # instructions
NEAREST = 0.5  # ROUGE-L within the set and to the sets that must stay apart
SAMPLES = 5  # random samples of another set


@dataclass(frozen=True)
class CheckResult:
    """The result of one requirement: the value found, the value required, the failing rows.

    ``passed`` is None for a line that is only information; ``rows`` describes each failing row.
    """

    name: str
    found: str
    required: str
    passed: bool | None
    rows: list[str] = field(default_factory=list)


def check(
    examples: Sequence[Example],
    apart: Mapping[str, Sequence[Example]] | None = None,
    foreign: Mapping[str, Sequence[Example]] | None = None,
    proofs: Mapping[str, str] | None = None,
    allowed: Iterable[Mapping[str, str]] = (),
    mode: str = "unicode",
) -> list[CheckResult]:
    """Returns the result of every requirement, in order.

    apart: sets by name that must not be near (seeds, held-out tasks). foreign: other people's
    sets by name; nothing may be copied from them, and the diversity of random samples of their
    rows is compared with this set's. proofs: Python by instruction, see ``prove``. allowed: hits
    of a detector that are correct, as {"fault", "instruction", "reason"}.
    """
    results = [*_check_shape(examples), *_check_variety(examples, mode)]
    for name, others in (apart or {}).items():
        results.append(_check_distance(f"nearest in {name}", examples, others, NEAREST, mode))
    for name, others in (foreign or {}).items():
        results.append(_check_distance(f"nearest in {name}", examples, others, THRESHOLD, "rouge"))
        results.append(_check_sentences(name, examples, others))
        results += _compare_diversity(name, examples, others)
    return [*results, _check_faults(examples, allowed), _check_proofs(examples, proofs or {})]


def _check_shape(examples: Sequence[Example]) -> list[CheckResult]:
    share = mean(bool(example.input) for example in examples)
    sizes = [words(example.output) for example in examples]
    low, high = WITH_INPUT
    least, most = MEAN_OUTPUT_WORDS
    inputs, lengths = f"{low:.0%} to {high:.0%}", f"{least} to {most}"
    average, limit = mean(sizes), LONGEST_OUTPUT_WORDS
    long = [f"row {row}: {size} words" for row, size in enumerate(sizes) if size > limit]
    ends = [(row, e.output[-50:]) for row, e in enumerate(examples) if not ends_properly(e.output)]
    cut = [f"row {row} ends: {end!r}" for row, end in ends]
    results = [
        CheckResult("rows", str(len(examples)), "", None),
        CheckResult("with an input", f"{share:.0%}", inputs, low <= share <= high),
        CheckResult("words per output, mean", f"{average:.1f}", lengths, least <= average <= most),
        CheckResult("words, longest output", str(max(sizes)), f"at most {limit}", not long, long),
        CheckResult("outputs cut off", str(len(cut)), "0", not cut, cut),
    ]
    if any("category" in example.extra for example in examples):
        counts = Counter(str(example.extra.get("category", "none")) for example in examples)
        name, count = counts.most_common(1)[0]
        share = count / len(examples)
        found = f"{share:.1%} ({name}, of {len(counts)})"
        required = f"at most {LARGEST_CATEGORY:.0%}"
        results.append(CheckResult("largest category", found, required, share <= LARGEST_CATEGORY))
    return results


def _check_variety(examples: Sequence[Example], mode: str) -> list[CheckResult]:
    starts = Counter(" ".join(e.instruction.lower().split()[:4]) for e in examples)
    limit = SAME_FIRST_FOUR_WORDS
    often = [f"{count} begin: {start!r}" for start, count in starts.most_common() if count > limit]
    most = str(max(starts.values()))
    return [
        CheckResult("share their first 4 words", most, f"at most {limit}", not often, often),
        _check_distance("nearest within the set", examples, None, NEAREST, mode),
    ]


def _check_distance(
    name: str,
    examples: Sequence[Example],
    others: Sequence[Example] | None,
    limit: float,
    mode: str,
) -> CheckResult:
    """Checks the distance of each instruction to those of ``others`` (None: of the set itself)."""
    mine = instructions_of(examples)
    theirs = mine if others is None else instructions_of(others)

    def describe(row: int, near: Near) -> str:
        return f"row {row}, {near.score:.2f}: {shorten(mine[row])} / {shorten(theirs[near.place])}"

    found = nearest(mine, None if others is None else theirs, mode)
    rows = [describe(row, near) for row, near in enumerate(found) if near.score > limit]
    highest = max((near.score for near in found), default=0.0)
    return CheckResult(name, f"{highest:.2f}", f"ROUGE-L at most {limit}", not rows, rows)


def _check_sentences(
    name: str, examples: Sequence[Example], others: Sequence[Example]
) -> CheckResult:
    shared = shared_sentences(examples, others)
    rows = [f"row {row}: {shorten(found[0], 70)}" for row, found in enumerate(shared) if found]
    return CheckResult(f"sentences also in {name}", str(len(rows)), "0", not rows, rows)


def _compare_diversity(
    name: str, examples: Sequence[Example], others: Sequence[Example]
) -> list[CheckResult]:
    """Compares the set's diversity with that of random samples of equal size of another set."""
    size = len(examples)
    if len(others) < size:
        return []
    own = diversity(examples, "rouge")
    draws = [random.Random(seed).sample(list(others), size) for seed in range(SAMPLES)]
    samples = [diversity(draw, "rouge") for draw in draws]
    results = []
    for label, attribute, form in (
        ("distinct first words", "first_words", "d"),
        ("distinct bigrams, instruction", "instruction_bigrams", "d"),
        ("distinct bigrams, output", "output_bigrams", "d"),
        ("ROUGE-L to the nearest, mean", "nearest", ".3f"),  # less is more varied
    ):
        value, theirs = getattr(own, attribute), [getattr(one, attribute) for one in samples]
        low, high = min(theirs), max(theirs)
        side, passed = ("under", value < low) if attribute == "nearest" else ("over", value > high)
        span = f"{side} {SAMPLES} x {size} rows of {name}: {low:{form}} to {high:{form}}"
        results.append(CheckResult(label, f"{value:{form}}", span, passed))
    return results


def _check_faults(examples: Sequence[Example], allowed: Iterable[Mapping[str, str]]) -> CheckResult:
    reasons = {(entry["fault"], entry["instruction"]) for entry in allowed if entry["reason"]}
    faults = find_faults(examples)
    left = [f for f in faults if (f.kind, examples[f.row].instruction) not in reasons]
    rows = [f"row {f.row}, {f.kind} in the {f.field}: {shorten(f.text)} ({f.fix})" for f in left]
    found = f"{len(left)} ({len(faults) - len(left)} with a listed reason)"
    return CheckResult("faults found", found, "0", not left, rows)


def _check_proofs(examples: Sequence[Example], proofs: Mapping[str, str]) -> CheckResult:
    """Runs the proof of each row that has one."""
    proved = [
        (row, prove(example, proofs[example.instruction]))
        for row, example in enumerate(examples)
        if example.instruction in proofs
    ]
    if not proved:
        return CheckResult("answers recomputed", "none has a proof", "", None)
    rows = [f"row {row}: {error}" for row, error in proved if error]
    found = f"{len(proved) - len(rows)} of {len(proved)} hold"
    return CheckResult("answers recomputed", found, "all", not rows, rows)


def format_results(results: Sequence[CheckResult], show: int = 5) -> str:
    """Returns the results as text, with at most ``show`` failing rows under each."""
    name = max(len(result.name) for result in results)
    found = max(len(result.found) for result in results)
    marks = {True: "ok  ", False: "FAIL", None: "    "}
    lines = []
    for one in results:
        line = f"{marks[one.passed]} {one.name:{name}}  {one.found:{found}}  {one.required}"
        lines.append(line.rstrip())
        if one.passed is False:
            lines += [f"       {row}" for row in one.rows[:show]]
            if len(one.rows) > show:
                lines.append(f"       and {len(one.rows) - show} more (--rows N shows N)")
    return "\n".join(lines)
