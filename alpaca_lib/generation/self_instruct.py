"""Self-Instruct's loop in Alpaca's form: ask, parse, filter, keep, until enough.

A run that was killed, started again on the same folder, ends as one that was not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

from alpaca_lib.errors import JournalError
from alpaca_lib.generation import batch_api as batch
from alpaca_lib.generation.async_runner import Stop, run_async
from alpaca_lib.generation.documents import Passage
from alpaca_lib.generation.filtering import Outcome, Progress
from alpaca_lib.generation.live_requests import Online
from alpaca_lib.generation.prompting import Prompter
from alpaca_lib.generation.run_state import Run
from alpaca_lib.generation.settings import Limits, Settings
from alpaca_lib.generation.teacher import Teacher
from alpaca_lib.records import Example

__all__ = ["Limits", "Outcome", "Progress", "Settings", "generate", "prompt_for"]


def prompt_for(seeds: Sequence[Example], header: str, settings: Settings, request: int) -> str:
    """The prompt of a request that depends on no earlier reply."""
    return Prompter(seeds, header, settings).prompt(request).text


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

    Writes folder/journal.jsonl as replies arrive, and folder/regen.json now and then and
    at the end; called again on the same folder it goes on where it was. Raises DataError
    for too few seeds, TeacherError when the teacher fails for good, JournalError when the
    folder cannot be used; what was paid for is kept each time.
    """
    run = Run(teacher, seeds, header, settings, folder, limits or Limits(), passages)
    try:
        return run_async(lambda stop: _work(run, stop), run.events, progress, teacher.say)
    finally:
        run.close()


async def _work(run: Run, stop: Stop) -> Outcome:
    try:
        if run.limits.way == "batch":
            await batch.ask_all(run, stop)
        elif run.journal.open_batches():
            raise ValueError(
                f"{run.folder}: a batch of this run is still open, and paid for; start it with "
                'way="batch" until that is collected'
            )
        else:
            async with run.teacher.connect(run.pace(), run.budget) as line:
                await Online(run, line, stop).ask_all()
    except BaseException:
        with contextlib.suppress(JournalError):  # the first error is the one to tell
            run.write_outcome()
        raise
    run.write_outcome()
    return run.outcome
