"""Figures in one style: labelled axes, colour-blind-safe, saved under images/."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alpaca_lib.course.notebooks import REPO

# Okabe and Ito's palette.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
IMAGES = REPO / "images"


def figure(title: str, x: str, y: str, size: tuple[float, float] = (6.0, 3.3)) -> tuple[Any, Any]:
    """(figure, axes) in the course's style, with a title and both labels."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(figsize=size, layout="constrained")
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.set_prop_cycle(color=COLOURS)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, alpha=0.25)
    axes.set_axisbelow(True)
    return fig, axes


def finish(fig: Any, name: str, folder: Path | None = None, alt: str = "") -> Path:
    """Saves folder/name.png (folder: the run's; the committed ones lie in images/),
    shows the figure with its description, and closes it."""
    import matplotlib.pyplot as plt
    from IPython.display import Image, display

    path = (folder or IMAGES) / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=110, metadata={"Software": None, "Description": alt})
    plt.close(fig)
    display(Image(filename=str(path), alt=alt))
    return path


def histogram(
    values: Mapping[str, Sequence[float]], title: str, x: str, bins: int = 20
) -> tuple[Any, Any]:
    """One outlined histogram a series, over common bins; y counts rows."""
    import numpy as np

    fig, axes = figure(title, x, "rows")
    top = max((max(series) for series in values.values() if len(series)), default=1)
    edges = np.linspace(0, top or 1, bins + 1)
    for (label, series), colour in zip(values.items(), COLOURS, strict=False):
        axes.hist(series, edges, label=label, color=colour, alpha=0.55, edgecolor=colour)
    if len(values) > 1:
        axes.legend(frameon=False)
    return fig, axes


def bars(counts: Mapping[str, float], title: str, x: str, colour: int = 0) -> tuple[Any, Any]:
    """Horizontal bars, the first on top."""
    import textwrap

    names = [textwrap.fill(name, 32) for name in counts]
    lines = sum(name.count("\n") + 1 for name in names)
    fig, axes = figure(title, x, "", (6.0, 0.28 * lines + 1.1))
    axes.barh(names, list(counts.values()), color=COLOURS[colour])
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    return fig, axes


def losses(metrics: Sequence[Mapping[str, Any]], title: str) -> tuple[Any, Any]:
    """Training loss by step, and validation loss where it was measured."""
    fig, axes = figure(title, "optimizer step", "loss (nats a label token)")
    steps = [m for m in metrics if "loss" in m]
    held = [m for m in metrics if "validation_loss" in m]
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.plot([m["step"] for m in steps], [m["loss"] for m in steps], label="training")
    if held:
        axes.plot(
            [m["step"] for m in held], [m["validation_loss"] for m in held], "o--", label="held-out"
        )
        axes.legend(frameon=False)
    return fig, axes
