"""The shapes of models: a configuration by name, and its parameters without their values."""

from __future__ import annotations

import contextlib
import difflib
import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpaca_lib.errors import ModelError
from alpaca_lib.models import EMBEDDED, ModelSource
from alpaca_lib.optional import hide_progress_bars, require

_FILE = Path(__file__).resolve().parents[2] / "data" / "model_shapes.json"
# Configurations that can be planned without a download: LLaMA (arXiv:2302.13971, 2407.21783),
# Mistral (2310.06825), Qwen (2412.15115, 2505.09388), OPT (2205.01068; its largest has GPT-3's
# shape), and one of 100 billion between these.
SHAPES: dict[str, dict[str, Any]] = json.loads(_FILE.read_bytes()) if _FILE.is_file() else {}


def read_config(name: str) -> Any:
    """Returns a model's configuration; of a hub id nothing else is downloaded.

    ``name`` is a shape above, a config.json, a folder, the embedded model or a hub id. Raises
    ModelError.
    """
    if name in SHAPES:
        return require("transformers").AutoConfig.for_model(**SHAPES[name])
    if name.endswith(".json"):
        if not Path(name).is_file():
            raise ModelError(f"{name}: no such file")
        return ModelSource(name, name, "a file").config
    if "/" in name:
        with contextlib.redirect_stderr(io.StringIO()):  # it announces a download of weights
            return ModelSource.resolve(name).config
    near = difflib.get_close_matches(name.lower(), SHAPES, n=1)
    if near and name not in EMBEDDED and not Path(name).expanduser().exists():
        raise ModelError(f"no model {name!r}: did you mean {near[0]!r}?")
    return ModelSource.resolve(name).config


def build_empty(config: Any, dtype: Any, layers: int = 0) -> Any:
    """Builds a causal LM on torch's meta device, cut to ``layers`` layers (0: all).

    Raises ModelError for a configuration of another kind of model.
    """
    from alpaca_lib.training.sharding import layers_of  # it loads torch

    torch = require("torch")
    try:
        with hide_progress_bars(), torch.device("meta"):
            auto = require("transformers").AutoModelForCausalLM
            model = auto.from_config(config, dtype=dtype, trust_remote_code=False)
    except ValueError as error:
        raise ModelError(f"no causal LM: {str(error).splitlines()[0]}") from None
    if layers:
        own = {id(layer) for layer in layers_of(model)}
        for module in model.modules():
            if isinstance(module, torch.nn.ModuleList) and len(module) and id(module[0]) in own:
                del module[layers:]
        model.config.num_hidden_layers = layers
    return model


@dataclass(frozen=True)
class Weight:
    """One parameter tensor of a model.

    >>> Weight("model.layers.0.mlp.up_proj.weight", (11008, 4096), True, True).numel
    45088768
    """

    name: str
    shape: tuple[int, ...]
    in_layer: bool  # belongs to a decoder layer, and is all-gathered with it
    linear: bool  # weight of a linear layer: bitsandbytes quantises it

    @property
    def numel(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    def bytes(self, itemsize: int, quantization: str) -> float:
        """Returns its bytes: ``itemsize`` per element if it is not quantised.

        int8 has a float32 scale per row (LLM.int8), NF4 a float32 scale per 64 elements:
        0.5 + 4 / 64 = 0.5625 bytes per element.
        """
        if quantization == "none" or not self.linear:
            return self.numel * itemsize
        return self.numel + 4 * self.shape[0] if quantization == "int8" else self.numel * 0.5625


def list_weights(model: Any) -> list[Weight]:
    """Returns a model's parameters; bitsandbytes quantises neither embedding nor head."""
    from alpaca_lib.training.sharding import layers_of  # it loads torch

    in_layers = {id(p) for layer in layers_of(model) for p in layer.parameters()}
    head = id(model.get_output_embeddings().weight)
    linear = require("torch").nn.Linear
    quantised = {id(m.weight) for m in model.modules() if isinstance(m, linear)} - {head}
    return [
        Weight(name, tuple(p.shape), id(p) in in_layers, id(p) in quantised)
        for name, p in model.named_parameters()
    ]
