"""The merge command: an adapter and its base become a model that needs no PEFT."""

from __future__ import annotations

import argparse
from pathlib import Path

from alpaca_lib.command_line import Command


def add_merge_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the merge command to a parser."""
    parser.add_argument("adapter", help="the output folder of a LoRA run")
    parser.add_argument("folder", type=Path, help="where the merged model is saved")


def run_merge(arguments: argparse.Namespace) -> None:
    """Saves the merged model and prints its folder."""
    from alpaca_lib.training.adapters import merge

    print(f"written: {merge(arguments.adapter, arguments.folder)}")


MERGE = Command(
    "merge",
    "save an adapter and its base as one plain model folder",
    add_merge_arguments,
    run_merge,
    examples=("alpaca merge runs/my runs/my-merged", "alpaca merge tloen/alpaca-lora-7b merged"),
    about="Adds W + (alpha / r) B A in float32 and saves it in the base's dtype.",
)
