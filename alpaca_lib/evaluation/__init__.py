"""Evaluates models on the same tasks: losses, checks, ROUGE-L, benchmarks, an LLM as the judge.

scores, answers = measure_model("lora", model, tokenizer, load_tasks(Path("tasks.json")))
for found in differences(scores, base_scores):
    print(found.measure, found.interval, found.p)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alpaca_lib.lazy import attach

if TYPE_CHECKING:
    from alpaca_lib.evaluation.alpaca_eval import load_outputs, load_pairs, save_outputs
    from alpaca_lib.evaluation.benchmark_model import Benchmark
    from alpaca_lib.evaluation.benchmark_results import Result
    from alpaca_lib.evaluation.benchmarks import run_benchmarks
    from alpaca_lib.evaluation.comparison import (
        Scores,
        compare_models,
        compare_texts,
        differences,
        measure_model,
        reference_losses,
        repetition,
        rouge_scores,
    )
    from alpaca_lib.evaluation.constraint_checks import meets
    from alpaca_lib.evaluation.ifeval import load_prompts, verify
    from alpaca_lib.evaluation.intervals import interval, sign_test, tasks_needed, win_rate
    from alpaca_lib.evaluation.llm_judge import Pair, judge, open_judge
    from alpaca_lib.evaluation.tasks import (
        answer_follow_ups,
        load_follow_ups,
        load_tasks,
    )

__getattr__, __dir__, __all__ = attach(__name__, __file__)
