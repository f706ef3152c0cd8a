"""The model as the loop calls it: a batch in, the sum of its label tokens' losses out.

Logits are computed only for label tokens, in chunks: with a vocab_size of 49,152, the float32
logits of 2,048 tokens are 400 MB, more than anything else in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from alpaca_lib.training.attention import Documents
from alpaca_lib.training.packing import IGNORE

CHUNK = 256  # label tokens whose logits exist at once


def unwrap_peft(model: Any) -> Any:
    """Returns the causal LM inside a PEFT model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


class LabelLoss(nn.Module):
    """Wraps a causal LM (bare, or with PEFT adapters); forward returns a summed loss.

    >>> batch = collate([row], pad_id=tokenizer.pad_token_id)
    >>> mean = LabelLoss(model)(**batch) / label_tokens
    """

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
        """Returns the sum of the cross-entropies of all labels in nats, a float32 scalar.

        The tensors have the shape (rows, tokens); ``documents`` is for a model that attends
        within documents. With an attention mask or a cache transformers would ignore that
        position_ids restart, and packed examples would see one another.
        """
        causal = unwrap_peft(self.model)
        more = {"documents": documents} if documents else {}
        hidden = causal.base_model(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=None,
            use_cache=False,
            **more,
        ).last_hidden_state
        # The hidden state of token t predicts token t + 1: shift by one, keep label tokens.
        targets = labels[:, 1:]
        has_label = targets != IGNORE
        hidden, targets = hidden[:, :-1][has_label], targets[has_label]
        head, of_logits = causal.get_output_embeddings(), logits_transform(causal.config)
        # Zero, but with a graph: FSDP needs a backward pass on every rank, even where no token
        # has a label.
        total = (hidden.sum() * 0.0).float()
        recompute = len(targets) > CHUNK and torch.is_grad_enabled()
        for states, chunk in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True):
            if recompute:
                total = total + checkpoint(
                    _cross_entropy, head, of_logits, states, chunk, use_reentrant=False
                )
            elif len(chunk):
                total = total + _cross_entropy(head, of_logits, states, chunk)
        return total


def logits_transform(config: Any) -> Callable[[Tensor], Tensor]:
    """Returns what a model does with its head's output z: z * scale, then cap * tanh(z / cap).

    Cohere has a logit_scale, Granite a divisor logits_scaling, Gemma 2 final_logit_softcapping.
    """
    text = config.get_text_config()
    scale = float(getattr(text, "logit_scale", None) or 1.0)
    scale /= float(getattr(text, "logits_scaling", None) or 1.0)
    cap = float(getattr(text, "final_logit_softcapping", None) or 0.0)

    def transform(logits: Tensor) -> Tensor:
        logits = logits * scale if scale != 1.0 else logits
        return cap * torch.tanh(logits / cap) if cap else logits

    return transform


def _cross_entropy(
    head: nn.Module, of_logits: Callable[[Tensor], Tensor], states: Tensor, targets: Tensor
) -> Tensor:
    return F.cross_entropy(of_logits(head(states)).float(), targets, reduction="sum")
