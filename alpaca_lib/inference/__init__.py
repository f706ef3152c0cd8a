"""Answers instructions with trained models: decoding, several models in one memory, safety.

pool = ModelPool({"base": "smollm2-135m", "lora": "runs/lora-alpaca"})
with pool.use("lora") as model:
    answers = answer(model, pool.tokenizer("lora"), examples, Decoding(max_new_tokens=96))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alpaca_lib.lazy import attach

if TYPE_CHECKING:
    from alpaca_lib.inference.decoding import Answer as Answer
    from alpaca_lib.inference.decoding import Decoding as Decoding
    from alpaca_lib.inference.decoding import TextStream as TextStream
    from alpaca_lib.inference.decoding import answer as answer
    from alpaca_lib.inference.decoding import prompt_ids as prompt_ids
    from alpaca_lib.inference.decoding import stream as stream
    from alpaca_lib.inference.model_pool import ModelPool as ModelPool
    from alpaca_lib.inference.model_pool import trained_template as trained_template
    from alpaca_lib.inference.safety import Policy as Policy
    from alpaca_lib.inference.safety import load_labelled as load_labelled
    from alpaca_lib.inference.safety import measure as measure
    from alpaca_lib.inference.safety import open_moderation as open_moderation

__getattr__, __dir__, __all__ = attach(__name__, __file__)
