"""What is in a data set: counts, lengths, first words, variety, distance to other sets."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from alpaca_lib.dataset.rouge import SCORES_AT_ONCE, NoveltyIndex, near_pairs, tokenize
from alpaca_lib.records import CJK, FIELDS, Example, words

SAMPLE = 2000  # rows whose nearest other row stands for a larger set's


@dataclass(frozen=True)
class Lengths:
    """Words, as words() counts them, of one field, over the rows where it is not empty."""

    rows: int
    mean: float
    median: float
    p95: float
    longest: int


@dataclass(frozen=True)
class Overview:
    """A data set at a glance."""

    rows: int
    with_input: int
    distinct_instructions: int
    empty_outputs: int
    lengths: dict[str, Lengths]
    first_words: list[tuple[str, int]]


def overview(examples: Sequence[Example]) -> Overview:
    """Counts, lengths in words, and the most frequent first words of instructions."""
    first = Counter(first_word(example.instruction) for example in examples)
    return Overview(
        rows=len(examples),
        with_input=sum(bool(e.input) for e in examples),
        distinct_instructions=len({e.instruction for e in examples}),
        empty_outputs=sum(not e.output.strip() for e in examples),
        lengths={
            name: _lengths([getattr(e, name) for e in examples])
            for name in ("instruction", "input", "output")
        },
        first_words=first.most_common(20),
    )


def nearest_scores(texts: Sequence[str], known: Sequence[str], mode: str = "rouge") -> np.ndarray:
    """For each text its highest ROUGE-L against the known ones, shape (len(texts),)."""
    return np.array([near.score for near in nearest(texts, known, mode)])


@dataclass(frozen=True)
class Near:
    """The place of the nearest other text (-1: there is none) and its ROUGE-L."""

    place: int
    score: float


def nearest(
    texts: Sequence[str],
    known: Sequence[str] | None = None,
    mode: str = "rouge",
    places: Sequence[int] | None = None,
) -> list[Near]:
    """For each text the nearest of ``known``; without ``known`` of the other texts.

    places: only for the texts at these; every pair is compared, which takes a minute
    for all of 50,000 texts among themselves.
    """
    index = NoveltyIndex(texts if known is None else known, mode=mode, workers=os.cpu_count())
    asked = np.arange(len(texts)) if places is None else np.asarray(places, dtype=np.int64)
    if not len(index):
        return [Near(-1, 0.0) for _ in asked]
    out = []
    block = max(SCORES_AT_ONCE // len(index), 1)
    for at in range(0, len(asked), block):
        part = asked[at : at + block]
        scores = index.score_table([texts[place] for place in part])
        rows = np.arange(len(scores))
        if known is None:
            scores[rows, part] = -1.0  # not itself
        best = scores.argmax(axis=1)
        out += [
            Near(place, score) if score >= 0 else Near(-1, 0.0)
            for place, score in zip(best.tolist(), scores[rows, best].tolist(), strict=True)
        ]
    return out


@dataclass(frozen=True)
class Diversity:
    """How varied a data set is; more is better, but for ``nearest``, where less is."""

    first_words: int  # distinct first words of instructions
    instruction_bigrams: int  # distinct pairs of neighbouring words
    output_bigrams: int
    nearest: float  # mean ROUGE-L of an instruction to the nearest other one
    measured: int  # the rows that this mean is over


def diversity(examples: Sequence[Example], mode: str = "unicode") -> Diversity:
    """The Diversity of a data set; compare only sets of the same number of rows.

    In a set of more than SAMPLE rows ``nearest`` is over that many of them, evenly spread.
    """
    instructions = [example.instruction for example in examples]
    size = min(len(instructions), SAMPLE)
    places = [place * len(instructions) // size for place in range(size)]
    near = nearest(instructions, mode=mode, places=places)
    return Diversity(
        first_words=len({first_word(text) for text in instructions}),
        instruction_bigrams=distinct_bigrams(instructions),
        output_bigrams=distinct_bigrams([example.output for example in examples]),
        nearest=float(np.mean([one.score for one in near])),
        measured=size,
    )


def first_word(text: str) -> str:
    """The first word, in lower case and without punctuation; of Chinese, two characters."""
    if CJK.match(text):
        return text[:2]
    return text.split()[0].strip(".,:;!?\"'").lower()


def distinct_bigrams(texts: Sequence[str]) -> int:
    """How many different pairs of neighbouring words there are (of any script)."""
    pairs: set[tuple[str, str]] = set()
    for text in texts:
        tokens = tokenize(text, "unicode")
        pairs.update(pairwise(tokens))
    return len(pairs)


def clusters(texts: Sequence[str], threshold: float, mode: str = "rouge") -> list[list[int]]:
    """Places of texts that a chain of pairs above the threshold joins; the largest first.

    Texts without a near one are in none.
    """
    leader = list(range(len(texts)))

    def find(place: int) -> int:
        while leader[place] != place:
            leader[place] = leader[leader[place]]
            place = leader[place]
        return place

    for earlier, later, _ in near_pairs(texts, threshold, mode):
        leader[find(later)] = find(earlier)
    groups: dict[int, list[int]] = {}
    for place in range(len(texts)):
        groups.setdefault(find(place), []).append(place)
    return sorted((g for g in groups.values() if len(g) > 1), key=lambda g: (-len(g), g[0]))


def vocabulary_growth(texts: Sequence[str], points: int = 50) -> tuple[np.ndarray, np.ndarray]:
    """(words read, different words among them) at so many places of the texts in order."""
    seen: set[str] = set()
    read, curve = 0, []
    for text in texts:
        tokens = tokenize(text, "unicode")
        read += len(tokens)
        seen.update(tokens)
        curve.append((read, len(seen)))
    chosen = np.unique(np.linspace(0, len(curve) - 1, min(points, len(curve))).round().astype(int))
    table = np.array(curve, dtype=np.int64).reshape(-1, 2)[chosen]
    return table[:, 0], table[:, 1]


def sentences(text: str, at_least: int = 6) -> Iterator[str]:
    """The sentences and lines of a text, as words in lower case; short ones are left out."""
    for sentence in re.split(r"(?<=[.!?。！？])\s*|\n+", text):
        tokens = tokenize(sentence, "unicode")
        if len(tokens) >= at_least:
            yield " ".join(tokens)


def shared_sentences(examples: Sequence[Example], others: Sequence[Example]) -> list[list[str]]:
    """For each example its sentences of six words or more that the others have too."""
    known = {
        sentence for e in others for field in FIELDS for sentence in sentences(getattr(e, field))
    }
    return [
        [s for field in FIELDS for s in sentences(getattr(e, field)) if s in known]
        for e in examples
    ]


def _lengths(texts: Sequence[str]) -> Lengths:
    counts = np.array([words(text) for text in texts if text.strip()])
    if not len(counts):
        return Lengths(0, 0.0, 0.0, 0.0, 0)
    return Lengths(
        rows=len(counts),
        mean=float(counts.mean()),
        median=float(np.median(counts)),
        p95=float(np.percentile(counts, 95)),
        longest=int(counts.max()),
    )


def _near(varied: Diversity, view: Overview) -> str:
    some = f" (of {varied.measured:,} rows)" if varied.measured < view.rows else ""
    return f"{varied.nearest:.2f}{some}"


def markdown_table(sets: Mapping[str, Sequence[Example]]) -> str:
    """The statistics of data sets as a Markdown table, one column a set."""
    views = [overview(examples) for examples in sets.values()]
    varied = [diversity(examples) for examples in sets.values()]
    categories = [
        len({str(e.extra["category"]) for e in examples if "category" in e.extra})
        for examples in sets.values()
    ]
    table: list[tuple[str, list[str]]] = [
        ("Rows", [f"{view.rows:,}" for view in views]),
        ("Rows with an input", [f"{view.with_input:,}" for view in views]),
    ]
    table += [
        (f"Mean words, {field}", [f"{view.lengths[field].mean:.1f}" for view in views])
        for field in FIELDS
    ]
    table += [
        ("Longest output, words", [f"{view.lengths['output'].longest:,}" for view in views]),
        ("Categories", [str(count or "none") for count in categories]),
        ("Distinct first words", [f"{one.first_words:,}" for one in varied]),
        (
            "ROUGE-L to the nearest, mean",
            [_near(one, v) for one, v in zip(varied, views, strict=True)],
        ),
    ]
    rows = [["", *(f"`{name}`" for name in sets)], ["---", *("---:" for _ in sets)]]
    rows += [[label, *cells] for label, cells in table]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
