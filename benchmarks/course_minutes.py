"""Fits the minutes of each lesson to runs of the course on machines of different speed.

python benchmarks/course_minutes.py GFLOPS=FOLDER GFLOPS=FOLDER ...

FOLDER is the --out of a complete `python course.py run`, GFLOPS what `python course.py check`
said of that machine. Prints the table COSTS of alpaca_lib/course/minutes.py: by least squares
seconds = fixed + TFLOP / rate, neither below zero, and how far each run is from the fit.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np


def fit(rates: list[float], seconds: list[float]) -> tuple[float, float]:
    """Returns (fixed seconds, TFLOP) for rates in TFLOP/s."""
    inverse = 1 / np.array(rates)
    columns = np.stack([np.ones_like(inverse), inverse], axis=1)
    (fixed, work), *_ = np.linalg.lstsq(columns, np.array(seconds), rcond=None)
    if work < 0:
        return float(np.mean(seconds)), 0.0
    if fixed < 0:
        return 0.0, float(np.mean(np.array(seconds) / inverse))
    return float(fixed), float(work)


def main(arguments: list[str]) -> int:
    """Prints COSTS and the fit's errors; returns the exit code."""
    runs = [argument.partition("=") for argument in arguments]
    if len(runs) < 2 or not all(sign for _, sign, _ in runs):
        print(__doc__, file=sys.stderr)
        return 2
    rates = [float(rate) / 1000 for rate, _, _ in runs]
    rows = [json.loads((Path(folder) / "run.json").read_text()) for _, _, folder in runs]
    print("COSTS = {")
    lines = []
    for lesson in zip(*rows, strict=True):
        name = lesson[0]["notebook"]
        seconds = [60 * row["minutes"] for row in lesson]
        fixed, work = fit(rates, seconds)
        print(f'    "{name}": ({fixed:.1f}, {work:.1f}),')
        fitted = [fixed + work / rate for rate in rates]
        pairs = zip(seconds, fitted, strict=True)
        lines.append(f"{name}: " + ", ".join(f"{s:.0f} s ({f:.0f})" for s, f in pairs))
    print("}\n\nmeasured (fitted)", *lines, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
