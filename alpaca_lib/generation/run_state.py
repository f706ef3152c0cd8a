"""The state of one generation run: its settings, limits, money, journal and outcome.

Replies are filtered in the order of their requests, whenever they arrive, and a prompt
depends only on replies that were filtered before it may be sent; so the result depends on the
replies alone. ``live_requests`` and ``batch_api`` send the requests.
"""

from __future__ import annotations

import math
import queue
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from alpaca_lib.files import dump_json, sha256_text
from alpaca_lib.generation.budget import FREE, load_prices
from alpaca_lib.generation.documents import Passage
from alpaca_lib.generation.filtering import Outcome, Progress, filter_reply
from alpaca_lib.generation.journal import Journal
from alpaca_lib.generation.ledger import Ledger
from alpaca_lib.generation.messages import RawReply, Request
from alpaca_lib.generation.prompting import Prompt, Prompter
from alpaca_lib.generation.regen_file import RegenFile, check_folder
from alpaca_lib.generation.settings import Limits, Settings
from alpaca_lib.generation.teacher import Teacher
from alpaca_lib.records import Example
from alpaca_lib.safety_rules import load_rules


class RunState:
    """The state of one call of generate(); close() releases the folder.

    outcome: tasks kept and dropped so far.
    ledger: dollars reserved, spent and forfeited.
    events: a Progress for each reply that was filtered.
    writer: the thread that writes replies, so that a slow disk does not delay requests.
    """

    def __init__(
        self,
        teacher: Teacher,
        seeds: Sequence[Example],
        header: str,
        settings: Settings,
        folder: Path,
        limits: Limits,
        passages: Sequence[Passage] = (),
    ) -> None:
        self.teacher, self.settings, self.limits, self.folder = teacher, settings, limits, folder
        self.prompter = Prompter(seeds, header, settings, passages)
        safety_path = Path(settings.safety_path) if settings.safety_path else None
        self.rules = load_rules(safety_path) if settings.safety else []
        self.most_requests = limits.max_requests or 5 * (
            math.ceil(settings.tasks_wanted / settings.tasks_per_request) + 4
        )
        price = load_prices(limits.prices_path, limits.way).get(teacher.model)
        self.ledger = Ledger(FREE if teacher.is_free else price, limits.max_usd)
        self.outcome = Outcome.start(seeds, settings.threshold, settings.rouge_mode)
        check_folder(folder)
        self.journal = Journal(folder, self._configuration(seeds, header))
        self.regen_file = RegenFile(folder, self.journal, teacher.say)
        self.ledger.resume(self.journal)
        if unanswered := self.ledger.in_flight_at_stop:
            teacher.say(
                f"requests in flight at the stop, possibly paid: {unanswered}; they are sent "
                f"again (${self.ledger.forfeited:.4f} at most for all attempts without an answer)"
            )
        self.outcome.in_flight_at_stop = self.ledger.in_flight_at_stop
        self.outcome.resumed_requests = len(self.journal)
        self.events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.writer = ThreadPoolExecutor(1)
        self._started = self._written = time.monotonic()
        self._kept_at_start = 0

    def close(self) -> None:
        """Waits for the last reply to be written and releases the folder."""
        self.writer.shutdown()
        self.journal.close()

    def _configuration(self, seeds: Sequence[Example], header: str) -> dict[str, Any]:
        """Returns what a run must have in common with a journal to resume from it."""
        options = self.settings.to_dict()
        del options["tasks_wanted"]  # a finished run may be asked for more
        del options["safety_path"]  # the rules' content counts, not the file's name
        if options["rouge_mode"] == "auto":
            options["rouge_mode"] = "rouge"  # the default's name in journals of earlier versions
        hashed: list[Any] = [header, [seed.to_dict() for seed in seeds]]
        if self.prompter.passages:
            hashed.append([asdict(passage) for passage in self.prompter.passages])
        for name in ("topics", "verbs"):
            if texts := options.pop(name):
                hashed.append({name: texts})
        hashed.append([rule.text for rule in self.rules])
        return {
            **options,
            "teacher": self.teacher.kind,
            "model": self.teacher.model,
            "prompt_and_seeds": sha256_text(dump_json(hashed)),
        }

    @property
    def has_enough(self) -> bool:
        """Whether ``tasks_wanted`` tasks are kept."""
        return len(self.outcome.kept) >= self.settings.tasks_wanted

    @property
    def spent_usd(self) -> float | None:
        """Dollars of the replies so far; None if the model's price is unknown."""
        return None if self.ledger.price is None else self.ledger.spent

    def write_outcome(self, is_final: bool = False) -> None:
        """Writes regen.json with the tasks kept so far."""
        self.outcome.usd, self.outcome.lost_usd = self.spent_usd, self.ledger.forfeited
        with self.journal.explained():
            self.regen_file.write(self.outcome, is_final)
        self._written = time.monotonic()

    def prompt(self, request: int) -> Prompt:
        """Returns the prompt of a request; every reply that it depends on is filtered."""
        outcome = self.outcome
        return self.prompter.prompt(request, outcome.kept, outcome.kept_after_request)

    def request(self, number: int) -> Request:
        """Returns a request, ready to send."""
        prompt = self.prompt(number)
        return self.teacher.request(
            prompt.text,
            first_number=prompt.first_number,
            tasks=self.settings.tasks_per_request,
            seed=self.settings.seed * 1_000_003 + number,
            sampling=self.settings.sampling(self.limits.way),
        )

    def filter_arrived(self) -> bool:
        """Filters the replies whose turn it is; returns whether the run is at its end.

        Replies that an earlier call filtered are filtered again even if fewer tasks are wanted
        now, so that regen.json does not lose tasks.
        """
        outcome, journal = self.outcome, self.journal
        while True:
            number = outcome.requests
            is_wanted = not self.has_enough and number < self.most_requests
            if not (is_wanted or (number in journal.filtered and number in journal)):
                break
            if number not in journal:
                return False
            self._filter(number, journal.reply(number))
        outcome.ended = "enough" if self.has_enough else "max_requests"
        return True

    def _filter(self, number: int, reply: RawReply) -> None:
        outcome = self.outcome
        decisions = filter_reply(reply, self.prompt(number), self.settings, self.rules, outcome)
        self.journal.note_filtered(number, decisions)
        if outcome.requests == outcome.resumed_requests:
            self._kept_at_start = len(outcome.kept)
        now = time.monotonic()
        # Writing takes about 1 ms per task: rarer for a large run, at most 5 % of the time.
        if now - self._written > max(30.0, 0.02 * len(outcome.kept)):
            self.write_outcome()
        seconds, gained = now - self._started, len(outcome.kept) - self._kept_at_start
        left = max(self.settings.tasks_wanted - len(outcome.kept), 0)
        self.events.put(
            Progress(
                requests=outcome.requests,
                resumed=outcome.requests <= outcome.resumed_requests,
                kept=len(outcome.kept),
                wanted=self.settings.tasks_wanted,
                rejected=dict(outcome.reasons()),
                seconds=seconds,
                seconds_left=left * seconds / gained if gained > 0 else None,
                usd=self.spent_usd,
            )
        )

    def requests_needed(self) -> int:
        """Returns the further requests that are probably needed, at the keep rate so far."""
        requests, kept = self.outcome.requests, len(self.outcome.kept)
        rate = max(kept, 0.5) / requests if requests else self.settings.tasks_per_request
        return max(math.ceil((self.settings.tasks_wanted - kept) / rate), 1)
