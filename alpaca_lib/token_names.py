"""Other names for some tokens of a tokenizer, so that their texts are only text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any


def rename_tokens(backend: Any, names: Mapping[str, str]) -> Any:
    """Returns a copy of a tokenizers.Tokenizer in which tokens have other texts: old -> new.

    Everything else is the same, so what it does with the texts around them is too. It adds no
    token before or after a text.
    """
    from tokenizers import Tokenizer

    rules = json.loads(backend.to_str())
    rules |= {"post_processor": None, "truncation": None, "padding": None}
    for added in rules["added_tokens"]:
        added["content"] = names.get(added["content"], added["content"])
    model = rules["model"]
    if isinstance(vocab := model["vocab"], dict):
        model["vocab"] = {names.get(text, text): token for text, token in vocab.items()}
    else:  # Unigram's pairs of text and score
        model["vocab"] = [[names.get(text, text), score] for text, score in vocab]
    if (unknown := model.get("unk_token")) in names:
        model["unk_token"] = names[unknown]
    if merges := model.get("merges"):
        pairs = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in merges]
        model["merges"] = [
            list(pair) for pair in pairs if not {*pair, "".join(pair)} & names.keys()
        ]
    return Tokenizer.from_str(json.dumps(rules))


def any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Returns a pattern of any of the texts, longer ones first."""
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def replace_texts(names: Mapping[str, str], text: str) -> str:
    """Returns a text in which each key of ``names`` is replaced by its value."""
    return any_of(names).sub(lambda match: names[match[0]], text)
