"""Constraints of a task that a program can check, as IFEval's (arXiv:2311.07911)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from alpaca_lib.dataset.rouge import tokenize
from alpaca_lib.errors import DataError

CHECKS: dict[str, Callable[[str, Any], bool]] = {
    "words_max": lambda text, n: len(text.split()) <= n,
    "words_min": lambda text, n: len(text.split()) >= n,
    "contains": lambda text, parts: all(part.lower() in text.lower() for part in parts),
    "excludes": lambda text, parts: not any(part.lower() in text.lower() for part in parts),
    "lines": lambda text, n: sum(bool(line.strip()) for line in text.splitlines()) == n,
    "exact": lambda text, wanted: text.strip() == wanted,
    "starts": lambda text, wanted: text.strip().startswith(wanted),
    "ends": lambda text, wanted: text.strip().endswith(wanted),
    "bullets": lambda text, n: sum(line.startswith("- ") for line in text.splitlines()) == n,
    "json": lambda text, keys: _is_json_object(text, keys),
    "language": lambda text, code: detect_language(text) == code,
}
# The most frequent words by language; Chinese is recognised by its characters.
COMMON_WORDS = {
    "en": "the and of to is in it you that for was with are this have be not on",
    "fr": "le la les et de des du est une un je vous nous pour dans que qui pas au avec ce",
    "de": "der die das und ist ein eine ich sie wir nicht mit zu den dem auf für im es bitte",
    "es": "el la los las y de es un una que en por para con no se su me muy al lo del",
    "it": "il la gli e di è un una che per con non si sono del della mi al nel ci lo",
}


def detect_language(text: str) -> str | None:
    """Returns the language of a text ("zh" or a key of COMMON_WORDS), or None if it is unclear."""
    tokens = tokenize(text, "unicode")
    if sum("\u4e00" <= token[0] <= "\u9fff" for token in tokens) * 2 > len(tokens):
        return "zh"
    hits = {
        code: sum(token in words.split() for token in tokens)
        for code, words in COMMON_WORDS.items()
    }
    best = max(hits, key=lambda code: hits[code])
    return best if hits[best] and list(hits.values()).count(hits[best]) == 1 else None


def _is_json_object(text: str, keys: list[str]) -> bool:
    """Returns whether a text is one JSON object with exactly these keys."""
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return isinstance(value, dict) and sorted(value) == sorted(keys)


def meets(check: dict[str, Any], text: str) -> bool:
    """Returns whether an answer meets a constraint such as {"words_max": 20}; an empty one never.

    Raises DataError for an unknown constraint or a value of the wrong type.
    """
    if not isinstance(check, dict) or not check or any(name not in CHECKS for name in check):
        raise DataError(f"check {check}: use {', '.join(CHECKS)}")
    try:
        met = [CHECKS[name](text, value) for name, value in check.items()]
    except (TypeError, AttributeError) as error:
        raise DataError(f"check {check}: a value of the wrong kind ({error})") from None
    return bool(text.strip()) and all(met)
