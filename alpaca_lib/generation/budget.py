"""What a run costs: before it, an estimate; during it, a limit that is never passed.

Prices come from a dated file (data/prices.yaml, or the reader's own). A request is
sent only if the dearest reply it can get fits into what is left, so the limit holds
whatever the replies cost, with any number of them on their way.
"""

from __future__ import annotations

import datetime
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from alpaca_lib.errors import BudgetSpent, DataError

PRICES = Path(__file__).resolve().parents[2] / "data" / "prices.yaml"
WAYS = ("online", "flex", "batch")
MILLION = 1_000_000.0


class Usage(Protocol):
    """The token counts of a reply."""

    @property
    def prompt_tokens(self) -> int: ...
    @property
    def completion_tokens(self) -> int: ...
    @property
    def cached_tokens(self) -> int: ...


@dataclass(frozen=True)
class Price:
    """US dollars for a million tokens of one model, asked one way."""

    model: str
    input: float
    output: float
    cached: float
    dated: str
    note: str = ""

    def of(self, prompt_tokens: float, completion_tokens: float, cached_tokens: float = 0) -> float:
        """The cost of a reply in dollars."""
        paid = prompt_tokens - cached_tokens
        total = paid * self.input + cached_tokens * self.cached + completion_tokens * self.output
        return total / MILLION


FREE = Price("any", 0.0, 0.0, 0.0, "", "costs nothing")


