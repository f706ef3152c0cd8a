"""Every committed notebook has the course's form, and only the outputs it should."""

import ast
import json
import re
from pathlib import Path

import nbformat
import papermill
import pytest

from alpaca_lib.course.notebooks import LESSONS

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "notebooks"


@pytest.fixture(params=LESSONS)
def path(request):
    return FOLDER / f"{request.param}.ipynb"


@pytest.fixture
def book(path):
    return nbformat.read(path, as_version=4)


def code(book):
    return [cell for cell in book.cells if cell.cell_type == "code"]


def test_it_is_valid_with_ids_and_the_plain_kernel(book):
    nbformat.validate(book)
    assert book.metadata.kernelspec.name == "python3"
    ids = [cell.id for cell in book.cells]
    assert len(set(ids)) == len(ids)


def test_the_sections_come_in_the_courses_order(book):
    text = "\n".join(c.source for c in book.cells if c.cell_type == "markdown")
    heads = ["# 0", "## At a glance", "## Setup", "## Parameters", "## 1.", "## Results"]
    heads += ["## Check yourself", "## Exercises", "## Summary"]
    places = [text.find(head) for head in heads]
    assert -1 not in places, dict(zip(heads, places, strict=True))
    assert places == sorted(places)
    for row in ("You build", "Time", "API cost", "Download", "Reads", "Writes"):
        assert f"| {row} |" in text


def test_one_parameters_cell_of_scalars_that_papermill_can_read(book, path):
    cells = [c for c in code(book) if "parameters" in c.metadata.get("tags", [])]
    assert len(cells) == 1
    lines = cells[0].source.splitlines()
    assert len(lines) <= 15
    for line in lines:
        assert re.fullmatch(r"\w+: (str|int|float|bool) = .+?  # .+", line), line
    assert len(papermill.inspect_notebook(str(path))) == len(lines)


def test_cells_are_short_and_explained(book):
    for cell in code(book):
        lines = cell.source.splitlines()
        assert len(lines) <= 30, cell.id
        assert max(map(len, lines)) < 80, cell.id
        assert not re.search(r"^\s*!", cell.source, re.MULTILINE), cell.id
        ast.parse(cell.source)
    kinds = "".join(cell.cell_type[0] for cell in book.cells)
    assert "c" * 4 not in kinds, "four code cells without prose between"


def test_cells_of_every_notebook_are_short():
    """The exercises, the solutions and other languages too."""
    long = []
    for path in FOLDER.rglob("0*.ipynb"):
        for cell in code(nbformat.read(path, as_version=4)):
            if len(cell.source.splitlines()) > 30:
                long.append(f"{path.relative_to(FOLDER)}: {cell.id}")
    assert not long, long


def test_it_was_run_from_top_to_bottom(book):
    assert [c.execution_count for c in code(book)] == list(range(1, len(code(book)) + 1))


def test_its_outputs_hold_nothing_of_one_machine(book, path):
    assert path.stat().st_size < 300_000
    assert "widgets" not in book.metadata
    for cell in code(book):
        assert "papermill" not in cell.metadata and "execution" not in cell.metadata, cell.id
        for output in cell.outputs:
            assert output.output_type != "error", cell.id
            assert output.get("name") != "stderr", f"{cell.id}: {output.get('text')}"
            data = output.get("data", {})
            assert "application/vnd.jupyter.widget-view+json" not in data, cell.id
            text = json.dumps({k: v for k, v in output.items() if k != "data"}) + json.dumps(
                {k: v for k, v in data.items() if not k.startswith("image/")}
            )
            assert not re.search(r"/(home|root|work|tmp|Users)/|[A-Z]:\\\\", text), cell.id


def test_every_image_has_a_description_and_links_lead_somewhere(book):
    for cell in book.cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\(([^)#]+\.(?:ipynb|svg|png|md))\)", cell.source):
                assert (FOLDER / target).exists(), target
        elif "plots.finish(" in cell.source:
            assert re.search(r"alt=\s*\"", cell.source), cell.id
