"""The journal of a generation run: every reply is on disk before it is used.

Append-only JSON lines: the run's configuration first; then a line for each reply, each
attempt that may have been paid for without a reply, each batch, and each filtered reply with
its reasons. A run that was killed reads it and sends only the requests that are missing.
"""

from __future__ import annotations

import contextlib
import errno
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from alpaca_lib.errors import FileError, JournalError
from alpaca_lib.files import JsonLine, JsonLines, acquire_lock, dump_json, read_json_lines
from alpaca_lib.generation.budget import Sampled
from alpaca_lib.generation.messages import MALFORMED, RawReply, read_usd


class Journal:
    """The lines of ``folder``/journal.jsonl; one process at a time holds it open.

    filtered: numbers of the replies whose tasks were filtered.
    spent_usd: dollars of the replies that were in the file when it was opened.
    lost_usd: dollars of attempts without a reply that may have been paid for.
    pending: dollars of the requests that were sent and not answered since, by number.
    batches: the state of each batch, by the id of its input file.
    written: the number of tasks of each regen.json that was written, by its checksum.

    Texts stay on disk; memory holds an offset per reply.

    >>> journal = Journal(folder, {"model": "m", "seed": 0})
    >>> journal.append(0, reply)
    >>> assert 0 in journal and journal.reply(0) == reply
    """

    def __init__(self, folder: Path, configuration: dict[str, Any]) -> None:
        self.path = folder / "journal.jsonl"
        self.filtered: set[int] = set()
        self.spent_usd = 0.0
        self.lost_usd = 0.0
        self.pending: dict[int, float] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.written: dict[str, int] = {}
        self._offsets: dict[int, int] = {}
        busy = (
            f"{folder}: another run is writing there; wait for it, stop it, or use another folder"
        )
        with contextlib.ExitStack() as opened, self.explained():
            folder.mkdir(parents=True, exist_ok=True)
            try:
                lock = acquire_lock(folder / ".generation.lock", wait=False, busy=busy)
            except FileError as error:
                raise JournalError(str(error)) from None
            opened.callback(lock.release)
            self._lines = opened.enter_context(JsonLines(self.path))
            try:
                self._lines.lock(busy)
            except FileError as error:
                raise JournalError(str(error)) from None
            first = True
            for line in read_json_lines(self.path):
                if first:
                    self._check(line, configuration)
                else:
                    self._restore(line)
                first = False
            if first:
                self._write({"configuration": configuration})
            for number in self._offsets:
                self.pending.pop(number, None)
            self._resources = opened.pop_all()

    def __contains__(self, request: int) -> bool:
        return request in self._offsets

    def __len__(self) -> int:
        return len(self._offsets)

    def reply(self, request: int) -> RawReply:
        """Returns the reply to a request that is in the journal."""
        with self.explained():
            return RawReply.from_row(self._lines.read_at(self._offsets[request])["reply"])

    def append(self, request: int, reply: RawReply) -> None:
        """Writes one reply and waits until it is on disk."""
        self._offsets[request] = self._write({"request": request, "reply": asdict(reply)})
        self.pending.pop(request, None)

    def note_sent(self, request: int, usd: float) -> None:
        """Notes what a request may cost, before it is sent."""
        self._write({"sent": request, "usd": usd}, sync=False)
        self.pending[request] = usd

    def note_unsent(self, request: int) -> None:
        """Notes that a request ended without a reply and without cost."""
        if self.pending.pop(request, None) is not None:
            self._write({"unsent": request}, sync=False)

    def note_lost(self, request: int, why: str, usd: float) -> None:
        """Notes an attempt that may have been paid for, without a reply."""
        self._write({"request": request, "lost": why, "usd": usd})
        self.lost_usd += usd
        self.pending.pop(request, None)

    def note_filtered(self, request: int, tasks: list[dict[str, Any]]) -> None:
        """Notes the decision on each task of a reply; not synced, as it can be recomputed."""
        if request not in self.filtered:
            self.filtered.add(request)
            self._write({"judged": request, "tasks": tasks}, sync=False)

    def note_written(self, checksum: str, tasks: int) -> None:
        """Notes the checksum of a regen.json before it is written."""
        if self.written.get(checksum) != tasks:
            self.written[checksum] = tasks
            self._write({"written": checksum, "tasks": tasks}, sync=False)

    def note_batch(self, name: str, **state: Any) -> None:
        """Notes a change in the state of a batch."""
        self.batches[name] = {**self.batches.get(name, {}), **state}
        self._write({"batch": name, **state})

    def open_batches(self) -> dict[str, dict[str, Any]]:
        """Returns the batches whose answers are not collected yet."""
        return {name: b for name, b in self.batches.items() if b.get("state") != "done"}

    def close(self) -> None:
        """Closes the file and releases the folder."""
        self._resources.close()

    def _write(self, line: dict[str, Any], sync: bool = True) -> int:
        with self.explained():
            return self._lines.append(line, sync)

    def _restore(self, line: JsonLine) -> None:
        row = line.row or {}
        place = f"{self.path}, line {line.number}"
        if "configuration" in row:
            raise JournalError(
                f"{place}: another journal begins here; two files were joined. Keep the lines "
                "above, or the lines from here on, in a file of their own"
            )
        try:
            if "reply" in row:
                number, reply = read_number(row["request"]), RawReply.from_row(row["reply"])
                if number not in self._offsets:
                    self.spent_usd += reply.usd
                    self._offsets[number] = line.offset
                elif reply != self.reply(number):
                    raise JournalError(
                        f"{place}: is a second reply to request {number}, another one than above; "
                        "delete the one that is not of this run"
                    )
            elif "lost" in row:
                self.lost_usd += read_usd(row["usd"])
                self.pending.pop(read_number(row["request"]), None)
            elif "sent" in row:
                self.pending[read_number(row["sent"])] = read_usd(row["usd"])
            elif "unsent" in row:
                self.pending.pop(read_number(row["unsent"]), None)
            elif "judged" in row:
                self.filtered.add(read_number(row["judged"]))
            elif "written" in row:
                self.written[str(row["written"])] = read_number(row["tasks"])
            elif "batch" in row:
                for name in ("state", "id", "status"):
                    if not isinstance(row.get(name, ""), str):
                        raise TypeError(f"{name} is no text")
                batch = self.batches.setdefault(str(row.pop("batch")), {})
                batch |= {**row, "requests": row.get("requests", batch.get("requests"))}
                batch["requests"] = [read_number(number) for number in batch["requests"]]
            else:
                raise KeyError("reply")
        except JournalError:
            raise
        except MALFORMED:
            raise JournalError(
                f"{place}: is damaged; delete it, and its request is sent again"
            ) from None

    def _check(self, line: JsonLine, wanted: dict[str, Any]) -> None:
        if line.row is None:
            raise JournalError(f"{self.path}, line 1: is damaged; use a new folder")
        found = line.row.get("configuration")
        found = found if isinstance(found, dict) else {}
        wanted = json.loads(dump_json(wanted))
        differ = [
            f"{key}: {found.get(key)!r:.200} there, {wanted.get(key)!r:.200} now"
            for key in {**found, **wanted}
            if found.get(key) != wanted.get(key)
        ]
        if differ:
            raise JournalError(
                f"{self.path} belongs to a run with another configuration "
                f"({'; '.join(differ)}). Use a new folder, or the same settings"
            )

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Raises an error of the disk as a JournalError that says what to do."""
        try:
            yield
        except OSError as error:
            fix = "free some space or make the folder writable"
            if isinstance(error, IsADirectoryError) or error.errno == errno.EISDIR:
                fix = "remove the folder that is in its place"
            raise JournalError(
                f"{self.path}: cannot be written ({error.strerror or error}). Every reply up to "
                f"here is kept; {fix}, and start the same run again"
            ) from None


def read_sample(folder: Path) -> list[Sampled]:
    """Returns tasks kept and tokens of each filtered reply in a folder's journal, if it has one.

    Damaged lines are left out: Journal names them.
    """
    kept: dict[int, int] = {}
    tokens: dict[int, tuple[int, int, int]] = {}
    for line in read_json_lines(folder / "journal.jsonl"):
        row = line.row or {}
        with contextlib.suppress(*MALFORMED):
            if "reply" in row:
                reply = RawReply.from_row(row["reply"])
                counts = (reply.prompt_tokens, reply.completion_tokens, reply.reasoning_tokens)
                tokens[read_number(row["request"])] = counts
            elif "judged" in row:
                kept[read_number(row["judged"])] = sum("dropped" not in t for t in row["tasks"])
    return [Sampled(kept[number], *tokens[number]) for number in sorted(kept.keys() & tokens)]


def has_journal(folder: Path) -> bool:
    """Returns whether a run has begun a journal in a folder."""
    return next(read_json_lines(folder / "journal.jsonl"), None) is not None


def read_number(value: Any) -> int:
    """Returns a request's number of a journal's line. Raises TypeError if it is none."""
    if type(value) is not int or value < 0:
        raise TypeError(f"{value!r} is no number of a request")
    return value
