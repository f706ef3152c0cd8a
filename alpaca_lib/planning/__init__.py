"""Predicts what a run needs: memory by term and phase, FLOPs, time, money and layout.

made = plan(Settings(data_path="d.json", output_dir="out", model="llama-7b"), "4xA100-80")
made.needed, made.fits, made.seconds        # bytes per device, whether it fits, seconds
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alpaca_lib.lazy import attach

if TYPE_CHECKING:
    from alpaca_lib.planning.layout import Machine as Machine
    from alpaca_lib.planning.planner import Plan as Plan
    from alpaca_lib.planning.planner import Work as Work
    from alpaca_lib.planning.planner import advise as advise
    from alpaca_lib.planning.planner import check_memory as check_memory
    from alpaca_lib.planning.planner import plan as plan
    from alpaca_lib.planning.shapes import SHAPES as SHAPES

__getattr__, __dir__, __all__ = attach(__name__, __file__)
