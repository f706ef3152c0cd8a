"""What a run writes down of itself: metrics.jsonl, run.json, and the live line."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from alpaca_lib import models
from alpaca_lib.files import dump_json, write_text
from alpaca_lib.training.settings import Settings

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")


def append(folder: Path, line: dict[str, Any]) -> None:
    """Adds a line to metrics.jsonl."""
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as stream:
        stream.write(dump_json(line) + "\n")


def read(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl; none if there is no such file."""
    file, lines = folder / "metrics.jsonl", []
    for text in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:  # torn by a kill
            continue
    return lines


def cut(folder: Path, step: int, steps: int) -> None:
    """Drops the lines of steps, and of the last validation, that will be taken again."""
    kept = [
        line
        for line in read(folder)
        if step > 0
        and line.get("step", step + 1) <= step
        and not (line["step"] == steps and "validation_loss" in line)
    ]
    if (folder / "metrics.jsonl").is_file():
        write_text(folder / "metrics.jsonl", "".join(dump_json(line) + "\n" for line in kept))


def write_run(
    folder: Path, settings: Settings, placement: models.Placement, facts: dict[str, Any]
) -> dict[str, Any]:
    """Writes run.json, what decides the result, so that anyone can repeat it; returns it."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    run = {
        "settings": settings.to_dict(),
        "placement": asdict(placement),
        **facts,
        "python": platform.python_version(),
        "versions": versions,
    }
    write_text(folder / "run.json", dump_json(run, indent=1) + "\n")
    return run


def live_line(line: dict[str, Any], steps: int) -> str:
    """A line of metrics for people: step, loss, speed, share of the peak, memory, time left."""
    head = f"step {line['step']}/{steps}"
    if "validation_loss" in line:
        return f"{head}  held-out loss {line['validation_loss']:.4f}"
    left = line["seconds_left"]
    time = f"{left / 60:.0f} min" if left >= 90 else f"{left:.0f} s"
    return (
        f"{head}  loss {line['loss']:.4f}  lr {line['lr']:.2e}  "
        f"{line['tokens_per_second']:,.0f} tokens/s  MFU {line['mfu']:.0%}  "
        f"{line['peak_memory_bytes'] / 1e9:.1f} GB  {time} left"
    )
