"""What lesson 02 shows: tables of rows, counts and detectors, and the raw replies."""

from __future__ import annotations

import json

import pytest

from alpaca_lib.course import data_tables
from alpaca_lib.course.notebooks import REPO
from alpaca_lib.dataset import find_faults
from alpaca_lib.errors import DataError
from alpaca_lib.records import Example

ROWS = [Example("Name a river.", "", "The Nile."), Example("Shorten it.", "Good day", "Hi")]


@pytest.fixture
def shown(monkeypatch):
    tables = []
    monkeypatch.setattr(
        data_tables, "show_table", lambda head, rows: tables.append([head, *map(list, rows)])
    )
    return tables


def test_an_example_is_one_text_with_its_input_if_it_has_one():
    assert data_tables.format_example(ROWS[0]) == "Name a river.\n\nOUTPUT: The Nile."
    assert "INPUT: Good day" in data_tables.format_example(ROWS[1])


def test_rows_and_counts_of_each_set(shown):
    data_tables.show_rows({"mine": ROWS, "none": []}, each=1)
    data_tables.show_counts({"mine": ROWS, "none": []})
    assert shown[0][1:] == [["mine", "Name a river.", "", "The Nile."]]
    assert shown[1][1] == ["mine", 2, 1, 0, 2.5, 2.0, 1.5]
    assert shown[1][2] == ["none", 0, 0, 0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("mode, said", [("rouge", 1), ("unicode", 0), ("auto", 0)])
def test_a_mode_that_keeps_nothing_of_a_row_is_reported(monkeypatch, mode, said):
    texts = []
    monkeypatch.setattr(data_tables, "say", texts.append)
    data_tables.warn_of_lost_scripts(["Name a river.", "写一首诗。"], mode)
    assert len(texts) == said and all("1 of 2 instructions have no token" in t for t in texts)


def test_detectors_are_listed_by_alpacas_rows_and_silent_ones_left_out(shown):
    measured = {
        "refusal": {"rows": 36, "judged": 28, "true": 10},
        "word for no input": {"rows": 665, "judged": 20, "true": 20},
        "control token": {"rows": 0, "judged": 0, "true": 0},
    }
    found = {"mine": find_faults([Example("Say it.", "none", "It."), *ROWS])}
    data_tables.show_detectors(found, measured, lambda true, judged: true / judged)
    assert shown[0][1:] == [
        ["word for no input", "error", 1, "665", "20 of 20", "100%"],
        ["refusal", "review", "", "36", "10 of 28", "36%"],
    ]


def test_replies_are_read_and_split_into_all_their_tasks():
    replies = data_tables.read_replies(REPO / "data" / "teacher_replies.jsonl")
    tasks = [task for reply in replies for task in data_tables.split_tasks(reply)]
    assert len(replies) == 34 and len(tasks) == 617
    assert tasks[0].instruction and not any("<noinput>" in task.input for task in tasks)


@pytest.mark.parametrize("text", ["{}", "[1]", json.dumps({"choices": []}), "no json", "null"])
def test_a_line_that_is_no_completion_is_named(tmp_path, text):
    file = tmp_path / "replies.jsonl"
    good = json.dumps({"choices": [{"message": {"content": "Hi"}}]})
    file.write_text(f"{good}\n{text}\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 2: is no chat completion; give a file like"):
        data_tables.read_replies(file)


def test_a_missing_file_of_replies_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nope\.jsonl: no such file"):
        data_tables.read_replies(tmp_path / "nope.jsonl")
