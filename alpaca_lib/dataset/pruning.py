"""Exact pruning: the pairs of texts whose ROUGE-L can be above a threshold.

With P = L / n and R = L / m, where L is the length of the longest common subsequence (LCS) of texts
of m and n tokens, F = 2PR / (P + R) = 2L / (m + n). So F > t needs L > t (m + n) / 2, and L is at
most the overlap of the two bags of tokens. An overlap of at least c is possible only if the
m - c + 1 rarest tokens of one bag and the n - c + 1 rarest of the other share one (prefix
filtering: Chaudhuri et al. 2006; PPJoin: Xiao et al. 2008). Signatures of 128 bits exclude most
other pairs. No pair above the threshold is lost.

A text is ``encoded``: one code point per token. An *element* is a token together with its
occurrence in the text (first, second, ...), so that a bag of tokens is a set of elements.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from rapidfuzz.distance import LCSseq
from rapidfuzz.process import cpdist

IMPOSSIBLE = np.iinfo(np.int32).max
LONGEST = 512  # tokens; longer texts, which are few, are compared without pruning
PAIRS_AT_ONCE = 1 << 21  # candidate pairs in memory at a time


def f_measure(common: np.ndarray, m: np.ndarray | int, n: np.ndarray) -> np.ndarray:
    """Returns the ROUGE-L F-measure of texts with m and n tokens and an LCS of ``common`` tokens.

    The operations are in rouge_score's order, since another order changes the last bit.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = common / n, common / m
        return np.where(common > 0, 2 * precision * recall / (precision + recall), 0.0)


@lru_cache(maxsize=8)
def least_common(longest: int, threshold: float) -> np.ndarray:
    """Returns the least LCS with F above the threshold by lengths [m, n]; IMPOSSIBLE if none.

    Shape (longest + 1, longest + 1).
    """
    m = np.arange(longest + 1, dtype=np.float64)[:, None]
    n = m.T
    least = np.full((longest + 1, longest + 1), IMPOSSIBLE, dtype=np.int32)
    # Exact arithmetic: L > threshold * (m + n) / 2. Floating point may be off by one.
    guess = np.floor(threshold * (m + n) / 2)
    for common in (guess + 2, guess + 1, guess, guess - 1):
        possible = (common >= 1) & (common <= np.minimum(m, n))
        above = possible & (f_measure(np.where(possible, common, 0.0), m, n) > threshold)
        least[above] = common[above]
    return least


