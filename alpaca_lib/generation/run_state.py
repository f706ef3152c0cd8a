"""One run of generation: its settings, its limits, and what it has so far.

Replies are judged in the order of their requests, whenever they come, and a prompt
depends only on what was judged before it may go out; so the result depends on the
replies alone. How requests are sent is not known here: see online and batch.
"""

from __future__ import annotations

import hashlib
import math
import queue
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from alpaca_lib.files import dump_json
from alpaca_lib.generation.budget import FREE, Budget, load_prices
from alpaca_lib.generation.documents import Passage
from alpaca_lib.generation.filtering import Outcome, Progress, judge, write_outcome
from alpaca_lib.generation.journal import Journal
from alpaca_lib.generation.prompting import Prompt, Prompter
from alpaca_lib.generation.rate_limit import Pace
from alpaca_lib.generation.settings import Limits, Settings
from alpaca_lib.generation.teacher import RawReply, Request, Teacher
from alpaca_lib.records import Example
from alpaca_lib.safety_rules import SafetyRule, load_rules


class Run:
    """One call of generate()."""

    def __init__(
        self, teacher: Teacher, seeds: Sequence[Example], header: str, settings: Settings,
        folder: Path, limits: Limits, passages: Sequence[Passage],
    ) -> None:  # fmt: skip
        self.teacher, self.settings, self.limits, self.folder = teacher, settings, limits, folder
        self.prompter = Prompter(seeds, header, settings, passages)
        own = Path(settings.safety_path) if settings.safety_path else None
        self.rules: list[SafetyRule] = load_rules(own) if settings.safety else []
        self.sampling = settings.sampling(limits.way)
        self.most_requests = limits.max_requests or 5 * (
            math.ceil(settings.tasks_wanted / settings.tasks_per_request) + 4
        )
        price = load_prices(limits.prices_path, limits.way).get(teacher.model)
        self.budget = Budget(price if teacher.kind == "openai" else FREE, limits.max_usd)
        self.outcome = Outcome.of(seeds, settings.threshold, settings.rouge_mode)
        self.journal = Journal(folder, self._configuration(seeds, header))
        self.outcome.resumed_requests = len(self.journal)
        self.events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.started, self.written = time.monotonic(), time.monotonic()
        self.kept_at_start = 0
        self.writer = ThreadPoolExecutor(1)  # so that fsync does not hold up the requests
        for request, usd in list(self.journal.pending.items()):
            self.journal.lost(request, "the run ended while it was on its way", usd)
        # What an earlier run paid for counts against the budget before anything is asked.
        self.budget.spent, self.budget.forfeited = self.journal.spent_usd, self.journal.lost_usd

    def close(self) -> None:
        """Gives the folder back."""
        self.writer.shutdown()
        self.journal.close()

    def _configuration(self, seeds: Sequence[Example], header: str) -> dict[str, Any]:
        found = {**asdict(self.settings), "teacher": self.teacher.kind, "model": self.teacher.model}
        del found["tasks_wanted"]  # a finished run may be asked for more
        known: list[Any] = [header, [seed.to_dict() for seed in seeds]]
        if self.prompter.passages:
            known.append([asdict(passage) for passage in self.prompter.passages])
        for name in ("topics", "verbs"):
            if found[name]:
                known.append({name: found[name]})
            del found[name]
        del found["safety_path"]  # what the rules say counts, not where they lie
        known.append([rule.text for rule in self.rules])
        text = dump_json(known)
        found["prompt_and_seeds"] = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
        return found

    @property
    def enough(self) -> bool:
        """Whether as many tasks are kept as were wanted."""
        return len(self.outcome.kept) >= self.settings.tasks_wanted

    def write_outcome(self) -> None:
        """Writes regen.json as it is now."""
        self.outcome.usd = None if self.budget.price is None else self.budget.spent
        self.outcome.lost_usd = self.budget.forfeited
        with self.journal.explained():
            write_outcome(self.outcome, self.folder)
        self.written = time.monotonic()

    def pace(self) -> Pace:
        """The limits on how fast its requests may go out."""
        limits = self.limits
        return Pace(limits.concurrency, limits.requests_per_minute, limits.tokens_per_minute)

    def prompt(self, request: int) -> Prompt:
        """The prompt of a request; every reply that it depends on is judged."""
        outcome = self.outcome
        return self.prompter.prompt(request, outcome.kept, outcome.kept_after_request)

    def request(self, number: int) -> Request:
        """The request as it is sent."""
        prompt = self.prompt(number)
        return self.teacher.request(
            prompt.text,
            first_number=prompt.first_number,
            tasks=self.settings.tasks_per_request,
            seed=self.settings.seed * 1_000_003 + number,
            sampling=self.sampling,
        )

    def judge_ready(self, arrived: dict[int, RawReply]) -> bool:
        """Judges the replies that are there, in turn; whether the run is at its end."""
        outcome = self.outcome
        while not self.enough and outcome.requests < self.most_requests:
            number = outcome.requests
            reply = arrived.pop(number, None)
            if reply is None and number in self.journal:
                reply = self.journal.reply(number)
            if reply is None:
                return False
            self._judge(reply)
        outcome.ended = "enough" if self.enough else "max_requests"
        return True

    def _judge(self, reply: RawReply) -> None:
        """Judges the reply whose turn it is, and tells of it."""
        number = self.outcome.requests
        tasks = judge(reply, self.prompt(number), self.settings, self.rules, self.outcome)
        self.journal.judge(number, tasks)
        if number + 1 == self.outcome.resumed_requests:
            self.kept_at_start = len(self.outcome.kept)
        now = time.monotonic()
        # A snapshot takes about a millisecond a task: of a large run, seldom.
        if now - self.written > max(30.0, 0.02 * len(self.outcome.kept)):
            self.write_outcome()
        self.events.put(self._progress(now))

    def _progress(self, now: float) -> Progress:
        outcome, seconds = self.outcome, now - self.started
        gained = len(outcome.kept) - self.kept_at_start
        left = self.settings.tasks_wanted - len(outcome.kept)
        return Progress(
            requests=outcome.requests,
            resumed=outcome.requests <= outcome.resumed_requests,
            kept=len(outcome.kept),
            wanted=self.settings.tasks_wanted,
            rejected=dict(outcome.reasons()),
            seconds=seconds,
            seconds_left=max(left, 0) * seconds / gained if gained > 0 else None,
            usd=None if self.budget.price is None else self.budget.spent,
        )

    def needed(self) -> int:
        """How many more requests it will probably take, judging by those so far."""
        outcome = self.outcome
        judged, kept = outcome.requests, len(outcome.kept)
        each = max(kept, 0.5) / judged if judged else self.settings.tasks_per_request
        return max(math.ceil((self.settings.tasks_wanted - kept) / each), 1)
