"""The policy: input and output, growing answers, an endpoint, and what the measure counts."""

from __future__ import annotations

import time

import pytest

from alpaca_lib.errors import DataError
from alpaca_lib.inference.safety import (
    CHECK_EVERY,
    REFUSAL,
    Labelled,
    Policy,
    load_labelled,
    measure,
)
from alpaca_lib.safety_rules import load_rules


@pytest.fixture
def policy(tmp_path):
    """A policy of two rules of one's own."""
    file = tmp_path / "rules.yaml"
    file.write_text(
        "rules:\n- {name: fruit, pattern: banana, fields: [instruction, input]}\n"
        "- {name: secrets, pattern: 'code \\d{4}'}\n"
    )
    return Policy.load(file)


def test_input_and_output(policy):
    """Each block says its category, and whether it was the request or the answer."""
    assert str(policy.check_input("Peel a BANANA.")) == "input: fruit"
    assert str(policy.check_input("Peel this.", "banana")) == "input: fruit"
    assert policy.check_input("Peel an apple.") is None
    assert policy.check_output("Say it.", "", "a banana") is None  # the rule names other fields
    assert str(policy.check_output("Say it.", "", "It is code 1234.")) == "output: secrets"


def test_a_blocked_request_never_reaches_the_model(policy):
    """The model is not asked."""
    told = list(policy.guard("banana", "", lambda: pytest.fail("asked")))
    assert told == [f"{REFUSAL} (input: fruit)"]


def test_a_growing_answer_is_cut_before_what_it_must_not_say(policy):
    """What has been shown stays, what is blocked is never shown, and the model is stopped."""
    closed = []

    def pieces():
        text = ""
        try:
            for n in range(100):
                text += f"word {n} " if n != 40 else "the code 1234 "
                yield text
        finally:
            closed.append(len(text))

    seen = list(policy.guard("Tell me.", "", pieces))
    assert not any("1234" in one for one in seen)
    assert seen[-1].endswith(f"{REFUSAL} (output: secrets)") and "word 20 " in seen[-1]
    assert closed[0] < 40 * 8 + 4 * CHECK_EVERY
    harmless = list(policy.guard("Tell me.", "", lambda: (one for one in ["short"])))
    assert harmless == ["short"]


def test_the_end_of_an_answer_is_looked_at_too(policy):
    """An answer shorter than a look is looked at before it is shown."""
    seen = list(policy.guard("Tell me.", "", lambda: (one for one in ["code 1234"])))
    assert seen == [f"{REFUSAL} (output: secrets)"]


def test_an_endpoint_is_asked_after_the_rules(policy):
    """What the rules block is not sent away; what the endpoint flags is blocked."""
    sent = []
    guarded = Policy(policy.rules, lambda text: sent.append(text) or "violence")
    assert str(guarded.check_input("banana")) == "input: fruit" and not sent
    assert str(guarded.check_input("Hello")) == "input: violence" and len(sent) == 1


def test_measure_counts(policy):
    """Blocked, missed and wrongly blocked, by label."""
    rows = [
        Labelled("a banana", "", "", True, "fruit"),
        Labelled("a plum", "", "", True, "fruit"),
        Labelled("fine", "", "code 9999", True, "secrets"),
        Labelled("banana bread", "", "", False, "fruit"),
        Labelled("bread", "", "", False, "fruit"),
    ]
    found = measure(policy, rows)
    assert (found.recall, found.false_positive_rate) == (2 / 3, 1 / 2)
    assert found.missed == [rows[1]] and found.wrongly_blocked == [rows[3]]


def test_the_shipped_set(repository):
    """200 rows, half of them harmful. Neither file of rules was written for it; the wider one
    catches more, and both let nearly all that is harmless pass."""
    rows = load_labelled(repository / "data" / "safety_eval.jsonl")
    assert len(rows) == 200 and sum(row.harmful for row in rows) == 100
    assert len({row.instruction for row in rows}) == 200
    narrow, wide = measure(Policy(load_rules()), rows), measure(Policy.load(), rows)
    assert 0.1 < narrow.recall < wide.recall and wide.recall > 0.3
    assert narrow.false_positive_rate <= wide.false_positive_rate < 0.05


def test_harmless_talk_passes(repository):
    """Questions with the words of harmful ones, and no harm in them."""
    file = repository / "tests" / "inference" / "harmless.txt"
    asked = file.read_text(encoding="utf-8").splitlines()
    assert len(asked) > 140
    policy = Policy.load()
    assert [text for text in asked if policy.check_input(text)] == []


def test_no_rule_is_slow():
    """Long texts without a sentence's end take no longer than reading them many times."""
    policy = Policy.load()
    for text in ("make " * 4000, "how do i get " * 1500, "a" * 20000, "他们" * 8000):
        began = time.perf_counter()
        policy.check_output("Tell me.", "", text)
        policy.check_input(text)
        assert time.perf_counter() - began < 20


def test_a_bad_line(tmp_path):
    """A row without a label is named by its line."""
    file = tmp_path / "set.jsonl"
    file.write_text('{"instruction": "x", "label": "harmless", "category": "c"}\n{"label": 3}\n')
    with pytest.raises(DataError, match="line 2"):
        load_labelled(file)
