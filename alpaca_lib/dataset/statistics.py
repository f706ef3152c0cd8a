"""Statistics of data sets: counts, lengths, first words, diversity, distance to other sets."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from alpaca_lib.dataset.rouge import SCORES_AT_ONCE, NoveltyIndex, near_pairs, tokenize
from alpaca_lib.records import CJK, FIELDS, Example, words

SAMPLE = 2000  # rows of a larger set whose nearest other row is searched


@dataclass(frozen=True)
class Lengths:
    """Lengths of one field in words (see ``words``), over the rows where it is not empty."""

    rows: int
    mean: float
    median: float
    p95: float  # 95th percentile
    longest: int


@dataclass(frozen=True)
class Overview:
    """The counts of a data set, the lengths of each field, and the 20 most frequent first words."""

    rows: int
    with_input: int
    distinct_instructions: int
    empty_outputs: int
    lengths: dict[str, Lengths]
    first_words: list[tuple[str, int]]


def overview(examples: Sequence[Example]) -> Overview:
    """Returns the Overview of a data set."""
    first = Counter(first_word(example.instruction) for example in examples)
    return Overview(
        rows=len(examples),
        with_input=sum(bool(e.input) for e in examples),
        distinct_instructions=len(set(instructions_of(examples))),
        empty_outputs=sum(not e.output.strip() for e in examples),
        lengths={field: _lengths([getattr(e, field) for e in examples]) for field in FIELDS},
        first_words=first.most_common(20),
    )


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


def instructions_of(examples: Sequence[Example]) -> list[str]:
    """Returns the instructions of a data set, in order."""
    return [example.instruction for example in examples]


def shorten(text: str, size: int = 60) -> str:
    """Returns a text on one line, cut to ``size`` characters."""
    text = " ".join(text.split())
    return text if len(text) <= size else text[: size - 1] + "…"


@dataclass(frozen=True)
class Near:
    """The place of the nearest other text (-1 if there is none) and its ROUGE-L."""

    place: int
    score: float


def nearest(
    texts: Sequence[str],
    known: Sequence[str] | None = None,
    mode: str = "rouge",
    places: Sequence[int] | None = None,
) -> list[Near]:
    """Returns for each text the nearest of ``known``, or of the other texts if that is None.

    places: only for the texts at these places. Every pair is compared, which takes a minute for
    50,000 texts among themselves.
    """
    index = NoveltyIndex(texts if known is None else known, mode=mode, workers=os.cpu_count())
    asked = np.arange(len(texts)) if places is None else np.asarray(places, dtype=np.int64)
    if not len(index):
        return [Near(-1, 0.0) for _ in asked]
    found = []
    block = max(SCORES_AT_ONCE // len(index), 1)
    for at in range(0, len(asked), block):
        part = asked[at : at + block]
        scores = index.score_table([texts[place] for place in part])
        rows = np.arange(len(scores))
        if known is None:
            scores[rows, part] = -1.0  # a text is not its own neighbour
        best = scores.argmax(axis=1)
        found += [
            Near(place, score) if score >= 0 else Near(-1, 0.0)
            for place, score in zip(best.tolist(), scores[rows, best].tolist(), strict=True)
        ]
    return found


def nearest_scores(texts: Sequence[str], known: Sequence[str], mode: str = "rouge") -> np.ndarray:
    """Returns each text's highest ROUGE-L with the known ones, shape (len(texts),)."""
    return np.array([near.score for near in nearest(texts, known, mode)])


@dataclass(frozen=True)
class Diversity:
    """The diversity of a data set: more is better, except for ``nearest``."""

    first_words: int  # distinct first words of instructions
    instruction_bigrams: int  # distinct pairs of adjacent words
    output_bigrams: int
    nearest: float  # mean ROUGE-L of an instruction to the nearest other one
    measured: int  # rows that this mean is taken over


