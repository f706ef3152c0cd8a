"""The notebooks' figures: drawn in the one style, saved, and shown with a description."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alpaca_lib.course.notebooks import REPO
from alpaca_lib.figures import COLOURS, bars, curve, figure, histogram, sunburst

__all__ = ["COLOURS", "bars", "curve", "figure", "finish", "histogram", "losses", "sunburst"]
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
