"""Rows, steps and micro-batches: which examples are computed together.

Packing puts several examples end to end; position_ids restart at each, and from
that alone the model knows that they must not see one another. What an optimizer
step sees depends on (seed, epoch) and its number, never on how it is packed.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from alpaca_lib.training.settings import Settings

IGNORE = -100
Encoded = dict[str, list[int]]  # input_ids and labels of one example


@dataclass(frozen=True)
class Row:
    """Several encoded examples end to end; all four lists are equally long."""

    input_ids: list[int]
    labels: list[int]
    position_ids: list[int]
    members: list[int]  # the index, in what pack() was given, of each example in the row

    @property
    def borders(self) -> list[int]:
        """Where the examples begin, and where the last one ends."""
        starts = [i for i, position in enumerate(self.position_ids) if position == 0]
        return [*starts, len(self.position_ids)]


def label_count(encoded: Encoded) -> int:
    """How many tokens of an encoded example the loss counts."""
    return len(encoded["labels"]) - encoded["labels"].count(IGNORE)


def pack(encoded: Sequence[Encoded], row_length: int) -> list[Row]:
    """Rows of at most row_length tokens, by first-fit decreasing (Johnson 1973).

    Every example is in exactly one row, whole; one longer than row_length is an error.
    O(n log n): a tree knows the most room in each half of the rows.
    """
    lengths = [len(e["input_ids"]) for e in encoded]
    size = 1
    while size < max(len(encoded), 1):
        size *= 2
    room = [row_length] * (2 * size)  # room[1] is the root, room[size + b] that of row b
    bins: list[list[int]] = []
    for i in sorted(range(len(encoded)), key=lambda i: -lengths[i]):
        length = lengths[i]
        if length > row_length:
            raise ValueError(f"example {i} has {length} tokens, a row only {row_length}")
        node = 1
        while node < size:
            node = 2 * node if room[2 * node] >= length else 2 * node + 1
        place = node - size
        if place == len(bins):
            bins.append([])
        bins[place].append(i)
        room[node] -= length
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
    return [join(encoded, members) for members in bins]


def join(encoded: Sequence[Encoded], members: Sequence[int]) -> Row:
    """One row of these examples, in this order."""
    row = Row([], [], [], list(members))
    for i in members:
        ids, labels = encoded[i]["input_ids"], encoded[i]["labels"]
        row.input_ids.extend(ids)
        # A label on a first token would be predicted from the neighbour before it.
        row.labels.extend([IGNORE, *labels[1:]])
        row.position_ids.extend(range(len(ids)))
    return row


def count_steps(rows: int, examples_per_step: int, epochs: float, max_steps: int = 0) -> int:
    """Returns the number of optimizer steps of a run: max_steps, or as many as the epochs have.

    The last step of an epoch has the examples that are left over, so 52,002 rows with 128
    examples per step are 407 steps per epoch and 1,221 in three.
    """
    return max_steps or max(round(epochs * math.ceil(rows / examples_per_step)), 1)


def step_order(count: int, per_step: int, seed: int, step: int) -> list[int]:
    """Returns the examples of optimizer step ``step`` (from 0).

    Epoch by epoch, shuffled by (seed, epoch); the last step of an epoch has the rest.
    """
    epoch, place = divmod(step, math.ceil(count / per_step))
    order = list(range(count))
    random.Random(f"{seed}:{epoch}").shuffle(order)
    return order[place * per_step : (place + 1) * per_step]


def balance_micro_batches(lengths: Sequence[int], most: int, ranks: int) -> list[list[list[int]]]:
    """[micro-batch][rank] -> indices: groups of at most ``most`` tokens, as few as that
    allows and about equally long, so that no rank waits for another.

    Longest first into the emptiest group (Graham 1969). A group may be empty: all
    ranks have as many, since they meet in every collective.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    if order and lengths[order[0]] > most:
        raise ValueError(f"an example has {lengths[order[0]]} tokens, a micro-batch only {most}")
    count = max(-(-sum(lengths) // (most * ranks)), 1)
    while True:
        groups: list[list[int]] = [[] for _ in range(count * ranks)]
        filled = [(0, g) for g in range(len(groups))]
        for i in order:
            tokens, g = heapq.heappop(filled)
            groups[g].append(i)
            heapq.heappush(filled, (tokens + lengths[i], g))
        if max(tokens for tokens, _ in filled) <= most:
            return [groups[m * ranks : (m + 1) * ranks] for m in range(count)]
        count += 1


def group_rows(
    lengths: Sequence[int], rows: int, ranks: int, by_length: bool
) -> list[list[list[int]]]:
    """[micro-batch][rank] -> ``rows`` indices each, to be padded: as they come, or those of
    like length together (bucketing)."""
    order = list(range(len(lengths)))
    if by_length:
        order.sort(key=lambda i: -lengths[i])
    groups = [order[at : at + rows] for at in range(0, len(order), rows)]
    groups += [[] for _ in range(-len(groups) % ranks)]
    return [groups[at : at + ranks] for at in range(0, len(groups), ranks)]


def micro_batches(
    settings: Settings, lengths: Sequence[int], ranks: int, by_document: bool
) -> list[list[list[int]]]:
    """Returns [micro-batch][rank] -> the indices of a step's examples, as the settings say.

    ``lengths`` are the examples' tokens. ``by_document``: attention costs the sum of the
    documents' squares; otherwise it costs the row's square, and a micro-batch is one row.
    """
    if settings.batching != "pack":
        by_length = settings.batching == "bucket"
        return group_rows(lengths, settings.rows_per_micro_batch, ranks, by_length)
    rows = settings.rows_per_micro_batch if by_document else 1
    return balance_micro_batches(lengths, rows * settings.row_length, ranks)


def padding_multiple(device: str) -> int:
    """Returns the multiple that batches are padded to, as the device's matrix units prefer."""
    return 128 if device.startswith("cuda") else 8


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
