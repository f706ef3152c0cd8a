"""Splits your own documents into passages that a prompt can show.

A teacher that is shown a passage writes tasks about it, beyond its own knowledge; each task
records its source passage, so that a reader can check it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from alpaca_lib.errors import DataError
from alpaca_lib.records import words

KINDS = (".txt", ".md", ".rst")
WORDS = 150  # per passage, approximately


@dataclass(frozen=True)
class Passage:
    """A part of a document: its file, relative to the folder, and the characters it spans."""

    file: str
    start: int
    end: int
    text: str

    def source(self) -> dict[str, object]:
        """Returns the source that is recorded with a task."""
        return {"file": self.file, "start": self.start, "end": self.end}


def load_passages(folder: Path, size: int = WORDS) -> list[Passage]:
    """Returns the passages of every .txt, .md and .rst file below a folder, sorted by name.

    size: words per passage, approximately. A passage ends with a paragraph if possible, else
    with a sentence. Raises DataError if there is nothing to read.
    """
    given = folder
    if not folder.exists():
        raise DataError(f"{folder}: no such folder or file")
    if folder.is_file():
        files, folder = [folder], folder.parent
    else:
        found = sorted(folder.rglob("*"))
        _refuse_links(folder, found)
        files = [path for path in found if path.suffix.lower() in KINDS and path.is_file()]
    passages: list[Passage] = []
    for path in files:
        try:
            text = path.read_bytes().decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read as UTF-8 text ({error})") from None
        name = path.relative_to(folder).as_posix()
        passages += [
            Passage(name, start, end, text[start:end]) for start, end in _spans(text, size)
        ]
    if not passages:
        raise DataError(f"{given}: no text in it; put {', '.join(KINDS)} files there")
    return passages


def _refuse_links(folder: Path, paths: list[Path]) -> None:
    """Raises DataError for a link that leads out of the folder: its text would be sent away."""
    for path in paths:
        if not path.is_symlink():
            continue
        target = path.resolve()
        is_read = target.is_dir() or path.suffix.lower() in KINDS
        if is_read and not target.is_relative_to(folder.resolve()):
            raise DataError(
                f"{path}: is a link to {target}, outside of {folder}; delete it, or put a copy in "
                "its place"
            )


def _spans(text: str, size: int) -> list[tuple[int, int]]:
    """Returns (start, end) of passages of about ``size`` words, without surrounding space."""
    pieces: list[tuple[int, int]] = []
    for paragraph in re.finditer(r"\S(?:.*?\S)??(?=\s*\n\s*\n|\s*\Z)", text, re.DOTALL):
        if words(paragraph[0]) <= size:
            pieces.append(paragraph.span())
            continue
        for sentence in re.finditer(
            r"\S.*?(?:[.!?。！？]+[\"”’」』）)]*(?=\s|\Z|[^\x00-\x7f])|\Z)", paragraph[0], re.DOTALL
        ):
            pieces.append(
                (paragraph.start() + sentence.start(), paragraph.start() + sentence.end())
            )
    spans: list[tuple[int, int]] = []
    for start, end in pieces:
        if spans and words(text[spans[-1][0] : end]) <= size:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))
    return spans
