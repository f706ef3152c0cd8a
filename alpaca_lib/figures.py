"""Figures in one style: labelled axes with units, and a palette safe for colour blindness.

Each function returns matplotlib's (figure, axes); the caller shows and saves the figure. pyplot
does not know it: in a notebook the end of any cell closes pyplot's figures, also one that a
slider draws in another thread at that moment.

>>> fig, axes = curve({"train": (steps, losses)}, title="Loss", x="step", y="nats per token")
>>> fig.savefig("loss.png")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")  # Okabe & Ito 2008


def figure(title: str, x: str, y: str, size: tuple[float, float] = (6.0, 3.3)) -> tuple[Any, Any]:
    """Returns an empty (figure, axes) with a title and both axis labels; ``size`` in inches."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=size, layout="constrained")
    axes = fig.subplots()
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.set_prop_cycle(color=COLOURS)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, alpha=0.25)
    axes.set_axisbelow(True)
    return fig, axes


def histogram(
    values: Mapping[str, Sequence[float]], title: str, x: str, bins: int = 20
) -> tuple[Any, Any]:
    """Draws one outlined histogram per series, all with the same bins.

    The y axis counts rows; for several series, which may differ in size, it is the share of rows.
    """
    import numpy as np

    several = len(values) > 1
    fig, axes = figure(title, x, "share of rows" if several else "rows")
    top = max((max(series) for series in values.values() if len(series)), default=1)
    edges = np.linspace(0, top or 1, bins + 1)
    for (label, series), colour in zip(values.items(), COLOURS, strict=False):
        weight = 1 / max(len(series), 1) if several else 1.0
        style = {"color": colour, "edgecolor": colour, "alpha": 0.55}
        axes.hist(series, edges, weights=[weight] * len(series), label=label, **style)
    if several:
        axes.legend(frameon=False)
    return fig, axes


def sunburst(parts: Mapping[str, Mapping[str, float]], title: str) -> tuple[Any, Any]:
    """Draws two rings: the names inside, sized by their sums, and the parts of each name outside.

    Names without parts are left out. The part named "" is the rest of a name and drawn pale.
    """
    import matplotlib.colors

    fig, axes = figure("", "", "", (5.4, 5.6))
    axes.set_title(title, pad=26)  # above the labels
    axes.set_axis_off()
    parts = {name: inner for name, inner in parts.items() if inner}
    if not parts:
        axes.text(0.5, 0.5, "nothing to show", ha="center", transform=axes.transAxes)
        return fig, axes
    outer = [item for inner in parts.values() for item in inner.items()]
    total = sum(value for _, value in outer)
    hues = [COLOURS[n % len(COLOURS)] for n in range(len(parts))]
    shades = [  # paler from part to part of one name
        matplotlib.colors.to_rgba(hue, 0.75 - 0.5 * n / len(inner) if name else 0.08)
        for hue, inner in zip(hues, parts.values(), strict=True)
        for n, name in enumerate(inner)
    ]
    ring = {"width": 0.38, "edgecolor": "white"}
    style = {"wedgeprops": ring, "rotatelabels": True, "startangle": 90}
    axes.pie(
        [sum(inner.values()) for inner in parts.values()],
        labels=list(parts),
        radius=0.72,
        colors=hues,
        labeldistance=0.74,
        textprops={"fontsize": 7, "color": "white", "va": "center", "ha": "center"},
        **style,
    )
    axes.pie(
        [value for _, value in outer],
        labels=[name if value > 0.012 * total else "" for name, value in outer],
        radius=1.1,
        colors=shades,
        labeldistance=1.02,
        textprops={"fontsize": 6.5, "va": "center", "rotation_mode": "anchor"},
        **style,
    )
    return fig, axes


def curve(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], title: str, x: str, y: str
) -> tuple[Any, Any]:
    """Draws one line per label from its (x values, y values)."""
    fig, axes = figure(title, x, y)
    for label, (at, value) in lines.items():
        axes.plot(at, value, label=label)
    if len(lines) > 1:
        axes.legend(frameon=False)
    return fig, axes
