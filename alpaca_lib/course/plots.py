"""Draws the notebooks' figures in one style, saves them, and shows them with a description."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import IPython.display
import numpy as np
import PIL.Image
from matplotlib.figure import Figure
from PIL import PngImagePlugin

from alpaca_lib.course.notebooks import is_headless, read_json, truncate
from alpaca_lib.figures import COLOURS as COLOURS
from alpaca_lib.figures import curve as curve
from alpaca_lib.figures import figure as figure
from alpaca_lib.figures import histogram as histogram
from alpaca_lib.figures import sunburst as sunburst
from alpaca_lib.training.metrics import format_metrics


def finish(fig: Any, name: str, folder: Path, alt: str = "") -> Path:
    """Saves a figure as folder/name.png and shows it with its description."""
    path = folder / f"{name}.png"
    drawn = io.BytesIO(_render(fig))
    about = PngImagePlugin.PngInfo()
    about.add_text("Description", alt)
    # A palette is enough for a chart, and a third of the bytes: notebooks stay small.
    PIL.Image.open(drawn).convert("RGB").quantize(128).save(path, optimize=True, pnginfo=about)
    IPython.display.display(IPython.display.Image(filename=str(path), alt=alt))
    return path


def _render(fig: Any) -> bytes:
    drawn = io.BytesIO()
    fig.savefig(drawn, dpi=110, format="png")
    return drawn.getvalue()


def losses(metrics: Sequence[Mapping[str, Any]], title: str) -> tuple[Any, Any]:
    """Draws the training and held-out losses of lines of metrics.jsonl; returns (figure, axes)."""
    fig, axes = figure(title, "optimizer step", "loss (nats per label token)")
    axes.xaxis.get_major_locator().set_params(integer=True)
    for key, style, label in (("loss", "-", "training"), ("validation_loss", "o--", "held-out")):
        lines = [m for m in metrics if key in m]
        if lines or key == "loss":
            axes.plot([m["step"] for m in lines], [m[key] for m in lines], style, label=label)
    if len(axes.lines) > 1:
        axes.legend(frameon=False)
    return fig, axes


def matrices(named: Mapping[str, Any], title: str) -> tuple[Any, list[Any]]:
    """Draws matrices on one colour scale with white at zero; returns (figure, axes of each)."""
    values = {name: np.asarray(matrix, dtype=float) for name, matrix in named.items()}
    top = max((float(np.abs(m).max()) for m in values.values() if m.size), default=1.0) or 1.0
    size = (1.35 * len(values) + 0.9, 2.1)
    fig = Figure(figsize=size, layout="constrained")
    grid = fig.subplots(1, len(values), squeeze=False)
    axes = list(grid[0])
    for one, (name, matrix) in zip(axes, values.items(), strict=True):
        image = one.imshow(matrix, cmap="PuOr", vmin=-top, vmax=top)
        one.set_title(name, fontsize=9)
        one.set(xticks=[], yticks=[])
    axes[0].set(xlabel="columns", ylabel="rows")
    fig.colorbar(image, ax=axes, label="value", shrink=0.8)
    fig.suptitle(title, fontsize=11)
    return fig, axes


def acceptance(
    kept_after: Sequence[int], rejected_after: Sequence[Mapping[str, int]]
) -> tuple[Any, Any]:
    """Draws the tasks kept, and dropped per reason, after each reply; returns (figure, axes)."""
    fig, axes = figure("Tasks kept and dropped", "replies", "tasks so far", (6.4, 3.6))
    last = rejected_after[-1] if rejected_after else {}
    named = sorted(last, key=lambda reason: -last[reason])[:4]
    layers = {"kept": list(kept_after)}
    layers |= {name: [counts.get(name, 0) for counts in rejected_after] for name in named}
    if len(last) > len(named):
        layers["other reasons"] = [
            sum(n for name, n in counts.items() if name not in named) for counts in rejected_after
        ]
    replies = range(len(kept_after) + 1)
    counts = [[0, *layer] for layer in layers.values()]  # an area needs two points
    labels = [truncate(name, 45) for name in layers]
    axes.stackplot(replies, *counts, labels=labels, colors=COLOURS, alpha=0.85, step="mid")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False, fontsize=7, loc="upper left")
    return fig, axes


class LiveFigure:
    """A figure that ``update`` redraws during a run, at most once in ``every`` seconds.

    ``items`` is what update received. The end of the run is always drawn. A headless run draws
    nothing.
    """

    def __init__(self, every: float = 2.0) -> None:
        self.every = every
        self.items: list[Any] = []
        self._drawn = 0.0
        self._handle: Any = None

    def draw(self) -> Any:
        """Returns the figure of the items so far."""
        raise NotImplementedError

    def is_last(self, item: Any) -> bool:
        """Returns whether a run ends with this item."""
        raise NotImplementedError

    def update(self, item: Any) -> None:
        """Adds an item and redraws the figure."""
        self.items.append(item)
        if is_headless():
            return
        if time.monotonic() - self._drawn < self.every and not self.is_last(item):
            return
        image = IPython.display.Image(data=_render(self.draw()))
        if self._handle is None:
            self._handle = IPython.display.display(image, display_id=True)
        else:
            self._handle.update(image)
        self._drawn = time.monotonic()


class LiveAcceptance(LiveFigure):
    """The acceptance figure of a generation run; its items are Progress, one per reply.

    >>> generate(..., progress=LiveAcceptance().update)
    """

    def draw(self) -> Any:
        """Returns the acceptance figure so far."""
        return acceptance([p.kept for p in self.items], [p.rejected for p in self.items])[0]

    def is_last(self, item: Any) -> bool:
        """Returns whether as many tasks as wanted are kept."""
        return bool(item.kept >= item.wanted)


class LiveLosses(LiveFigure):
    """The losses of a training run under its newest line of metrics; its items are such lines.

    >>> train(settings, report=LiveLosses(settings.output_dir).update)
    """

    def __init__(self, folder: str | Path, every: float = 2.0) -> None:
        super().__init__(every)
        self.folder = Path(folder)  # the run's output folder

    def update(self, item: Mapping[str, Any]) -> None:
        """Adds a line of metrics; a repeated step replaces its first line and all after it."""
        repeated = [m for m in self.items if m.keys() == item.keys() and m["step"] == item["step"]]
        if repeated:
            self.items = self.items[: self.items.index(repeated[0])]
        super().update(item)

    def draw(self) -> Any:
        """Returns the figure of the losses so far."""
        fig, axes = losses(self.items, "")
        axes.set_title(format_metrics(self.items[-1], self._count_steps()), fontsize=8)
        return fig

    def is_last(self, item: Mapping[str, Any]) -> bool:
        """Returns whether a line is of the run's last step."""
        return bool(item["step"] >= self._count_steps())

    def _count_steps(self) -> int:
        return int(read_json(self.folder / "run.json")["steps"])
