"""How an answer ends: regularly, or cut off in the middle.

Only the last characters are looked at, so that the time does not depend on the text's length.
"""

from __future__ import annotations

import re
import unicodedata

from alpaca_lib.records import CJK, words

TAIL = 400  # characters that are looked at
_LIST_ITEM = re.compile(r"([-*•]|\d+[.)、])\s*\S")
_OPEN_MARKS = frozenset(",，、:：;；#&@\\/%-–—_¿¡")  # punctuation that does not end a sentence
_ADDRESS = re.compile(r"(https?://|www\.)\S+$")
_HASHTAG = re.compile(r"#\w{1,60}$")
_LAST_WORD = re.compile(r"[^\W_]+\Z")
# In lower case: "Vitamin A" and "Type OR" are complete.
_OPEN_WORDS = frozenset(
    ("a", "an", "the", "and", "or", "of", "to", "as", "is", "are", "was", "be", "its", "their")
) | {"than"}
_OPEN_CHINESE = (
    "以及",
    "和",
    "与",
    "或",
    "或者",
    "并且",
    "而且",
    "因为",
    "但是",
    "所以",
    "如果",
    "與",
    "並且",
    "因為",
)
_COMMA = re.compile(r"\w{1,40} \w{1,40} \w{1,40} \w{1,40},\Z")
_LABEL = re.compile(r"(?<!\w)[A-Z]\Z|\d\Z")  # "Vitamin A", "is 12"
_TWENTY = re.compile(r"(?<![\d.,$€£:/-])\b20\Z")


def ends_properly(text: str) -> bool:
    """Returns whether an answer has a regular end: punctuation, a bracket, a list item or a label.

    An answer that was cut off ends in a comma, a bare "=" or "$", or a word such as "the".
    """
    tail = text[-TAIL:].rstrip() or text.rstrip()[-TAIL:]
    if not tail:
        return False
    if _is_closed(tail[-1]) or _ADDRESS.search(tail) or _HASHTAG.search(tail):
        return True
    if _find_open_end(tail) is not None:
        return False
    if _LABEL.search(tail) and not _TWENTY.search(tail):
        return True
    last = tail.splitlines()[-1].strip()
    return words(last) <= 8 or bool(_LIST_ITEM.match(last))


def _is_closed(character: str) -> bool:
    """Returns whether a character closes a text: punctuation, a bracket, a quote, a symbol."""
    if character in "`|*~;°%":
        return True
    if character in _OPEN_MARKS:
        return False
    return unicodedata.category(character) in ("Po", "Pe", "Pf", "Pi", "So", "Sk")


def find_break(text: str, task: str) -> tuple[int, int] | None:
    """Returns the place where an answer breaks off, or None.

    These ends break off: "20", "=", "$", a comma in a sentence, a word such as "the", unless the
    ``task`` ends in the same word.
    """
    end = len(text.rstrip())
    start = max(end - TAIL, 0)
    tail = text[start:end]
    place = _find_open_end(tail)
    if place is None and tail.endswith("20") and (found := _TWENTY.search(tail)):
        place = found.start()
    if place is None:
        return None
    asked = task[-TAIL:].rstrip()
    if CJK.search(tail[-8:]) or tail[place] in "，、":
        repeats = asked.endswith(tail[place:])
    else:
        repeats = bool(asked) and asked.split()[-1] == tail.split()[-1]
    return None if repeats or words(tail) < 2 else (start + place, end)


def _find_open_end(tail: str) -> int | None:
    """Returns where the word or mark begins that leaves a text open, or None."""
    last = tail[-1:]
    if last and last in "=$(，、":
        return len(tail) - 1
    if last == ",":
        found = _COMMA.search(tail[-170:])
        return len(tail) - len(found[0]) if found else None
    word = _LAST_WORD.search(tail[-40:])
    if word and word[0] in _OPEN_WORDS:
        return len(tail) - len(word[0])
    chinese = next((one for one in _OPEN_CHINESE if tail.endswith(one)), "")
    return len(tail) - len(chinese) if chinese else None
