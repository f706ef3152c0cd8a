"""Fused RMSNorm and SwiGLU against transformers' modules, and which models have them."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from transformers.models.llama import modeling_llama

from alpaca_lib.training import fused_layers
from alpaca_lib.training.loss import LabelLoss

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0,
}  # fmt: skip
NEOX = {k: v for k, v in SIZES.items() if k != "num_key_value_heads"}
# Each with the modules that are replaced: 2 norms per layer, 1 at the end, 1 MLP per layer.
FAMILIES = {
    "llama": (transformers.LlamaConfig(**SIZES), 7),
    "mistral": (transformers.MistralConfig(**SIZES), 7),
    "qwen2": (transformers.Qwen2Config(**SIZES), 7),
    "qwen3": (transformers.Qwen3Config(**SIZES, head_dim=16), 11),  # norms of queries and keys
    "phi3": (transformers.Phi3Config(**SIZES), 5),  # gate and up are one matrix there
    "llama with GELU": (transformers.LlamaConfig(**SIZES, hidden_act="gelu"), 5),
    "gemma": (transformers.GemmaConfig(**SIZES, head_dim=16), 0),  # its norm has 1 + weight
    "gpt-neox": (transformers.GPTNeoXConfig(**NEOX), 0),
}


def made(config):
    """A random model with norms that are not all ones."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def outcome(model):
    """Loss and gradients by name."""
    ids = torch.arange(40)[None] * 7 % 64
    loss = LabelLoss(model)(ids, ids, torch.arange(40)[None])
    loss.backward()
    return loss.item(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_stay(family):
    """Of every family's model, whether its modules are replaced or not."""
    config, replaced = FAMILIES[family]
    model = made(config)
    fused = copy.deepcopy(model)
    assert fused_layers.fuse(fused) == replaced
    assert fused_layers.fuse(fused) == 0  # once
    loss, right = outcome(model)
    ours, gradients = outcome(fused)
    assert ours == pytest.approx(loss, rel=1e-6)
    assert gradients.keys() == right.keys()
    for name, gradient in gradients.items():
        assert float((gradient - right[name]).norm()) <= 1e-5 * float(right[name].norm()), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("frozen", [False, True])
def test_norm(dtype, frozen):
    """Rows of very different sizes, against the module in float64."""
    torch.manual_seed(0)
    norm = modeling_llama.LlamaRMSNorm(48).to(dtype)
    norm.weight.data.normal_()
    norm.weight.requires_grad_(not frozen)
    states = (torch.randn(2, 5, 48) * torch.logspace(-3, 3, 5)[:, None]).to(dtype)
    grad = torch.randn(2, 5, 48).to(dtype)
    inputs = states.clone().requires_grad_()
    out = fused_layers.RMSNorm.apply(inputs, norm.weight, norm.variance_epsilon)
    out.backward(grad)
    exact, weight = states.double().requires_grad_(), norm.weight.detach().double()
    weight.requires_grad_()
    right = weight * exact / (exact.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    right.backward(grad.double())
    tolerance = 1e-6 if dtype is torch.float32 else 1e-2
    pairs = [(out, right), (inputs.grad, exact.grad)]
    pairs += [] if frozen else [(norm.weight.grad, weight.grad)]
    for mine, theirs in pairs:
        assert mine.dtype is dtype
        of_each_row = (mine.double() - theirs).norm(dim=-1) / theirs.norm(dim=-1)
        assert float(of_each_row.detach().max()) <= tolerance
    assert (norm.weight.grad is None) is frozen


def test_swiglu():
    """With a gradient that is not contiguous: autograd's values."""
    torch.manual_seed(0)
    drawn = [torch.randn(1, 7, 48, requires_grad=True) for _ in range(2)]
    grad = torch.randn(1, 48, 7).transpose(1, 2)
    fused_layers.SwiGLU.apply(*drawn).backward(grad)
    ours = [x.grad for x in drawn]
    for x in drawn:
        x.grad = None
    (torch.nn.functional.silu(drawn[0]) * drawn[1]).backward(grad)
    for mine, x in zip(ours, drawn, strict=True):
        assert torch.allclose(mine, x.grad, rtol=1e-5, atol=1e-6)


def test_less_is_kept():
    """Per layer and token: a row of the MLP's width, and two of the layer's, less."""
    config = FAMILIES["llama"][0]
    kept = []
    for fuse in (False, True):
        model = made(config)
        if fuse:
            fused_layers.fuse(model)
        mine = {p.untyped_storage().data_ptr() for p in model.parameters()}
        sizes: dict[int, int] = {}

        def keep(tensor, sizes=sizes, mine=mine):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in mine:
                sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            outcome_of = model(torch.zeros(1, 40, dtype=torch.long)).logits
        kept.append(sum(sizes.values()))
        assert outcome_of.requires_grad
    # 5 norms keep a quotient each less, 2 layers a matrix of the MLP's width
    assert kept[0] - kept[1] >= 40 * 4 * (5 * 32 + 2 * 48)


def test_a_llama_of_another_version_is_left_alone(monkeypatch):
    """If transformers' own code computes something else, nothing is replaced."""

    def forward(self, hidden_states):
        return hidden_states * (1.0 + self.weight)

    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", forward)
    for cached in (fused_layers._forwards_of_llama, fused_layers._source):
        cached.cache_clear()
    try:
        assert fused_layers.fuse(made(FAMILIES["llama"][0])) == 2  # the MLPs
    finally:
        monkeypatch.undo()
        for cached in (fused_layers._forwards_of_llama, fused_layers._source):
            cached.cache_clear()


def test_weights_of_another_dtype():
    """bfloat16 states and float32 weights: transformers' own result."""
    norm = modeling_llama.LlamaRMSNorm(48)
    states = torch.randn(1, 3, 48).bfloat16()
    right = norm(states)
    holder = torch.nn.ModuleList([norm])
    assert fused_layers.fuse(holder) == 1
    assert torch.equal(norm(states), right)
    assert norm(states).dtype is torch.float32
