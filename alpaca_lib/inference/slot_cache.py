"""The KV cache of continuous batching: one row per answer, written in place.

transformers' own caches grow by concatenation, which copies every key for each new token, and
their rows are padded to one length. Here each row has a length of its own. The attention is
registered under transformers' AttentionInterface, and the cache reaches it as the argument
``slots`` of the model, which passes it on to every layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

NAME = "alpaca_slots"
MASK_QUERIES = 1024  # queries whose mask exists at once
# Arguments of some models' attention that this one cannot honour: sinks, caps, biases, choices.
REFUSED = ("s_aux", "softcap", "position_bias", "indices", "block_indices")


class Unsupported(Exception):
    """Reports why a model cannot decode here; transformers' generate() can."""


@dataclass(frozen=True)
class Prefill:
    """A prompt in a step's packed row: tokens start to end, after a copied prefix."""

    row: int  # of the cache
    start: int
    end: int
    prefix: int  # tokens whose keys and values are copied
    source: int  # the row that they are copied from


class SlotCache:
    """Keys and values of all layers: row i of a layer's tensors belongs to one answer.

    A layer's tensors have the shape (rows, key heads, columns, size); column j holds position j.
    """

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.shape = (0, 0)  # rows, columns
        self.lengths: list[int] = []  # of the decoding rows: tokens cached before this step
        self.prefills: list[Prefill] = []
        self.windows: set[int | None] = set()
        self._tensors: dict[Any, Any] = {}  # what all layers of a step share

    def begin(self, lengths: list[int], prefills: list[Prefill]) -> None:
        """Sets a step: rows 0 to n - 1 get a token each, the rows after them a prompt."""
        self.lengths, self.prefills, self._tensors = lengths, prefills, {}
        rows = len(lengths) + len(prefills)
        sizes = [one.prefix + one.end - one.start for one in prefills]
        columns = max([*sizes, *(length + 1 for length in lengths)])
        if rows > self.shape[0] or columns > self.shape[1]:
            self.shape = -(-rows // 8) * 8, -(-columns // 64) * 64

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int
    ) -> Tensor:
        """Writes a packed row's keys and values; returns its attention, [1, tokens, heads, size].

        query has the shape (1, heads, tokens, size), key and value (1, key heads, tokens, size).
        """
        keys, values = self._buffers(layer, key, value)
        heads, key_heads, count = query.shape[1], key.shape[1], len(self.lengths)
        parts = []
        if count:
            rows, lengths, mask = self._decoding(window, query)
            keys[rows, :, lengths] = key[0, :, :count].transpose(0, 1)
            values[rows, :, lengths] = value[0, :, :count].transpose(0, 1)
            columns = mask.shape[-1]
            # The queries that share a key head (GQA) attend as its rows: no key is repeated.
            grouped = query[0, :, :count].transpose(0, 1).unflatten(1, (key_heads, -1))
            found = F.scaled_dot_product_attention(
                grouped,
                keys[:count, :, :columns],
                values[:count, :, :columns],
                attn_mask=mask,
                scale=scale,
            )
            parts.append(found.flatten(1, 2))
        for one in self.prefills:
            row, end = one.row, one.prefix + one.end - one.start
            for cached, new in ((keys, key), (values, value)):
                cached[row, :, : one.prefix] = cached[one.source, :, : one.prefix]
                cached[row, :, one.prefix : end] = new[0, :, one.start : one.end]
            q = query[:, :, one.start : one.end]
            k, v = keys[row : row + 1, :, :end], values[row : row + 1, :, :end]
            if heads != key_heads:
                k, v = (x.repeat_interleave(heads // key_heads, dim=1) for x in (k, v))
            if one.prefix or 0 < window < end:
                found = self._masked(q, k, v, one.prefix, scale, window)
            else:
                found = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
            parts.append(found[0].transpose(0, 1))
        return torch.cat(parts)[None]

    def move(self, source: int, target: int) -> None:
        """Moves a row of every layer over another one."""
        if source != target:
            for tensors in self.layers.values():
                for cached in tensors:
                    cached[target] = cached[source]

    def check(self, config: Any, longest: int) -> None:
        """Raises Unsupported unless every layer has attended here, and named its window if it
        has one that is shorter than ``longest`` tokens."""
        if len(self.layers) != config.num_hidden_layers:
            raise Unsupported(
                f"{len(self.layers)} of its {config.num_hidden_layers} layers attend through "
                "transformers' interface"
            )
        window = getattr(config, "sliding_window", None) or longest
        if window < longest and self.windows == {0}:
            raise Unsupported("its attention does not say which layers have a window")

    def _buffers(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Returns a layer's tensors of the current shape, with what the decoding rows hold."""
        old = self.layers.get(layer)
        if old and old[0].shape[0] == self.shape[0] and old[0].shape[2] == self.shape[1]:
            return old
        new = tuple(
            # Zeros: a masked column has the weight 0, and 0 times infinity is no number.
            one.new_zeros(self.shape[0], one.shape[1], self.shape[1], one.shape[3])
            for one in (key, value)
        )
        longest = max(self.lengths, default=0)
        for cached, larger in zip(old or (), new, strict=False):
            kept = cached[: len(self.lengths), :, :longest]
            larger[: len(self.lengths), :, :longest] = kept
        self.layers[layer] = new[0], new[1]
        return self.layers[layer]

    def _decoding(self, window: int, query: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns (rows, their lengths, mask [rows, 1, 1, columns]) of the decoding rows."""
        place = (window, query.device)
        if place not in self._tensors:
            lengths = torch.tensor(self.lengths, device=query.device)
            columns = torch.arange(max(self.lengths) + 1, device=query.device)
            seen = columns <= lengths[:, None]
            if window:
                seen &= columns > lengths[:, None] - window
            mask = torch.zeros(seen.shape, dtype=query.dtype, device=query.device)
            mask = mask.masked_fill_(~seen, float("-inf"))[:, None, None]
            rows = torch.arange(len(self.lengths), device=query.device)
            self._tensors[place] = rows, lengths, mask
        found: tuple[Tensor, Tensor, Tensor] = self._tensors[place]
        return found

    def _masked(
        self, query: Tensor, key: Tensor, value: Tensor, prefix: int, scale: float, window: int
    ) -> Tensor:
        """Returns causal attention of queries whose positions begin at ``prefix``."""
        parts = []
        for start in range(0, query.shape[2], MASK_QUERIES):
            some = query[:, :, start : start + MASK_QUERIES]
            place = (some.shape[2], key.shape[2], start + prefix, window, query.device)
            mask = self._tensors.get(place)
            if mask is None:
                columns = torch.arange(key.shape[2], device=query.device)
                positions = torch.arange(some.shape[2], device=query.device)[:, None]
                positions += start + prefix
                mask = columns <= positions
                if window:
                    mask &= columns > positions - window
                if query.shape[2] <= MASK_QUERIES:
                    self._tensors[place] = mask
            parts.append(
                F.scaled_dot_product_attention(some, key, value, attn_mask=mask, scale=scale)
            )
        return torch.cat(parts, dim=2)


def slots_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    slots: SlotCache | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Computes attention over a SlotCache, with the signature of transformers' interface.

    Raises Unsupported if the model does not pass ``slots`` on or needs an argument of REFUSED.
    """
    refused = [name for name in REFUSED if more.get(name) is not None]
    if slots is None or refused or not getattr(module, "is_causal", True):
        reason = refused[0] if refused else "the cache" if slots is None else "both directions"
        raise Unsupported(f"{type(module).__name__} cannot attend here: {reason}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    window = sliding_window or 0
    slots.windows.add(window)
    return slots.attend(module.layer_idx, query, key, value, scale, window), None


@contextmanager
def attend_in_slots(causal: Any) -> Iterator[None]:
    """Makes a causal LM attend by ``slots_attention`` inside the block."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, slots_attention)
    before = causal.config._attn_implementation
    causal.set_attn_implementation(NAME)
    try:
        yield
    finally:
        causal.set_attn_implementation(before)
