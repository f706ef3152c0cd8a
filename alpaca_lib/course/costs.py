"""Estimates what a number of tasks costs, from the replies that were written for this course."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from alpaca_lib.generation.budget import Sampled, estimate, load_prices
from alpaca_lib.generation.filtering import sample_replies
from alpaca_lib.generation.messages import parse_completion
from alpaca_lib.generation.plan import DATA
from alpaca_lib.generation.replay_teacher import load_replies
from alpaca_lib.generation.teacher import REPLIES
from alpaca_lib.records import load_examples

ALPACAS_TEACHER = "text-davinci-003"


class Means(NamedTuple):
    """What a request gives and takes on average."""

    kept: float
    prompt_tokens: float
    completion_tokens: float


def recorded_sample() -> list[Sampled]:
    """Returns the tasks kept and the tokens of each of the course's replies."""
    seeds = load_examples(DATA / "seed_tasks.jsonl")
    return sample_replies([parse_completion(reply) for reply in load_replies(REPLIES)], seeds)


def mean_request(sample: Sequence[Sampled]) -> Means:
    """Returns the means of a sample of replies."""
    return Means(
        fmean(reply.kept for reply in sample),
        fmean(reply.prompt_tokens for reply in sample),
        fmean(reply.completion_tokens for reply in sample),
    )


def price_rows(wanted: int, sample: Sequence[Sampled], falls_to: float) -> list[list[str]]:
    """Returns [model, dollars, 90 % range, dollars as a batch, note] of each model, cheapest first.

    Models whose provider has announced their shutdown are left out, except Alpaca's teacher.
    falls_to: see ``estimate``.
    """
    online, batch = load_prices(), load_prices(way="batch")
    rows = []
    for name, price in online.items():
        if price.gone and name != ALPACAS_TEACHER:
            continue
        low, middle, high = estimate(wanted, sample, price, falls_to).usd
        cheaper = "-"
        if name in batch:
            cheaper = f"${estimate(wanted, sample, batch[name], falls_to).usd[1]:,.0f}"
        span = f"${low:,.0f} to ${high:,.0f}"
        rows.append((middle, [name, f"${middle:,.0f}", span, cheaper, price.note]))
    return [row for _, row in sorted(rows)]
