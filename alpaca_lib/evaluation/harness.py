"""Benchmarks of lm-evaluation-harness on a model that is loaded here.

Its HF backend computes log-likelihoods with our model and tokenizer, so adapters, quantisation
and the prompt template apply. (Gao et al., github.com/EleutherAI/lm-evaluation-harness)
"""

from __future__ import annotations

import copy
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist, mean
from typing import Any

from alpaca_lib.errors import AlpacaError, SettingsError
from alpaca_lib.evaluation.ifeval_scores import proportion
from alpaca_lib.evaluation.intervals import Interval
from alpaca_lib.files import write_text
from alpaca_lib.hub_data import explained_downloads
from alpaca_lib.optional import require
from alpaca_lib.options import nearest
from alpaca_lib.tokenization import PromptEncoder

INSTALL = '"lm_eval>=0.4.13,<0.5"'
FIX = (
    "set HF_ENDPOINT to a mirror, or HF_DATASETS_CACHE to a folder of `datasets` that has it; or "
    "write a task with `dataset_path: json` and your `data_files`, and name its folder with "
    "--include-path"
)


@dataclass(frozen=True)
class TaskResult:
    """The result of one task or group: scores by metric, and the rows it was measured on."""

    scores: dict[str, Interval]
    rows: int  # of all its tasks
    of: int  # rows that they have without a limit
    samples: dict[str, list[dict[str, Any]]]  # by task
    versions: dict[str, Any]  # of the tasks


class Harness:
    """Tasks of lm-evaluation-harness, loaded before any model is.

    >>> tasks = Harness(["arc_easy"])
    >>> tasks.measure("arc_easy", model, tokenizer, template="chat", limit=100)
    """

    def __init__(self, names: Sequence[str], include_path: Path | None = None) -> None:
        """Loads the tasks and their data. Raises SettingsError for an unknown task, DataError
        for data that are unavailable, and MissingPackageError without lm_eval."""
        require("lm_eval", INSTALL)
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        if include_path is not None and not include_path.is_dir():
            raise SettingsError(f"include_path {str(include_path)!r}: is no folder of task files")
        self._manager = require("lm_eval.tasks").TaskManager(
            include_path=None if include_path is None else str(include_path)
        )
        for name in names:
            if name not in self._manager.task_index:
                raise SettingsError(
                    f"no task {name!r} in lm-evaluation-harness"
                    f"{nearest(name, self._manager.all_tasks)}; `lm_eval ls tasks` lists them"
                )
            tasks = self._load(name)
            if any(getattr(task, "UNSAFE_CODE", False) for task in tasks.values()):
                raise SettingsError(
                    f"task {name}: runs code that the model writes; this command does not"
                )

    def _load(self, name: str) -> dict[str, Any]:
        """Returns the task objects of a task or group, with their data."""
        try:
            with explained_downloads(f"task {name}", FIX):
                tasks: dict[str, Any] = self._manager.load([name])["tasks"]
                return tasks
        except AlpacaError:
            raise
        except Exception as error:  # of the task's own file, or of a package that it needs
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise SettingsError(f"task {name}: cannot be loaded ({reason})") from error

    def measure(
        self,
        name: str,
        model: Any,
        tokenizer: Any,
        template: str | None,
        limit: int | None = None,
        batch_size: int = 8,
        num_fewshot: int | None = None,
    ) -> TaskResult:
        """Returns the result of a task, or of a group of tasks, for a model.

        ``template`` is that of the prompts (None: the task's text alone).
        """
        with explained_downloads(f"task {name}", FIX):
            found = require("lm_eval").simple_evaluate(
                model=build_model(model, tokenizer, template, batch_size),
                tasks=[name],
                task_manager=self._manager,
                num_fewshot=num_fewshot,
                limit=limit,
                apply_chat_template=template is not None,
                bootstrap_iters=1000,
            )
        counts = found["n-samples"].values()
        return TaskResult(
            scores=_read_scores(name, found),
            rows=sum(count["effective"] for count in counts),
            of=sum(count["original"] for count in counts),
            samples=found["samples"],
            versions=found["versions"],
        )


def build_model(model: Any, tokenizer: Any, template: str | None, batch_size: int) -> Any:
    """Returns the harness's HFLM of a loaded model.

    Its tokenizer has the template that the model was trained on as its chat template. Logits of
    16 bits are normalised in float32: in bfloat16, which has 8 bits, sums of log-likelihoods would
    be multiples of 1/16 and answers would tie.
    """
    own = copy.deepcopy(tokenizer)
    if template is not None:
        own.chat_template = PromptEncoder(tokenizer, template).published_template()
    return require("lm_eval.models.huggingface").HFLM(
        pretrained=model,
        backend="causal",
        tokenizer=own,
        batch_size=batch_size,
        softmax_dtype="float32",
    )


def _read_scores(name: str, found: Mapping[str, Any]) -> dict[str, Interval]:
    """Returns the Interval of each metric of a task or group; of a tag, of each of its tasks."""
    results = {**found["results"], **found.get("groups", {})}
    if name in results:
        return _read_metrics(results[name], found["samples"].get(name, []))
    return {
        f"{task} {metric}": score
        for task, row in results.items()
        for metric, score in _read_metrics(row, found["samples"].get(task, [])).items()
    }


def _read_metrics(
    row: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]
) -> dict[str, Interval]:
    """Returns the Interval of each metric; of ones and zeros it is that of a proportion.

    Its ends are nan where the harness has no standard error.
    """
    scores = {}
    for key, value in row.items():
        metric, _, kept = key.partition(",")
        if not kept or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        values = [one[metric] for one in samples if one["filter"] == kept and metric in one]
        error = row.get(f"{metric}_stderr,{kept}")
        reach = NormalDist().inv_cdf(0.975) * error if isinstance(error, float) else math.nan
        score = Interval(float(value), value - reach, value + reach)
        if values and all(v in (0, 1) for v in values) and abs(mean(values) - value) < 1e-9:
            score = proportion([float(v) for v in values])
        scores[metric if kept == "none" else f"{metric} ({kept})"] = score
    return scores


def save_samples(path: Path, samples: Sequence[Mapping[str, Any]]) -> Path:
    """Writes one task's rows as JSON lines: document, requests, responses, metrics."""
    convert = require("lm_eval.utils").handle_non_serializable
    lines = (json.dumps(row, ensure_ascii=False, default=convert) + "\n" for row in samples)
    return write_text(path, "".join(lines))
