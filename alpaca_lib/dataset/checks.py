"""Is this data good enough to train on? One line a demand: the number, the limit, the rows.

The limits are those that this course's own data is held to. They suit a set of
hundreds to thousands of rows of the Alpaca kind; each is a constant below.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean

from alpaca_lib.dataset.detectors import ends_properly
from alpaca_lib.dataset.faults import find_faults
from alpaca_lib.dataset.proofs import prove
from alpaca_lib.dataset.statistics import Near, diversity, nearest, shared_sentences, words
from alpaca_lib.records import Example

WITH_INPUT = (0.3, 0.5)  # part of the rows
MEAN_OUTPUT_WORDS = (45, 80)
LONGEST_OUTPUT_WORDS = 250
LARGEST_CATEGORY = 0.10  # part of the rows
SAME_FIRST_FOUR_WORDS = 4  # instructions
NEAREST = 0.5  # ROUGE-L within the set, and with the sets that it is kept apart from
NEAREST_FOREIGN = 0.7  # Self-Instruct's own limit
SAMPLES = 5


@dataclass(frozen=True)
class Line:
    """One demand: what was found, what is wanted, whether it is met (None: for reading only)."""

    name: str
    found: str
    wanted: str
    met: bool | None
    rows: list[str] = field(default_factory=list)  # what is wrong, row by row


def check(
    examples: Sequence[Example],
    apart: Mapping[str, Sequence[Example]] | None = None,
    foreign: Mapping[str, Sequence[Example]] | None = None,
    proofs: Mapping[str, str] | None = None,
    allowed: Iterable[Mapping[str, str]] = (),
    mode: str = "unicode",
) -> list[Line]:
    """The lines of the check, in order.

    apart: sets that may not be near (seeds, held-out tasks), by name. foreign: other
    people's sets, by name: nothing may be taken from them, and random samples of
    their rows are measured beside this set. proofs: Python by instruction, see proofs.prove().
    allowed: hits of a detector that are in order, {"fault", "instruction", "reason"}.
    """
    lines = [*_shape(examples), *_variety(examples, mode)]
    instructions = [example.instruction for example in examples]
    for name, others in (apart or {}).items():
        near = nearest(instructions, [other.instruction for other in others], mode)
        lines.append(_distance(f"nearest in {name}", near, instructions, others, NEAREST))
    for name, others in (foreign or {}).items():
        near = nearest(instructions, [other.instruction for other in others])
        lines.append(_distance(f"nearest in {name}", near, instructions, others, NEAREST_FOREIGN))
        lines.append(_sentences(name, examples, others))
        lines += _beside(name, examples, others)
    lines += [_faults(examples, list(allowed)), _proofs(examples, proofs or {})]
    return lines


def _shape(examples: Sequence[Example]) -> list[Line]:
    share = mean(bool(example.input) for example in examples)
    low, high = WITH_INPUT
    sizes = [words(example.output) for example in examples]
    least, most = MEAN_OUTPUT_WORDS
    cap = LONGEST_OUTPUT_WORDS
    broken = [i for i, e in enumerate(examples) if not ends_properly(e.output)]
    out = [
        Line("rows", str(len(examples)), "", None),
        _line("with an input", share, f"{low:.0%} to {high:.0%}", low <= share <= high, "{:.0%}"),
        _line(
            "words an output, mean", mean(sizes), f"{least:g} to {most:g}",
            least <= mean(sizes) <= most, "{:.1f}",
        ),
        _line(
            "words, longest output", max(sizes), f"at most {cap}", max(sizes) <= cap, "{}",
            [f"row {i}: {n} words" for i, n in enumerate(sizes) if n > cap],
        ),
        _line(
            "outputs that break off", len(broken), "0", not broken, "{}",
            [f"row {i} ends: {examples[i].output[-50:]!r}" for i in broken],
        ),
    ]  # fmt: skip
    if any("category" in example.extra for example in examples):
        counts = Counter(str(example.extra.get("category", "none")) for example in examples)
        name, count = counts.most_common(1)[0]
        part = count / len(examples)
        out.append(
            Line(
                "largest category",
                f"{part:.1%} ({name}, of {len(counts)})",
                f"at most {LARGEST_CATEGORY:.0%}",
                part <= LARGEST_CATEGORY,
            )
        )
    return out


def _variety(examples: Sequence[Example], mode: str) -> list[Line]:
    instructions = [example.instruction for example in examples]
    starts = Counter(" ".join(text.lower().split()[:4]) for text in instructions)
    cap = SAME_FIRST_FOUR_WORDS
    often = [f"{count} begin: {start!r}" for start, count in starts.most_common() if count > cap]
    most = starts.most_common(1)[0][1]
    near = nearest(instructions, mode=mode)
    return [
        _line("share their first 4 words", most, f"at most {cap}", not often, "{}", often),
        _distance("nearest within the set", near, instructions, examples, NEAREST),
    ]


def _distance(
    name: str, near: Sequence[Near], instructions: list[str], others: Sequence[Example], cap: float
) -> Line:
    over = [(i, n) for i, n in enumerate(near) if n.score > cap]
    rows = [
        f"row {i}, {n.score:.2f}: {_short(instructions[i])} / {_short(others[n.place].instruction)}"
        for i, n in over
    ]
    highest = max((n.score for n in near), default=0.0)
    return _line(name, highest, f"ROUGE-L at most {cap}", not over, "{:.2f}", rows)


def _sentences(name: str, examples: Sequence[Example], others: Sequence[Example]) -> Line:
    shared = shared_sentences(examples, others)
    rows = [f"row {i}: {_short(found[0], 70)}" for i, found in enumerate(shared) if found]
    return _line(f"sentences also in {name}", len(rows), "0", not rows, "{}", rows)


def _beside(name: str, examples: Sequence[Example], others: Sequence[Example]) -> list[Line]:
    """This set's variety beside random samples of as many rows of another."""
    size = len(examples)
    if len(others) < size:
        return []
    ours = diversity(examples, "rouge")
    samples = [
        diversity(random.Random(seed).sample(list(others), size), "rouge")
        for seed in range(SAMPLES)
    ]
    out = []
    for label, attribute, form, more in (
        ("distinct first words", "first_words", "{:.0f}", True),
        ("distinct bigrams, instruction", "instruction_bigrams", "{:.0f}", True),
        ("distinct bigrams, output", "output_bigrams", "{:.0f}", True),
        ("ROUGE-L to the nearest, mean", "nearest", "{:.3f}", False),
    ):
        own = getattr(ours, attribute)
        theirs = [getattr(sample, attribute) for sample in samples]
        bound = max(theirs) if more else min(theirs)
        span = f"{form.format(min(theirs))} to {form.format(max(theirs))}"
        wanted = f"{'over' if more else 'under'} {SAMPLES} x {size} rows of {name}: {span}"
        out.append(_line(label, own, wanted, own > bound if more else own < bound, form))
    return out


