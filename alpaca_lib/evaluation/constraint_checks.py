"""Constraints of a task that a program can check, as IFEval's (arXiv:2311.07911).

Words are those of ``records.words``: runs between white space, and each Chinese, Japanese or Korean
character by itself. "At most 20 characters" (不超过20字) is ``chars_max``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from alpaca_lib.dataset.languages import detect_language
from alpaca_lib.errors import DataError
from alpaca_lib.files import parse_json
from alpaca_lib.records import words

CHECKS: dict[str, Callable[[str, Any], bool]] = {
    "words_max": lambda text, n: words(text) <= n,
    "words_min": lambda text, n: words(text) >= n,
    "chars_max": lambda text, n: count_characters(text) <= n,
    "chars_min": lambda text, n: count_characters(text) >= n,
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


def count_characters(text: str) -> int:
    """Returns the number of characters without white space, as Chinese limits count them."""
    return sum(not character.isspace() for character in text)


def _is_json_object(text: str, keys: list[str]) -> bool:
    """Returns whether a text is one JSON object with exactly these keys."""
    try:
        value = parse_json(text)
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
