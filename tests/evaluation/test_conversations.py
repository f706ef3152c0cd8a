"""Conversations as tasks: reference losses, the judge's view, follow-up questions, files."""

from __future__ import annotations

import json

import pytest
import torch

from alpaca_lib import command_line, models
from alpaca_lib.conversations import Conversation, Turn
from alpaca_lib.errors import DataError
from alpaca_lib.evaluation import commands
from alpaca_lib.evaluation.alpaca_eval import load_outputs, load_pairs, save_outputs
from alpaca_lib.evaluation.comparison import measure_model, reference_losses
from alpaca_lib.evaluation.llm_judge import Pair, judge
from alpaca_lib.evaluation.tasks import (
    answer_follow_ups,
    load_follow_ups,
    load_tasks,
    task_text,
)
from alpaca_lib.inference.decoding import Answer, Decoding, answer
from alpaca_lib.inference.model_pool import ModelPool
from alpaca_lib.records import Example

TALK = Conversation(
    (
        Turn("user", "Name a river."),
        Turn("assistant", "The Elbe."),
        Turn("user", "And a mountain?"),
        Turn("assistant", "The Brocken."),
    ),
    "Be brief.",
)
QUESTIONS = [["Name a river.", "Why that one?"], ["Name a stone."]]


@pytest.fixture
def talks(tmp_path):
    """A file of one conversation and one task."""
    rows = [TALK.to_dict(), {"messages": Conversation(TALK.turns[:2]).messages(), "id": 7}]
    file = tmp_path / "talks.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def questions(tmp_path):
    """A file of questions as MT-Bench's."""
    file = tmp_path / "questions.jsonl"
    rows = [{"question_id": n, "turns": texts} for n, texts in enumerate(QUESTIONS)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def run(*words):
    return command_line.main("alpaca", "", commands.COMMANDS, [str(word) for word in words])


def test_the_reference_is_the_last_answer(make_tiny, tokenizer):
    """Nats of the last answer and its end token, as transformers' loss gives them."""
    model = make_tiny(seed=5)
    asked = TALK.question().messages()
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    reply = [*tokenizer("The Brocken.")["input_ids"], tokenizer.eos_token_id]
    labels = torch.tensor([[-100] * len(prompt) + reply])
    with torch.no_grad():
        loss = model(input_ids=torch.tensor([prompt + reply]), labels=labels).loss
    ((nats, tokens),) = reference_losses(model, tokenizer, [TALK], "chat")
    assert tokens == len(reply) and nats == pytest.approx(float(loss) * len(reply), rel=1e-5)


def test_tasks_and_conversations_are_measured_together(make_tiny, tokenizer, talks):
    """A conversation of one question and answer is the task that it is; ROUGE is of last turns."""
    tasks = load_tasks(talks)
    assert tasks == [TALK, Example("Name a river.", "", "The Elbe.")]
    scores, answers = measure_model(
        "m", make_tiny(seed=5), tokenizer, tasks, Decoding(max_new_tokens=6), "chat"
    )
    (said,) = answer(make_tiny(seed=5), tokenizer, [TALK.question()], Decoding(max_new_tokens=6),
                     "chat")  # fmt: skip
    assert answers[0].text == said.text and len(scores.losses) == 2
    assert scores.bits_per_byte > 0 and tasks[0].output == "The Brocken."


def test_compare_writes_conversations_that_the_judge_reads(tiny_folder, talks, tmp_path, capsys):
    """The table, and two files whose pairs show the earlier turns to the judge."""
    words = [f"{name}={tiny_folder}" for name in ("a", "b")]
    flags = ["--eval", talks, "--template", "chat", "--max-new-tokens", 4, "--out", tmp_path]
    assert run("compare", *words, *flags) == 0
    assert "bits/byte" in capsys.readouterr().out
    rows = json.loads((tmp_path / "a.json").read_text())
    assert rows[0]["messages"] == TALK.question().messages()
    assert rows[0]["instruction"] == task_text(TALK) and "The Elbe." in rows[0]["instruction"]
    assert set(rows[1]) == {"instruction", "output", "generator"}
    _, _, pairs = load_pairs(tmp_path / "a.json", tmp_path / "b.json")
    seen = []
    judge([Pair.from_outputs(*pair) for pair in pairs], lambda p: seen.append(p) or "T")
    assert any("[system]\nBe brief." in p and "[assistant]\nThe Elbe." in p for p in seen)
    assert not any("The Brocken." in prompt for prompt in seen)


def test_a_follow_up_is_asked_after_the_models_own_answer(make_tiny, tokenizer, questions):
    """Turn by turn, the same as asking by hand."""
    model, how = make_tiny(seed=5), Decoding(max_new_tokens=5)
    tasks = load_follow_ups(questions)
    assert [[turn.content for turn in task.turns] for task in tasks] == QUESTIONS
    (two, said), (one, _) = answer_follow_ups(model, tokenizer, tasks, how, "chat")
    first, second = (Turn("user", text) for text in QUESTIONS[0])
    (by_hand,) = answer(model, tokenizer, [Conversation((first,))], how, "chat")
    turns = (first, Turn("assistant", by_hand.text), second)
    (last,) = answer(model, tokenizer, [Conversation(turns)], how, "chat")
    assert two.turns == (*turns, Turn("assistant", last.text)) and said == last
    assert len(one.turns) == 2


def test_models_with_other_first_answers_are_compared(tiny_folder, questions, tmp_path, capsys):
    """Each file has the model's own turns; the judge sees all questions and all answers."""
    assert run("compare", f"a={tiny_folder}", "--eval", questions, "--template", "chat",
               "--max-new-tokens", 4, "--out", tmp_path) == 0  # fmt: skip
    assert "ended" in capsys.readouterr().out
    _, outputs = load_outputs(tmp_path / "a.json")
    changed = [
        Conversation((turn, Turn("assistant", "mine"), *rest), extra=output.extra)
        for output in outputs
        for turn, _, *rest in [output.turns]
    ]
    answers = [Answer("last", True, 1)] * 2
    save_outputs(tmp_path / "b.json", changed, answers, "b")
    _, _, pairs = load_pairs(tmp_path / "a.json", tmp_path / "b.json")
    pair = Pair.from_outputs(*pairs[0])
    assert pair.task == "[Question 1]\nName a river.\n\n[Question 2]\nWhy that one?"
    assert pair.two == "[Answer to question 1]\nmine\n\n[Answer to question 2]\nlast"
    assert pair.one.count("[Answer to question") == 2 and "mine" not in pair.one


def test_rows_that_differ_are_named(tmp_path):
    """A file of questions with another row; output rows whose messages are none."""
    file = tmp_path / "q.jsonl"
    file.write_text('{"turns": ["a", "b"]}\n{"turns": ["a", ""]}\n')
    with pytest.raises(DataError, match=r"row 2 \(line 2\) needs `turns`"):
        load_follow_ups(file)
    row = {"instruction": "x", "output": "y", "generator": "g", "messages": [{"role": "tool"}]}
    file = tmp_path / "o.json"
    file.write_text(json.dumps([row]))
    with pytest.raises(DataError, match=r"o.json: row 1 has message 1"):
        load_outputs(file)
    row = {"instruction": "x", "output": "y", "generator": "g", "turns": ["a"], "answers": []}
    file.write_text(json.dumps([row]))
    with pytest.raises(DataError, match="row 1 needs `turns` and `answers`"):
        load_outputs(file)
    assert load_follow_ups(tmp_path / "none.jsonl") == []


def test_mt_bench_is_read(stanford_data):
    """All 80 rows of LMSYS's file, two questions each."""
    file = stanford_data / "mt_bench_80.jsonl"
    if not file.is_file():
        pytest.skip("no mt_bench_80.jsonl")
    tasks = load_follow_ups(file)
    assert len(tasks) == 80 and {len(task.turns) for task in tasks} == {2}


def test_an_empty_first_answer_is_a_turn(make_tiny, tokenizer, tmp_path):
    """A model that ends at once: its follow-up is asked all the same, and saved."""
    how = Decoding(max_new_tokens=4, stop=(" ",))
    model = make_tiny(seed=5)
    tasks = [Conversation((Turn("user", "a"), Turn("user", "b")), extra={"own_answers": True})]
    ((done, said),) = answer_follow_ups(model, tokenizer, tasks, how, "chat")
    empty = Conversation((done.turns[0], Turn("assistant", ""), *done.turns[2:]), extra=done.extra)
    answer(model, tokenizer, [empty], how, "chat")
    file = save_outputs(tmp_path / "o.json", [empty], [said], "m")
    (read,) = load_outputs(file)[1]
    assert [turn.content for turn in read.turns] == ["a", "", "b", said.text]


def test_pool_answers_conversations(tiny_folder):
    pool = ModelPool({"one": str(tiny_folder)}, models.Placement("cpu", "float32", "tests"))
    assert list(pool.stream("one", TALK, Decoding(max_new_tokens=3), "chat"))
