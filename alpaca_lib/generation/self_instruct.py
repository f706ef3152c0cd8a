"""Self-Instruct's loop in Alpaca's form: ask, parse, filter, keep, until there are enough.

Self-Instruct: arXiv:2212.10560. A run that was killed and started again on the same folder
ends with the same bytes as one that was not.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from alpaca_lib.errors import JournalError, SettingsError
from alpaca_lib.generation import batch_api
from alpaca_lib.generation.async_runner import run_async
from alpaca_lib.generation.documents import Passage
from alpaca_lib.generation.filtering import Outcome, Progress
from alpaca_lib.generation.live_requests import LiveRequests
from alpaca_lib.generation.rate_limit import RateLimit
from alpaca_lib.generation.run_state import RunState
from alpaca_lib.generation.settings import Limits, Settings
from alpaca_lib.generation.teacher import Teacher
from alpaca_lib.records import Example

__all__ = ["Limits", "Outcome", "Progress", "Settings", "generate"]


def generate(
    teacher: Teacher,
    seeds: Sequence[Example],
    header: str,
    settings: Settings,
    folder: Path,
    limits: Limits | None = None,
    passages: Sequence[Passage] = (),
    progress: Callable[[Progress], None] = lambda progress: None,
) -> Outcome:
    """Asks until ``tasks_wanted`` are kept or a limit is reached; Outcome.ended says which.

    Writes folder/journal.jsonl as replies arrive, and folder/regen.json every now and then and
    at the end; called again on the same folder it resumes. ``progress`` is called per reply.
    Requests in flight when the process is killed, at most ``concurrency`` many, are sent again.
    Raises DataError for too few seeds, SettingsError for settings that conflict, TeacherError
    when the teacher fails for good, JournalError when the folder cannot be used; every reply
    that was paid for is kept.
    """
    run = RunState(teacher, seeds, header, settings, folder, limits or Limits(), passages)
    try:
        return run_async(lambda stop: send_requests(run, stop), run.events, progress, teacher.say)
    finally:
        run.close()


async def send_requests(run: RunState, stop: threading.Event) -> Outcome:
    """Sends the requests of a run until it ends or ``stop`` is set; writes and returns its outcome.

    Raises SettingsError if a batch of the run is still open and ``way`` is another one.
    """
    limits, preset = run.limits, run.teacher.preset
    if (limits.way == "flex" and preset.flex is False) or (
        limits.way == "batch" and preset.batch is False
    ):
        raise SettingsError(
            f'way "{limits.way}": {preset.title} does not offer it (data/teachers.yaml); '
            'way "online" works'
        )
    try:
        if limits.way == "batch":
            await batch_api.send_all(run, stop)
        elif run.journal.open_batches():
            raise SettingsError(
                f"{run.folder}: a batch of this run is still open, and paid for; start it with "
                'way="batch" until that is collected'
            )
        else:
            rate_limit = RateLimit(
                limits.concurrency, limits.requests_per_minute, limits.tokens_per_minute
            )
            async with run.teacher.connect(rate_limit, run.ledger, limits) as connection:
                await LiveRequests(run, connection, stop).send_all()
    except BaseException:
        with contextlib.suppress(JournalError):  # the first error is the one to report
            run.write_outcome()
        raise
    run.write_outcome(is_final=True)
    return run.outcome
