"""What is trained, counted after drops and cuts, and said before the first step."""

from __future__ import annotations

from typing import Any

from alpaca_lib.errors import ModelError
from alpaca_lib.training.examples import Data
from alpaca_lib.training.settings import Settings

LOUD = 0.1  # share of dropped or cut rows above which the line begins with WARNING
_FIRST = {"all": "their first answer", "last": "their last answer"}


def describe_rows(settings: Settings, data: Data, steps: int) -> list[str]:
    """Returns lines for people: rows that train, rows dropped, and answers that were cut.

    >>> for line in describe_rows(settings, data, steps):
    ...     print(line)
    34 of 60 answers are cut at max_length 256: raise it to 512 to keep all
    """
    rows, limit = len(data.rows), settings.max_length
    talks, talks_dropped, talks_cut = (
        data.conversations,
        data.conversations_dropped,
        data.conversations_cut,
    )
    # (what, dropped or cut, of how many, what is said of them)
    shares = [
        (
            "rows",
            data.dropped - talks_dropped,
            rows - talks + data.dropped - talks_dropped,
            f"dropped: their prompt leaves no room for an answer in max_length {limit}",
        ),
        (
            "conversations",
            talks_dropped,
            talks + talks_dropped,
            f"dropped: {_FIRST[settings.train_on_turns]} does not end within max_length {limit}",
        ),
    ]
    if data.longest > limit:
        keep = f"raise it to {data.longest} to keep all"
        shares += [
            (
                "answers",
                data.cut - talks_cut,
                rows - talks,
                f"are cut at max_length {limit}: {keep}",
            ),
            (
                "conversations",
                talks_cut,
                talks,
                f"are cut at a turn, {data.turns_left_out} of "
                f"{data.turns + data.turns_left_out} answers left out, at max_length {limit}: "
                f"{keep}",
            ),
        ]
    lines = [
        f"{_loud(count, of)}{count} of {of} {what} {said}"
        for what, count, of, said in shares
        if count
    ]
    if data.reasoning_left_out:
        lines.append(
            f"the reasoning of {data.reasoning_left_out} answers is left out (keep_reasoning "
            "is false)"
        )
    if data.joined:
        lines.append(
            f"{data.joined} of {talks} conversations have an answer whose first token the "
            "tokenizer would join with its prompt; they are tokenised in pieces"
        )
    validated = f", {len(data.held_out)} to validate on" if data.held_out else ""
    turns = f" ({talks} conversations, {data.turns} answers)" if talks else ""
    per_step = settings.examples_per_step
    count = "1 step" if steps == 1 else f"{steps} steps"
    lines.append(f"{rows} rows to train on{turns}{validated}: {count} of {per_step} rows")
    return lines


def _loud(count: int, rows: int) -> str:
    return "WARNING: " if count > LOUD * rows else ""


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
