"""Formats a plan as text: every number with what it is made of."""

from __future__ import annotations

import json

from alpaca_lib.planning.advice import advise, describe
from alpaca_lib.planning.layout import WASTE
from alpaca_lib.planning.planner import Plan, Work
from alpaca_lib.planning.shapes import SHAPES
from alpaca_lib.training.head_loss import CHUNK

_STORED = {
    "none": "2 bytes per parameter",
    "int8": "1 byte per parameter, 4 per row; embedding, norms, head 2",
    "nf4": "9/16 byte per parameter; embedding, norms, head 2",
}


def format_plan(plan: Plan, work: Work) -> str:
    """Returns memory by term and phase, then FLOPs, time, money and layout."""
    settings, machine = plan.settings, plan.machine
    model = f"{settings.model}: {plan.parameters / 1e9:.2f} billion parameters, {settings.method}"
    if settings.quantization != "none":
        model += f" on {settings.quantization}"
    if settings.method == "lora":
        model += f", {plan.trained / 1e6:.1f} million trained"
    batch = f"{plan.batch.tokens:,} tokens, {plan.batch.labels:,} of them with a loss"
    lines = [
        model,
        f"{machine.count} x {machine.name}: {plan.sharding}",
        f"largest micro-batch: {batch}",
        "",
        *_memory_lines(plan),
        "",
        *_time_lines(plan, work),
        "",
        *_command_lines(plan),
    ]
    return "\n".join(lines) + "\n"


def _memory_lines(plan: Plan) -> list[str]:
    width = {phase: max(len(phase), 8) + 2 for phase in plan.phases}
    lines = [f"{'GB per rank':16}" + "".join(f"{phase:>{w}}" for phase, w in width.items())]
    for term, source in _explain_terms(plan).items():
        held = [terms.get(term, 0.0) for terms in plan.phases.values()]
        if any(held):
            cells = [f"{n / 1e9:{w}.2f}" for n, w in zip(held, width.values(), strict=True)]
            lines.append(f"{term:16}" + "".join(cells) + "  " + source)
    totals = [f"{sum(plan.phases[phase].values()) / 1e9:{w}.2f}" for phase, w in width.items()]
    size = f"of {plan.machine.memory / 1e9:.0f} GB" if plan.machine.memory else "(of unknown size)"
    overhead = f" (with {WASTE:.0%} for the allocator, 1 GB for CUDA and NCCL)"
    verdict = "it fits" if plan.fits else "IT DOES NOT FIT"
    return [
        *lines,
        f"{'total':16}" + "".join(totals),
        "",
        f"Needed: {plan.needed / 1e9:.1f} GB {size} per device"
        f"{overhead if plan.machine.on_gpu else ''}: {verdict}.",
    ]


def _explain_terms(plan: Plan) -> dict[str, str]:
    """Returns what each term of memory is made of."""
    settings, shard = plan.settings, plan.sharding.shard
    lora, recompute = settings.method == "lora", settings.activation_checkpointing
    weights = _STORED[settings.quantization] + (f", 1/{shard} of them" if shard > 1 else "")
    if lora:
        weights = f"the frozen base: {weights}; its adapters 2"
    if settings.dtype == "auto":
        weights += " (bfloat16; 4 in float32)"
    shared = "" if lora or shard == 1 else f", shared by {shard} ranks"
    moments = "8" if settings.optimizer == "adamw" else "2 to 8"
    gathered = "two layers, embedding and head, unsharded in bfloat16"
    if plan.sharding.gather_once:
        gathered = "every rank holds the unsharded model and its gradients within a step"
    return {
        "weights": weights,
        "master weights": f"float32, 4 bytes per trained parameter{shared}",
        "gradients": f"in the dtype that the optimizer updates{shared}",
        "optimizer": f"Adam's two moments, {moments} bytes per trained parameter{shared}",
        "all-gathered": gathered,
        "activations": "the input of each layer; the rest is recomputed"
        if recompute
        else "what the backward pass needs of each layer",
        "logits": f"vocabulary-sized scores of {CHUNK} labels at a time, and their gradients",
        "temporary": "gradients being reduced, and the buffers of one operation",
        "kernels": "oneDNN's, compiled for each new shape",
        "fragmentation": "glibc's heap: at worst as much again as the three above",
        "runtime": "Python and its libraries, measured on this machine",
        "model file": "mapped while it is read; the system may unmap it",
    }


