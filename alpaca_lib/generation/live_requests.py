"""Requests of a run on their way, several at once, their replies kept as they arrive."""

from __future__ import annotations

import asyncio
import contextlib

from alpaca_lib.errors import BudgetSpent, TeacherError
from alpaca_lib.generation.async_runner import Stop
from alpaca_lib.generation.failures import Failure
from alpaca_lib.generation.run_state import Run
from alpaca_lib.generation.teacher import Line, RawReply, Request

AHEAD = 8  # times the concurrency: replies that may wait for an earlier one


class Online:
    """Requests of a run on their way, as many at once as its limits allow."""

    def __init__(self, run: Run, line: Line, stop: Stop) -> None:
        self.run, self.line, self.stop = run, line, stop
        self.next = 0  # the request to send next
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self.arrived: dict[int, RawReply] = {}
        self.news: asyncio.Event = asyncio.Event()
        self.error: BaseException | None = None
        self.poor: BudgetSpent | None = None

    async def ask_all(self) -> None:
        """Until there is enough, or a limit is reached. What is on its way is waited for."""
        run, outcome = self.run, self.run.outcome
        try:
            while True:
                self.news.clear()
                if run.judge_ready(self.arrived):
                    return
                if self.error:
                    raise self.error
                if self.stop.asked:
                    outcome.ended = "interrupted"
                    return
                self._send()
                if not self.tasks:  # nothing could be sent
                    outcome.ended = "budget"
                    return
                with contextlib.suppress(TimeoutError):  # look now and then whether to stop
                    await asyncio.wait_for(self.news.wait(), timeout=0.2)
        except asyncio.CancelledError:
            for task in self.tasks.values():
                task.cancel()
            raise
        finally:
            self.line.stopping = True
            if self.tasks:
                await asyncio.gather(*self.tasks.values(), return_exceptions=True)

    def _send(self) -> None:
        run = self.run
        concurrency = run.limits.concurrency
        first = run.outcome.requests
        most = min(run.most_requests, first + min(run.needed(), AHEAD * concurrency))
        self.next = max(self.next, first)
        while self.next < most and len(self.tasks) < concurrency:
            number = self.next
            if number in run.journal or number in self.arrived or number in self.tasks:
                self.next += 1
                continue
            if not run.prompter.ready(number, first):
                return
            request = run.request(number)
            if self.poor or not run.budget.fits(*request.most_tokens):
                return
            self.next += 1
            # Set aside before it is noted, so that at no moment the journal passes the budget.
            reserved = run.budget.reserve(*request.most_tokens)
            if run.budget.max_usd is not None:
                run.journal.sent(number, reserved)
            self.tasks[number] = asyncio.create_task(self._answer(number, request, reserved))

    async def _answer(self, number: int, request: Request, reserved: float) -> None:
        run, loop = self.run, asyncio.get_running_loop()

        def lost(failure: Failure, usd: float) -> None:
            run.journal.lost(number, failure.text, usd)
            if run.budget.max_usd is not None and run.budget.fits(*request.most_tokens):
                run.journal.sent(number, usd)  # it is about to be tried again

        async def keep(reply: RawReply) -> None:
            await loop.run_in_executor(run.writer, run.journal.append, number, reply)

        try:
            self.arrived[number] = await self.line.ask(request, lost, keep, reserved)
        except BudgetSpent as error:
            self.poor = error
            run.journal.unsent(number)
        except Exception as error:
            self.error = self.error or error
            if isinstance(error, TeacherError):
                run.journal.unsent(number)
        finally:
            del self.tasks[number]
            self.news.set()
