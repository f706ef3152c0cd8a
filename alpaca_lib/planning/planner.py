"""Before anything is bought or started: what a run needs, how long it takes, where it fits.

    python -m alpaca_lib.training plan --model llama-7b --gpus 8xH100

Memory is that of the phase that needs most, not the sum of all; what a micro-batch holds is
found by running the model's code on shapes (alpaca_lib.planning.footprint).
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from alpaca_lib.models import ModelSource, Placement, place
from alpaca_lib.planning import layout
from alpaca_lib.planning.footprint import Batch, footprint
from alpaca_lib.planning.layout import Machine, OnPaper, Ranks, Terms
from alpaca_lib.planning.shapes import config_of, empty, weights_of
from alpaca_lib.training import flops
from alpaca_lib.training.packing import (
    Encoded,
    count_labels,
    count_steps,
    micro_batches,
    padding_multiple,
    step_order,
)
from alpaca_lib.training.process import free_memory, resident
from alpaca_lib.training.settings import Settings
from alpaca_lib.training.sharding import gathers_once

ALPACA_ROWS, ALPACA_TOKENS = 52_002, 130.0
# Of a device's peak, what matrix products and all between them reach together: NVIDIA's and
# PyTorch's own recipes for 7B to 8B models 39 to 42 % of an H100; on a CPU of what its
# matrix products alone were measured at. A quantised base costs more time.
REACHED = {"cuda": 0.40, "cpu": 0.50}
SLOWER = {"none": 1.0, "int8": 2.0, "nf4": 1.25}
BETWEEN_NODES = 50e9  # bytes/s a GPU, one way: 400 Gb/s, as machines of eight have


@dataclass(frozen=True)
class Work:
    """The examples of a run: how many, and how many tokens of each count."""

    rows: int = ALPACA_ROWS
    tokens: float = ALPACA_TOKENS  # of an example, on average
    labels: float = 0.5  # of its tokens, those with a loss
    encoded: Sequence[Encoded] = ()  # the examples themselves, if they are there

    @classmethod
    def of(cls, encoded: Sequence[Encoded]) -> Work:
        """That of encoded examples."""
        total = sum(len(row["input_ids"]) for row in encoded)
        labels = sum(count_labels(row) for row in encoded)
        return cls(len(encoded), total / len(encoded), labels / total, encoded)

    @property
    def context(self) -> float:
        """The mean length of the example that a token is in."""
        lengths = [len(row["input_ids"]) for row in self.encoded]
        return sum(n * n for n in lengths) / sum(lengths) if lengths else self.tokens


@dataclass(frozen=True)
class Plan:
    """What a run needs; memory is bytes of one rank, by term, in the phase that needs most."""

    settings: Settings
    machine: Machine
    ranks: Ranks
    phases: dict[str, Terms]
    batch: Batch
    parameters: int
    trained: int
    flops_per_token: float  # that training needs
    hardware_flops: float  # with what is computed anew
    tokens: float  # of the whole run, epochs and all
    steps: int
    seconds: float
    mfu: float
    waits: float  # the share of the time in which a GPU waits for the others' shards
    rate: float  # FLOP/s of a device, its peak
    reached: float  # the share of it that is reckoned with
    price: float | None  # of a GPU hour
    paper: list[OnPaper] = field(default_factory=list)
    why: str = ""

    @property
    def memory(self) -> Terms:
        """The terms of the phase that needs most."""
        return max(self.phases.values(), key=lambda terms: sum(terms.values()))

    @property
    def peak(self) -> float:
        """Bytes a rank needs at the most."""
        return sum(self.memory.values())

    @property
    def needed(self) -> float:
        """Bytes a device should have for it. A mapped file goes out of memory by itself."""
        most = max(sum(t.values()) - t.get("model file", 0.0) for t in self.phases.values())
        return layout.needed(most, self.machine)

    @property
    def dollars(self) -> float | None:
        """What the GPUs cost, if their price is known."""
        return self.price and self.price * self.machine.count * self.seconds / 3600

    @property
    def fits(self) -> bool:
        """Whether the machine has that."""
        return not self.machine.memory or self.needed <= self.machine.memory


def plan(
    settings: Settings,
    gpus: str | Machine,
    work: Work | None = None,
    *,
    reached: float = 0.0,
    tokens_per_second: float = 0.0,
    price: float | None = None,
    between_nodes: float = BETWEEN_NODES,
    source: ModelSource | None = None,
) -> Plan:
    """The plan of a run on ``gpus`` (8xH100, 4x8xH100, cpu ...).

    ``reached``: the share of peak to reckon with; ``tokens_per_second``: a measured rate of
    one device, instead; ``price``: of a GPU hour. Raises ModelError, ValueError.
    """
    machine = layout.machine_of(gpus) if isinstance(gpus, str) else gpus
    work = work or Work()
    dtype = _dtype(settings, machine)
    config, model = _shape(settings.model, dtype, source)
    runtime = 0.0 if machine.on_gpu else layout.libraries(settings)
    weights = weights_of(model)
    whole = sum(w.numel for w in weights)
    if not machine.memory:  # this machine's main memory
        free = free_memory("cpu")
        machine = replace(machine, memory=free and (free + resident()) / machine.count)
    batch, per_step = _batch(settings, work, machine, model)
    foot = footprint(config, settings, machine.device, dtype, batch)
    shards = 4 * whole / Ranks.of(settings, machine, False).shard
    once = gathers_once(settings.gather, whole, machine.memory - shards)
    ranks = Ranks.of(settings, machine, once)
    several = per_step > 1
    phases = layout.phases(settings, weights, foot, dtype.itemsize, ranks, several)
    epochs = settings.max_steps * settings.examples_per_step / work.rows or settings.epochs
    steps = count_steps(work.rows, settings.examples_per_step, settings.epochs, settings.max_steps)
    if not machine.on_gpu:
        lengths = {len(row["input_ids"]) for row in work.encoded}
        seen = min(len(lengths) or 1000, settings.examples_per_step * steps)
        compiled = layout.kernels(per_step * steps, seen) if dtype.itemsize == 2 else 0.0
        file_bytes = layout.file_bytes(source or settings.model, whole)
        phases = layout.on_cpu(phases, settings, ranks, whole, compiled, file_bytes)
        for terms in phases.values():
            terms["runtime"] = runtime
    cost = flops.flops_per_token(model, settings.method, work.context)
    again = flops.flops_per_token(model, "full", work.context) / 3  # a forward pass
    hardware = cost + again * settings.activation_checkpointing
    rate = machine.rate or flops.gemm_rate("cpu", dtype, 0.2) / machine.count
    reached = reached or REACHED[machine.device]
    alone = tokens_per_second or rate * reached / hardware / SLOWER[settings.quantization]
    tokens = work.rows * work.tokens * epochs
    computing = tokens / (alone * machine.count)
    moved = _moved(ranks, whole, per_step, settings.method == "full")
    moving = steps * moved / _link(ranks, machine, between_nodes)
    seconds = max(computing, moving)
    paper: list[OnPaper] = []
    if settings.method == "full" and machine.count > machine.per_node:
        thrifty = settings.replace(activation_checkpointing=True)
        foot = footprint(config, thrifty, machine.device, dtype, batch)
        heads = config.get_text_config().num_attention_heads
        paper = layout.on_paper(weights, foot, heads, machine, per_step * machine.count)
    return Plan(
        settings, machine, ranks, phases, batch, whole, sum(foot.trained) or whole, cost,
        hardware, tokens, steps, seconds, tokens * cost / (seconds * machine.count * rate),
        1 - computing / seconds, rate, alone * hardware / rate, price, paper,
    )  # fmt: skip


@lru_cache(8)
def _shape(name: str, dtype: Any, source: ModelSource | None) -> tuple[Any, Any]:
    """Returns a model's configuration, and the model without its weights."""
    config = source.config if source else config_of(name)
    return config, empty(config, dtype)


