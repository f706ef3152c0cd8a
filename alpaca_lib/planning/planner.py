"""Predicts what a run needs, how long it takes and where it fits, before it starts.

Memory is that of the phase that needs most, not the sum of all; what a micro-batch holds is
found by running the model's code on shapes (alpaca_lib.planning.footprint). Steps,
micro-batches, padding and sharding come from the functions that the engine itself calls.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple

from alpaca_lib.models import ModelSource, Placement, place
from alpaca_lib.planning import layout
from alpaca_lib.planning.footprint import Batch, measure_footprint
from alpaca_lib.planning.layout import Machine, OnPaper, ShardingLayout, Terms, parse_machine
from alpaca_lib.planning.shapes import Weight, build_empty, list_weights, read_config
from alpaca_lib.training import attention, flops, packing
from alpaca_lib.training.micro_batches import StepPlan, can_share, plan_step, split_step
from alpaca_lib.training.packing import Encoded, count_labels, count_steps
from alpaca_lib.training.prefixes import Segment, attention_context, list_segments
from alpaca_lib.training.process import free_memory, resident
from alpaca_lib.training.settings import Settings

ALPACA_ROWS, ALPACA_TOKENS = 52_002, 130.0
# The share of peak FLOP/s that a step reaches: NVIDIA's and PyTorch's own recipes for 7B to 8B
# models reach 39 to 42 % of an H100; on a CPU the peak is its measured rate of matrix products.
REACHED = {"cuda": 0.40, "cpu": 0.50}
SLOWDOWN = {"none": 1.0, "int8": 2.0, "nf4": 1.25}  # by dequantising the base
BETWEEN_NODES = 50e9  # bytes/s per GPU, one way: 400 Gb/s, as nodes of eight have
VARIATION = 0.5  # of lengths that are not known: their standard deviation / their mean


@dataclass(frozen=True)
class Work:
    """The training examples of a run; Alpaca's by default.

    >>> Work(rows=1000, tokens=300.0, labels=0.4)
    >>> Work.of(load_data(settings, tokenizer).rows)
    """

    rows: int = ALPACA_ROWS  # examples
    tokens: float = ALPACA_TOKENS  # per example, on average
    labels: float = 0.5  # share of the tokens that have a loss
    encoded: Sequence[Encoded] = ()  # the examples themselves, if known

    @classmethod
    def of(cls, encoded: Sequence[Encoded]) -> Work:
        """Returns the work of encoded examples."""
        total = sum(len(row["input_ids"]) for row in encoded)
        labels = sum(count_labels(row) for row in encoded)
        return cls(len(encoded), total / len(encoded), labels / total, encoded)

    @property
    def context(self) -> float:
        """The length of the example that a token is in, averaged over tokens."""
        lengths = [len(row["input_ids"]) for row in self.encoded]
        return sum(n * n for n in lengths) / sum(lengths) if lengths else self.tokens


@dataclass(frozen=True)
class Plan:
    """What a run needs: memory in bytes of one rank, time in seconds of the full run.

    >>> predicted = plan(Settings(data_path="d.json", output_dir="out"), "8xH100", price=2.5)
    >>> predicted.fits, predicted.needed / 1e9, predicted.seconds / 60, predicted.dollars
    """

    settings: Settings
    machine: Machine
    sharding: ShardingLayout
    phases: dict[str, Terms]  # {phase: {term: bytes}}
    batch: Batch  # the micro-batch of a rank that needs most
    parameters: int
    trained: int  # parameters that are updated
    computed: float  # share of the tokens that are computed: a shared prefix once per row
    flops_per_token: float  # that training needs, of all tokens
    hardware_flops: float  # per token, with recomputed layers
    tokens: float  # of all epochs
    steps: int
    peak_rate: float  # FLOP/s of a device
    reached: float  # share of peak_rate that is assumed
    seconds: float  # of the run; transfers overlap with computing
    waits: float  # share of the seconds in which a GPU waits for transfers
    mfu: float  # model FLOPs utilisation (arXiv:2204.02311)
    price: float | None = None  # per GPU hour
    paper: tuple[OnPaper, ...] = ()  # layouts of another engine, for full training on nodes
    why: str = ""  # what this way of training gives up, see advise()

    @property
    def memory(self) -> Terms:
        """The terms of the phase that needs most, in bytes."""
        return max(self.phases.values(), key=lambda terms: sum(terms.values()))

    @property
    def peak(self) -> float:
        """The bytes of that phase."""
        return sum(self.memory.values())

    @property
    def needed(self) -> float:
        """The bytes that a device should have; the system unmaps the model's file by itself."""
        peak = max(sum(t.values()) - t.get("model file", 0.0) for t in self.phases.values())
        return self.machine.needed(peak)

    @property
    def fits(self) -> bool:
        """Whether the machine has them, as far as its memory is known."""
        return not self.machine.memory or self.needed <= self.machine.memory

    @property
    def dollars(self) -> float | None:
        """What the GPUs cost, if their price is known."""
        return self.price and self.price * self.machine.count * self.seconds / 3600


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
    """Plans a run on ``gpus`` (8xH100, 4x8xH100, cpu ...).

    ``reached``: the assumed share of peak FLOP/s; ``tokens_per_second``: the measured rate of
    one device, instead; ``price`` of a GPU hour; ``between_nodes``: bytes/s per GPU, one way.
    Raises ModelError, SettingsError.
    """
    machine = parse_machine(gpus) if isinstance(gpus, str) else gpus
    work = work or Work()
    dtype = _compute_dtype(settings, machine)
    model = _read_model(settings.model, dtype, machine.device, settings.max_length, source)
    runtime = 0.0 if machine.on_gpu else layout.library_bytes(settings)
    if not machine.memory and (free := free_memory("cpu")):
        machine = replace(machine, memory=(free + resident()) / machine.count)
    # Memory: what a rank holds, and what its largest micro-batch adds.
    parameters = sum(w.numel for w in model.weights)
    sharding = ShardingLayout.of(settings, machine, parameters)
    batches, number, computed, context = sample_steps(settings, work, machine, model.by_document)
    measured = [
        (measure_footprint(model.config, settings, machine.device, dtype, batch), batch)
        for batch in batches
    ]
    foot, batch = max(measured, key=lambda pair: max(pair[0].peak, pair[0].tail))
    phases = layout.phases(settings, model.weights, foot, dtype.itemsize, sharding, number > 1)
    per_step = settings.examples_per_step
    steps = count_steps(work.rows, per_step, settings.epochs, settings.max_steps)
    if not machine.on_gpu:
        lengths = {len(row["input_ids"]) for row in work.encoded}
        seen = min(len(lengths) or 1000, per_step * steps)
        kernels = layout.kernel_bytes(number * steps, seen) if dtype.itemsize == 2 else 0.0
        file_bytes = layout.file_bytes(source or settings.model, parameters)
        phases = layout.add_cpu_terms(phases, settings, sharding, parameters, kernels, file_bytes)
        phases = {name: {**terms, "runtime": runtime} for name, terms in phases.items()}
    # Time: FLOPs over the rate that is reached, or bytes over the slowest link.
    forward = computed * flops.flops_per_token(model.empty, "full", context) / 3
    needed_flops = computed * flops.flops_per_token(model.empty, settings.method, context)
    hardware = needed_flops + (forward if settings.activation_checkpointing else 0.0)
    rate = machine.rate or flops.gemm_rate("cpu", dtype, 0.2) / machine.count
    reached = (reached or REACHED[machine.device]) / SLOWDOWN[settings.quantization]
    if tokens_per_second:
        reached = tokens_per_second * hardware / rate
    tokens = work.rows * work.tokens * steps / count_steps(work.rows, per_step, epochs=1.0)
    computing = tokens * hardware / (rate * reached * machine.count)
    received = sharding.received_bytes(settings.method, parameters, number)
    link = machine.link if sharding.shard <= machine.per_node else min(between_nodes, machine.link)
    seconds = max(computing, steps * received / (link or 1e10))
    return Plan(
        settings=settings,
        machine=machine,
        sharding=sharding,
        phases=phases,
        batch=batch,
        parameters=parameters,
        trained=sum(foot.trained) or parameters,
        computed=computed,
        flops_per_token=needed_flops,
        hardware_flops=hardware,
        tokens=tokens,
        steps=steps,
        peak_rate=rate,
        reached=reached,
        seconds=seconds,
        waits=1 - computing / seconds,
        mfu=tokens * needed_flops / (seconds * machine.count * rate),
        price=price,
        paper=_layouts_on_paper(settings, machine, model, batch, number),
    )


