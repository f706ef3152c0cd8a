"""ROUGE-L novelty: which texts are new, compared with those known so far.

The F-measure is rouge_score 0.1.2's, with its own float expression, so that a
pair that lies exactly at the border is decided as there. The longest common
subsequence comes from RapidFuzz (bit-parallel), one code point per token; pairs
that cannot be above the threshold are not compared (see pruning).
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
from alpaca_lib.errors import DataError
from alpaca_lib.files import dump_json, write_text

MODES = ("rouge", "unicode")
SCORES_AT_ONCE = 1 << 22  # a table of so many float64 at a time
_ROUGE_TOKEN = re.compile(r"[a-z0-9]+")
# One token per CJK character (ideographs, kana, Hangul), a run of letters elsewhere.
_UNICODE_TOKEN = re.compile(
    r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af\U00020000-\U0003ffff]"
    r"|[^\W_\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af"
    r"\U00020000-\U0003ffff]+"
)


@dataclass(frozen=True)
class Decision:
    """Whether a text is novel; its highest ROUGE-L and the text that has it."""

    kept: bool
    score: float
    nearest: str | None


@dataclass(frozen=True)
class Neighbours:
    """All of a text's ROUGE-L against an index: the ten nearest, and the mean."""

    nearest: dict[str, float]
    mean: float


def tokenize(text: str, mode: str = "rouge") -> list[str]:
    """The tokens that ROUGE compares.

    "rouge" is rouge_score's rule: lower case, runs of a-z and 0-9, nothing else
    (so no Chinese at all). "unicode" takes letters and digits of any script.
    """
    if mode == "rouge":
        return _ROUGE_TOKEN.findall(text.lower())
    if mode == "unicode":
        return _UNICODE_TOKEN.findall(unicodedata.normalize("NFKC", text).lower())
    raise ValueError(f"mode {mode!r}: use one of {', '.join(MODES)}")


def rouge_l(a: str, b: str, mode: str = "rouge") -> float:
    """The ROUGE-L F-measure of two texts (Lin 2004), 0.0 if either has no token."""
    index = NoveltyIndex(mode=mode)
    index.add(a)
    return float(index.scores(b)[0])


