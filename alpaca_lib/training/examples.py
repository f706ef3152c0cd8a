"""Examples -> token ids and labels, one by one or a file at once.

A label is the token's own id where the loss counts and IGNORE (-100) where it does not.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

from alpaca_lib.errors import DataError, SettingsError
from alpaca_lib.records import Example, load_examples
from alpaca_lib.tokenization import PromptEncoder
from alpaca_lib.training.packing import IGNORE, Encoded, Row, count_labels, pack
from alpaca_lib.training.settings import Settings

_Item = TypeVar("_Item")
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
    dropped: int  # training examples whose prompt leaves no room for a token of the answer
    cut: int  # training examples whose answer, or its end, was cut at max_length
    prompt_time: str = ""  # the time that the chat template has seen; empty if it shows none
    drawn: list[int] = field(default_factory=list)  # rows of data_path that validate, from 1


def encode(
    example: Example,
    tokenizer: Any,
    template: str = "alpaca",
    max_length: int = 512,
    mask_prompt: bool = True,
    add_eos: bool = True,
) -> Encoded:
    """Returns {"input_ids", "labels"} of prompt, answer and the answer's end, equally long:

        input_ids  [  p0,   p1,   p2, a0, a1, end]
        labels     [-100, -100, -100, a0, a1, end]   with mask_prompt
        labels     [-100,   p1,   p2, a0, a1, end]   without: nothing predicts the first token

    Prompt and answer are tokenised separately, so no token spans both. The end is the token that
    the chat template writes after an answer with "chat", and the end-of-sequence token
    otherwise. An answer that is too long is cut, and has no end; a prompt that fills max_length
    leaves no answer. Raises SettingsError if max_length is below 2, DataError for a text that
    cannot be encoded.
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
    """Encodes each example as ``encode`` does; all texts are tokenised together, on all cores.

    An error names the row, counted from 1.
    """
    encoder = PromptEncoder(tokenizer, template)
    return [one.row for one in _encode(examples, encoder, max_length, mask_prompt, add_eos)]


class _Fitted(NamedTuple):
    """An encoded example, and how much of its answer is in it."""

    row: Encoded
    kept: int  # tokens of answer and end
    cut: bool  # an answer's last token or its end has no room


def _encode(
    examples: Sequence[Example],
    encoder: PromptEncoder,
    max_length: int,
    mask_prompt: bool,
    add_eos: bool,
) -> list[_Fitted]:
    if max_length < 2:
        raise SettingsError(f"max_length {max_length}: at least 2, a token and the end token")
    if not examples:
        return []
    prompts, answers = encoder.prompts(examples), encoder.answers(examples)
    end = encoder.end if add_eos else []
    found = []
    for prompt, answer in zip(prompts, answers, strict=True):
        prompt_ids = prompt[:max_length]
        complete = answer + end
        answer_ids = complete[: max_length - len(prompt_ids)]
        labels = ([IGNORE] * len(prompt_ids) if mask_prompt else list(prompt_ids)) + answer_ids
        labels[0] = IGNORE
        row = {"input_ids": prompt_ids + answer_ids, "labels": labels}
        found.append(_Fitted(row, len(answer_ids), len(answer_ids) < len(complete)))
    return found


def load_data(settings: Settings, tokenizer: Any, now: datetime | None = None) -> Data:
    """Loads and encodes the training and validation examples; those without an answer's token
    are dropped.

    ``now`` is the time that a chat template sees, by default the present one. Raises DataError
    if a file cannot be read, or if nothing is left to train or validate on.
    """
    examples = load_examples(settings.data_path)
    held = load_examples(settings.validation_path) if settings.validation_path else []
    drawn: list[int] = []
    if settings.validation_rows >= len(examples):
        raise DataError(
            f"{settings.data_path}: {len(examples)} rows, of which validation_rows takes "
            f"{settings.validation_rows}; leave some to train on"
        )
    now = now or datetime.now()
    encoder = PromptEncoder(tokenizer, settings.template, now)
    if settings.add_eos and not encoder.end:
        raise DataError(
            f"{settings.model}: its tokenizer has no end token, so no answer would learn to end; "
            "set its eos_token, or add_eos to false"
        )

    def encode_file(path: str, examples: list[Example]) -> list[_Fitted]:
        try:
            return _encode(
                examples, encoder, settings.max_length, settings.mask_prompt, settings.add_eos
            )
        except DataError as error:
            raise DataError(f"{path}, {error}") from None

    rows = encode_file(settings.data_path, examples)
    validation = encode_file(settings.validation_path, held)
    if settings.validation_rows:
        validation, rows, drawn = split_examples(rows, settings.validation_rows, settings.seed)
    kept = [one for one in rows if one.kept and count_labels(one.row)]
    if not kept:
        raise DataError(
            f"{settings.data_path}: no row has an answer within max_length {settings.max_length}"
        )
    held_out = [one.row for one in validation if one.kept and count_labels(one.row)]
    if validation and not held_out:
        raise DataError(
            f"{settings.validation_path or settings.data_path}: no row to validate on has an "
            f"answer within max_length {settings.max_length}"
        )
    return Data(
        rows=[one.row for one in kept],
        held_out=held_out,
        dropped=len(rows) - len(kept),
        cut=sum(one.cut for one in kept),
        prompt_time=now.isoformat() if encoder.sees_time else "",
        drawn=drawn,
    )


def split_examples(
    examples: Sequence[_Item], held_out: int, seed: int
) -> tuple[list[_Item], list[_Item], list[int]]:
    """Returns (validation examples, training examples, row numbers of the first, from 1).

    The validation examples are drawn at random by the seed: the same at every start of a run.
    """
    drawn = sorted(random.Random(f"validation:{seed}").sample(range(len(examples)), held_out))
    chosen = set(drawn)
    rest = [example for i, example in enumerate(examples) if i not in chosen]
    return [examples[i] for i in drawn], rest, [i + 1 for i in drawn]
