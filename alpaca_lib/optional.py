"""Imports of packages that may be missing: one error, with the line that installs them.

Training and inference need torch, transformers, peft, safetensors, numpy and pydantic only;
everything else is imported where it is used, through ``require``.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from typing import Any

from alpaca_lib.errors import MissingPackageError


def require(module: str, install: str = "") -> Any:
    """Imports a module by name and returns it.

    ``install``: what pip installs, for a package that requirements.txt leaves out. Raises
    MissingPackageError, with the line that installs the package, if it is missing; an import
    that fails inside the package keeps its own error.
    """
    package = module.split(".")[0]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if error.name and error.name.split(".")[0] != package:
            raise
        everything = "" if install else " (or `pip install -r requirements.txt` for everything)"
        raise MissingPackageError(
            f"{package} is not installed; run `pip install {install or package}`{everything}"
        ) from None


@contextlib.contextmanager
def hide_progress_bars() -> Iterator[None]:
    """Hides the progress bars of transformers while the output is not a terminal."""
    logging = importlib.import_module("transformers.utils.logging")
    shown = logging.is_progress_bar_enabled()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
