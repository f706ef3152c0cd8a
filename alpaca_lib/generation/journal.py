"""The journal of a generation run: every reply, on disk before it is used.

Append-only JSON lines: the run's configuration first; then a line for each reply, each
attempt that may have been paid for in vain, each batch, and each judgement with its
reasons. A run that was killed reads it back and asks only for what is missing.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from alpaca_lib.errors import JournalError
from alpaca_lib.files import dump_json
from alpaca_lib.generation.teacher import RawReply


class Journal:
    """The lines of ``folder``/journal.jsonl; one process at a time holds it open.

    Texts stay on disk: in memory there is a place for each reply.
    """

    def __init__(self, folder: Path, configuration: dict[str, Any]) -> None:
        self.path = folder / "journal.jsonl"
        self.judged: set[int] = set()
        self.spent_usd = 0.0  # by the replies that were there when it was opened
        self.lost_usd = 0.0  # attempts without an answer that may have been paid for
        self.pending: dict[int, float] = {}  # dollars of requests sent, and not answered since
        self.batches: dict[str, dict[str, Any]] = {}
        self._places: dict[int, int] = {}
        self._writing = threading.RLock()  # replies are appended by a thread of their own
        with self.explained():
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(folder)
        try:
            with self.explained():
                self._stream = open(self.path, "a+b", buffering=0)  # noqa: SIM115
            self._size = 0
            first = True
            for number, line in self._whole_lines():
                if first:
                    self._check(line.get("configuration"), configuration)
                    first = False
                else:
                    self._remember(number, line)
            if first:
                self._write({"configuration": configuration})
        except BaseException:
            self.close()
            raise

    def __contains__(self, request: int) -> bool:
        return request in self._places

    def __len__(self) -> int:
        return len(self._places)

    def reply(self, request: int) -> RawReply:
        """The reply to a request that is in the journal."""
        with self.explained(), open(self.path, "rb") as stream:
            stream.seek(self._places[request])
            line = json.loads(stream.readline())
        return RawReply(**line["reply"])

    def append(self, request: int, reply: RawReply) -> None:
        """Puts one reply on disk, fsync included."""
        line = {"request": request, "reply": asdict(reply)}
        with self._writing:
            place = self._size
            self._write(line)
            self._places[request] = place
            self.pending.pop(request, None)

    def sent(self, request: int, usd: float) -> None:
        """Notes, before it goes out, what a request may cost; if the run ends before it is
        answered, that counts as spent."""
        self._write({"sent": request, "usd": usd}, sync=False)
        self.pending[request] = usd

    def unsent(self, request: int) -> None:
        """Notes that a request came to nothing, and was not paid for."""
        if self.pending.pop(request, None) is not None:
            self._write({"unsent": request}, sync=False)

    def lost(self, request: int, why: str, usd: float) -> None:
        """Notes an attempt that may have been paid for without an answer."""
        self._write({"request": request, "lost": why, "usd": usd})
        self.lost_usd += usd
        self.pending.pop(request, None)

    def judge(self, request: int, tasks: list[dict[str, Any]]) -> None:
        """Notes what became of a reply's tasks; not fsynced, since it can be judged again."""
        if request not in self.judged:
            self.judged.add(request)
            self._write({"judged": request, "tasks": tasks}, sync=False)

    def batch(self, name: str, **state: Any) -> None:
        """Notes a batch that was handed in, or what became of it."""
        self.batches[name] = {**self.batches.get(name, {}), **state}
        self._write({"batch": name, **state})

    def open_batches(self) -> dict[str, dict[str, Any]]:
        """The batches whose answers are not collected yet."""
        return {name: b for name, b in self.batches.items() if b.get("state") != "done"}

    def close(self) -> None:
        """Closes the file; everything appended is already on disk."""
        with contextlib.suppress(AttributeError):
            self._stream.close()
        self._lock.release()

    def _write(self, line: dict[str, Any], sync: bool = True) -> None:
        data = (dump_json(line) + "\n").encode("utf-8")
        with self._writing, self.explained():
            try:
                written = 0
                while written < len(data):
                    written += os.write(self._stream.fileno(), data[written:])
                if sync:
                    os.fsync(self._stream.fileno())
            except BaseException:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._stream.fileno(), self._size)  # no torn line
                raise
            self._size += len(data)

    def _whole_lines(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """(number, line) of the journal; a last line that a crash tore is cut off the file."""
        number = 0
        with open(self.path, "rb") as stream:
            for data in stream:
                number += 1
                if not data.endswith(b"\n"):
                    os.ftruncate(self._stream.fileno(), self._size)
                    return
                try:
                    line = json.loads(data)
                except ValueError:
                    line = None
                if not isinstance(line, dict):
                    raise self._damaged(number)
                yield number, line
                self._size += len(data)

    def _remember(self, number: int, line: dict[str, Any]) -> None:
        try:
            if "reply" in line:
                self.spent_usd += RawReply(**line["reply"]).usd
                self._places[int(line["request"])] = self._size
                self.pending.pop(int(line["request"]), None)
            elif "lost" in line:
                self.lost_usd += float(line["usd"])
                self.pending.pop(int(line["request"]), None)
            elif "sent" in line:
                self.pending[int(line["sent"])] = float(line["usd"])
            elif "unsent" in line:
                self.pending.pop(int(line["unsent"]), None)
            elif "judged" in line:
                self.judged.add(int(line["judged"]))
            elif "batch" in line:
                state = {key: value for key, value in line.items() if key != "batch"}
                self.batches.setdefault(str(line["batch"]), {}).update(state)
            else:
                raise KeyError("reply")
        except (KeyError, TypeError, ValueError):
            raise self._damaged(number) from None

    def _damaged(self, number: int) -> JournalError:
        cure = "use a new folder" if number == 1 else "delete it, and its request is asked again"
        return JournalError(f"{self.path}, line {number}: is damaged; {cure}")

    def _check(self, found: Any, wanted: dict[str, Any]) -> None:
        found = found if isinstance(found, dict) else {}
        wanted = json.loads(dump_json(wanted))
        differ = [
            f"{key}: {found.get(key)!r} there, {wanted.get(key)!r} now"
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
        """An error of the disk becomes a JournalError that says what to do."""
        try:
            yield
        except OSError as error:
            raise JournalError(
                f"{self.path}: cannot be written ({error.strerror or error}). Every reply up to "
                "here is kept; free some space or make the folder writable, and start the same "
                "run again"
            ) from None


def _lock(folder: Path) -> Any:
    """A lock that the system takes back when the process ends, however it ends."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".generation.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise JournalError(
            f"{folder}: another run is writing there; wait for it, stop it, or use another folder"
        ) from None
    return lock
