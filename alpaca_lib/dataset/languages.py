"""Which language a text is in, as far as a measure has to know: by script and frequent words.

A measure that knows the words of some languages only says so of rows in others (``unjudged``).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable

from alpaca_lib.dataset.rouge import tokenize
from alpaca_lib.records import Example

LOOKED_AT = 2000  # characters of a text that decide
# The most frequent words by language; Chinese is recognised by its characters.
COMMON_WORDS = {
    "en": "the and of to is in it you that for was with are this have be not on",
    "fr": "le la les et de des du est une un je vous nous pour dans que qui pas au avec ce",
    "de": "der die das und ist ein eine ich sie wir nicht mit zu den dem auf für im es bitte",
    "es": "el la los las y de es un una que en por para con no se su me muy al lo del",
    "it": "il la gli e di è un una che per con non si sono del della mi al nel ci lo",
}
_ENGLISH = frozenset(COMMON_WORDS["en"].split())
ENGLISH_SHARE = 0.1  # of the words; French, German, Dutch or Polish texts reach 0.06
_SCRIPTS = {
    "ja": re.compile(r"[\u3041-\u30ff]"),
    "ko": re.compile(r"[\uac00-\ud7af]"),
    "zh": re.compile(r"[\u3400-\u9fff]"),
    "th": re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]"),  # Thai, Lao, Burmese, Khmer
    "latin": re.compile(r"[A-Za-z\u00c0-\u024f\u1e00-\u1eff]"),
}
NO_SPACES = frozenset({"th"})  # scripts whose words ``records.words`` cannot count


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


def language_of(example: Example) -> str | None:
    """Returns "en", "zh", "ja", "ko", "th" (and scripts like it), or "other"; None if unclear.

    A text of a few words, a table of numbers and code are unclear.
    """
    text = " ".join((example.instruction, example.input[:400], example.output))[:LOOKED_AT]
    if not text.isascii() and (found := _script_of(text)) != "latin":
        return found
    tokens = tokenize(text, "unicode")
    if len(tokens) < 12:
        return None
    if sum(token in _ENGLISH for token in tokens) >= ENGLISH_SHARE * len(tokens):
        return "en"
    found = detect_language(text)
    if found in (None, "en", "zh"):
        # Words with accents, which code and English lack, decide about the other languages.
        accents = sum(not token.isascii() for token in tokens)
        return "other" if accents > 0.08 * len(tokens) else None
    return "other"


def _script_of(text: str) -> str | None:
    """Returns "latin", a language with its own script, or "other"; None without letters."""
    letters = {name: len(script.findall(text)) for name, script in _SCRIPTS.items()}
    total = sum(character.isalpha() for character in text)
    if total < 6:
        return None
    if letters["ja"] > 0.1 * total:
        return "ja"
    if letters["zh"] > 0.3 * total:
        return "zh"
    for name in ("ko", "th"):
        if letters[name] > 0.3 * total:
            return name
    return "latin" if letters["latin"] >= 0.5 * total else "other"


def unjudged(languages: Iterable[str | None], known: Collection[str]) -> Counter[str]:
    """Returns the number of rows by language that a measure for the ``known`` ones cannot judge."""
    return Counter(one for one in languages if one is not None and one not in known)
