"""Advises: ways of training that fit a machine, and what to change in a run that does not."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from alpaca_lib.models import ModelSource, Placement
from alpaca_lib.planning import layout, planner
from alpaca_lib.planning.layout import Machine
from alpaca_lib.planning.planner import Plan, Work, plan
from alpaca_lib.training.packing import Encoded
from alpaca_lib.training.settings import Settings

_Changes = dict[str, Any]
_QLORA: _Changes = {"method": "lora", "quantization": "nf4"}
# Ways of training, the one that changes least first, and what each gives up.
WAYS: dict[str, _Changes] = {
    "all weights, float32 masters and moments": {"method": "full"},
    "all weights, Adam's moments in 8 bits": {"method": "full", "optimizer": "adamw8bit"},
    "all weights in bfloat16 alone: small updates are lost in rounding": {
        "method": "full",
        "optimizer": "adamw8bit",
        "master_weights": False,
    },
    "LoRA: the base is frozen, adapters learn": {"method": "lora"},
    "LoRA on a base in 8 bits": {"method": "lora", "quantization": "int8"},
    "LoRA on a base in 4 bits (QLoRA)": _QLORA,
}
_PLAIN: _Changes = {"quantization": "none", "optimizer": "adamw", "master_weights": True}
# Settings that cost only time, tried in this order.
_RECOMPUTE: _Changes = {"activation_checkpointing": True}
_LEAST: _Changes = {**_RECOMPUTE, "rows_per_micro_batch": 1, "gather": "layer"}
_ACROSS: _Changes = {"sharding": "full"}
THRIFT = [{}, _RECOMPUTE, _RECOMPUTE | _ACROSS, _LEAST, _LEAST | _ACROSS]
# What check_memory suggests, each with its predicted memory.
_8BIT: _Changes = {**_LEAST, "optimizer": "adamw8bit"}
_SUGGESTIONS = [_RECOMPUTE, _LEAST, _8BIT, {"method": "lora"}, _QLORA, _QLORA | _RECOMPUTE]
PLENTY = 24  # a machine with that many times the bytes of the model's file is not checked


def advise(
    model: str, gpus: str | Machine, settings: Settings | None = None, work: Work | None = None
) -> list[Plan]:
    """Returns a plan for each way of training that fits, the most faithful first.

    Each has the fastest settings that fit, and what it gives up in ``why``.
    """
    base = settings or Settings(data_path="data.json", output_dir="out")
    found = []
    for why, changes in WAYS.items():
        way = base.replace(model=model, **(_PLAIN | changes))
        if not plan(way.replace(**THRIFT[-1]), gpus, work).fits:
            continue
        plans = (plan(way.replace(**thrift), gpus, work) for thrift in THRIFT)
        found.append(replace(next(one for one in plans if one.fits), why=why))
    return found


def check_memory(
    settings: Settings,
    placement: Placement,
    ranks: int,
    rows: Sequence[Encoded] = (),
    source: ModelSource | None = None,
) -> str | None:
    """Returns what to change if a run would not fit this machine, each with its predicted peak.

    None if the run fits, or if that cannot be predicted.
    """
    try:
        free = planner.free_memory(placement.device)
        file_bytes = layout.file_bytes(source or settings.model, 0)
        if not settings.memory_check or (file_bytes and file_bytes * PLENTY < free):
            return None
        on_gpu = placement.device.startswith("cuda")
        machine = Machine(
            name="cuda" if on_gpu else "cpu",
            count=ranks,
            per_node=max(int(os.environ.get("LOCAL_WORLD_SIZE", ranks)), 1),
            memory=free + planner.resident() if free and not on_gpu else free,
            rate=1.0,  # only memory is of interest
        )
        work = Work.of(rows) if rows else None
        settings = settings.replace(dtype=placement.dtype)
        wanted = plan(settings, machine, work, source=source)
        if wanted.fits:
            return None
        lines = []
        for label, other, machines in _suggest(settings, machine):
            predicted = plan(other, machines, work, source=source)
            verdict = "fits" if predicted.fits else "does not fit"
            lines.append(f"{predicted.needed / 1e9:8.1f} GB  {verdict:12}  {label}")
    except Exception:  # a prediction must not stop what it cannot predict
        return None
    return (
        f"{settings.model}, {settings.method}: about {wanted.needed / 1e9:.1f} GB are needed on "
        f"each {machine.device} device, {machine.memory / 1e9:.1f} GB are free. With other "
        "settings:\n" + "\n".join(lines)
    )


def describe(changes: _Changes) -> str:
    """Returns settings as text: ``optimizer adamw8bit, master_weights false``."""
    return ", ".join(f"{name} {str(value).lower()}" for name, value in changes.items())


def _suggest(settings: Settings, machine: Machine) -> Iterator[tuple[str, Settings, Machine]]:
    for changes in _SUGGESTIONS:
        if (other := settings.replace(**changes)) != settings:
            yield describe(changes), other, machine
    if machine.on_gpu and settings.quantization == "none":
        for count in (2 * machine.count, 8 * machine.count):
            per_node = max(machine.per_node, min(count, 8))
            yield f"{count} processes", settings, replace(machine, count=count, per_node=per_node)
