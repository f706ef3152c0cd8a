"""Machines and sharding: the bytes that each rank of a run holds, phase by phase."""

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
from alpaca_lib.training import loop as loop  # what a run loads: see library_bytes()
from alpaca_lib.training.process import resident
from alpaca_lib.training.settings import Settings
from alpaca_lib.training.sharding import gathers_once, mesh_shape, splits_weights

# What torch's allocator does not count on a GPU: the CUDA context with NCCL's buffers, in
# bytes, and the share of its blocks that stays unused.
CONTEXT_BYTES, WASTE = 1e9, 0.05


@dataclass(frozen=True)
class Machine:
    """GPUs of one kind, or processes on a CPU.

    >>> parse_machine("4x8xH100")
    Machine(name='H100', count=32, per_node=8, memory=8e10, rate=9.89e14, link=4.5e11)
    """

    name: str  # a GPU of data/gpus.yaml, or cpu
    count: int = 1  # GPUs, or processes, of all nodes
    per_node: int = 1
    memory: float = 0.0  # bytes per GPU or process; 0: unknown
    rate: float = 0.0  # FLOP/s of each, its peak; 0: to be measured
    link: float = 0.0  # bytes/s between two of a node, one way

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
        """The number of nodes."""
        return self.count // self.per_node

    def needed(self, peak: float) -> float:
        """Returns the bytes that a device must have for a predicted peak."""
        return peak * (1 + WASTE) + CONTEXT_BYTES if self.on_gpu else peak


