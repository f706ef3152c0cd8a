"""What English instructions ask for: the root verb and its object, found by rules.

Self-Instruct (Wang et al. 2023) found them with the Berkeley neural parser, a separate download.
Instructions are imperative sentences, so rules suffice: the verb is the first
word, or the first after an opening such as "please" or "can you"; the object is the last word of
the noun phrase that follows, up to a preposition, a conjunction, a clause or punctuation.

>>> find_verb_object("Please shorten this paragraph to two sentences.")
('shorten', 'paragraph')
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

LOOKED_AT = 2000  # characters of an instruction, which hold its first sentence
_WORD = re.compile(r"[A-Za-z][A-Za-z'-]*|[.,;:!?()\"]")
_OPENINGS = re.compile(
    r"(please|kindly|now|next|then|first|briefly|just|help me( to)?|i('d| would) like you to|"
    r"i (want|need) you to|(can|could|would|will) you( please)?|you (are asked|have|need) to|"
    r"your (task|job) is to|let us|let's|try to|in [^,]{3,60},|given [^,]{3,80},|"
    r"(using|from|based on|for|with|as|if|imagine|suppose|after|before|when) [^,]{3,80},)\s+",
    re.IGNORECASE,
)


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


# Words that open a clause or a complement: directly after them the verb has no object.
_CLAUSE_WORDS = _set(
    "as because between how if into that to what when where whether which who whom whose why"
)
# Words that end the noun phrase of the object.
_STOP_WORDS = _set(
    "about above according after against among and are as at based be because before below "
    "between but by can could during each for from given has have if in including into is like "
    "not of on only or over per should so such than that then through to under used using via was "
    "were when where which while who whom whose will with within without would"
)
# Determiners, pronouns, numbers and particles, which may precede the object.
_SKIPPED_WORDS = _set(
    "a all an any at both down each eight every few five four her him his it its least many me "
    "more most my nine off one our out seven several six some ten that the their them these this "
    "those three two up us with your"
)
# Question words and pronouns, which open sentences without a root verb.
_OTHER_FIRST_WORDS = _set(
    "am are can could did do does had has have how is may must shall should was were what when "
    "where which who whom whose why will would i i'm i've we you he she they there here no "
    "another"
)
_NOT_VERBS = _OTHER_FIRST_WORDS | _CLAUSE_WORDS | _STOP_WORDS | _SKIPPED_WORDS


def find_verb_object(instruction: str) -> tuple[str | None, str | None]:
    """Returns the (root verb, object) of the first sentence, in lower case; None for a missing one.

    A question has no root verb in this sense.
    """
    text = instruction.strip()[:LOOKED_AT]
    start = 0
    while opening := _OPENINGS.match(text, start):
        start = opening.end()
    first, *rest = [word.lower() for word in _WORD.findall(text, start)] or [""]
    if not first[:1].isalpha() or first in _NOT_VERBS:
        return None, None
    phrase: list[str] = []
    for place, word in enumerate(rest):
        if not word[0].isalpha() or (word in _CLAUSE_WORDS and place == 0):
            break
        if word in _SKIPPED_WORDS and not phrase:
            continue
        if word in _STOP_WORDS:
            break
        phrase.append(word)
    return first, phrase[-1].removesuffix("'s") if phrase else None


def verb_objects(
    instructions: Iterable[str], verbs: int = 20, objects: int = 4
) -> dict[str, dict[str, int]]:
    """Returns {verb: {object: rows}}: the most frequent verbs, each with its most frequent objects.

    The rows of a verb with another object, or none, are summed under "".
    """
    pairs: dict[str, Counter[str]] = {}
    for instruction in instructions:
        verb, noun = find_verb_object(instruction)
        if verb:
            pairs.setdefault(verb, Counter())[noun or ""] += 1
    found = {}
    for verb in sorted(pairs, key=lambda verb: -pairs[verb].total())[:verbs]:
        counts = pairs[verb]
        rows = counts.total()
        del counts[""]
        found[verb] = dict(counts.most_common(objects))
        if rest := rows - sum(found[verb].values()):
            found[verb][""] = rest
    return found
