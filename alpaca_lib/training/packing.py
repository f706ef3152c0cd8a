"""Packing and batching: examples -> rows, optimizer steps and batches.

Which examples an optimizer step sees depends on the seed, the epoch and the step's number alone,
never on how they are packed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alpaca_lib.errors import SettingsError
from alpaca_lib.memory import collector_paused
from alpaca_lib.training.prefixes import Prefixes, find_prefixes, list_segments

if TYPE_CHECKING:
    import torch

IGNORE = -100  # the label of a token without a loss, as in torch's cross_entropy
Encoded = dict[str, list[int]]  # "input_ids" and "labels" of one example, equally long


@dataclass(frozen=True)
class Row:
    """Several encoded examples end to end; here example 4 of 3 tokens and example 7 of 2:

        input_ids     [ a0,  a1,  a2,   b0,  b1]
        labels        [-100, a1,  a2, -100,  b1]   no label on an example's first token
        position_ids  [  0,   1,   2,    0,   1]   restart at each example
        members       [4, 7]                       indices of the examples
        boundaries    [0, 3, 5]                    of the row's segments
        parents       [-1, -1]                     no segment continues another one

    If both begin with the tokens s0 and s1, and these are shared:

        input_ids     [ s0,  s1,   a2,   b2,  b3]
        labels        [-100, -100, a2, -100,  b3]
        position_ids  [  0,   1,    2,    2,   3]  continue from the parent's end
        boundaries    [0, 2, 3, 5]
        parents       [-1, 0, 0]                   both examples continue segment 0
    """

    input_ids: list[int]
    labels: list[int]
    position_ids: list[int]
    members: list[int]
    boundaries: list[int]  # where each segment begins and the last one ends (cu_seqlens)
    parents: list[int]  # of each segment: the one that it continues, or -1


def count_labels(encoded: Encoded) -> int:
    """Returns the number of an example's tokens that have a loss."""
    return len(encoded["labels"]) - encoded["labels"].count(IGNORE)


@collector_paused()
def pack(encoded: Sequence[Encoded], row_length: int) -> list[Row]:
    """Packs examples into rows of at most ``row_length`` tokens: first-fit decreasing.

    Examples 0, 1, 2 and 3 of 5, 4, 3 and 2 tokens, in rows of 8 (one digit per token):

        row 0  [0 0 0 0 0 2 2 2]
        row 1  [1 1 1 1 3 3]

    No example is cut. At most 11/9 of the optimal number of rows, plus one (Johnson 1973), in
    O(n log n). Raises SettingsError if an example is longer than a row.
    """
    lengths = [len(e["input_ids"]) for e in encoded]
    size = 1
    while size < max(len(encoded), 1):
        size *= 2
    # A binary tree in an array: free[size + r] is row r's free tokens, free[n] the larger of
    # its children free[2n] and free[2n + 1], so going down leads to the first row with room.
    free = [row_length] * (2 * size)
    members: list[list[int]] = []
    for i in sorted(range(len(encoded)), key=lambda i: -lengths[i]):
        length = lengths[i]
        if length > row_length:
            raise SettingsError(
                f"example {i} has {length} tokens, a row only {row_length}; raise row_length"
            )
        node = 1
        while node < size:
            node = 2 * node if free[2 * node] >= length else 2 * node + 1
        row = node - size
        if row == len(members):
            members.append([])
        members[row].append(i)
        free[node] -= length
        while node > 1:
            node //= 2
            free[node] = max(free[2 * node], free[2 * node + 1])
    return [join(encoded, indices) for indices in members]


def join(
    encoded: Sequence[Encoded], members: Sequence[int], prefixes: Prefixes | None = None
) -> Row:
    """Joins the examples with these indices into one row, in this order.

    ``prefixes`` of ``encoded`` are then computed once per row; see Row.
    """
    row = Row([], [], [], list(members), [0], [])
    lengths = {i: len(encoded[i]["input_ids"]) for i in members}
    for example, start, end, parent in list_segments(lengths, members, prefixes):
        row.input_ids.extend(encoded[example]["input_ids"][start:end])
        # Logits at position t predict token t + 1: a label on an example's first token would
        # be predicted from the last token of the example before it.
        labels = encoded[example]["labels"][start:end]
        row.labels.extend([IGNORE, *labels[1:]])
        row.position_ids.extend(range(start, end))
        row.boundaries.append(len(row.input_ids))
        row.parents.append(parent)
    return row


def share_prefixes(examples: Sequence[Encoded]) -> Prefixes:
    """Returns the prefixes that examples share, up to where their labels begin.

    Label t is predicted from token t - 1, and that token is the example's own, too: so a shared
    segment has no label, and predicts none. With a loss on the prompts nothing is shared.
    """
    prompts = []
    for row in examples:
        labels = row["labels"]
        first = next((t for t in range(1, len(labels)) if labels[t] != IGNORE), len(labels))
        prompts.append(row["input_ids"][: max(first - 1, 0)])
    return find_prefixes(prompts)


def count_steps(rows: int, examples_per_step: int, epochs: float, max_steps: int = 0) -> int:
    """Returns the number of optimizer steps of a run: max_steps, or that of the epochs.

    The last step of an epoch has the examples that are left over, so 52,002 rows with 128
    examples per step are 407 steps per epoch and 1,221 in three.
    """
    return max_steps or max(round(epochs * math.ceil(rows / examples_per_step)), 1)


def count_warmup(warmup: float, steps: int) -> int:
    """Returns the steps of the warm-up: a fraction of all steps below 1, else their number.

    At least the last step has the full learning rate. Raises SettingsError for a number of
    steps that the run does not exceed.
    """
    if warmup < 1:
        return min(math.ceil(warmup * steps), steps - 1)
    if warmup >= steps:
        raise SettingsError(
            f"warmup {warmup:g}: this run has {steps} steps, so it would never reach its learning "
            "rate; give fewer, or a fraction such as 0.03"
        )
    return int(warmup)


def step_order(count: int, per_step: int, seed: int, step: int) -> list[int]:
    """Returns the indices of the examples of optimizer step ``step`` (the first is 0).

    Every epoch has its own shuffle, by (seed, epoch); its last step has what is left over.
    """
    epoch, place = divmod(step, math.ceil(count / per_step))
    order = list(range(count))
    random.Random(f"{seed}:{epoch}").shuffle(order)
    return order[place * per_step : (place + 1) * per_step]


def padding_multiple(device: str) -> int:
    """Returns the multiple that batches are padded to, as the device's matrix units prefer."""
    return 128 if device.startswith("cuda") else 8


def collate(rows: Sequence[Row], pad_id: int, multiple: int = 8) -> dict[str, torch.Tensor]:
    """Returns input_ids, labels and position_ids as int64 tensors of shape (rows, tokens).

    Rows are padded to the longest, rounded up to ``multiple``. Each pad is an example of its own:

        labels        [-100, a1,  a2, -100,  b1, -100, -100, -100]
        position_ids  [  0,   1,   2,    0,   1,    0,    0,    0]

    Without rows (a rank whose group is empty) the batch is one row of padding.
    """
    import torch

    rows = rows or [Row([pad_id], [IGNORE], [0], [], [0, 1], [-1])]
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
