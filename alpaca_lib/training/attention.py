"""Attention within documents: packed examples never see one another.

A batch is one long row, and ``documents`` says where each example begins and ends.
On a CPU every document is its own causal attention, so the work is the sum of the
squares and not the square of the sum; on CUDA one varlen kernel does the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

NAME = "alpaca_documents"
# What some models hand to their attention and this one cannot do: sinks, caps, biases, choices.
REFUSED = ("s_aux", "softcap", "position_bias", "indices", "block_indices")
# In bfloat16 and up to this length, two matrix products and a softmax are two to three
# times as fast on a CPU as torch's flash kernel, forward and backward together.
BY_HAND = 512


@dataclass(frozen=True)
class Documents:
    """Where the examples of a flat batch are: borders[i] to borders[i + 1]."""

    borders: tuple[int, ...]
    starts: Tensor | None = None  # the same as int32 on the GPU, for the varlen kernel
    longest: int = 0

    @classmethod
    def of(cls, borders: list[int], device: str) -> Documents:
        """The documents with these borders, ready for the attention of a device."""
        longest = max(b - a for a, b in pairwise(borders))
        on_gpu = device.startswith("cuda")
        starts = torch.tensor(borders, dtype=torch.int32, device=device) if on_gpu else None
        return cls(tuple(borders), starts, longest)


def attach(model: Any, device: str, longest: int) -> str:
    """Makes a model attend within documents if it can; returns why, or why it cannot.

    A model that cannot keeps transformers' SDPA with a mask over the whole row.
    """
    config = model.config
    if not getattr(model, "_supports_attention_backend", False):
        return f"{type(model).__name__} has an attention of its own: SDPA with a mask"
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    window = min((w for w in windows if w), default=longest)
    if window < longest and getattr(config, "use_sliding_window", True):
        return f"its window of {window} tokens is shorter than an example: SDPA with a mask"
    if getattr(config, "attn_logit_softcapping", None):
        return "it caps attention scores: its own attention with a mask"
    if any("sink" in name for name, _ in model.named_parameters()):
        return "its attention has sinks: its own attention with a mask"
    if device.startswith("cuda") and _varlen() is None:
        return "this torch has no varlen attention: SDPA with a mask"
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, documents_attention)
    model.set_attn_implementation(NAME)
    return "varlen kernel" if device.startswith("cuda") else "document by document"


def attached(model: Any) -> bool:
    """Whether attach() changed this model."""
    return bool(model.config._attn_implementation == NAME)


def documents_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    documents: Documents | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each document, as transformers calls it.

    query (1, heads, tokens, size), key and value (1, fewer or equal heads, tokens, size);
    returns (1, tokens, heads, size). Without ``documents`` every row is one document.
    ValueError if the model wants of its attention what this one cannot do.
    """
    if wanted := [name for name in REFUSED if more.get(name) is not None]:
        raise ValueError(f"{type(module).__name__}: no {wanted[0]} in attention within documents")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if documents is None:
        return _causal(query, key, value, scale, dropout).transpose(1, 2), None
    if documents.starts is not None:
        return _varlen_attention(query, key, value, scale, documents), None
    return _by_document(query, key, value, scale, dropout, documents.borders), None


# Compiled layers would be compiled anew for every list of borders.
@torch.compiler.disable
def _by_document(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    dropout: float,
    borders: tuple[int, ...],
) -> Tensor:
    parts = []
    for a, b in pairwise(borders):
        q, k, v = query[:, :, a:b], key[:, :, a:b], value[:, :, a:b]
        by_hand = b - a <= BY_HAND and not dropout and query.dtype == torch.bfloat16
        part = _by_hand(q, k, v, scale) if by_hand else _causal(q, k, v, scale, dropout)
        parts.append(part.transpose(1, 2))
    return torch.cat(parts, 1) if len(parts) > 1 else parts[0]


def _by_hand(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """softmax(Q K' + mask) V for one document; the queries that share a key head are
    stacked, so that nothing is repeated."""
    _, heads, length, size = query.shape
    groups = heads // key.shape[1]
    q = query.reshape(key.shape[1], groups * length, size) * scale
    mask = _mask(length, query.dtype, query.device)
    mask = mask.repeat(groups, 1) if groups > 1 else mask
    scores = torch.baddbmm(mask, q, key[0].transpose(1, 2))
    return torch.bmm(torch.softmax(scores, -1), value[0]).view(1, heads, length, value.shape[-1])


def _causal(query: Tensor, key: Tensor, value: Tensor, scale: float, dropout: float) -> Tensor:
    return F.scaled_dot_product_attention(
        query, key, value, dropout_p=dropout, is_causal=True, scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip


@lru_cache(maxsize=BY_HAND)
def _mask(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full((length, length), float("-inf"), dtype=dtype, device=device).triu(1)


def _varlen() -> Any:
    """torch's varlen_attn, or None where there is none."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn


def _varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float, documents: Documents
) -> Tensor:
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (tokens, heads, size)
    if q.shape[1] != k.shape[1]:  # older versions of the kernel's wrapper know no groups
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    starts, longest = documents.starts, documents.longest
    out: Tensor = _varlen()(
        q, k, v, starts, starts, longest, longest, scale=scale, window_size=(-1, 0)
    )
    return out[None]
