"""What becomes of a reply: tasks kept, and the rest with reasons."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alpaca_lib.dataset.rouge import NoveltyIndex
from alpaca_lib.generation.budget import Sampled
from alpaca_lib.generation.parsing import Rejected, Reply, parse_json_reply, parse_reply
from alpaca_lib.generation.prompting import Prompt
from alpaca_lib.generation.settings import Settings
from alpaca_lib.generation.teacher import RawReply
from alpaca_lib.records import Example, save_examples
from alpaca_lib.safety_rules import SafetyRule, find_broken_rule


@dataclass
class Outcome:
    """What a run kept and why it dropped the rest. usd is None where no price is known."""

    index: NoveltyIndex = field(repr=False)
    kept: list[Example] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    requests: int = 0
    resumed_requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    kept_after_request: list[int] = field(default_factory=list)
    rejected_after_request: list[dict[str, int]] = field(default_factory=list)
    samples: list[Sampled] = field(default_factory=list)
    usd: float | None = 0.0
    lost_usd: float = 0.0
    ended: str = ""  # enough, max_requests, budget or interrupted

    @classmethod
    def of(cls, seeds: Sequence[Example], threshold: float, mode: str) -> Outcome:
        """The outcome of a run that has not begun."""
        known = (seed.instruction for seed in seeds)
        return cls(NoveltyIndex(known, threshold, mode, os.cpu_count()))

    def reasons(self) -> Counter[str]:
        """How many were dropped for each reason."""
        return Counter(self.rejected_after_request[-1] if self.rejected_after_request else {})


@dataclass(frozen=True)
class Progress:
    """How far a run is, after a reply was judged."""

    requests: int
    resumed: bool
    kept: int
    wanted: int
    rejected: dict[str, int]
    seconds: float
    seconds_left: float | None
    usd: float | None

    def __str__(self) -> str:
        parts = [f"{self.kept} of {self.wanted} kept", f"{self.requests} replies"]
        if self.rejected:
            parts.append(f"{sum(self.rejected.values())} dropped")
        if self.seconds > 0 and not self.resumed:
            parts.append(f"{60 * self.requests / self.seconds:.3g} replies a minute")
        if self.usd:
            whole = f" of about ${self.usd * self.wanted / self.kept:.2f}" if self.kept else ""
            parts.append(f"${self.usd:.4f}{whole}")
        if self.usd is None:
            parts.append("price not known")
        if self.seconds_left:
            left = self.seconds_left
            parts.append(f"{left / 60:.0f} min left" if left >= 90 else f"{left:.0f} s left")
        return ", ".join(parts)


def parse(reply: RawReply, first_number: int, reply_format: str) -> Reply:
    """The tasks in a raw reply, in whichever format was asked for."""
    if reply.refusal:
        return Reply([], [Rejected("the teacher refused", reply.refusal)])
    if reply_format == "json":
        return parse_json_reply(reply.text, reply.finish_reason)
    return parse_reply(reply.text, reply.finish_reason, first_number)


def judge(
    reply: RawReply, prompt: Prompt, settings: Settings, rules: Sequence[SafetyRule],
    outcome: Outcome,
) -> list[dict[str, Any]]:  # fmt: skip
    """Adds to the outcome what one reply gives, in order; returns each task's decision."""
    parsed = parse(reply, prompt.first_number, settings.reply_format)
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
    outcome.kept_after_request.append(len(outcome.kept))
    gained = len(outcome.kept) - before
    outcome.samples.append(Sampled(gained, reply.prompt_tokens, reply.completion_tokens))
    return decisions


def samples_of(
    replies: Iterable[RawReply], seeds: Sequence[Example], threshold: float = 0.7
) -> list[Sampled]:
    """What replies to text prompts with three seeds gave and took: for an estimate."""
    settings = Settings(threshold=threshold)
    outcome = Outcome.of(seeds, threshold, settings.rouge_mode)
    for reply in replies:
        judge(reply, Prompt("", 4), settings, (), outcome)
    return outcome.samples


def _with_source(task: Example, prompt: Prompt) -> Example:
    extra: dict[str, Any] = dict(task.extra)
    if prompt.topic:
        extra["topic"] = prompt.topic
    if prompt.passage:
        extra["source"] = prompt.passage.source()
    return Example(task.instruction, task.input, task.output, extra)


def write_outcome(outcome: Outcome, folder: Path) -> Path:
    """Writes folder/regen.json: what is kept, each with its ten nearest among the seeds and
    what was kept before it, as Stanford's script writes them."""
    kept, first = outcome.kept, len(outcome.index) - len(outcome.kept)
    new = [n for n, task in enumerate(kept) if "avg_similarity_score" not in task.extra]
    for number, near in zip(
        new, outcome.index.neighbours_before([first + n for n in new]), strict=True
    ):
        task = kept[number]
        extra = {
            **task.extra,
            "most_similar_instructions": near.nearest,
            "avg_similarity_score": near.mean,
        }
        kept[number] = Example(task.instruction, task.input, task.output, extra)
    return save_examples(kept, folder / "regen.json")
