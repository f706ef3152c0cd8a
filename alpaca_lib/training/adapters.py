"""LoRA (arXiv:2106.09685) with PEFT: adds adapters to a model, saves, checks, merges them."""

from __future__ import annotations

import contextlib
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from alpaca_lib.errors import AdapterError, FileError
from alpaca_lib.models import ModelSource
from alpaca_lib.models.adapters import CHANGE_THE_BASE, read_adapter_config, shares_weight
from alpaca_lib.optional import hide_progress_bars, require
from alpaca_lib.options import nearest
from alpaca_lib.tokenization import publish_prompts
from alpaca_lib.training import output_folder
from alpaca_lib.training.settings import Settings


def add_lora(model: Any, settings: Settings) -> Any:
    """Returns the PEFT model of a model: LoRA adapters in its dtype, everything else frozen.

    With settings.adapter the adapters have that adapter's values. Raises AdapterError if it is
    of another model, rank, scale or set of modules, or if lora_targets names no module.
    """
    peft = require("peft")
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=_targets(model, settings.lora_targets),
        use_rslora=settings.lora_rs,
        use_dora=settings.lora_dora,
        bias="none",
    )
    # Not PEFT's prepare_model_for_kbit_training: it makes embeddings and norms float32.
    model.requires_grad_(False)
    with _no_future_warnings():
        adapted = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
    # The embedding is never quantised, so its dtype is the one that the model computes in.
    dtype = model.get_input_embeddings().weight.dtype
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:  # where the base is quantised PEFT makes them float32
            parameter.data = parameter.data.to(dtype)
    if settings.adapter:
        _load_values(adapted, Path(settings.adapter))
    _add_in_place(adapted)
    return adapted


class _InPlace:
    """Computes W x + s B A x with the sum inside the last matrix product, as a PEFT variant.

    PEFT multiplies B A x by s and adds it to W x: two passes over the layer's output, and one
    more in the backward pass. Here s multiplies A x, which has r numbers per token. (W x may be
    overwritten: a linear layer's backward pass needs its input and weight alone.)
    """

    @staticmethod
    def forward(module: Any, active_adapter: str, x: Any, result: Any, **kwargs: Any) -> Any:
        """Returns the layer's output of shape (..., out), given W x in ``result``."""
        dropped = module.lora_dropout[active_adapter](x)
        low = module.lora_A[active_adapter](dropped) * module.scaling[active_adapter]
        up = module.lora_B[active_adapter].weight
        result.view(-1, result.shape[-1]).addmm_(low.reshape(-1, low.shape[-1]), up.t())
        return result


def _add_in_place(adapted: Any) -> None:
    """Gives adapters of unquantised linear layers _InPlace, unless they have a variant (DoRA)."""
    from peft.tuners.lora.layer import Linear

    for module in adapted.modules():
        if type(module) is Linear and type(module.get_base_layer()) is torch.nn.Linear:
            variants: Any = module.lora_variant
            for name in module.lora_A:
                variants.setdefault(name, _InPlace)


@contextlib.contextmanager
def _no_future_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT calls old names of transformers
        yield


def _targets(model: Any, wanted: str) -> str | list[str]:
    """Returns the names of the modules that get adapters.

    Raises AdapterError for a name that the model does not have, for a module that is not a
    linear layer, and for one whose weight another module shares.
    """
    if wanted == "all-linear":
        return wanted
    targets = [name.strip() for name in wanted.split(",") if name.strip()]
    modules = dict(model.named_modules())
    linear = sorted({name.rsplit(".", 1)[-1] for name, m in modules.items() if _is_linear(m)})
    there_are = f"the model's linear ones are {', '.join(linear)}"
    if not targets:
        raise AdapterError(f"lora_targets {wanted!r}: names no module; {there_are}")
    for target in targets:
        found = [m for name, m in modules.items() if f".{name}".endswith(f".{target}")]
        if not found:
            is_pattern = set(target) & set("*+?()[]{}|^$\\")
            raise AdapterError(
                f"lora_targets {wanted!r}: the model has no module {target!r}"
                + ("; a pattern is not read, only names" if is_pattern else nearest(target, linear))
                + f"; {there_are}"
            )
        if other := next((m for m in found if not _is_linear(m)), None):
            raise AdapterError(
                f"lora_targets {wanted!r}: {target} is a {type(other).__name__}, and adapters are "
                f"added to linear layers; {there_are}"
            )
        if any(shares_weight(model, m) for m in found):
            raise AdapterError(
                f"lora_targets {wanted!r}: {target} shares its weight with another module "
                "(tie_word_embeddings), so a merged model would change both; leave it out"
            )
    return targets


def _is_linear(module: Any) -> bool:
    """Returns whether a module is a linear layer: torch's, bitsandbytes' or GPT-2's."""
    return isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"


