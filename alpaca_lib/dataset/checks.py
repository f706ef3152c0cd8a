"""Checks whether a data set is good enough to train on: one line per requirement.

Three kinds of lines: an *error* makes training wrong, whoever trains; a *review* line counts hits
that a reader decides about; *style* compares the set with the limits of this course's own data and
with Stanford's. Only an error fails the check.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import mean

from alpaca_lib.dataset.check_results import ERROR, REVIEW, STYLE, CheckResult
from alpaca_lib.dataset.detectors import BOTH, DETECTORS
from alpaca_lib.dataset.endings import ends_properly
from alpaca_lib.dataset.faults import Fault, find_faults
from alpaca_lib.dataset.languages import NO_SPACES, language_of, unjudged
from alpaca_lib.dataset.proofs import prove
from alpaca_lib.dataset.rouge import THRESHOLD, near_pairs, tokenize
from alpaca_lib.dataset.statistics import (
    Near,
    diversity,
    instructions_of,
    nearest,
    shared_sentences,
    shorten,
)
from alpaca_lib.json_rows import name_row
from alpaca_lib.records import Example, split_words, words

# Errors
REPEATED_ROWS = 0.01  # share of the rows whose instruction and input an earlier row has
NEAR_DUPLICATES = 0.05  # share of the rows above THRESHOLD with an earlier one
# Style: this course's own limits; check_results.ALPACA has the figures of Stanford's data.
WITH_INPUT = (0.3, 0.5)  # share of the rows
MEAN_OUTPUT_WORDS = (45, 80)
LONGEST_OUTPUT_WORDS = 250
LARGEST_CATEGORY = 0.10  # share of the rows
SAME_FIRST_FOUR_WORDS = 4  # instructions
NEAREST = 0.5  # ROUGE-L within the set and to the sets that must stay apart
SAMPLES = 5  # random samples of another set
ALL_PAIRS = 20_000  # rows up to which every pair is compared; of more, SAMPLED rows with all
SAMPLED = 500


class _Set:
    """A data set with the names of its rows and the language of each."""

    def __init__(self, examples: Sequence[Example], lines: Sequence[int], mode: str) -> None:
        self.examples, self.mode = examples, mode
        self._lines = list(lines)
        self.instructions = instructions_of(examples)
        self.languages = [language_of(example) for example in examples]

    def name(self, place: int) -> str:
        """Returns "row 3 (line 17)" of the row at a place, which counts from 0."""
        return name_row(place + 1, self._lines)

    def unread(self) -> str:
        """Returns "not judged: ..." if the ROUGE-L tokenizer sees no word in most of the rows."""
        blank = sum(not tokenize(text, self.mode) for text in self.instructions)
        if blank * 2 <= len(self.instructions):
            return ""
        return f"not judged: --mode {self.mode} sees no word in {blank} rows; take --mode unicode"


def check(
    examples: Sequence[Example],
    apart: Mapping[str, Sequence[Example]] | None = None,
    foreign: Mapping[str, Sequence[Example]] | None = None,
    proofs: Mapping[str, str] | None = None,
    allowed: Iterable[Mapping[str, str]] = (),
    mode: str = "unicode",
    lines: Sequence[int] = (),
) -> list[CheckResult]:
    """Returns the result of every requirement: errors, then review, then style.

    apart: sets by name that must not be near (seeds, held-out tasks). foreign: other people's
    sets by name; nothing may be copied from them, and the diversity of random samples of their
    rows is compared with this set's. proofs: Python by instruction, see ``prove``. allowed: hits
    of a detector that are correct, as {"fault", "instruction", "reason"}. lines: the line of each
    row in its file.
    """
    data = _Set(examples, lines, mode)
    faults, excused = _split_faults(examples, allowed)
    results = [
        CheckResult("rows", str(len(examples)), "", None),
        _check_faults(data, "faults found", ERROR, faults, excused),
        _check_repeats(data),
        *_check_distances(data),
    ]
    for name, others in (apart or {}).items():
        results += _check_distance_to(data, name, others, mode, THRESHOLD, NEAREST)
    tokenizer = _published_mode(data) if foreign else mode
    for name, others in (foreign or {}).items():
        results += _check_distance_to(data, name, others, tokenizer, THRESHOLD)
        results.append(_check_sentences(data, name, others))
        results += _compare_diversity(name, examples, others, tokenizer)
    results.append(_check_proofs(data, proofs or {}))
    results.append(_check_faults(data, "to be read", REVIEW, faults, excused))
    results += [*_report_languages(data), *_check_shape(data), _check_openings(data)]
    return sorted(results, key=lambda result: (ERROR, REVIEW, STYLE).index(result.kind))


def _style(
    name: str, found: str, required: str, passed: bool, rows: Sequence[str] = ()
) -> CheckResult:
    return CheckResult(name, found, required, passed, list(rows), STYLE)


def _check_shape(data: _Set) -> list[CheckResult]:
    examples = data.examples
    share = mean(bool(example.input) for example in examples)
    sizes = [words(example.output) for example in examples]
    low, high = WITH_INPUT
    least, most = MEAN_OUTPUT_WORDS
    average, limit = mean(sizes), LONGEST_OUTPUT_WORDS
    long = [f"{data.name(row)}: {size} words" for row, size in enumerate(sizes) if size > limit]
    ends = [(row, e.output[-50:]) for row, e in enumerate(examples) if not ends_properly(e.output)]
    open_ends = [f"{data.name(row)} ends: {end!r}" for row, end in ends]
    results = [
        _style("with an input", f"{share:.0%}", f"{low:.0%} to {high:.0%}", low <= share <= high),
        _style(
            "words per output, mean",
            f"{average:.1f}",
            f"{least} to {most}",
            least <= average <= most,
        ),
        _style("words, longest output", str(max(sizes)), f"at most {limit}", not long, long),
        _style("outputs without a regular end", str(len(ends)), "0", not ends, open_ends),
    ]
    if no_spaces := [one for one in data.languages if one in NO_SPACES]:
        found = f"not judged: {len(no_spaces)} rows are written without spaces"
        results[1:3] = [CheckResult("words per output", found, "", None, kind=STYLE)]
    if any("category" in example.extra for example in examples):
        counts = Counter(str(example.extra.get("category", "none")) for example in examples)
        name, count = counts.most_common(1)[0]
        share = count / len(examples)
        found = f"{share:.1%} ({shorten(name, 30)}, of {len(counts)})"
        required = f"at most {LARGEST_CATEGORY:.0%}"
        results.append(_style("largest category", found, required, share <= LARGEST_CATEGORY))
    return results


def _check_openings(data: _Set) -> CheckResult:
    """Counts the instructions that share their first four words; a CJK character is a word."""
    name, limit = "share their first 4 words", SAME_FIRST_FOUR_WORDS
    judged = [
        instruction
        for instruction, language in zip(data.instructions, data.languages, strict=True)
        if language not in NO_SPACES
    ]
    if not judged:
        found = f"not judged: {len(data.examples)} rows are written without spaces"
        return CheckResult(name, found, "", None, kind=STYLE)
    firsts = [split_words(text.lower())[:4] for text in judged]
    starts = Counter("".join(f"{w} " if w.isascii() else w for w in one).strip() for one in firsts)
    often = [f"{count} begin: {start!r}" for start, count in starts.most_common() if count > limit]
    most = max(starts.values())
    found = f"{most} ({most / len(judged):.1%})"
    return _style(name, found, f"at most {limit}", not often, often)


def _check_repeats(data: _Set) -> CheckResult:
    """Counts the rows whose instruction and input an earlier row has."""
    seen: dict[tuple[str, str], int] = {}
    rows = []
    for place, example in enumerate(data.examples):
        task = " ".join(example.instruction.split()), " ".join(example.input.split())
        first = seen.setdefault(task, place)
        if first != place:
            rows.append(f"{data.name(place)} repeats {data.name(first)}: {shorten(task[0])}")
    share = len(rows) / len(data.examples)
    found, required = f"{len(rows)} ({share:.1%})", f"at most {REPEATED_ROWS:.0%} of the rows"
    return CheckResult("rows repeated", found, required, share <= REPEATED_ROWS, rows)


def _check_distances(data: _Set) -> list[CheckResult]:
    """Checks how near the instructions are to each other: duplicates, and the nearest at all."""
    name, mine = "near-duplicates", data.instructions
    if unread := data.unread():
        return [CheckResult(name, unread, "", None)]
    rows, later = [], set()
    for one, two, score in near_pairs(mine, THRESHOLD, data.mode):
        if two not in later and mine[one] != mine[two]:
            rows.append(
                f"{data.name(two)}, {score:.2f} with {data.name(one)}: {shorten(mine[two])}"
            )
            later.add(two)
    share = len(rows) / len(mine)
    required = f"at most {NEAR_DUPLICATES:.0%} of the rows above ROUGE-L {THRESHOLD}"
    found = f"{len(rows)} ({share:.1%})"
    near = CheckResult(name, found, required, share <= NEAR_DUPLICATES, rows)
    places = range(len(mine))
    if len(mine) > ALL_PAIRS:
        places = range(0, len(mine), len(mine) // SAMPLED)
    nears = list(zip(places, nearest(mine, None, data.mode, list(places)), strict=True))
    style = _describe_near(data, "nearest within the set", nears, mine, NEAREST)
    if len(mine) > ALL_PAIRS:
        style = CheckResult(
            style.name, f"{style.found} (of {len(places)} rows)", *_rest(style), kind=STYLE
        )
    return [near, style]


def _rest(result: CheckResult) -> tuple[str, bool | None, list[str]]:
    return result.required, result.passed, result.rows


def _describe_near(
    data: _Set, name: str, nears: Sequence[tuple[int, Near]], theirs: Sequence[str], limit: float
) -> CheckResult:
    rows = [
        f"{data.name(row)}, {near.score:.2f}: {shorten(data.instructions[row])} / "
        f"{shorten(theirs[near.place])}"
        for row, near in nears
        if near.score > limit
    ]
    highest = max((near.score for _, near in nears), default=0.0)
    return _style(name, f"{highest:.2f}", f"ROUGE-L at most {limit}", not rows, rows)


def _check_distance_to(
    data: _Set, name: str, others: Sequence[Example], mode: str, limit: float, style: float = 0.0
) -> list[CheckResult]:
    """Checks the distance of each instruction to those of another set."""
    label, theirs = f"nearest in {name}", instructions_of(others)
    if unread := _Set(data.examples[:200], (), mode).unread():
        return [CheckResult(label, unread, "", None)]
    nears = list(enumerate(nearest(data.instructions, theirs, mode)))
    one = _describe_near(data, label, nears, theirs, limit)
    results = [CheckResult(one.name, one.found, *_rest(one))]
    return [*results, _describe_near(data, label, nears, theirs, style)] if style else results


def _published_mode(data: _Set) -> str:
    """Returns "rouge", as in published figures; the check's own mode if it misses most words."""
    read, there = (
        sum(len(tokenize(text, mode)) for text in data.instructions)
        for mode in ("rouge", "unicode")
    )
    return "rouge" if 2 * read >= there else data.mode


