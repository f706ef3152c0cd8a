"""Shows benchmarks/ablation.py's measurements: what LoRA's rank and matrices gain and cost.

>>> study = read_ablation(find_data("data/ablation.json"))
>>> show_table(*ablation_table(study))
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alpaca_lib.course.notebooks import Markup
from alpaca_lib.figures import figure


def read_ablation(file: Path) -> dict[str, Any]:
    """Returns the file's object; each of its lines has the line's losses and speed as keys."""
    study: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return {**study, "lines": [{**m, **m["losses"], **m["speed"]} for m in study["lines"]]}


def variant(line: Mapping[str, Any]) -> str:
    """Returns what a line has besides matrices and a rank: rsLoRA, DoRA, int8, nf4, or ""."""
    return " ".join(line["name"].split(" ")[2:])


def ablation_table(study: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Returns (head, rows) of a table with one row per line; losses in nats per label token."""
    head = ["matrices", "r", "variant", "trained", "loss before", "after", "tokens/s", "peak GB"]
    rows = [
        [
            Markup(f"`{m['lora_targets']}`"),
            m["lora_rank"],
            variant(m),
            f"{m['trained_parameters']:,}",
            f"{m['held_out_before']:.3f}",
            f"{m['held_out_after']:.3f}",
            f"{m['tokens_per_second']:.0f}",
            f"{m['peak_bytes'] / 1e9:.1f}",
        ]
        for m in study["lines"]
    ]
    return head, rows


def describe_ablation(study: Mapping[str, Any]) -> str:
    """Returns one sentence: when, where and with which settings the lines were measured."""
    how, versions = study["settings"], study["versions"]
    return (
        f"Measured on {study['date']} with {study['cores']} CPU cores in {study['dtype']}, torch "
        f"{versions['torch']}, peft {versions['peft']}: {how['max_steps']} steps of "
        f"{how['examples_per_step']} examples of `{how['data']}`, learning rate "
        f"{how['learning_rate']}, alpha always {how['lora_alpha']}. The loss is in nats per label "
        f"token of `{how['held_out']}`."
    )


def ablation_figure(study: Mapping[str, Any]) -> tuple[Any, Any]:
    """Draws the held-out loss by trained parameters, one line per choice of matrices."""
    fig, axes = figure(
        "Held-out loss after the same steps", "trained parameters", "loss (nats per label token)"
    )
    plain = [m for m in study["lines"] if not variant(m)]
    for targets in dict.fromkeys(m["lora_targets"] for m in plain):
        family = [m for m in plain if m["lora_targets"] == targets]
        places = [(m["trained_parameters"], m["held_out_after"]) for m in family]
        axes.plot(*zip(*places, strict=True), "o-", label=targets)
        for place, m in zip(places, family, strict=True):
            style = {"ha": "center", "textcoords": "offset points", "fontsize": 8}
            axes.annotate(f"r = {m['lora_rank']}", place, (0, 7), **style)
    axes.set_xscale("log")
    axes.margins(0.1, 0.2)
    axes.legend(frameon=False)
    return fig, axes