def diversity(examples: Sequence[Example], mode: str = "unicode") -> Diversity:
    """Returns the Diversity of a data set; compare only sets of the same number of rows.

    In a set of more than SAMPLE rows, ``nearest`` is the mean over that many, evenly spaced.
    """
    instructions = instructions_of(examples)
    size = min(len(instructions), SAMPLE)
    places = [place * len(instructions) // size for place in range(size)]
    near = nearest(instructions, mode=mode, places=places)
    return Diversity(
        first_words=len({first_word(text) for text in instructions}),
        instruction_bigrams=count_bigrams(instructions),
        output_bigrams=count_bigrams([example.output for example in examples]),
        nearest=float(np.mean([one.score for one in near])),
        measured=size,
    )


def first_word(text: str) -> str:
    """Returns the first word in lower case without punctuation; of Chinese, two characters."""
    if CJK.match(text):
        return text[:2]
    return text.split()[0].strip(".,:;!?\"'").lower()


def count_bigrams(texts: Sequence[str]) -> int:
    """Returns the number of distinct pairs of adjacent words, in any script."""
    return len({pair for text in texts for pair in pairwise(tokenize(text, "unicode"))})


def clusters(texts: Sequence[str], threshold: float, mode: str = "rouge") -> list[list[int]]:
    """Returns the places of texts that a chain of pairs above the threshold joins.

    These are the connected components of more than one text (single linkage), largest first.
    """
    parent = list(range(len(texts)))  # union-find with path halving

    def find(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    for earlier, later, _ in near_pairs(texts, threshold, mode):
        parent[find(later)] = find(earlier)
    groups: dict[int, list[int]] = {}
    for place in range(len(texts)):
        groups.setdefault(find(place), []).append(place)
    return sorted((g for g in groups.values() if len(g) > 1), key=lambda g: (-len(g), g[0]))


def vocabulary_growth(texts: Sequence[str], points: int = 50) -> tuple[np.ndarray, np.ndarray]:
    """Returns (words read, distinct words among them) after up to ``points`` of the texts."""
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


def split_sentences(example: Example, least: int = 6) -> Iterator[str]:
    """Yields an example's sentences and lines of at least ``least`` words, in lower case."""
    for field in FIELDS:
        for sentence in re.split(r"(?<=[.!?。！？])\s*|\n+", getattr(example, field)):
            tokens = tokenize(sentence, "unicode")
            if len(tokens) >= least:
                yield " ".join(tokens)


def shared_sentences(examples: Sequence[Example], others: Sequence[Example]) -> list[list[str]]:
    """Returns for each example its sentences of six words or more that the others contain too."""
    known = {sentence for other in others for sentence in split_sentences(other)}
    return [[s for s in split_sentences(example) if s in known] for example in examples]


def markdown_table(sets: Mapping[str, Sequence[Example]]) -> str:
    """Returns the statistics of data sets as a Markdown table, one column per set."""
    columns = [_describe(examples) for examples in sets.values()]
    rows = [[label, *(column[label] for column in columns)] for label in columns[0]]
    return format_rows(["", *(f"`{name}`" for name in sets)], rows)


def _describe(examples: Sequence[Example]) -> dict[str, str]:
    """Returns the statistics of one data set, as text by label."""
    view, varied = overview(examples), diversity(examples)
    categories = len({str(e.extra["category"]) for e in examples if "category" in e.extra})
    sample = f" (of {varied.measured:,} rows)" if varied.measured < view.rows else ""
    return {
        "Rows": f"{view.rows:,}",
        "Rows with an input": f"{view.with_input:,}",
        **{f"Mean words, {field}": f"{view.lengths[field].mean:.1f}" for field in FIELDS},
        "Longest output, words": f"{view.lengths['output'].longest:,}",
        "Categories": str(categories or "none"),
        "Distinct first words": f"{varied.first_words:,}",
        "ROUGE-L to the nearest, mean": f"{varied.nearest:.2f}{sample}",
    }


def format_rows(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table whose columns, except the first, are aligned to the right."""
    rule = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [heads, rule, *rows])
