"""The journal of a generation run: every reply, on disk before it is used.

Append-only JSON lines: the run's configuration first, then one line a request.
A run that was killed reads it back and asks only for what is missing.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from alpaca_lib.generation.teacher import RawReply
from alpaca_lib.records import dump_json


class JournalError(ValueError):
    """A journal that does not belong to this run or cannot be read."""


class Journal:
    """Replies by request number, kept in ``folder``/journal.jsonl."""

    def __init__(self, folder: Path, configuration: dict[str, Any]) -> None:
        self.path = folder / "journal.jsonl"
        self.replies: dict[int, RawReply] = {}
        folder.mkdir(parents=True, exist_ok=True)
        lines = self._whole_lines()
        if lines:
            self._check(lines[0].get("configuration"), configuration)
            for number, line in enumerate(lines[1:], start=2):
                try:
                    self.replies[int(line["request"])] = RawReply(**line["reply"])
                except (KeyError, TypeError, ValueError):
                    raise self._damaged(number) from None
        self._stream = open(self.path, "a", encoding="utf-8", newline="\n")  # noqa: SIM115
        if not lines:
            self._write({"configuration": configuration})

    def append(self, request: int, reply: RawReply) -> None:
        """Puts one reply on disk (fsync) and into ``replies``."""
        self._write({"request": request, "reply": asdict(reply)})
        self.replies[request] = reply

    def close(self) -> None:
        """Closes the file; everything appended is already on disk."""
        self._stream.close()

    def _write(self, line: dict[str, Any]) -> None:
        self._stream.write(dump_json(line) + "\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def _whole_lines(self) -> list[dict[str, Any]]:
        """The journal's lines; a last line that a crash tore is cut off the file."""
        if not self.path.is_file():
            return []
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) != len(data):
            with open(self.path, "r+b") as stream:
                stream.truncate(len(whole))
        lines = []
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                found = json.loads(line)
            except ValueError:
                found = None
            if not isinstance(found, dict):
                raise self._damaged(number)
            lines.append(found)
        return lines

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
