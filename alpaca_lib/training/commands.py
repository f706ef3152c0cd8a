"""The merge command: an adapter and its base become a model that needs no PEFT."""

from __future__ import annotations

import argparse
from pathlib import Path

from alpaca_lib.command_line import Command


def _add_merge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapter", help="the output folder of a LoRA run")
    parser.add_argument("folder", type=Path, help="where the merged model is saved: a new folder")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a folder that an earlier merge wrote"
    )


def _merge(arguments: argparse.Namespace) -> None:
    from alpaca_lib.training.adapters import merge

    print(f"written: {merge(arguments.adapter, arguments.folder, arguments.overwrite)}")


MERGE = Command(
    "merge",
    "save an adapter and its base as one plain model folder",
    _add_merge,
    _merge,
    examples=("alpaca merge runs/my runs/my-merged", "alpaca merge tloen/alpaca-lora-7b merged"),
    about="Adds W + (alpha / r) B A in float32 and saves it in the base's dtype.",
)
