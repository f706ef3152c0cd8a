"""LoRA (arXiv:2106.09685) with PEFT: put adapters on a model, save them, check them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from alpaca_lib.embedded import need
from alpaca_lib.training.settings import Settings


class AdapterError(RuntimeError):
    """An adapter that cannot be made, or that was saved wrongly."""


def add_lora(model: Any, settings: Settings) -> Any:
    """The model with LoRA adapters in float32; only they can be trained."""
    peft = need("peft")
    targets: str | list[str] = settings.lora_targets
    if targets != "all-linear":
        targets = [name.strip() for name in settings.lora_targets.split(",") if name.strip()]
        present = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
        missing = [name for name in targets if name not in present]
        if missing or not targets:
            linear = sorted(
                {n.rsplit(".", 1)[-1] for n, m in model.named_modules() if "Linear" in str(type(m))}
            )
            raise AdapterError(
                f"lora_targets {settings.lora_targets!r}: the model has no module "
                f"{', '.join(missing) or '(none named)'}; its linear ones are {', '.join(linear)}"
            )
    if settings.quantization != "none":
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=targets,
        bias="none",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT calls an old name of transformers
        return peft.get_peft_model(model, config)


def trainable(model: Any) -> tuple[int, int]:
    """(parameters that train, all parameters)."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, grad in sizes if grad), sum(n for n, _ in sizes)


def check_saved(folder: Path, model: Any) -> int:
    """Compares a saved adapter with the model in memory; returns its tensor count.

    Alpaca-LoRA users got adapter files of 443 bytes; this is what finds them.
    """
    from safetensors.torch import load_file

    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise AdapterError(f"{folder}: no adapter_model.safetensors was written")
    saved = load_file(file)
    expected = need("peft").get_peft_model_state_dict(model, save_embedding_layers=False)
    if set(saved) != set(expected):
        raise AdapterError(f"{file}: {len(saved)} tensors, {len(expected)} expected")
    for name, tensor in expected.items():
        if not saved[name].equal(tensor.detach().cpu()):
            raise AdapterError(f"{file}: {name} differs from the model in memory")
    if all(not t.any() for name, t in saved.items() if "lora_B" in name):
        raise AdapterError(f"{file}: every B matrix is zero, so nothing was trained")
    return len(saved)
