"""Trains in this process, after checking that the run fits its memory."""

from __future__ import annotations

from pathlib import Path

from alpaca_lib.planning import check_memory
from alpaca_lib.training.loop import Report, train
from alpaca_lib.training.settings import Settings


def run(settings: Settings, report: Report = lambda line: None) -> Path:
    """Trains in this process, one rank of torchrun or alone, and returns the output folder.

    Raises NotEnoughMemory, with settings that would fit, before any work; else as
    ``alpaca_lib.training.train``.
    """
    return train(settings, report, check_memory)
