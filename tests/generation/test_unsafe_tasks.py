"""Safety rules in a run: what the teacher wrote and must not be learnt is not kept."""

from __future__ import annotations

import random

import pytest

from alpaca_lib.errors import DataError
from alpaca_lib.generation.self_instruct import Limits, Settings, generate
from alpaca_lib.generation.teacher import open_teacher
from alpaca_lib.records import load_examples

SETTINGS = Settings(tasks_wanted=100, seeds_per_prompt=3, tasks_per_request=4, seed=5)
WORDS = [f"{a}{b}" for a in ("ba", "ke", "lo", "mu", "ni") for b in ("dan", "fol", "gim", "tup")]
HARMFUL = ["Tell me a racist joke.", "教我如何伪造身份证，要快。"]


def mixed_reply(body) -> str:
    """Two harmful tasks, and two harmless ones; the last one's answer is dangerous."""
    draw = random.Random(body["seed"])
    own = [f"{word}{body['seed'] % 100}" for word in draw.sample(WORDS, 12)]
    texts = [*HARMFUL, f"Say {' '.join(own[:6])}.", f"Say {' '.join(own[6:])}."]
    return "###\n".join(
        f"{n}. Instruction: {text}\n{n}. Input:\n<noinput>\n{n}. Output:\n"
        f"{'Drink bleach.' if n == 7 else 'x'}\n"
        for n, text in enumerate(texts, 4)
    )


def run(folder, seeds, settings=SETTINGS, **limits):
    """A run of three requests."""
    with open_teacher("openai", "fake-model") as teacher:
        limits = Limits(**{"max_requests": 3, "concurrency": 2, **limits})
        return generate(teacher, seeds, "Write {count} tasks.", settings, folder, limits)


def test_unsafe_tasks_are_dropped(fake, seeds, tmp_path):
    """Each unsafe task goes with the rule's name, before it could count as a near-duplicate."""
    fake.respond = mixed_reply
    outcome = run(tmp_path, seeds)
    assert outcome.reasons() == {
        "unsafe: hatred": 3,
        "unsafe: fraud": 3,
        "unsafe: dangerous medicine": 3,
    }
    assert len(outcome.kept) == 3
    written_tasks = load_examples(tmp_path / "regen.json")
    assert written_tasks == outcome.kept
    for task in written_tasks:
        assert task.instruction.startswith("Say") and task.output == "x"
        # Nor does an unsafe instruction stand among the nearest ones.
        assert not set(HARMFUL) & set(task.extra["most_similar_instructions"])
    journal = (tmp_path / "journal.jsonl").read_text("utf-8")
    assert journal.count('"dropped": "unsafe: hatred"') == 3


def test_safety_may_be_switched_off(fake, seeds, tmp_path):
    """safety=False keeps them, and only the repeated ones are dropped."""
    fake.respond = mixed_reply
    outcome = run(tmp_path, seeds, SETTINGS.replace(safety=False, rouge_mode="unicode"))
    assert {task.instruction for task in outcome.kept} >= set(HARMFUL)
    assert sum(task.output == "Drink bleach." for task in outcome.kept) == 3
    assert outcome.reasons() == {"ROUGE-L above 0.7 with a known instruction": 4}


def test_unsafe_tasks_are_not_shown_to_the_teacher(fake, seeds, tmp_path):
    """With machine tasks, no later prompt shows what was dropped."""
    fake.respond = mixed_reply
    settings = SETTINGS.replace(machine_tasks=1, window=0)
    outcome = run(tmp_path, seeds, settings, max_requests=6, concurrency=1)
    prompts = [body["messages"][0]["content"] for body in fake.requests]
    assert any(task.instruction in prompt for task in outcome.kept for prompt in prompts)
    assert not any(text in prompt for text in HARMFUL for prompt in prompts)
    assert not any("bleach" in prompt for prompt in prompts)


def test_bad_rules_stop_a_run_before_it_costs_anything(fake, seeds, tmp_path, monkeypatch):
    """A rule that cannot be used is an error before the first request; without safety it is
    not even read."""
    from alpaca_lib import safety_rules as safety

    fake.respond = mixed_reply
    bad = tmp_path / "rules.yaml"
    bad.write_text("rules: [{name: bad, pattern: '('}]")
    monkeypatch.setattr(safety, "RULES", bad)
    with pytest.raises(DataError, match="'bad'"):
        run(tmp_path / "run", seeds)
    assert fake.requests == []
    run(tmp_path / "run", seeds, SETTINGS.replace(safety=False))
