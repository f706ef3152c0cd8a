"""From settings to a model that can take steps: loaded, adapted, sharded, compiled."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from alpaca_lib.errors import ModelError
from alpaca_lib.models import ModelSource, Placement
from alpaca_lib.models.adapters import warn_of_other_base
from alpaca_lib.training import adapters, attention, fused_layers, sharding
from alpaca_lib.training.head_loss import LogitsTransform
from alpaca_lib.training.loss import LabelLoss, unwrap_peft
from alpaca_lib.training.packing import Encoded, collate, join
from alpaca_lib.training.precision import MasterWeights
from alpaca_lib.training.process import free_memory
from alpaca_lib.training.settings import Settings
from alpaca_lib.training.sharding import Distributed


@dataclass
class Built:
    """A model ready for training steps.

    >>> built = build(settings, placement, dist)
    >>> loss = built.module(**batch)
    """

    model: Any  # the causal LM, or the PEFT model around it
    module: LabelLoss  # what is called: a batch in, the sum of its label tokens' losses out
    weights: MasterWeights  # what the optimizer steps on
    attention: str  # how the model attends, and why
    sharded: bool  # FSDP shards the parameters over the ranks
    gather_once: bool = False  # parameters stay gathered for all micro-batches of a step


def build(
    settings: Settings, placement: Placement, dist: Distributed, source: ModelSource | None = None
) -> Built:
    """Builds the model of a run. Raises ModelError or AdapterError before any step."""
    torch.manual_seed(settings.seed)
    source = source or ModelSource.resolve(settings.model)
    # A quantised base is small, and its packed weights cannot be split: every rank has all.
    sharded = sharding.splits_weights(settings.quantization, dist.size)
    # Weights are loaded in float32 where masters are kept and FSDP makes the copies to compute
    # with from its shards, or the files are float32: masters that began as rounded values
    # would lose their first updates in the copies' rounding. A frozen base needs no masters.
    storage, exact = placement, {}
    masters = settings.method == "full" and settings.master_weights
    if masters and (sharded or source.saved_dtype == "float32"):
        storage = replace(placement, dtype="float32")
    if sharded:
        module, how = _build_sharded(settings, placement, storage, dist, source)
    else:
        module = LabelLoss(_load(settings, storage, source))
        how = attention.attach(unwrap_peft(module.model), placement.device, settings.max_length)
        if storage.dtype != placement.dtype:
            exact = {name: parameter.data for name, parameter in module.named_parameters()}
            for parameter in module.parameters():
                parameter.data = parameter.data.to(placement.torch_dtype)
        prepare(module, settings, placement.device)
    _check_loss(module, settings, placement, sharded)
    if settings.compile:
        for layer in sharding.layers_of(module.model):
            layer.compile()
    module.model.train()
    weights = MasterWeights(module, dist, settings.master_weights, exact)
    gather_once = False
    if sharded and settings.method == "full":
        parameters = sum(p.numel() for p in module.parameters())
        free = free_memory(placement.device)
        # All ranks must decide alike: otherwise their collectives do not match, and they hang.
        gather_once = not dist.any_rank(
            not sharding.gathers_once(settings.gather, parameters, free)
        )
    return Built(
        model=module.model,
        module=module,
        weights=weights,
        attention=how,
        sharded=sharded,
        gather_once=gather_once,
    )


def prepare(module: LabelLoss, settings: Settings, device: str) -> None:
    """Sets up the layers: fused operations on a CPU, and activation checkpointing if asked for."""
    if device == "cpu" and not settings.compile:  # a compiler fuses them itself
        fused_layers.fuse(module)
    if settings.activation_checkpointing:
        causal = unwrap_peft(module.model)
        options = {"use_reentrant": False}
        if hasattr(causal, "activation_checkpointing_enable"):
            causal.activation_checkpointing_enable(options)
        else:
            causal.gradient_checkpointing_enable(options)


def _load(settings: Settings, storage: Placement, source: ModelSource) -> Any:
    model = source.load_model(storage, settings.quantization)
    if settings.adapter:
        warn_of_other_base(Path(settings.adapter), source.folder, settings.model)
    return adapters.add_lora(model, settings) if settings.method == "lora" else model


def _build_sharded(
    settings: Settings,
    placement: Placement,
    storage: Placement,
    dist: Distributed,
    source: ModelSource,
) -> tuple[LabelLoss, str]:
    """Returns the sharded module and how it attends; rank 0 reads the weights and sends shards."""
    loaded = None
    if dist.is_rank_zero:
        loaded = LabelLoss(_load(settings, replace(storage, device="cpu"), source))
    dist.barrier()  # rank 0 may have downloaded the model
    empty = source.empty_model(storage)
    if settings.method == "lora":
        with torch.device("meta"):
            empty = adapters.add_lora(empty, settings)
    how = attention.attach(unwrap_peft(empty), placement.device, settings.max_length)
    module = LabelLoss(empty)
    prepare(module, settings, placement.device)
    sharding.shard(module, module.model, placement, dist, settings.sharding)
    sharding.load_into_shards(module, loaded, placement.device, dist)
    return module, how


def _check_loss(module: Any, settings: Settings, placement: Placement, sharded: bool) -> None:
    """Raises ModelError for a model whose loss LabelLoss would get wrong.

    Two equal examples in a row must have twice the loss of one (recurrent layers, and attention
    that ignores position_ids, treat the row as one text), and the model's own logits must be
    those that LabelLoss computes: the same input to the head, and the same scale or cap after
    it, which is compared on outputs so large that a cap changes them.
    """
    _check_router(module, settings)
    name, device, causal = settings.model, placement.device, unwrap_peft(module.model)
    vocab_size = causal.get_input_embeddings().num_embeddings
    ids = [n * 7919 % (vocab_size - 1) + 1 for n in range(1, 17)]
    example, tokens = {"input_ids": ids, "labels": ids}, torch.tensor([ids], device=device)
    exact = placement.dtype == "float32" and settings.quantization == "none"
    heads = _HeadOutputs()
    with adapters.evaluating(module.model), torch.no_grad():
        try:
            with heads.recorded(causal):
                one = _packed_loss(module, [example], device)
                # Called through the module, whose FSDP hooks gather the shards.
                module.forward = lambda batch: causal(input_ids=batch, use_cache=False).logits
                module(tokens)
                heads.scale = 100.0
                logits = module(tokens)
            vars(module).pop("forward")
            packs = settings.batching == "pack"
            two = _packed_loss(module, [example] * 2, device) if packs else 2 * one
        except (AttributeError, TypeError) as error:
            raise ModelError(f"{name}: no causal LM that can be trained ({error})") from error
        finally:
            vars(module).pop("forward", None)
    if abs(two / 2 - one) > (1e-4 if exact else 0.03) * one:
        raise ModelError(f"{name}: packed examples would see one another; set batching to bucket")
    # Shares of the largest value: int8 rounds activations by the row, and rows differ (0.09 seen).
    tolerance = 1e-3 if exact else 0.05 if settings.quantization == "none" else 0.25
    ours, theirs, enlarged = heads.outputs
    if not _alike(theirs.reshape(ours.shape[0] + 1, -1)[:-1], ours, tolerance):
        raise ModelError(f"{name}: it changes what its head reads, and cannot be trained here")
    if not _alike(logits, LogitsTransform.of(causal.config)(enlarged), tolerance):
        raise ModelError(
            f"{name}: it changes its head's output (a scale, a cap) in a way that is not known "
            "here, so its loss would be wrong; it cannot be trained here"
        )
    if sharded:
        module.reshard()  # FSDP keeps its root's parameters gathered until a backward pass


class _HeadOutputs:
    """Records what a model's head returns; above 0, ``scale`` is its largest absolute value."""

    def __init__(self) -> None:
        self.outputs: list[torch.Tensor] = []
        self.scale = 0.0

    @contextlib.contextmanager
    def recorded(self, causal: Any) -> Iterator[None]:
        """Records while the block runs."""
        handle = causal.get_output_embeddings().register_forward_hook(self._record)
        try:
            yield
        finally:
            handle.remove()

    def _record(self, head: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        largest = output.abs().max().clamp(min=1e-6)
        self.outputs.append(output * (self.scale / largest) if self.scale else output)
        return self.outputs[-1]


def _alike(a: torch.Tensor, b: torch.Tensor, tolerance: float) -> bool:
    """Returns whether two tensors differ by at most that share of the largest value.

    NaN is not judged here: a model with one in its weights stops at the step that meets it.
    """
    difference = float((a.float() - b.float()).abs().max())
    return not difference > tolerance * float(b.float().abs().max())


def _check_router(module: Any, settings: Settings) -> None:
    """Raises ModelError for experts whose configuration asks for a load-balancing loss."""
    config = unwrap_peft(module.model).config.get_text_config()
    if getattr(config, "output_router_logits", False):
        raise ModelError(
            f"{settings.model}: its config.json sets output_router_logits, whose load-balancing "
            "loss is not computed here; set it to false to train without that loss"
        )


def _packed_loss(module: Any, examples: list[Encoded], device: str) -> float:
    """Returns the summed loss of examples packed into one row."""
    row = join(examples, range(len(examples)))
    batch = {name: tensor.to(device) for name, tensor in collate([row], 0, 1).items()}
    within = attention.is_attached(unwrap_peft(module.model))
    documents = attention.Documents.of(row.boundaries, device) if within else None
    return float(module(**batch, documents=documents))
