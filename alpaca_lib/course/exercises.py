"""Makes the exercise notebooks from the solutions, and copies of the course for students.

notebooks/solutions/*.ipynb are the source. In them each exercise is a heading, a starting cell,
one or more cells tagged ``solution``, and a check; an exercise notebook is the same without the
tagged cells and without outputs.

    python course.py exercises          execute the solutions, write the exercises
    python course.py exercises --language zh    execute the edition's solutions
    python course.py student OUT        copy lessons and exercises, without outputs and solutions
    python course.py grade FILE...      run notebooks of students, print who solved what as CSV
"""

from __future__ import annotations

import argparse
import copy
import csv
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nbformat

from alpaca_lib import command_line
from alpaca_lib.course.checks.verdict import GRADES
from alpaca_lib.course.notebooks import LESSONS, REPO, make_folder
from alpaca_lib.errors import FileError, RunError
from alpaca_lib.files import read_json_lines, write_text

NOTEBOOKS = REPO / "notebooks"
SOLUTIONS, EXERCISES = NOTEBOOKS / "solutions", NOTEBOOKS / "exercises"
SOLUTION = "solution"  # the tag of a cell that a student does not get
# What an exercise asks for; "Repair" is of the museum: a bug that people really met.
KINDS = ("Predict", "Complete", "Change", "Repair", "Open")
HEADING = re.compile(rf"^## (\d+)\. ({'|'.join(KINDS)}): (.+)$", re.MULTILINE)


def find_exercises(book: Any) -> list[tuple[int, str, str]]:
    """Returns (number, kind, title) of each exercise of a notebook, in order."""
    text = "\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
    return [(int(number), kind, title.strip()) for number, kind, title in HEADING.findall(text)]


def without_solutions(book: Any) -> Any:
    """Returns a copy of a notebook without the cells tagged ``solution`` and without outputs."""
    book = copy.deepcopy(book)
    book.cells = [c for c in book.cells if SOLUTION not in c.metadata.get("tags", [])]
    title = book.cells[0]  # its link to another language
    title.source = title.source.replace(f"/{SOLUTIONS.name}/", f"/{EXERCISES.name}/")
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return book


def execute(book: Any, folder: Path, allow_errors: bool = False) -> Any:
    """Runs a notebook from top to bottom, in place, and returns it without times and stderr.

    Raises RunError with the cell and its error if one fails, unless errors are allowed.
    """
    import nbclient

    client = nbclient.NotebookClient(
        book,
        timeout=600,
        allow_errors=allow_errors,
        resources={"metadata": {"path": folder}},
    )
    try:
        client.execute()
    except nbclient.exceptions.CellExecutionError as error:
        raise RunError(f"a solution fails: {error.ename}: {error.evalue}\n{error}") from None
    for cell in book.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
    return book


def read_notebook(path: Path) -> Any:
    """Returns a notebook. Raises FileError if there is none."""
    try:
        return nbformat.read(path, as_version=4)
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror})") from None


def write_notebook(book: Any, path: Path) -> None:
    """Writes a notebook atomically."""
    write_text(path, nbformat.writes(book) + "\n")


def write_exercises(names: tuple[str, ...] = LESSONS) -> list[Path]:
    """Runs the solutions and writes the exercises; returns what was written."""
    written = []
    for name in names:
        source = SOLUTIONS / f"{name}.ipynb"
        book = execute(read_notebook(source), NOTEBOOKS)
        write_notebook(book, source)
        target = make_folder(EXERCISES) / source.name
        write_notebook(without_solutions(book), target)
        written += [source, target]
    return written


def execute_solutions(language: str, names: tuple[str, ...] = LESSONS) -> list[Path]:
    """Runs the solutions of another edition in place and returns them.

    ``course.py translate`` writes its exercises. Raises FileError if there is no such edition.
    """
    folder = NOTEBOOKS / language
    if not (folder / SOLUTIONS.name).is_dir():
        known = ", ".join(path.parent.name for path in NOTEBOOKS.glob(f"*/{SOLUTIONS.name}"))
        raise FileError(f"--language {language}: the other editions are {known}")
    written = [folder / SOLUTIONS.name / f"{name}.ipynb" for name in names]
    for source in written:
        write_notebook(execute(read_notebook(source), folder), source)
    return written


def write_student_copy(out: Path) -> list[Path]:
    """Writes the lessons, exercises and pictures into a folder, without outputs and solutions."""
    if out.exists() and any(out.iterdir()):
        raise FileError(f"{out}: is not empty; name a new folder")
    written = []
    for source in sorted(NOTEBOOKS.rglob("0*.ipynb")):  # in every language
        folder = source.parent.relative_to(REPO)
        if not {SOLUTIONS.name, ".ipynb_checkpoints"} & set(folder.parts):
            target = make_folder(out / folder) / source.name
            write_notebook(without_solutions(read_notebook(source)), target)
            written.append(target)
    shutil.copytree(REPO / "images", out / "images")
    return written


def grade(file: Path) -> Iterator[tuple[str, bool]]:
    """Runs a student's notebook and yields (exercise, solved) for the last check of each.

    A cell that fails does not stop the run. The notebook runs as the student wrote it: grade
    files of strangers in a container.
    """
    book = read_notebook(file)
    with tempfile.TemporaryDirectory() as folder:
        grades = Path(folder) / "grades.jsonl"
        before = os.environ.get(GRADES)
        os.environ[GRADES] = str(grades)
        try:
            execute(book, file.resolve().parent, allow_errors=True)
        finally:
            os.environ.pop(GRADES)
            if before is not None:
                os.environ[GRADES] = before
        lines = read_json_lines(grades)
        rows = [line.row for line in lines if line.row]
        yield from {row["exercise"]: row["right"] for row in rows}.items()


def write_grades(files: Sequence[Path], stream: Any) -> None:
    """Writes one CSV line per file and exercise: file, exercise, 1 if it is solved or 0."""
    writer = csv.writer(stream)
    writer.writerow(["file", "exercise", "solved"])
    for file in files:
        writer.writerows([file, name, int(right)] for name, right in grade(file))
        stream.flush()


def main(arguments: list[str]) -> int:
    """Runs ``course.py exercises``, ``student`` or ``grade`` and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="course.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("exercises", help="execute the solutions, write the exercises")
    one.add_argument("--only", default="", help="the lesson's number: 03")
    one.add_argument("--language", default="", help="of another edition: zh")
    two = commands.add_parser("student", help="copy the course without outputs and solutions")
    two.add_argument("out", type=Path, help="a new folder")
    three = commands.add_parser("grade", help="run notebooks of students, print CSV")
    three.add_argument("files", type=Path, nargs="+", help="exercise notebooks")
    options = parser.parse_args(arguments)

    def work() -> int:
        if options.command == "grade":
            write_grades(options.files, sys.stdout)
            return 0
        if options.command == "student":
            written = write_student_copy(options.out)
        else:
            names = tuple(n for n in LESSONS if n.startswith(options.only))
            if not names:
                raise RunError(f"--only {options.only}: the lessons are {', '.join(LESSONS)}")
            language = options.language
            written = execute_solutions(language, names) if language else write_exercises(names)
        print(*written, sep="\n")
        return 0

    return command_line.run(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
