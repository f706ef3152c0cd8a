"""Reads the flags of Stanford's training command as scripts/train.py does."""

from __future__ import annotations

import importlib
import shlex
import sys
from typing import Any

from alpaca_lib.course.notebooks import REPO
from alpaca_lib.training import Settings


def read_train_flags(flags: str, processes: int) -> tuple[list[tuple[str, str]], Settings]:
    """Returns ([(flag as written, what it means here)], the settings) of a command line.

    ``processes``: as many as torchrun would start. Raises UsageError for an unknown flag.
    """
    folder = str(REPO / "scripts")
    if folder not in sys.path:
        sys.path.append(folder)
    parser: Any = importlib.import_module("flags")
    script: Any = importlib.import_module("train")
    before, script.PROCESSES = script.PROCESSES, processes  # torchrun sets it, by WORLD_SIZE
    try:
        given = parser.parse(script.SCRIPT, shlex.split(flags))
        rows = [
            (given.given[flag.name], flag.explain(given[flag.name]))
            for flag in script.SCRIPT.flags
            if flag.name in given.given
        ]
        settings: Settings = script.to_settings(given, processes)
    finally:
        script.PROCESSES = before
    return rows, settings
