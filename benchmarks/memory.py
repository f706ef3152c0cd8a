"""Compares the planner's prediction of memory with the memory that training takes.

python benchmarks/memory.py

Each line trains the embedded model on a CPU for a few steps in a separate process. "In use" is
the peak if every block of memory is mapped from the system and unmapped when it is freed; "as
run" is the peak of the same run with the default allocator, whose heap is fragmented. Ratios
are predicted / measured.

  --only TEXT   only lines whose name contains this        --steps N   per line (default 4)
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
    name + (", checkpointed" if change else ""): settings | change
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
# glibc then maps blocks above 64 KB one by one, and unmaps them when they are freed.
MAPPED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "131072"}


def main() -> None:
    """Prints the table; as a worker, prints one run's prediction and peak."""
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
    print(f"{'GB':30}{'in use':>9}{'predicted':>11}{'':7}{'as run':>9}{'fragmented':>12}")
    for name, changes in LINES.items():
        if options.only not in name:
            continue
        mapped, plain = (run(name, changes, options.steps, env) for env in (MAPPED, {}))
        used, taken = mapped["peak"] / 1e9, plain["peak"] / 1e9
        predicted, holed = mapped["predicted"] / 1e9, plain["holed"] / 1e9
        print(
            f"{name:30}{used:9.2f}{predicted:11.2f}{predicted / used:7.2f}"
            f"{taken:9.2f}{holed:12.2f}{holed / taken:7.2f}  {mapped['phase']}",
            flush=True,
        )


def run(
    name: str, changes: dict[str, Any], steps: int, allocator: dict[str, str]
) -> dict[str, Any]:
    """Runs a worker, on one rank or two, and returns what rank 0 measured."""
    command = [sys.executable]
    if "2 ranks" in name:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [__file__, "--steps", str(steps), "--worker", json.dumps(changes)]
    environment = os.environ | allocator | {"ALPACA_MAPPED": str(int(bool(allocator)))}
    environment["OMP_NUM_THREADS"] = "1"
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False
    )
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-2000:]}")
    line = next(text for text in done.stdout.splitlines() if text.startswith("{"))
    result: dict[str, Any] = json.loads(line)
    return result


def work(changes: dict[str, Any], steps: int) -> None:
    """Predicts the peak memory of a run, runs it, and prints both as JSON."""
    from alpaca_lib import models
    from alpaca_lib.planning import planner
    from alpaca_lib.training import loop
    from alpaca_lib.training.examples import load_data
    from alpaca_lib.training.settings import Settings

    if os.environ["ALPACA_MAPPED"] == "1":
        loop.keep_freed_memory = lambda block: None  # it would override the environment
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
            name: sum(terms.values()) - terms.get("fragmentation", 0.0)
            for name, terms in plan.phases.items()
        }
        phase = max(sums, key=lambda name: sums[name])
        peak = max(line.get("peak_memory_bytes", 0) for line in lines)
        found = {"predicted": sums[phase], "holed": plan.peak, "peak": peak, "phase": phase}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
