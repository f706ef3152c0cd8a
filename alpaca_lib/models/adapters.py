"""LoRA adapter folders of any origin: their base model's name, and how one is attached."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alpaca_lib.errors import AdapterError, FileError, ModelError
from alpaca_lib.files import read_small
from alpaca_lib.optional import require


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Reads an adapter's adapter_config.json. Raises AdapterError if there is no readable one."""
    try:
        config = json.loads(read_small(folder / "adapter_config.json"))
    except (FileError, ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise AdapterError(f"{folder}: no adapter there (no readable adapter_config.json)")
    return config


def base_name(folder: Path) -> str:
    """Returns the name of the model that an adapter was trained on. Raises ModelError."""
    peft = require("peft")
    with explained(f"{folder} (an adapter folder)"):
        base = peft.PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    if not base:
        raise ModelError(f"{folder}: its adapter_config.json names no base model")
    return str(base)


def attach_adapter(model: Any, folder: Path, name: str = "default") -> Any:
    """Attaches a LoRA adapter to a model and returns the PeftModel, in eval mode.

    A PeftModel may hold several adapters, each with its own ``name``. Raises ModelError if a
    matrix of the adapter is missing or has no place in this model.
    """
    peft = require("peft")
    with explained(f"{folder} (an adapter folder)"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT calls old names of transformers
        # PEFT leaves missing matrices untrained with a warning; here that is an error, below.
        warnings.filterwarnings("ignore", "Found missing adapter keys")
        saved = _saved_names(folder)
        if isinstance(model, peft.PeftModel):
            model.load_adapter(str(folder), adapter_name=name)
        else:
            config = peft.PeftConfig.from_pretrained(str(folder))
            model = peft.PeftModel.from_pretrained(
                model, str(folder), adapter_name=name, config=config
            )
        expected = set(
            peft.get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
        )
    if missing := sorted(expected - saved):
        raise ModelError(f"{folder}: the file of its weights does not have {missing[0]}")
    if unknown := sorted(key for key in saved - expected if "lora_" in key):
        raise ModelError(f"{folder}: {unknown[0]} has no place here: another model's adapter")
    return model.eval()


def _saved_names(folder: Path) -> set[str]:
    """Returns the names of the matrices in an adapter's file."""
    if (file := folder / "adapter_model.safetensors").is_file():
        with require("safetensors").safe_open(file, "pt") as saved:
            return set(saved.keys())
    if (file := folder / "adapter_model.bin").is_file():
        return set(require("torch").load(file, map_location="meta", weights_only=True))
    raise ModelError(f"{folder}: no adapter_model.safetensors next to its adapter_config.json")


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Turns an error of loading into a ModelError that begins with ``what``."""
    try:
        yield
    except Exception as error:
        known = isinstance(error, OSError | ValueError | KeyError | RuntimeError)
        if isinstance(error, ModelError) or not (known or _of_safetensors(error)):
            raise
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"{what} cannot be loaded: {first}") from error


def _of_safetensors(error: Exception) -> bool:
    return type(error).__name__ == "SafetensorError"
