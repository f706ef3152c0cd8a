"""Training on conversations: the first loss is transformers' own; cuts, counts and settings."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from alpaca_lib.errors import DataError
from alpaca_lib.files import dump_json
from alpaca_lib.planning.planner import Work
from alpaca_lib.records import Conversation, Turn
from alpaca_lib.tokenization import PromptEncoder
from alpaca_lib.training.examples import IGNORE, count_labels, encode, load_data
from alpaca_lib.training.loop import train
from alpaca_lib.training.metrics import read_metrics
from alpaca_lib.training.settings import Settings

MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}"
    "{{ m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def talk(turns, words=1, system="", reasoning=""):
    """A conversation of that many questions and answers of ``words`` words."""
    said = []
    for number in range(turns):
        said.append(Turn("user", f"Task {number}: the word apple."))
        said.append(Turn("assistant", f"apple {number} " * words + "ends.", reasoning))
    return Conversation(tuple(said), system)


EIGHT = [talk(1 + n % 4, 1 + n, "Say something." if n % 4 < 2 else "") for n in range(8)]


def save(records, path):
    """Writes rows of conversations, and returns the path as text."""
    path.write_text(dump_json([one.to_dict() for one in records]), encoding="utf-8")
    return str(path)


@pytest.fixture
def marked_folder(small_folder, tmp_path):
    """The small model with a chat template that marks what is generated."""
    tokenizer = AutoTokenizer.from_pretrained(small_folder)
    tokenizer.chat_template = MARKED
    AutoModelForCausalLM.from_pretrained(small_folder).save_pretrained(tmp_path / "marked")
    tokenizer.save_pretrained(tmp_path / "marked")
    return tmp_path / "marked"


@pytest.fixture
def settings(marked_folder, tmp_path):
    """One step of eight conversations."""
    return Settings(
        data_path=save(EIGHT, tmp_path / "eight.json"), output_dir=str(tmp_path / "run"),
        model=str(marked_folder), template="chat", examples_per_step=8, max_length=512,
        max_steps=1, device="cpu", dtype="float32",
    )  # fmt: skip


@pytest.mark.parametrize("batching", ["pack", "bucket", "pad"])
def test_the_first_loss_is_that_of_transformers(batching, settings, marked_folder):
    """A padded batch with labels from return_assistant_tokens_mask, to 1e-5 in float32."""
    tokenizer = AutoTokenizer.from_pretrained(marked_folder)
    model = AutoModelForCausalLM.from_pretrained(marked_folder, dtype=torch.float32)
    batch = tokenizer.apply_chat_template(
        [one.messages() for one in EIGHT], padding=True, return_tensors="pt", return_dict=True,
        return_assistant_tokens_mask=True,
    )  # fmt: skip
    assert batch["input_ids"].shape[0] == 8 and not batch["attention_mask"].all()
    labels = batch["input_ids"].masked_fill(batch["assistant_masks"] == 0, IGNORE)
    with torch.no_grad():
        theirs = model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels
        ).loss
    folder = train(settings.replace(batching=batching), say=lambda line: None)
    ours = read_metrics(folder)[0]["loss"]
    print(f"loss {ours:.8f}, transformers' {float(theirs):.8f}, {abs(ours - float(theirs)):.1e}")
    assert ours == pytest.approx(float(theirs), abs=1e-5)


def test_the_loss_of_named_templates_is_that_of_incremental_prompts(settings, small_folder):
    """Without marks: labels on what follows each generation prompt, up to its end token."""
    tokenizer = AutoTokenizer.from_pretrained(small_folder)
    model = AutoModelForCausalLM.from_pretrained(small_folder, dtype=torch.float32)
    total = count = 0.0
    for one in EIGHT:
        options = {"return_dict": False}
        ids = tokenizer.apply_chat_template(one.messages(), **options)
        labels = torch.full((len(ids),), IGNORE)
        for number in range(1, len(one.turns), 2):
            before, through = (
                tokenizer.apply_chat_template(
                    Conversation(one.turns[:size], one.system).messages(),
                    add_generation_prompt=size % 2 == 1,
                    **options,
                )
                for size in (number, number + 1)
            )
            end = len(through) - through[::-1].index(tokenizer.eos_token_id)
            labels[len(before) : end] = torch.tensor(ids[len(before) : end])
        with torch.no_grad():
            loss = model(input_ids=torch.tensor([ids]), labels=labels[None]).loss
        total += float(loss) * int((labels != IGNORE).sum())
        count += int((labels != IGNORE).sum())
    folder = train(settings.replace(model=str(small_folder)), say=lambda line: None)
    assert read_metrics(folder)[0]["loss"] == pytest.approx(total / count, abs=1e-5)


def test_cut_at_a_turn(tokenizer):
    """The last complete answer that fits is the last; its end has a label."""
    one = talk(11, 3, "Be brief.")
    whole = encode(one, tokenizer, "chatml", 9999)
    ends = [i + 1 for i, label in enumerate(whole["labels"]) if label == tokenizer.eos_token_id]
    assert len(ends) == 11 and ends[-1] == len(whole["input_ids"])
    for number, end in enumerate(ends):
        for limit in (end, end + 1):
            if limit > end and number == 10:
                continue
            row = encode(one, tokenizer, "chatml", limit)
            assert row == {name: ids[:end] for name, ids in whole.items()}
    counted = PromptEncoder(tokenizer, "chatml").conversations([one], limit=ends[2])[0]
    assert (counted.answers, counted.length) == (11, ends[-1]) and len(counted.ends) < 11
    row = encode(one, tokenizer, "chatml", ends[0] - 1)
    assert not count_labels(row) and len(row["input_ids"]) == ends[0] - 1
    row = encode(one, tokenizer, "chatml", ends[2], train_on_turns="last")
    assert not count_labels(row)


def test_what_is_dropped_and_cut_is_said(settings, tmp_path):
    """Conversations and examples are counted apart, and the length that keeps them all."""
    rows = [
        *(talk(2, 2) for _ in range(10)),
        talk(3, 40),
        talk(1, 400, "Say something."),
        talk(1, 300),  # one question and answer: an example, whose answer is cut
        talk(1),
    ]
    settings = settings.replace(data_path=save(rows, tmp_path / "rows.json"), max_length=256)
    said = []
    folder = train(settings, say=said.append)
    assert said[0].startswith("1 of 12 conversations dropped: their first answer does not end wit")
    assert said[1].startswith("WARNING: 1 of 2 answers are cut at max_length 256: raise it to ")
    assert said[2].startswith("1 of 11 conversations are cut at a turn, ")
    assert said[3].startswith("13 rows to train on (11 conversations, 2")
    run = json.loads((folder / "run.json").read_text())
    assert (run["training_rows"], run["rows_cut"], run["rows_without_label"]) == (13, 2, 1)
    assert run["conversations"] == 11 and run["settings"]["train_on_turns"] == "all"
    enough = int(said[1].split("raise it to ")[1].split()[0])
    again = settings.replace(max_length=enough, row_length=enough, output_dir=str(tmp_path / "b"))
    said.clear()
    train(again, say=said.append)
    assert said == ["14 rows to train on (12 conversations, 24 answers): 1 step of 8 rows"]


def test_reasoning_that_is_left_out_is_said(settings, tmp_path):
    rows = [talk(2, 1, reasoning="So I think."), talk(1)]
    settings = settings.replace(data_path=save(rows, tmp_path / "rows.json"), template="chatml")
    said = []
    train(settings, say=said.append)
    assert said[0] == "the reasoning of 2 answers is left out (keep_reasoning is false)"
    said.clear()
    train(settings.replace(keep_reasoning=True, output_dir=str(tmp_path / "kept")), say=said.append)
    assert len(said) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"template": "gemma"}, "template 'gemma' needs <start_of_turn>"),
        ({"template": "alpaca", "keep_reasoning": True}, ""),
        ({"max_length": 12}, "no row has an answer within max_length 12"),
    ],
)
def test_settings_that_cannot_be_followed(change, message, settings, tmp_path):
    """Refused before a model is loaded, with the setting or the file."""
    tokenizer = AutoTokenizer.from_pretrained(settings.model)
    if not message:
        rows = [talk(1, 1, "Say something."), talk(2, 1, reasoning="So I think.")]
        data = load_data(
            settings.replace(data_path=save(rows, tmp_path / "t.json"), **change), tokenizer
        )
        assert data.reasoning_left_out == 0 and data.turns == 3
        return
    with pytest.raises((DataError, ValueError), match=message):
        load_data(settings.replace(**change), tokenizer)


def test_a_row_that_a_template_cannot_render_is_named(settings, tmp_path):
    """By file and row, with the reason and what can be used."""
    tokenizer = AutoTokenizer.from_pretrained(settings.model)
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}" + MARKED
    )
    path = save([talk(1), talk(1, 1, "Be brief.")], tmp_path / "rows.json")
    with pytest.raises(DataError, match=r"rows.json, row 2: .*System role not supported.*alpaca"):
        load_data(settings.replace(data_path=path), tokenizer)


def test_planning_counts_conversations(settings, tmp_path):
    """The work of a run has the rows and tokens that are trained."""
    tokenizer = AutoTokenizer.from_pretrained(settings.model)
    data = load_data(settings, tokenizer)
    work = Work.of(data.rows)
    assert work.rows == 8 and data.turns == sum(len(one.turns) // 2 for one in EIGHT)
    assert data.longest == max(len(row["input_ids"]) for row in data.rows)
