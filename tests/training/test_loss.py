"""The loss against transformers' own, packed and not, tied and untied, with PEFT."""

from __future__ import annotations

import pytest
import torch

from alpaca_lib.training import head_loss
from alpaca_lib.training.examples import encode
from alpaca_lib.training.flops import flops_per_token, matmul_parameters
from alpaca_lib.training.loss import LabelLoss
from alpaca_lib.training.packing import IGNORE, collate, count_labels, pack


def own_loss(model, encoded, **more):
    """transformers' loss of one unpacked example, summed over its labels."""
    ids = torch.tensor([encoded["input_ids"]])
    labels = torch.tensor([encoded["labels"]])
    return model(input_ids=ids, labels=labels, **more).loss * count_labels(encoded)


def gradients(model):
    """A copy of all gradients by name."""
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def close(a, b, tolerance=1e-5):
    """Whether two sets of gradients agree, relative to the largest entry of each."""
    assert set(a) == set(b) and a
    return all(
        torch.allclose(a[n], b[n], rtol=1e-4, atol=tolerance * max(float(b[n].abs().max()), 1.0))
        for n in a
    )


WORDS = 500  # a small vocabulary: the head would take most of the time


def few_words(encoded):
    """The same rows with ids below WORDS."""
    return {
        "input_ids": [i % WORDS for i in encoded["input_ids"]],
        "labels": [i if i == IGNORE else i % WORDS for i in encoded["labels"]],
    }


@pytest.fixture(scope="module")
def tiny(make_tiny):
    """A function that makes the tiny model with a small vocabulary."""
    return lambda tied=True: make_tiny(tied=tied, vocab_size=WORDS)


@pytest.fixture(scope="module")
def encoded(some_examples, tokenizer):
    """Eight encoded examples."""
    return [few_words(encode(e, tokenizer, max_length=96)) for e in some_examples[:8]]


@pytest.mark.parametrize("tied", [True, False])
def test_one_example_is_transformers_loss(tiny, encoded, tied):
    """Summed label loss and gradients of single examples, as transformers computes them."""
    model = tiny(tied=tied)
    module = LabelLoss(model)
    for row in encoded[:3]:
        model.zero_grad()
        expected = own_loss(model, row)
        expected.backward()
        theirs = gradients(model)
        model.zero_grad()
        loss = module(**collate(pack([row], 96), 2))
        loss.backward()
        assert loss.dtype is torch.float32
        assert float(loss) == pytest.approx(float(expected), rel=1e-5)
        assert close(gradients(model), theirs)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("row_length", [96, 200, 1000])
def test_packed_is_the_sum_of_unpacked(tiny, encoded, tied, row_length):
    """Loss and gradients of packed rows are the sums over examples alone."""
    model = tiny(tied=tied)
    total = sum(own_loss(model, row) for row in encoded)
    total.backward()
    theirs = gradients(model)
    model.zero_grad()
    rows = pack(encoded, row_length)
    assert row_length == 96 or len(rows) < len(encoded)
    loss = LabelLoss(model)(**collate(rows, 2))
    loss.backward()
    assert float(loss) == pytest.approx(float(total), rel=1e-5)
    assert close(gradients(model), theirs)


def test_an_attention_mask_of_ones_would_leak(tiny, encoded):
    """The same packed row with a mask of ones has another loss: the test above can fail."""
    model = tiny()
    batch = collate(pack(encoded, 1000), 2)
    assert batch["input_ids"].shape[0] == 1
    total = float(sum(own_loss(model, row) for row in encoded))
    leaking = model(**batch, attention_mask=torch.ones_like(batch["input_ids"]), use_cache=False)
    count = sum(count_labels(row) for row in encoded)
    assert abs(float(leaking.loss) * count - total) > 1e-3 * total


