"""The functions that notebook 02 writes out, against the library; and its cells run twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from alpaca_lib import dataset
from alpaca_lib.course import data_tables
from alpaca_lib.course.notebooks import REPO
from alpaca_lib.records import Example, load_examples
from tests.notebooks.cells import code_cells, define

CELLS = code_cells("02_dataset_inspection")


@pytest.mark.parametrize(("k", "n"), [(20, 20), (10, 28), (3, 20), (1, 2)])
def test_lowest_solves_the_equation_of_the_score_test(k, n):
    """Wilson's bound is the p below k / n whose standard error is the distance / z."""
    p = define(CELLS)["lowest"](k, n)
    assert p < k / n
    assert k / n - p == pytest.approx(1.645 * (p * (1 - p) / n) ** 0.5)


def test_lowest_is_zero_without_a_fault():
    assert define(CELLS)["lowest"](0, 20) == pytest.approx(0, abs=1e-12)


def test_clean_keeps_what_the_librarys_filter_keeps():
    raw = data_tables.read_replies(REPO / "data" / "teacher_replies.jsonl")
    tasks = [task for reply in raw for task in data_tables.split_tasks(reply)]
    names = {
        "inspected": {"replies": tasks},
        "found": {"replies": []},
        "dataset": dataset,
        "threshold": 0.7,
        "rouge_mode": "auto",
    }
    kept, bad = define(CELLS, **names)["clean"]("replies")
    decisions = dataset.filter_novel([t.instruction for t in tasks], mode="auto")
    assert kept == [t for t, one in zip(tasks, decisions, strict=True) if one.kept]
    assert len(kept) + len(bad) == len(tasks) and bad


def test_clean_keeps_the_second_of_two_alike_if_the_first_has_an_error():
    rows = [Example("Name a river.", "", ""), Example("Name a river!", "", "The Nile.")]
    names = {"inspected": {"x": rows}, "found": {"x": dataset.find_faults(rows)}}
    names |= {"dataset": dataset, "threshold": 0.7, "rouge_mode": "auto"}
    kept, bad = define(CELLS, **names)["clean"]("x")
    assert kept == rows[1:] and bad == {0: "empty output"}


@pytest.mark.slow
def test_the_cells_run_twice_each_without_lesson_01(monkeypatch, tmp_path):
    monkeypatch.setenv("ALPACA_RUNS", str(tmp_path))
    monkeypatch.setenv("ALPACA_HEADLESS", "1")
    monkeypatch.setenv("ALPACA_RUN", "")
    names = {"__name__": "__main__"}
    for cell in CELLS:
        for _ in range(1 if cell.id == "start" else 2):
            exec(compile(cell.source, cell.id, "exec"), names)
    folders = sorted(p.name for p in (tmp_path / "02_dataset_inspection").iterdir())
    assert folders == ["001"]
    folder = tmp_path / "02_dataset_inspection" / "001"
    given = load_examples(REPO / "data" / "alpaca_520.json")
    assert load_examples(folder / "cleaned.json") == given
    assert {p.name for p in folder.iterdir()} >= {
        "report.html",
        "card.md",
        "dropped.json",
        "replies_cleaned.json",
        "replies_dropped.json",
        "result.json",
    }
    for cell in CELLS[6:]:  # once more, after all the others: no name has changed its meaning
        exec(compile(cell.source, cell.id, "exec"), names)
    assert not any(Path(tmp_path).glob("*/002"))
