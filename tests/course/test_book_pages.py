"""Pages of the book that are written from other files: tests/browser/test_book.py builds it."""

from __future__ import annotations

from alpaca_lib.course import book
from alpaca_lib.course.notebooks import REPO


def test_every_measured_table_is_shown():
    files = {path.stem for path in (REPO / "benchmarks" / "results").glob("*.txt")}
    assert set(book.TABLES) == files
    page = book.format_tables()
    for name in files:
        assert f"../benchmarks/results/{name}.txt\n" in page
