"""RMSNorm and SwiGLU with their gradients written out: fewer passes over memory, less kept.

autograd keeps every intermediate result of an expression. Of a SwiGLU, silu(gate) * up, it keeps
three matrices of the MLP's width, where gate and up are enough; of an RMSNorm it keeps the input
and its quotient, where the input and one number per token are. On a CPU each such matrix is also
one more pass over main memory.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def fuse(model: nn.Module) -> int:
    """Replaces them where a module's forward is LLaMA's, word for word; returns how many.

    That of most families is: Mistral's, Qwen's, Phi-3's, Granite's, SmolLM's. Others stay.
    """
    norm, mlp = _forwards_of_llama()
    replaced = 0
    for module in model.modules():
        if "forward" in vars(module):
            continue
        code = _source(type(module).forward)
        if norm and code == norm:
            module.forward = MethodType(_norm, module)
        elif mlp and code == mlp and _is_silu(getattr(module, "act_fn", None)):
            module.forward = MethodType(_mlp, module)
        else:
            continue
        replaced += 1
    return replaced


def _is_silu(activation: Any) -> bool:
    return isinstance(activation, nn.SiLU) or type(activation).__name__ == "SiLUActivation"


@cache
def _source(forward: Callable[..., Any]) -> str:
    """Returns the source of a function; "" if there is none to read."""
    try:
        return inspect.getsource(forward)
    except (OSError, TypeError):
        return ""


@cache
def _forwards_of_llama() -> tuple[str, str]:
    """Returns the source of LLaMA's RMSNorm and MLP; "" for one that is not what it was."""
    from transformers.models.llama.modeling_llama import LlamaConfig, LlamaMLP, LlamaRMSNorm

    config = LlamaConfig(hidden_size=8, intermediate_size=16, num_attention_heads=2)
    found = []
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad():
        states = torch.randn(1, 3, 8)
        for module, fused in ((LlamaRMSNorm(8), _norm), (LlamaMLP(config), _mlp)):
            for parameter in module.parameters():
                parameter.normal_()
            same = torch.allclose(fused(module, states), module(states), rtol=1e-4, atol=1e-6)
            found.append(_source(type(module).forward) if same else "")
    return found[0], found[1]


def _norm(self: Any, hidden_states: Tensor) -> Tensor:
    if self.weight.dtype != hidden_states.dtype:
        same: Tensor = type(self).forward(self, hidden_states)
        return same
    result: Tensor = RMSNorm.apply(hidden_states, self.weight, self.variance_epsilon)
    return result


def _mlp(self: Any, x: Tensor) -> Tensor:
    result: Tensor = self.down_proj(SwiGLU.apply(self.gate_proj(x), self.up_proj(x)))
    return result


class RMSNorm(torch.autograd.Function):
    """weight * x / sqrt(mean(x^2) + epsilon) over the last dimension (arXiv:1910.07467).

    Computed in float32, like transformers' forward; the gradient as well.

    >>> normed = RMSNorm.apply(states, weight, 1e-5)
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """Returns a tensor like ``states``; ``weight`` has the size of its last dimension."""
        wide = states.float()
        size = states.shape[-1]
        inverse = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        inverse = inverse.square_().div_(size).add_(epsilon).rsqrt_()
        ctx.save_for_backward(states, weight, inverse)
        return (wide * inverse).to(states.dtype).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        """Returns, with n = x / rms(x) and d = grad * weight: (d - n * mean(d * n)) / rms(x)."""
        states, weight, inverse = ctx.saved_tensors
        normed, wide = states.float() * inverse, grad.float()
        product = wide * normed
        of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = product.flatten(0, -2).sum(0).to(weight.dtype)
        mean = (product @ weight.float()).div_(states.shape[-1]).unsqueeze(-1)
        of_states = torch.mul(wide, weight, out=product)
        of_states.addcmul_(normed, mean, value=-1.0).mul_(inverse)
        return of_states.to(states.dtype), of_weight, None


class SwiGLU(torch.autograd.Function):
    """silu(gate) * up, elementwise (arXiv:2002.05202); keeps gate and up.

    >>> hidden = SwiGLU.apply(gate, up)
    """

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        """Returns a tensor like ``gate`` and ``up``, which have the same shape."""
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        """Returns the gradients of gate and up."""
        gate, up = ctx.saved_tensors
        of_up = F.silu(gate).mul_(grad)
        of_gate = grad * up
        torch.ops.aten.silu_backward.grad_input(of_gate, gate, grad_input=of_gate)
        return of_gate, of_up
