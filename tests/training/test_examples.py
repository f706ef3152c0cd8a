"""Examples to rows: labels, truncation, packing, the order of steps, batches."""

from __future__ import annotations

import random

import pytest

from alpaca_lib import models
from alpaca_lib.prompts import TEMPLATES, render_prompt
from alpaca_lib.records import Example
from alpaca_lib.training.examples import (
    IGNORE,
    Row,
    collate,
    encode,
    label_count,
    micro_batches,
    pack,
    step_order,
)

EXAMPLE = Example("Sort the words.", "b, a, {c}", "a, b, {c} — sorted ✓")


def plain_ids(tokenizer, text):
    """The ids of a text without special tokens."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


# --- encode -------------------------------------------------------------------------


@pytest.mark.parametrize("template", [*TEMPLATES, "chat"])
def test_prompt_masked_and_answer_labelled(tokenizer, template):
    """Ids are prompt, answer and end; labels are the answer and end alone."""
    encoded = encode(EXAMPLE, tokenizer, template)
    prompt = plain_ids(tokenizer, render_prompt(EXAMPLE, template, tokenizer))
    answer = [*plain_ids(tokenizer, EXAMPLE.output), tokenizer.eos_token_id]
    assert encoded["input_ids"] == prompt + answer
    assert encoded["labels"] == [IGNORE] * len(prompt) + answer
    assert label_count(encoded) == len(answer)


def test_chat_ids_are_the_models_own_conversation(tokenizer):
    """The chat rows begin as apply_chat_template's whole conversation does."""
    encoded = encode(EXAMPLE, tokenizer, "chat")
    conversation = tokenizer.apply_chat_template(
        [
            {"role": "user", "content": f"{EXAMPLE.instruction}\n\n{EXAMPLE.input}"},
            {"role": "assistant", "content": EXAMPLE.output},
        ],
        tokenize=True,
        return_dict=False,
    )
    assert encoded["input_ids"] == conversation[: len(encoded["input_ids"])]
    assert encoded["input_ids"][-1] == tokenizer.eos_token_id


def test_prompt_not_masked(tokenizer):
    """mask_prompt=False labels every token but the first."""
    encoded = encode(EXAMPLE, tokenizer, mask_prompt=False)
    assert encoded["labels"] == [IGNORE, *encoded["input_ids"][1:]]


def test_without_end_token(tokenizer):
    """add_eos=False leaves the end token out, and nothing else."""
    whole, without = encode(EXAMPLE, tokenizer), encode(EXAMPLE, tokenizer, add_eos=False)
    assert without["input_ids"] == whole["input_ids"][:-1]
    assert without["labels"] == whole["labels"][:-1]


def test_every_length_limit(tokenizer):
    """At each limit: never longer, the end token last, the answer's beginning kept."""
    prompt = plain_ids(tokenizer, render_prompt(EXAMPLE))
    answer = plain_ids(tokenizer, EXAMPLE.output)
    total = len(prompt) + len(answer) + 1
    for limit in range(2, total + 3):
        encoded = encode(EXAMPLE, tokenizer, max_length=limit)
        ids, labels = encoded["input_ids"], encoded["labels"]
        assert len(ids) == len(labels) == min(limit, total)
        assert ids[: len(prompt)] == prompt[:limit]
        assert all(label in (IGNORE, token) for token, label in zip(ids, labels, strict=True))
        if limit > len(prompt):
            assert ids[-1] == labels[-1] == tokenizer.eos_token_id
            kept = ids[len(prompt) : -1]
            assert kept == answer[: len(kept)]
            assert labels == [IGNORE] * len(prompt) + ids[len(prompt) :]
        else:
            assert label_count(encoded) == 0


@pytest.mark.parametrize("limit", [1, 0, -5])
def test_impossible_length(tokenizer, limit):
    """A limit below two is refused."""
    with pytest.raises(ValueError, match="max_length"):
        encode(EXAMPLE, tokenizer, max_length=limit)


def test_empty_answer_is_the_end_token(tokenizer):
    """An empty output teaches to stop at once: one label."""
    encoded = encode(Example("Say nothing at all.", "", ""), tokenizer)
    assert encoded["labels"][-1] == tokenizer.eos_token_id and label_count(encoded) == 1


def test_special_tokens_in_the_text_do_not_end_the_answer_early(tokenizer):
    """Whatever the text holds, the last label is the end token."""
    encoded = encode(Example("Repeat the mark.", "<|im_end|>", "<|im_end|> done"), tokenizer)
    assert encoded["labels"][-1] == tokenizer.eos_token_id
    assert label_count(encoded) > 2


def test_training_prompt_is_the_inference_prompt(tiny_folder, tmp_path):
    """With a tokenizer that puts a first token before every text (as Llama 3's does), the
    prompt's ids in training are those that tokenizer(prompt) gives in inference."""
    import json
    import shutil

    folder = tmp_path / "with-bos"
    shutil.copytree(tiny_folder, folder)
    (folder / "model.safetensors").unlink()
    file = folder / "tokenizer.json"
    description = json.loads(file.read_text(encoding="utf-8"))
    mark = "<|im_start|>"
    description["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": mark, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {mark: {"id": mark, "ids": [1], "tokens": [mark]}},
    }  # fmt: skip
    file.write_text(json.dumps(description), encoding="utf-8")
    tokenizer = models.load_tokenizer(str(folder))
    prompt = tokenizer(render_prompt(EXAMPLE))["input_ids"]
    assert prompt[0] == 1  # the tokenizer does add it
    assert encode(EXAMPLE, tokenizer)["input_ids"][: len(prompt)] == prompt


