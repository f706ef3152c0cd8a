"""Results of benchmarks: one JSON file, which keeps what earlier runs measured."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from alpaca_lib.errors import DataError, FileError
from alpaca_lib.evaluation.answers_file import check_settings
from alpaca_lib.evaluation.intervals import Interval
from alpaca_lib.files import dump_json, parse_json, read_small, write_text


@dataclass(frozen=True)
class Result:
    """One model's result in one task."""

    model: str
    task: str
    settings: dict[str, Any]  # that the scores depend on
    rows: int  # that were measured
    of: int  # that the task has
    scores: dict[str, Interval]
    details: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)  # date, versions, device, seconds

    def to_json(self) -> dict[str, Any]:
        """Returns the result for a JSON file, in which an unknown end of an interval is null."""
        scores = {
            name: {key: None if math.isnan(x) else x for key, x in asdict(score).items()}
            for name, score in self.scores.items()
        }
        return {**vars(self), "scores": scores}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Result:
        """Returns the Result of to_json()."""
        scores = {
            name: Interval(**{key: math.nan if x is None else x for key, x in score.items()})
            for name, score in row["scores"].items()
        }
        return cls(**{**row, "scores": scores})


class ResultsFile:
    """Results in one JSON file, which is replaced atomically after each of them."""

    def __init__(self, path: Path) -> None:
        """Reads the results that are there. Raises DataError for another kind of file."""
        self.path = path
        self.results: list[Result] = []
        if not path.exists():
            return
        try:
            found = parse_json(read_small(path))
            self.results = [Result.from_json(row) for row in found["results"]]
        except (FileError, ValueError, KeyError, TypeError, AttributeError):
            raise DataError(
                f"{path}: is no file of `alpaca evaluate`; name another one with --out"
            ) from None

    def find(self, model: str, task: str, settings: Mapping[str, Any]) -> Result | None:
        """Returns the result that is there; raises DataError if its settings differ."""
        for result in self.results:
            if (result.model, result.task) == (model, task):
                check_settings(result.settings, settings, self.path)
                return result
        return None

    def add(self, result: Result) -> Result:
        """Adds a result, in the place of an earlier one, and writes the file."""
        key = (result.model, result.task)
        self.results = [one for one in self.results if (one.model, one.task) != key] + [result]
        rows = [one.to_json() for one in self.results]
        write_text(self.path, dump_json({"results": rows}, indent=1) + "\n")
        return result

    def sibling(self, model: str, task: str) -> Path:
        """Returns the path of a model's rows in a task: results.MODEL.TASK.jsonl."""
        plain = re.sub(r"[^\w.-]", "_", task)
        return self.path.with_name(f"{self.path.stem}.{model}.{plain}.jsonl")
