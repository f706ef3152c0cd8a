"""Prices of models, and an estimate of what a run costs before it starts.

Prices come from a dated file: data/prices.yaml, or your own. ``ledger`` enforces the limit
during the run.
"""

from __future__ import annotations

import datetime
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from alpaca_lib.errors import DataError, SettingsError
from alpaca_lib.records import read_text

PRICES = Path(__file__).resolve().parents[2] / "data" / "prices.yaml"
WAYS = ("online", "flex", "batch")
MILLION = 1_000_000.0
RESAMPLES = 2000  # of the bootstrap
# The part of a reply's tokens that is reasoning, by effort: the parts of max_tokens that
# OpenRouter's page "Reasoning Tokens" gives. An effort that is not sent counts as medium.
REASONING_SHARE = {
    "none": 0.0,
    "minimal": 0.1,
    "low": 0.2,
    "medium": 0.5,
    "high": 0.8,
    "xhigh": 0.95,
    "max": 0.95,
}
PRIOR = 4  # replies that REASONING_SHARE counts as, next to replies that were seen


@dataclass(frozen=True)
class Price:
    """Dollars per million tokens of one model, for one way of asking."""

    model: str
    input: float
    output: float
    cached: float
    dated: str
    note: str = ""
    gone: str = ""  # the day from which the model is not there any more, if it is known

    def cost(self, prompt: float, completion: float, cached: float = 0) -> float:
        """Returns the dollars of a reply with these numbers of tokens; prompt includes cached."""
        uncached = (prompt - cached) * self.input
        return (uncached + cached * self.cached + completion * self.output) / MILLION


FREE = Price("any", 0.0, 0.0, 0.0, "", "costs nothing")


def load_prices(path: Path | None = None, way: str = "online") -> dict[str, Price]:
    """Returns the Price of each model that is offered ``way``, by name, from a prices file.

    Raises DataError, naming the file and the model, for a price that cannot be read.
    """
    import yaml

    path = path or PRICES
    if way not in WAYS:
        raise SettingsError(f"way {way!r}: one of {', '.join(WAYS)}")
    try:
        table = yaml.safe_load(read_text(path))
        dated, models = str(table["dated"]), dict(table["models"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise DataError(
            f"{path}: no prices file: it needs `dated` and `models` ({error})"
        ) from None
    found = {str(name): _price(path, str(name), row, way, dated) for name, row in models.items()}
    return {name: price for name, price in found.items() if price is not None}


def _price(path: Path, name: str, row: Any, way: str, dated: str) -> Price | None:
    try:
        share = 1.0 if way == "online" else row.get("ways", {}).get(way) or None
        values = [row["input"], row["output"], row.get("cached", row["input"]), share or 0]
        if any(isinstance(value, bool) for value in values):
            raise TypeError("a price is a number")
        numbers = [float(value) for value in values]
        if not all(0 <= number < math.inf for number in numbers):
            raise ValueError("a price is a number of dollars, 0 or more")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: the price of {name} cannot be read ({error!r})") from None
    if share is None:
        return None
    note = str(row.get("note", ""))
    if gone := str(row.get("gone", "")):
        verb = "is" if gone <= datetime.date.today().isoformat() else "will be"
        note = f"{note}; {verb} gone from {gone}".removeprefix("; ")
    uncached, output, cached = (number * numbers[3] for number in numbers[:3])
    return Price(name, uncached, output, cached, dated, note, gone)


def load_withdrawn(path: Path = PRICES) -> dict[str, str]:
    """Returns the day from which each withdrawn model is not there any more, by name."""
    import yaml

    table = yaml.safe_load(read_text(path))
    rows = {name: row.get("gone") for name, row in table["models"].items()}
    found = {**rows, **table.get("withdrawn", {})}
    return {str(name): str(date) for name, date in found.items() if date}


@dataclass(frozen=True)
class Sampled:
    """One reply of a sample: tasks kept from it, and its tokens."""

    kept: float
    prompt_tokens: int
    completion_tokens: int  # those of reasoning included
    reasoning_tokens: int = 0


@dataclass(frozen=True)
class Estimate:
    """A run's estimated size, each as (5th percentile, median, 95th percentile)."""

    requests: tuple[float, float, float]
    prompt_tokens: tuple[float, float, float]
    completion_tokens: tuple[float, float, float]
    usd: tuple[float, float, float]
    reasoning_tokens: tuple[float, float, float] = (0.0, 0.0, 0.0)  # of the completion tokens


def expect_reasoning(
    sample: Sequence[Sampled], effort: str, seen: Sequence[Sampled] = ()
) -> list[Sampled]:
    """Returns a sample of answers without reasoning, with the reasoning that an effort adds.

    seen: this model's own replies. Each moves the expectation from REASONING_SHARE to their
    share, as one of PRIOR + 1, PRIOR + 2, ... replies.
    """
    expected = REASONING_SHARE.get(effort, REASONING_SHARE["medium"])
    if total := sum(reply.completion_tokens for reply in seen):
        measured = sum(reply.reasoning_tokens for reply in seen) / total
        expected = (PRIOR * expected + len(seen) * measured) / (PRIOR + len(seen))
    factor = 1 / (1 - min(expected, 0.99))  # of reasoning and answer to the answer alone
    found = []
    for reply in sample:
        answer = reply.completion_tokens - reply.reasoning_tokens
        tokens = round(answer * factor)
        found.append(
            replace(reply, completion_tokens=tokens, reasoning_tokens=max(tokens - answer, 0))
        )
    return found


def estimate(
    wanted: int, sample: Sequence[Sampled], price: Price, falls_to: float = 1.0, seed: int = 0
) -> Estimate:
    """Returns the Estimate for ``wanted`` kept tasks, from a sample of replies.

    The interval is a bootstrap over the sample's replies. falls_to: tasks kept per reply at the
    run's end, as a share of the sample's; new tasks get rarer as the pool grows, and each
    resample draws its own share from falls_to to 1.
    """
    table = np.array(
        [[s.kept, s.prompt_tokens, s.completion_tokens, s.reasoning_tokens] for s in sample],
        dtype=float,
    )
    if not len(table) or not table[:, 0].sum():
        raise ValueError("an estimate needs a sample in which at least one task was kept")
    if not 0 < falls_to <= 1:
        raise ValueError(f"falls_to {falls_to}: above 0, at most 1")
    draw = random.Random(seed)
    runs = []
    for _ in range(RESAMPLES):
        rows = table[[draw.randrange(len(table)) for _ in table]]
        kept, prompt, reply, reasoning = rows.mean(axis=0)
        end = draw.uniform(falls_to, 1.0)
        if kept:
            requests = wanted / (kept * (1 + end) / 2)  # the share falls linearly from 1 to end
            tokens = requests * prompt, requests * reply
            runs.append((requests, *tokens, price.cost(*tokens), requests * reasoning))
    columns = np.percentile(np.array(runs), [5, 50, 95], axis=0).T.tolist()
    return Estimate(*(tuple(column) for column in columns))
