"""A file of answers that survives a crash: what is in it is not generated a second time.

The first line holds the settings that the answers depend on; each further line is one answer. A
run with other settings is refused instead of mixing two models' answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alpaca_lib.errors import DataError
from alpaca_lib.files import JsonLines, dump_json, read_json_lines, write_text

SETTINGS = "settings"


class AnswersFile:
    """Answers by key, on the disk. One process at a time holds the file.

    >>> with AnswersFile(Path("base.ifeval.jsonl"), {"model": "..."}) as answers:
    ...     answers.add({"key": "1", "response": "Yes."})
    ...     assert "1" in answers.rows
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Opens the file and reads the answers in it.

        Raises DataError, naming what differs, if they were given with other settings.
        """
        self.path, self.settings = path, dict(settings)
        self.rows: dict[str, dict[str, Any]] = {}
        self._log = JsonLines(path)
        try:
            self._log.lock(f"{path}: another run writes to this file; name another with --out")
            self._read()
        except BaseException:
            self._log.close()
            raise

    def __enter__(self) -> AnswersFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._log.close()

    def add(self, row: dict[str, Any]) -> None:
        """Appends an answer and waits for the disk; ``row`` has a ``key``."""
        self._log.append(row)
        self.rows[row["key"]] = row

    def rewrite(self) -> None:
        """Replaces the file by its header and ``rows``, which may have new columns."""
        lines = [{SETTINGS: self.settings}, *self.rows.values()]
        self._log.close()
        write_text(self.path, "".join(dump_json(line) + "\n" for line in lines))

    def _read(self) -> None:
        lines = iter(read_json_lines(self.path))
        header = next(lines, None)
        if header is None:
            self._log.append({SETTINGS: self.settings})
            return
        if header.row is None or not isinstance(header.row.get(SETTINGS), dict):
            raise DataError(f"{self.path}: is no file of answers; name another one with --out")
        check_settings(header.row[SETTINGS], self.settings, self.path)
        for line in lines:
            if line.row is None or not isinstance(line.row.get("response"), str):
                raise DataError(f"{self.path}, line {line.number}: is damaged; delete this line")
            self.rows[str(line.row.get("key"))] = line.row


def check_settings(old: Mapping[str, Any], new: Mapping[str, Any], path: Path) -> None:
    """Raises DataError, naming the first setting that differs, if results cannot be continued."""
    for name in [*new, *old]:
        if old.get(name) != new.get(name):
            values = [dump_json(one.get(name))[:60] for one in (old, new)]
            raise DataError(
                f"{path}: holds results with {name} {values[0]}, and this run has {values[1]}; "
                "name another file with --out, or delete this one"
            )
