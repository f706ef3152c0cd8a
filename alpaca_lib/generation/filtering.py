"""Filters the tasks of a reply: those kept, and the rest with reasons."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from alpaca_lib.dataset.rouge import NoveltyIndex
from alpaca_lib.generation.budget import Sampled
from alpaca_lib.generation.messages import RawReply
from alpaca_lib.generation.parsing import Rejected, Reply, parse_json_reply, parse_reply
from alpaca_lib.generation.prompting import Prompt
from alpaca_lib.generation.settings import Settings
from alpaca_lib.records import Example, save_examples
from alpaca_lib.safety_rules import SafetyRule, find_broken_rule

ONLY_REASONING = (
    "only the model's reasoning came back, no answer: raise max_tokens, or lower reasoning_effort"
)


@dataclass
class Outcome:
    """Tasks that a run kept and dropped, and what they cost.

    >>> outcome = generate(teacher, seeds, header, settings, folder)
    >>> print(len(outcome.kept), outcome.reasons().most_common(3), outcome.ended)
    """

    index: NoveltyIndex = field(repr=False)  # instructions of the seeds and the kept tasks
    kept: list[Example] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    requests: int = 0  # replies that were filtered
    resumed_requests: int = 0  # of these, replies that were in the journal at the start
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0  # of the completion tokens
    kept_after_request: list[int] = field(default_factory=list)  # tasks kept after each reply
    rejected_after_request: list[dict[str, int]] = field(default_factory=list)  # by reason
    samples: list[Sampled] = field(default_factory=list)  # one per reply, for an estimate
    usd: float | None = 0.0  # dollars of the replies; None: no price is known
    lost_usd: float = 0.0  # dollars of attempts without a reply that may have been paid for
    in_flight_at_stop: int = 0  # requests without a reply when an earlier process ended
    ended: str = ""  # enough, max_requests, budget or interrupted

    @classmethod
    def start(cls, seeds: Sequence[Example], threshold: float, mode: str) -> Outcome:
        """Returns the outcome of a run without replies."""
        known = (seed.instruction for seed in seeds)
        return cls(NoveltyIndex(known, threshold, mode, os.cpu_count()))

    def reasons(self) -> Counter[str]:
        """Returns the number of dropped tasks by reason."""
        return Counter(self.rejected_after_request[-1] if self.rejected_after_request else {})


@dataclass(frozen=True)
class Progress:
    """A run's counts after a reply was filtered; str() gives them as one line."""

    requests: int
    resumed: bool
    kept: int
    wanted: int
    rejected: dict[str, int]
    seconds: float  # since this process started the run
    seconds_left: float | None
    usd: float | None

    def __str__(self) -> str:
        parts = [f"{self.kept} of {self.wanted} kept", f"{self.requests} replies"]
        if self.rejected:
            parts.append(f"{sum(self.rejected.values())} dropped")
        if self.seconds > 0 and not self.resumed:
            parts.append(f"{60 * self.requests / self.seconds:.3g} replies per minute")
        if self.usd:
            total = f" of about ${self.usd * self.wanted / self.kept:.2f}" if self.kept else ""
            parts.append(f"${self.usd:.4f}{total}")
        if self.usd is None:
            parts.append("price unknown")
        if self.seconds_left:
            left = self.seconds_left
            parts.append(f"{left / 60:.0f} min left" if left >= 90 else f"{left:.0f} s left")
        return ", ".join(parts)


def parse_raw_reply(reply: RawReply, first_number: int, reply_format: str) -> Reply:
    """Returns the tasks in a raw reply of the given format."""
    if reply.refusal:
        return Reply([], [Rejected("the teacher refused", reply.refusal)])
    if reply.only_reasoning:
        return Reply([], [Rejected(ONLY_REASONING, "")])
    if reply_format == "json":
        return parse_json_reply(reply.text, reply.finish_reason)
    return parse_reply(reply.text, reply.finish_reason, first_number)


def filter_reply(
    reply: RawReply,
    prompt: Prompt,
    settings: Settings,
    rules: Sequence[SafetyRule],
    outcome: Outcome,
) -> list[dict[str, Any]]:
    """Adds the tasks of one reply to the outcome, in order; returns each task's decision."""
    parsed = parse_raw_reply(reply, prompt.first_number, settings.reply_format)
    rejected, decisions = list(parsed.rejected), []
    before = len(outcome.kept)
    for task in parsed.tasks:
        line: dict[str, Any] = {"instruction": task.instruction}
        if name := find_broken_rule(task, rules):
            line["dropped"] = f"unsafe: {name}"
        elif not (found := outcome.index.check(task.instruction)).kept:
            line["dropped"] = f"ROUGE-L above {settings.threshold} with a known instruction"
            line |= {"score": found.score, "nearest": found.nearest}
        else:
            outcome.index.add(task.instruction)
            outcome.kept.append(_with_source(task, prompt))
        if "dropped" in line:
            rejected.append(Rejected(line["dropped"], task.instruction))
        decisions.append(line)
    decisions += [{"text": one.text, "dropped": one.reason} for one in parsed.rejected]
    outcome.rejected += rejected
    counts = outcome.reasons() + Counter(one.reason for one in rejected)
    outcome.rejected_after_request.append(dict(counts))
    outcome.requests += 1
    outcome.prompt_tokens += reply.prompt_tokens
    outcome.completion_tokens += reply.completion_tokens
    outcome.reasoning_tokens += reply.reasoning_tokens
    outcome.kept_after_request.append(len(outcome.kept))
    gained = len(outcome.kept) - before
    tokens = (reply.prompt_tokens, reply.completion_tokens, reply.reasoning_tokens)
    outcome.samples.append(Sampled(gained, *tokens))
    return decisions


def sample_replies(
    replies: Iterable[RawReply], seeds: Sequence[Example], threshold: float = 0.7
) -> list[Sampled]:
    """Returns the sample that an estimate needs, from replies to text prompts with 3 seeds."""
    settings = Settings(threshold=threshold)
    outcome = Outcome.start(seeds, threshold, settings.rouge_mode)
    for reply in replies:
        filter_reply(reply, Prompt("", 4), settings, (), outcome)
    return outcome.samples


def _with_source(task: Example, prompt: Prompt) -> Example:
    extra: dict[str, Any] = dict(task.extra)
    if prompt.topic:
        extra["topic"] = prompt.topic
    if prompt.passage:
        extra["source"] = prompt.passage.source()
    return replace(task, extra=extra)


def write_outcome(outcome: Outcome, path: Path) -> Path:
    """Writes the kept tasks to a .json file and returns its path.

    Each kept task has its ten nearest among the seeds and the tasks kept before it, as
    Stanford's script writes them.
    """
    kept, first = outcome.kept, len(outcome.index) - len(outcome.kept)
    new = [n for n, task in enumerate(kept) if "avg_similarity_score" not in task.extra]
    for number, near in zip(
        new, outcome.index.neighbours_before([first + n for n in new]), strict=True
    ):
        similar = {"most_similar_instructions": near.nearest, "avg_similarity_score": near.mean}
        task = kept[number]
        kept[number] = replace(task, extra={**task.extra, **similar})
    return save_examples(kept, path)
