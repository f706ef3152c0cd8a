"""The exercises: made from the solutions, solvable as the solutions say, and open without them."""

from __future__ import annotations

import contextlib
import io

import nbformat
import pytest

from alpaca_lib.course import exercises
from alpaca_lib.course.checks import verdict
from alpaca_lib.course.exercises import EXERCISES, SOLUTIONS
from alpaca_lib.course.notebooks import LESSONS

WRITTEN = [name for name in LESSONS if (SOLUTIONS / f"{name}.ipynb").exists()]


@pytest.fixture(scope="module", params=WRITTEN)
def solved(request):
    return exercises.read_notebook(SOLUTIONS / f"{request.param}.ipynb")


@pytest.fixture(scope="module")
def open_book(solved):
    return exercises.without_solutions(solved)


def run(book):
    """Runs the code of a notebook in this process; returns ({exercise: right}, what it printed)."""
    verdict.verdicts.clear()
    names, printed = {"__name__": "__main__"}, io.StringIO()
    with contextlib.redirect_stdout(printed):
        for cell in book.cells:
            if cell.cell_type == "code":
                exec(compile(cell.source, cell.id, "exec"), names)
    return dict(verdict.verdicts), printed.getvalue()


def test_every_lesson_has_exercises_of_each_kind(solved):
    found = exercises.find_exercises(solved)
    assert [number for number, _, _ in found] == list(range(1, len(found) + 1))
    kinds = [kind for _, kind, _ in found]
    assert {"Predict", "Complete", "Change", "Open"} <= set(kinds)
    assert kinds.count("Repair") >= 3


def test_each_exercise_has_a_solution_and_its_code_a_check(solved):
    sections, now = {}, []
    for cell in solved.cells:
        if cell.cell_type == "markdown" and exercises.HEADING.search(cell.source):
            now = sections.setdefault(cell.source.splitlines()[0], [])
        now.append(cell)
    for heading, cells in sections.items():
        assert any("solution" in c.metadata.get("tags", []) for c in cells), heading
        kind = heading.split(". ")[1].split(":")[0]
        if kind in ("Predict", "Complete", "Repair"):
            last = [c for c in cells if c.cell_type == "code"][-1]
            assert last.source.startswith("check."), heading
            assert "solution" not in last.metadata.get("tags", []), heading


@pytest.mark.parametrize("name", WRITTEN)
def test_the_exercise_notebook_is_the_solution_without_its_tagged_cells(name):
    solved = exercises.read_notebook(SOLUTIONS / f"{name}.ipynb")
    text = nbformat.writes(exercises.without_solutions(solved)) + "\n"
    assert (EXERCISES / f"{name}.ipynb").read_text(encoding="utf-8") == text


def test_the_solutions_pass_every_check_and_say_so_in_their_outputs(solved):
    found, printed = run(solved)
    assert found and all(found.values()), printed
    shown = "".join(o.get("text", "") for c in solved.cells for o in c.get("outputs", []))
    assert shown.count("Right: ") == len(found)
    assert "Not yet" not in shown


def test_no_check_passes_without_an_answer_and_the_notebook_runs(open_book):
    found, printed = run(open_book)
    assert found and not any(found.values()), printed
    assert printed.count("Not yet: ") == len(found)
