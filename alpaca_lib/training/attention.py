"""Attention within documents: the examples of a packed row never see one another.

A batch is one long row, and ``Documents`` says where each example begins and ends. On a CPU each
document gets a causal attention of its own, so n documents of length L cost n L^2 instead of
(n L)^2; on CUDA one varlen kernel does the same. Where examples share a prefix, the row has it
once, as a segment whose keys and values all of them read (alpaca_lib.training.prefixes).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate, pairwise
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
MASK_LENGTH = 4096  # keys up to which a mask is made; all segments and layers share it


@dataclass(frozen=True)
class Documents:
    """The segments of a flat batch: segment i has tokens boundaries[i] to boundaries[i + 1].

    A segment is an example, a prefix that several examples share, or what follows it: then
    ``parents`` says which earlier segment it continues. Its tokens attend to all of their
    ancestors' tokens, and causally to their own.

    >>> documents = Documents.of([0, 3, 5], "cpu")  # two documents, of 3 and 2 tokens
    >>> documents = Documents.of([0, 3, 5, 9], "cpu", [-1, 0, 0])  # two that share 3 tokens
    >>> loss = LabelLoss(model)(**batch, documents=documents)
    """

    boundaries: tuple[int, ...]  # segments + 1 token indices; first 0, last the row's length
    cu_seqlens: Tensor | None = None  # the same as int32 on the GPU, for the varlen kernel
    max_seqlen: int = 0  # tokens of the longest segment
    parents: tuple[int, ...] = ()  # of each segment, -1: none; (): no segment has one
    # For the varlen kernel, if a segment has a parent: which tokens' keys each segment reads,
    # one segment after another; where they begin in that list; and the most of a segment.
    key_tokens: Tensor | None = None  # int64, on the GPU
    cu_seqlens_k: Tensor | None = None  # int32, on the GPU
    max_seqlen_k: int = 0

    @classmethod
    def of(cls, boundaries: Sequence[int], device: str, parents: Sequence[int] = ()) -> Documents:
        """Returns the segments with these boundaries, for the attention of a device."""
        longest = max(end - start for start, end in pairwise(boundaries))
        own = tuple(parents) if any(parent >= 0 for parent in parents) else ()
        documents = cls(tuple(boundaries), None, longest, own)
        return documents.with_cu_seqlens(device) if device.startswith("cuda") else documents

    def with_cu_seqlens(self, device: str) -> Documents:
        """Returns the same segments with the tensors of the varlen kernel, on a device."""
        cu_seqlens = torch.tensor(self.boundaries, dtype=torch.int32, device=device)
        if not self.parents:
            return replace(self, cu_seqlens=cu_seqlens)
        keys: list[list[int]] = []
        for parent, (start, end) in zip(self.parents, pairwise(self.boundaries), strict=True):
            keys.append([*(keys[parent] if parent >= 0 else ()), *range(start, end)])
        starts = list(accumulate(map(len, keys), initial=0))
        return replace(
            self,
            cu_seqlens=cu_seqlens,
            key_tokens=torch.tensor([token for own in keys for token in own], device=device),
            cu_seqlens_k=torch.tensor(starts, dtype=torch.int32, device=device),
            max_seqlen_k=max(map(len, keys)),
        )


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
    """Returns the attention of each segment, joined.

    ``split`` and not a slice per segment: the backward pass of a slice makes a gradient of the
    full row, that of a split joins the segments' gradients once.
    """
    lengths = [end - start for start, end in pairwise(documents.boundaries)]
    queries, keys, values = (x.split(lengths, 2) for x in (query, key, value))
    if documents.parents:
        keys, values = (_with_ancestors(x, documents.parents) for x in (keys, values))
    parts = []
    for q, k, v in zip(queries, keys, values, strict=True):
        by_hand = k.shape[2] <= MATMUL_LENGTH and not dropout and query.dtype == torch.bfloat16
        part = _matmul_attention(q, k, v, scale) if by_hand else _causal(q, k, v, scale, dropout)
        parts.append(part.transpose(1, 2))
    return torch.cat(parts, 1) if len(parts) > 1 else parts[0]


def _with_ancestors(own: Sequence[Tensor], parents: Sequence[int]) -> list[Tensor]:
    """Returns the keys (or values) that each segment reads: its ancestors', then its own."""
    full: list[Tensor] = []
    for part, parent in zip(own, parents, strict=True):
        full.append(torch.cat((full[parent], part), 2) if parent >= 0 else part)
    return full


