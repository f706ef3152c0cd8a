"""Measures what one micro-batch holds in memory, by running the model's own code on shapes.

Forward and backward run on torch's meta device, where a tensor has a shape and no values, and
a ledger records when every storage is allocated and freed. Layers are alike, so the
measurements of one and of two layers give those of any number:

    bytes(n) = bytes(1) + (n - 1) * (bytes(2) - bytes(1))
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, wraps
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from alpaca_lib.planning.shapes import build_empty, list_weights
from alpaca_lib.training import adapters, attention, build
from alpaca_lib.training.attention import Documents
from alpaca_lib.training.loss import LabelLoss
from alpaca_lib.training.settings import Settings
from alpaca_lib.training.sharding import layers_of


@dataclass(frozen=True)
class Batch:
    """Shape of one rank's micro-batch.

    >>> Batch(rows=1, length=128, documents=(72, 56), labels=60).tokens
    128
    """

    rows: int
    length: int  # tokens per row, with padding
    documents: tuple[int, ...]  # tokens of each segment packed into the row; (): not packed
    labels: int  # tokens with a loss, over all rows
    parents: tuple[int, ...] = ()  # of each segment; (): the row shares no prefix

    @property
    def tokens(self) -> int:
        """The tokens of all rows, with padding."""
        return self.rows * self.length


@dataclass(frozen=True)
class Footprint:
    """Bytes that a micro-batch allocates on top of weights, masters, gradients and optimizer.

    >>> foot = measure_footprint(config, settings, "cpu", torch.bfloat16, batch)
    >>> foot.peak - foot.kept  # bytes of what one operation needs for a moment
    """

    kept: float  # bytes from forward to backward: activations
    peak: float  # most bytes before the last layer's backward pass ends
    logits: float  # bytes of that peak in tensors of shape (..., vocab_size)
    tail: float  # most bytes after it
    trained: tuple[int, ...]  # elements of each LoRA matrix; (): full training
    layers: int
    on_gpu: bool

    def extrapolate(self, two: Footprint, layers: int) -> Footprint:
        """Returns the footprint of ``layers`` layers; self has one of them and ``two`` two."""
        more = layers - 1
        kept = self.kept + more * (two.kept - self.kept)
        peak = self.peak + more * (two.peak - self.peak)
        trained = self.trained + more * two.trained[len(self.trained) :]
        return replace(two, kept=kept, peak=peak, tail=self.tail, trained=trained, layers=layers)


_MEASURED: dict[tuple[Any, ...], Footprint] = {}
_MATTERS = {"method", "quantization", "activation_checkpointing", "batching", "max_length"}
_MATTERS |= {name for name in Settings.model_fields if name.startswith("lora_")}


def measure_footprint(
    config: Any, settings: Settings, device: str, dtype: torch.dtype, batch: Batch
) -> Footprint:
    """Returns the footprint of a micro-batch for a configuration, on this kind of device."""
    chosen = tuple(getattr(settings, name) for name in sorted(_MATTERS))
    key = (config.to_json_string(), chosen, device.split(":")[0], dtype, batch)
    if key not in _MEASURED:
        layers = config.get_text_config().num_hidden_layers
        one, two = (_trace(config, settings, device, dtype, batch, n) for n in (1, 2))
        _MEASURED[key] = one.extrapolate(two, layers)
    return _MEASURED[key]


def _trace(
    config: Any, settings: Settings, device: str, dtype: torch.dtype, batch: Batch, layers: int
) -> Footprint:
    """Runs the model, cut to ``layers`` layers, forward and backward on the meta device."""
    model = build_empty(copy.deepcopy(config), dtype, layers)
    attention.attach(model, device, settings.max_length)
    if not attention.is_attached(model):
        model.set_attn_implementation(attention.NAME)  # SDPA keeps the same, but for its mask
    lora, kind = settings.method == "lora", settings.quantization
    names = {w.name for w in list_weights(model) if w.linear and kind != "none"}
    quantized = {id(p) for name, p in model.named_parameters() if name in names}
    if lora:
        with torch.device("meta"):
            model = adapters.add_lora(model, settings.replace(adapter=""))
    module = LabelLoss(model)
    build.prepare(module, settings, device)
    for layer in layers_of(model):
        for part in layer.children():  # in each: activation checkpointing reruns it without modes
            part.forward = _with_kernels(part.forward, quantized, kind == "int8")
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:  # the caller counts gradients
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    ledger = Ledger(model.get_input_embeddings().num_embeddings, batch.labels)
    ledger.ignore([*model.parameters(), *model.buffers()])
    layers_of(model)[-1].register_forward_pre_hook(ledger.watch, with_kwargs=True)
    with _fresh_masks(), ledger:
        ids = torch.zeros(batch.rows, batch.length, dtype=torch.long, device="meta")
        labels, positions = torch.zeros_like(ids), torch.zeros_like(ids)
        loss = module(ids, labels, positions, _documents(batch, device))
        kept = ledger.live
        loss.backward()
    peak, logits = ledger.peaks[0]
    return Footprint(
        kept=kept,
        peak=peak,
        logits=logits,
        tail=ledger.peaks[1][0],
        trained=tuple(p.numel() for p in trained) if lora else (),
        layers=layers,
        on_gpu=device.startswith("cuda"),
    )


def _documents(batch: Batch, device: str) -> Documents | None:
    """Returns the segments of a packed row; padding belongs to the last one."""
    if not batch.documents:
        return None
    lengths = [*batch.documents[:-1], batch.length - sum(batch.documents[:-1])]
    documents = Documents.of(list(accumulate(lengths, initial=0)), "cpu", batch.parents)
    return documents.with_cu_seqlens("meta") if device.startswith("cuda") else documents


class Ledger(TorchDispatchMode):
    """Records every storage that is allocated while it is active, and when it is freed.

    ``live`` is the bytes allocated now; ``peaks`` are [most bytes, of these logits] before and
    after the moment that ``watch`` marks.

    >>> with Ledger(vocab_size) as ledger:
    ...     loss = module(ids, labels, positions, documents)
    """

    def __init__(self, vocab_size: int, labels: int = 0) -> None:
        super().__init__()
        self.vocab_size, self.labels = vocab_size, labels
        self.live = self.logits = 0
        self.peaks = [[0, 0], [0, 0]]
        self.phase = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        index = torch.ops.aten.index.Tensor
        masked = func is index and args[1][0] is not None and args[1][0].dtype == torch.bool
        if masked and args[0].is_meta:
            # A mask has no values on the meta device: it selects the tokens that have a label.
            rows = torch.empty(self.labels, dtype=torch.long, device="meta")
            args = (args[0], [rows] * args[1][0].dim())
        results = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(results):
            if isinstance(tensor, Tensor):
                self._note(tensor)
        return results

    def ignore(self, tensors: list[Tensor]) -> None:
        """Excludes tensors from the count."""
        for tensor in tensors:
            self._known[tensor.untyped_storage()._cdata] = tensor

    def watch(self, layer: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Starts the second phase once a layer's input has its gradient (a forward pre-hook)."""
        states = args[0] if args else kwargs["hidden_states"]
        if states.requires_grad:
            states.register_hook(lambda grad: setattr(self, "phase", 1))

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or not size:
            return
        logits = size if tensor.dim() > 1 and tensor.shape[-1] == self.vocab_size else 0

        def free(_: Any) -> None:
            self.live -= size
            self.logits -= logits
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, free)
        self.live += size
        self.logits += logits
        if self.live > self.peaks[self.phase][0]:
            self.peaks[self.phase] = [self.live, self.logits]


class _Kernels(TorchFunctionMode):
    """Replaces what torch computes differently on shapes: fused attention, quantised products."""

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
    """Attention as flash kernels do it: they keep inputs, result, and a float32 per query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Any:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:3]).float())
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return tuple(torch.empty_like(x) for x in ctx.saved_tensors[:3])


class _Dequantized(torch.autograd.Function):
    """A product of bitsandbytes: it dequantises the full weight, forward and backward.

    In 8 bits it keeps its input outside autograd, so that activation checkpointing does not
    free it (bitsandbytes 0.50, autograd/_functions.py).
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, keeps: bool) -> Any:
        ctx.weight, ctx.states = weight, states if keeps else None
        return F.linear(states, torch.empty_like(weight))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad @ torch.empty_like(ctx.weight), None, None


@contextmanager
def _fresh_masks() -> Iterator[None]:
    """Replaces the cache of attention masks: one found there would not be counted."""
    module: Any = attention
    cached = module._square_mask
    module._square_mask = cache(cached.__wrapped__)
    try:
        yield
    finally:
        module._square_mask = cached