def _dtype(settings: Settings, machine: Machine) -> Any:
    """The dtype that the model computes in; every GPU of the table has bfloat16."""
    if not machine.on_gpu:
        return place("cpu", settings.dtype).torch_dtype
    chosen = "bfloat16" if settings.dtype == "auto" else settings.dtype
    return Placement("cuda", chosen, "").torch_dtype


def _batch(settings: Settings, work: Work, machine: Machine, model: Any) -> tuple[Batch, int]:
    """The largest micro-batch of a rank, and how many a step has."""
    ranks, rows = machine.count, settings.rows_per_micro_batch
    multiple = padding_multiple(machine.device)

    def whole(length: float) -> int:
        return math.ceil(length / multiple) * multiple

    if settings.batching != "pack":
        lengths = [len(row["input_ids"]) for row in work.encoded]
        length = whole(max(lengths, default=settings.max_length))
        rows = min(rows, math.ceil(settings.examples_per_step / ranks))
        number = math.ceil(settings.examples_per_step / (rows * ranks))
        return Batch(rows, length, (), math.ceil(rows * work.tokens * work.labels)), number
    attended = getattr(model, "_supports_attention_backend", False)
    most = (rows if attended else 1) * settings.row_length
    if not work.encoded:
        total = settings.examples_per_step * work.tokens / ranks
        number = math.ceil(total / most)
        length = most if number > 1 else min(math.ceil(1.25 * total), most)
        documents = max(round(length / work.tokens), 1)
        each = (length // documents,) * documents
        return Batch(1, whole(length), each, math.ceil(length * work.labels)), number
    steps = count_steps(work.rows, settings.examples_per_step, 1.0, settings.max_steps)
    largest, number = Batch(1, 0, (), 0), 1
    for step in range(min(steps, 50)):
        order = step_order(work.rows, settings.examples_per_step, settings.seed, step)
        lengths = [len(work.encoded[i]["input_ids"]) for i in order]
        dealt = micro_batches(settings, lengths, ranks, attended)
        number = max(number, len(dealt))
        for group in (group for groups in dealt for group in groups):
            mine = tuple(lengths[i] for i in group)
            if whole(sum(mine)) > largest.length:
                labels = sum(count_labels(work.encoded[order[i]]) for i in group)
                largest = Batch(1, whole(sum(mine)), mine, labels)
    return largest, number


def _moved(ranks: Ranks, parameters: int, per_step: int, full: bool) -> float:
    """Bytes that a rank receives in a step: shards in bfloat16, once a step or twice a
    micro-batch, and where all train gradients in float32, as often."""
    if ranks.shard == 1:
        return 0.0
    times = 1 if ranks.once else per_step
    return (2 * times * (1 if ranks.once else 2) + 4 * times * full) * parameters


def _link(ranks: Ranks, machine: Machine, between_nodes: float) -> float:
    within = ranks.shard <= machine.per_node
    return (machine.link if within else min(between_nodes, machine.link)) or 1e10


# The ways that a run can be, the one that changes least first, and what each gives up.
WAYS: dict[str, dict[str, Any]] = {
    "all weights, float32 masters and averages": {"method": "full"},
    "all weights, Adam's averages in 8 bits": {"method": "full", "optimizer": "adamw8bit"},
    "all weights in bfloat16 alone: small updates are lost in rounding": {
        "method": "full", "optimizer": "adamw8bit", "master_weights": False,
    },
    "LoRA: the base is frozen, adapters learn": {"method": "lora"},
    "LoRA on a base in 8 bits": {"method": "lora", "quantization": "int8"},
    "LoRA on a base in 4 bits (QLoRA)": {"method": "lora", "quantization": "nf4"},
}  # fmt: skip
_FRESH: dict[str, Any] = {"quantization": "none", "optimizer": "adamw", "master_weights": True}
# What costs time only; tried in this order.
_ANEW: dict[str, Any] = {"activation_checkpointing": True}
_LEAST: dict[str, Any] = _ANEW | {"rows_per_micro_batch": 1, "gather": "layer"}
THRIFT: list[dict[str, Any]] = [{}, _ANEW, _ANEW | {"sharding": "full"}, _LEAST]
THRIFT.append(_LEAST | {"sharding": "full"})


def advise(
    model: str, gpus: str | Machine, settings: Settings | None = None, work: Work | None = None
) -> list[Plan]:
    """The ways of training a model that fit the machine, the most faithful first; each in the
    fastest setting that fits, with its reason in ``why``."""
    base = settings or Settings(data_path="data.json", output_dir="out")
    found = []
    for why, changes in WAYS.items():
        wanted = base.replace(model=model, **(_FRESH | changes))
        if not plan(wanted.replace(**THRIFT[-1]), gpus, work).fits:
            continue
        for thrift in THRIFT:
            made = plan(wanted.replace(**thrift), gpus, work)
            if made.fits:
                found.append(replace(made, why=why))
                break
    return found


# A run whose memory is so many times its model's file is not looked at more closely.
PLENTY = 24


def check_memory(
    settings: Settings,
    placement: Placement,
    here_size: int,
    encoded: Sequence[Encoded] = (),
    source: ModelSource | None = None,
) -> str | None:
    """What to change if a run would not fit here, each with its predicted peak; None if it
    fits, or if that cannot be told."""
    try:
        free = free_memory(placement.device)
        size = layout.file_bytes(source or settings.model, 0)
        if not settings.memory_check or (size and size * PLENTY < free):
            return None
        on_gpu = placement.device.startswith("cuda")
        local = int(os.environ.get("LOCAL_WORLD_SIZE", here_size))
        memory = free if on_gpu else free and free + resident()
        name = "cuda" if on_gpu else "cpu"
        machine = Machine(name, here_size, max(local, 1), memory, rate=1.0, link=1e10)
        work = Work.of(encoded) if encoded else None
        settings = settings.replace(dtype=placement.dtype)
        wanted = plan(settings, machine, work, source=source)
        if wanted.fits:
            return None
        changes: dict[str, dict[str, Any]] = {
            "activation_checkpointing true": _ANEW,
            "and rows_per_micro_batch 1": _LEAST,
            "and optimizer adamw8bit": _LEAST | {"optimizer": "adamw8bit"},
            "method lora": {"method": "lora"},
            "method lora, quantization nf4": WAYS["LoRA on a base in 4 bits (QLoRA)"],
            "and activation_checkpointing true": WAYS["LoRA on a base in 4 bits (QLoRA)"]
            | THRIFT[1],
        }
        lines = []
        for words, change in changes.items():
            if all(getattr(settings, key) == value for key, value in change.items()):
                continue
            other = plan(settings.replace(**change), machine, work, source=source)
            verdict = "fits" if other.fits else "does not fit"
            lines.append(f"  {words:36}{other.needed / 1e9:8.1f} GB  {verdict}")
        if on_gpu and settings.quantization == "none":
            for size in (2 * here_size, 8 * here_size):
                more = replace(machine, count=size, per_node=max(local, min(size, 8)))
                other = plan(settings, more, work, source=source)
                verdict = "fits" if other.fits else "does not fit"
                lines.append(f"  {f'{size} processes':36}{other.needed / 1e9:8.1f} GB  {verdict}")
    except Exception:  # a prediction must not stop what it cannot predict
        return None
    return (
        f"{settings.model}, {settings.method}: about {wanted.needed / 1e9:.1f} GB are needed on "
        f"each {machine.device} device, {memory / 1e9:.1f} GB are there. With other settings:\n"
        + "\n".join(lines)
    )
