"""Writes a run's regen.json, and never makes it smaller or replaces other tasks without a copy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from alpaca_lib.errors import FileError, JournalError
from alpaca_lib.files import move, sha256_file
from alpaca_lib.generation.filtering import Outcome, write_outcome
from alpaca_lib.generation.journal import Journal, has_journal

WORK = ".regen-new.json"


def check_folder(folder: Path) -> None:
    """Raises an error if a run in this folder would replace tasks that it did not make.

    Raises JournalError for a regen.json without the journal of its run, and FileError for a
    folder of that name.
    """
    path = folder / "regen.json"
    if path.is_dir():
        raise FileError(f"{path}: is a folder; remove it, or use another folder for the run")
    if not has_journal(folder) and (tasks := count_tasks(path)):
        raise JournalError(
            f"{path}: holds {tasks} tasks, but {folder} has no journal.jsonl to continue them "
            "from, so a run would replace them. Move the file, or use another folder"
        )


def count_tasks(path: Path) -> int:
    """Returns the number of rows of a regen.json; 0 if there is none, or no list in it."""
    try:
        rows = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return 0
    return len(rows) if isinstance(rows, list) else 0


class RegenFile:
    """The regen.json of a run whose journal is open.

    >>> RegenFile(folder, journal, print).write(outcome, is_final=True)
    """

    def __init__(self, folder: Path, journal: Journal, say: Callable[[str], None]) -> None:
        self.path, self.journal, self.say = folder / "regen.json", journal, say
        for left in folder.glob(f".{WORK}.*.tmp"):  # by a process that was killed
            left.unlink()

    def write(self, outcome: Outcome, is_final: bool) -> None:
        """Writes the tasks kept so far.

        Before the end of a call a file with more tasks stays: the journal's replies are not all
        filtered yet. A file that no run of this journal wrote, or with more tasks than at the end
        of this one, is copied before it is replaced, and a line says so.
        """
        checksum = sha256_file(self.path) if self.path.is_file() else ""
        is_ours = checksum in self.journal.written
        there = self.journal.written[checksum] if is_ours else count_tasks(self.path)
        if there > len(outcome.kept) and not is_final:
            return
        work = write_outcome(outcome, self.path.with_name(WORK))
        new = sha256_file(work)
        if there and new != checksum and (not is_ours or there > len(outcome.kept)):
            self._keep_copy(there, is_ours, len(outcome.kept))
        if checksum:
            shutil.copymode(self.path, work)
        self.journal.note_written(new, len(outcome.kept))
        move(work, self.path)

    def _keep_copy(self, tasks: int, is_ours: bool, kept: int) -> None:
        number = 1
        while (copy := self.path.with_name(f"regen.replaced-{number}.json")).exists():
            number += 1
        shutil.copy(self.path, copy)
        why = "more tasks than this run has" if is_ours else "not as a run of this journal wrote it"
        self.say(
            f"{self.path}: {why} ({tasks} tasks there, {kept} now). What was there is kept as "
            f"{copy.name}"
        )