def load_prices(path: Path | None = None, way: str = "online") -> dict[str, Price]:
    """Model name -> Price for one way of asking, from a prices file.

    A model that is not offered that way is left out. Raises DataError with the place.
    """
    import yaml

    path = path or PRICES
    if way not in WAYS:
        raise ValueError(f"way {way!r}: one of {', '.join(WAYS)}")
    try:
        table = yaml.safe_load(path.read_text(encoding="utf-8"))
        dated, models = str(table["dated"]), dict(table["models"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise DataError(
            f"{path}: no prices file: it needs `dated` and `models` ({error})"
        ) from None
    return {
        str(name): price
        for name, row in models.items()
        if (price := _price(path, str(name), row, way, dated)) is not None
    }


def _price(path: Path, name: str, row: Any, way: str, dated: str) -> Price | None:
    try:
        part = 1.0 if way == "online" else row.get("ways", {}).get(way) or None
        values = [row["input"], row["output"], row.get("cached", row["input"]), part or 0]
        if any(isinstance(value, bool) for value in values):
            raise TypeError("a price is a number")
        numbers = [float(value) for value in values]
        if not all(0 <= number < math.inf for number in numbers):
            raise ValueError("a price is a number of dollars, 0 or more")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: the price of {name} cannot be read ({error!r})") from None
    if part is None:
        return None
    note = str(row.get("note", ""))
    if gone := row.get("gone"):
        verb = "is" if str(gone) <= datetime.date.today().isoformat() else "will be"
        note = f"{note}; {verb} gone from {gone}".removeprefix("; ")
    paid, output, cached = (number * numbers[3] for number in numbers[:3])
    return Price(name, paid, output, cached, dated, note)


@dataclass
class Budget:
    """Dollars spent, reserved for requests on their way, and perhaps spent for nothing.

    price None: not known, so no limit can be kept; max_usd None: there is no limit.
    """

    price: Price | None = FREE
    max_usd: float | None = None
    spent: float = 0.0
    reserved: float = 0.0
    forfeited: float = 0.0  # attempts without an answer that may have been paid for

    def __post_init__(self) -> None:
        if self.max_usd is None:
            return
        if not self.max_usd >= 0:
            raise ValueError(f"max_usd {self.max_usd}: a number of dollars, 0 or more")
        if self.price is None:
            raise DataError(
                "max_usd needs the model's price: add it to a copy of data/prices.yaml and pass "
                "that file, or set no max_usd"
            )

    @property
    def committed(self) -> float:
        """The most that can have been paid once all requests on their way are answered."""
        return self.spent + self.reserved + self.forfeited

    def fits(self, most_prompt: float, most_reply: float) -> bool:
        """Whether one more request of at most so many tokens stays within the limit."""
        if self.max_usd is None or self.price is None:
            return True
        return self.committed + self.most(most_prompt, most_reply) <= self.max_usd

    def most(self, prompt: float, reply: float) -> float:
        """The dollars that a reply with so many tokens can cost, in the cache or not."""
        if self.price is None:
            return 0.0
        return max(self.price.of(prompt, reply), self.price.of(prompt, reply, prompt))

    def reserve(self, most_prompt: float, most_reply: float) -> float:
        """The dollars set aside for a request. Raises BudgetSpent if they are not there."""
        if not self.fits(most_prompt, most_reply):
            raise BudgetSpent(
                f"the budget of ${_dollars(self.max_usd)} is used up: ${self.spent:.4f} spent, "
                f"${self.forfeited:.4f} perhaps spent on attempts without an answer, and the "
                "next request could pass it. What was generated is kept; a larger max_usd "
                "continues it"
            )
        dollars = self.most(most_prompt, most_reply)
        self.reserved += dollars
        return dollars

    def release(self, dollars: float) -> None:
        """Gives back what was set aside for a request that cost nothing."""
        self.reserved = max(self.reserved - dollars, 0.0)

    def charge(self, dollars: float, reply: Usage) -> float:
        """What the reply cost: all that was set aside for it where the server does not say how
        many tokens it counted."""
        counted = reply.prompt_tokens > 0 and reply.completion_tokens >= 0
        return self.cost(reply) if counted else dollars

    def settle(self, dollars: float, reply: Usage) -> float:
        """Replaces what was set aside by what the reply cost, and returns that."""
        self.release(dollars)
        cost = self.charge(dollars, reply)
        self.spent += cost
        return cost

    def forfeit(self, dollars: float) -> None:
        """The request may have been paid for, and no answer came."""
        self.release(dollars)
        self.forfeited += dollars

    def cost(self, reply: Usage) -> float:
        """The dollars of one reply, 0 if the price is not known."""
        if self.price is None:
            return 0.0
        return self.price.of(reply.prompt_tokens, reply.completion_tokens, reply.cached_tokens)


def _dollars(amount: float | None) -> str:
    return f"{amount:.2f}" if amount and amount >= 0.01 else f"{amount:g}"


@dataclass(frozen=True)
class Sampled:
    """What one reply of a sample gave, and what it took."""

    kept: int
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Estimate:
    """What a run would take: (low, middle, high), 90 % of them between low and high."""

    requests: tuple[float, float, float]
    prompt_tokens: tuple[float, float, float]
    completion_tokens: tuple[float, float, float]
    usd: tuple[float, float, float]


def estimate(
    wanted: int, sample: Sequence[Sampled], price: Price, falls_to: float = 1.0, seed: int = 0
) -> Estimate:
    """The Estimate for so many kept tasks, from replies like those to come.

    The interval is a bootstrap over the sample's replies. falls_to: the share of kept tasks
    at the run's end, of what the sample kept; tasks get harder to be new as the pool grows,
    and the interval lies between no fall and this one.
    """
    table = np.array([[s.kept, s.prompt_tokens, s.completion_tokens] for s in sample], dtype=float)
    if not len(table) or not table[:, 0].sum():
        raise ValueError("an estimate needs a sample in which at least one task was kept")
    if not 0 < falls_to <= 1:
        raise ValueError(f"falls_to {falls_to}: above 0, at most 1")
    draw = random.Random(seed)
    runs = []
    for _ in range(2000):
        rows = table[[draw.randrange(len(table)) for _ in table]]
        kept, prompt, reply = rows.mean(axis=0)
        # The keep rate falls evenly from 1 to somewhere between 1 and falls_to.
        end = draw.uniform(falls_to, 1.0)
        if not kept:
            continue
        requests = wanted / (kept * (1 + end) / 2)
        runs.append(
            (
                requests,
                requests * prompt,
                requests * reply,
                price.of(requests * prompt, requests * reply),
            )
        )
    low, middle, high = np.percentile(np.array(runs), [5, 50, 95], axis=0).tolist()
    columns = list(zip(low, middle, high, strict=True))
    return Estimate(*columns)
