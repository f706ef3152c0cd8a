"""python -m alpaca_lib.training COMMAND: train, watch, plan, merge, or write a cluster's files.

  run SETTINGS.json      trains as the file says: one process under plain python, as many as
                         torchrun starts under torchrun; started again, it goes on
  launch SETTINGS.json   the same in --processes processes of this machine
  watch FOLDER           follows the metrics of a run that something else has started
  cluster KIND SETTINGS  prints the file that starts it elsewhere: torchrun, slurm,
                         skypilot or kubernetes
  plan                   memory, FLOPs, time and layout of a run, before anything is bought
  merge ADAPTER FOLDER   a plain model folder of an adapter and its base

Every command has a --help. The settings are those of alpaca_lib.training.settings.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from alpaca_lib.launch import cluster, launcher
from alpaca_lib.options import add_flags, from_flags
from alpaca_lib.planning import plan_table
from alpaca_lib.training.settings import Settings


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m alpaca_lib.training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="train as a settings file says")
    run.add_argument("settings", type=Path, help="a JSON file of Settings")
    launch = commands.add_parser("launch", help="the same in several processes of this machine")
    launch.add_argument("settings", type=Path, help="a JSON file of Settings")
    launch.add_argument("--processes", type=int, default=2, help="how many (default 2)")
    launch.add_argument("--port", type=int, default=0, help="for rank 0; default: a free one")
    watch = commands.add_parser("watch", help="follow a run that something else has started")
    watch.add_argument("folder", type=Path, help="its output_dir")
    watch.add_argument(
        "--timeout", type=float, default=0.0, help="seconds without a new line; default: for ever"
    )
    files = commands.add_parser("cluster", help="write the file that starts a run elsewhere")
    files.add_argument("kind", choices=list(cluster.KINDS))
    files.add_argument("settings", type=Path, help="a JSON file of Settings, seen by all nodes")
    files.add_argument("-o", "--out", type=Path, help="a file, not the screen")
    add_flags(files, cluster.Cluster)
    plan_table.add_arguments(
        commands.add_parser(
            "plan",
            help="what a run needs: memory, FLOPs, time, money, layout",
            description=plan_table.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )
    merge = commands.add_parser("merge", help="a plain model folder of an adapter and its base")
    merge.add_argument("adapter", help="the folder that a LoRA run made")
    merge.add_argument("folder", type=Path, help="where the model goes")
    return made


def main(arguments: list[str]) -> int:
    """Runs the command line; the exit code is 0 only if it did what was asked."""
    from alpaca_lib.errors import DataError, ModelError

    options = parser().parse_args(arguments)
    expected: tuple[type[Exception], ...] = (DataError, ModelError, ValueError)
    expected += (launcher.LaunchError, OSError)
    if options.command in ("run", "merge"):
        from alpaca_lib.errors import (
            AdapterError,
            CheckpointError,
            NotEnoughMemory,
            TrackerError,
            TrainingStopped,
        )

        expected += (AdapterError, CheckpointError, NotEnoughMemory, TrainingStopped, TrackerError)
    try:
        return COMMANDS[options.command](options) or 0
    except expected as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        return 130


def _run(options: argparse.Namespace) -> None:
    launcher.end_with_launcher()
    from alpaca_lib.launch import run

    run(Settings.load(options.settings), report=lambda line: print(json.dumps(line), flush=True))


def _launch(options: argparse.Namespace) -> None:
    _show(launcher.launch(Settings.load(options.settings), options.processes, options.port))


def _show(lines: Iterable[dict[str, Any]]) -> None:
    for line in lines:
        print(json.dumps(line), flush=True)


def _cluster(options: argparse.Namespace) -> None:
    machines = cluster.Cluster(**from_flags(options, cluster.Cluster))
    for note in cluster.notes(options.kind, Settings.load(options.settings), machines):
        print(f"note: {note}", file=sys.stderr)
    text = cluster.render(options.kind, options.settings, machines)
    if options.out:
        options.out.write_text(text, encoding="utf-8")
        print(f"written: {options.out}")
    else:
        print(text)


def _merge(options: argparse.Namespace) -> None:
    from alpaca_lib.training.adapters import merge

    print(f"written: {merge(options.adapter, options.folder)}")


COMMANDS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "run": _run,
    "launch": _launch,
    "watch": lambda options: _show(launcher.watch(options.folder, options.timeout)),
    "cluster": _cluster,
    "plan": plan_table.main,
    "merge": _merge,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
