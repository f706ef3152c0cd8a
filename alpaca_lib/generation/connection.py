"""A connection to a server: concurrent requests, each tried until it succeeds or cannot."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

from alpaca_lib.errors import TeacherError
from alpaca_lib.generation.backoff import compute_wait
from alpaca_lib.generation.failures import Failure
from alpaca_lib.generation.ledger import Ledger
from alpaca_lib.generation.messages import RawReply, Request, parse_completion
from alpaca_lib.generation.rate_limit import RateLimit
from alpaca_lib.generation.server import Server
from alpaca_lib.generation.settings import Limits
from alpaca_lib.optional import require

LOOKS_LASTING = 2  # attempts, if a server has answered nothing but web pages


@dataclass
class Attempt:
    """The state of an open request: how often it was tried, since when, and what failed last."""

    number: int = 1
    since: float = field(default_factory=time.monotonic)
    late: int = 0  # attempts that ended without an answer in time
    failure: str = ""


class Connection:
    """An open connection to a server: concurrent requests, each tried until it succeeds.

    mean_reply: moving average of the tokens per reply, for the rate limit's estimate.
    slowest: seconds of the slowest reply; an attempt may always take three times as long.
    open: the Attempt of each open request, by number.
    stopping: if true, a failed attempt is not repeated.

    >>> async with teacher.connect(RateLimit(4), Ledger()) as connection:
    ...     reply = await connection.ask(request)
    """

    def __init__(
        self,
        server: Server,
        client: Any,
        rate_limit: RateLimit,
        ledger: Ledger,
        limits: Limits,
    ) -> None:
        self.server, self.client = server, client
        self.rate_limit, self.ledger = rate_limit, ledger
        self.connect_timeout = limits.connect_timeout
        self.idle_timeout = server.idle_timeout(limits)
        self.timeout = max(server.timeout, self.idle_timeout)
        self.mean_reply = self.slowest = 0.0
        self.open: dict[int, Attempt] = {}
        self._has_excess = self._has_reply = False
        self.stopping = False

    async def ask(
        self,
        request: Request,
        number: int = 0,
        keep: Callable[[RawReply], Awaitable[None]] | None = None,
    ) -> RawReply:
        """Returns the reply to a request; reserves its dollars unless that is done already.

        number: the request's number in the ledger. keep(reply) writes the reply to disk before
        other requests may use the rest of its reservation. Raises TeacherError if every attempt
        failed, BudgetSpent if the next attempt could exceed the budget.
        """
        self.ledger.reserve(number, *request.most_tokens)
        attempt = self.open[number] = Attempt()
        try:
            while True:
                reply = await self._attempt(request, attempt.late)
                if isinstance(reply, RawReply):
                    self._report_excess(request, reply)
                    usd = self.ledger.cost(number, reply, request)
                    reply = replace(reply, usd=usd)
                    if keep:
                        await keep(reply)
                    self.ledger.charge(number, reply.usd)
                    return reply
                failure = replace(
                    reply,
                    text=self.server.redact(reply.text)[:500],
                    words=self.server.redact(reply.words),
                )
                if failure.kind == "filtered":
                    reply = RawReply("", "content_filter", 0, 0, refusal=failure.text)
                    if keep:
                        await keep(reply)
                    return reply
                if failure.kind == "parameter" and self.server.can_leave_out(
                    failure.parameter, request.body
                ):
                    self.server.leave_out(failure.parameter, failure.words[:300])
                    request = replace(request, body=self.server.without_refused(request.body))
                    continue
                if failure.maybe_paid:
                    self.ledger.forfeit(number, failure.text)
                fatal = failure.kind in ("fatal", "parameter")
                if failure.is_page and not self._has_reply:
                    fatal = fatal or attempt.number >= LOOKS_LASTING
                if fatal or self.stopping or attempt.number >= self.server.tries:
                    self.ledger.release(number)
                    raise TeacherError(failure.text)
                self.ledger.reserve(number, *request.most_tokens)
                wait = compute_wait(attempt.number, failure.wait)
                attempt.number += 1
                attempt.late += failure.kind == "late"
                attempt.failure = failure.text.replace(", after several tries", "")
                await asyncio.sleep(wait)
        finally:
            self.ledger.close(number)
            del self.open[number]

    def _report_excess(self, request: Request, reply: RawReply) -> None:
        """Prints a line, once, if a reply counts more tokens than its request allows."""
        counted, allowed = (reply.prompt_tokens, reply.completion_tokens), request.most_tokens
        is_excess = counted[0] > allowed[0] or counted[1] > allowed[1] > 0
        if is_excess and not self._has_excess and self.ledger.max_usd is not None:
            self._has_excess = True
            self.server.say(
                f"{self.server.address} counts {counted[0]} prompt and {counted[1]} reply tokens "
                f"for a request of at most {allowed[0]} and {allowed[1]}: it costs what it counts, "
                "and max_usd can be exceeded by that"
            )

    async def _attempt(self, request: Request, late: int) -> RawReply | Failure:
        httpx, server = require("httpx2"), self.server
        idle = min(max(self.idle_timeout * 2.0**late, 3 * self.slowest), self.timeout)
        timeout = httpx.Timeout(idle, connect=self.connect_timeout, pool=None)
        estimate = len(request.prompt) / 4 + (self.mean_reply or request.most_tokens[1] / 2)
        used: float | None = None
        await self.rate_limit.acquire(estimate)
        try:
            start = time.monotonic()
            async with asyncio.timeout(self.timeout):
                response = await self.client.post(
                    request.path,
                    body=request.body,
                    cast_to=httpx.Response,
                    options={"timeout": timeout},
                )
            self.rate_limit.learn(response.headers)
            reply = parse_completion(response.content, server.redact.redact_data)
            self._has_reply = True
            self.slowest = max(self.slowest, time.monotonic() - start)
            used = float(reply.prompt_tokens + reply.completion_tokens) or None
            weight = 0.1 if self.mean_reply else 1.0
            self.mean_reply += weight * (reply.completion_tokens - self.mean_reply)
            return reply
        except Exception as error:
            failure = server.explain(error, request.body)
            if failure.kind == "rate":
                self.rate_limit.slow_down(failure.wait)
            if failure.kind not in ("late", "lost"):
                used = 0.0
            return failure
        finally:
            self.rate_limit.release(estimate, used)
