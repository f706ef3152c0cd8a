"""The plan command: its options, and the settings and examples that they describe."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpaca_lib.command_line import Command
from alpaca_lib.models import DEFAULT_MODEL, ModelSource
from alpaca_lib.options import Options, add_flags, from_flags, option
from alpaca_lib.planning.shapes import SHAPES
from alpaca_lib.training.settings import Settings

if TYPE_CHECKING:
    from alpaca_lib.planning.planner import Work

ABOUT = f"""
Predicts what a run needs before it starts: memory by term and phase, FLOPs, time, money and
layout. Nothing is downloaded but a hub model's configuration.

  MODEL  a folder, a config.json, a hub id, the embedded {DEFAULT_MODEL}, or a shape:
         {", ".join(SHAPES)}
  GPUS   H100, 8xH100, 4x8xH100 (four nodes of eight), cpu, 2xcpu (two processes); the GPUs of
         data/gpus.yaml, whose rates and sizes are their makers'

Memory is measured by running the model's code on shapes, for the largest micro-batch, in each
phase of a step; the phase that needs most counts.
"""
_STANFORD: dict[str, Any] = {"examples_per_step": 128, "epochs": 3.0}


class PlanOptions(Options):
    """What a plan needs to know apart from the run's settings."""

    gpus: str = option("cpu", "GPUS; cpu is this machine")
    settings: Path | None = option(None, "a JSON file of Settings to start from")
    data: Path | None = option(None, "count the examples of this file")
    rows: int = option(0, "or give the number of examples; 0: Alpaca's", least=0)
    tokens_per_row: float = option(0.0, "and their mean number of tokens; 0: Alpaca's", least=0)
    price: float | None = option(None, "of one GPU hour; without it no money is named", least=0)
    reached: float = option(0.0, "share of peak FLOP/s; 0: as published recipes reach", least=0)
    tokens_per_second: float = option(0.0, "of one device, if measured", least=0)
    node_link: float = option(50.0, "GB/s between nodes per GPU, one way", above=0)
    only: bool = option(False, "this plan, without other ways of training")


def _add_plan(parser: argparse.ArgumentParser) -> None:
    add_flags(parser, PlanOptions)
    add_flags(parser, Settings, **_STANFORD)


def _plan(arguments: argparse.Namespace) -> None:
    from alpaca_lib.planning import plan_table, planner

    options = PlanOptions(**from_flags(arguments, PlanOptions))
    settings = _read_settings(options, from_flags(arguments, Settings))
    work = _count_work(options, settings)
    predicted = planner.plan(
        settings,
        options.gpus,
        work,
        reached=options.reached,
        tokens_per_second=options.tokens_per_second,
        price=options.price,
        between_nodes=options.node_link * 1e9,
    )
    print(plan_table.format_plan(predicted, work))
    if not options.only:
        print(plan_table.format_ways(predicted, work))


def _read_settings(options: PlanOptions, flags: dict[str, Any]) -> Settings:
    if options.settings:
        base = Settings.load(options.settings)
    else:
        base = Settings(data_path="data.json", output_dir="out", **_STANFORD)
    if options.data:
        flags["data_path"] = str(options.data)
    if "max_length" in flags:  # a row holds at least one example
        flags.setdefault("row_length", max(base.row_length, flags["max_length"]))
    elif flags.get("row_length", base.max_length) < base.max_length:
        flags["max_length"] = flags["row_length"]
    return base.replace(**flags)


def _count_work(options: PlanOptions, settings: Settings) -> Work:
    from alpaca_lib.planning.planner import Work
    from alpaca_lib.training.examples import load_data

    if options.data:
        name = DEFAULT_MODEL if settings.model in SHAPES else settings.model
        return Work.of(load_data(settings, ModelSource.resolve(name).load_tokenizer()).rows)
    return Work(options.rows or Work.rows, options.tokens_per_row or Work.tokens)


PLAN = Command(
    "plan",
    "what a run needs: memory, FLOPs, time, money, layout",
    _add_plan,
    _plan,
    examples=(
        "alpaca plan --model llama-7b --gpus 4xA100-80",
        "alpaca plan --settings settings.json --gpus cpu --only",
    ),
    about=ABOUT,
)