def test_neighbours_do_not_matter(tiny, encoded, tokenizer):
    """An example's loss is the same whatever stands before it in the row."""
    from alpaca_lib.records import Example

    model = tiny()
    module = LabelLoss(model)
    losses = []
    for word in ("short", "a much longer neighbour than the other one was", "x " * 20):
        before = few_words(encode(Example(word, word, word), tokenizer))
        before["labels"] = [IGNORE] * len(before["labels"])
        rows = pack([before, encoded[0]], 400)
        assert len(rows) == 1
        losses.append(float(module(**collate(rows, 2))))
    assert losses == pytest.approx([float(own_loss(model, encoded[0]))] * 3, rel=1e-5)


def test_chunks_change_nothing(tiny, encoded, monkeypatch):
    """Logits in chunks of 7 labels: the same loss and gradients as at once."""
    model = tiny()
    batch = collate(pack(encoded, 200), 2)
    results = []
    for chunk in (head_loss.CHUNK, 7, 1_000_000):
        monkeypatch.setattr(head_loss, "CHUNK", chunk)
        model.zero_grad()
        loss = LabelLoss(model)(**batch)
        loss.backward()
        results.append((float(loss), gradients(model)))
    assert [r[0] for r in results] == pytest.approx([results[0][0]] * 3, rel=1e-6)
    assert close(results[1][1], results[0][1]) and close(results[2][1], results[0][1])


def test_more_labels_than_a_chunk(tiny, tokenizer):
    """A batch with more labels than one chunk holds is transformers' loss too."""
    from alpaca_lib.records import Example

    long = Example("Count for me.", "", "one two three " * 400)
    long = few_words(encode(long, tokenizer, max_length=1500))
    assert count_labels(long) > head_loss.CHUNK
    model = tiny()
    expected = own_loss(model, long)
    expected.backward()
    theirs = gradients(model)
    model.zero_grad()
    loss = LabelLoss(model)(**collate(pack([long], 1500), 2))
    loss.backward()
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    assert close(gradients(model), theirs)


def test_batch_without_a_label(tiny):
    """The batch of a rank without rows: loss 0, and gradients of 0 for a backward pass."""
    model = tiny()
    loss = LabelLoss(model)(**collate([], 2))
    assert float(loss) == 0.0
    loss.backward()
    assert all(not grad.any() for grad in gradients(model).values())


def test_with_adapters(tiny, encoded):
    """A PEFT model gives the loss and gradients that transformers gives for it."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    model = peft.get_peft_model(tiny(), config)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    total = sum(own_loss(model, row) for row in encoded[:4])
    total.backward()
    theirs = gradients(model)
    assert all("lora_" in name for name in theirs)
    model.zero_grad()
    loss = LabelLoss(model)(**collate(pack(encoded[:4], 400), 2))
    loss.backward()
    assert float(loss) == pytest.approx(float(total), rel=1e-5)
    assert close(gradients(model), theirs)


# --- the arithmetic of speed --------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_matmul_parameters_by_hand(make_tiny, tied):
    """Layers and head count, the input embedding does not, unless it is the head."""
    model = make_tiny(tied=tied)
    vocabulary, h, kv, mlp = model.config.vocab_size, 64, 32, 128
    layer = 2 * h * h + 2 * h * kv + 3 * h * mlp + 2 * h
    assert matmul_parameters(model) == vocabulary * h + 2 * layer + h
    full = flops_per_token(model, "full", context=100.0)
    assert full == 6 * matmul_parameters(model) + 6 * 2 * 64 * 100
    assert flops_per_token(model, "lora", 0.0) == pytest.approx(
        4 / 6 * flops_per_token(model, "full", 0.0)
    )


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_quantized_weights_count_whole(tiny_folder, quantization):
    """A weight in 4 bits is multiplied as often as one in 32: the FLOPs are the same."""
    pytest.importorskip("bitsandbytes")
    from alpaca_lib import models

    place = models.Placement("cpu", "float32", "")
    whole = models.ModelSource.resolve(str(tiny_folder)).load_model(place)
    small = models.ModelSource.resolve(str(tiny_folder)).load_model(place, quantization)
    assert matmul_parameters(small) == matmul_parameters(whole)