# --- pack ---------------------------------------------------------------------------


def encoded_of(lengths, start=10):
    """Encoded examples of these lengths; every token says whose it is."""
    return [
        {
            "input_ids": [start + n] * length,
            "labels": [start + n] * length,
        }
        for n, length in enumerate(lengths)
    ]


@pytest.mark.parametrize("seed", range(20))
def test_packing_properties(seed):
    """Each example once and whole, no row too long, positions restart, no first label."""
    draw = random.Random(seed)
    row_length = draw.choice([8, 64, 512])
    lengths = [draw.randint(1, row_length) for _ in range(draw.randint(1, 120))]
    encoded = encoded_of(lengths)
    rows = pack(encoded, row_length)
    assert sorted(i for row in rows for i in row.members) == list(range(len(lengths)))
    for row in rows:
        assert 0 < len(row.input_ids) <= row_length
        at = 0
        for i in row.members:
            end = at + lengths[i]
            assert row.input_ids[at:end] == encoded[i]["input_ids"]
            assert row.labels[at:end] == [IGNORE, *encoded[i]["labels"][1:]]
            assert row.position_ids[at:end] == list(range(lengths[i]))
            at = end
        assert at == len(row.input_ids) == len(row.labels) == len(row.position_ids)
    # First fit: no two rows could be one.
    sizes = sorted(len(row.input_ids) for row in rows)
    assert len(sizes) < 2 or sizes[0] + sizes[1] > row_length
    assert len(rows) <= 11 / 9 * max(-(-sum(lengths) // row_length), 1) + len(lengths) / 2 + 1


def test_packing_is_tight_where_it_can_be():
    """Halves and quarters fill rows without a gap."""
    rows = pack(encoded_of([32] * 4 + [16] * 8), 64)
    assert [len(row.input_ids) for row in rows] == [64] * 4


def test_too_long_for_a_row():
    """An example longer than a row is an error that names it."""
    with pytest.raises(ValueError, match="example 2 has 9 tokens"):
        pack(encoded_of([3, 8, 9]), 8)
    assert pack([], 8) == []


# --- steps and batches --------------------------------------------------------------


@pytest.mark.parametrize("count, per_step", [(10, 3), (12, 4), (5, 8), (1, 1), (100, 16)])
def test_every_epoch_is_a_permutation(count, per_step):
    """The steps of an epoch show each example once; epochs differ; seeds differ."""
    steps = -(-count // per_step)
    epochs = []
    for epoch in range(3):
        parts = [step_order(count, per_step, 7, epoch * steps + s) for s in range(steps)]
        assert all(len(part) == per_step for part in parts[:-1])
        seen = [i for part in parts for i in part]
        assert sorted(seen) == list(range(count))
        epochs.append(seen)
    if count >= 10:
        assert epochs[0] != epochs[1] != epochs[2]
        assert step_order(count, count, 8, 0) != step_order(count, count, 7, 0)
    assert step_order(count, per_step, 7, 1) == step_order(count, per_step, 7, 1)


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [1, 2, 5, 9, 16])
def test_micro_batches(world, count):
    """As many batches on every rank, none too large, together every row once."""
    rows = [Row([n], [n], [0], [n]) for n in range(count)]
    for size in (1, 2, 4):
        dealt = [micro_batches(rows, size, rank, world) for rank in range(world)]
        assert len({len(batches) for batches in dealt}) == 1
        assert all(len(batch) <= size for batches in dealt for batch in batches)
        members = [row.members[0] for batches in dealt for batch in batches for row in batch]
        assert sorted(members) == list(range(count))


def test_collate():
    """Rows become equally long tensors; padding has no label and position 0 each."""
    import torch

    rows = pack(encoded_of([5, 4, 9]), 9)
    batch = collate(rows, pad_id=2, multiple=8)
    assert all(tensor.shape == (2, 16) and tensor.dtype == torch.int64 for tensor in batch.values())
    for at, row in enumerate(rows):
        size = len(row.input_ids)
        assert batch["input_ids"][at, :size].tolist() == row.input_ids
        assert batch["labels"][at, :size].tolist() == row.labels
        assert batch["position_ids"][at, :size].tolist() == row.position_ids
        assert (batch["input_ids"][at, size:] == 2).all()
        assert (batch["labels"][at, size:] == IGNORE).all()
        assert (batch["position_ids"][at, size:] == 0).all()


def test_collate_of_an_empty_batch():
    """A rank without rows gets a batch that counts nothing."""
    batch = collate([], pad_id=2)
    assert batch["input_ids"].shape == (1, 8) and (batch["labels"] == IGNORE).all()
