"""Examples -> token ids and labels, one by one or a file at once.

A label is the token's own id where the loss counts and IGNORE (-100) where it does not.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from alpaca_lib.errors import DataError, SettingsError
from alpaca_lib.prompts import render_prompt
from alpaca_lib.records import Example, load_examples
from alpaca_lib.training.packing import IGNORE, Encoded, Row, count_labels, pack
from alpaca_lib.training.settings import Settings

__all__ = [
    "IGNORE",
    "Data",
    "Row",
    "count_labels",
    "encode",
    "encode_all",
    "load_data",
    "pack",
    "split_examples",
]


@dataclass(frozen=True)
class Data:
    """The encoded examples of a run.

    >>> data = load_data(settings, tokenizer)
    >>> share_cut = data.cut / len(data.rows)
    """

    rows: list[Encoded]  # to train on
    held_out: list[Encoded]  # to validate on; empty if the settings name none
    dropped: int  # training examples without a label: the prompt alone fills max_length
    cut: int  # training examples as long as max_length, whose answer was cut
    drawn: list[int] = field(default_factory=list)  # rows of data_path that validate, from 1


def encode(
    example: Example,
    tokenizer: Any,
    template: str = "alpaca",
    max_length: int = 512,
    mask_prompt: bool = True,
    add_eos: bool = True,
) -> Encoded:
    """Returns {"input_ids", "labels"} of prompt, answer and end-of-sequence token, equally long:

        input_ids  [  p0,   p1,   p2, a0, a1, eos]
        labels     [-100, -100, -100, a0, a1, eos]   with mask_prompt
        labels     [-100,   p1,   p2, a0, a1, eos]   without: nothing predicts the first token

    Prompt and answer are tokenised separately, so no token spans both. An answer that is too
    long is cut, but keeps the end-of-sequence token; a prompt that fills max_length leaves no
    label. Raises SettingsError if max_length is below 2.
    """
    return encode_all([example], tokenizer, template, max_length, mask_prompt, add_eos)[0]


def encode_all(
    examples: Sequence[Example],
    tokenizer: Any,
    template: str = "alpaca",
    max_length: int = 512,
    mask_prompt: bool = True,
    add_eos: bool = True,
) -> list[Encoded]:
    """Encodes each example as ``encode`` does; all texts are tokenised together, on all cores."""
    if max_length < 2:
        raise SettingsError(f"max_length {max_length}: at least 2, a token and the end token")
    if not examples:
        return []
    prompts = _tokenize([render_prompt(e, template, tokenizer) for e in examples], tokenizer)
    answers = _tokenize([e.output for e in examples], tokenizer)
    prefix = _prefix_tokens(tokenizer, template)
    end = [tokenizer.eos_token_id] if add_eos and tokenizer.eos_token_id is not None else []
    rows = []
    for prompt, answer in zip(prompts, answers, strict=True):
        room = max(max_length - len(prefix) - len(prompt) - len(end), 0)
        prompt_ids = (prefix + prompt)[:max_length]
        answer_ids = (answer[:room] + end)[: max_length - len(prompt_ids)]
        labels = ([IGNORE] * len(prompt_ids) if mask_prompt else list(prompt_ids)) + answer_ids
        labels[0] = IGNORE
        rows.append({"input_ids": prompt_ids + answer_ids, "labels": labels})
    return rows


def _tokenize(texts: list[str], tokenizer: Any) -> list[list[int]]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and backend.truncation is None and backend.padding is None:
        # tokenizer(texts) calls this too, and then builds a dictionary per text.
        return [e.ids for e in backend.encode_batch_fast(texts, add_special_tokens=False)]
    ids: list[list[int]] = tokenizer(
        texts, add_special_tokens=False, return_attention_mask=False, verbose=False
    )["input_ids"]
    return ids


def _prefix_tokens(tokenizer: Any, template: str) -> list[int]:
    """Returns the special tokens that a tokenizer puts before a text, as Llama 3's does.

    None with "chat", whose template writes its own.
    """
    if template == "chat":
        return []
    bare = list(tokenizer("a b", add_special_tokens=False)["input_ids"])
    full = list(tokenizer("a b")["input_ids"])
    before = next((n for n in range(len(full)) if full[n : n + len(bare)] == bare), 0)
    return full[:before]


def load_data(settings: Settings, tokenizer: Any) -> Data:
    """Loads and encodes the training and validation examples; those without a label are dropped.

    Raises DataError if a file cannot be read, or if nothing is left to train or validate on.
    """
    examples = load_examples(settings.data_path)
    held = load_examples(settings.validation_path) if settings.validation_path else []
    drawn: list[int] = []
    if settings.validation_rows >= len(examples):
        raise DataError(
            f"{settings.data_path}: {len(examples)} rows, of which validation_rows takes "
            f"{settings.validation_rows}; leave some to train on"
        )
    if settings.validation_rows:
        held, examples, drawn = split_examples(examples, settings.validation_rows, settings.seed)
    if settings.add_eos and tokenizer.eos_token_id is None:
        raise DataError(
            f"{settings.model}: its tokenizer has no end token, so no answer would learn to end; "
            "set its eos_token, or add_eos to false"
        )
    options = (settings.template, settings.max_length, settings.mask_prompt, settings.add_eos)
    rows = encode_all(examples, tokenizer, *options)
    kept = [row for row in rows if count_labels(row)]
    if not kept:
        raise DataError(
            f"{settings.data_path}: no row has an answer within max_length {settings.max_length}"
        )
    cut = sum(len(row["input_ids"]) == settings.max_length for row in kept)
    held_out = [row for row in encode_all(held, tokenizer, *options) if count_labels(row)]
    if held and not held_out:
        raise DataError(
            f"{settings.validation_path or settings.data_path}: no row to validate on has an "
            f"answer within max_length {settings.max_length}"
        )
    return Data(rows=kept, held_out=held_out, dropped=len(rows) - len(kept), cut=cut, drawn=drawn)


def split_examples(
    examples: Sequence[Example], held_out: int, seed: int
) -> tuple[list[Example], list[Example], list[int]]:
    """Returns (validation examples, training examples, row numbers of the first, from 1).

    The validation examples are drawn at random by the seed: the same at every start of a run.
    """
    drawn = sorted(random.Random(f"validation:{seed}").sample(range(len(examples)), held_out))
    chosen = set(drawn)
    rest = [example for i, example in enumerate(examples) if i not in chosen]
    return [examples[i] for i in drawn], rest, [i + 1 for i in drawn]
