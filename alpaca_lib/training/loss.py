"""The model as the loop sees it: a batch in, the sum of its label losses out.

Logits are made only where a label is, in chunks: at 49,152 words a token, the
logits of a whole batch would be the largest thing in memory.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from alpaca_lib.training.examples import IGNORE

CHUNK = 256  # label tokens whose logits exist at once


class LabelLoss(nn.Module):
    """Wraps a causal LM (bare, or with PEFT adapters); forward gives a summed loss."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, labels: Tensor, position_ids: Tensor) -> Tensor:
        """The sum of the cross-entropies of all labels, a float32 scalar.

        All arguments have the shape (rows, tokens). No attention mask: with it, or
        with a cache, packed examples would see one another (transformers reads the
        borders from position_ids only without both).
        """
        causal: Any = self.model
        if hasattr(causal, "get_base_model"):
            causal = causal.get_base_model()
        targets = labels[:, 1:]
        wanted = targets != IGNORE
        hidden = causal.base_model(
            input_ids=input_ids, position_ids=position_ids, attention_mask=None, use_cache=False
        ).last_hidden_state
        hidden, targets = hidden[:, :-1][wanted], targets[wanted]
        head = causal.get_output_embeddings()
        total = hidden.sum() * 0.0  # keeps the graph whole where no row has a label
        total = total.float()
        for states, chunk in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True):
            if len(chunk) == 0:
                continue
            if len(targets) > CHUNK and torch.is_grad_enabled():
                total = total + checkpoint(_cross_entropy, head, states, chunk, use_reentrant=False)
            else:
                total = total + _cross_entropy(head, states, chunk)
        return total


def _cross_entropy(head: nn.Module, states: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(head(states).float(), targets, reduction="sum")


def matmul_parameters(model: Any) -> int:
    """The parameters that a token is multiplied with: all but the input embedding,
    which counts after all where it is also the output head."""
    # A 4-bit weight is stored packed; its quant_state knows the true shape.
    total = sum(
        math.prod(p.quant_state.shape) if hasattr(p, "quant_state") else p.numel()
        for n, p in model.named_parameters()
        if "lora_" not in n
    )
    if getattr(model.config, "tie_word_embeddings", False):
        return total
    return total - model.get_input_embeddings().weight.numel()


def flops_per_token(model: Any, method: str, context: float) -> float:
    """FLOPs that training needs for one token of an example ``context`` tokens long:
    6 a parameter, or 4 with frozen weights (they have no gradient), and causal attention."""
    config = model.config
    attention = 6 * config.num_hidden_layers * config.hidden_size * context
    return (4 if method == "lora" else 6) * matmul_parameters(model) + attention


def gemm_rate(device: str, dtype: torch.dtype, seconds: float = 0.5) -> float:
    """FLOP/s of matrix products here, in this dtype: the best of several, measured."""
    import time

    size = 8192 if device.startswith("cuda") else 1024
    a = torch.randn(size, size, device=device).to(dtype)
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(3):
            a @ a
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        best = max(best, 3 * 2 * size**3 / (time.perf_counter() - start))
    return best
