"""Tries whether two processes can train together here: gloo, FSDP, a checkpoint of both.

    python -m alpaca_lib.launch.probe FOLDER     one rank of the trial

On Linux it is known. Elsewhere torch.distributed is hardly tested by its makers, so a run in
several processes begins with this trial, once per Python.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

from alpaca_lib.launch.local_ranks import LocalRanks, free_port

MOST_SECONDS = 120.0  # of the trial; 10 to 20 are usual, most of them to import torch
_said: set[str] = set()


def usable_processes(wanted: int, device: str = "auto") -> int:
    """Returns how many processes a run can have here: ``wanted``, or 1 and prints why.

    ``device``: of the run's settings. Outside Linux it is tried, once per Python.
    """
    if wanted <= 1 or sys.platform == "linux":
        return wanted
    from alpaca_lib.models import place

    named = place(device).device
    reason, note = "", ""
    if named == "mps" and device == "mps":
        reason = 'torch.distributed has no backend for Apple GPUs; device "cpu" can take several'
    elif named.startswith("cuda"):
        reason = _find_nccl_fault()
    else:
        reason = find_gloo_fault()
        if named == "mps":
            note = f"{wanted} processes compute on the CPU: torch.distributed has no backend for "
            note += "Apple GPUs"
    if reason:
        _say_once(f"1 process instead of {wanted}: {reason}")
        return 1
    if note:
        _say_once(note)
    return wanted


def _say_once(text: str) -> None:
    if text not in _said:
        _said.add(text)
        print(text, flush=True)


def _find_nccl_fault() -> str:
    import torch.distributed as c10d

    if c10d.is_available() and c10d.is_nccl_available():
        return ""
    return "several GPU processes need NCCL, which this torch does not have (none for Windows has)"


@cache
def find_gloo_fault() -> str:
    """Returns why two processes cannot train together on this machine's CPU; empty if they can."""
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        open(Path(folder, "log"), "w+", encoding="utf-8", errors="replace") as log,
    ):
        command = [sys.executable, "-m", __name__, folder]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}
        ranks = LocalRanks(command, 2, free_port(), Path(folder), log, environment)
        deadline = time.monotonic() + MOST_SECONDS
        try:
            while ranks.poll() is None and time.monotonic() < deadline:
                time.sleep(0.1)
            in_time = ranks.returncode is not None
        finally:
            ranks.stop(0.0)
        if ranks.returncode == 0:
            return ""
        log.seek(0)
        lines = [line.strip() for line in log.read().splitlines() if line.strip()]
    last = lines[-1][:200] if lines and in_time else f"no end after {MOST_SECONDS:.0f} s"
    return f"two gloo processes do not work together here ({last})"


def check_rank(folder: Path) -> None:
    """Takes one sharded step and saves one checkpoint, as one of two ranks."""
    import torch
    from torch import nn

    from alpaca_lib.models import Placement
    from alpaca_lib.training import checkpoints, sharding

    class Tiny(nn.Module):
        """Two layers, found as decoder layers are."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            """Returns the sum of both layers' outputs."""
            return sum(layer(inputs).sum() for layer in self.layers)

    with sharding.distributed("cpu") as dist:
        torch.manual_seed(0)
        loaded, module = Tiny(), Tiny()
        sharding.shard(module, module, Placement("cpu", "float32", "a trial"), dist)
        sharding.load_into_shards(module, loaded if dist.is_rank_zero else None, "cpu", dist)
        module(torch.ones(2, 8)).backward()
        for parameter in module.parameters():
            gradient = sharding.local_shard(parameter.grad)
            if not bool((gradient == 2).all()):
                raise RuntimeError(f"a gradient of FSDP is {gradient.tolist()}, not 2 everywhere")
        saver = checkpoints.Saver(folder, dist)
        path = saver.save(1, {"model": module.state_dict()}, {})
        checkpoints.load(path, {"model": module.state_dict()}, dist)


if __name__ == "__main__":
    check_rank(Path(sys.argv[1]))
