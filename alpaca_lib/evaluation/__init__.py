"""Scores answers and compares models: metrics, intervals, a model as the judge, AlpacaEval."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alpaca_lib.lazy import attach

if TYPE_CHECKING:
    from alpaca_lib.evaluation.alpaca_eval import save_outputs as save_outputs
    from alpaca_lib.evaluation.comparison import differences as differences
    from alpaca_lib.evaluation.comparison import measured as measured
    from alpaca_lib.evaluation.comparison import reference_losses as reference_losses
    from alpaca_lib.evaluation.intervals import sign_test as sign_test
    from alpaca_lib.evaluation.intervals import tasks_needed as tasks_needed
    from alpaca_lib.evaluation.llm_judge import Pair as Pair
    from alpaca_lib.evaluation.llm_judge import judge as judge
    from alpaca_lib.evaluation.llm_judge import open_judge as open_judge

__getattr__, __dir__, __all__ = attach(__name__, __file__)
