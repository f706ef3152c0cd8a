"""What is trained, counted after drops and cuts, and said before the first step."""

from __future__ import annotations

from typing import Any

from alpaca_lib.errors import ModelError
from alpaca_lib.records import load_examples
from alpaca_lib.training.examples import Data, encode_all, split_examples
from alpaca_lib.training.settings import Settings

LOUD = 0.1  # share of dropped or cut rows above which the line begins with WARNING
_NO_LIMIT = 2**31


def describe_rows(settings: Settings, data: Data, steps: int, tokenizer: Any) -> list[str]:
    """Returns lines for people: rows that train, rows dropped, and answers that were cut.

    >>> for line in describe_rows(settings, data, steps, tokenizer):
    ...     print(line)
    34 of 60 answers are cut at max_length 256: raise it to 512 to keep all
    """
    rows, limit = len(data.rows), settings.max_length
    lines = []
    if data.dropped:
        lines.append(
            f"{_loud(data.dropped, rows + data.dropped)}{data.dropped} of {rows + data.dropped} "
            f"rows dropped: their prompt leaves no room for an answer in max_length {limit}"
        )
    if data.cut and (longest := _longest(settings, tokenizer)) > limit:
        lines.append(
            f"{_loud(data.cut, rows)}{data.cut} of {rows} answers are cut at max_length {limit}: "
            f"raise it to {longest} to keep all"
        )
    validated = f", {len(data.held_out)} to validate on" if data.held_out else ""
    lines.append(
        f"{rows} rows to train on{validated}: {steps} steps of {settings.examples_per_step} rows"
    )
    return lines


def _loud(count: int, rows: int) -> str:
    return "WARNING: " if count > LOUD * rows else ""


def _longest(settings: Settings, tokenizer: Any) -> int:
    """Returns the tokens of the longest training example, uncut."""
    examples = load_examples(settings.data_path)
    _, kept, _ = split_examples(examples, settings.validation_rows, settings.seed)
    options = (settings.mask_prompt, settings.add_eos)
    rows = encode_all(kept, tokenizer, settings.template, _NO_LIMIT, *options)
    return max(len(row["input_ids"]) for row in rows)


def check_ids(settings: Settings, data: Data, config: Any, vocab_size: int) -> None:
    """Raises ModelError for token ids or positions that the model does not have."""
    rows = [row["input_ids"] for row in (*data.rows, *data.held_out)]
    if (largest := max(max(ids) for ids in rows)) >= vocab_size:
        raise ModelError(
            f"{settings.model}: the tokenizer gives token {largest}, the model's embedding "
            f"has only {vocab_size}; they do not belong together"
        )
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if isinstance(positions, int) and (longest := max(map(len, rows))) > positions > 0:
        raise ModelError(
            f"{settings.model}: an example has {longest} tokens, the model positions for "
            f"{positions}; lower max_length to {positions}"
        )
