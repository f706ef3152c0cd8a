"""The model as the loop calls it: a batch in, the sum of its label tokens' losses out."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from alpaca_lib.training.attention import Documents
from alpaca_lib.training.head_loss import HeadLoss, LogitsTransform, is_plain
from alpaca_lib.training.packing import IGNORE


def unwrap_peft(model: Any) -> Any:
    """Returns the causal LM inside a PEFT model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


class LabelLoss(nn.Module):
    """Wraps a causal LM (bare, or with PEFT adapters); forward returns a summed loss.

    Logits are computed only for label tokens (alpaca_lib.training.head_loss).

    >>> batch = collate([row], pad_id=tokenizer.pad_token_id)
    >>> mean = LabelLoss(model)(**batch) / label_tokens
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.head_loss = HeadLoss()

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
        head = causal.get_output_embeddings()
        _keep_few_gradients(causal.get_input_embeddings(), head)
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
        states, targets = hidden[:, :-1][has_label], targets[has_label]
        return self.head_loss(head, LogitsTransform.of(causal.config), states, targets)


def _keep_few_gradients(embedding: Any, head: Any) -> None:
    """Lets an embedding that is also the head have a gradient of the tokens looked up alone.

    It is added to the head's, which has all tokens: without that, each micro-batch would fill
    and add another matrix of the vocabulary's size. On a CPU, where that was measured.
    """
    if type(embedding) is nn.Embedding and is_plain(head) and head.weight is embedding.weight:
        embedding.sparse = embedding.weight.device.type == "cpu"
