"""Figures in one style: labelled axes with units, colour-blind-safe.

Each function returns (figure, axes) of matplotlib; who calls it shows or saves it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# Okabe and Ito's palette.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")


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


def histogram(
    values: Mapping[str, Sequence[float]], title: str, x: str, bins: int = 20
) -> tuple[Any, Any]:
    """One outlined histogram a series, over common bins; y counts rows, or of several series,
    which may be of any size, the share of each."""
    import numpy as np

    several = len(values) > 1
    fig, axes = figure(title, x, "share of rows" if several else "rows")
    top = max((max(series) for series in values.values() if len(series)), default=1)
    edges = np.linspace(0, top or 1, bins + 1)
    for (label, series), colour in zip(values.items(), COLOURS, strict=False):
        each = 1 / max(len(series), 1) if several else 1.0
        axes.hist(
            series, edges, weights=[each] * len(series), label=label, color=colour, alpha=0.55,
            edgecolor=colour,
        )  # fmt: skip
    if several:
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


def sunburst(parts: Mapping[str, Mapping[str, float]], title: str) -> tuple[Any, Any]:
    """Two rings: outside the parts of each name, inside their sums; names without are left out.

    A part without a name ("") is the rest, drawn pale.
    """
    import matplotlib.colors

    fig, axes = figure("", "", "", (5.4, 5.6))
    axes.set_title(title, pad=26)  # above the labels
    axes.set_axis_off()
    parts = {name: inner for name, inner in parts.items() if inner}
    if not parts:
        axes.text(0.5, 0.5, "nothing to show", ha="center", transform=axes.transAxes)
        return fig, axes
    shades = [COLOURS[n % len(COLOURS)] for n in range(len(parts))]
    pale = [
        matplotlib.colors.to_rgba(shade, 0.75 - 0.5 * n / len(inner) if name else 0.08)
        for shade, inner in zip(shades, parts.values(), strict=True)
        for n, name in enumerate(inner)
    ]
    total = sum(value for inner in parts.values() for value in inner.values())
    edge = {"width": 0.38, "edgecolor": "white"}
    axes.pie(
        [sum(inner.values()) for inner in parts.values()], labels=list(parts), radius=0.72,
        colors=shades, wedgeprops=edge, rotatelabels=True, labeldistance=0.74, startangle=90,
        textprops={"fontsize": 7, "color": "white", "va": "center", "ha": "center"},
    )  # fmt: skip
    axes.pie(
        [value for inner in parts.values() for value in inner.values()],
        labels=[
            name if value > 0.012 * total else ""
            for inner in parts.values()
            for name, value in inner.items()
        ],
        radius=1.1, colors=pale,
        wedgeprops=edge, rotatelabels=True, labeldistance=1.02, startangle=90,
        textprops={"fontsize": 6.5, "va": "center", "rotation_mode": "anchor"},
    )  # fmt: skip
    return fig, axes


def curve(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], title: str, x: str, y: str
) -> tuple[Any, Any]:
    """One line a name, over its own x."""
    fig, axes = figure(title, x, y)
    for label, (at, value) in lines.items():
        axes.plot(at, value, label=label)
    if len(lines) > 1:
        axes.legend(frameon=False)
    return fig, axes
