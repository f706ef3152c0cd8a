"""Options of a generation run: sampling, prompts and filter, and limits on speed and cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Strict

from alpaca_lib.options import Options, option

Effort = Literal["", "none", "minimal", "low", "medium", "high", "xhigh", "max"]
Texts = Annotated[tuple[str, ...], Strict(False)]  # a list in JSON


class _Shared(Options):
    """Sampling options that are also part of a run's settings."""

    temperature: float = option(1.0, "sampling temperature", least=0)
    top_p: float = option(1.0, "sample from the likeliest tokens with this total", above=0, most=1)
    max_tokens: int = option(3072, "most tokens of a reply", least=1)
    reply_format: Literal["text", "json"] = option("text", "text as Stanford's, or structured JSON")
    reasoning_effort: Effort = option(
        "none", "how long a reasoning model thinks, billed as output; empty: not sent"
    )


class Sampling(_Shared):
    """Options of one request; the local teacher does not get the last two.

    >>> Sampling(temperature=0.7, max_tokens=500)
    """

    service_tier: str = option("", "flex: half the price, slower")


class Settings(_Shared):
    """Options that decide a run's prompts and filter; a run resumes only with the same ones.

    >>> Settings(tasks_wanted=500, seed_words=60).save(Path("generation.json"))
    """

    tasks_wanted: int = option(100, "stop when that many tasks are kept")
    seeds_per_prompt: int = option(3, "seed tasks that a prompt shows", least=0)
    machine_tasks: int = option(0, "the teacher's own tasks that a prompt also shows", least=0)
    tasks_per_request: int = option(20, "new tasks that one prompt asks for", least=1)
    seed_words: int = option(0, "show only seeds of at most that many words; 0: any", least=0)
    threshold: float = option(0.7, "drop a task whose ROUGE-L with a known one is above this")
    rouge_mode: Literal["auto", "rouge", "unicode"] = option(
        "auto",
        "auto: as the text; rouge: a-z; unicode: any script",
    )
    seed: int = option(0, "draws the seeds of each prompt, and the local teacher's sampling")
    window: int = option(
        64, "replies by which a prompt that depends on earlier replies lags behind", least=0
    )
    topics: Texts = option((), "subjects; each prompt names one")
    verbs: Texts = option((), "verbs; each prompt asks for those used least so far")
    language: Literal["", "en", "zh"] = option(
        "", "language of what is added to the prompt; empty: the prompt's own"
    )
    safety: bool = option(True, "drop tasks that break a safety rule")
    safety_path: str = option("", "file of safety rules; empty: data/safety_rules.yaml")

    def sampling(self, way: str = "online") -> Sampling:
        """Returns the sampling options of a request that is sent ``way``."""
        shared = {name: getattr(self, name) for name in _Shared.model_fields}
        return Sampling(**shared, service_tier="flex" if way == "flex" else "")


class Limits(Options):
    """Limits on a run's speed and cost; these may change when it resumes.

    >>> Limits(concurrency=16, max_usd=5, way="batch")
    """

    concurrency: int = option(4, "concurrent requests", least=1)
    max_requests: int | None = option(
        None,
        "stop after that many requests; default: 5 times what is needed if all are kept",
        least=1,
    )
    max_usd: float | None = option(None, "spend at most that many dollars", least=0)
    requests_per_minute: float | None = option(None, "default: as the server says", least=1)
    tokens_per_minute: float | None = option(None, "default: as the server says", least=1)
    connect_timeout: float = option(20.0, "seconds to wait for a connection", above=0)
    idle_timeout: float | None = option(
        None,
        "seconds without a byte after which an attempt is repeated, with twice the time; default: "
        "90, and 600 for flex and servers of your own",
        above=0,
    )
    max_reply_bytes: int = option(10_000_000, "largest response, decompressed", least=1000)
    way: Literal["online", "flex", "batch"] = option(
        "online", "online; flex: slower; batch: within a day; both half the price"
    )
    prices_path: Annotated[Path | None, Strict(False)] = option(
        None, "file of model prices; default: data/prices.yaml"
    )


# By teacher; a server of data/teachers.yaml has those of openai.
_LARGE = {"tasks_per_request": 20, "temperature": 1.0, "top_p": 1.0, "seed_words": 0}
TEACHER_DEFAULTS: dict[str, dict[str, float]] = {
    "local": {"tasks_per_request": 3, "temperature": 0.8, "top_p": 0.95, "seed_words": 60},
    "openai": _LARGE,
    "replay": _LARGE,
}