def _faults(examples: Sequence[Example], allowed: list[Mapping[str, str]]) -> Line:
    reasons = {(entry["fault"], entry["instruction"]) for entry in allowed if entry["reason"]}
    faults = find_faults(examples)
    open_ = [f for f in faults if (f.kind, examples[f.row].instruction) not in reasons]
    rows = [f"row {f.row}, {f.kind} in the {f.field}: {_short(f.text)} ({f.fix})" for f in open_]
    found = f"{len(open_)} ({len(faults) - len(open_)} with a listed reason)"
    return Line("faults found", found, "0", not open_, rows)


def _proofs(examples: Sequence[Example], proofs: Mapping[str, str]) -> Line:
    """Runs the proof of each row that has one."""
    mine = [
        (i, e, proofs[e.instruction]) for i, e in enumerate(examples) if e.instruction in proofs
    ]
    if not mine:
        return Line("answers recomputed", "none has a proof", "", None)
    rows = [f"row {i}: {wrong}" for i, e, p in mine if (wrong := prove(e, p))]
    return Line(
        "answers recomputed", f"{len(mine) - len(rows)} of {len(mine)} hold", "all", not rows, rows
    )


def table(lines: Sequence[Line], show: int = 5) -> str:
    """The lines as text, and under each that fails the first rows that make it fail."""
    widths = [max(len(getattr(line, n)) for line in lines) for n in ("name", "found")]
    out = []
    for line in lines:
        mark = {True: "ok  ", False: "FAIL", None: "    "}[line.met]
        out.append(
            f"{mark} {line.name:{widths[0]}}  {line.found:{widths[1]}}  {line.wanted}".rstrip()
        )
        if line.met is False:
            out += [f"       {row}" for row in line.rows[:show]]
            if len(line.rows) > show:
                out.append(f"       and {len(line.rows) - show} more (--rows N shows N)")
    return "\n".join(out)


def _line(
    name: str, value: float, wanted: str, met: bool, form: str, rows: list[str] | None = None
) -> Line:
    return Line(name, form.format(value), wanted, met, rows or [])


def _short(text: str, size: int = 60) -> str:
    text = " ".join(text.split())
    return text if len(text) <= size else text[: size - 1] + "…"
