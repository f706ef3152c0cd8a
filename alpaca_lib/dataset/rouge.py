"""ROUGE-L (Lin 2004) and novelty: which texts differ enough from those before them.

The F-measure is that of rouge_score 0.1.2, with the same floating-point expression, so that a pair
exactly at the threshold is decided in the same way. RapidFuzz computes the longest common
subsequence (bit-parallel) on one code point per token; pairs that cannot be above the threshold
are not compared (see pruning).

>>> rouge_l("Name a warm colour.", "Name a cold colour.")
0.75
>>> [decision.kept for decision in filter_novel(["Name a colour.", "Name a colour!"])]
[True, False]
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rapidfuzz.distance import LCSseq
from rapidfuzz.process import cdist

from alpaca_lib.dataset import pruning
from alpaca_lib.errors import DataError, SettingsError
from alpaca_lib.files import dump_json, parse_json, read_bytes, write_text

MODES = ("rouge", "unicode", "auto")
THRESHOLD = 0.7  # Self-Instruct's limit: above it two instructions count as the same
SCORES_AT_ONCE = 1 << 22  # float64 scores in memory at a time
_ROUGE_TOKEN = re.compile(r"[a-z0-9]+")
_CJK = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af\U00020000-\U0003ffff"
# Vowel signs and accents: part of a word in Hindi, Thai or Arabic, though no letters.
_MARKS = "".join(c for c in map(chr, range(0x300, 0x2100)) if unicodedata.category(c)[0] == "M")
# One token per CJK character (ideographs, kana, Hangul), a run of letters elsewhere.
_UNICODE_TOKEN = re.compile(rf"[{_CJK}]|[^\W_{_CJK}](?:[^\W_{_CJK}]|[{_MARKS}])*")


@dataclass(frozen=True)
class Decision:
    """Whether a text is kept as novel, its highest ROUGE-L, and the known text that has it."""

    kept: bool
    score: float
    nearest: str | None


@dataclass(frozen=True)
class Neighbours:
    """The nearest known texts of a text with their ROUGE-L, and the mean ROUGE-L over all."""

    nearest: dict[str, float]
    mean: float


def tokenize(text: str, mode: str = "rouge") -> list[str]:
    """Returns the tokens that ROUGE compares.

    "rouge" is rouge_score's rule: runs of a-z and 0-9 of the text in lower case, so nothing of a
    Chinese text. "unicode" takes letters and digits of any script. "auto" is "unicode" for a text
    with a letter of another script than Latin, or with over one letter in ten that is not ASCII,
    and "rouge" for any other. Raises SettingsError for another mode.
    """
    if mode == "auto":
        mode = "unicode" if _has_other_letters(text) else "rouge"
    if mode == "rouge":
        return _ROUGE_TOKEN.findall(text.lower())
    if mode == "unicode":
        return _UNICODE_TOKEN.findall(unicodedata.normalize("NFKC", text).lower())
    raise SettingsError(f"mode {mode!r}: use one of {', '.join(MODES)}")


def _has_other_letters(text: str) -> bool:
    if text.isascii():
        return False
    letters = [character for character in text if character.isalpha()]
    others = [letter for letter in letters if not letter.isascii()]
    is_latin = all(letter <= "\u024f" or "\u1e00" <= letter <= "\u1eff" for letter in others)
    return not is_latin or 10 * len(others) > len(letters)


def rouge_l(a: str, b: str, mode: str = "rouge") -> float:
    """Returns the ROUGE-L F-measure of two texts, 0 to 1; 0.0 if either has no token."""
    index = NoveltyIndex(mode=mode)
    index.add(a)
    return float(index.scores(b)[0])


def filter_novel(
    texts: Sequence[str],
    known: Iterable[str] = (),
    threshold: float = THRESHOLD,
    mode: str = "rouge",
    workers: int | None = None,
    full: bool = False,
) -> list[Decision]:
    """Returns one Decision per text, in order.

    A text is kept unless it scores above the threshold against a known text or one kept before it.
    A dropped text's score and nearest are exact; a kept text's are 0.0 and None, or exact with
    ``full``, which compares all pairs. workers: threads, by default one per core. Raises TypeError,
    naming its place, for an item that is not text.
    """
    index = NoveltyIndex(known, threshold, mode, workers or os.cpu_count() or 1)
    decisions = index.extend(texts)
    if not full:
        return decisions
    exact = NoveltyIndex(index.texts[: index.size_at_start], threshold, mode, index.workers)
    for place, text in enumerate(texts):
        if decisions[place].kept:
            decisions[place] = exact.check(text, full=True)
            exact.add(text)
    return decisions


def near_pairs(
    texts: Sequence[str], threshold: float, mode: str = "rouge", workers: int | None = None
) -> list[tuple[int, int, float]]:
    """Returns every (earlier place, later place, ROUGE-L) above the threshold, by later place."""
    index = NoveltyIndex(texts, threshold, mode)
    cores = workers or os.cpu_count() or 1
    return list(pruning.pairs_above(index._encoded, threshold, workers=cores))


class NoveltyIndex:
    """The texts known so far, which decides whether another one is novel.

    ``texts`` holds them in order; ``threshold`` is the ROUGE-L above which a text is not novel.

    >>> index = NoveltyIndex(["Name a colour."])
    >>> index.check("Name a colour!")
    Decision(kept=False, score=1.0, nearest='Name a colour.')
    """

    def __init__(
        self,
        known: Iterable[str] = (),
        threshold: float = THRESHOLD,
        mode: str = "rouge",
        workers: int | None = None,
    ) -> None:
        if not 0 < threshold <= 1:
            raise SettingsError(f"threshold {threshold}: above 0 and at most 1 is needed")
        tokenize("", mode)  # an unknown mode is an error before any work
        self.threshold, self.mode, self.workers = threshold, mode, workers or 1
        self.texts: list[str] = []
        self._encoded: list[str] = []
        self._lengths: list[int] = []
        self._ids: dict[str, str] = {}
        self._finder: pruning.Finder | None = None
        for text in known:
            self.add(text)
        self.size_at_start = len(self.texts)

    def __len__(self) -> int:
        return len(self.texts)

    def add(self, text: str) -> None:
        """Adds a text, whatever its score."""
        self._append(text, self._encode(text))

    def _append(self, text: str, encoded: str) -> None:
        self.texts.append(text)
        self._encoded.append(encoded)
        self._lengths.append(len(encoded))

    def check(self, text: str, full: bool = False) -> Decision:
        """Returns the Decision about a text without adding it; ``full`` as in filter_novel."""
        encoded = self._encode(text)
        if full:
            scores = self._scores([encoded])[0]
            if not len(scores):
                return Decision(True, 0.0, None)
            best = int(scores.argmax())
            kept = bool(scores[best] <= self.threshold)
            return Decision(kept, float(scores[best]), self.texts[best])
        if self._finder is None:
            self._finder = pruning.Finder(self.threshold)
        found = self._finder.nearest_above(encoded, self._encoded)
        if found is None:
            return Decision(True, 0.0, None)
        return Decision(False, found[1], self.texts[found[0]])

    def extend(self, texts: Sequence[str]) -> list[Decision]:
        """Decides about each text in order and adds those that are kept; fast for many.

        Raises TypeError, naming its place, for an item that is not text, before any is added.
        """
        for place, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"text {place} is {type(text).__name__}, not text: leave it out")
        if len(texts) * 20 < len(self.texts):
            decisions = []
            for text in texts:
                decisions.append(self.check(text))
                if decisions[-1].kept:
                    self.add(text)
            return decisions
        start = len(self.texts)
        encoded = [self._encode(text) for text in texts]
        pairs = pruning.pairs_above([*self._encoded, *encoded], self.threshold, start, self.workers)
        rivals: dict[int, list[tuple[float, int]]] = {}
        for earlier, later, score in pairs:
            rivals.setdefault(later, []).append((-score, earlier))
        dropped: set[int] = set()
        decisions = []
        for place, text in enumerate(texts, start):
            # The highest score, the first of equals; a text that was dropped does not count.
            best = min((r for r in rivals.get(place, ()) if r[1] not in dropped), default=None)
            if best is None:
                decisions.append(Decision(True, 0.0, None))
                self._append(text, encoded[place - start])
            else:
                dropped.add(place)
                near = best[1]
                nearest = self.texts[near] if near < start else texts[near - start]
                decisions.append(Decision(False, -best[0], nearest))
        return decisions

    def scores(self, text: str) -> np.ndarray:
        """Returns the ROUGE-L against every known text, float64, shape (known,)."""
        return self._scores([self._encode(text)])[0]

    def score_table(self, texts: Sequence[str]) -> np.ndarray:
        """Returns the ROUGE-L of each text against every known one, float64, (texts, known)."""
        return self._scores([self._encode(text) for text in texts])

    def _scores(self, encoded: list[str], known: list[str] | None = None) -> np.ndarray:
        known = self._encoded if known is None else known
        # LCSseq.similarity is the length of the longest common subsequence.
        common = cdist(
            encoded, known, scorer=LCSseq.similarity, workers=self.workers, dtype=np.int32
        )
        mine = np.array([len(one) for one in encoded], dtype=np.float64)[:, None]
        theirs = np.array(self._lengths[: len(known)], dtype=np.float64)[None, :]
        return pruning.f_measure(common.astype(np.float64), mine, theirs)

    def neighbours(self, text: str, count: int = 10) -> Neighbours:
        """Returns the nearest known texts with their scores, best first, and the mean of all."""
        return self._nearest_of(self.scores(text), count)

    def neighbours_before(self, places: Sequence[int], count: int = 10) -> list[Neighbours]:
        """Returns for the known text at each place its Neighbours among the texts before it."""
        out: list[Neighbours] = []
        block = max(SCORES_AT_ONCE // max(len(self.texts), 1), 1)
        for at in range(0, len(places), block):
            part = places[at : at + block]
            table = self._scores([self._encoded[p] for p in part], self._encoded[: max(part)])
            for place, scores in zip(part, table, strict=True):
                out.append(self._nearest_of(np.ascontiguousarray(scores[:place]), count))
        return out

    def _nearest_of(self, scores: np.ndarray, count: int) -> Neighbours:
        if not len(scores):
            return Neighbours({}, 0.0)
        # Candidates score at least the count-th highest; a stable sort takes the first of equals.
        last = min(count, len(scores)) - 1
        good = np.flatnonzero(scores >= -np.partition(-scores, last)[last])
        order = good[np.argsort(-scores[good], kind="stable")][:count]
        nearest = {self.texts[i]: float(scores[i]) for i in order}
        return Neighbours(nearest, float(scores.mean()))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the index as JSON, atomically, and returns the path."""
        state = {"threshold": self.threshold, "mode": self.mode, "texts": self.texts}
        return write_text(path, dump_json(state))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> NoveltyIndex:
        """Returns the index that ``save`` wrote. Raises DataError for any other file."""
        try:
            state = parse_json(read_bytes(path).decode("utf-8"))
            if not isinstance(state["texts"], list):
                raise TypeError("texts is not a list")
            return cls(state["texts"], threshold=state["threshold"], mode=state["mode"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: is not a saved novelty index ({error})") from None

    def _encode(self, text: str) -> str:
        """Returns the tokens as one code point each, which RapidFuzz compares fast."""
        if not isinstance(text, str):
            raise TypeError(f"a text is needed, not {type(text).__name__}")
        ids = self._ids
        for token in (tokens := tokenize(text, self.mode)):
            if token not in ids:
                code = len(ids) + 1
                ids[token] = chr(code if code < 0xD800 else code + 0x800)  # no surrogates
        return "".join([ids[token] for token in tokens])
