"""The judge: simulated judges whose bias is known, both orders, replies that were paid for."""

from __future__ import annotations

import random
import re
import threading
import time

import pytest

from alpaca_lib.errors import ModelError
from alpaca_lib.evaluation.llm_judge import (
    Pair,
    judge,
    length_controlled,
    open_judge,
    parse_verdict,
)
from alpaca_lib.records import Example


def pairs_of(count, seed=0):
    """Pairs whose answers say how good they are, from 0 to 9, and differ in length."""
    draw = random.Random(seed)
    out = []
    for number in range(count):
        one, two = draw.randrange(10), draw.randrange(10)
        texts = [f"quality {q} " + "x" * draw.randrange(200) for q in (one, two)]
        out.append(Pair(f"task {number}", *texts))
    return out


def shown(prompt):
    """(quality of A, quality of B, length of A, length of B) in a judge's prompt."""
    a, b = re.findall(r"quality (\d)", prompt)
    first, second = prompt.split("[Answer A]")[1].split("[End]")[0].split("[Answer B]")
    return int(a), int(b), len(first), len(second)


def honest(prompt):
    """The better one; a tie if they are equal."""
    a, b, *_ = shown(prompt)
    return "A" if a > b else "B" if b > a else "T"


def test_an_honest_judge():
    """Its verdicts are the truth, the same in both orders, and no place is preferred."""
    pairs = pairs_of(80)
    found = judge(pairs, honest)
    truth = [(a > b) + (a == b) / 2 for a, b in ((int(p.one[8]), int(p.two[8])) for p in pairs)]
    assert [outcome for _, outcome in found.decided] == truth
    assert found.consistency == 1.0
    assert found.first_position.value == 0.5
    assert found.win_rate.value == pytest.approx(sum(truth) / 80)


def test_position_bias_is_found():
    """A judge that takes the first one of four times whatever stands there: half is not in the
    interval of the first place, and the verdicts that its bias made are ties."""
    draw = random.Random(3)
    found = judge(
        pairs_of(200), lambda p: "A" if draw.random() < 0.25 else honest(p), concurrency=1
    )
    assert 0.5 not in found.first_position and found.first_position.value > 0.55
    assert found.consistency < 0.9
    always = judge(pairs_of(40), lambda _: "A")
    assert always.first_position.value == 1.0 and always.consistency == 0.0
    assert {outcome for _, outcome in always.decided} == {0.5}


def test_length_bias_is_taken_out():
    """A judge that likes the longer one: the win rate follows length, the controlled one not."""
    draw = random.Random(5)
    pairs = [
        Pair(f"task {n}", "quality 5 " + "x" * draw.randrange(100, 300),
             "quality 5 " + "x" * draw.randrange(200))
        for n in range(400)
    ]  # fmt: skip

    def longer(prompt):
        *_, first, second = shown(prompt)
        return "A" if first - second > draw.gauss(0, 60) else "B"

    found = judge(pairs, longer, concurrency=1)
    assert found.win_rate.value > 0.7
    assert abs(found.length_controlled - 0.5) < 0.12


def test_length_controlled_without_length():
    """Where length says nothing it is the win rate; where one side wins all it is finite."""
    draw = random.Random(0)
    outcomes = [float(draw.random() < 0.7) for _ in range(2000)]
    lengths = [draw.gauss(0, 1) for _ in outcomes]
    assert length_controlled(outcomes, lengths) == pytest.approx(sum(outcomes) / 2000, abs=0.01)
    assert 0.9 < length_controlled([1.0] * 50, lengths[:50]) <= 1.0


@pytest.mark.parametrize(
    ("reply", "said"),
    [("A", 1.0), (" b.", 0.0), ("**T**", 0.5), ("Tie", 0.5), ("[[A]]", 1.0), ("B\nbecause", 0.0),
     ("", None), ("Both are good", None), ("Answer A", 1.0), ("Answer: B", 0.0),
     ("A tie", 0.5), ("It's a draw.", 0.5), ("A and B are equally good", None)],
)  # fmt: skip
def test_replies(reply, said):
    """One letter, however it is dressed; nothing is guessed."""
    assert parse_verdict(reply) == said


def test_a_stopped_run_asks_no_reply_twice(tmp_path):
    """What was paid for is kept at once; a line that was cut off is asked again."""
    kept, asked = tmp_path / "kept.jsonl", []

    def failing(prompt):
        if len(asked) == 15:
            raise RuntimeError("no more money")
        asked.append(prompt)
        return honest(prompt)

    pairs = pairs_of(20)
    with pytest.raises(RuntimeError, match="no more money"):
        judge(pairs, failing, kept, concurrency=1)
    lines = kept.read_text().splitlines()
    assert len(lines) == 15
    kept.write_text("\n".join(lines)[:-10])
    again = []
    found = judge(pairs, lambda p: again.append(p) or honest(p), kept, concurrency=1)
    assert len(again) == 40 - 14
    assert found == judge(pairs, honest)
    assert judge(pairs, lambda p: pytest.fail("asked again"), kept) == found


def test_each_judge_has_its_own_replies(tmp_path):
    """What one judge said is not another's verdict."""
    kept, asked = tmp_path / "kept.jsonl", []
    pairs = pairs_of(3)
    judge(pairs, honest, kept, name="small")
    judge(pairs, lambda p: asked.append(p) or "T", kept, name="large")
    assert len(asked) == 6
    assert judge(pairs, lambda p: pytest.fail("asked again"), kept, name="small") == judge(
        pairs, honest
    )


def test_what_was_under_way_is_kept(tmp_path):
    """Replies that arrive after another one failed were paid for too."""
    kept, first = tmp_path / "kept.jsonl", threading.Event()

    def ask(prompt):
        if not first.is_set():
            first.set()
            raise RuntimeError("refused")
        time.sleep(0.2)
        return "A"

    with pytest.raises(RuntimeError, match="refused"):
        judge(pairs_of(10), ask, kept, concurrency=3)
    assert 1 <= len(kept.read_text().splitlines()) < 19


def test_unread_replies_are_no_ties():
    """A pair whose reply says nothing has no outcome, and is counted as such."""
    found = judge(pairs_of(10), lambda p: "?" if "task 3\n" in p else honest(p))
    assert len(found.decided) == 9


def test_names_are_not_shown_and_braces_survive():
    """The judge sees the task with its input, and the answers as they are."""
    pair = Pair.from_example(Example("Add {a}.", "a = 2"), "{one}", "{two}")
    seen = []
    judge([pair], lambda p: seen.append(p) or "T", concurrency=1)
    assert "Add {a}.\n\na = 2" in seen[0] and "{one}" in seen[0]
    assert seen[0].index("{one}") < seen[0].index("{two}")
    assert seen[1].index("{two}") < seen[1].index("{one}")


def test_no_key(monkeypatch):
    """Without a key: one line that says which variable."""
    pytest.importorskip("openai")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ModelError, match="OPENAI_API_KEY"), open_judge("gpt"):
        pass
