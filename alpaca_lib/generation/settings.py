"""What a run of generation is told: how to prompt and filter, how to sample, how far to go."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path


@dataclass(frozen=True)
class Sampling:
    """How a teacher chooses its words. reasoning_effort and service_tier go to "openai" only."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 3072
    reply_format: str = "text"  # or "json": a schema that the server holds the reply to
    reasoning_effort: str = "none"  # thinking is billed as output; "" sends nothing
    service_tier: str = ""  # "flex": half the price, slower


@dataclass(frozen=True)
class Settings:
    """What decides a run's prompts and filter; a run resumes only with the same."""

    tasks_wanted: int = 100
    seeds_per_prompt: int = 3
    machine_tasks: int = 0  # of the teacher's own, shown beside the seeds (Self-Instruct: 6 and 2)
    tasks_per_request: int = 20
    seed_words: int = 0  # show only seeds of at most so many words; 0: any
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 3072
    threshold: float = 0.7
    rouge_mode: str = "rouge"
    seed: int = 0
    window: int = 64  # how many replies a prompt lags behind, where it depends on earlier ones
    topics: tuple[str, ...] = ()  # one is drawn for each prompt
    verbs: tuple[str, ...] = ()  # the rarest of these so far are asked for
    language: str = ""  # of the prompt's own words; empty: as the header's
    reply_format: str = "text"
    reasoning_effort: str = "none"
    safety: bool = True
    safety_path: str = ""  # the reader's own rules; empty: data/safety_rules.yaml

    def sampling(self, way: str = "online") -> Sampling:
        """The part that goes to the teacher."""
        shared = {f.name: getattr(self, f.name) for f in fields(Sampling) if hasattr(self, f.name)}
        return Sampling(**shared, service_tier="flex" if way == "flex" else "")


@dataclass(frozen=True)
class Limits:
    """How fast, how dear and how long a run may be; these may change when it goes on."""

    concurrency: int = 4
    max_requests: int | None = None  # None: five times what a teacher that wastes nothing needs
    max_usd: float | None = None
    requests_per_minute: float | None = None  # None: what the server's headers say
    tokens_per_minute: float | None = None
    way: str = "online"  # flex: half the price, slower; batch: half the price, within a day
    prices_path: Path | None = None

    def __post_init__(self) -> None:
        for name in ("concurrency", "max_requests", "requests_per_minute", "tokens_per_minute"):
            value = getattr(self, name)
            if value is not None and not value >= 1:
                raise ValueError(f"{name} {value}: 1 or more")
