"""The plan command: its options, and a table that says of every number where it is from."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from alpaca_lib import models
from alpaca_lib.errors import DataError, ModelError
from alpaca_lib.options import add_flags, from_flags
from alpaca_lib.planning import layout, planner
from alpaca_lib.planning.planner import Plan, Work
from alpaca_lib.planning.shapes import SHAPES
from alpaca_lib.training.examples import load_data
from alpaca_lib.training.loss import CHUNK
from alpaca_lib.training.settings import Settings

ABOUT = f"""What a run needs, before anything is bought: memory by term and phase, FLOPs, time,
money, and how to lay it out. Nothing is downloaded but a hub model's configuration.

  MODEL  a folder, a config.json, a hub id, the embedded smollm2-135m, or a shape:
         {", ".join(SHAPES)}
  GPUS   H100, 8xH100, 4x8xH100 (four nodes of eight), cpu, 2xcpu (two processes); the GPUs of
         data/gpus.yaml, whose rates and sizes are their makers'

Memory is found by running the model's code on shapes, for the largest micro-batch, in each
phase of a step; the phase that needs most counts. Without --data or --rows the examples are
Alpaca's: {planner.ALPACA_ROWS:,} of about {planner.ALPACA_TOKENS:.0f} tokens, three epochs.
"""
_SETTINGS: tuple[str, ...] = (
    *("method", "quantization", "optimizer", "lora_rank", "lora_targets", "max_length"),
    *("row_length", "rows_per_micro_batch", "examples_per_step", "epochs", "max_steps"),
    *("batching", "dtype", "sharding", "gather", "template"),
    *("activation_checkpointing", "master_weights"),
)
_FRESH: dict[str, Any] = {"examples_per_step": 128, "epochs": 3.0}  # Stanford's


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Gives a parser the options of the plan command."""
    parser.description = ABOUT
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", help="what to train (default: that of --settings)")
    parser.add_argument("--gpus", default="cpu", help="the machine (default: cpu, this one's)")
    parser.add_argument("--settings", type=Path, help="a JSON file of Settings to begin with")
    add_flags(parser, Settings, _SETTINGS, **_FRESH)
    parser.add_argument("--data", type=Path, help="count the examples of this file")
    parser.add_argument("--rows", type=int, help="or say how many there are")
    parser.add_argument("--tokens-per-row", type=float, help="and how long, on average")
    parser.add_argument("--price", type=float, help="of one GPU hour; without it no money is named")
    reached = ", ".join(f"{k} {v}" for k, v in planner.REACHED.items())
    parser.add_argument("--reached", type=float, help=f"share of the peak rate ({reached})")
    parser.add_argument("--tokens-per-second", type=float, help="of one device, if you measured it")
    between = planner.BETWEEN_NODES / 1e9
    parser.add_argument(
        "--node-link", type=float, default=between, metavar="GB/S",
        help=f"between nodes, a GPU, one way (default {between:.0f})",
    )  # fmt: skip
    parser.add_argument("--only", action="store_true", help="this plan, without other ways")