def _check_sentences(data: _Set, name: str, others: Sequence[Example]) -> CheckResult:
    shared = shared_sentences(data.examples, others)
    rows = [
        f"{data.name(row)}: {shorten(found[0], 70)}" for row, found in enumerate(shared) if found
    ]
    return CheckResult(f"sentences also in {name}", str(len(rows)), "0", not rows, rows)


def _compare_diversity(
    name: str, examples: Sequence[Example], others: Sequence[Example], mode: str
) -> list[CheckResult]:
    """Compares the set's diversity with that of random samples of equal size of another set."""
    size = len(examples)
    if len(others) < size:
        return []
    own = diversity(examples, mode)
    draws = [random.Random(seed).sample(list(others), size) for seed in range(SAMPLES)]
    samples = [diversity(draw, mode) for draw in draws]
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
        results.append(_style(label, f"{value:{form}}", span, passed))
    return results


def _split_faults(
    examples: Sequence[Example], allowed: Iterable[Mapping[str, str]]
) -> tuple[list[Fault], list[Fault]]:
    """Returns (the faults, those of them with a listed reason)."""
    reasons = {(entry["fault"], entry["instruction"]) for entry in allowed if entry["reason"]}
    faults = find_faults(examples)
    excused = [f for f in faults if (f.kind, examples[f.row].instruction) in reasons]
    return faults, excused


