"""Exports trained models: GGUF for llama.cpp, an address that serves it, a folder for a hub.

file = export_gguf("runs/lora-alpaca", Path("model.gguf"), kind="q8_0")
parity = measure_parity(model, tokenizer, file, examples)
with serve_model(str(file)) as address: ...     # OPENAI_BASE_URL of any client
publish("runs/lora-alpaca", Path("hub"), licence="apache-2.0")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alpaca_lib.lazy import attach

if TYPE_CHECKING:
    from alpaca_lib.export.gguf import export_adapter, export_gguf
    from alpaca_lib.export.hub_folder import publish
    from alpaca_lib.export.next_steps import NextSteps
    from alpaca_lib.export.parity import measure_parity, post
    from alpaca_lib.export.serving import find_gguf, serve_model

__getattr__, __dir__, __all__ = attach(__name__, __file__)
