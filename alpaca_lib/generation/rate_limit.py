"""How fast requests may go out: limits a minute, requests in flight, and slowing down.

Two buckets fill at the server's limits, one of requests and one of tokens; a request
takes from both, and gives back what it did not use. A refusal for rate (429) lowers
the share of all limits that is used, which then recovers a little every second.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Mapping

MARGIN = 0.995  # of a server's limit that is used
BURST = 0.1  # seconds' worth of a limit that may go out at once
SLOWER, FASTER = 0.7, 0.02  # share after a refusal; regained each second
LEAST_SHARE = 0.05


class Bucket:
    """A token bucket: fills at ``rate`` a second, holds at most ``size``; may be in debt.

    It begins with what one request needs, not full: a server counts from the start too.
    """

    def __init__(self, rate: float, size: float, clock: Callable[[], float]) -> None:
        self.rate, self.size, self.clock = rate, size, clock
        self.level, self.since = min(size, 1.0), clock()

    def set_rate(self, rate: float) -> None:
        """Fills at another rate from now on."""
        self._fill()
        self.rate = rate

    def take(self, amount: float) -> None:
        """Takes an amount, negative to give back; what is not there becomes a debt.

        What is given back was taken before, so it may fill the bucket above its size.
        """
        self._fill()
        self.level -= amount

    def wait(self, amount: float) -> float:
        """Seconds until an amount may be taken: until it is there, or the bucket is full."""
        self._fill()
        missing = min(amount, self.size) - self.level
        return max(missing / self.rate, 0.0) if self.rate > 0 else math.inf

    def _fill(self) -> None:
        now = self.clock()
        filled = min(self.level + (now - self.since) * self.rate, self.size)
        self.level = max(filled, self.level)
        self.since = now


class Pace:
    """Lets requests through; one for all requests of a run.

    Limits are per minute, None where there is none known; then those that the server
    names in its headers count, if it names any.
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
        self._taken = 0.0  # tokens, by the requests in flight
        self._share, self._share_since = 1.0, clock()
        self._slowed = -math.inf
        self._paused_until = -math.inf
        self._gate = asyncio.Lock()
        self._left = asyncio.Event()

    @property
    def share(self) -> float:
        """The part of all limits that is used now, 1 unless there were refusals."""
        regained = (self.clock() - self._share_since) * FASTER
        return min(self._share + regained, 1.0)

    async def enter(self, tokens: float) -> None:
        """Returns when a request of so many tokens may be sent, first come, first served."""
        async with self._gate:
            while True:
                self._left.clear()
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
                with contextlib.suppress(TimeoutError):  # one that leaves may give tokens back
                    await asyncio.wait_for(self._left.wait(), timeout=wait)
            for name, bucket in self.buckets.items():
                bucket.take(needs[name])
            if "tokens" in self.buckets:
                self._taken += tokens
            self.in_flight += 1

    def leave(self, estimated: float, used: float | None = None) -> None:
        """A request is over: so many tokens were used of the estimate (None: not known)."""
        self.in_flight -= 1
        if used is not None and "tokens" in self.buckets:
            # What left before the limit was known took nothing, and has nothing to give back.
            self.buckets["tokens"].take(max(used - estimated, -self._taken))
        self._taken = max(self._taken - estimated, 0.0)
        self._left.set()

    def refused(self, wait: float | None) -> None:
        """The server said 429: use less for a while, and nothing at all for ``wait`` seconds."""
        now = self.clock()
        self.refusals += 1
        if wait is not None:
            self._paused_until = max(self._paused_until, now + wait)
        if now - self._slowed >= 1.0:  # those in flight at once are one refusal
            self._share, self._share_since = max(self.share * SLOWER, LEAST_SHARE), now
            self._slowed = now

    def learn(self, headers: Mapping[str, str]) -> None:
        """Takes over the limits that a server names, where none were given."""
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
        # Room for more than one request, so that a late wake-up is made up for.
        size = 1.0 + max(rate * BURST, 0.5)
        self.buckets[name] = Bucket(rate, size, self.clock)
