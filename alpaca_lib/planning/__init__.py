"""Predicts what a run needs: memory by term and phase, FLOPs, time, money and layout.

    predicted = plan(Settings(data_path="d.json", output_dir="out", model="llama-7b"), "4xA100-80")
    predicted.needed, predicted.fits, predicted.seconds     # bytes per device, bool, seconds
    print(format_plan(predicted, Work()))                   # the table of `alpaca plan`

``advise`` lists ways of training that fit a machine; ``check_memory`` is what a run does
before its first step. Models that need no download are in ``SHAPES``, GPUs in data/gpus.yaml.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alpaca_lib.lazy import attach

if TYPE_CHECKING:
    from alpaca_lib.planning.advice import advise, check_memory
    from alpaca_lib.planning.layout import Machine, ShardingLayout, parse_machine
    from alpaca_lib.planning.plan_table import format_plan
    from alpaca_lib.planning.planner import Plan, Work, plan
    from alpaca_lib.planning.shapes import SHAPES

__getattr__, __dir__, __all__ = attach(__name__, __file__)
