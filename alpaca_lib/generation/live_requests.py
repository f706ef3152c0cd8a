"""Sends the requests of a run one by one, several concurrently, and keeps each reply at once."""

from __future__ import annotations

import asyncio
import contextlib
import threading

from alpaca_lib.errors import BudgetSpent
from alpaca_lib.generation.messages import RawReply, Request
from alpaca_lib.generation.run_state import RunState
from alpaca_lib.generation.teacher import Connection

AHEAD = 8  # times the concurrency: replies that may wait for an earlier one


class LiveRequests:
    """Concurrent requests of a run, as many as its limits allow.

    next: number of the request to send next.
    tasks: the open requests, by number.
    arrived: replies that wait for an earlier one, by number.

    >>> async with teacher.connect(rate_limit, run.ledger) as connection:
    ...     await LiveRequests(run, connection, stop).send_all()
    """

    def __init__(self, run: RunState, connection: Connection, stop: threading.Event) -> None:
        self.run, self.connection, self.stop = run, connection, stop
        self.next = 0
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self.arrived: dict[int, RawReply] = {}
        self._changed = asyncio.Event()
        self._error: BaseException | None = None
        self._budget_spent = False

    async def send_all(self) -> None:
        """Sends requests until the run has enough or reaches a limit; waits for open ones."""
        run, outcome = self.run, self.run.outcome
        try:
            while True:
                self._changed.clear()
                if run.filter_arrived(self.arrived):
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
                with contextlib.suppress(TimeoutError):  # wakes up to look at ``stop``
                    await asyncio.wait_for(self._changed.wait(), timeout=0.2)
        except asyncio.CancelledError:
            for task in self.tasks.values():
                task.cancel()
            raise
        finally:
            self.connection.stopping = True
            if self.tasks:
                await asyncio.gather(*self.tasks.values(), return_exceptions=True)

    def _send(self) -> None:
        run, concurrency = self.run, self.run.limits.concurrency
        first = run.outcome.requests
        most = min(run.most_requests, first + min(run.requests_needed(), AHEAD * concurrency))
        self.next = max(self.next, first)
        while self.next < most and len(self.tasks) < concurrency:
            number = self.next
            if number not in run.journal:
                if self._budget_spent or not run.prompter.is_ready(number, first):
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
            self.arrived[number] = await self.connection.ask(request, number, keep)
        except BudgetSpent:
            self._budget_spent = True
        except Exception as error:
            self._error = self._error or error
        finally:
            del self.tasks[number]
            self._changed.set()
