"""Examples to token ids and labels: masks, truncation, end tokens, templates."""

from __future__ import annotations

import pytest

from alpaca_lib import models
from alpaca_lib.errors import DataError
from alpaca_lib.prompts import TEMPLATES, render_prompt
from alpaca_lib.records import Example, save_examples
from alpaca_lib.training.examples import IGNORE, count_labels, encode, encode_all, load_data
from alpaca_lib.training.settings import Settings

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
    """At each limit: never longer, the answer's beginning kept, an end only after all of it."""
    prompt = plain_ids(tokenizer, render_prompt(EXAMPLE))
    answer = [*plain_ids(tokenizer, EXAMPLE.output), tokenizer.eos_token_id]
    total = len(prompt) + len(answer)
    for limit in range(2, total + 3):
        encoded = encode(EXAMPLE, tokenizer, max_length=limit)
        ids, labels = encoded["input_ids"], encoded["labels"]
        assert ids == (prompt + answer)[:limit]
        assert labels == ([IGNORE] * len(prompt) + answer)[:limit]
        assert (tokenizer.eos_token_id in labels) == (limit >= total)


def test_cut_answers_are_counted(tokenizer, tmp_path):
    """Rows that are cut, that are as long as max_length and complete, and without any answer."""
    examples = [Example("Hi there.", "", " one" * n) for n in range(1, 5)]
    long = Example("Hi there. " * 9, "", "Yes.")
    full = len(encode(examples[1], tokenizer, "short")["input_ids"])
    file = save_examples([*examples, long, Example("Hi there.", "", "")], tmp_path / "d.json")
    for mask in (True, False):
        settings = Settings(
            data_path=str(file), output_dir="o", template="short", max_length=full, row_length=99,
            mask_prompt=mask,
        )  # fmt: skip
        data = load_data(settings, tokenizer)
        assert (len(data.rows), data.dropped, data.cut) == (5, 1, 2)
        ends = [row["labels"][-1] == tokenizer.eos_token_id for row in data.rows]
        assert ends == [True, True, False, False, True]


def test_half_a_character(tokenizer, tmp_path):
    """A lone surrogate is refused with file, row and column, in validation rows too."""
    rows = [Example("Hi.", "", "Yes."), Example("Hi.", "x", "No."), Example("A", "", "\ud83d x")]
    with pytest.raises(DataError, match=r"row 3: its output has a lone surrogate \(\\ud83d\)"):
        encode_all(rows, tokenizer)
    with pytest.raises(DataError, match="row 1: its input has a lone surrogate"):
        encode(Example("Hi.", "\udc00"), tokenizer, "chat")
    file = save_examples(rows, tmp_path / "d.json")
    settings = Settings(data_path=str(file), output_dir="o", validation_rows=1)
    with pytest.raises(DataError, match=r"d\.json, row 3: its output|d\.json.*surrogate"):
        load_data(settings, tokenizer)


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