def parse_machine(text: str) -> Machine:
    """Returns the machine of a text: H100, 8xH100, 4x8xH100 (nodes first), cpu, 2xcpu (processes).

    Raises SettingsError, with the nearest names of data/gpus.yaml.
    """
    number = r"(?:(\d+)\s*[x*]\s*)?"
    parts = re.fullmatch(rf"{number}{number}([a-z][\w .-]*)", text.strip(), re.I)
    if not parts:
        raise SettingsError(f"gpus {text!r}: write 8xH100, 4x8xH100 (nodes first), or cpu")
    numbers = [int(n) for n in parts.groups()[:2] if n] or [1]
    if 0 in numbers:
        raise SettingsError(f"gpus {text!r}: at least one is needed")
    if len(numbers) == 1:
        count = numbers[0]
        numbers = [count // 8, 8] if count > 8 else [1, count]
        if count > 8 and count % 8:
            raise SettingsError(f"gpus {text!r}: how many per node? write nodes first, 3x4xH100")
    nodes, per_node = numbers
    name = _normalize(parts[3])
    if name == "cpu":
        return Machine("cpu", nodes * per_node, per_node)
    table = flops.gpus()
    known = {_normalize(key): key for key in table}
    if name not in known:
        near = [k for k in known if k.startswith(name) or name.startswith(k)]
        near = near or difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = " or ".join(known[n] for n in near) or ", ".join([*table, "cpu"])
        raise SettingsError(f"gpus {text!r}: no GPU {parts[3]!r} in {flops.GPUS.name}; use {hint}")
    facts = table[known[name]]
    return Machine(
        name=known[name],
        count=nodes * per_node,
        per_node=per_node,
        memory=facts["memory_gb"] * 1e9,
        rate=facts["bf16_tflops"] * 1e12,
        link=facts["link_gb_s"] * 1e9,
    )


def _normalize(name: str) -> str:
    return re.sub(r"nvidia|geforce|amd|instinct|[\s._-]", "", name.lower())


@dataclass(frozen=True)
class ShardingLayout:
    """How the weights of a run are divided over its ranks.

    >>> str(ShardingLayout(ranks=16, shard=8, gather_once=False))
    'HSDP: 8 ranks of a node hold a shard each, 2 nodes a copy each'
    """

    ranks: int  # processes of the run
    shard: int  # ranks that hold one copy of the weights together; 1: not sharded
    gather_once: bool  # parameters are all-gathered once per step, not layer by layer

    @classmethod
    def of(cls, settings: Settings, machine: Machine, parameters: int) -> ShardingLayout:
        """Returns the layout of build() and sharding.mesh_of(): quantised weights are not split."""
        is_sharded = splits_weights(settings.quantization, machine.count)
        _, ranks = mesh_shape(settings.sharding, machine.count, machine.per_node)
        shard = ranks if is_sharded else 1
        free = machine.memory - 4 * parameters / shard
        gather_once = is_sharded and settings.method == "full"
        gather_once = gather_once and gathers_once(settings.gather, parameters, free)
        return cls(machine.count, shard, gather_once)

    def received_bytes(self, method: str, parameters: int, micro_batches: int) -> float:
        """Returns the bytes that a rank receives per step; adapters are too small to count.

        Parameters are all-gathered in bfloat16, once or for each forward and backward pass;
        gradients are reduced in float32, once or for each backward pass.
        """
        if self.shard == 1:
            return 0.0
        gathers = 1 if self.gather_once else 2 * micro_batches
        reductions = 1 if self.gather_once else micro_batches
        return float((2 * gathers + (4 * reductions if method == "full" else 0)) * parameters)

    def __str__(self) -> str:
        if self.ranks == 1:
            return "one process"
        if self.shard == 1:
            return f"data parallel: the full base on each of {self.ranks} ranks, adapters averaged"
        if self.shard == self.ranks:
            return f"FSDP2: {self.ranks} ranks hold a shard each"
        nodes = self.ranks // self.shard
        return f"HSDP: {self.shard} ranks of a node hold a shard each, {nodes} nodes a copy each"


Terms = dict[str, float]  # bytes of a rank by what they hold


def phases(
    settings: Settings,
    weights: Sequence[Weight],
    foot: Footprint,
    itemsize: int,
    sharding: ShardingLayout,
    accumulates: bool,
) -> dict[str, Terms]:
    """Returns {phase: {term: bytes}} of a rank.

    ``itemsize``: bytes per element that the model computes with; ``accumulates``: a step has
    several micro-batches.
    """
    lora, shard = settings.method == "lora", sharding.shard
    total = sum(w.numel for w in weights)
    in_layers = sum(w.numel for w in weights if w.in_layer)
    root, layer = total - in_layers, in_layers / max(foot.layers, 1)
    trained = foot.trained if lora else [w.numel for w in weights]
    split = 1 if lora else shard  # adapters are not sharded
    stored = 4 if settings.master_weights else itemsize
    has_copies = stored != itemsize and split == 1  # bfloat16 in the model, float32 masters
    held: Terms = {"weights": 0.0, "master weights": 0.0}
    if lora:
        base = sum(w.bytes(itemsize, settings.quantization) for w in weights)
        held["weights"] = base / shard + sum(trained) * itemsize
    elif has_copies or stored == itemsize:  # else the shards of the masters are the weights
        held["weights"] = total * itemsize / shard
    if stored != itemsize:
        held["master weights"] = sum(trained) * stored / split
    held["optimizer"] = sum(
        _moment_bytes(settings.optimizer, numel / split, stored) for numel in trained
    )
    gradients = sum(trained) * stored / split
    if has_copies:
        gradients += 4 * max(trained)  # one parameter's, converted to float32
    gathered = in_transit = root_in_transit = 0.0
    if shard > 1:
        gathered = itemsize * (total if sharding.gather_once else root + 2 * layer)
        if not lora:
            in_transit, root_in_transit = (itemsize + 4) * layer, (itemsize + 4) * root
            if sharding.gather_once and accumulates:
                gathered += 4 * total
    backward = {
        **held,
        # Gradients of masters persist; others are allocated in a step's first backward pass.
        "gradients": gradients if has_copies or accumulates else 0.0,
        "all-gathered": gathered,
        "activations": foot.kept,
        "logits": foot.logits,
        "temporary": max(foot.peak - foot.kept - foot.logits, 0.0) + in_transit,
    }
    end = {
        **held,
        "gradients": gradients,
        "all-gathered": gathered,
        "temporary": foot.tail + root_in_transit,
    }
    flat = 4.0 * sum(trained) if split == 1 and sharding.ranks > 1 else 0.0  # all-reduced at once
    if settings.optimizer == "adamw8bit" and not foot.on_gpu:
        # bitsandbytes steps on a CPU in five float32 copies of a parameter; on a GPU in none.
        flat = max(flat, 5 * 4.0 * max(trained) / split)
    step = {**held, "gradients": gradients, "temporary": flat}
    if max(sum(end.values()), sum(step.values())) < sum(backward.values()):
        return {"forward and backward": backward, "optimizer step": step}
    return {"forward and backward": backward, "end of backward": end, "optimizer step": step}


def _moment_bytes(optimizer: str, numel: float, stored: int) -> float:
    """Returns the bytes of Adam's two moments; in 8 bits 256 elements share a float32 scale."""
    if optimizer == "adamw":
        return 2 * stored * numel
    return numel * (2 + 2 * 4 / 256) if numel >= 4096 else 8 * numel


@dataclass(frozen=True)
class OnPaper:
    """A layout that needs another engine: tensor x pipeline x data parallel.

    >>> str(OnPaper(tensor=8, pipeline=4, data=4, bytes=50e9, bubble=0.09))
    'tensor 8 x pipeline 4 x data 4'
    """

    tensor: int  # GPUs that share each matrix
    pipeline: int  # stages of consecutive layers
    data: int  # copies of the model
    bytes: float  # per GPU
    bubble: float  # share of the time in which a stage waits for another one

    def __str__(self) -> str:
        return f"tensor {self.tensor} x pipeline {self.pipeline} x data {self.data}"


def on_paper(
    weights: Sequence[Weight], foot: Footprint, heads: int, machine: Machine, micro_batches: int
) -> list[OnPaper]:
    """Returns layouts of full bfloat16 training that fit a cluster, most data parallel first.

    Tensor x pipeline divide weights and float32 gradients, and the data-parallel ranks also
    masters and Adam: 6 + 12/d bytes per parameter (Megatron-LM's distributed optimizer). Layers
    are recomputed, their inputs divided by sequence parallelism (arXiv:2205.05198); the first
    stage of p holds those of p micro-batches; (p - 1) / (m + p - 1) of the time is bubbles.
    """
    parameters = sum(w.numel for w in weights)
    fitting = []
    for tensor in (1, 2, 4, 8, 16):
        for pipeline in (1, 2, 4, 8, 16, 32, 64):
            cut = tensor * pipeline
            if machine.per_node % tensor or heads % tensor or foot.layers % pipeline:
                continue
            if machine.count % cut:
                continue
            data = machine.count // cut
            held = parameters / cut * (6 + 12 / data) + foot.peak / tensor
            each = max(micro_batches // data, 1)
            if not machine.memory or machine.needed(held) <= machine.memory:
                bubble = (pipeline - 1) / (each + pipeline - 1)
                fitting.append(OnPaper(tensor, pipeline, data, held, bubble))
    return sorted(fitting, key=lambda way: (-way.data, way.bubble, way.tensor))


def library_bytes(settings: Settings) -> float:
    """Loads what a run loads and returns the bytes that Python then has."""
    if settings.method == "lora":
        require("peft")
    if settings.quantization != "none" or settings.optimizer == "adamw8bit":
        require("bitsandbytes")
    return float(resident())


def add_cpu_terms(
    found: dict[str, Terms],
    settings: Settings,
    sharding: ShardingLayout,
    parameters: int,
    kernels: float,
    file_bytes: float,
) -> dict[str, Terms]:
    """Returns the phases with what only main memory holds, and those of loading and saving.

    Compiled kernels, a fragmented heap, the model's file while it is mapped, and on rank 0 of
    a sharded run the full model.
    """
    backward = found["forward and backward"]
    is_sharded, full = sharding.shard > 1, settings.method == "full"
    phases = {name: {**terms, "kernels": kernels} for name, terms in found.items()}
    if platform.libc_ver()[0] == "glibc":
        # glibc cannot reuse a free block for an aligned one of its size if small ones lie next
        # to it: at worst a micro-batch takes its memory twice.
        reused = backward["activations"] + backward["logits"] + backward["temporary"]
        phases["forward and backward"]["fragmentation"] = reused
    stored = 4 if full and settings.master_weights else 2
    loaded = float(stored * parameters) if is_sharded else backward["weights"]
    phases["loading"] = {"weights": loaded, "model file": file_bytes}
    if is_sharded and full:
        phases["saving"] = {**phases["optimizer step"], "temporary": 4.0 * parameters}
    return phases


def file_bytes(model: str | ModelSource, parameters: int) -> float:
    """Returns the size of a model's files if they are on this machine, else 2 per parameter."""
    with contextlib.suppress(ModelError, OSError):
        if isinstance(model, ModelSource):
            return float(model.file_bytes)
        if model not in SHAPES:
            return float(ModelSource.resolve(model).file_bytes)
    return 2.0 * parameters


# oneDNN compiles a matrix kernel for every new shape and keeps it: 0.5 to 0.6 MB each.
KERNEL_BYTES, MOST_KERNELS = 0.55e6, 1300


def kernel_bytes(micro_batches: int, lengths: int) -> float:
    """Returns the bytes of compiled kernels: about 12 per length of a micro-batch, and 6 per
    length of an example."""
    return KERNEL_BYTES * min(12 * micro_batches + 6 * lengths, MOST_KERNELS)
