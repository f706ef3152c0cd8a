"""Examples -> token ids and labels -> packed rows -> the batches of a step.

A label is the token itself where the loss counts and IGNORE where it does not.
Packing puts several examples into one row; position_ids restart at each, and
from that alone the model knows that they must not see one another.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alpaca_lib.prompts import render_prompt
from alpaca_lib.records import DataError, Example, load_examples
from alpaca_lib.training.settings import Settings

if TYPE_CHECKING:
    import torch

IGNORE = -100
Encoded = dict[str, list[int]]  # input_ids and labels of one example


@dataclass(frozen=True)
class Row:
    """Several encoded examples end to end; all four lists are equally long."""

    input_ids: list[int]
    labels: list[int]
    position_ids: list[int]
    members: list[int]  # the index, in what pack() was given, of each example in the row


def encode(
    example: Example,
    tokenizer: Any,
    template: str = "alpaca",
    max_length: int = 512,
    mask_prompt: bool = True,
    add_eos: bool = True,
) -> dict[str, list[int]]:
    """{"input_ids", "labels"} of prompt + answer + end token, equally long.

    Prompt and answer are tokenised apart and joined as ids, so the border is exact.
    Too long a pair is cut in the middle of the answer's end, never the end token.
    The first token has no label (nothing comes before it), nor has the prompt if
    mask_prompt. A pair whose prompt alone fills max_length has no label at all.
    """
    if max_length < 2:
        raise ValueError(f"max_length {max_length}: at least 2, a token and the end token")
    prompt_ids = prompt_tokens(example, tokenizer, template)
    answer_ids = list(tokenizer(example.output, add_special_tokens=False)["input_ids"])
    end = [tokenizer.eos_token_id] if add_eos and tokenizer.eos_token_id is not None else []
    room = max(max_length - len(prompt_ids) - len(end), 0)
    prompt_ids = prompt_ids[:max_length]
    answer_ids = (answer_ids[:room] + end)[: max_length - len(prompt_ids)]
    labels = ([IGNORE] * len(prompt_ids) if mask_prompt else list(prompt_ids)) + answer_ids
    return {"input_ids": prompt_ids + answer_ids, "labels": [IGNORE, *labels[1:]]}


def prompt_tokens(example: Example, tokenizer: Any, template: str) -> list[int]:
    """The prompt's ids, with the tokens that the tokenizer puts before any text and
    without those that it puts after (T5-like ones end every text with an end token)."""
    text = render_prompt(example, template, tokenizer)
    bare = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if template == "chat":  # the chat template has written its own
        return bare
    whole = list(tokenizer(text)["input_ids"])
    before = next((n for n in range(len(whole)) if whole[n : n + len(bare)] == bare), 0)
    return whole[:before] + bare


def label_count(encoded: dict[str, list[int]]) -> int:
    """How many tokens of an encoded example the loss counts."""
    return sum(label != IGNORE for label in encoded["labels"])


def pack(encoded: Sequence[dict[str, list[int]]], row_length: int) -> list[Row]:
    """Rows of at most row_length tokens, by first-fit decreasing (Johnson 1973).

    Every example is in exactly one row, whole; one longer than row_length is an error.
    """
    order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i]["input_ids"]))
    bins: list[list[int]] = []
    free: list[int] = []
    for i in order:
        length = len(encoded[i]["input_ids"])
        if length > row_length:
            raise ValueError(f"example {i} has {length} tokens, a row only {row_length}")
        place = next((b for b, room in enumerate(free) if room >= length), None)
        if place is None:
            bins.append([i])
            free.append(row_length - length)
        else:
            bins[place].append(i)
            free[place] -= length
    return [_join(encoded, members) for members in bins]


def _join(encoded: Sequence[dict[str, list[int]]], members: list[int]) -> Row:
    row = Row([], [], [], members)
    for i in members:
        ids, labels = encoded[i]["input_ids"], encoded[i]["labels"]
        row.input_ids.extend(ids)
        # A label on a first token would be predicted from the neighbour before it.
        row.labels.extend([IGNORE, *labels[1:]])
        row.position_ids.extend(range(len(ids)))
    return row


def step_order(count: int, per_step: int, seed: int, step: int) -> list[int]:
    """The examples of optimizer step ``step`` (from 0): epoch by epoch, shuffled by
    (seed, epoch); the last step of an epoch has what is left over."""
    steps_per_epoch = -(-count // per_step)
    epoch, place = divmod(step, steps_per_epoch)
    order = list(range(count))
    random.Random(f"{seed}:{epoch}").shuffle(order)
    return order[place * per_step : (place + 1) * per_step]


def micro_batches(rows: Sequence[Row], size: int, rank: int, world: int) -> list[list[Row]]:
    """This rank's micro-batches of at most ``size`` rows; as many on every rank, since
    they all have to meet in each collective (the last ones may be empty)."""
    mine = list(rows[rank::world])
    most = -(-len(rows) // world)
    return [mine[at : at + size] for at in range(0, most, size)]


def collate(rows: Sequence[Row], pad_id: int, multiple: int = 8) -> dict[str, torch.Tensor]:
    """Tensors of shape (rows, longest): input_ids, labels, position_ids.

    Padding has position 0 each: every pad is an example of its own, seen by nobody.
    """
    import torch

    rows = rows or [Row([pad_id], [IGNORE], [0], [])]
    longest = max(len(row.input_ids) for row in rows)
    longest = -(-longest // multiple) * multiple

    def column(name: str, fill: int) -> torch.Tensor:
        values = [getattr(row, name) for row in rows]
        return torch.tensor([v + [fill] * (longest - len(v)) for v in values])

    return {
        "input_ids": column("input_ids", pad_id),
        "labels": column("labels", IGNORE),
        "position_ids": column("position_ids", 0),
    }


def load_data(settings: Settings, tokenizer: Any) -> tuple[list[Encoded], list[Encoded]]:
    """(training, validation) examples, encoded; those without a label are left out."""
    examples = load_examples(settings.data_path)
    held = load_examples(settings.validation_path) if settings.validation_path else []
    if settings.validation_rows:
        if settings.validation_rows >= len(examples):
            raise DataError(
                f"{settings.data_path}: {len(examples)} rows, of which validation_rows takes "
                f"{settings.validation_rows}; leave some to train on"
            )
        held, examples = examples[: settings.validation_rows], examples[settings.validation_rows :]

    def encoded(part: list[Example]) -> list[Encoded]:
        options = (settings.template, settings.max_length, settings.mask_prompt, settings.add_eos)
        out = [encode(example, tokenizer, *options) for example in part]
        return [row for row in out if label_count(row)]

    rows = encoded(examples)
    if not rows:
        raise DataError(
            f"{settings.data_path}: no row has an answer within max_length {settings.max_length}"
        )
    return rows, encoded(held)