def pairs_above(
    encoded: Sequence[str], threshold: float, first_new: int = 0, workers: int = 1
) -> Iterator[tuple[int, int, float]]:
    """Returns (earlier place, later place, ROUGE-L) of all pairs above the threshold.

    The later text is at ``first_new`` or after; the pairs are sorted by its place. Time grows with
    the number of pairs that share a rare element, memory with the number of tokens (about 100
    bytes per token).
    """
    lengths = np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded))
    short = np.flatnonzero((lengths > 0) & (lengths <= LONGEST))
    found = [_long_pairs(lengths)]
    if len(short):
        least = least_common(int(lengths[short].max()), threshold)
        elements = _Elements.of([encoded[int(place)] for place in short], lengths[short])
        with ThreadPoolExecutor(workers) as pool:
            tasks = list(elements.length_pairs(least))
            for part in pool.map(lambda task: list(elements.candidates(*task)), tasks):
                if part:
                    keys = np.unique(np.concatenate(part))
                    found.append(short[np.stack([keys // len(short), keys % len(short)])])
    both = np.concatenate(found, axis=1)
    both = both[:, both[1] >= first_new]
    both = both[:, np.lexsort((both[0], both[1]))]
    common = cpdist(
        [encoded[place] for place in both[0]],
        [encoded[place] for place in both[1]],
        scorer=LCSseq.similarity,
        dtype=np.int32,
        workers=workers,
    )
    m, n = lengths[both[0]], lengths[both[1]]
    score = f_measure(common.astype(np.float64), m, n)
    above = score > threshold
    earlier, later = both[:, above].tolist()
    return zip(earlier, later, score[above].tolist(), strict=True)


def _long_pairs(lengths: np.ndarray) -> np.ndarray:
    """Returns every pair with a text longer than LONGEST, shape (2, pairs)."""
    long = np.flatnonzero(lengths > LONGEST)
    out = [np.zeros((2, 0), dtype=np.int64)]
    others = np.flatnonzero(lengths > 0)
    for place in long:
        # A pair of two long texts occurs twice: keep the one where ``place`` is the later.
        mates = others[(others < place) | (lengths[others] <= LONGEST)]
        mates = mates[mates != place]
        out.append(np.stack([np.minimum(mates, place), np.maximum(mates, place)]))
    return np.concatenate(out, axis=1)


@dataclass(frozen=True)
class _Elements:
    """All elements of all texts, sorted by the text's length, then by the element.

    >>> _Elements.of(["aab", "b"], np.array([3, 1])).text
    array([1, 0, 0, 0], dtype=int32)
    """

    element: np.ndarray  # (elements,): numbered from the rarest token to the most frequent
    text: np.ndarray  # (elements,): index of the element's text
    rank: np.ndarray  # (elements,): place among the text's elements, 0 for the rarest
    starts: np.ndarray  # (longest + 3,): where the elements of texts of each length begin
    signatures: np.ndarray  # (texts, 2), uint64: see ``signatures``

    @classmethod
    def of(cls, encoded: Sequence[str], lengths: np.ndarray) -> _Elements:
        """Returns the elements of texts with the given numbers of tokens, shape (texts,)."""
        tokens = np.frombuffer("".join(encoded).encode("utf-32-le"), dtype=np.uint32)
        text = np.repeat(np.arange(len(encoded)), lengths)
        _, token, count = np.unique(tokens, return_inverse=True, return_counts=True)
        by_count = np.empty(len(count), dtype=np.int64)
        by_count[np.argsort(count, kind="stable")] = np.arange(len(count))
        token = by_count[token]
        order = np.lexsort((token, text))
        token, text = token[order], text[order]
        repeated = np.zeros(len(token), dtype=bool)
        repeated[1:] = (token[1:] == token[:-1]) & (text[1:] == text[:-1])
        at = np.arange(len(token))
        # Sorted tokens a a a b -> occurrence 0 1 2 0.
        occurrence = at - np.maximum.accumulate(np.where(repeated, 0, at))
        element = token * (LONGEST + 1) + occurrence
        rank = at - (np.cumsum(lengths) - lengths)[text]
        by_length = np.lexsort((element, lengths[text]))
        sizes = np.bincount(lengths, weights=lengths, minlength=int(lengths.max()) + 2)
        return cls(
            element=element[by_length],
            text=text[by_length].astype(np.int32),
            rank=rank[by_length].astype(np.int32),
            starts=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
            signatures=signatures(element, text, len(encoded)),
        )

    def length_pairs(self, least: np.ndarray) -> Iterator[tuple[int, int, int]]:
        """Yields (m, n, least LCS) of all lengths m <= n with pairs that can pass the threshold."""
        present = np.flatnonzero(np.diff(self.starts))
        for m in present:
            for n in present[present >= m]:
                if least[m, n] <= m:
                    yield int(m), int(n), int(least[m, n])

    def candidates(self, m: int, n: int, least: int) -> Iterator[np.ndarray]:
        """Yields keys (earlier * texts + later) of candidate pairs of texts of m and n tokens."""
        left, left_text = self._prefix(m, m - least)
        right, right_text = (left, left_text) if m == n else self._prefix(n, n - least)
        low, high = np.searchsorted(right, left, "left"), np.searchsorted(right, left, "right")
        if m == n:
            low = np.arange(1, len(left) + 1)  # each pair once, and no text with itself
        count = np.maximum(high - low, 0)
        ends = np.cumsum(count)
        texts = np.int64(len(self.signatures))
        at = 0
        while at < len(left):
            before = ends[at - 1] if at else 0
            stop = max(int(np.searchsorted(ends, before + PAIRS_AT_ONCE, "right")), at + 1)
            some = count[at:stop]
            mine = np.repeat(np.arange(at, stop), some)
            theirs = np.arange(len(mine)) - np.repeat(np.cumsum(some) - some, some)
            theirs += np.repeat(low[at:stop], some)
            a, b = left_text[mine], right_text[theirs]
            differing = np.bitwise_count(self.signatures[a] ^ self.signatures[b]).sum(axis=1)
            # m + n - 2 * overlap elements are in one text only; each differing bit needs one.
            keep = m + n - differing.astype(np.int64) >= 2 * least
            if keep.any():
                a, b = a[keep].astype(np.int64), b[keep].astype(np.int64)
                yield np.unique(np.minimum(a, b) * texts + np.maximum(a, b))
            at = stop

    def _prefix(self, length: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the elements of ranks 0 to ``last`` of texts of a length, and their texts."""
        span = slice(self.starts[length], self.starts[length + 1])
        chosen = self.rank[span] <= last
        return self.element[span][chosen], self.text[span][chosen]


def signatures(element: np.ndarray, text: np.ndarray, texts: int) -> np.ndarray:
    """Returns a 128-bit signature of each text's elements, shape (texts, 2), uint64.

    Every element sets one bit, so two texts differ in at most as many bits as elements.
    """
    mixed = element.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # splitmix64
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(32)
    bit = mixed & np.uint64(127)
    out = np.zeros(texts * 2, dtype=np.uint64)
    half = (bit >> np.uint64(6)).astype(np.int64)
    np.bitwise_or.at(out, text * 2 + half, np.uint64(1) << (bit & np.uint64(63)))
    return out.reshape(texts, 2)


class Finder:
    """Finds the nearest text above a threshold in a growing list, one query at a time.

    Elements are ordered by code point, the highest first: NoveltyIndex numbers tokens in order of
    appearance, so late ones are rare, and a new token never changes the order of the others.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.seen = 0  # texts of the list that are indexed
        # element -> length of the text -> (text << 10 | rank of the element in the text)
        self.postings: dict[int, dict[int, list[int]]] = {}
        self.signatures: list[int] = []
        self.long: list[int] = []  # texts longer than LONGEST
        self.least: list[list[int]] = least_common(64, threshold).tolist()

    def nearest_above(self, encoded: str, known: Sequence[str]) -> tuple[int, float] | None:
        """Returns (place, score) of the nearest known text above the threshold, or None.

        Of equal scores the first counts. ``known`` is the list of earlier calls, possibly grown.
        """
        for place in range(self.seen, len(known)):
            self._add(place, known[place])
        self.seen = len(known)
        m = len(encoded)
        if not m:
            return None
        mates: set[int] = set(self.long) if m <= LONGEST else set(range(len(known)))
        if m <= LONGEST:
            self._reach(m)
            elements = _elements(encoded)
            signature, least = _signature(elements), self.least[m]
            for rank, element in enumerate(elements):
                for n, posts in self.postings.get(element, {}).items():
                    common = least[n]
                    if rank > m - common:
                        continue
                    for post in posts:
                        text, theirs = post >> 10, post & 1023
                        if theirs <= n - common and (
                            m + n - (signature ^ self.signatures[text]).bit_count() >= 2 * common
                        ):
                            mates.add(text)
        best: tuple[int, float] | None = None
        for text in sorted(mates):
            n = len(known[text])
            common = LCSseq.similarity(encoded, known[text])
            if common:
                precision, recall = common / n, common / m
                score = 2 * precision * recall / (precision + recall)
                if score > self.threshold and (best is None or score > best[1]):
                    best = text, score
        return best

    def _add(self, place: int, encoded: str) -> None:
        n = len(encoded)
        if n > LONGEST:
            self.long.append(place)
            self.signatures.append(0)
            return
        self._reach(n)
        elements = _elements(encoded)
        self.signatures.append(_signature(elements))
        shortest = min(self.least[n], default=IMPOSSIBLE)
        for rank, element in enumerate(elements[: max(n - shortest + 1, 0)]):
            self.postings.setdefault(element, {}).setdefault(n, []).append(place << 10 | rank)

    def _reach(self, length: int) -> None:
        """Grows the table of least LCS lengths to texts of ``length`` tokens."""
        if length >= len(self.least):
            size = min(2 * length, LONGEST)
            self.least = least_common(size, self.threshold).tolist()


def _elements(encoded: str) -> list[int]:
    """Returns the elements of one text as (token << 10 | occurrence), the highest first."""
    times: dict[str, int] = {}
    elements = []
    for token in encoded:
        times[token] = occurrence = times.get(token, -1) + 1
        elements.append(ord(token) << 10 | occurrence)
    elements.sort(reverse=True)
    return elements


def _signature(elements: Sequence[int]) -> int:
    """Returns 128 bits, of which each element sets one."""
    out = 0
    for element in elements:
        mixed = element * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        out |= 1 << ((mixed >> 29 ^ mixed) * 0xBF58476D1CE4E5B9 >> 32 & 127)
    return out
