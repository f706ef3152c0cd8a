"""Evaluates models on the same tasks: losses, checks, ROUGE-L, intervals, an LLM as the judge.

scores, answers = measure_model("lora", model, tokenizer, load_tasks(Path("tasks.json")))
for found in differences(scores, base_scores):
    print(found.measure, found.interval, found.p)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alpaca_lib.lazy import attach

if TYPE_CHECKING:
    from alpaca_lib.evaluation.alpaca_eval import load_outputs as load_outputs
    from alpaca_lib.evaluation.alpaca_eval import save_outputs as save_outputs
    from alpaca_lib.evaluation.comparison import Scores as Scores
    from alpaca_lib.evaluation.comparison import compare_models as compare_models
    from alpaca_lib.evaluation.comparison import compare_texts as compare_texts
    from alpaca_lib.evaluation.comparison import differences as differences
    from alpaca_lib.evaluation.comparison import load_tasks as load_tasks
    from alpaca_lib.evaluation.comparison import measure_model as measure_model
    from alpaca_lib.evaluation.comparison import reference_losses as reference_losses
    from alpaca_lib.evaluation.constraint_checks import meets as meets
    from alpaca_lib.evaluation.intervals import interval as interval
    from alpaca_lib.evaluation.intervals import sign_test as sign_test
    from alpaca_lib.evaluation.intervals import tasks_needed as tasks_needed
    from alpaca_lib.evaluation.intervals import win_rate as win_rate
    from alpaca_lib.evaluation.llm_judge import Pair as Pair
    from alpaca_lib.evaluation.llm_judge import judge as judge
    from alpaca_lib.evaluation.llm_judge import open_judge as open_judge

__getattr__, __dir__, __all__ = attach(__name__, __file__)