class _Model(NamedTuple):
    config: Any
    empty: Any  # the model on the meta device
    dtype: Any  # torch.dtype
    weights: list[Weight]
    by_document: bool  # its attention works within documents


@lru_cache(8)
def _read_model(
    name: str, dtype: Any, device: str, max_length: int, source: ModelSource | None
) -> _Model:
    config = source.config if source else read_config(name)
    empty = build_empty(config, dtype)
    attention.attach(empty, device, max_length)
    return _Model(config, empty, dtype, list_weights(empty), attention.is_attached(empty))


def _compute_dtype(settings: Settings, machine: Machine) -> Any:
    """Returns the torch.dtype to compute in; every GPU of the table has bfloat16."""
    if not machine.on_gpu:
        return place("cpu", settings.dtype).torch_dtype
    name = "bfloat16" if settings.dtype == "auto" else settings.dtype
    return Placement("cuda", name, "").torch_dtype


class _Steps(NamedTuple):
    """What the micro-batches of a run's first steps are."""

    largest: tuple[Batch, ...]  # of a rank: with the most tokens, and with the most labels
    number: int  # the most micro-batches of a step
    computed: float  # share of the examples' tokens that are computed
    context: float  # see attention_context


def sample_steps(settings: Settings, work: Work, machine: Machine, by_document: bool) -> _Steps:
    """Returns what the engine makes of the first 50 steps of known examples, else of a step of
    average ones."""
    packed, multiple = settings.batching == "pack", packing.padding_multiple(machine.device)
    most = labelled = Batch(1, 0, (), 0)
    number, tokens = 1, 0
    segments: list[Segment] = []
    for plan, labels in _sample_plans(settings, work, machine.count, by_document):
        number, tokens = max(number, len(plan.groups)), tokens + sum(plan.lengths)
        for group in filter(None, chain.from_iterable(plan.groups)):
            row = list_segments(plan.lengths, group, plan.prefixes)
            segments += row
            own = tuple(segment.tokens for segment in row)
            length = sum(own) if packed else max(own)
            batch = Batch(
                rows=1 if packed else len(own),
                length=-(-length // multiple) * multiple,
                documents=own if packed else (),
                labels=sum(labels[i] for i in group),
                parents=tuple(segment.parent for segment in row) if plan.prefixes else (),
            )
            most = max(most, batch, key=lambda batch: (batch.tokens, batch.labels))
            labelled = max(labelled, batch, key=lambda batch: (batch.labels, batch.tokens))
    computed = sum(segment.tokens for segment in segments) / max(tokens, 1)
    context = attention_context(segments) if computed < 1 else work.context
    return _Steps(tuple(dict.fromkeys((most, labelled))), number, computed, context)


def _sample_plans(
    settings: Settings, work: Work, ranks: int, by_document: bool
) -> Iterator[tuple[StepPlan, list[int]]]:
    """Yields steps: how each is computed, and the label tokens of its examples."""
    rows, per_step = work.rows, settings.examples_per_step
    if settings.batching == "pack" and work.encoded:
        share = can_share(settings, by_document)
        for step in range(min(count_steps(rows, per_step, 1.0, settings.max_steps), 50)):
            chosen = [
                work.encoded[i] for i in packing.step_order(rows, per_step, settings.seed, step)
            ]
            plan = plan_step(settings, chosen, ranks, by_document, share)
            yield plan, [count_labels(row) for row in chosen]
        return
    if settings.batching == "pack":
        # The mean of n examples lies within 4 standard errors, s / sqrt(n), in all steps.
        longest = work.tokens * (1 + 4 * VARIATION / math.sqrt(per_step))
        tokens = min(math.ceil(longest), settings.max_length)
        labels = math.ceil(tokens * work.labels)
    else:  # the longest example decides how long all rows are
        tokens = max((len(row["input_ids"]) for row in work.encoded), default=settings.max_length)
        labels = math.ceil(work.tokens * work.labels)
    lengths = [tokens] * min(per_step, rows)
    groups = split_step(settings, lengths, ranks, by_document)
    yield StepPlan(lengths, groups), [labels] * len(lengths)


def _layouts_on_paper(
    settings: Settings, machine: Machine, model: _Model, batch: Batch, number: int
) -> tuple[OnPaper, ...]:
    if settings.method == "lora" or machine.nodes == 1:
        return ()
    settings = settings.replace(activation_checkpointing=True)
    foot = measure_footprint(model.config, settings, machine.device, model.dtype, batch)
    heads = model.config.get_text_config().num_attention_heads
    return tuple(layout.on_paper(model.weights, foot, heads, machine, number * machine.count))
