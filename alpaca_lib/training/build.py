"""From settings to a model that can take steps: loaded, adapted, sharded, compiled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from alpaca_lib import models
from alpaca_lib.training import adapters, attention, sharding
from alpaca_lib.training.loss import LabelLoss
from alpaca_lib.training.packing import Encoded, collate, join
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
    exact: dict[str, torch.Tensor] = {}
    if sharded:
        module, how = _sharded(settings, placement, storage, here)
    else:
        model = _load(settings, storage)
        how = attention.attach(causal_of(model), placement.device, settings.max_length)
        module = LabelLoss(model)
        exact = _copies(module, placement) if storage.dtype != placement.dtype else {}
        _prepare(module, settings)
    _check_loss(module, settings, placement, sharded)
    if settings.compile:
        for layer in sharding.layers_of(module.model):
            layer.compile()
    module.model.train()
    trained = Trained(module, here, settings.master_weights, exact)
    once = (
        sharded and settings.method == "full" and _gathers_once(module, settings, placement, here)
    )
    return Built(module.model, module, trained, how, sharded, once)


def _gathers_once(
    module: Any, settings: Settings, placement: models.Placement, here: World
) -> bool:
    """Whether parameters stay gathered within a step: as asked, or if a quarter of the free
    memory of every rank holds what that costs, 2 bytes a parameter and 4 for its gradient."""
    if settings.gather != "auto":
        return settings.gather == "step"
    more = 6 * sum(p.numel() for p in module.parameters())
    # Agreed upon: a rank that gathers otherwise than the rest would wait for them for ever.
    return not here.agree(more >= free_memory(placement.device) / 4)


def _check_loss(
    module: Any, settings: Settings, placement: models.Placement, sharded: bool
) -> None:
    """Raises ModelError for a model that would learn from another loss than its own.

    Recurrent layers, and an attention that does not look at position_ids, take a packed
    row for one text: an example's loss is then another one behind a neighbour. And some
    models scale the logits of their head.
    """
    name, device, causal = settings.model, placement.device, causal_of(module.model)
    words = causal.get_input_embeddings().num_embeddings
    ids = [n * 7919 % (words - 1) + 1 for n in range(1, 17)]
    example, tokens = {"input_ids": ids, "labels": ids}, torch.tensor([ids], device=device)
    exact = placement.dtype == "float32" and settings.quantization == "none"
    near = 1e-4 if exact else 0.03
    with adapters.evaluating(module.model), torch.no_grad():
        try:
            alone = _loss_of(module, [example], device)
            two = _loss_of(module, [example] * 2, device) if settings.batching == "pack" else 0.0
            # Through the module, which knows when shards have to be gathered.
            module.forward = lambda batch: causal(input_ids=batch, use_cache=False).logits
            logits = module(tokens)[0, :-1].float()
        except (AttributeError, TypeError) as error:
            raise models.ModelError(
                f"{name}: no causal LM that can be trained ({error})"
            ) from error
        finally:
            vars(module).pop("forward", None)
    own = float(F.cross_entropy(logits, tokens[0, 1:], reduction="sum"))
    if two and abs(two / 2 - alone) > near * alone:
        raise models.ModelError(
            f"{name}: packed examples would see one another; set batching to bucket"
        )
    if abs(own - alone) > near * alone:
        raise models.ModelError(
            f"{name}: it does not use its head's logits as they are (a loss of {own:.3f} "
            f"would be taken for {alone:.3f}), and cannot be trained here"
        )
    if sharded:
        module.reshard()  # its root keeps what it has gathered until a backward pass


def _loss_of(module: Any, examples: list[Encoded], device: str) -> float:
    """The summed loss of examples packed into one row."""
    row = join(examples, range(len(examples)))
    batch = {name: tensor.to(device) for name, tensor in collate([row], 0, 1).items()}
    own = attention.attached(causal_of(module.model))
    documents = attention.Documents.of(row.borders, device) if own else None
    return float(module(**batch, documents=documents))


def causal_of(model: Any) -> Any:
    """The causal LM in a model that may have adapters."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _storage(settings: Settings, placement: models.Placement, sharded: bool) -> models.Placement:
    """Device and dtype that the weights are loaded in.

    FSDP makes the copies to compute with from float32 shards; elsewhere the model holds
    the copies, and Trained the float32 masters. Those begin as exact as the model's files
    are: from rounded ones, the first updates would vanish in the copies, all at once. A frozen
    base needs no masters.
    """
    masters = settings.method == "full" and settings.master_weights
    if masters and (sharded or models.saved_dtype(settings.model) == "float32"):
        return models.Placement(placement.device, "float32", placement.reason)
    return placement


def _copies(module: LabelLoss, placement: models.Placement) -> dict[str, torch.Tensor]:
    """Turns parameters into copies to compute with; returns what they were, by name."""
    exact = {}
    for name, parameter in module.named_parameters():
        exact[name] = parameter.data
        parameter.data = parameter.data.to(placement.torch_dtype)
    return exact


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
