"""What one micro-batch holds in memory, found by running the model's own code on shapes.

Nothing is guessed that the code decides: forward and backward run on torch's meta device,
where a tensor has a shape and no values, and a ledger follows every storage from its birth
to its end. Layers are alike, so one and two of them tell what any number holds.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, wraps
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from alpaca_lib.planning.shapes import empty, weights_of
from alpaca_lib.training import adapters, attention, build
from alpaca_lib.training.attention import Documents
from alpaca_lib.training.loss import LabelLoss
from alpaca_lib.training.settings import Settings
from alpaca_lib.training.sharding import layers_of


@dataclass(frozen=True)
class Batch:
    """A micro-batch: rows of so many tokens; documents are the lengths of what one row packs
    (none: a row is one document), labels the tokens that have a loss."""

    rows: int
    length: int
    documents: tuple[int, ...]
    labels: int


@dataclass(frozen=True)
class Footprint:
    """Bytes of a micro-batch, without the weights, masters, gradients and optimizer.

    ``peak`` is the most until the last layer's backward ends, of which ``kept`` stay from
    forward to backward and ``logits`` have a vocabulary's width; ``tail`` is the most after it.
    """

    kept: float
    peak: float
    logits: float
    tail: float
    trained: tuple[int, ...]  # the sizes of all adapters' parameters
    layers: int
    on_gpu: bool

    def grown(self, other: Footprint, layers: int) -> Footprint:
        """That of ``layers`` layers, where self has one and ``other`` two."""
        more = layers - 1
        kept = self.kept + more * (other.kept - self.kept)
        peak = self.peak + more * (other.peak - self.peak)
        trained = self.trained + more * other.trained[len(self.trained) :]
        return Footprint(kept, peak, other.logits, self.tail, trained, layers, self.on_gpu)


_KEPT: dict[tuple[Any, ...], Footprint] = {}
_MATTERS = {"method", "quantization", "activation_checkpointing", "batching", "max_length"}
_MATTERS |= {name for name in Settings.model_fields if name.startswith("lora_")}


def footprint(
    config: Any, settings: Settings, device: str, dtype: torch.dtype, batch: Batch
) -> Footprint:
    """What a micro-batch of this model holds on this kind of device, in this dtype."""
    chosen = tuple(getattr(settings, name) for name in sorted(_MATTERS))
    key = (config.to_json_string(), chosen, device.split(":")[0], dtype, batch)
    if key not in _KEPT:
        layers = config.get_text_config().num_hidden_layers
        one, two = (_traced(config, settings, device, dtype, batch, n) for n in (1, 2))
        _KEPT[key] = one.grown(two, layers)
    return _KEPT[key]


def _traced(
    config: Any, settings: Settings, device: str, dtype: torch.dtype, batch: Batch, layers: int
) -> Footprint:
    """The footprint of the model cut to ``layers`` layers."""
    model = empty(copy.deepcopy(config), dtype, layers)
    if not attention.attach(model, device, settings.max_length) or not attention.is_attached(model):
        model.set_attn_implementation(attention.NAME)  # as much but for the mask
    names = {w.name for w in weights_of(model) if w.linear and settings.quantization != "none"}
    quantized = {id(p) for name, p in model.named_parameters() if name in names}
    if settings.method == "lora":
        with torch.device("meta"):
            model = adapters.add_lora(model, settings.replace(adapter=""))
    for layer in layers_of(model):
        for part in layer.children():  # in each: a backward pass that runs it again has no modes
            part.forward = _with_kernels(part.forward, quantized, settings.quantization == "int8")
    module = LabelLoss(model)
    build.prepare(module, settings)
    model.train()
    lora = settings.method == "lora"
    trained = tuple(p.numel() for p in model.parameters() if p.requires_grad) if lora else ()
    for parameter in model.parameters():
        if parameter.requires_grad:  # where gradients go is the caller's to count
            parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    words = model.get_input_embeddings().num_embeddings
    ledger = Ledger(words, batch.labels)
    ledger.ignore([*model.parameters(), *model.buffers()])
    layers_of(model)[-1].register_forward_pre_hook(ledger.watch, with_kwargs=True)
    with _on_meta(), ledger:
        shape = (batch.rows, batch.length)
        ids, labels, places = (torch.zeros(shape, dtype=torch.long, device="meta") for _ in "ilp")
        loss = module(ids, labels, places, _documents(batch, device))
        kept = ledger.live
        loss.backward()
    peak, logits = ledger.peaks[0]
    on_gpu = device.startswith("cuda")
    return Footprint(kept, peak, logits, ledger.peaks[1][0], trained, layers, on_gpu)


def _documents(batch: Batch, device: str) -> Documents | None:
    if not batch.documents:
        return None
    borders = [0]
    for length in batch.documents:
        borders.append(borders[-1] + length)
    borders[-1] = batch.length
    starts = torch.zeros(len(borders), dtype=torch.int32, device="meta")
    longest = max(b - a for a, b in pairwise(borders))
    return Documents(tuple(borders), starts if device.startswith("cuda") else None, longest)


class Ledger(TorchDispatchMode):
    """Follows every storage that is made while it is active, and how much lives at once."""

    def __init__(self, words: int, labels: int = 0) -> None:
        super().__init__()
        self.words, self.labels = words, labels
        self.live = self.logits = 0
        self.peaks = [[0, 0], [0, 0]]  # most at once, and logits then: until, and after watch's
        self.phase = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        index = torch.ops.aten.index.Tensor
        masked = func is index and args[1][0] is not None and args[1][0].dtype == torch.bool
        if masked and args[0].is_meta:
            # A mask has no values here: it selects the tokens that have a label.
            rows = torch.empty(self.labels, dtype=torch.long, device="meta")
            args = (args[0], [rows] * args[1][0].dim())
        made = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._note(tensor)
        return made

    def ignore(self, tensors: list[Tensor]) -> None:
        """Does not count these."""
        for tensor in tensors:
            self._known[tensor.untyped_storage()._cdata] = tensor

    def watch(self, layer: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """A layer's forward pre-hook: once the gradient of its input is there, the second
        phase begins."""
        states = args[0] if args else kwargs["hidden_states"]
        if states.requires_grad:
            states.register_hook(lambda grad: setattr(self, "phase", 1))

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or not size:
            return
        logits = size if tensor.dim() > 1 and tensor.shape[-1] == self.words else 0

        def gone(_: Any) -> None:
            self.live -= size
            self.logits -= logits
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, gone)
        self.live += size
        self.logits += logits
        if self.live > self.peaks[self.phase][0]:
            self.peaks[self.phase] = [self.live, self.logits]


class _Kernels(TorchFunctionMode):
    """Puts in what torch does another way on shapes: fused attention, quantised products."""

    def __init__(self, quantized: set[int], keeps: bool) -> None:
        super().__init__()
        self.quantized, self.keeps = quantized, keeps

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return _Fused.apply(*args[:3])
        if func is F.linear and id(args[1]) in self.quantized:
            return _Dequantized.apply(args[0], args[1], self.keeps)
        return func(*args, **(kwargs or {}))


def _with_kernels(forward: Callable[..., Any], quantized: set[int], keeps: bool) -> Any:
    @wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        with _Kernels(quantized, keeps):
            return forward(*args, **kwargs)

    return run


class _Fused(torch.autograd.Function):
    """Attention as flash kernels do it: they keep inputs, result, and one number a query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Any:
        made = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, made, query.new_empty(query.shape[:3]).float())
        return made

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return tuple(torch.empty_like(x) for x in ctx.saved_tensors[:3])


class _Dequantized(torch.autograd.Function):
    """bitsandbytes' products: the whole weight is there for a moment, forward and backward.

    Its 8-bit ones hold on to their input beside autograd, where activation checkpointing
    cannot take it away (bitsandbytes 0.50, autograd/_functions.py).
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, keeps: bool) -> Any:
        ctx.weight, ctx.states = weight, states if keeps else None
        return F.linear(states, torch.empty_like(weight))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad @ torch.empty_like(ctx.weight), None, None


@contextmanager
def _on_meta() -> Iterator[None]:
    """The attention's masks are cached: here they must neither be found nor left."""
    module: Any = attention
    cached = module._mask
    module._mask = cache(cached.__wrapped__)
    try:
        yield
    finally:
        module._mask = cached
