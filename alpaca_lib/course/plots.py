"""The notebooks' figures: drawn in the one style, saved, and shown with a description."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alpaca_lib.course.notebooks import REPO, headless
from alpaca_lib.figures import COLOURS, bars, curve, figure, histogram, sunburst

__all__ = [
    "COLOURS",
    "Live",
    "LiveRun",
    "acceptance",
    "bars",
    "curve",
    "figure",
    "finish",
    "histogram",
    "losses",
    "matrices",
    "sunburst",
]
IMAGES = REPO / "images"


def finish(fig: Any, name: str, folder: Path | None = None, alt: str = "") -> Path:
    """Saves folder/name.png (folder: the run's; the committed ones lie in images/),
    shows the figure with its description, and closes it."""
    import matplotlib.pyplot as plt
    import PIL.Image
    from IPython.display import Image, display
    from PIL import PngImagePlugin

    path = (folder or IMAGES) / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = io.BytesIO()
    fig.savefig(drawn, dpi=110, format="png")
    plt.close(fig)
    about = PngImagePlugin.PngInfo()
    about.add_text("Description", alt)
    # A palette is enough for a chart, and a third of the bytes: notebooks stay small.
    PIL.Image.open(drawn).convert("RGB").quantize(128).save(path, optimize=True, pnginfo=about)
    display(Image(filename=str(path), alt=alt))
    return path


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


def matrices(named: Mapping[str, Any], title: str) -> tuple[Any, list[Any]]:
    """Matrices side by side as coloured squares, on one scale with white at zero.

    Returns (figure, the axes of each).
    """
    import matplotlib.pyplot as plt
    import numpy as np

    values = {name: np.asarray(matrix, dtype=float) for name, matrix in named.items()}
    top = max((float(np.abs(m).max()) for m in values.values() if m.size), default=1.0) or 1.0
    size = (1.35 * len(values) + 0.9, 2.1)
    fig, grid = plt.subplots(1, len(values), figsize=size, layout="constrained", squeeze=False)
    axes = list(grid[0])
    for one, (name, matrix) in zip(axes, values.items(), strict=True):
        shown = one.imshow(matrix, cmap="PuOr", vmin=-top, vmax=top)
        one.set_title(name, fontsize=9)
        one.set(xticks=[], yticks=[])
    axes[0].set(xlabel="columns", ylabel="rows")
    fig.colorbar(shown, ax=axes, label="value", shrink=0.8)
    fig.suptitle(title, fontsize=11)
    return fig, axes


def acceptance(
    kept_after: Sequence[int], rejected_after: Sequence[Mapping[str, int]]
) -> tuple[Any, Any]:
    """What became of the tasks, added up reply by reply: kept, and dropped for each reason."""
    fig, axes = figure("What became of each task", "replies", "tasks so far", (6.4, 3.6))
    last = rejected_after[-1] if rejected_after else {}
    named = sorted(last, key=lambda reason: -last[reason])[:4]
    layers = {"kept": list(kept_after)}
    layers |= {name: [counts.get(name, 0) for counts in rejected_after] for name in named}
    if len(last) > len(named):
        layers["other reasons"] = [
            sum(n for name, n in counts.items() if name not in named) for counts in rejected_after
        ]
    steps = range(1, len(kept_after) + 1)
    labels = [name if len(name) < 45 else name[:44] + "…" for name in layers]
    axes.stackplot(
        steps, list(layers.values()), labels=labels, colors=COLOURS, alpha=0.85, step="mid"
    )
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False, fontsize=7, loc="upper left")
    return fig, axes


class _Redrawn:
    """A figure that is drawn again while something goes on, now and then; not at all where
    nobody watches."""

    def __init__(self, every: float) -> None:
        self.every, self.drawn = every, 0.0
        self.handle: Any = None

    def _figure(self) -> Any:
        """The figure of what is known so far."""
        raise NotImplementedError

    def _draw(self) -> None:
        """Draws again if the last time is long enough ago."""
        if headless() or time.monotonic() - self.drawn < self.every:
            return
        import matplotlib.pyplot as plt
        from IPython.display import display

        fig = self._figure()
        if self.handle is None:
            self.handle = display(fig, display_id=True)
        else:
            self.handle.update(fig)
        plt.close(fig)
        self.drawn = time.monotonic()


class Live(_Redrawn):
    """The acceptance figure while a run goes on."""

    def __init__(self, every: float = 2.0) -> None:
        super().__init__(every)
        self.kept: list[int] = []
        self.rejected: list[Mapping[str, int]] = []

    def update(self, progress: Any) -> None:
        """Takes in a Progress."""
        self.kept.append(progress.kept)
        self.rejected.append(progress.rejected)
        self._draw()

    def _figure(self) -> Any:
        return acceptance(self.kept, self.rejected)[0]


class LiveRun(_Redrawn):
    """The losses of a training run while it goes on, and its newest line of metrics above."""

    def __init__(self, folder: str | Path, every: float = 2.0) -> None:
        super().__init__(every)
        self.folder = Path(folder)
        self.lines: list[Mapping[str, Any]] = []

    def update(self, line: Mapping[str, Any]) -> None:
        """Takes in a line; a step that is taken again takes the place of the old one and all
        after it."""
        again = [m for m in self.lines if m.keys() == line.keys() and m["step"] == line["step"]]
        if again:
            self.lines = self.lines[: self.lines.index(again[0])]
        self.lines.append(line)
        self._draw()

    def _figure(self) -> Any:
        from alpaca_lib.training.metrics import format_metrics

        steps = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))["steps"]
        fig, axes = losses(self.lines, "")
        axes.set_title(format_metrics(dict(self.lines[-1]), steps), fontsize=8)
        return fig
