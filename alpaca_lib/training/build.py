"""From settings to a model that can take steps: loaded, adapted, sharded, compiled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from alpaca_lib.errors import ModelError
from alpaca_lib.models import ModelSource, Placement
from alpaca_lib.training import adapters, attention, sharding
from alpaca_lib.training.loss import LabelLoss
from alpaca_lib.training.packing import Encoded, collate, join
from alpaca_lib.training.precision import Trained
from alpaca_lib.training.process import free_memory
from alpaca_lib.training.settings import Settings
from alpaca_lib.training.sharding import Distributed


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


def build(
    settings: Settings, placement: Placement, dist: Distributed, source: ModelSource | None = None
) -> Built:
    """Builds the model of a run. Raises ModelError or AdapterError before any step."""
    torch.manual_seed(settings.seed)
    quantized = settings.quantization != "none"
    source = source or ModelSource.resolve(settings.model)
    # A quantised base is small, and its weights cannot be split: every rank has it whole.
    sharded = dist.size > 1 and not quantized
    storage = _storage(settings, placement, sharded, source)
    exact: dict[str, torch.Tensor] = {}
    if sharded:
        module, how = _sharded(settings, placement, storage, dist, source)
    else:
        model = _load(settings, storage, source)
        how = attention.attach(causal_of(model), placement.device, settings.max_length)
        module = LabelLoss(model)
        exact = _copies(module, placement) if storage.dtype != placement.dtype else {}
        _prepare(module, settings)
    _check_loss(module, settings, placement, sharded)
    if settings.compile:
        for layer in sharding.layers_of(module.model):
            layer.compile()
    module.model.train()
    trained = Trained(module, dist, settings.master_weights, exact)
    once = False
    if sharded and settings.method == "full":
        parameters = sum(p.numel() for p in module.parameters())
        free = free_memory(placement.device)
        # All ranks decide alike: one that gathered differently would wait for the rest forever.
        once = not dist.any_rank(not sharding.gathers_once(settings.gather, parameters, free))
    return Built(module.model, module, trained, how, sharded, once)


def _check_loss(module: Any, settings: Settings, placement: Placement, sharded: bool) -> None:
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
            raise ModelError(f"{name}: no causal LM that can be trained ({error})") from error
        finally:
            vars(module).pop("forward", None)
    own = float(F.cross_entropy(logits, tokens[0, 1:], reduction="sum"))
    if two and abs(two / 2 - alone) > near * alone:
        raise ModelError(f"{name}: packed examples would see one another; set batching to bucket")
    if abs(own - alone) > near * alone:
        raise ModelError(
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


def _storage(
    settings: Settings, placement: Placement, sharded: bool, source: ModelSource
) -> Placement:
    """Device and dtype that the weights are loaded in.

    FSDP makes the copies to compute with from float32 shards; elsewhere the model holds
    the copies, and Trained the float32 masters. Those begin as exact as the model's files
    are: from rounded ones, the first updates would vanish in the copies, all at once. A frozen
    base needs no masters.
    """
    masters = settings.method == "full" and settings.master_weights
    if masters and (sharded or source.saved_dtype == "float32"):
        return Placement(placement.device, "float32", placement.reason)
    return placement


def _copies(module: LabelLoss, placement: Placement) -> dict[str, torch.Tensor]:
    """Turns parameters into copies to compute with; returns what they were, by name."""
    exact = {}
    for name, parameter in module.named_parameters():
        exact[name] = parameter.data
        parameter.data = parameter.data.to(placement.torch_dtype)
    return exact


def _load(settings: Settings, storage: Placement, source: ModelSource) -> Any:
    model = source.load_model(storage, settings.quantization)
    return adapters.add_lora(model, settings) if settings.method == "lora" else model


def _sharded(
    settings: Settings,
    placement: Placement,
    storage: Placement,
    dist: Distributed,
    source: ModelSource,
) -> tuple[LabelLoss, str]:
    """The module in shards: rank 0 reads the weights, the others get their parts from it."""
    on_cpu = Placement("cpu", storage.dtype, storage.reason)
    loaded = LabelLoss(_load(settings, on_cpu, source)) if dist.is_rank_zero else None
    dist.barrier()  # rank 0 may have been fetching the model
    empty = source.empty_model(storage)
    if settings.method == "lora":
        with torch.device("meta"):
            empty = adapters.add_lora(empty, settings)
    how = attention.attach(causal_of(empty), placement.device, settings.max_length)
    module = LabelLoss(empty)
    _prepare(module, settings)
    sharding.shard(module, module.model, placement, dist, settings.sharding)
    sharding.fill(module, loaded, placement.device, dist)
    return module, how


def _prepare(module: LabelLoss, settings: Settings) -> None:
    if settings.activation_checkpointing:
        causal = causal_of(module.model)
        options = {"use_reentrant": False}
        if hasattr(causal, "activation_checkpointing_enable"):
            causal.activation_checkpointing_enable(options)
        else:
            causal.gradient_checkpointing_enable(options)
