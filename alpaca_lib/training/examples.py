"""Examples -> token ids and labels, one by one or a whole data set at once.

A label is the token itself where the loss counts and IGNORE where it does not.
Packing them into rows is in alpaca_lib.training.packing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alpaca_lib.errors import DataError
from alpaca_lib.prompts import render_prompt
from alpaca_lib.records import Example, load_examples
from alpaca_lib.training.packing import IGNORE, Encoded, Row, label_count, pack
from alpaca_lib.training.settings import Settings

__all__ = ["IGNORE", "Data", "Row", "encode", "encode_all", "label_count", "load_data", "pack"]


@dataclass(frozen=True)
class Data:
    """The encoded rows of a run, and what became of the others."""

    rows: list[Encoded]
    held_out: list[Encoded]
    dropped: int  # examples whose prompt left no room for a label
    cut: int  # examples whose answer was cut at max_length


def encode(
    example: Example,
    tokenizer: Any,
    template: str = "alpaca",
    max_length: int = 512,
    mask_prompt: bool = True,
    add_eos: bool = True,
) -> Encoded:
    """{"input_ids", "labels"} of prompt + answer + end token, equally long.

    Prompt and answer are tokenised apart and joined as ids, so the border is exact.
    Too long a pair is cut in the middle of the answer's end, never the end token.
    The first token has no label (nothing comes before it), nor has the prompt if
    mask_prompt. A pair whose prompt alone fills max_length has no label at all.
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
    """encode() of each example; the texts are tokenised together, on all cores."""
    if max_length < 2:
        raise ValueError(f"max_length {max_length}: at least 2, a token and the end token")
    if not examples:
        return []
    prompts = [render_prompt(example, template, tokenizer) for example in examples]
    first = tokens_before(tokenizer, template)
    end = [tokenizer.eos_token_id] if add_eos and tokenizer.eos_token_id is not None else []
    rows = []
    for prompt, answer in zip(
        _ids(prompts, tokenizer), _ids([e.output for e in examples], tokenizer), strict=True
    ):
        prompt_ids = first + prompt
        room = max(max_length - len(prompt_ids) - len(end), 0)
        prompt_ids = prompt_ids[:max_length]
        answer_ids = (answer[:room] + end)[: max_length - len(prompt_ids)]
        labels = ([IGNORE] * len(prompt_ids) if mask_prompt else list(prompt_ids)) + answer_ids
        labels[0] = IGNORE
        rows.append({"input_ids": prompt_ids + answer_ids, "labels": labels})
    return rows


def _ids(texts: list[str], tokenizer: Any) -> list[list[int]]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and backend.truncation is None and backend.padding is None:
        # What tokenizer(texts) calls too, without the dictionaries that it makes of it.
        return [e.ids for e in backend.encode_batch_fast(texts, add_special_tokens=False)]
    ids: list[list[int]] = tokenizer(
        texts, add_special_tokens=False, return_attention_mask=False, verbose=False
    )["input_ids"]
    return ids


def tokens_before(tokenizer: Any, template: str) -> list[int]:
    """The tokens that a tokenizer puts before any text (not those that T5-like ones put
    after it); none with "chat", whose template has written its own."""
    if template == "chat":
        return []
    bare = list(tokenizer("a b", add_special_tokens=False)["input_ids"])
    whole = list(tokenizer("a b")["input_ids"])
    before = next((n for n in range(len(whole)) if whole[n : n + len(bare)] == bare), 0)
    return whole[:before]


def load_data(settings: Settings, tokenizer: Any) -> Data:
    """The training and validation examples, encoded; those without a label are left out."""
    examples = load_examples(settings.data_path)
    held = load_examples(settings.validation_path) if settings.validation_path else []
    if settings.validation_rows:
        if settings.validation_rows >= len(examples):
            raise DataError(
                f"{settings.data_path}: {len(examples)} rows, of which validation_rows takes "
                f"{settings.validation_rows}; leave some to train on"
            )
        held, examples = examples[: settings.validation_rows], examples[settings.validation_rows :]
    if settings.add_eos and tokenizer.eos_token_id is None:
        raise DataError(
            f"{settings.model}: its tokenizer has no end token, so no answer would learn to end; "
            "set its eos_token, or add_eos to false"
        )
    options = (settings.template, settings.max_length, settings.mask_prompt, settings.add_eos)
    rows = encode_all(examples, tokenizer, *options)
    kept = [row for row in rows if label_count(row)]
    if not kept:
        raise DataError(
            f"{settings.data_path}: no row has an answer within max_length {settings.max_length}"
        )
    full = sum(len(row["input_ids"]) == settings.max_length for row in kept)
    held_out = [row for row in encode_all(held, tokenizer, *options) if label_count(row)]
    if held and not held_out:
        raise DataError(
            f"{settings.validation_path or settings.data_path}: no row to validate on has an "
            f"answer within max_length {settings.max_length}"
        )
    return Data(kept, held_out, len(rows) - len(kept), full)
