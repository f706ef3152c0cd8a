"""Exports a trained model: a GGUF file, a folder for a model hub, and its parity with PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alpaca_lib.lazy import attach

if TYPE_CHECKING:
    from alpaca_lib.export.hub_folder import publish as publish
    from alpaca_lib.export.parity import agreement as agreement
    from alpaca_lib.export.parity import post as post

__getattr__, __dir__, __all__ = attach(__name__, __file__)