def filter_novel(
    texts: Sequence[str],
    known: Iterable[str] = (),
    threshold: float = 0.7,
    mode: str = "rouge",
    workers: int | None = None,
    full: bool = False,
) -> list[Decision]:
    """One Decision a text, in order: kept unless it scores above the threshold
    against a known text or one kept before it.

    A rejected text's score and nearest are exact. A kept text's are so with ``full``,
    which compares all pairs; without it score is 0.0 and nearest None.
    workers: threads, by default one a core. TypeError names the place of what is not text.
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
    """Every (earlier place, later place, ROUGE-L) above the threshold, by later place."""
    index = NoveltyIndex(texts, threshold, mode)
    pairs = pruning.pairs_above(index._encoded, threshold, 0, workers or os.cpu_count() or 1)
    lengths = np.array(index._lengths, dtype=np.float64)
    scores = pruning.f_measure(
        pairs.common.astype(np.float64), lengths[pairs.earlier], lengths[pairs.later]
    )
    columns = (pairs.earlier.tolist(), pairs.later.tolist(), scores.tolist())
    return list(zip(*columns, strict=True))


class NoveltyIndex:
    """Texts so far, and whether the next one is new; grows in place."""

    def __init__(
        self,
        known: Iterable[str] = (),
        threshold: float = 0.7,
        mode: str = "rouge",
        workers: int | None = None,
    ) -> None:
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold {threshold}: it lies above 0 and at most at 1")
        tokenize("", mode)  # refuses an unknown mode before any work
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
        """Makes a text known, whatever its score."""
        self._append(text, self._encode(text))

    def _append(self, text: str, encoded: str) -> None:
        self.texts.append(text)
        self._encoded.append(encoded)
        self._lengths.append(len(encoded))

    def check(self, text: str, full: bool = False) -> Decision:
        """The Decision about a text, which is not added; ``full`` as in filter_novel()."""
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
        return (
            Decision(False, found[1], self.texts[found[0]]) if found else Decision(True, 0.0, None)
        )

    def extend(self, texts: Sequence[str]) -> list[Decision]:
        """check() and, if it is kept, add() for each text in order; fast for many.

        TypeError, with its place and before any is added, if one is not text.
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
        lengths = np.array([*self._lengths, *map(len, encoded)], dtype=np.float64)
        scores = pruning.f_measure(
            pairs.common.astype(np.float64), lengths[pairs.earlier], lengths[pairs.later]
        )
        rivals: dict[int, list[tuple[float, int]]] = {}
        for earlier, later, score in zip(
            pairs.earlier.tolist(), pairs.later.tolist(), scores.tolist(), strict=True
        ):
            rivals.setdefault(later, []).append((-score, earlier))
        dropped: set[int] = set()
        decisions = []
        for place in range(start, start + len(texts)):
            # The best, and of equals the first; what was itself dropped does not count.
            best = min((r for r in rivals.get(place, ()) if r[1] not in dropped), default=None)
            if best is None:
                decisions.append(Decision(True, 0.0, None))
            else:
                dropped.add(place)
                near = best[1]
                nearest = self.texts[near] if near < start else texts[near - start]
                decisions.append(Decision(False, -best[0], nearest))
        for decision, text, code in zip(decisions, texts, encoded, strict=True):
            if decision.kept:
                self._append(text, code)
        return decisions

    def scores(self, text: str) -> np.ndarray:
        """ROUGE-L against every known text, float64, in order of adding."""
        return self._scores([self._encode(text)])[0]

    def score_table(self, texts: Sequence[str]) -> np.ndarray:
        """ROUGE-L of each text (rows) against every known one (columns), float64."""
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
        """The nearest known texts with their scores, best first, and the mean of all."""
        return self._nearest_of(self.scores(text), count) if self.texts else Neighbours({}, 0.0)

    def neighbours_before(self, places: Sequence[int], count: int = 10) -> list[Neighbours]:
        """For the known text at each place its Neighbours among those before it."""
        out: list[Neighbours] = []
        block = max(SCORES_AT_ONCE // max(len(self.texts), 1), 1)
        for at in range(0, len(places), block):
            part = places[at : at + block]
            upto = self._encoded[: max(part)]
            for place, scores in zip(
                part, self._scores([self._encoded[p] for p in part], upto), strict=True
            ):
                before = np.ascontiguousarray(scores[:place])
                out.append(self._nearest_of(before, count) if place else Neighbours({}, 0.0))
        return out

    def _nearest_of(self, scores: np.ndarray, count: int) -> Neighbours:
        # Those at least as good as the last of the best, and of equals the first.
        last = min(count, len(scores)) - 1
        good = np.flatnonzero(scores >= -np.partition(-scores, last)[last])
        order = good[np.argsort(-scores[good], kind="stable")][:count]
        nearest = {self.texts[i]: float(scores[i]) for i in order}
        return Neighbours(nearest, float(scores.mean()))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the index as JSON, whole or not at all."""
        state = {"threshold": self.threshold, "mode": self.mode, "texts": self.texts}
        return write_text(path, dump_json(state))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> NoveltyIndex:
        """The index that save() wrote."""
        import json

        try:
            state = json.loads(Path(path).read_text(encoding="utf-8"))
            if not isinstance(state["texts"], list):
                raise TypeError("texts is not a list")
            return cls(state["texts"], threshold=state["threshold"], mode=state["mode"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: is not a saved novelty index ({error})") from None

    def _encode(self, text: str) -> str:
        """The tokens as one code point each, so that RapidFuzz compares them fast."""
        if not isinstance(text, str):
            raise TypeError(f"a text is needed, not {type(text).__name__}")
        ids = self._ids
        for token in (tokens := tokenize(text, self.mode)):
            if token not in ids:
                code = len(ids) + 1
                ids[token] = chr(code if code < 0xD800 else code + 0x800)  # no surrogates
        return "".join([ids[token] for token in tokens])
