"""The commands that start and follow training runs: train, launch, watch, cluster."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from alpaca_lib.command_line import Command
from alpaca_lib.files import write_text
from alpaca_lib.launch import cluster, launcher
from alpaca_lib.options import add_flags, from_flags
from alpaca_lib.training.settings import Settings

FLAGS = "Every setting is a flag, too; flags take precedence over the file. "


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds a settings file and a flag per setting to a parser."""
    parser.add_argument("settings", type=Path, nargs="?", help="a JSON file of Settings")
    add_flags(parser, Settings)


def run_train(arguments: argparse.Namespace) -> None:
    """Trains in this process and prints each line of metrics as JSON."""
    launcher.end_with_launcher()
    launcher.run(_read_settings(arguments), report=_print_line)


def add_launch_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the launch command to a parser."""
    add_train_arguments(parser)
    parser.add_argument("--processes", type=int, default=2, help="how many (default 2)")
    parser.add_argument("--port", type=int, default=0, help="for rank 0; default: a free one")


def run_launch(arguments: argparse.Namespace) -> None:
    """Trains in several processes and prints each line of metrics as JSON."""
    settings = _read_settings(arguments)
    _print_lines(launcher.launch(settings, arguments.processes, arguments.port))


def add_watch_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the watch command to a parser."""
    parser.add_argument("folder", type=Path, help="its output_dir")
    parser.add_argument(
        "--timeout", type=float, default=0.0, help="seconds without a new line; 0: no limit"
    )


def run_watch(arguments: argparse.Namespace) -> None:
    """Prints the metrics of a run until it ends."""
    _print_lines(launcher.watch(arguments.folder, arguments.timeout))


def add_cluster_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the cluster command to a parser."""
    parser.add_argument("kind", choices=list(cluster.KINDS))
    parser.add_argument("settings", type=Path, help="a JSON file of Settings, seen by all nodes")
    parser.add_argument("-o", "--out", type=Path, help="a file to write, instead of the screen")
    add_flags(parser, cluster.Cluster)


def run_cluster(arguments: argparse.Namespace) -> None:
    """Prints or writes the file that starts a run on a cluster, with notes on stderr."""
    machines = cluster.Cluster(**from_flags(arguments, cluster.Cluster))
    for note in cluster.notes(arguments.kind, Settings.load(arguments.settings), machines):
        print(f"note: {note}", file=sys.stderr)
    text = cluster.render(arguments.kind, arguments.settings, machines)
    print(f"written: {write_text(arguments.out, text)}" if arguments.out else text)


def _read_settings(arguments: argparse.Namespace) -> Settings:
    flags = from_flags(arguments, Settings)
    if arguments.settings is None:
        return Settings(**flags)
    return Settings.load(arguments.settings).replace(**flags)


def _print_line(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


def _print_lines(lines: Iterable[dict[str, Any]]) -> None:
    for line in lines:
        _print_line(line)


TRAIN = Command(
    "train",
    "train in this process, or as one rank of torchrun",
    add_train_arguments,
    run_train,
    examples=(
        "alpaca train settings.json",
        "alpaca train --data_path my.json --output_dir runs/my --method lora",
    ),
    about=FLAGS + "Started again, a run resumes from its newest checkpoint.",
)
LAUNCH = Command(
    "launch",
    "train in several processes of this machine",
    add_launch_arguments,
    run_launch,
    examples=(
        "alpaca launch settings.json --processes 4",
        "alpaca launch settings.json --processes 2 --sharding full",
    ),
    about=FLAGS + "The processes share the weights (FSDP2).",
)
WATCH = Command(
    "watch",
    "follow a run that something else started",
    add_watch_arguments,
    run_watch,
    examples=("alpaca watch runs/my", "alpaca watch runs/my --timeout 600"),
    about="Prints each line of metrics of a run, until its model is saved.",
)
CLUSTER = Command(
    "cluster",
    "write the file that starts a run on a cluster",
    add_cluster_arguments,
    run_cluster,
    examples=(
        "alpaca cluster slurm settings.json --nodes 2 --out run.sbatch",
        "alpaca cluster skypilot settings.json --gpu A100-80GB --volume s3://mine",
    ),
    about="Writes a bash script (torchrun, slurm) or YAML (skypilot, kubernetes).",
)
