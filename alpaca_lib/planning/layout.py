"""Machines, and how a run's bytes lie on them: per rank, phase by phase."""

from __future__ import annotations

import contextlib
import difflib
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass

from alpaca_lib.errors import ModelError, SettingsError
from alpaca_lib.models import ModelSource
from alpaca_lib.optional import require
from alpaca_lib.planning.footprint import Footprint
from alpaca_lib.planning.shapes import SHAPES, Weight
from alpaca_lib.training import flops
from alpaca_lib.training import loop as loop  # what a run loads: see libraries()
from alpaca_lib.training.process import resident
from alpaca_lib.training.settings import Settings
from alpaca_lib.training.sharding import mesh_shape


@dataclass(frozen=True)
class Machine:
    """So many GPUs, or processes on a CPU, of one kind; memory, rate and link are each one's."""

    name: str
    count: int = 1
    per_node: int = 1
    memory: float = 0.0  # bytes; 0: unknown
    rate: float = 0.0  # FLOP/s; 0: to be measured
    link: float = 0.0  # bytes/s to the others of its node, one way

    @property
    def on_gpu(self) -> bool:
        """Whether it has GPUs."""
        return self.name != "cpu"

    @property
    def device(self) -> str:
        """torch's name of the kind of device."""
        return "cuda" if self.on_gpu else "cpu"

    @property
    def nodes(self) -> int:
        """The number of machines."""
        return self.count // self.per_node