def main(args: argparse.Namespace) -> int:
    """Prints the plan; 1 and a line to stderr for settings or a machine that cannot be."""
    try:
        settings, work = _wanted(args)
        made = planner.plan(
            settings, args.gpus, work, reached=args.reached or 0.0,
            tokens_per_second=args.tokens_per_second or 0.0, price=args.price,
            between_nodes=args.node_link * 1e9,
        )  # fmt: skip
        print(table(made, work, args))
        if not args.only:
            print(_ways(made, work))
    except (DataError, ModelError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _wanted(args: argparse.Namespace) -> tuple[Settings, Work]:
    """The settings and examples that the options ask for."""
    if args.settings:
        base = Settings.load(args.settings)
    else:
        base = Settings(data_path=str(args.data or "data.json"), output_dir="out", **_FRESH)
    given = {k: v for k, v in from_flags(args, Settings).items() if v is not None}
    if "max_length" in given:  # a row holds at least one example
        given.setdefault("row_length", max(base.row_length, given["max_length"]))
    elif given.get("row_length", base.max_length) < base.max_length:
        given["max_length"] = given["row_length"]
    settings = base.replace(**given)
    if args.data:
        settings = settings.replace(data_path=str(args.data))
        name = models.DEFAULT_MODEL if settings.model in SHAPES else settings.model
        return settings, Work.of(
            load_data(settings, models.ModelSource.resolve(name).load_tokenizer()).rows
        )
    work = Work()
    if args.rows or args.tokens_per_row:
        work = Work(args.rows or work.rows, args.tokens_per_row or work.tokens)
    return settings, work


def table(made: Plan, work: Work, args: argparse.Namespace | None = None) -> str:
    """The plan as text: memory by term and phase, then FLOPs, time, money and layout."""
    settings, machine = made.settings, made.machine
    kind = settings.method + (f" on {settings.quantization}" * (settings.quantization != "none"))
    lines = [
        f"{settings.model}: {made.parameters / 1e9:.2f} billion parameters, {kind}"
        + (f", {made.trained / 1e6:.1f} million trained" if settings.method == "lora" else ""),
        f"{machine.count} x {machine.name}: {made.ranks}",
        f"largest micro-batch: {made.batch.rows * made.batch.length:,} tokens, of which "
        f"{made.batch.labels:,} have a loss",
        "",
    ]
    width = {name: max(len(name), 8) + 2 for name in made.phases}
    lines.append(f"{'GB of a rank':16}" + "".join(f"{n:>{w}}" for n, w in width.items()))
    for term, why in _WHY.items():
        if any(phase.get(term) for phase in made.phases.values()):
            cells = (f"{made.phases[n].get(term, 0) / 1e9:{w}.2f}" for n, w in width.items())
            lines.append(f"{term:16}" + "".join(cells) + "  " + why(made))
    sums = (f"{sum(made.phases[n].values()) / 1e9:{w}.2f}" for n, w in width.items())
    lines += [f"{'together':16}" + "".join(sums), "", _verdict(made), ""]
    return "\n".join(lines + _time(made, work) + _layout(made))


def _verdict(made: Plan) -> str:
    room = f" (with {layout.WASTE:.0%} that the allocator wastes, 1 GB for CUDA and NCCL)"
    room *= made.machine.on_gpu
    there = f"of {made.machine.memory / 1e9:.0f} GB" if made.machine.memory else "(there: unknown)"
    verdict = "it fits" if made.fits else "IT DOES NOT FIT"
    return f"Needed: {made.needed / 1e9:.1f} GB {there} a device{room}: {verdict}."


def _stored(made: Plan) -> str:
    lora, kind = made.settings.method == "lora", made.settings.quantization
    shard = f", 1/{made.ranks.shard} of them" if made.ranks.shard > 1 else ""
    how = {"none": "2 bytes a parameter", "int8": "1 byte, and 4 a row", "nf4": "9/16 byte"}[kind]
    if kind != "none":
        how += "; embedding, norms, head 2"
    return (f"the frozen base: {how}{shard}; its adapters 2" if lora else how + shard) + _by(made)


def _by(made: Plan) -> str:
    return " (bfloat16; 4 where it computes in float32)" if made.settings.dtype == "auto" else ""


def _shared(made: Plan) -> str:
    split = made.ranks.shard > 1 and made.settings.method == "full"
    return f", shared by {made.ranks.shard} ranks" if split else ""


_WHY: dict[str, Any] = {
    "weights": _stored,
    "master weights": lambda p: "float32, 4 bytes a trained parameter" + _shared(p),
    "gradients": lambda p: "as precise as what the optimizer steps on" + _shared(p),
    "optimizer": lambda p: (
        "Adam's two averages, " + ("8" if p.settings.optimizer == "adamw" else "2 to 8")
        + " bytes a trained parameter" + _shared(p)
    ),
    "gathered layers": lambda p: (
        "every rank has the whole model, and its gradients, within a step" if p.ranks.once
        else "two layers, and what is no layer, whole in bfloat16"
    ),
    "activations": lambda p: (
        "the input of each layer; it is computed anew" if p.settings.activation_checkpointing
        else "what the backward pass needs of each layer"
    ),
    "logits": lambda p: f"the words' scores of {CHUNK} labels at a time, and their gradients",
    "in flight": lambda p: "gradients on their way, and what one operation makes",
    "kernels": lambda p: "oneDNN's, compiled for each new shape",
    "holes": lambda p: "glibc's heap: at worst as much again as the three above",
    "runtime": lambda p: "Python and its libraries, measured here",
    "model file": lambda p: "mapped while it is read; the system may take it back",
}  # fmt: skip


def _time(made: Plan, work: Work) -> list[str]:
    settings, machine = made.settings, made.machine
    lora = settings.method == "lora"
    guess = "" if work.encoded or work != Work() else " (Alpaca's, as far as one knows)"
    head = f"{4 if lora else 6} a parameter in a matrix product, attention over {work.context:.0f}"
    hours = made.seconds / 3600
    spent = f"{hours:.1f} h" if hours >= 1.5 else f"{made.seconds / 60:.1f} min"
    lines = [
        f"FLOPs a token   {made.flops_per_token:.3g} = {head}"
        + (
            f"; {made.hardware_flops:.3g} with layers computed anew"
            * settings.activation_checkpointing
        ),
        f"tokens          {made.tokens:,.0f} = {work.rows:,} rows x {work.tokens:.0f}{guess}, "
        f"{made.steps:,} steps of {settings.examples_per_step}",
        f"time            {spent} = {made.tokens:.3g} tokens x {made.hardware_flops:.3g} / "
        f"({machine.count} x {made.rate / 1e12:.3g} TFLOP/s x {made.reached:.2f})",
        f"MFU             {made.mfu:.0%} of the peak rate, counted on FLOPs a token",
    ]
    if made.waits > 0.01:
        lines.append(f"{'':16}{made.waits:.0%} of the time waits for shards on the links")
    if made.waits > 0.3:
        lines.append(f"{'':16}more rows_per_micro_batch, or hybrid sharding, lets it wait less")
    if settings.examples_per_step < machine.count:
        lines.append(
            f"                examples_per_step: fewer than {machine.count} ranks; raise it"
        )
    if made.dollars is not None:
        lines.append(f"money           {made.dollars:,.2f} at {made.price:g} a GPU hour")
    return [*lines, ""]


def _layout(made: Plan) -> list[str]:
    """How to run it: the settings and the command; and what needs another engine."""
    settings, machine = made.settings, made.machine
    told = settings.changed()
    run = "python -m alpaca_lib.training"
    if machine.count == 1:
        command = f"{run} run settings.json"
    elif machine.nodes == 1:
        command = f"{run} launch settings.json --processes {machine.count}"
    else:
        shape = f"--nodes {machine.nodes} --gpus-per-node {machine.per_node}"
        command = f"{run} cluster slurm settings.json {shape}"
    lines = ["This project runs it:", f"  settings.json  {json.dumps(told)}", f"  {command}"]
    if settings.model in SHAPES:
        lines.append(f"  ({settings.model} is a shape: put a folder or hub id in its place)")
    if made.paper:
        lines += ["", "On paper, with tensor and pipeline parallelism, which needs another engine"]
        lines += ["(Megatron-LM, NeMo, torchtitan); bytes by arXiv:2205.05198, layers anew:"]
        lines += [
            f"  {way!s:38}{way.bytes / 1e9:7.1f} GB a GPU, {way.bubble:.0%} of the time in bubbles"
            for way in made.paper[:3]
        ]
    elif settings.method == "full" and machine.nodes > 1:
        lines += ["", "No tensor x pipeline x data layout fits these GPUs either."]
    return [*lines, ""]


def _ways(made: Plan, work: Work) -> str:
    """The ways that fit the machine, one a line."""
    found = planner.advise(made.settings.model, made.machine, made.settings, work)
    if not found:
        return f"No way of training it fits {made.machine.count} x {made.machine.name}."
    lines = ["Ways that fit, the most faithful first:"]
    names = ("activation_checkpointing", "rows_per_micro_batch", "gather", "sharding")
    for way in found:
        changed = [n for n in names if getattr(way.settings, n) != getattr(made.settings, n)]
        more = ", ".join(f"{n} {json.dumps(getattr(way.settings, n))}" for n in changed)
        lines.append(
            f"  {way.needed / 1e9:7.1f} GB {way.seconds / 60:9.1f} min  {way.why}"
            + (f" [{more}]" if more else "")
        )
    return "\n".join(lines)


if __name__ == "__main__":
    made_parser = argparse.ArgumentParser(prog="python -m alpaca_lib.training plan")
    add_arguments(made_parser)
    sys.exit(main(made_parser.parse_args()))
