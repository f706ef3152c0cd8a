"""Attention within documents: the examples of a packed row never see one another.

A batch is one long row, and ``Documents`` says where each example begins and ends. On a CPU each
document gets a causal attention of its own, so n documents of length L cost n L^2 instead of
(n L)^2; on CUDA one varlen kernel does the same.
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
# Arguments of some models' attention that this one cannot honour: sinks, caps, biases, choices.
REFUSED = ("s_aux", "softcap", "position_bias", "indices", "block_indices")
# In bfloat16 and up to this many tokens, two matrix products and a softmax are two to three
# times as fast on a CPU as torch's flash kernel, forward and backward together.
MATMUL_LENGTH = 512


@dataclass(frozen=True)
class Documents:
    """The examples of a flat batch: document i has tokens boundaries[i] to boundaries[i + 1].

    >>> documents = Documents.of([0, 3, 5], "cpu")  # two documents, of 3 and 2 tokens
    >>> loss = LabelLoss(model)(**batch, documents=documents)
    """

    boundaries: tuple[int, ...]  # documents + 1 token indices; first 0, last the row's length
    cu_seqlens: Tensor | None = None  # the same as int32 on the GPU, for the varlen kernel
    max_seqlen: int = 0  # tokens of the longest document

    @classmethod
    def of(cls, boundaries: list[int], device: str) -> Documents:
        """Returns the documents with these boundaries, for the attention of a device."""
        longest = max(end - start for start, end in pairwise(boundaries))
        on_gpu = device.startswith("cuda")
        cu_seqlens = torch.tensor(boundaries, dtype=torch.int32, device=device) if on_gpu else None
        return cls(tuple(boundaries), cu_seqlens, longest)


def attach(model: Any, device: str, longest: int) -> str:
    """Makes a model attend within documents if it can; returns how it attends, and why.

    ``longest`` is the tokens of the longest example. A model that cannot keeps transformers'
    SDPA with a mask over the row.
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


def is_attached(model: Any) -> bool:
    """Returns whether attach() made this model attend within documents."""
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
    """Computes causal attention within each document, with transformers' signature.

    query has the shape (1, heads, tokens, size), key and value (1, key heads, tokens, size);
    returns (1, tokens, heads, size). Without ``documents`` every row is one document. Raises
    ValueError if the model needs an argument of REFUSED.
    """
    if refused := [name for name in REFUSED if more.get(name) is not None]:
        raise ValueError(f"{type(module).__name__}: no {refused[0]} in attention within documents")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if documents is None:
        return _causal(query, key, value, scale, dropout).transpose(1, 2), None
    if documents.cu_seqlens is not None:
        return _varlen_attention(query, key, value, scale, documents), None
    return _by_document(query, key, value, scale, dropout, documents), None


# A compiled layer would be compiled again for every list of boundaries.
@torch.compiler.disable
def _by_document(
    query: Tensor, key: Tensor, value: Tensor, scale: float, dropout: float, documents: Documents
) -> Tensor:
    parts = []
    for start, end in pairwise(documents.boundaries):
        q, k, v = (x[:, :, start:end] for x in (query, key, value))
        if end - start <= MATMUL_LENGTH and not dropout and query.dtype == torch.bfloat16:
            part = _matmul_attention(q, k, v, scale)
        else:
            part = _causal(q, k, v, scale, dropout)
        parts.append(part.transpose(1, 2))
    return torch.cat(parts, 1) if len(parts) > 1 else parts[0]


def _matmul_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Returns softmax(Q K' + mask) V of one document.

    Queries that share a key head (GQA) are stacked: (key heads, groups * length, size).
    """
    _, heads, length, size = query.shape
    groups = heads // key.shape[1]
    q = query.reshape(key.shape[1], groups * length, size) * scale
    mask = _mask(length, query.dtype, query.device)
    mask = mask.repeat(groups, 1) if groups > 1 else mask
    scores = torch.baddbmm(mask, q, key[0].transpose(1, 2))
    return torch.bmm(torch.softmax(scores, -1), value[0]).view(1, heads, length, value.shape[-1])


def _causal(query: Tensor, key: Tensor, value: Tensor, scale: float, dropout: float) -> Tensor:
    grouped = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(
        query, key, value, dropout_p=dropout, is_causal=True, scale=scale, enable_gqa=grouped
    )


@lru_cache(maxsize=MATMUL_LENGTH)
def _mask(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full((length, length), float("-inf"), dtype=dtype, device=device).triu(1)


def _varlen() -> Any:
    """Returns torch's varlen_attn, or None if this torch has none."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn


def _varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float, documents: Documents
) -> Tensor:
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (tokens, heads, size)
    if q.shape[1] != k.shape[1]:  # older wrappers of the kernel do not support GQA
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    cu_seqlens, longest = documents.cu_seqlens, documents.max_seqlen
    out: Tensor = _varlen()(
        q, k, v, cu_seqlens, cu_seqlens, longest, longest, scale=scale, window_size=(-1, 0)
    )
    return out[None]
