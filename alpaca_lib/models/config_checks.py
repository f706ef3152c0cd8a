"""Sanity of a model's files before and after they are loaded: sizes, and tensors that are missing.

A config.json of ten million layers would keep transformers busy for hours, and a tensor that the
files lack would be random numbers with a warning.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alpaca_lib.errors import FileError, ModelError
from alpaca_lib.files import parse_json, read_small

_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
_HEADS = ("num_attention_heads", "num_key_value_heads", "num_heads", "n_head", "n_heads")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "num_experts_per_tok")
_SIZES = (
    *("hidden_size", "n_embd", "d_model", "intermediate_size", "vocab_size", "head_dim"),
    *("moe_intermediate_size", "ffn_dim", "n_positions", "max_position_embeddings"),
)
# (smallest, largest) value; no published model is within a factor of ten of the largest.
_RANGES = {
    **dict.fromkeys(_LAYERS, (1, 10_000)),
    **dict.fromkeys(_HEADS, (1, 10_000)),
    **dict.fromkeys(_EXPERTS, (0, 100_000)),
    **dict.fromkeys(_SIZES, (1, 2**31)),
}


def check_config(file: Path) -> None:
    """Raises ModelError for a config.json that is unreadable, or whose sizes cannot be."""
    try:
        values = parse_json(read_small(file))
    except (FileError, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise ModelError(f"{file}: cannot be read ({reason})") from None
    if not isinstance(values, dict):
        raise ModelError(f"{file}: is not a JSON object")
    _check_sizes(values, file)


def _check_sizes(values: Mapping[str, Any], file: Path) -> None:
    for name, value in values.items():
        if isinstance(value, Mapping):
            _check_sizes(value, file)  # text_config and its like
        elif name in _RANGES and not (value is None or isinstance(value, list)):
            least, most = _RANGES[name]
            if not isinstance(value, int) or not least <= value <= most:
                raise ModelError(
                    f"{file}: {name} is {str(value)[:40]}, and {least} to {most:,} is possible"
                )


def check_loaded(info: Any, what: str) -> None:
    """Raises ModelError if transformers found no value for a tensor, and invented one.

    ``info`` is what from_pretrained returns with output_loading_info.
    """
    missing = sorted(info["missing_keys"])
    mismatched = sorted(str(one) for one in info.get("mismatched_keys") or [])
    if missing or mismatched:
        lacking = f"no {missing[0]}" if missing else f"another shape of {mismatched[0]}"
        raise ModelError(
            f"{what}: its files have {lacking} ({len(missing) + len(mismatched)} tensors in all), "
            "which its config.json asks for; they are damaged or of another model"
        )
