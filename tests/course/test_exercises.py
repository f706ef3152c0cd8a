"""The machinery of exercises: verdicts, copies for students, grades."""

from __future__ import annotations

import csv
import io
import json

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from alpaca_lib.course import exercises
from alpaca_lib.course.checks import verdict
from alpaca_lib.errors import FileError, RunError

CHECK = """
from alpaca_lib.course.checks.verdict import exercise, need_same

@exercise
def double(answer):
    need_same(answer, lambda n: 2 * n, [(1,), (21,)], "double({arguments}) gave {got}")
    return "twice as much"
"""


def book_of(solution):
    """A notebook with one exercise, whose check stands in a cell of its own."""
    cells = [
        new_markdown_cell("# Exercises"),
        new_code_cell(CHECK),
        new_markdown_cell("## 1. Complete: twice"),
        new_code_cell("def double(n):\n    ..."),
        new_code_cell(solution, metadata={"tags": ["solution"]}),
        new_code_cell("check_it = double\n"),
    ]
    return new_notebook(cells=cells)


@pytest.fixture
def double(capsys):
    names = {"__name__": "lesson"}
    exec(CHECK, names)

    def judge(answer):
        names["double"](answer)
        return capsys.readouterr().out

    return judge


def test_a_right_answer_is_praised_and_kept(double):
    assert double(lambda n: n + n) == "Right: twice as much\n"
    assert verdict.verdicts["lesson.double"] is True


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (..., "there is no answer yet"),
        (None, "there is no answer yet"),
        (7, "that is int; a function is wanted"),
        (lambda n: None, "your function returns None"),
        (lambda n: 2, "double(21) gave 2"),
        (lambda n: n / 0, "your answer raised ZeroDivisionError"),
    ],
)
def test_a_wrong_answer_gets_a_hint_and_no_exception(double, answer, hint):
    said = double(answer)
    assert said.startswith("Not yet: ") and hint in said
    assert verdict.verdicts["lesson.double"] is False


def test_numbers_may_have_a_tolerance():
    verdict.need_number(1.01, 1.0, "far", tolerance=0.02)
    for answer in (1.03, True is None, "1", ...):
        with pytest.raises(verdict.Hint):
            verdict.need_number(answer, 1.0, "far", tolerance=0.02)


def test_a_students_copy_has_no_solution_and_no_output():
    book = book_of("SECRET = 1")
    book.cells[1].outputs = [nbformat.v4.new_output("stream", text="SECRET")]
    book.cells[1].execution_count = 3
    text = nbformat.writes(exercises.without_solutions(book))
    assert "SECRET" not in text and '"execution_count": 3' not in text
    assert "SECRET" in nbformat.writes(book), "the source is unchanged"


def test_a_solution_that_fails_names_its_error(tmp_path):
    with pytest.raises(RunError, match="ZeroDivisionError"):
        exercises.execute(book_of("1 / 0"), tmp_path)


def test_grades_are_those_of_the_last_check_though_a_cell_fails(tmp_path):
    book = book_of("def double(n):\n    return 3 * n")
    book.cells[1].source = CHECK.replace("def double", "def check_double")
    calls = ["check_double(double)", "raise SystemError", "check_double(lambda n: 2 * n)"]
    book.cells += [new_code_cell(call) for call in calls]
    file = tmp_path / "ann.ipynb"
    exercises.write_notebook(book, file)
    out = io.StringIO()
    exercises.write_grades([file], out)
    rows = list(csv.reader(out.getvalue().splitlines()))
    assert rows == [
        ["file", "exercise", "solved"],
        [str(file), "__main__.check_double", "1"],
    ]


def test_the_students_folder_must_be_new_and_gets_the_pictures(tmp_path, monkeypatch):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "x").touch()
    with pytest.raises(FileError, match="is not empty"):
        exercises.write_student_copy(tmp_path / "old")
    written = exercises.write_student_copy(tmp_path / "new")
    assert {p.suffix for p in written} == {".ipynb"}
    for path in written:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        assert not any(cell.get("outputs") for cell in cells)
        assert not any("solution" in cell["metadata"].get("tags", []) for cell in cells)
    copied = {path.relative_to(tmp_path / "new").parent.as_posix() for path in written}
    english = {"notebooks", "notebooks/exercises"}
    assert copied == english | {"notebooks/zh", "notebooks/zh/exercises"}
    assert any((tmp_path / "new" / "images").iterdir())


def test_the_solutions_of_another_edition_are_run_in_place(tmp_path, monkeypatch):
    monkeypatch.setattr(exercises, "NOTEBOOKS", tmp_path)
    file = tmp_path / "zh" / "solutions" / "01.ipynb"
    file.parent.mkdir(parents=True)
    exercises.write_notebook(book_of("import os; print(os.path.basename(os.getcwd()))"), file)
    assert exercises.execute_solutions("zh", ("01",)) == [file]
    printed = [
        o.text for cell in exercises.read_notebook(file).cells for o in cell.get("outputs", [])
    ]
    assert "zh\n" in printed
    with pytest.raises(FileError, match="--language xx: the other editions are zh"):
        exercises.execute_solutions("xx", ("01",))
