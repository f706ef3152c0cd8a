"""The model as the loop sees it: a batch in, the sum of its label losses out.

Logits are made only where a label is, in chunks: at 49,152 words a token, the
logits of a whole batch would be the largest thing in memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from alpaca_lib.training.attention import Documents
from alpaca_lib.training.packing import IGNORE

CHUNK = 256  # label tokens whose logits exist at once


class LabelLoss(nn.Module):
    """Wraps a causal LM (bare, or with PEFT adapters); forward gives a summed loss."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor,
        position_ids: Tensor,
        documents: Documents | None = None,
    ) -> Tensor:
        """The sum of the cross-entropies of all labels, a float32 scalar.

        The tensors have the shape (rows, tokens). No attention mask: with it, or with a
        cache, packed examples would see one another (transformers reads the borders from
        position_ids only without both). ``documents`` is for alpaca_lib's own attention.
        """
        causal: Any = self.model
        if hasattr(causal, "get_base_model"):
            causal = causal.get_base_model()
        targets = labels[:, 1:]
        wanted = targets != IGNORE
        more = {"documents": documents} if documents else {}
        hidden = causal.base_model(
            input_ids=input_ids, position_ids=position_ids, attention_mask=None, use_cache=False,
            **more,
        ).last_hidden_state  # fmt: skip
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
