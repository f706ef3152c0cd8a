"""Measures what LoRA's rank, target matrices and variants gain and cost, in one table.

python benchmarks/ablation.py

Every line trains the same steps on the same examples; only the adapter, or the storage of the
frozen base, differs. All losses come first, then all speeds, over a few steps in quick
succession: a busy machine changes speeds, not losses. Each measurement is a separate process
with its own peak memory. data/ablation.json, which lesson 04 shows, is written after each of
them, and a stopped run resumes with the missing ones (--again: measures all).
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from alpaca_lib.files import dump_json, write_text

ROOT = Path(__file__).resolve().parents[1]
# alpha is constant while the rank changes, as with --lora_r alone on the command line.
ALPHA = 16
QV, ALL = "q_proj,v_proj", "all-linear"
LINES: dict[str, dict[str, Any]] = {
    f"{name} r{rank}": {"lora_targets": targets, "lora_rank": rank}
    for name, targets in (("qv", QV), ("all", ALL))
    for rank in (2, 8, 32)
}
LINES |= {
    "all r32 rsLoRA": {"lora_targets": ALL, "lora_rank": 32, "lora_rs": True},
    "all r8 DoRA": {"lora_targets": ALL, "lora_rank": 8, "lora_dora": True},
    "all r8 int8": {"lora_targets": ALL, "lora_rank": 8, "quantization": "int8"},
    "all r8 nf4": {"lora_targets": ALL, "lora_rank": 8, "quantization": "nf4"},
}
TIMED = 5  # measured steps, after one warm-up step


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "alpaca_520.json")
    parser.add_argument("--eval", type=Path, default=ROOT / "data" / "eval_60.json")
    parser.add_argument("--template", default="alpaca-lora")
    parser.add_argument("--steps", type=int, default=16, help="steps of 8 examples (default 16)")
    parser.add_argument(
        "--only", nargs="*", choices=list(LINES), metavar="LINE", help=f"{[*LINES]}"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "ablation.json")
    parser.add_argument("--again", action="store_true", help="measure lines of the file again, too")
    parser.add_argument("--pass", dest="passes", nargs="*", choices=PASSES, default=list(PASSES))
    parser.add_argument("--worker", choices=list(LINES), help=argparse.SUPPRESS)
    return parser


def main() -> None:
    """Measures the missing lines and prints the table; with --worker, measures one line."""
    options = build_parser().parse_args()
    if options.worker:
        print(dump_json(PASSES[options.passes[0]](options, options.worker)))
        return
    found = {} if options.again else load_finished(options)
    for kind in options.passes:
        for name in options.only or LINES:
            if kind in found.get(name, {}):
                continue
            print(f"{kind} of {name} ...", file=sys.stderr, flush=True)
            line = {"name": name, **LINES[name], **found.get(name, {})}
            found[name] = line | {kind: run_worker(options, name, kind)}
            lines = [found[n] for n in LINES if n in found]
            write_text(
                options.out, dump_json({**describe(options), "lines": lines}, indent=1) + "\n"
            )
    print(f"{options.steps} steps; {options.out.name}\n")
    print(f"{'':16}{'trained':>12}{'held-out loss':>15}{'tokens/s':>10}{'GB':>7}{'MB':>8}")
    for name in options.only or LINES:
        losses, speed = (found[name].get(kind, {}) for kind in PASSES)
        print(
            f"{name:16}{losses.get('trained_parameters', 0):12,}"
            f"{losses.get('held_out_after', math.nan):15.3f}"
            f"{speed.get('tokens_per_second', math.nan):10,.0f}"
            f"{speed.get('peak_bytes', math.nan) / 1e9:7.1f}"
            f"{losses.get('adapter_bytes', math.nan) / 1e6:8.1f}"
        )


def load_finished(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Returns the lines of the file by name, if its settings are the same."""
    if not options.out.is_file():
        return {}
    before = json.loads(options.out.read_text(encoding="utf-8"))
    same = before["settings"] == describe(options)["settings"]
    return {line["name"]: line for line in before["lines"]} if same else {}


def describe(options: argparse.Namespace) -> dict[str, Any]:
    """Returns what the numbers were measured with: date, cores, versions, settings."""
    from importlib import metadata

    from alpaca_lib import models

    placement = models.place()
    packages = ("torch", "transformers", "peft", "bitsandbytes")
    shared = build_settings(options, Path(), {"lora_rank": 8})
    left_out = ("output_dir", "lora_rank", "data_path", "validation_path")
    return {
        "date": datetime.date.today().isoformat(),
        "cores": os.cpu_count(),
        "device": placement.device,
        "dtype": placement.dtype,
        "versions": {name: metadata.version(name) for name in packages},
        "settings": {k: v for k, v in shared.items() if k not in left_out}
        | {"data": options.data.name, "held_out": options.eval.name},
    }


def build_settings(
    options: argparse.Namespace, folder: Path, line: dict[str, Any]
) -> dict[str, Any]:
    """Returns the options of one line, by their names in training's Settings."""
    return {
        "data_path": str(options.data),
        "validation_path": str(options.eval),
        "output_dir": str(folder),
        "model": options.model,
        "method": "lora",
        "template": options.template,
        "max_steps": options.steps,
        "examples_per_step": 8,
        "max_length": 512,
        "row_length": 512,
        "rows_per_micro_batch": 4,
        "learning_rate": 5e-4,
        "warmup": 0.1,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.0,
        **line,
    }


def run_worker(options: argparse.Namespace, name: str, kind: str) -> dict[str, Any]:
    """Measures one line in a new process; raises SystemExit with its output if it fails."""
    command = [sys.executable, __file__, "--worker", name, "--pass", kind]
    command += ["--model", options.model, "--template", options.template]
    command += ["--data", str(options.data), "--eval", str(options.eval)]
    command += ["--steps", str(options.steps)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-3000:]}")
    line: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return line


def measure_losses(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """Trains all steps of a line: parameters, and the held-out loss before and after."""
    from safetensors.torch import load_file

    from alpaca_lib.training.loop import train
    from alpaca_lib.training.settings import Settings

    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        train(Settings(**build_settings(options, Path(folder), LINES[name])), lines.append)
        file = Path(folder) / "adapter_model.safetensors"
        trained = sum(tensor.numel() for tensor in load_file(file).values())
        size = file.stat().st_size
    held = [line["validation_loss"] for line in lines if "validation_loss" in line]
    return {
        "trained_parameters": trained,
        "held_out_before": held[0],
        "held_out_after": held[-1],
        "adapter_bytes": size,
    }


def measure_speed(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """Trains a few steps of a line: tokens/s without padding, and the process's peak memory."""
    from alpaca_lib.training.loop import train
    from alpaca_lib.training.settings import Settings

    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        few = build_settings(options, Path(folder), LINES[name])
        few |= {"max_steps": 1 + TIMED, "validation_path": ""}
        train(Settings(**few), lines.append)
    seconds = sum(line["tokens"] / line["tokens_per_second"] for line in lines[1:])
    return {
        "tokens_per_second": sum(line["tokens"] for line in lines[1:]) / seconds,
        "peak_bytes": lines[-1]["peak_memory_bytes"],
        "steps": TIMED,
    }


PASSES = {"losses": measure_losses, "speed": measure_speed}


if __name__ == "__main__":
    main()
