"""The head's loss and its gradients, computed together, against torch's cross-entropy."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from alpaca_lib.training import head_loss
from alpaca_lib.training.head_loss import HeadLoss, LogitsTransform

WORDS, SIZE = 97, 16
TRANSFORMS = {
    "bare": LogitsTransform(),
    "scaled": LogitsTransform(0.25),
    "capped": LogitsTransform(1.5, 4.0),
}


def drawn(labels, dtype, bias=False):
    """A head, hidden states and targets."""
    torch.manual_seed(labels)
    head = nn.Linear(SIZE, WORDS, bias=bias).to(dtype)
    states = torch.randn(labels, SIZE).to(dtype).mul_(3.0).requires_grad_()
    return head, states, torch.randint(WORDS, (labels,))


def expected(head, transform, states, targets, factor):
    """Loss and gradients from torch's own operations, in float64."""
    exact = nn.Linear(SIZE, WORDS, bias=head.bias is not None).double()
    exact.load_state_dict({name: p.double() for name, p in head.state_dict().items()})
    inputs = states.detach().double().requires_grad_()
    loss = F.cross_entropy(transform(exact(inputs)), targets, reduction="sum")
    (loss * factor).backward()
    return [loss.detach(), inputs.grad, *(p.grad for p in exact.parameters())]


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("labels", [1, 5, 23])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_loss_and_gradients(transform, bias, labels, dtype, tolerance, monkeypatch):
    """In one chunk and in several, whatever the loss is multiplied with."""
    monkeypatch.setattr(head_loss, "CHUNK", 7)
    head, states, targets = drawn(labels, dtype, bias)
    loss = HeadLoss()(head, transform, states, targets)
    assert loss.dtype is torch.float32
    (loss * 0.37).backward()
    ours = [loss.detach(), states.grad, *(p.grad for p in head.parameters())]
    for mine, right in zip(ours, expected(head, transform, states, targets, 0.37), strict=True):
        assert float((mine.double() - right).norm()) <= tolerance * float(right.norm())


def test_large_logits_do_not_overflow():
    """Logits of some thousands: the loss is finite, and torch's."""
    head, states, targets = drawn(9, torch.float32)
    with torch.no_grad():
        states.mul_(2000.0)
    loss = HeadLoss()(head, LogitsTransform(), states, targets)
    loss.backward()
    right, of_states, _ = expected(head, LogitsTransform(), states, targets, 1.0)
    assert float(loss.detach()) == pytest.approx(float(right), rel=1e-5)
    assert torch.allclose(states.grad.double(), of_states, atol=1e-4)


def test_no_label():
    """Zero, with gradients of zeros: a rank without rows has a backward pass too."""
    head, states, targets = drawn(0, torch.float32, bias=True)
    loss = HeadLoss()(head, LogitsTransform(), states, targets)
    loss.backward()
    assert loss.item() == 0.0
    assert states.grad.shape == (0, SIZE)
    assert not any(p.grad.any() for p in head.parameters())


def test_a_frozen_head_has_no_gradient():
    """LoRA: only the states' gradient."""
    head, states, targets = drawn(5, torch.float32)
    head.requires_grad_(False)
    HeadLoss()(head, LogitsTransform(), states, targets).backward()
    assert head.weight.grad is None
    assert torch.allclose(
        states.grad.double(), expected(head, LogitsTransform(), states, targets, 1.0)[1], atol=1e-5
    )


def test_one_backward_pass():
    """A second one would scale the gradients twice: it is refused."""
    head, states, targets = drawn(5, torch.float32)
    loss = HeadLoss()(head, LogitsTransform(), states, targets)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="compute it again"):
        loss.backward()


def test_a_head_that_is_more_than_linear(monkeypatch):
    """Called as a module, with the same loss: here a hook doubles its output."""
    monkeypatch.setattr(head_loss, "CHUNK", 7)
    head, states, targets = drawn(23, torch.float32)
    head.register_forward_hook(lambda module, inputs, output: output * 2)
    loss = HeadLoss()(head, LogitsTransform(), states, targets)
    loss.backward()
    right, of_states, of_weight = expected(head, LogitsTransform(2.0), states, targets, 1.0)
    assert loss.item() == pytest.approx(float(right), rel=1e-5)
    assert torch.allclose(states.grad.double(), of_states, atol=1e-5)
    assert torch.allclose(head.weight.grad.double(), of_weight, atol=1e-4)


def test_logits_have_one_memory(monkeypatch):
    """Batches of other lengths use the memory of the longest chunk again."""
    monkeypatch.setattr(head_loss, "CHUNK", 7)
    loss, places = HeadLoss(), set()
    for labels in (7, 3, 23, 6):
        head, states, targets = drawn(labels, torch.bfloat16)
        loss(head, LogitsTransform(), states, targets)
        places.add(tuple(b.data_ptr() for b in loss._buffers.values()))
    assert len(places) == 1
    assert {b.numel() for b in loss._buffers.values()} == {7 * WORDS}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tied_weights_get_one_dense_gradient(make_tiny, dtype):
    """Of two micro-batches: what an embedding whose gradient is dense has."""
    from alpaca_lib.training.loss import LabelLoss

    found = []
    for tied in (True, False):
        model = make_tiny(tied=True, vocab_size=WORDS).to(dtype)
        embedding = model.get_input_embeddings()
        if not tied:  # the same numbers, but two parameters
            model.lm_head.weight = nn.Parameter(embedding.weight.detach().clone())
        module = LabelLoss(model)
        for seed in (0, 1):
            torch.manual_seed(seed)
            ids = torch.randint(WORDS, (1, 40))
            module(ids, ids, torch.arange(40)[None]).backward()
        assert embedding.sparse is tied
        gradient = embedding.weight.grad
        assert gradient.layout is torch.strided
        found.append(gradient.float() + (0 if tied else model.lm_head.weight.grad.float()))
    ours, right = found
    assert float((ours - right).norm()) <= (1e-6 if dtype == torch.float32 else 1e-2) * right.norm()
