"""What is in a data set: counts, lengths, first words, distance to its seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alpaca_lib.dataset.rouge import NoveltyIndex
from alpaca_lib.records import Example


@dataclass(frozen=True)
class Lengths:
    """Words (split at white space) of one field, over the rows where it is not empty."""

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
    first = Counter(e.instruction.split()[0].strip(".,:;!?\"'").lower() for e in examples)
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


def words(text: str) -> int:
    """The number of words in a text, split at white space."""
    return len(text.split())


def nearest_scores(texts: Sequence[str], known: Sequence[str], mode: str = "rouge") -> np.ndarray:
    """For each text its highest ROUGE-L against the known ones, shape (len(texts),)."""
    index = NoveltyIndex(known, mode=mode)
    return np.array([index.check(text).score for text in texts])


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
