"""Answers instructions with trained models: decoding, several models in one memory, safety.

pool = ModelPool({"base": "smollm2-135m", "lora": "runs/lora-alpaca"})
with pool.use("lora") as model:
    answers = answer(model, pool.tokenizer("lora"), examples, Decoding(max_new_tokens=96))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alpaca_lib.lazy import attach

if TYPE_CHECKING:
    from alpaca_lib.inference.decoding import (
        Answer,
        Decoding,
        TextStream,
        answer,
        prompt_ids,
        stream,
    )
    from alpaca_lib.inference.likelihood import reply_losses
    from alpaca_lib.inference.model_pool import ModelPool, common_template, trained_template
    from alpaca_lib.inference.safety import Policy, load_labelled, measure, open_moderation

__getattr__, __dir__, __all__ = attach(__name__, __file__)
