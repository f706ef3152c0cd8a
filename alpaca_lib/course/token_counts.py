"""Counts the tokens that an epoch computes: with packed rows, and with shared prefixes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from alpaca_lib.training import balance_micro_batches, join, share_prefixes
from alpaca_lib.training.packing import Encoded

MULTIPLE = 8  # the loop pads a row to a multiple of this on a CPU


def count_packed(epoch: Iterable[Sequence[Encoded]], most: int, ranks: int) -> int:
    """Returns the tokens of all packed rows, with the padding to a multiple of 8.

    ``epoch``: the encoded examples of each step; ``most``: tokens per row.
    """
    return sum(-(-size // MULTIPLE) * MULTIPLE for size in _row_sizes(epoch, most, ranks, False))


def count_shared(epoch: Iterable[Sequence[Encoded]], most: int, ranks: int) -> int:
    """Returns the tokens of all packed rows whose examples share prefixes, without padding."""
    return sum(_row_sizes(epoch, most, ranks, True))


def _row_sizes(
    epoch: Iterable[Sequence[Encoded]], most: int, ranks: int, share: bool
) -> Iterator[int]:
    for examples in epoch:
        lengths = [len(example["input_ids"]) for example in examples]
        prefixes = share_prefixes(examples) if share else None
        for batch in balance_micro_batches(lengths, most, ranks, prefixes):
            for group in batch:
                yield len(join(examples, group, prefixes).input_ids)
