"""Sends the requests of a run one by one, several concurrently, and keeps each reply at once."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time

from alpaca_lib.errors import BudgetSpent
from alpaca_lib.generation.connection import Connection
from alpaca_lib.generation.messages import RawReply, Request
from alpaca_lib.generation.run_state import RunState


class LiveRequests:
    """Concurrent requests of a run, as many as its limits allow.

    A reply is in the journal as soon as it arrives. It is filtered after the replies to all
    earlier requests, which does not delay the requests that are sent meanwhile.

    next: number of the request to send next.
    tasks: the open requests, by number.

    >>> async with teacher.connect(rate_limit, run.ledger) as connection:
    ...     await LiveRequests(run, connection, stop).send_all()
    """

    def __init__(self, run: RunState, connection: Connection, stop: threading.Event) -> None:
        self.run, self.connection, self.stop = run, connection, stop
        self.next = 0
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        self._error: BaseException | None = None
        self._reported = 0.0  # when a slow request was reported last

    async def send_all(self) -> None:
        """Sends requests until the run has enough or reaches a limit; waits for open ones."""
        run, outcome = self.run, self.run.outcome
        try:
            while True:
                self._changed.clear()
                if run.filter_arrived():
                    return
                if self._error:
                    raise self._error
                if self.stop.is_set():
                    outcome.ended = "interrupted"
                    return
                self._send()
                if not self.tasks:  # nothing could be sent
                    outcome.ended = "budget"
                    return
                self._report_slow()
                with contextlib.suppress(TimeoutError):  # wakes up to look at ``stop``
                    await asyncio.wait_for(self._changed.wait(), timeout=0.2)
        except asyncio.CancelledError:
            for task in self.tasks.values():
                task.cancel()
            raise
        finally:
            self.connection.stopping = True
            while self.tasks:
                self._report_slow()
                await asyncio.wait(self.tasks.values(), timeout=1.0)

    def _send(self) -> None:
        run, concurrency = self.run, self.run.limits.concurrency
        first = run.outcome.requests
        most = min(run.most_requests, first + run.requests_needed())
        self.next = max(self.next, first)
        while self.next < most and len(self.tasks) < concurrency:
            number = self.next
            if number not in run.journal and number not in self.tasks:
                if not run.prompter.is_ready(number, first):
                    return
                request = run.request(number)
                if not run.ledger.fits(*request.most_tokens):
                    return
                run.ledger.reserve(number, *request.most_tokens)
                self.tasks[number] = asyncio.create_task(self._answer(number, request))
            self.next += 1

    async def _answer(self, number: int, request: Request) -> None:
        run, loop = self.run, asyncio.get_running_loop()

        async def keep(reply: RawReply) -> None:
            await loop.run_in_executor(run.writer, run.journal.append, number, reply)

        try:
            await self.connection.ask(request, number, keep)
        except BudgetSpent:
            # Sent again if concurrent requests cost less than what is reserved for them.
            self.next = min(self.next, number)
        except Exception as error:
            self._error = self._error or error
        finally:
            del self.tasks[number]
            self._changed.set()

    def _report_slow(self) -> None:
        """Prints what is waited for, every third of the time that an attempt may take."""
        now, run = time.monotonic(), self.run
        number, slow = min(
            self.connection.open.items(), key=lambda item: item[1].since, default=(0, None)
        )
        often = self.connection.idle_timeout / 3
        if slow is None or now - max(slow.since, self._reported) < often:
            return
        self._reported = now
        later = sum(n in run.journal for n in range(number + 1, self.next))
        failed = f" after: {slow.failure}" if slow.failure else ""
        error = f"; the run ends with: {self._error}" if self._error else ""
        run.teacher.say(
            f"waiting {now - slow.since:.0f} s for request {number}, attempt {slow.number} of "
            f"{run.teacher.tries}{failed}; {later} later replies are kept{error}"
        )
