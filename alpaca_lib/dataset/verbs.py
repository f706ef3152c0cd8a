"""What English instructions ask for: the root verb and its object, without a parser.

Self-Instruct found them with a constituency parser that has to be downloaded. An
instruction is a plain kind of sentence, so rules do: the verb stands first, or after
an opening such as "please" or "can you"; the object is the last word of the phrase
that follows it, up to a preposition, a conjunction, a clause or a stop.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

_WORD = re.compile(r"[A-Za-z][A-Za-z'-]*|[.,;:!?()\"]")
_OPENINGS = re.compile(
    r"^(please|kindly|now|next|then|first|briefly|just|help me( to)?|i('d| would) like you to|"
    r"i (want|need) you to|(can|could|would|will) you( please)?|you (are asked|have|need) to|"
    r"your (task|job) is to|let us|let's|try to|in [^,]{3,60},|given [^,]{3,80},|"
    r"(using|from|based on|for|with|as|if|imagine|suppose|after|before|when) [^,]{3,80},)\s+",
    re.IGNORECASE,
)
_QUESTION = frozenset(
    {
        *("am", "are", "can", "could", "did", "do", "does", "had", "has", "have", "how", "is"),
        *("may", "must", "shall", "should", "was", "were", "what", "when", "where", "which"),
        *("who", "whom", "whose", "why", "will", "would"),
    }
)  # fmt: skip
# Words that open no phrase with an object: after them the verb has none to name.
_CLAUSE = frozenset(
    {
        *("as", "because", "between", "how", "if", "into", "that", "to", "what", "when"),
        *("where", "whether", "which", "who", "whom", "whose", "why"),
    }
)  # fmt: skip
_STOPS = frozenset(
    {
        *("about", "above", "according", "after", "against", "among", "and", "are", "as", "at"),
        *("based", "be", "because", "before", "below", "between", "but", "by", "can", "could"),
        *("during", "each", "for", "from", "given", "has", "have", "if", "in", "including"),
        *("into", "is", "like", "not", "of", "on", "only", "or", "over", "per", "should", "so"),
        *("such", "than", "that", "then", "through", "to", "under", "used", "using", "via"),
        *("was", "were", "when", "where", "which", "while", "who", "whom", "whose", "will"),
        *("with", "within", "without", "would"),
    }
)  # fmt: skip
_SKIPPED = frozenset(
    {
        *("a", "all", "an", "any", "at", "both", "down", "each", "eight", "every", "few"),
        *("five", "four", "her", "him", "his", "it", "its", "least", "many", "me", "more"),
        *("most", "my", "nine", "off", "one", "our", "out", "seven", "several", "six", "some"),
        *("ten", "that", "the", "their", "them", "these", "this", "those", "three", "two"),
        *("up", "us", "with", "your"),
    }
)  # fmt: skip
# What an instruction may open with that is no verb: a question word, an article, a pronoun.
_PRONOUNS = ("i", "i'm", "i've", "we", "you", "he", "she", "they", "there", "here", "no", "another")
_NO_VERB = _QUESTION | _CLAUSE | _STOPS | _SKIPPED | set(_PRONOUNS)


def root(instruction: str) -> tuple[str | None, str | None]:
    """(verb, object) of an instruction, in lower case; None for what it has not.

    A question has no root verb here: it asks with its form. The first sentence counts.
    """
    text = instruction.strip()
    while found := _OPENINGS.match(text):
        text = text[found.end() :]
    words = _WORD.findall(text)
    if not words or not words[0][0].isalpha() or words[0].lower() in _NO_VERB:
        return None, None
    verb, phrase = words[0].lower(), list[str]()
    for place, word in enumerate(words[1:]):
        low = word.lower()
        if not word[0].isalpha() or (low in _CLAUSE and place == 0):
            break
        if low in _SKIPPED and not phrase:
            continue
        if low in _STOPS:
            break
        phrase.append(low)
    noun = phrase[-1].removesuffix("'s") if phrase else None
    return verb, noun


def verb_objects(
    instructions: Iterable[str], verbs: int = 20, objects: int = 4
) -> dict[str, dict[str, int]]:
    """{verb: {object: rows}}: the most frequent verbs, each with its most frequent objects.

    The rows of a verb with other objects, or none, are added up under "".
    """
    counts: Counter[str] = Counter()
    pairs: dict[str, Counter[str]] = {}
    for instruction in instructions:
        verb, noun = root(instruction)
        if verb:
            counts[verb] += 1
            if noun:
                pairs.setdefault(verb, Counter())[noun] += 1
    found = {}
    for verb, rows in counts.most_common(verbs):
        named = dict(pairs.get(verb, Counter()).most_common(objects))
        rest = rows - sum(named.values())
        found[verb] = {**named, "": rest} if rest else named
    return found