def _time_lines(plan: Plan, work: Work) -> list[str]:
    settings, machine = plan.settings, plan.machine
    cost = 4 if settings.method == "lora" else 6
    per_token = f"{plan.flops_per_token:.3g} = {cost} per parameter in a matrix product"
    per_token += f", attention over {work.context:.0f}"
    if plan.computed < 1:
        per_token += f", x {plan.computed:.2f}: a shared prefix is computed once per row"
    if settings.activation_checkpointing:
        per_token += f"; {plan.hardware_flops:.3g} with layers recomputed"
    origin = " (Alpaca's mean, an estimate)" if work == Work() else ""
    time = f"{plan.seconds / 60:.1f} min"
    if plan.seconds >= 1.5 * 3600:
        time = f"{plan.seconds / 3600:.1f} h"
    lines = [
        f"FLOPs per token {per_token}",
        f"tokens          {plan.tokens:,.0f} = {work.rows:,} rows x {work.tokens:.0f}{origin}, "
        f"{plan.steps:,} steps of {settings.examples_per_step}",
        f"time            {time} = {plan.tokens:.3g} tokens x {plan.hardware_flops:.3g} / "
        f"({machine.count} x {plan.peak_rate / 1e12:.3g} TFLOP/s x {plan.reached:.2f})",
        f"MFU             {plan.mfu:.0%} of the peak rate, counted with the FLOPs per token",
    ]
    if plan.waits > 0.01:
        lines.append(f"{'':16}{plan.waits:.0%} of the time waits for transfers between ranks")
    if plan.waits > 0.3:
        lines.append(f"{'':16}more rows_per_micro_batch, or hybrid sharding, waits less")
    if settings.examples_per_step < machine.count:
        lines.append(f"{'':16}examples_per_step: fewer than {machine.count} ranks; raise it")
    if plan.dollars is not None:
        lines.append(f"money           {plan.dollars:,.2f} at {plan.price:g} per GPU hour")
    return lines


def _command_lines(plan: Plan) -> list[str]:
    """Returns the settings and the command that run it, and layouts of other engines."""
    settings, machine = plan.settings, plan.machine
    command = "run settings.json"
    if machine.nodes > 1:
        shape = f"--nodes {machine.nodes} --gpus-per-node {machine.per_node}"
        command = f"cluster slurm settings.json {shape}"
    elif machine.count > 1:
        command = f"launch settings.json --processes {machine.count}"
    lines = [
        "This project runs it:",
        f"  settings.json  {json.dumps(settings.changed())}",
        f"  python -m alpaca_lib.training {command}",
    ]
    if settings.model in SHAPES:
        lines.append(f"  ({settings.model} is a shape: put a folder or hub id in its place)")
    if plan.paper:
        lines += [
            "",
            "On paper, with tensor and pipeline parallelism, which needs another engine",
            "(Megatron-LM, NeMo, torchtitan); bytes by arXiv:2205.05198, layers recomputed:",
        ]
        for way in plan.paper[:3]:
            memory = f"{way.bytes / 1e9:7.1f} GB per GPU"
            lines.append(f"  {way!s:38}{memory}, {way.bubble:.0%} of the time in bubbles")
    elif settings.method == "full" and machine.nodes > 1:
        lines += ["", "No tensor x pipeline x data layout fits these GPUs either."]
    return lines


def format_ways(plan: Plan, work: Work) -> str:
    """Returns the ways of training that fit the plan's machine, one per line."""
    found = advise(plan.settings.model, plan.machine, plan.settings, work)
    if not found:
        return f"No way of training it fits {plan.machine.count} x {plan.machine.name}."
    lines = ["Ways that fit, the most faithful first:"]
    for way in found:
        line = f"  {way.needed / 1e9:7.1f} GB {way.seconds / 60:9.1f} min  {way.why}"
        names = ("activation_checkpointing", "rows_per_micro_batch", "gather", "sharding")
        changed = {name: getattr(way.settings, name) for name in names}
        changed = {k: v for k, v in changed.items() if v != getattr(plan.settings, k)}
        line += f" [{describe(changed)}]" if changed else ""
        lines.append(line)
    return "\n".join(lines)