def _load_values(adapted: Any, folder: Path) -> None:
    """Loads a saved adapter's values into new adapters. Raises AdapterError if they differ."""
    config = read_adapter_config(folder)
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        old = (folder / "adapter_model.bin").is_file()
        fix = "; adapter_model.bin may run code when it is read: convert it first" if old else ""
        raise AdapterError(f"{folder}: no adapter_model.safetensors{fix}")
    ours = adapted.peft_config["default"]
    differ = [
        f"{key} is {config.get(key, False)!r} there, {getattr(ours, key)!r} here"
        for key in ("r", "lora_alpha", "use_rslora", "use_dora")
        if config.get(key, False) != getattr(ours, key)
    ]
    # Scales per module, and initialisations that change the base, are not in our LoraConfig.
    differ += [f"it has a {key}" for key in ("alpha_pattern", "rank_pattern") if config.get(key)]
    if str(config.get("init_lora_weights")).startswith(CHANGE_THE_BASE):
        differ.append(f"it was initialised as {config['init_lora_weights']}")
    if differ:
        raise AdapterError(f"{folder}: {'; '.join(differ)}; use the adapter's own values")
    try:
        saved = load_file(file)
    except Exception as error:  # safetensors has an exception of its own, not a subclass
        raise AdapterError(f"{file}: cannot be read ({error})") from None
    _check_shapes(file, saved, _adapter_tensors(adapted))
    require("peft").set_peft_model_state_dict(adapted, saved)


def _check_shapes(file: Path, saved: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raises AdapterError unless two sets of tensors have the same names and shapes."""
    if missing := sorted(set(expected) - set(saved)) + sorted(set(saved) - set(expected)):
        raise AdapterError(
            f"{file}: {len(saved)} tensors, {len(expected)} expected; "
            f"{missing[0]} is only in one of the two: another model's, or other lora_targets"
        )
    for name, tensor in expected.items():
        if saved[name].shape != tensor.shape:
            raise AdapterError(
                f"{file}: {name} is {tuple(saved[name].shape)}, this model needs "
                f"{tuple(tensor.shape)}: it is another model's adapter"
            )


def _adapter_tensors(adapted: Any, values: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns the adapter's tensors (those of ``values``, or the model's) by name in its file."""
    with _no_future_warnings():
        state: dict[str, Any] = require("peft").get_peft_model_state_dict(
            adapted, state_dict=values, save_embedding_layers=False
        )
    return state


def trainable(model: Any) -> tuple[int, int]:
    """Returns (number of trained parameters, number of all parameters)."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, grad in sizes if grad), sum(n for n, _ in sizes)


def save_adapter(model: Any, values: Mapping[str, Any], base: str, folder: Path) -> None:
    """Writes an adapter folder: tensors ``values`` by parameter name, the name of its base."""
    model.peft_config["default"].base_model_name_or_path = base
    with _no_future_warnings():
        model.save_pretrained(folder, state_dict=dict(values), save_embedding_layers=False)


def check_saved(
    folder: Path, model: Any, values: Mapping[str, Any] | None = None, unsharded: bool = True
) -> int:
    """Compares a saved adapter with the trained one and returns its number of tensors.

    ``values`` are the float32 tensors that were saved, by default the model's. Raises
    AdapterError if names or values differ, if every B is zero (as in Alpaca-LoRA's files of 443
    bytes), or, where the model is ``unsharded``, if the file read back gives other logits.
    """
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise AdapterError(f"{folder}: no adapter_model.safetensors was written")
    saved, expected = load_file(file), _adapter_tensors(model, values)
    _check_shapes(file, saved, expected)
    for name, tensor in expected.items():
        if not saved[name].equal(tensor.detach().cpu()):
            raise AdapterError(f"{file}: {name} differs from the model in memory")
    if all(not t.any() for name, t in saved.items() if "lora_B" in name):
        raise AdapterError(f"{file}: every B matrix is zero, so nothing was trained")
    if unsharded:
        before = _sample_logits(model)
        require("peft").set_peft_model_state_dict(model, saved)
        if not before.equal(_sample_logits(model)):
            raise AdapterError(f"{file}: read back, it gives other logits")
    return len(saved)


def _sample_logits(model: Any) -> Any:
    """Returns the logits after eight fixed token ids, with dropout off."""
    ids = torch.arange(1, 9, device=model.get_input_embeddings().weight.device)[None]
    with evaluating(model), torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Puts a model in evaluation mode (no dropout) for a block, then back in training mode.

    A 4-bit layer of bitsandbytes that computes once in eval mode on a CPU stores its weights in
    another layout, through which no gradient flows; it stays in training mode.
    """
    model.eval()
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            module.training = True
    try:
        yield
    finally:
        model.train()


def merge(adapter: str, folder: Path, overwrite: bool = False) -> Path:
    """Writes W + (alpha / r) B A as a plain model folder, which needs no PEFT; returns it.

    The sum is computed in float32 and saved in the base's dtype, with the adapter's run.json.
    The folder is complete or absent, and must be new or empty; ``overwrite`` also replaces one
    that merge wrote and nobody changed. Raises AdapterError if ``adapter`` is none, ModelError
    if it or its base cannot be loaded, FileError or SettingsError for the folder.
    """
    source, folder = ModelSource.resolve(adapter), Path(folder)
    read_adapter_config(source.folder)
    inputs = {f"adapter {adapter}": source.folder}
    if source.base.folder.is_dir():
        inputs[f"base model {source.base.name}"] = source.base.folder
    output_folder.check_new(folder, inputs, overwrite)
    work = folder.with_name(f".{folder.name}-partial")
    shutil.rmtree(work, ignore_errors=True)
    try:
        model, dtype = source.load_merged()
        with hide_progress_bars():
            tokenizer = source.load_tokenizer()
            publish_prompts(tokenizer, None, model)
            model.to(getattr(torch, dtype)).save_pretrained(work)
        tokenizer.save_pretrained(work)
        output_folder.write_manifest(work)
        if (source.folder / "run.json").is_file():
            shutil.copyfile(source.folder / "run.json", work / "run.json")
        output_folder.swap(work, folder)
    except OSError as error:
        raise FileError(f"{folder}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder
