"""Which pairs of texts can be above a ROUGE-L threshold at all: exact pruning.

F grows with L, the length of the longest common subsequence, so for two lengths
m and n there is a least L that lifts F above the threshold. L is at most the
overlap of the two bags of words, and an overlap of at least that much is only
possible if the rarest few words of both share one (prefix filtering: Chaudhuri
2006, Xiao 2008, PPJoin). 128-bit signatures of the bags settle most of the rest.
Nothing is lost: what is pruned could not have been above the threshold.
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
LONGEST = 512  # tokens; longer texts are compared without pruning: there are few
AT_ONCE = 1 << 21  # candidate pairs held in memory at a time


def f_measure(common: np.ndarray, m: np.ndarray | int, n: np.ndarray) -> np.ndarray:
    """rouge_score's F of two texts with m and n tokens and an LCS of ``common``.

    The order of the operations is rouge_score's: another one moves the last bit.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = common / n, common / m
        return np.where(common > 0, 2 * precision * recall / (precision + recall), 0.0)


@lru_cache(maxsize=8)
def least_common(longest: int, threshold: float) -> np.ndarray:
    """[m, n]: the least LCS with F above the threshold, IMPOSSIBLE if there is none.

    Shape (longest + 1, longest + 1).
    """
    m = np.arange(longest + 1, dtype=np.float64)[:, None]
    n = m.T
    least = np.full((longest + 1, longest + 1), IMPOSSIBLE, dtype=np.int32)
    # In exact arithmetic L > threshold * (m + n) / 2; in floats that may be off by one.
    guess = np.floor(threshold * (m + n) / 2)
    for common in (guess + 2, guess + 1, guess, guess - 1):
        possible = (common >= 1) & (common <= np.minimum(m, n))
        above = possible & (f_measure(np.where(possible, common, 0.0), m, n) > threshold)
        least[above] = common[above]
    return least


@dataclass(frozen=True)
class Pairs:
    """Pairs (earlier, later) of places, and the length of their LCS; equally long arrays."""

    earlier: np.ndarray
    later: np.ndarray
    common: np.ndarray


def pairs_above(
    encoded: Sequence[str], threshold: float, first_new: int = 0, workers: int = 1
) -> Pairs:
    """All pairs above the threshold of which the later one is at ``first_new`` or after.

    encoded: one code point a token. Time grows with the pairs that share a rare word,
    memory with the number of tokens (about 100 bytes each).
    """
    lengths = np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded))
    short = np.flatnonzero((lengths > 0) & (lengths <= LONGEST))
    found = [_long_pairs(encoded, lengths, first_new)]
    if len(short):
        least = least_common(int(lengths[short].max()), threshold)
        words = _Words.of([encoded[int(place)] for place in short], lengths[short])
        with ThreadPoolExecutor(workers) as pool:
            tasks = list(words.length_pairs(least))
            found += [
                np.unique(np.concatenate(part))
                for part in pool.map(lambda task: list(words.candidates(*task)), tasks)
                if part
            ]
        found = [found[0], *(_places(keys, short) for keys in found[1:])]
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
    above = f_measure(common.astype(np.float64), m, n) > threshold
    return Pairs(both[0][above], both[1][above], common[above])


def _long_pairs(encoded: Sequence[str], lengths: np.ndarray, first_new: int) -> np.ndarray:
    """Every pair with a text that is longer than LONGEST, shape (2, pairs)."""
    long = np.flatnonzero(lengths > LONGEST)
    out = [np.zeros((2, 0), dtype=np.int64)]
    others = np.flatnonzero(lengths > 0)
    for place in long:
        # A pair of two long ones is met twice: take it at the later one.
        mates = others[(others < place) | (lengths[others] <= LONGEST)]
        mates = mates[mates != place]
        out.append(np.stack([np.minimum(mates, place), np.maximum(mates, place)]))
    return np.concatenate(out, axis=1)


