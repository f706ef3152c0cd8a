"""The code of a lesson, for tests that run parts of it."""

from __future__ import annotations

import ast
from typing import Any

import nbformat

from alpaca_lib.course.notebooks import REPO


def code_cells(lesson: str) -> list[Any]:
    """Returns the code cells of a lesson."""
    book = nbformat.read(REPO / "notebooks" / f"{lesson}.ipynb", as_version=4)
    return [cell for cell in book.cells if cell.cell_type == "code"]


def define(cells: list[Any], **variables: Any) -> dict[str, Any]:
    """Returns the functions that cells define, by name, with these global variables."""
    for cell in cells:
        for node in ast.parse(cell.source).body:
            if isinstance(node, ast.FunctionDef):
                exec(compile(ast.Module([node], []), cell.id, "exec"), variables)
    return variables
