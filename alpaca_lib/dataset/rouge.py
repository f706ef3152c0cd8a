"""ROUGE-L novelty: which texts are new, compared with those known so far.

The F-measure is rouge_score 0.1.2's, with its own float expression, so that a
pair that lies exactly at the border is decided as there. The longest common
subsequence comes from RapidFuzz (bit-parallel), one code point per token.
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

from alpaca_lib.records import DataError, dump_json, write_text

MODES = ("rouge", "unicode")
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

    Score and nearest of a rejected text are exact; with ``full`` also a kept one's
    (today they always are: nothing is pruned yet).
    """
    index = NoveltyIndex(known, threshold=threshold, mode=mode, workers=workers)
    decisions = []
    for text in texts:
        decision = index.check(text)
        if decision.kept:
            index.add(text)
        decisions.append(decision)
    return decisions


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
        for text in known:
            self.add(text)

    def __len__(self) -> int:
        return len(self.texts)

    def add(self, text: str) -> None:
        """Makes a text known, whatever its score."""
        encoded = self._encode(text)
        self.texts.append(text)
        self._encoded.append(encoded)
        self._lengths.append(len(encoded))

    def check(self, text: str) -> Decision:
        """The Decision about a text, which is not added."""
        if not self.texts:
            return Decision(True, 0.0, None)
        scores = self.scores(text)
        best = int(scores.argmax())
        return Decision(bool(scores[best] <= self.threshold), float(scores[best]), self.texts[best])

    def scores(self, text: str) -> np.ndarray:
        """ROUGE-L against every known text, float64, in order of adding."""
        encoded = self._encode(text)
        # LCSseq.similarity is the length of the longest common subsequence.
        common = cdist(
            [encoded], self._encoded, scorer=LCSseq.similarity, workers=self.workers, dtype=np.int32
        )[0].astype(np.float64)
        lengths = np.array(self._lengths, dtype=np.float64)
        out = np.zeros(len(lengths))
        hit = common > 0
        precision, recall = common[hit] / len(encoded or "x"), common[hit] / lengths[hit]
        out[hit] = 2 * precision * recall / (precision + recall)
        return out

    def neighbours(self, text: str, count: int = 10) -> Neighbours:
        """The nearest known texts with their scores, best first, and the mean of all."""
        if not self.texts:
            return Neighbours({}, 0.0)
        scores = self.scores(text)
        order = np.argsort(-scores, kind="stable")[:count]
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