def _places(keys: np.ndarray, short: np.ndarray) -> np.ndarray:
    size = len(short)
    return np.stack([short[keys // size], short[keys % size]])


@dataclass(frozen=True)
class _Words:
    """Every word of every text, sorted by the text's length, then by the word.

    A word is a token and which of its occurrences it is, so that a bag is a set.
    ``place`` is the word's rank within its text, the rarest first.
    """

    word: np.ndarray
    text: np.ndarray
    place: np.ndarray
    starts: np.ndarray  # [length]: where the words of texts of that length begin
    signatures: np.ndarray  # (texts, 2) of uint64

    @classmethod
    def of(cls, encoded: Sequence[str], lengths: np.ndarray) -> _Words:
        tokens = np.frombuffer("".join(encoded).encode("utf-32-le"), dtype=np.uint32)
        text = np.repeat(np.arange(len(encoded)), lengths)
        _, token, count = np.unique(tokens, return_inverse=True, return_counts=True)
        rank = np.empty(len(count), dtype=np.int64)
        rank[np.argsort(count, kind="stable")] = np.arange(len(count))
        token = rank[token]
        order = np.lexsort((token, text))
        token, text = token[order], text[order]
        again = np.zeros(len(token), dtype=bool)
        again[1:] = (token[1:] == token[:-1]) & (text[1:] == text[:-1])
        here = np.arange(len(token))
        occurrence = here - np.maximum.accumulate(np.where(again, 0, here))
        word = token * (LONGEST + 1) + occurrence
        place = here - (np.cumsum(lengths) - lengths)[text]
        by_length = np.lexsort((word, lengths[text]))
        sizes = np.bincount(lengths, weights=lengths, minlength=int(lengths.max()) + 2)
        return cls(
            word[by_length],
            text[by_length].astype(np.int32),
            place[by_length].astype(np.int32),
            np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
            signatures(word, text, len(encoded)),
        )

    def length_pairs(self, least: np.ndarray) -> Iterator[tuple[int, int, int]]:
        """(m, n, least LCS) for all m <= n that have texts and can be above the threshold."""
        there = np.flatnonzero(np.diff(self.starts))
        for m in there:
            for n in there[there >= m]:
                if least[m, n] <= m:
                    yield int(m), int(n), int(least[m, n])

    def candidates(self, m: int, n: int, least: int) -> Iterator[np.ndarray]:
        """Keys (earlier * texts + later) of the pairs of these lengths that remain."""
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
            stop = max(int(np.searchsorted(ends, before + AT_ONCE, "right")), at + 1)
            some = count[at:stop]
            mine = np.repeat(np.arange(at, stop), some)
            theirs = np.arange(len(mine)) - np.repeat(np.cumsum(some) - some, some)
            theirs += np.repeat(low[at:stop], some)
            a, b = left_text[mine], right_text[theirs]
            differing = np.bitwise_count(self.signatures[a] ^ self.signatures[b]).sum(axis=1)
            # Each differing bit is a word that only one of the two has.
            keep = m + n - differing.astype(np.int64) >= 2 * least
            if keep.any():
                a, b = a[keep].astype(np.int64), b[keep].astype(np.int64)
                yield np.unique(np.minimum(a, b) * texts + np.maximum(a, b))
            at = stop

    def _prefix(self, length: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """The words at places 0 to ``last`` of the texts of a length, sorted, and their texts."""
        span = slice(self.starts[length], self.starts[length + 1])
        chosen = self.place[span] <= last
        return self.word[span][chosen], self.text[span][chosen]


def signatures(word: np.ndarray, text: np.ndarray, texts: int) -> np.ndarray:
    """A 128-bit signature of each text's words, shape (texts, 2), uint64.

    Every word sets one bit; two texts differ in at most as many bits as words.
    """
    mixed = word.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # splitmix64
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(32)
    bit = mixed & np.uint64(127)
    out = np.zeros(texts * 2, dtype=np.uint64)
    half = (bit >> np.uint64(6)).astype(np.int64)
    np.bitwise_or.at(out, text * 2 + half, np.uint64(1) << (bit & np.uint64(63)))
    return out.reshape(texts, 2)


class Finder:
    """The nearest of a growing list of texts above a threshold, one query at a time.

    Rare means late here: the words that come up last are the rarest, and an order
    that only grows at its rare end never has to be mended.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.seen = 0  # texts of the list that are indexed
        # word -> length -> text * PLACES + place of the word in that text
        self.postings: dict[int, dict[int, list[int]]] = {}
        self.signatures: list[int] = []
        self.long: list[int] = []
        self.least: list[list[int]] = least_common(64, threshold).tolist()

    def nearest_above(self, encoded: str, known: Sequence[str]) -> tuple[int, float] | None:
        """(place, score) of the nearest known text above the threshold, the first of equals.

        known is the list of earlier calls, which may have grown.
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
            words = _words(encoded)
            signature, least = _signature(words), self.least[m]
            for place, word in enumerate(words):
                for n, posts in self.postings.get(word, {}).items():
                    common = least[n]
                    if place > m - common:
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
        words = _words(encoded)
        self.signatures.append(_signature(words))
        shortest = min(self.least[n], default=IMPOSSIBLE)
        for rank, word in enumerate(words[: n - shortest + 1] if shortest <= n else ()):
            self.postings.setdefault(word, {}).setdefault(n, []).append(place << 10 | rank)

    def _reach(self, length: int) -> None:
        """Makes the table of least common subsequences large enough."""
        if length >= len(self.least):
            size = min(2 * length, LONGEST)
            self.least = least_common(size, self.threshold).tolist()


def _words(encoded: str) -> list[int]:
    """The words of one text, the latest first: token and occurrence as one number."""
    times: dict[str, int] = {}
    out = []
    for token in encoded:
        times[token] = again = times.get(token, -1) + 1
        out.append(ord(token) << 10 | again)
    out.sort(reverse=True)
    return out


def _signature(words: Sequence[int]) -> int:
    """128 bits, of which each word sets one."""
    out = 0
    for word in words:
        mixed = word * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        out |= 1 << ((mixed >> 29 ^ mixed) * 0xBF58476D1CE4E5B9 >> 32 & 127)
    return out
