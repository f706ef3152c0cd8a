"""Limits requests and tokens per minute and concurrent requests, and slows down after a 429.

Two token buckets fill at the server's limits, one for requests and one for tokens; a request
takes from both, and gives back what it did not use. A 429 multiplies the share of all limits
that is used by SLOWER; the share then recovers by FASTER per second.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Mapping

MARGIN = 0.995  # share of a server's limit that is used
BURST = 0.1  # seconds of a limit's rate that may be sent at once
SLOWER, FASTER = 0.7, 0.02  # factor of the share after a 429; share regained per second
LEAST_SHARE = 0.05


class Bucket:
    """A token bucket that may be in debt.

    rate: tokens per second that it gains. size: tokens at which it is full.
    level: tokens in it; at first one request's, as the server counts from the start too.

    >>> bucket = Bucket(rate=2.0, size=10.0, clock=time.monotonic)
    >>> bucket.take(3.0)
    """

    def __init__(self, rate: float, size: float, clock: Callable[[], float]) -> None:
        self.rate, self.size, self.clock = rate, size, clock
        self.level, self.since = min(size, 1.0), clock()

    def set_rate(self, rate: float) -> None:
        """Sets the rate at which it fills from now on."""
        self._fill()
        self.rate = rate

    def take(self, amount: float) -> None:
        """Takes an amount, which may leave a debt; a negative one gives back.

        What is given back was taken before, so it may fill the bucket above its size.
        """
        self._fill()
        self.level -= amount

    def wait(self, amount: float) -> float:
        """Returns the seconds until it holds an amount, or is full."""
        self._fill()
        missing = min(amount, self.size) - self.level
        return max(missing / self.rate, 0.0) if self.rate > 0 else math.inf

    def _fill(self) -> None:
        now = self.clock()
        filled = min(self.level + (now - self.since) * self.rate, self.size)
        self.level = max(filled, self.level)
        self.since = now


class RateLimit:
    """Delays requests so that a server's limits hold; one object for all requests of a run.

    limits: requests and tokens per minute; None: as the server's headers say, if they do.
    in_flight: open requests. refusals: responses with status 429.

    >>> await rate_limit.acquire(tokens=900)
    >>> rate_limit.release(estimated=900, used=742)
    """

    def __init__(
        self,
        concurrency: int,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.concurrency, self.clock = concurrency, clock
        self.limits = {"requests": requests_per_minute, "tokens": tokens_per_minute}
        self.buckets: dict[str, Bucket] = {}
        for name, limit in self.limits.items():
            self._limit(name, limit)
        self.in_flight = 0
        self.refusals = 0
        self._taken = 0.0  # tokens taken by the open requests
        self._share, self._share_since = 1.0, clock()
        self._slowed = -math.inf
        self._paused_until = -math.inf
        self._gate = asyncio.Lock()
        self._released = asyncio.Event()

    @property
    def share(self) -> float:
        """The share of all limits that is used now, 1 unless there were refusals."""
        regained = (self.clock() - self._share_since) * FASTER
        return min(self._share + regained, 1.0)

    async def acquire(self, tokens: float) -> None:
        """Waits until a request of that many tokens may be sent; first come, first served."""
        async with self._gate:
            while True:
                self._released.clear()
                wait = max(self._paused_until - self.clock(), 0.0)
                needs = {"requests": 1.0, "tokens": tokens}
                for name, bucket in self.buckets.items():
                    limit = self.limits[name] or math.inf
                    bucket.set_rate(limit / 60 * MARGIN * self.share)
                    wait = max(wait, bucket.wait(needs[name]))
                if wait <= 0 and self.in_flight >= max(round(self.concurrency * self.share), 1):
                    wait = 1.0  # by then the share may have grown
                if wait <= 0:
                    break
                with contextlib.suppress(TimeoutError):  # a release may give tokens back
                    await asyncio.wait_for(self._released.wait(), timeout=wait)
            for name, bucket in self.buckets.items():
                bucket.take(needs[name])
            if "tokens" in self.buckets:
                self._taken += tokens
            self.in_flight += 1

    def release(self, estimated: float, used: float | None = None) -> None:
        """Ends a request and gives back the tokens that it did not use (None: unknown)."""
        self.in_flight -= 1
        if used is not None and "tokens" in self.buckets:
            # A request sent before the limit was known took nothing and gives nothing back.
            self.buckets["tokens"].take(max(used - estimated, -self._taken))
        self._taken = max(self._taken - estimated, 0.0)
        self._released.set()

    def slow_down(self, wait: float | None) -> None:
        """Lowers the share after a 429, and sends nothing for ``wait`` seconds."""
        now = self.clock()
        self.refusals += 1
        if wait is not None:
            self._paused_until = max(self._paused_until, now + wait)
        if now - self._slowed >= 1.0:  # refusals of concurrent requests count once
            self._share, self._share_since = max(self.share * SLOWER, LEAST_SHARE), now
            self._slowed = now

    def learn(self, headers: Mapping[str, str]) -> None:
        """Adopts the limits in a response's headers where none were given."""
        for name in self.limits:
            if self.limits[name] is None and (text := headers.get(f"x-ratelimit-limit-{name}")):
                try:
                    self._limit(name, float(text))
                except ValueError:
                    continue

    def _limit(self, name: str, limit: float | None) -> None:
        if limit is None or not 0 < limit < math.inf:
            return
        self.limits[name] = limit
        rate = limit / 60 * MARGIN
        # Above 1, so that a request whose timer fired late does not lower the rate.
        size = 1.0 + max(rate * BURST, 0.5)
        self.buckets[name] = Bucket(rate, size, self.clock)
