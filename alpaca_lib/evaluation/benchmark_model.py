"""What a benchmark run measures: its options, and a model with what its answers depend on."""

from __future__ import annotations

import contextlib
import platform
import time
from datetime import UTC, datetime
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator

from alpaca_lib.files import sha256_file, sha256_text
from alpaca_lib.inference.model_pool import ModelPool, trained_template
from alpaca_lib.models import ModelSource, place
from alpaca_lib.models.adapters import weights_checksum
from alpaca_lib.options import Options, option
from alpaca_lib.prompts import CHAT

NO_TEMPLATE = "none"
PACKAGES = ("torch", "transformers", "peft", "lm_eval", "datasets", "nltk", "langdetect")
# What answers depend on, next to the weights.
MODEL_FILES = ("config.json", "adapter_config.json", "token*.json", "*.model", "*.jinja")


class Benchmark(Options):
    """What is measured, and how."""

    tasks: str = option(..., "names with commas between: ifeval, arc_easy, hellaswag, ...")
    limit: int | None = option(None, "the first N rows of each task; unset: all", least=1)
    template: str | None = option(
        None, "prompt template; none: the text alone (default: the trained one)"
    )
    batch_size: int = option(8, "prompts per batch", least=1, most=4096)
    max_new_tokens: int = option(1280, "tokens per answer of IFEval, at most", least=1, most=10**6)
    num_fewshot: int | None = option(None, "solved examples before each question", least=0)
    quantization: Literal["none", "int8", "nf4"] = option("none", "how weights are stored")
    ifeval_data: Path | None = option(
        None, "IFEval's JSON-lines file (default: google/IFEval on the hub)", strict=False
    )
    include_path: Path | None = option(
        None, "a folder with task files (YAML) of your own", strict=False
    )

    @field_validator("tasks")
    @classmethod
    def _check_tasks(cls, tasks: str) -> str:
        names = [name.strip() for name in tasks.split(",")]
        if not all(names) or len(set(names)) < len(names):
            raise ValueError("names of tasks with commas between, each once")
        return ",".join(names)

    @property
    def names(self) -> list[str]:
        """The tasks' names."""
        return self.tasks.split(",")


class EvaluatedModel:
    """A model that is loaded when its first answer is needed."""

    def __init__(self, name: str, source: ModelSource, benchmark: Benchmark) -> None:
        self.name, self.source, self.benchmark = name, source, benchmark
        self.placement = place()

    @cached_property
    def pool(self) -> ModelPool:
        """The loaded model, alone in its pool."""
        quantization = self.benchmark.quantization
        return ModelPool({self.name: self.source}, self.placement, quantization)

    @cached_property
    def template(self) -> str | None:
        """The template to use; None: the text alone."""
        if self.benchmark.template:
            given = self.benchmark.template
            return None if given == NO_TEMPLATE else given
        has_own = not self.source.is_adapter and self.source.load_tokenizer().chat_template
        return trained_template(self.source) or (CHAT if has_own else None)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What every result depends on."""
        return {
            "model": fingerprint(self.source),
            "dtype": self.placement.dtype,
            "quantization": self.benchmark.quantization,
        }

    def describe_run(self, start: float) -> dict[str, Any]:
        """Returns date, versions, device and seconds, for the results file."""
        versions = {"python": platform.python_version()}
        for package in PACKAGES:
            with contextlib.suppress(metadata.PackageNotFoundError):
                versions[package] = metadata.version(package)
        return {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions,
            "device": self.placement.device,
            "batch_size": self.benchmark.batch_size,
            "seconds": round(time.monotonic() - start, 1),
        }


def fingerprint(source: ModelSource) -> str:
    """Returns a checksum of a model's weights, configuration and tokenizer, with its base's.

    Of a model on the hub it is the commit.
    """
    if not source.folder.is_dir():
        return f"{source.path}@{getattr(source.config, '_commit_hash', None)}"
    files = sorted({file for name in MODEL_FILES for file in source.folder.glob(name)})
    parts = [weights_checksum(source.folder), *map(sha256_file, files)]
    if source.is_adapter:
        parts.append(fingerprint(source.base))
    return sha256_text(" ".join(parts))[:16]
