"""Benchmarks that others use: IFEval, and the tasks of lm-evaluation-harness.

>>> benchmark = Benchmark(tasks="ifeval", ifeval_data=Path("ifeval.jsonl"), limit=40)
>>> for result in run_benchmarks(sources, benchmark, Path("results.json")):
...     print(result.task, result.scores)
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from alpaca_lib.errors import SettingsError
from alpaca_lib.evaluation.benchmark_model import NO_TEMPLATE, Benchmark, EvaluatedModel
from alpaca_lib.evaluation.benchmark_results import Result, ResultsFile
from alpaca_lib.evaluation.harness import Harness, save_samples
from alpaca_lib.evaluation.ifeval_task import IFEVAL, IfevalTask
from alpaca_lib.models import ModelSource


def run_benchmarks(
    sources: Mapping[str, ModelSource],
    benchmark: Benchmark,
    out: Path,
    report: Callable[[str], None] = lambda text: None,
) -> Iterator[Result]:
    """Yields the result of each model in each task, as soon as it is in the file ``out``.

    Results and answers that are already there are kept if their settings are the same; other
    settings raise DataError. Tasks and their data are loaded before any model is.
    """
    if benchmark.template == NO_TEMPLATE and IFEVAL in benchmark.names:
        raise SettingsError("template 'none': ifeval asks a model, which needs a template")
    others = [name for name in benchmark.names if name != IFEVAL]
    tasks: dict[str, IfevalTask | HarnessTask] = {}
    if IFEVAL in benchmark.names:
        tasks[IFEVAL] = IfevalTask(benchmark, report)
    if others:
        harness = Harness(others, benchmark.include_path)
        tasks |= {name: HarnessTask(name, harness, benchmark) for name in others}
    saved = ResultsFile(out)
    for name, source in sources.items():
        model = EvaluatedModel(name, source, benchmark)
        for task in benchmark.names:
            report(f"{name}: {task} ...")
            yield tasks[task].run(model, saved)
        del model
        gc.collect()  # two large models need not fit at once


class HarnessTask:
    """A task of lm-evaluation-harness."""

    def __init__(self, name: str, harness: Harness, benchmark: Benchmark) -> None:
        self.name, self.harness, self.benchmark = name, harness, benchmark

    def run(self, model: EvaluatedModel, saved: ResultsFile) -> Result:
        """Returns a model's result; one that is in the file is not measured again."""
        benchmark = self.benchmark
        options = {"limit": benchmark.limit, "num_fewshot": benchmark.num_fewshot}
        settings = {**model.settings, "template": model.template, **options}
        if found := saved.find(model.name, self.name, settings):
            return found
        start = time.monotonic()
        with model.pool.use(model.name) as loaded:
            measured = self.harness.measure(
                self.name,
                loaded,
                model.pool.tokenizer(model.name),
                model.template,
                batch_size=benchmark.batch_size,
                **options,
            )
        for task, samples in measured.samples.items():
            save_samples(saved.sibling(model.name, task), samples)
        return saved.add(
            Result(
                model=model.name,
                task=self.name,
                settings=settings,
                rows=measured.rows,
                of=measured.of,
                scores=measured.scores,
                details={"task_versions": measured.versions},
                run=model.describe_run(start),
            )
        )
