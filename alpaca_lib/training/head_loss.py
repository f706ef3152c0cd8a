"""The head and the cross-entropy of its logits, with the gradients in the same pass.

Logits are the largest tensors of a step: with a vocab_size of 49,152, the float32 logits of 2,048
tokens are 400 MB. Here they exist for CHUNK labels at a time, always in the same memory; what
their gradient is needed for, the gradients of the hidden states and of the head's weight, is
computed at once, so that none is kept or computed twice. The idea is that of Liger Kernel
(arXiv:2410.10989), in torch operations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

CHUNK = 512  # label tokens whose logits exist at once


@dataclass(frozen=True)
class LogitsTransform:
    """What a model does with its head's output z: z * scale, then cap * tanh(z / cap).

    Cohere has a logit_scale, Granite a divisor logits_scaling, Gemma 2 final_logit_softcapping.

    >>> logits = LogitsTransform.of(model.config)(head(states))
    """

    scale: float = 1.0
    cap: float = 0.0  # 0: none

    @classmethod
    def of(cls, config: Any) -> LogitsTransform:
        """Returns the one of a model's configuration."""
        text = config.get_text_config()
        scale = float(getattr(text, "logit_scale", None) or 1.0)
        scale /= float(getattr(text, "logits_scaling", None) or 1.0)
        return cls(scale, float(getattr(text, "final_logit_softcapping", None) or 0.0))

    def __call__(self, logits: Tensor) -> Tensor:
        """Returns the logits that belong to a head's output."""
        logits = logits * self.scale if self.scale != 1.0 else logits
        return self.cap * torch.tanh(logits / self.cap) if self.cap else logits

    def apply_(self, logits: Tensor) -> Tensor | float:
        """Does it in place; returns its derivative at each value, or one for all of them."""
        if self.scale != 1.0:
            logits.mul_(self.scale)
        if not self.cap:
            return self.scale
        logits.div_(self.cap).tanh_()
        slope = logits.square().neg_().add_(1.0).mul_(self.scale)
        logits.mul_(self.cap)
        return slope


class HeadLoss:
    """The summed cross-entropy of a head's logits, of any number of hidden states.

    Its memory, the logits of CHUNK labels, lives as long as it does.

    >>> loss = HeadLoss()
    >>> total = loss(model.lm_head, LogitsTransform.of(model.config), states, targets)
    """

    def __init__(self) -> None:
        self._buffers: dict[torch.dtype, Tensor] = {}

    def __call__(
        self, head: nn.Module, transform: LogitsTransform, states: Tensor, targets: Tensor
    ) -> Tensor:
        """Returns the sum of the cross-entropies in nats, a float32 scalar.

        ``states`` has the shape (labels, hidden_size), ``targets`` the token ids (labels,).
        """
        if is_plain(head) and torch.is_grad_enabled():
            weight, bias = head.weight, head.bias
            total: Tensor = _Fused.apply(states, weight, bias, targets, transform, self)
            return total
        # Zero, but with a graph: FSDP needs a backward pass on every rank, even where no token
        # has a label.
        total = (states.sum() * 0.0).float()
        recompute = len(targets) > CHUNK and torch.is_grad_enabled()
        for some, chunk in zip(states.split(CHUNK), targets.split(CHUNK), strict=True):
            if recompute:
                total = total + checkpoint(
                    _cross_entropy, head, transform, some, chunk, use_reentrant=False
                )
            elif len(chunk):
                total = total + _cross_entropy(head, transform, some, chunk)
        return total

    def buffer(self, rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Returns memory for (rows, columns) values; a later call returns the same."""
        found = self._buffers.get(dtype)
        if found is None or found.numel() < rows * columns or found.device != device:
            found = self._buffers[dtype] = torch.empty(rows, columns, dtype=dtype, device=device)
        return found.view(-1)[: rows * columns].view(rows, columns)


def is_plain(head: nn.Module) -> bool:
    """Returns whether a head is a linear layer and no more: not quantised, adapted, or hooked."""
    return type(head) is nn.Linear and not head._forward_hooks and not head._forward_pre_hooks


class _Fused(torch.autograd.Function):
    """The loss of a linear head. Its gradients are known, but for a factor, with its value."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        transform: LogitsTransform,
        memory: HeadLoss,
    ) -> Tensor:
        of_states = torch.empty_like(states)
        fresh = torch.empty_like if len(targets) else torch.zeros_like
        of_weight = fresh(weight) if ctx.needs_input_grad[1] else None
        of_bias = torch.zeros_like(bias) if ctx.needs_input_grad[2] and bias is not None else None
        wide = torch.promote_types(states.dtype, torch.float32)
        total = torch.zeros((), dtype=wide, device=states.device)
        chunks = -(-len(targets) // CHUNK)
        size = -(-len(targets) // max(chunks, 1))  # of equal length
        for start in range(0, len(targets), max(size, 1)):
            part = slice(start, start + size)
            h, chosen = states[part], targets[part, None]
            shape = (len(h), len(weight))
            # 1. Logits, and the loss: log sum exp(z) - z[target], with the largest z taken away.
            product = memory.buffer(*shape, states.dtype, states.device)
            torch.mm(h, weight.t(), out=product)
            if bias is not None:
                product.add_(bias)
            z = product
            if product.dtype != wide:
                z = memory.buffer(*shape, wide, states.device).copy_(product)
            slope = transform.apply_(z)
            z.sub_(z.amax(1, keepdim=True))
            of_target = z.gather(1, chosen)
            sums = z.exp_().sum(1, keepdim=True)
            total += (sums.log() - of_target).sum()
            # 2. In the same memory their gradient: softmax(z), less 1 at the target.
            z.div_(sums).scatter_add_(1, chosen, z.new_full(chosen.shape, -1.0))
            if isinstance(slope, Tensor) or slope != 1.0:
                z.mul_(slope)
            gradient = z if product is z else product.copy_(z)
            torch.mm(gradient, weight, out=of_states[part])
            if of_weight is not None:
                of_weight.addmm_(gradient.t(), h, beta=min(start, 1))  # 0: not read
            if of_bias is not None:
                of_bias += gradient.sum(0)
        ctx.gradients = of_states, of_weight, of_bias
        return total.float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> Any:
        if ctx.gradients is None:
            raise RuntimeError("the loss of a head has one backward pass: compute it again")
        gradients, ctx.gradients = ctx.gradients, None
        return *(None if g is None else g.mul_(factor) for g in gradients), None, None, None


def _cross_entropy(
    head: nn.Module, transform: LogitsTransform, states: Tensor, targets: Tensor
) -> Tensor:
    return F.cross_entropy(transform(head(states)).float(), targets, reduction="sum")
