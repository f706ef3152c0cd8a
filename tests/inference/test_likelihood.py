"""The losses of given replies against transformers, one text at a time."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from alpaca_lib.inference import likelihood, slot_cache
from tests.inference.test_batching import HEADER, WORDS, build


def texts():
    """Prompts and replies of very different lengths; two prompts in three begin with HEADER."""
    draw = torch.Generator().manual_seed(2)

    def some(length):
        return torch.randint(8, WORDS, (length,), generator=draw).tolist()

    lengths = [(1, 3), (40, 1), (3, 20), (90, 7), (17, 17), (2, 60), (33, 2)]
    return [((HEADER if n % 3 else []) + some(p), some(r)) for n, (p, r) in enumerate(lengths)]


def alone(model, prompt, reply):
    """The reply's loss by transformers' own forward pass."""
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 : -1]
    return float(F.cross_entropy(logits, torch.tensor(reply), reduction="sum"))


FAMILIES = ["Llama", "Qwen2", "GPTNeoX", "OPT", "Mistral", "Gemma3Text", "Gemma2", "Lfm2"]


@pytest.mark.parametrize("tokens", [1, 100, 4096], ids=["alone", "some", "all"])
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_are_transformers(family, tokens, monkeypatch):
    """For one text per row, some, or all; the last two families get passes of their own."""
    monkeypatch.setattr(likelihood, "ROW_TOKENS", tokens)
    model, pairs = build(family), texts()
    want = [alone(model, *pair) for pair in pairs]
    assert likelihood.reply_losses(model, pairs) == pytest.approx(want, rel=1e-5)
    assert model.config._attn_implementation != slot_cache.NAME


def test_a_common_beginning_is_computed_once(monkeypatch):
    model, pairs = build("Llama"), texts()
    computed = []
    model.model.register_forward_pre_hook(
        lambda module, args, more: computed.append(more["input_ids"].shape[1]), with_kwargs=True
    )
    likelihood.reply_losses(model, pairs)
    tokens = sum(len(prompt) + len(reply) - 1 for prompt, reply in pairs)
    sharing = sum(prompt[:30] == HEADER for prompt, _ in pairs)
    assert computed == [tokens - 30 * (sharing - 1)]


def test_no_pairs_no_losses():
    assert likelihood.reply_losses(build("Llama"), []) == []
