"""The probability of given replies: forward passes over packed rows, without decoding.

A beginning that several texts share (a template's header) is computed once per packed row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from alpaca_lib.inference.batching import check, longest_prefix
from alpaca_lib.inference.slot_cache import Prefill, SlotCache, Unsupported, attend_in_slots

Pair = tuple[list[int], list[int]]  # ids of a prompt and of the reply to it

# Of a packed row. A row's logits, in float32, take 4 bytes per token and entry of the vocabulary.
ROW_TOKENS = 1024


def reply_losses(model: Any, pairs: Sequence[Pair]) -> list[float]:
    """Returns -log p(reply | prompt) of each pair, in nats, summed over the reply's tokens.

    A prompt has at least one token. A model that ``batching`` does not support gets each text
    in a pass of its own.
    """
    try:
        check(model)
        return _packed_losses(model, pairs)
    except Unsupported:
        return [_loss(model, prompt, reply) for prompt, reply in pairs]


def _packed_losses(model: Any, pairs: Sequence[Pair]) -> list[float]:
    """Returns what reply_losses() does, several texts per pass. Raises Unsupported."""
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    config, device = causal.config.get_text_config(), causal.device
    losses: list[float] = []
    cache = SlotCache()
    with torch.inference_mode(), attend_in_slots(causal):
        for some in _rows(pairs):
            ids: list[int] = []
            positions: list[int] = []
            kept: list[int] = []  # whose logits are wanted
            prefills: list[Prefill] = []
            for row, (prompt, reply) in enumerate(some):
                source, prefix = longest_prefix(prompt, [one for one, _ in some[:row]])
                start = len(ids)
                text = prompt + reply[:-1]  # the last token predicts nothing that is wanted
                ids += text[prefix:]
                positions += range(prefix, len(text))
                kept += range(len(ids) - len(reply), len(ids))
                prefills.append(Prefill(row, start, len(ids), prefix, source))
            cache.begin([], prefills)
            logits = model(
                input_ids=torch.tensor([ids], device=device),
                position_ids=torch.tensor([positions], device=device),
                use_cache=False,
                logits_to_keep=torch.tensor(kept, device=device),
                slots=cache,
            ).logits[0]
            cache.check(config, max(positions) + 1)
            nats = _cross_entropy(logits, [token for _, reply in some for token in reply])
            losses += [float(part.sum()) for part in nats.split([len(r) for _, r in some])]
    return losses


def _rows(pairs: Sequence[Pair]) -> Iterator[list[Pair]]:
    """Yields the pairs in their order, as many at a time as ROW_TOKENS holds, at least one."""
    some: list[Pair] = []
    for pair in pairs:
        if some and sum(len(p) + len(r) for p, r in (*some, pair)) > ROW_TOKENS:
            yield some
            some = []
        some.append(pair)
    if some:
        yield some


def _loss(model: Any, prompt: list[int], reply: list[int]) -> float:
    """Returns -log p(reply | prompt) in nats, of one text in a pass of its own."""
    ids = torch.tensor([prompt + reply], device=model.device)
    with torch.inference_mode():
        logits = model(ids, logits_to_keep=len(reply) + 1, use_cache=False).logits[0, :-1]
    return float(_cross_entropy(logits, reply).sum())


def _cross_entropy(logits: Tensor, tokens: list[int]) -> Tensor:
    """Returns the loss of each token, in nats, float32 [tokens]."""
    target = torch.tensor(tokens, device=logits.device)
    return F.cross_entropy(logits.float(), target, reduction="none")
