"""The plans by section in docs/instructors.md: a section needs only sections of its plan."""

from __future__ import annotations

import ast
import builtins
import re

import nbformat
import pytest

from alpaca_lib.course.notebooks import LESSONS, REPO

ROW = re.compile(r"^\| (0\d) \| 45 \| ([\d, ]+) \| ([\d, to]+)", re.MULTILINE)
ALWAYS = ("Setup", "Parameters")


def find_names(code: str) -> tuple[set[str], set[str]]:
    """The names that a cell sets, and those that it uses."""
    found, used = set(), set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else found).add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.alias):
            found.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            found.add(node.name)
    return found, used


def numbers_of(text: str) -> set[int]:
    """The sections of a cell of the table: `5, 8 to 11`."""
    found = set()
    for part in text.split(","):
        first, _, last = part.partition(" to ")
        if first.strip():
            found |= set(range(int(first), int(last or first) + 1))
    return found


def plans() -> dict[str, tuple[set[int], set[int]]]:
    text = (REPO / "docs" / "instructors.md").read_text(encoding="utf-8")
    found = {
        number: (numbers_of(kept), numbers_of(left)) for number, kept, left in ROW.findall(text)
    }
    return {name: found[name[:2]] for name in LESSONS}


@pytest.mark.parametrize("lesson", LESSONS)
def test_a_plan_has_every_section_once_and_what_its_cells_need(lesson):
    kept, left = plans()[lesson]
    book = nbformat.read(REPO / "notebooks" / f"{lesson}.ipynb", 4)
    known, section, sections, missing = set(dir(builtins)), None, set(), []
    for cell in book.cells:
        if cell.cell_type == "markdown":
            for heading in re.findall(r"^## (.+)$", cell.source, re.MULTILINE):
                number = re.match(r"(\d+)\. ", heading)
                section = int(number[1]) if number else heading
            sections |= {section} if isinstance(section, int) else set()
        elif section in kept or section in ALWAYS:
            found, used = find_names(cell.source)
            missing += [f"{section}, {cell.id}: {name}" for name in used - known - found]
            known |= found
    assert kept | left == sections and not kept & left
    assert not missing, missing
