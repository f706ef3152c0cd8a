"""From settings to a model that can take steps: loaded, adapted, sharded, compiled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from alpaca_lib import models
from alpaca_lib.training import adapters, attention, sharding
from alpaca_lib.training.loss import LabelLoss
from alpaca_lib.training.precision import Trained
from alpaca_lib.training.process import free_memory
from alpaca_lib.training.settings import Settings
from alpaca_lib.training.sharding import World


@dataclass
class Built:
    """A model ready for steps."""

    model: Any  # the causal LM, or the PEFT model around it
    module: LabelLoss  # what is called: a batch in, the sum of its losses out
    trained: Trained
    attention: str  # how it attends, and why so
    sharded: bool
    gather_once: bool = False  # keep shards together within a step

    @property
    def causal(self) -> Any:
        """The causal LM without what PEFT puts around it."""
        return causal_of(self.model)


def build(settings: Settings, placement: models.Placement, here: World) -> Built:
    """The model of a run. Raises ModelError, AdapterError or ValueError before any step."""
    torch.manual_seed(settings.seed)
    quantized = settings.quantization != "none"
    if settings.method == "full" and quantized:
        raise ValueError("full training needs whole weights: set quantization to none")
    # A quantised base is small, and its weights cannot be split: every rank has it whole.
    sharded = here.size > 1 and not quantized
    storage = _storage(settings, placement, sharded)
    if sharded:
        module, how = _sharded(settings, placement, storage, here)
    else:
        model = _load(settings, storage)
        how = attention.attach(causal_of(model), placement.device, settings.max_length)
        module = LabelLoss(model)
        _prepare(module, settings)
    if settings.compile:
        for layer in sharding.layers_of(module.model):
            layer.compile()
    module.model.train()
    trained = Trained(module, here, settings.master_weights)
    once = sharded and settings.method == "full" and _gathers_once(module, settings, placement)
    return Built(module.model, module, trained, how, sharded, once)


def _gathers_once(module: Any, settings: Settings, placement: models.Placement) -> bool:
    """Whether parameters stay gathered within a step: as asked, or if a quarter of the free
    memory holds what that costs, 2 bytes a parameter and 4 for its gradient."""
    if settings.gather != "auto":
        return settings.gather == "step"
    more = 6 * sum(p.numel() for p in module.parameters())
    return more < free_memory(placement.device) / 4


def causal_of(model: Any) -> Any:
    """The causal LM in a model that may have adapters."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _storage(settings: Settings, placement: models.Placement, sharded: bool) -> models.Placement:
    """Device and dtype of the weights that the model holds.

    FSDP makes the copies to compute with from float32 shards; elsewhere the model holds
    the copies, and Trained the float32 masters. A frozen base needs no masters.
    """
    if sharded and settings.method == "full" and settings.master_weights:
        return models.Placement(placement.device, "float32", placement.reason)
    return placement


def _load(settings: Settings, storage: models.Placement) -> Any:
    model = models.load_model(settings.model, storage, settings.quantization)
    return adapters.add_lora(model, settings) if settings.method == "lora" else model


def _sharded(
    settings: Settings, placement: models.Placement, storage: models.Placement, here: World
) -> tuple[LabelLoss, str]:
    """The module in shards: rank 0 reads the weights, the others get their parts from it."""
    on_cpu = models.Placement("cpu", storage.dtype, storage.reason)
    source = LabelLoss(_load(settings, on_cpu)) if here.first else None
    here.barrier()  # rank 0 may have been fetching the model
    empty = models.empty_model(settings.model, storage)
    if settings.method == "lora":
        with torch.device("meta"):
            empty = adapters.add_lora(empty, settings)
    how = attention.attach(causal_of(empty), placement.device, settings.max_length)
    module = LabelLoss(empty)
    _prepare(module, settings)
    sharding.shard(module, module.model, placement, here, settings.sharding)
    sharding.fill(module, source, placement.device, here)
    return module, how


def _prepare(module: LabelLoss, settings: Settings) -> None:
    if settings.activation_checkpointing:
        causal = causal_of(module.model)
        options = {"use_reentrant": False}
        if hasattr(causal, "activation_checkpointing_enable"):
            causal.activation_checkpointing_enable(options)
        else:
            causal.gradient_checkpointing_enable(options)
