"""The records of a run: metrics.jsonl, run.json, and the line of metrics that people read.

metrics.jsonl has a line per optimizer step (step, loss, lr, grad_norm, tokens, label_tokens,
computed_tokens, tokens_per_second, mfu, gemm_share, peak_memory_bytes, seconds_left) and a line
per validation (step, validation_loss). ``tokens`` are those of the step's examples, and
tokens_per_second counts them; ``computed_tokens`` are fewer where examples share a prefix, and
mfu and gemm_share count these. Neither counts padding.
"""

from __future__ import annotations

import contextlib
import platform
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from alpaca_lib.errors import FileError
from alpaca_lib.files import JsonLines, dump_json, read_json_lines, write_text
from alpaca_lib.models import Placement
from alpaca_lib.training.settings import Settings

FILE = "metrics.jsonl"
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")


def append(folder: Path, line: dict[str, Any]) -> None:
    """Appends a line to metrics.jsonl, after cutting off a killed run's torn last line."""
    try:
        with JsonLines(folder / FILE) as log:
            log.append(line, sync=False)
    except OSError as error:
        raise FileError(f"{folder / FILE}: cannot be written ({error}); free some space") from error


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Returns the complete lines of metrics.jsonl; none if there is no such file."""
    return [line.row for line in read_json_lines(folder / FILE) if line.row is not None]


def drop_later(folder: Path, step: int, steps: int) -> None:
    """Drops the lines that a run resumed after ``step`` of ``steps`` will write again.

    Raises FileError for a line that no run wrote, rather than to drop it, too.
    """
    kept = []
    for number, _, line in read_json_lines(folder / FILE):
        at = line.get("step") if line is not None else None
        if not isinstance(at, int) or line is None:
            raise FileError(
                f"{folder / FILE}, line {number}: no line of metrics (UTF-8 JSON with a step); "
                "move the file away, or give another output_dir"
            )
        if step > 0 and at <= step and not (at == steps and "validation_loss" in line):
            kept.append(line)
    if (folder / FILE).is_file():
        write_text(folder / FILE, "".join(dump_json(line) + "\n" for line in kept))


def write_run(
    folder: Path, settings: Settings, placement: Placement, facts: dict[str, Any]
) -> dict[str, Any]:
    """Writes run.json: settings, placement, ``facts`` and versions; returns its content."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    run = {
        "settings": settings.to_dict(),
        "placement": asdict(placement),
        **facts,
        "python": platform.python_version(),
        "versions": versions,
    }
    write_text(folder / "run.json", dump_json(run, indent=1) + "\n")
    return run


def format_metrics(line: dict[str, Any], steps: int) -> str:
    """Returns a line of metrics as text: step, loss, speed, MFU, memory, time left."""
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
