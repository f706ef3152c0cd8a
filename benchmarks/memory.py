"""python benchmarks/memory.py: the planner's memory beside what training really takes.

Each line trains the embedded model on a CPU for a few steps in a process of its own. In use
is its peak with every block of memory taken from the system and given back to it; as run,
the peak of the same run as it is, whose heap has holes. Ratios are predicted / measured.

  --only TEXT   the lines whose name has this in it        --steps N   of each (default 4)
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
METHODS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "LoRA": {"method": "lora"},
    "LoRA int8": {"method": "lora", "quantization": "int8"},
    "LoRA NF4": {"method": "lora", "quantization": "nf4"},
}
CHECKPOINTED = {"activation_checkpointing": True}
LINES = {
    name + (", layers anew" if change else ""): settings | change
    for name, settings in METHODS.items()
    for change in ({}, CHECKPOINTED)
}
LINES |= {
    "full, 8-bit Adam": {"method": "full", "optimizer": "adamw8bit"},
    "full, bfloat16 alone": {"method": "full", "master_weights": False},
    "full, 2 ranks, gather step": {"method": "full", "gather": "step"},
    "full, 2 ranks, gather layer": {"method": "full", "gather": "layer"},
    "LoRA, 2 ranks": {"method": "lora"},
}
# Blocks above 64 KB are then mapped one by one, and unmapped when they are freed.
MAPPED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "131072"}


def main() -> None:
    """Prints the table; as a worker, one run's prediction and peak."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", metavar="TEXT")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(json.loads(options.worker), options.steps)
        return
    print(f"{'GB':30}{'in use':>9}{'predicted':>11}{'':7}{'as run':>9}{'with holes':>12}")
    for name, changes in LINES.items():
        if options.only not in name:
            continue
        mapped, plain = (run(name, changes, options.steps, how) for how in (MAPPED, {}))
        used, taken = mapped["peak"] / 1e9, plain["peak"] / 1e9
        said, holed = mapped["predicted"] / 1e9, plain["holed"] / 1e9
        print(
            f"{name:30}{used:9.2f}{said:11.2f}{said / used:7.2f}"
            f"{taken:9.2f}{holed:12.2f}{holed / taken:7.2f}  {mapped['phase']}",
            flush=True,
        )


def run(name: str, changes: dict[str, Any], steps: int, how: dict[str, str]) -> dict[str, Any]:
    """What a worker, or rank 0 of two, found."""
    command = [sys.executable]
    if "2 ranks" in name:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [__file__, "--steps", str(steps), "--worker", json.dumps(changes)]
    environment = os.environ | how | {"ALPACA_MAPPED": str(int(bool(how)))}
    environment["OMP_NUM_THREADS"] = "1"
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False
    )
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-2000:]}")
    line = next(text for text in done.stdout.splitlines() if text.startswith("{"))
    found: dict[str, Any] = json.loads(line)
    return found


def work(changes: dict[str, Any], steps: int) -> None:
    """Predicts a run's peak, runs it, and prints both."""
    from alpaca_lib import models
    from alpaca_lib.planning import planner
    from alpaca_lib.training import loop
    from alpaca_lib.training.examples import load_data
    from alpaca_lib.training.settings import Settings

    if os.environ["ALPACA_MAPPED"] == "1":
        loop.keep_freed_memory = lambda: None  # it would undo what the environment says
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(
            data_path=str(ROOT / "data" / "alpaca_520.json"),
            output_dir=folder,
            row_length=512,
            rows_per_micro_batch=2,
            examples_per_step=16,
            max_steps=steps,
            **changes,
        )
        size = int(os.environ.get("WORLD_SIZE", "1"))
        data = load_data(settings, models.ModelSource.resolve(settings.model).load_tokenizer())
        machine = planner.Machine("cpu", size, size, rate=1.0, link=1.0)
        plan = planner.plan(settings, machine, planner.Work.of(data.rows))
        lines: list[dict[str, Any]] = []
        loop.train(settings, report=lines.append)
    if lines:
        sums = {
            name: sum(terms.values()) - terms.get("holes", 0.0)
            for name, terms in plan.phases.items()
        }
        phase = max(sums, key=lambda name: sums[name])
        peak = max(line.get("peak_memory_bytes", 0) for line in lines)
        found = {"predicted": sums[phase], "holed": plan.peak, "peak": peak, "phase": phase}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
