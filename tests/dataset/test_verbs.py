"""The root verb and its object, on sentences that a reader can parse."""

from __future__ import annotations

import pytest

from alpaca_lib.dataset.verbs import find_verb_object, verb_objects


@pytest.mark.parametrize(
    ("instruction", "verb", "noun"),
    [
        ("Write a short story about a lost key.", "write", "story"),
        ("Explain why ice floats on water.", "explain", None),
        ("Name three rivers that flow through Africa.", "name", "rivers"),
        ("Please shorten this paragraph to two sentences.", "shorten", "paragraph"),
        ("Could you please sort these numbers?", "sort", "numbers"),
        ("Given a list of prices, compute the mean price.", "compute", "price"),
        ("Come up with a name for a bakery.", "come", "name"),
        ("Re-write the sentence in the past tense.", "re-write", "sentence"),
        ("Give me four tips for a job interview.", "give", "tips"),
        ("Translate into German: good morning.", "translate", None),
        ("What is the capital of Peru?", None, None),
        ("How many bones has a hand?", None, None),
        ("My neighbour has a dog that barks. Help me.", None, None),
        ("Three brothers share a cake.", None, None),
        ("", None, None),
        ("请写一首诗。", None, None),
        ("Sort.", "sort", None),
    ],
)
def test_root(instruction, verb, noun):
    """As a reader would name them."""
    assert find_verb_object(instruction) == (verb, noun)


def test_verb_objects():
    """The most frequent first, at most as many as asked for."""
    texts = [
        "Write a poem.", "Write a poem about rain.", "Write a letter.", "Name a river.", "Why so?",
    ]  # fmt: skip
    assert verb_objects(texts) == {"write": {"poem": 2, "letter": 1}, "name": {"river": 1}}
    assert verb_objects(texts, verbs=1, objects=1) == {"write": {"poem": 2, "": 1}}
