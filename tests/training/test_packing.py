"""Rows, steps and micro-batches: packing, balancing, the order of steps, batches."""

from __future__ import annotations

import random

import pytest

from alpaca_lib.training.micro_batches import balance_micro_batches, group_rows
from alpaca_lib.training.packing import IGNORE, collate, pack, step_order

# --- pack ---------------------------------------------------------------------------


def encoded_of(lengths, start=10):
    """Encoded examples of these lengths; every token is its example's number."""
    return [
        {
            "input_ids": [start + n] * length,
            "labels": [start + n] * length,
        }
        for n, length in enumerate(lengths)
    ]


@pytest.mark.parametrize("seed", range(20))
def test_packing_properties(seed):
    """Each example once and uncut, no row too long, positions restart, no first label."""
    draw = random.Random(seed)
    row_length = draw.choice([8, 64, 512])
    lengths = [draw.randint(1, row_length) for _ in range(draw.randint(1, 120))]
    encoded = encoded_of(lengths)
    rows = pack(encoded, row_length)
    assert sorted(i for row in rows for i in row.members) == list(range(len(lengths)))
    for row in rows:
        assert 0 < len(row.input_ids) <= row_length
        at = 0
        for i in row.members:
            end = at + lengths[i]
            assert row.input_ids[at:end] == encoded[i]["input_ids"]
            assert row.labels[at:end] == [IGNORE, *encoded[i]["labels"][1:]]
            assert row.position_ids[at:end] == list(range(lengths[i]))
            at = end
        assert at == len(row.input_ids) == len(row.labels) == len(row.position_ids)
    # First fit: no two rows could be one.
    sizes = sorted(len(row.input_ids) for row in rows)
    assert len(sizes) < 2 or sizes[0] + sizes[1] > row_length
    assert len(rows) <= 11 / 9 * max(-(-sum(lengths) // row_length), 1) + len(lengths) / 2 + 1


def test_a_row_reads_only_its_own_examples():
    """Packing n examples reads each a few times, not each for every row."""

    class Counted(list):
        reads = 0

        def __getitem__(self, key):
            Counted.reads += 1
            return super().__getitem__(key)

        def __iter__(self):
            Counted.reads += len(self)
            return super().__iter__()

    examples = Counted(encoded_of([7] * 400))
    assert len(pack(examples, 8)) == 400
    assert Counted.reads < 10 * 400


def test_packing_is_tight_where_it_can_be():
    """Halves and quarters fill rows without a gap."""
    rows = pack(encoded_of([32] * 4 + [16] * 8), 64)
    assert [len(row.input_ids) for row in rows] == [64] * 4


def test_too_long_for_a_row():
    """An example longer than a row is an error that names it."""
    with pytest.raises(ValueError, match="example 2 has 9 tokens"):
        pack(encoded_of([3, 8, 9]), 8)
    assert pack([], 8) == []


# --- steps and batches --------------------------------------------------------------


@pytest.mark.parametrize("count, per_step", [(10, 3), (12, 4), (5, 8), (1, 1), (100, 16)])
def test_every_epoch_is_a_permutation(count, per_step):
    """The steps of an epoch show each example once; epochs differ; seeds differ."""
    steps = -(-count // per_step)
    epochs = []
    for epoch in range(3):
        parts = [step_order(count, per_step, 7, epoch * steps + s) for s in range(steps)]
        assert all(len(part) == per_step for part in parts[:-1])
        seen = [i for part in parts for i in part]
        assert sorted(seen) == list(range(count))
        epochs.append(seen)
    if count >= 10:
        assert epochs[0] != epochs[1] != epochs[2]
        assert step_order(count, count, 8, 0) != step_order(count, count, 7, 0)
    assert step_order(count, per_step, 7, 1) == step_order(count, per_step, 7, 1)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_balance_micro_batches(ranks, seed):
    """Every example once; no group above the limit; as many groups for every rank; groups
    about equally long; and no more micro-batches than the tokens need."""
    draw = random.Random(seed)
    lengths = [draw.randint(1, 60) for _ in range(draw.randint(1, 80))]
    batches = balance_micro_batches(lengths, 100, ranks)
    assert all(len(micro) == ranks for micro in batches)
    groups = [group for micro in batches for group in micro]
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    tokens = [sum(lengths[i] for i in group) for group in groups]
    assert max(tokens) <= 100
    if len(lengths) >= 2 * len(groups):
        assert max(tokens) - min(tokens) <= max(lengths)
    assert len(batches) <= 1.2 * sum(lengths) / (100 * ranks) + 1


def test_an_example_above_the_limit():
    """It is named with both numbers."""
    with pytest.raises(ValueError, match="101 tokens, a micro-batch only 100"):
        balance_micro_batches([3, 101], 100, 2)


@pytest.mark.parametrize("by_length", [True, False])
@pytest.mark.parametrize("ranks", [1, 2])
def test_group_rows(by_length, ranks):
    """At most that many rows per group, each once; bucketing puts similar lengths together."""
    lengths = [5, 50, 6, 49, 7, 48, 8]
    batches = group_rows(lengths, 2, ranks, by_length)
    groups = [group for micro in batches for group in micro]
    assert all(len(micro) == ranks for micro in batches) and max(map(len, groups)) == 2
    assert sorted(i for group in groups for i in group) == list(range(7))
    spread = max(max(lengths[i] for i in g) - min(lengths[i] for i in g) for g in groups if g)
    assert spread < 45 if by_length else spread >= 45


def test_pack_is_first_fit_decreasing():
    """The rows of the plain quadratic algorithm, for many lengths."""
    draw = random.Random(0)
    for _ in range(30):
        lengths = [draw.randint(1, 40) for _ in range(draw.randint(1, 60))]
        bins: list[list[int]] = []
        for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
            fits = [b for b in bins if sum(lengths[j] for j in b) + lengths[i] <= 50]
            fits[0].append(i) if fits else bins.append([i])
        assert [row.members for row in pack(encoded_of(lengths), 50)] == bins


def test_collate():
    """Rows become equally long tensors; padding has no label and position 0 each."""
    import torch

    rows = pack(encoded_of([5, 4, 9]), 9)
    batch = collate(rows, pad_id=2, multiple=8)
    assert all(tensor.shape == (2, 16) and tensor.dtype == torch.int64 for tensor in batch.values())
    for at, row in enumerate(rows):
        size = len(row.input_ids)
        assert batch["input_ids"][at, :size].tolist() == row.input_ids
        assert batch["labels"][at, :size].tolist() == row.labels
        assert batch["position_ids"][at, :size].tolist() == row.position_ids
        assert (batch["input_ids"][at, size:] == 2).all()
        assert (batch["labels"][at, size:] == IGNORE).all()
        assert (batch["position_ids"][at, size:] == 0).all()


def test_collate_of_an_empty_batch():
    """A rank without rows gets a batch that counts nothing."""
    batch = collate([], pad_id=2)
    assert batch["input_ids"].shape == (1, 8) and (batch["labels"] == IGNORE).all()