def machine_of(text: str) -> Machine:
    """The machine of a text: H100, 8xH100, 4x8xH100 (nodes first), cpu, 2xcpu (processes)."""
    parts = re.fullmatch(
        r"(?:(\d+)\s*[x*]\s*)?(?:(\d+)\s*[x*]\s*)?([a-z][\w .-]*)", text.strip(), re.I
    )
    if not parts:
        raise SettingsError(f"gpus {text!r}: write 8xH100, 4x8xH100 (nodes first), or cpu")
    numbers = [int(n) for n in parts.groups()[:2] if n]
    if 0 in numbers:
        raise SettingsError(f"gpus {text!r}: at least one is needed")
    if len(numbers) == 2:
        nodes, per_node = numbers
    else:
        count = numbers[0] if numbers else 1
        nodes, per_node = (count // 8, 8) if count > 8 else (1, count)
        if nodes * per_node != count:
            raise SettingsError(f"gpus {text!r}: how many a node has? write nodes first, 3x4xH100")
    name = _plain(parts[3])
    if name == "cpu":
        return Machine("cpu", nodes * per_node, per_node)
    table = flops.gpus()
    known = {_plain(key): key for key in table}
    if name not in known:
        near = [k for k in known if k.startswith(name) or name.startswith(k)]
        near = near or difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = " or ".join(known[n] for n in near) or ", ".join([*table, "cpu"])
        raise SettingsError(f"gpus {text!r}: no GPU {parts[3]!r} in {flops.GPUS.name}; use {hint}")
    facts = table[known[name]]
    memory, rate, link = (float(facts[k]) for k in ("memory_gb", "bf16_tflops", "link_gb_s"))
    return Machine(known[name], nodes * per_node, per_node, memory * 1e9, rate * 1e12, link * 1e9)


def _plain(name: str) -> str:
    return re.sub(r"nvidia|geforce|amd|instinct|[\s._-]", "", name.lower())


@dataclass(frozen=True)
class Ranks:
    """How a run of this project lies on ranks: ``shard`` of them hold the weights together."""

    count: int
    shard: int
    once: bool  # shards are put together once a step, not layer by layer

    @classmethod
    def of(cls, settings: Settings, machine: Machine, once: bool) -> Ranks:
        """Returns the layout that build() and sharding.shard() make, by the same rules."""
        split = machine.count > 1 and settings.quantization == "none"
        _, ranks = mesh_shape(settings.sharding, machine.count, machine.per_node)
        shard = ranks if split else 1
        return cls(machine.count, shard, once and split and settings.method == "full")

    def __str__(self) -> str:
        if self.count == 1:
            return "one process"
        if self.shard == 1:
            return f"data parallel: the whole base on each of {self.count} ranks, adapters averaged"
        if self.shard == self.count:
            return f"FSDP2: {self.count} ranks hold a shard each"
        copies = self.count // self.shard
        return f"HSDP: {self.shard} ranks of a node hold a shard each, {copies} nodes a copy each"


Terms = dict[str, float]


def phases(
    settings: Settings,
    weights: Sequence[Weight],
    foot: Footprint,
    size: int,
    ranks: Ranks,
    several: bool,
) -> dict[str, Terms]:
    """{phase: {term: bytes}} of a rank whose model computes with ``size`` bytes a number;
    ``several``: a step has more than one micro-batch."""
    lora, shard = settings.method == "lora", ranks.shard
    numels = [w.numel for w in weights]
    trained = list(foot.trained) if lora else numels
    whole, number = sum(numels), sum(trained)
    inside = [w.numel for w in weights if w.in_layer]
    layer = sum(inside) / max(foot.layers, 1)
    root = whole - sum(inside)
    part = 1 if lora else shard  # adapters are whole on every rank
    stored = 4 if settings.master_weights or size == 4 else size
    copied = stored != size and part == 1  # bfloat16 copies in the model, masters beside it
    mine: Terms = {"weights": 0.0, "master weights": 0.0}
    if lora:
        base = sum(w.bytes(size, settings.quantization) for w in weights)
        mine["weights"] = base / shard + number * size
    elif copied or stored == size:
        mine["weights"] = whole * size / shard
    if copied or (stored != size and part > 1):
        mine["master weights"] = number * stored / part
    mine["optimizer"] = sum(_averages(settings.optimizer, n / part, stored) for n in trained)
    gradients = number * stored / part + (4 * max(trained) if copied else 0)
    # Gradients beside masters stay; others come into being during a step's first backward.
    early = gradients if copied or several else 0.0
    gathered = late = flight = 0.0
    if shard > 1:
        gathered = size * (whole if ranks.once else root + 2 * layer)
        if not lora:
            flight = (size + 4) * layer
            late = (size + 4) * root
            if ranks.once and several:
                gathered += 4 * whole
    busy = mine | {
        "gradients": early,
        "gathered layers": gathered,
        "activations": foot.kept,
        "logits": foot.logits,
        "in flight": max(foot.peak - foot.kept - foot.logits, 0.0) + flight,
    }
    end = mine | {
        "gradients": gradients,
        "gathered layers": gathered,
        "in flight": foot.tail + late,
    }
    step = mine | {"gradients": gradients, "in flight": _step(settings, ranks, trained, part, foot)}
    if max(sum(end.values()), sum(step.values())) < sum(busy.values()):
        return {"forward and backward": busy, "optimizer step": step}
    return {"forward and backward": busy, "end of backward": end, "optimizer step": step}


def _averages(optimizer: str, numbers: float, stored: int) -> float:
    """Bytes of Adam's two averages of a tensor; 8-bit ones have a float32 scale for 256."""
    if optimizer == "adamw":
        return 2 * stored * numbers
    return numbers * (2 + 2 * 4 / 256) if numbers >= 4096 else 8 * numbers


def _step(
    settings: Settings, ranks: Ranks, trained: Sequence[int], part: int, foot: Footprint
) -> float:
    """What an optimizer step makes beside what is there."""
    flat = 4.0 * sum(trained) if part == 1 and ranks.count > 1 else 0.0  # to be added up
    # bitsandbytes steps on a CPU in five float32 copies of a parameter; on a GPU in none.
    copies = 20.0 * max(trained) / part if settings.optimizer == "adamw8bit" else 0.0
    return max(flat, copies * (not foot.on_gpu))


@dataclass(frozen=True)
class OnPaper:
    """A layout that needs another engine: tensor x pipeline x data parallel."""

    tensor: int
    pipeline: int
    data: int
    bytes: float
    bubble: float  # the share of time in which a pipeline's stages wait for one another

    def __str__(self) -> str:
        return f"tensor {self.tensor} x pipeline {self.pipeline} x data {self.data}"


def on_paper(
    weights: Sequence[Weight], foot: Footprint, heads: int, machine: Machine, micro_batches: int
) -> list[OnPaper]:
    """The layouts of full bf16 training that fit a cluster, most data parallel first.

    Weights and float32 gradients are cut by tensor x pipeline, masters and Adam over the data
    parallel ranks too: 6 + 12/d bytes a parameter (Megatron-LM's distributed optimizer). Layers
    are computed anew, their inputs cut by sequence parallelism (arXiv:2205.05198); a pipeline's
    first stage holds those of as many micro-batches as there are stages.
    """
    number, found = sum(w.numel for w in weights), []
    for tensor in (1, 2, 4, 8, 16):
        for pipeline in (1, 2, 4, 8, 16, 32, 64):
            cut = tensor * pipeline
            if machine.per_node % tensor or heads % tensor or foot.layers % pipeline:
                continue
            if cut > machine.count or machine.count % cut:
                continue
            data = machine.count // cut
            held = number / cut * (6 + 12 / data) + foot.peak / tensor
            each = max(micro_batches // data, 1)
            bubble = (pipeline - 1) / (each + pipeline - 1)
            found.append(OnPaper(tensor, pipeline, data, held, bubble))
    fitting = [way for way in found if fits(way.bytes, machine)]
    return sorted(fitting, key=lambda way: (-way.data, way.bubble, way.tensor))


# Beside what torch's allocator counts on a GPU: the CUDA context and NCCL's buffers, and what
# its blocks waste.
CONTEXT, WASTE = 1e9, 0.05


def fits(peak: float, machine: Machine) -> bool:
    """Whether a predicted peak fits one device, with room for what cannot be predicted."""
    return not machine.memory or needed(peak, machine) <= machine.memory


def needed(peak: float, machine: Machine) -> float:
    """The bytes a device should have for a predicted peak."""
    return peak * (1 + WASTE) + CONTEXT if machine.on_gpu else peak


def libraries(settings: Settings) -> float:
    """The bytes that Python has once it has loaded what a run loads."""
    if settings.method == "lora":
        require("peft")
    if settings.quantization != "none" or settings.optimizer == "adamw8bit":
        require("bitsandbytes")
    return float(resident())


def on_cpu(
    found: dict[str, Terms],
    settings: Settings,
    ranks: Ranks,
    parameters: int,
    kernels: float,
    file_bytes: float,
) -> dict[str, Terms]:
    """The phases with what only main memory has: compiled kernels, holes in the heap, a model
    file that is mapped while it is read, and the whole model on rank 0 of several."""
    busy = next(iter(found.values()))
    split = ranks.shard > 1
    full = settings.method == "full"
    made = {name: terms | {"kernels": kernels} for name, terms in found.items()}
    if platform.libc_ver()[0] == "glibc":
        # glibc cannot put an aligned block where one of its size was if small ones lie beside
        # it, so a micro-batch finds its place only in part: at worst its memory twice.
        first = made[next(iter(made))]
        first["holes"] = busy["activations"] + busy["logits"] + busy["in flight"]
    stored = 4 if full and settings.master_weights else 2
    whole = float(stored * parameters) if split else busy["weights"]
    made["loading"] = {"weights": whole, "model file": file_bytes}
    if split and full:
        made["saving"] = made["optimizer step"] | {"in flight": 4.0 * parameters}
    return made


def file_bytes(model: str | ModelSource, parameters: int) -> float:
    """Returns the size of a model's files if they are here, else 2 bytes per parameter."""
    with contextlib.suppress(ModelError, OSError):
        if isinstance(model, ModelSource):
            return float(model.file_bytes)
        if model not in SHAPES:
            return float(ModelSource.resolve(model).file_bytes)
    return 2.0 * parameters


# oneDNN compiles a matrix kernel for every new shape, and keeps them: 0.5 to 0.6 MB each.
KERNEL, KERNELS = 0.55e6, 1300


def kernels(batches: int, lengths: int) -> float:
    """Bytes of the kernels for so many lengths of micro-batches and of examples: about 12 for
    each of the former and 6 of the latter."""
    return KERNEL * min(12 * batches + 6 * lengths, KERNELS)
