"""Examples to token ids and labels: masks, truncation, end tokens, templates."""

from __future__ import annotations

import pytest

from alpaca_lib import models
from alpaca_lib.prompts import TEMPLATES, render_prompt
from alpaca_lib.records import Example
from alpaca_lib.training.examples import IGNORE, count_labels, encode

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
    assert count_labels(encoded) == len(answer)


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
            assert count_labels(encoded) == 0


@pytest.mark.parametrize("limit", [1, 0, -5])
def test_impossible_length(tokenizer, limit):
    """A limit below two is refused."""
    with pytest.raises(ValueError, match="max_length"):
        encode(EXAMPLE, tokenizer, max_length=limit)


def test_empty_answer_is_the_end_token(tokenizer):
    """An empty output teaches to stop at once: one label."""
    encoded = encode(Example("Say nothing at all.", "", ""), tokenizer)
    assert encoded["labels"][-1] == tokenizer.eos_token_id and count_labels(encoded) == 1


def test_special_tokens_in_the_text_do_not_end_the_answer_early(tokenizer):
    """Whatever the text holds, the last label is the end token."""
    encoded = encode(Example("Repeat the mark.", "<|im_end|>", "<|im_end|> done"), tokenizer)
    assert encoded["labels"][-1] == tokenizer.eos_token_id
    assert count_labels(encoded) > 2


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
    tokenizer = models.ModelSource.resolve(str(folder)).load_tokenizer()
    prompt = tokenizer(render_prompt(EXAMPLE))["input_ids"]
    assert prompt[0] == 1  # the tokenizer does add it
    assert encode(EXAMPLE, tokenizer)["input_ids"][: len(prompt)] == prompt
