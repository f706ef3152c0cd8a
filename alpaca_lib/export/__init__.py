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
    from alpaca_lib.export.gguf import export_adapter as export_adapter
    from alpaca_lib.export.gguf import export_gguf as export_gguf
    from alpaca_lib.export.hub_folder import publish as publish
    from alpaca_lib.export.parity import measure_parity as measure_parity
    from alpaca_lib.export.parity import post as post
    from alpaca_lib.export.serving import find_gguf as find_gguf
    from alpaca_lib.export.serving import serve_model as serve_model

__getattr__, __dir__, __all__ = attach(__name__, __file__)