def _matmul_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Returns softmax(Q K' + mask) V of one segment; the queries are those of the last keys.

    Queries that share a key head (GQA) are stacked: (key heads, groups * length, size).
    """
    _, heads, length, size = query.shape
    groups = heads // key.shape[1]
    q = query.reshape(key.shape[1], groups * length, size) * scale
    mask = _mask(length, key.shape[2] - length, query.dtype, query.device)
    mask = mask.repeat(groups, 1) if groups > 1 else mask
    scores = torch.baddbmm(mask, q, key[0].transpose(1, 2))
    return torch.bmm(torch.softmax(scores, -1), value[0]).view(1, heads, length, value.shape[-1])


def _causal(query: Tensor, key: Tensor, value: Tensor, scale: float, dropout: float) -> Tensor:
    """Returns torch's attention, causal, where the queries are those of the last keys."""
    length, before = query.shape[2], key.shape[2] - query.shape[2]
    masked = before > 0 and key.shape[2] <= MASK_LENGTH
    if before and not masked:  # queries of zeros in front make it square; their result is unused
        query = F.pad(query, (0, 0, before, 0))
    out = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=_mask(length, before, query.dtype, query.device) if masked else None,
        dropout_p=dropout,
        is_causal=not masked,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out if masked or not before else out[:, :, before:]


def _mask(length: int, before: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Returns 0 where a token may attend, else -inf: the last rows of a causal mask's corner."""
    total = before + length
    return _square_mask(1 << (total - 1).bit_length(), dtype, device)[before:total, :total]


@lru_cache(maxsize=4)
def _square_mask(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
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
    cu_seqlens, longest = documents.cu_seqlens, documents.max_seqlen
    cu_seqlens_k, longest_k = cu_seqlens, longest
    if documents.key_tokens is not None:
        k, v = (_gather(x, documents.key_tokens) for x in (k, v))
        cu_seqlens_k, longest_k = documents.cu_seqlens_k, documents.max_seqlen_k
    if q.shape[1] != k.shape[1]:  # older wrappers of the kernel do not support GQA
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    out: Tensor = _varlen()(
        q, k, v, cu_seqlens, cu_seqlens_k, longest, longest_k, scale=scale, window_size=(-1, 0)
    )
    return out[None]


def _gather(states: Tensor, tokens: Tensor) -> Tensor:
    """Returns the states of these tokens, of shape (tokens, heads, size).

    An embedding lookup: on CUDA its backward pass sums the gradients of a shared token in a
    fixed order and in float32, while that of index_select adds them atomically, rounded each.
    """
    return F.embedding(tokens, states.flatten(1)).unflatten(1, states.shape[1:])


@lru_cache
def shares_keys(device: str, dtype: torch.dtype) -> bool:
    """Returns whether segments can read their parents' keys on a device.

    On a GPU that is tried: a kernel that aligned its causal mask with the first keys, and not
    with the last ones, would let a token see a part of its past only. Output and gradients must
    be those of the computation by segment, in float32 on the CPU.
    """
    if device == "cpu":
        return True
    # Two prefixes, the second after the first, and three segments of different lengths.
    boundaries, parents = [0, 40, 57, 90, 91, 230], [-1, 0, 1, 1, 0]
    draw = torch.Generator().manual_seed(0)
    drawn = [torch.randn(1, h, boundaries[-1], 64, generator=draw) for h in (4, 2, 2, 4)]

    def outcome(where: str, of: torch.dtype) -> list[Tensor]:
        q, k, v, grad = (x.to(dtype).to(where, of) for x in drawn)
        leaves = [x.requires_grad_() for x in (q, k, v)]
        documents = Documents.of(boundaries, where, parents)
        out, _ = documents_attention(None, q, k, v, None, documents=documents)
        out.backward(grad.transpose(1, 2))
        grads = [leaf.grad for leaf in leaves if leaf.grad is not None]
        return [x.detach().float().cpu() for x in (out, *grads)]

    try:
        pairs = zip(outcome(device, dtype), outcome("cpu", torch.float32), strict=True)
        return all(float((a - b).norm()) <= 0.02 * float(b.norm()) for a, b in pairs)
    except RuntimeError:
        return False
