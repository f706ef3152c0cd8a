"""Exercises of lesson 03: the likely wrong answers get a hint of their own, without the answer."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from alpaca_lib.course.checks import full

N = full.PARAMETERS


@pytest.fixture
def verdict(capsys):
    def judge(check, *answers):
        check(*answers)
        return capsys.readouterr().out

    return judge


@pytest.mark.parametrize(
    ("each", "rows", "hint"),
    [
        (..., ..., "no answer yet"),
        (16 * N, [3, 3, 3, 1], "all four processes"),
        (3 * N, [3, 3, 3, 1], "two moments"),
        (2 * N, [3, 3, 3, 1], "in float32"),
        (N, [3, 3, 3, 1], "formula of section 1"),
        (4 * N, [3, 3, 2, 2], "does not balance"),
        (4 * N, [4, 4, 4, 4], "16 rows"),
        (4 * N, [5, 5], "each of the four"),
        (4 * N, [4, 4, 2, 0], "ceil"),
    ],
)
def test_shards(verdict, each, rows, hint):
    said = verdict(full.shards, each, rows)
    assert said.startswith("Not yet: ") and hint in said
    assert str(4 * N) not in said and "[3, 3, 3, 1]" not in said
    assert verdict(full.shards, N * 16 / 4, (3, 3, 3, 1)).startswith("Right: ")


@pytest.mark.parametrize(
    ("by_layer", "by_step", "hint"),
    [
        (..., ..., "no answer yet"),
        (21e9, 5.25e9, "backward pass need"),
        (7e9, 5.25e9, "one micro-batch"),
        (32e9, 5.25e9, "nobody sends to itself"),
        (14e9, 5.25e9, "how many gathers"),
        (28, 5.25, "by_layer"),
        (28e9, 15.75e9, "reduced once"),
        (28e9, 6e9, "by_step: each once"),
    ],
)
def test_traffic(verdict, by_layer, by_step, hint):
    said = verdict(full.traffic, by_layer, by_step)
    assert said.startswith("Not yet: ") and hint in said
    assert "28" not in said.replace(str(by_layer), "") and "5.25" not in said
    assert "5.3 times less" in verdict(full.traffic, 28e9, 5.25e9)


def chunks(gradients):
    total = torch.stack(gradients).sum(0)
    parts = list(total.chunk(len(gradients)))
    return parts + [total[:0]] * (len(gradients) - len(parts))


def in_place(gradients):
    for other in gradients[1:]:
        gradients[0] += other
    return list(gradients[0].chunk(len(gradients)))


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda g: None, "returns None"),
        (in_place, "has changed"),
        (lambda g: list(sum(g).chunk(len(g))), "3 parts"),
        (lambda g: [p / len(g) for p in chunks(g)], "mean of the gradients"),
        (lambda g: list(sum(g).chunk(len(g), dim=1)), "split by rows"),
        (lambda g: [g[0][: len(p)] for p in chunks(g)], "not its rows of the sum"),
        (lambda g: list(sum(g).tensor_split(len(g))), "have the shapes"),
    ],
)
def test_reduce_scatter(verdict, answer, hint):
    said = verdict(full.reduce_scatter, answer)
    assert said.startswith("Not yet: ") and hint in said, said
    assert verdict(full.reduce_scatter, chunks).startswith("Right: ")


def summed(weight, batches, divide=True, detach=False):
    count = sum(int((labels != -100).sum()) for _, labels in batches)
    losses = [
        F.cross_entropy(states @ weight.T, labels, reduction="sum") for states, labels in batches
    ]
    losses[0] = losses[0].detach() if detach else losses[0]
    return sum(losses) / (count if divide else 1)


def mean_of_means(weight, batches):
    losses = [F.cross_entropy(states @ weight.T, labels) for states, labels in batches]
    return sum(loss for loss in losses if not loss.isnan()) / len(losses)


def only_not_nan(weight, batches):
    """Right but for a micro-batch without a label."""
    count = sum(int((labels != -100).sum()) for _, labels in batches)
    losses = [
        F.cross_entropy(states @ weight.T, labels) * int((labels != -100).sum())
        for states, labels in batches
    ]
    return sum(losses) / count


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda w, b: 1.0, "as a tensor"),
        (mean_of_means, "what is averaged"),
        (lambda w, b: summed(w, b, divide=False), "sum of the losses"),
        (only_not_nan, "0 / 0"),
        (lambda w, b: summed(w, b, detach=True), "not its gradient"),
    ],
)
def test_step_loss(verdict, answer, hint):
    said = verdict(full.step_loss, answer)
    assert said.startswith("Not yet: ") and hint in said, said
    assert verdict(full.step_loss, summed).startswith("Right: ")


def packed(examples, restart=True, **more):
    ids = torch.tensor([[i for one in examples for i in one]])
    places = [p for one in examples for p in range(len(one))]
    places = torch.tensor([places if restart else list(range(ids.shape[1]))])
    return {"input_ids": ids, "position_ids": places, "use_cache": False, **more}


def with_ones(examples):
    found = packed(examples)
    return {**found, "attention_mask": torch.ones_like(found["input_ids"])}


def with_blocks(examples):
    """A mask of four dimensions, which is right, too."""
    found = packed(examples)
    place = torch.tensor([k for k, one in enumerate(examples) for _ in one])
    sees = (place[:, None] == place[None]).tril()
    mask = torch.zeros(sees.shape).masked_fill(~sees, float("-inf"))
    return {**found, "attention_mask": mask[None, None]}


def last_only(examples):
    return packed(examples[-1:]) if len(examples) > 1 else packed([examples[0][::-1]])


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda e: None, "no answer yet"),
        (with_ones, "trap of section 3"),
        (lambda e: packed(e, use_cache=True), "what does the cache change"),
        (lambda e: packed(e, restart=False), "do the positions restart"),
        (last_only, "one example alone has other logits"),
    ],
)
def test_packed_inputs(verdict, answer, hint):
    said = verdict(full.packed_inputs, answer)
    assert said.startswith("Not yet: ") and hint in said, said
    for right in (packed, with_blocks):
        assert verdict(full.packed_inputs, right).startswith("Right: ")


def labelled(rows, pad, label_of_padding=-100, ignore=None):
    longest = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
    labels = ids.clone()
    for row, label in zip(rows, labels, strict=True):
        label[len(row) :] = label_of_padding
    if ignore is not None:
        labels[ids == ignore] = -100
    return ids, labels


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda rows, pad: labelled(rows, pad, ignore=pad), "equals pad"),
        (lambda rows, pad: labelled(rows, pad, label_of_padding=pad), "padding has a label"),
        (lambda rows, pad: labelled(rows, 9), "padded on the right"),
        (lambda rows, pad: labelled(rows, pad)[1], "return the pair"),
        (lambda rows, pad: (labelled(rows, pad)[0], torch.zeros(len(rows), 1)), "not as long"),
    ],
)
def test_pad_labels(verdict, answer, hint):
    said = verdict(full.pad_labels, answer)
    assert said.startswith("Not yet: ") and hint in said, said
    assert verdict(full.pad_labels, labelled).startswith("Right: ")


def resized(weight, tokens, new, shrink=False, last=False):
    rows = tokens if shrink else max(tokens, len(weight))
    found = torch.zeros(rows, weight.shape[1])
    kept = min(rows, len(weight))
    found[:kept] = weight[:kept]
    start, end = (rows - new, rows) if last else (tokens - new, tokens)
    found[start:end] = weight[: tokens - new].mean(0)
    return found


def with_minus_zero(weight, tokens, new):
    found = resized(weight, tokens, new)
    if len(weight) <= tokens:
        found[-new:] = found[:-new].mean(0)
    return found


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda w, t, n: None, "return the new matrix"),
        (lambda w, t, n: resized(w, t, n, shrink=True), "rows of the model are gone"),
        (lambda w, t, n: resized(w, t, n, last=True), "belongs to no token"),
        (with_minus_zero, "there is a nan"),
        (lambda w, t, n: w.add_(1), "has changed; work on a copy"),
        (lambda w, t, n: resized(w, t, 0), "not the mean"),
    ],
)
def test_resize(verdict, answer, hint):
    said = verdict(full.resize, answer)
    assert said.startswith("Not yet: ") and hint in said, said
    assert verdict(full.resize, resized).startswith("Right: ")
