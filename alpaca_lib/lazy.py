"""Lazy public names of a package: listed once, loaded when they are used.

A package lists its public names as imports under ``if TYPE_CHECKING``, which type checkers and
editors read; ``attach`` reads the same lines and imports a name's module at its first use. So
``import alpaca_lib.training`` loads neither torch nor transformers (as PEP 562 and the package
lazy-loader do).
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any


def attach(
    package: str, file: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Returns ``__getattr__``, ``__dir__`` and ``__all__`` of a package from its own source.

    >>> __getattr__, __dir__, __all__ = attach(__name__, __file__)
    """
    homes: dict[str, str] = {}
    for block in ast.parse(Path(file).read_text(encoding="utf-8")).body:
        if isinstance(block, ast.If) and getattr(block.test, "id", "") == "TYPE_CHECKING":
            for line in block.body:
                if isinstance(line, ast.ImportFrom) and line.module:
                    homes |= {alias.asname or alias.name: line.module for alias in line.names}
    names = sorted(homes)

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(homes[name]), name)

    return get, lambda: names, names
