"""The commands that start and follow training runs: train, launch, watch, cluster."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from alpaca_lib.command_line import Command
from alpaca_lib.files import write_text
from alpaca_lib.launch import cluster, launcher
from alpaca_lib.options import add_flags, from_flags
from alpaca_lib.training.settings import Settings

FLAGS = """
Every setting is a flag, too; flags take precedence over the file. Started again, a run resumes
from its newest checkpoint."""


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("settings", type=Path, nargs="?", help="a JSON file of Settings")
    add_flags(parser, Settings)


def _train(arguments: argparse.Namespace) -> None:
    launcher.end_with_launcher()
    launcher.run(_read_settings(arguments), report=_print_line)


def _add_launch(parser: argparse.ArgumentParser) -> None:
    _add_train(parser)
    parser.add_argument("--processes", type=int, default=2, help="how many (default 2)")
    parser.add_argument("--port", type=int, default=0, help="for rank 0; default: a free one")


def _launch(arguments: argparse.Namespace) -> None:
    settings = _read_settings(arguments)
    for line in launcher.launch(settings, arguments.processes, arguments.port):
        _print_line(line)


def _add_watch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="its output_dir")
    parser.add_argument("--timeout", type=float, default=0.0, help="seconds without a new line")


def _watch(arguments: argparse.Namespace) -> None:
    for line in launcher.watch(arguments.folder, arguments.timeout):
        _print_line(line)


def _add_cluster(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", choices=list(cluster.KINDS))
    parser.add_argument("settings", type=Path, help="a JSON file of Settings, seen by all nodes")
    parser.add_argument("-o", "--out", type=Path, help="a file to write, instead of the screen")
    add_flags(parser, cluster.Cluster)


def _cluster(arguments: argparse.Namespace) -> None:
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


TRAIN = Command(
    "train",
    "train in this process, or as one rank of torchrun",
    _add_train,
    _train,
    examples=(
        "alpaca train settings.json",
        "alpaca train --data_path my.json --output_dir runs/my --method lora",
    ),
    about=FLAGS,
)
LAUNCH = Command(
    "launch",
    "train in several processes of this machine",
    _add_launch,
    _launch,
    examples=(
        "alpaca launch settings.json --processes 4",
        "alpaca launch settings.json --processes 2 --sharding full",
    ),
    about=FLAGS,
)
WATCH = Command(
    "watch",
    "follow a run that something else started",
    _add_watch,
    _watch,
    examples=("alpaca watch runs/my", "alpaca watch runs/my --timeout 600"),
)
CLUSTER = Command(
    "cluster",
    "write the file that starts a run on a cluster",
    _add_cluster,
    _cluster,
    examples=(
        "alpaca cluster slurm settings.json --nodes 2 --out run.sbatch",
        "alpaca cluster skypilot settings.json --gpu A100-80GB --volume s3://mine",
    ),
)
