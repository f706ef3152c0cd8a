"""What a run is expected to take, printed before anything is spent: requests, tokens, dollars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from alpaca_lib.generation.budget import (
    FREE,
    PRIOR,
    Estimate,
    Sampled,
    estimate,
    expect_reasoning,
    load_prices,
)
from alpaca_lib.generation.filtering import sample_replies
from alpaca_lib.generation.messages import parse_completion
from alpaca_lib.generation.replay_teacher import load_replies
from alpaca_lib.generation.settings import Limits, Settings
from alpaca_lib.records import load_examples

DATA = Path(__file__).resolve().parents[2] / "data"
RECORDED_TASKS = 20  # new tasks that each recorded reply was asked for


def describe_plan(
    settings: Settings,
    limits: Limits,
    model: str,
    *,
    is_free: bool = False,
    has_budget: bool = False,
    seen: Sequence[Sampled] = (),
) -> str:
    """Returns the lines of a run's plan: requests, tokens, dollars, and the limit.

    is_free: the server is the user's own. has_budget: the reasoning has a limit of its own.
    seen: the run's replies so far, if it resumes.
    """
    left = settings.tasks_wanted - round(sum(reply.kept for reply in seen))
    if left <= 0:
        return f"plan: nothing to ask, {settings.tasks_wanted} tasks are kept already"
    sample = _sample(settings, seen)
    price = FREE if is_free else load_prices(limits.prices_path, limits.way).get(model)
    found = estimate(left, sample, price or FREE, falls_to=0.5)
    basis = f"this run's {len(seen)} replies" if seen else "the course's recorded replies"
    if seen and len(seen) < 2 * PRIOR:
        basis += " and the course's recorded ones"
    lines = [_describe_size(found, left, settings, basis)]
    mean = sum(reply.completion_tokens for reply in sample) / len(sample)
    if not has_budget and mean > settings.max_tokens:
        room = 1 << (int(1.25 * mean) - 1).bit_length()
        lines.append(
            f"warning: a reply is expected to take {mean:,.0f} tokens, reasoning included, and "
            f"max_tokens {settings.max_tokens} cuts it; set max_tokens to {room}, or lower "
            "reasoning_effort"
        )
    if is_free:
        lines.append("cost: none, the server is your own")
    elif price is None:
        lines.append(f"cost: unknown, {model} ({limits.way}) is not in the prices file")
    else:
        low, middle, high = (f"{usd:.2f}" if usd >= 0.1 else f"{usd:.4f}" for usd in found.usd)
        limit = (
            "--max_usd sets a limit"
            if limits.max_usd is None
            else f"never over {limits.max_usd}: a request is sent only if its most expensive "
            "reply still fits"
        )
        note = f"; {model}: {price.note}" if price.note else ""
        lines.append(
            f"cost: about ${middle} (${low} to ${high}) by prices of {price.dated}; {limit}{note}"
        )
    return "\n".join(lines)


def _describe_size(found: Estimate, left: int, settings: Settings, basis: str) -> str:
    low, middle, high = found.requests
    noun = "request" if round(middle) == 1 else "requests"
    reasoning = ""
    if found.reasoning_tokens[1]:
        effort = settings.reasoning_effort or "its default"
        reasoning = f", {found.reasoning_tokens[1]:,.0f} of them reasoning (effort {effort})"
    return (
        f"plan: about {middle:.0f} {noun} ({low:.0f} to {high:.0f}) of "
        f"{settings.tasks_per_request} tasks for {left} tasks, {found.prompt_tokens[1]:,.0f} "
        f"prompt and {found.completion_tokens[1]:,.0f} reply tokens{reasoning}; judging by {basis}"
    )


def _sample(settings: Settings, seen: Sequence[Sampled]) -> list[Sampled]:
    """Returns the replies that an estimate is made from: the run's own as soon as they suffice."""
    if len(seen) >= 2 * PRIOR and any(reply.kept for reply in seen):
        return list(seen)
    replies = [parse_completion(reply) for reply in load_replies(DATA / "teacher_replies.jsonl")]
    seeds = load_examples(DATA / "seed_tasks.jsonl")
    share = settings.tasks_per_request / RECORDED_TASKS
    recorded = [
        replace(
            reply,
            kept=reply.kept * share,
            completion_tokens=round(reply.completion_tokens * share),
        )
        for reply in sample_replies(replies, seeds, settings.threshold)
    ]
    return [*expect_reasoning(recorded, settings.reasoning_effort, seen), *seen]
