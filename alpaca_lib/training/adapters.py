"""LoRA (arXiv:2106.09685) with PEFT: put adapters on a model, save, check, merge them."""

from __future__ import annotations

import contextlib
import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from alpaca_lib.errors import AdapterError
from alpaca_lib.optional import hide_progress_bars, require
from alpaca_lib.training.settings import Settings


def add_lora(model: Any, settings: Settings) -> Any:
    """The model with LoRA adapters in its own dtype; only they can be trained.

    With settings.adapter they have that adapter's values; AdapterError if it is of
    another model, rank or set of modules.
    """
    peft = require("peft")
    targets = _targets(model, settings.lora_targets)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=targets,
        use_rslora=settings.lora_rs,
        use_dora=settings.lora_dora,
        bias="none",
    )
    # Not PEFT's prepare_model_for_kbit_training: it makes embeddings and norms float32.
    model.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT calls an old name of transformers
        adapted = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:  # where the base is quantised PEFT makes them float32
            parameter.data = parameter.data.to(_dtype(model))
    if settings.adapter:
        _read_into(adapted, Path(settings.adapter), settings)
    return adapted


def _dtype(model: Any) -> Any:
    """The dtype that a model computes in: that of its embedding, which is never quantised."""
    return model.get_input_embeddings().weight.dtype


def _targets(model: Any, wanted: str) -> str | list[str]:
    """The modules that get adapters; AdapterError names those that the model has."""
    if wanted == "all-linear":
        return wanted
    targets = [name.strip() for name in wanted.split(",") if name.strip()]
    present = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    missing = [name for name in targets if name not in present]
    if missing or not targets:
        linear = sorted(
            {n.rsplit(".", 1)[-1] for n, m in model.named_modules() if "Linear" in str(type(m))}
        )
        raise AdapterError(
            f"lora_targets {wanted!r}: the model has no module "
            f"{', '.join(missing) or '(none named)'}; its linear ones are {', '.join(linear)}"
        )
    return targets


def _read_into(adapted: Any, folder: Path, settings: Settings) -> None:
    """Gives the adapters the values of a saved one."""
    from safetensors.torch import load_file

    config = _config(folder)
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        old = (folder / "adapter_model.bin").is_file()
        raise AdapterError(
            f"{folder}: no adapter_model.safetensors"
            + ("; adapter_model.bin may run code when it is read: convert it first" if old else "")
        )
    mine = {"r": settings.lora_rank, "lora_alpha": settings.lora_alpha}
    mine |= {"use_rslora": settings.lora_rs, "use_dora": settings.lora_dora}
    differ = [
        f"{key} is {config.get(key, False)!r} there, {value!r} here"
        for key, value in mine.items()
        if config.get(key, False) != value
    ]
    # Scales by module, and beginnings that change the base: not for the loop's own config.
    differ += [f"it has a {key}" for key in ("alpha_pattern", "rank_pattern") if config.get(key)]
    if str(config.get("init_lora_weights")).startswith(("pissa", "olora", "corda", "loftq")):
        differ.append(f"it began as {config['init_lora_weights']}")
    if differ:
        raise AdapterError(f"{folder}: {'; '.join(differ)}; use the adapter's own values")
    try:
        saved = load_file(file)
    except Exception as error:  # safetensors has an exception of its own, not a subclass
        raise AdapterError(f"{file}: cannot be read ({error})") from None
    expected = _tensors(adapted)
    _same_shapes(file, saved, expected)
    require("peft").set_peft_model_state_dict(adapted, saved)


def _config(folder: Path) -> dict[str, Any]:
    """An adapter's adapter_config.json; AdapterError if there is none that can be read."""
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = None
    if not isinstance(config, dict):
        raise AdapterError(f"{folder}: no adapter there (no readable adapter_config.json)")
    return config


def _same_shapes(file: Path, saved: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
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


def _tensors(adapted: Any, values: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The adapter's tensors under the names of its file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        state: dict[str, Any] = require("peft").get_peft_model_state_dict(
            adapted, state_dict=values, save_embedding_layers=False
        )
    return state


def trainable(model: Any) -> tuple[int, int]:
    """(parameters that train, all parameters)."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, grad in sizes if grad), sum(n for n, _ in sizes)


def save_adapter(model: Any, values: Mapping[str, Any], base: str, folder: Path) -> None:
    """Writes an adapter folder; ``values``: its float32 tensors by parameter name.
    ``base`` is the model's name that goes into its config."""
    model.peft_config["default"].base_model_name_or_path = base
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model.save_pretrained(folder, state_dict=dict(values), save_embedding_layers=False)


def check_saved(
    folder: Path, model: Any, values: Mapping[str, Any] | None = None, whole: bool = True
) -> int:
    """Compares a saved adapter with the trained one; returns its tensor count.

    ``values``: the float32 tensors that were saved, by default those of the model. Names,
    values, B not zero; and, where the model is ``whole``, that the file read back gives
    the same logits. Alpaca-LoRA users got files of 443 bytes; this finds them.
    """
    from safetensors.torch import load_file

    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise AdapterError(f"{folder}: no adapter_model.safetensors was written")
    saved, expected = load_file(file), _tensors(model, values)
    _same_shapes(file, saved, expected)
    for name, tensor in expected.items():
        if not saved[name].equal(tensor.detach().cpu()):
            raise AdapterError(f"{file}: {name} differs from the model in memory")
    if all(not t.any() for name, t in saved.items() if "lora_B" in name):
        raise AdapterError(f"{file}: every B matrix is zero, so nothing was trained")
    if whole:
        before = _some_logits(model)
        require("peft").set_peft_model_state_dict(model, saved)
        after = _some_logits(model)
        if not before.equal(after):
            raise AdapterError(f"{file}: read back, it gives other logits")
    return len(saved)


def _some_logits(model: Any) -> Any:
    """The logits after a short text of token ids, with dropout off."""
    import torch

    ids = torch.arange(1, 9, device=model.get_input_embeddings().weight.device)[None]
    with evaluating(model), torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode within a training: dropout off, gradients possible again afterwards.

    A 4-bit layer of bitsandbytes that computes once in eval mode on a CPU stores its
    weights in another way, through which no gradient flows; it stays in training mode.
    """
    model.eval()
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            module.training = True
    try:
        yield
    finally:
        model.train()


def merge(adapter: str, folder: Path) -> Path:
    """Writes W + (alpha / r) B A as a plain model folder, which needs no PEFT; returns it.

    Added up in float32 and saved in the base's dtype, with the run.json of the adapter, which
    says how it was made. AdapterError if ``adapter`` is none, ModelError if it, or its base,
    cannot be loaded whole.
    """
    import torch

    from alpaca_lib import models

    base = _config(Path(adapter)).get("base_model_name_or_path")
    if not isinstance(base, str):
        raise AdapterError(f"{adapter}: its adapter_config.json names no base model")
    model, dtype = models.ModelSource.resolve(adapter).load_merged()
    with hide_progress_bars():
        model.to(getattr(torch, dtype)).save_pretrained(folder)
    models.ModelSource.resolve(base).load_tokenizer().save_pretrained(folder)
    run = Path(adapter) / "run.json"
    if run.is_file():
        shutil.copyfile(run, folder / "run.json")
    return folder
