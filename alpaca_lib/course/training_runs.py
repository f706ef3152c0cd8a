"""Follows the training run of lesson 03: its live curve, a killed process, what it wrote."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import psutil

from alpaca_lib.course import plots
from alpaca_lib.course.notebooks import Markup, show_table
from alpaca_lib.errors import RunError
from alpaca_lib.launch import launch
from alpaca_lib.training import Settings, free_memory, read_metrics


def find_rank(rank: int) -> psutil.Process | None:
    """Returns the process with this rank in the run that this Python started, or None."""
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it may just have ended
            if child.environ().get("RANK") == str(rank):
                return child
    return None


def follow(settings: Settings, processes: int, kill_after: int = 0) -> list[dict[str, Any]]:
    """Trains in ``processes`` processes, draws the losses live, and returns the metrics' lines.

    After step ``kill_after`` (0: never) the last process is killed with SIGKILL, as the system
    does when memory runs out. Raises LaunchError then, and whenever a process fails.
    """
    folder = Path(settings.output_dir)
    view = plots.LiveLosses(folder)
    for line in launch(settings, processes):
        view.update(line)
        if "loss" in line and line["step"] == kill_after and (victim := find_rank(processes - 1)):
            victim.kill()
    return read_metrics(folder)


def has_room(bytes_needed: float, device: str) -> bool:
    """Returns whether that many bytes are at most 60 % of the device's free memory."""
    free = free_memory(device) or psutil.virtual_memory().available
    return bytes_needed < 0.6 * free


def losses_by_step(lines: Iterable[Mapping[str, Any]]) -> dict[int, float]:
    """Returns {step: training loss} of lines of metrics."""
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def newest_checkpoint(folder: Path) -> int:
    """Returns the step of the newest checkpoint in an output folder; 0 if there is none."""
    return max((int(p.name.split("-")[1]) for p in folder.glob("checkpoint-*")), default=0)


def show_losses(columns: Mapping[str, Mapping[int, float]], steps: Iterable[int]) -> None:
    """Shows {column: {step: loss}} as a table; a column without a step has an empty cell.

    Without any step nothing is shown.
    """
    rows = [
        [step, *(f"{losses[step]:.6f}" if step in losses else "" for losses in columns.values())]
        for step in steps
    ]
    if rows:
        show_table(["step", *columns], rows)


def largest_difference(one: Mapping[int, float], other: Mapping[int, float]) -> float:
    """Returns the largest difference of two losses of the same step; 0.0 if they share none."""
    return max((abs(one[step] - other[step]) for step in one.keys() & other.keys()), default=0.0)


def show_shards(folder: Path, most: int = 4) -> list[int]:
    """Shows the shapes of the first parameters on each rank; returns the numbers that ranks hold.

    A run in one process has no shards: nothing is shown, and the list is empty.
    """
    ranks = read_shards(folder)
    if ranks:
        show_table(
            ["parameter", "full", *(f"process {rank}" for rank in range(len(ranks)))],
            [
                [Markup(f"`{one[0]['name']}`"), one[0]["whole"], *(shard["mine"] for shard in one)]
                for one in list(zip(*ranks, strict=True))[:most]
            ],
        )
    return [sum(math.prod(shard["mine"]) for shard in one) for one in ranks]


def read_shards(folder: Path) -> list[list[dict[str, Any]]]:
    """Returns what each process wrote of its shards, in the order of the ranks.

    One entry per parameter: its name, full shape ("whole") and shape there ("mine"). A run in
    one process has none.
    """
    files = sorted((folder / "shards").glob("rank*.json"), key=lambda f: int(f.stem[4:]))
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


class Freed:
    """Stands for a model whose memory was freed: any use of it raises RunError with the fix.

    >>> net = Freed("run the cell of section 1 that loads it again")
    """

    def __init__(self, fix: str) -> None:
        self._fix = fix

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):  # Python and IPython ask for these
            raise AttributeError(name)
        raise RunError(self._fix)

    def __call__(self, *arguments: Any, **options: Any) -> NoReturn:
        """Raises RunError with the fix."""
        raise RunError(self._fix)