def _check_faults(
    data: _Set, name: str, severity: str, faults: Sequence[Fault], excused: Sequence[Fault]
) -> CheckResult:
    mine = [fault for fault in faults if fault.severity == severity]
    left = [fault for fault in mine if fault not in excused] if excused else mine
    rows = [
        f"{data.name(f.row)}, {f.kind} in the {f.field}: {shorten(f.text)} ({f.fix})" for f in left
    ]
    counts = Counter(fault.kind for fault in left)
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
    foreign = unjudged(data.languages, BOTH)
    if not left and foreign.total() * 2 > len(data.examples):
        rows_in = ", ".join(f"{count} rows in {code}" for code, count in foreign.most_common())
        return CheckResult(name, f"not judged: {rows_in}", "", None, kind=severity)
    found = f"{len(left)} ({len(mine) - len(left)} with a listed reason)"
    return CheckResult(name, f"{found}: {kinds}" if kinds else found, "0", not left, rows, severity)


def _report_languages(data: _Set) -> list[CheckResult]:
    """Says which detectors do not know the language of how many rows."""
    results = []
    for knows in (("en",), BOTH):
        foreign = unjudged(data.languages, knows)
        if not foreign:
            continue
        rows = ", ".join(f"{count} rows in {code}" for code, count in foreign.most_common())
        names = [one.kind for one in DETECTORS if one.knows == knows]
        found = f"not judged: {rows}, by {', '.join(names)} (they know {' and '.join(knows)})"
        results.append(CheckResult("languages", found, "", None, kind=REVIEW))
    return results


def _check_proofs(data: _Set, proofs: Mapping[str, str]) -> CheckResult:
    """Runs the proof of each row that has one."""
    proved = [
        (row, prove(example, proofs[example.instruction]))
        for row, example in enumerate(data.examples)
        if example.instruction in proofs
    ]
    if not proved:
        return CheckResult("answers recomputed", "none has a proof", "", None)
    rows = [f"{data.name(row)}: {error}" for row, error in proved if error]
    found = f"{len(proved) - len(rows)} of {len(proved)} hold"
    return CheckResult("answers recomputed", found, "all", not rows, rows)
