"""The shapes of models: a configuration by name, and its parameters without their values."""

from __future__ import annotations

import contextlib
import difflib
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from alpaca_lib import models
from alpaca_lib.errors import ModelError
from alpaca_lib.models.embedded import EMBEDDED
from alpaca_lib.optional import hide_progress_bars, require
from alpaca_lib.training.sharding import layers_of

_Shape = tuple[str, dict[str, Any]]


def _llama(
    hidden: int, inner: int, layers: int, heads: int, groups: int = 0, words: int = 32_000
) -> _Shape:
    sizes = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers}
    sizes |= {"num_attention_heads": heads, "num_key_value_heads": groups or heads}
    return "llama", sizes | {"vocab_size": words, "tie_word_embeddings": False}


def _opt(hidden: int, layers: int, heads: int) -> _Shape:
    sizes: dict[str, Any] = {
        "hidden_size": hidden,
        "ffn_dim": 4 * hidden,
        "num_hidden_layers": layers,
    }
    sizes |= {"num_attention_heads": heads, "word_embed_proj_dim": hidden, "vocab_size": 50_272}
    return "opt", sizes | {"max_position_embeddings": 2048, "dropout": 0.0}


# Shapes that can be planned without a download: LLaMA (arXiv:2302.13971, 2407.21783), OPT
# (arXiv:2205.01068; its largest has GPT-3's shape), and one of 100 billion between these.
SHAPES: dict[str, _Shape] = {
    "llama-7b": _llama(4096, 11008, 32, 32),
    "llama-13b": _llama(5120, 13824, 40, 40),
    "llama-30b": _llama(6656, 17920, 60, 52),
    "llama-65b": _llama(8192, 22016, 80, 64),
    "llama-3-8b": _llama(4096, 14336, 32, 32, 8, 128_256),
    "llama-3-70b": _llama(8192, 28672, 80, 64, 8, 128_256),
    "opt-6.7b": _opt(4096, 32, 32),
    "gpt-100b": _opt(10240, 80, 80),
    "gpt-175b": _opt(12288, 96, 96),
}


def config_of(name: str) -> Any:
    """The configuration of a model: a shape above, a config.json, a folder, the embedded
    model, or a hub id, of which only the configuration is fetched. Raises ModelError."""
    auto = require("transformers").AutoConfig
    if name in SHAPES:
        kind, sizes = SHAPES[name]
        return auto.for_model(kind, **sizes)
    if name.endswith(".json"):
        if not Path(name).is_file():
            raise ModelError(f"{name}: no such file")
        path = name
    elif re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) and not Path(name).exists():
        with contextlib.redirect_stderr(io.StringIO()):  # it announces a download of weights
            path = models.ModelSource.resolve(name).path  # a hub id, if it is one
    else:
        near = difflib.get_close_matches(name.lower(), [*SHAPES, *EMBEDDED], n=1)
        if near and name not in EMBEDDED and not Path(name).expanduser().exists():
            raise ModelError(f"no model {name!r}: did you mean {near[0]!r}?")
        path = models.ModelSource.resolve(name).path
    try:
        with hide_progress_bars():
            return auto.from_pretrained(path)
    except Exception as error:
        raise ModelError(f"{name}: no configuration of a model there ({error})") from None


def empty(config: Any, dtype: torch.dtype, layers: int = 0) -> Any:
    """The model of a configuration without its weights, cut to so many layers (0: all)."""
    try:
        with hide_progress_bars(), torch.device("meta"):
            auto = require("transformers").AutoModelForCausalLM
            model = auto.from_config(config, dtype=dtype)
    except ValueError as error:
        raise ModelError(f"no causal LM: {str(error).splitlines()[0]}") from None
    if layers:
        mine = {id(layer) for layer in layers_of(model)}
        for module in model.modules():
            if isinstance(module, nn.ModuleList) and len(module) and id(module[0]) in mine:
                del module[layers:]
        model.config.num_hidden_layers = layers
    return model


@dataclass(frozen=True)
class Weight:
    """A parameter: its shape, and whether it is a layer's, and one that is quantised."""

    name: str
    shape: tuple[int, ...]
    in_layer: bool
    linear: bool

    @property
    def numel(self) -> int:
        """How many numbers it has."""
        return torch.Size(self.shape).numel()

    def bytes(self, size: int, quantization: str) -> float:
        """Its bytes: ``size`` a number; 8 bits and a scale a row (LLM.int8); or 4 bits and
        a scale for 64 numbers (NF4)."""
        if quantization == "none" or not self.linear:
            return self.numel * size
        return self.numel + 4 * self.shape[0] if quantization == "int8" else self.numel * 0.5625


def weights_of(model: Any) -> list[Weight]:
    """The parameters of a model; bitsandbytes leaves embedding, norms and head as they are."""
    inside = {id(p) for layer in layers_of(model) for p in layer.parameters()}
    head = id(model.get_output_embeddings().weight)
    linear = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)} - {head}
    return [
        Weight(name, tuple(p.shape), id(p) in inside, id(p) in linear)
        for name, p in model.named_parameters()
    ]
