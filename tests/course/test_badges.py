"""Links to Colab and Kaggle, and the cell that fetches the course there."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from alpaca_lib.course import badges
from alpaca_lib.course.notebooks import REPO
from alpaca_lib.errors import SettingsError

PATH = REPO / "notebooks" / "exercises" / "04_lora_finetune.ipynb"


def book():
    title = new_markdown_cell("# 04 · LoRA\n\nWhat it is about.")
    fetch = new_code_cell(badges.CODE.format(repository=""), id=badges.FETCH)
    return new_notebook(cells=[title, fetch, new_code_cell("x = 1")])


def test_a_second_repository_replaces_the_first():
    one = book()
    for owner in ("ann/course", "bob/alpaca-2"):
        badges.set_badges(one, badges.badge_line(owner, "main", PATH), owner)
    title, fetch, other = (cell.source for cell in one.cells)
    assert title.startswith("# 04 · LoRA\n\n[![Open in Colab](../../images/badge_colab.svg)]")
    assert title.endswith("\n\nWhat it is about.")
    assert "ann/" not in title + fetch and other == "x = 1"
    path = "notebooks/exercises/04_lora_finetune.ipynb"
    assert title.count(f"bob/alpaca-2/blob/main/{path}") == 2
    assert 'repository = "bob/alpaca-2"' in fetch
    plain = badges.without_badges(one)
    assert plain.cells[0].source == book().cells[0].source and "bob" not in plain.cells[1].source


@pytest.mark.parametrize("repository", ["course", "a/b/c", 'a/b"\nimport os', ""])
def test_a_name_that_is_none_changes_nothing(repository):
    with pytest.raises(SettingsError, match="OWNER/NAME is wanted"):
        badges.write_badges(repository)


def run_cell(folder, repository, **environment):
    """Runs the cell with a git that writes down its arguments and makes the course's folder."""
    git = folder / "git"
    fake = "import pathlib, sys; print('CHECKED', sys.argv[1:])"
    git.write_text(
        f'#!/bin/sh\necho "$@" > "{folder}/asked"\nmkdir course\necho "{fake}" > course/course.py\n'
    )
    git.chmod(0o755)
    known = {k: v for k, v in os.environ.items() if k not in ("COLAB_RELEASE_TAG",)}
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [sys.executable, "-c", badges.CODE.format(repository=repository)],
        cwd=folder,
        env={**known, "PATH": path, **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.skipif(os.name != "posix", reason="the test's git is a shell script")
def test_the_cell_fetches_the_course_on_colab_and_does_nothing_elsewhere(tmp_path):
    assert run_cell(tmp_path, "ann/course").stdout == ""
    assert not (tmp_path / "asked").exists()
    done = run_cell(tmp_path, "ann/course", COLAB_RELEASE_TAG="x")
    assert done.stdout == "CHECKED ['--here', 'check']\n", done.stderr
    asked = (tmp_path / "asked").read_text().strip()
    assert asked == "clone --depth=1 https://github.com/ann/course course"


@pytest.mark.skipif(os.name != "posix", reason="the test's git is a shell script")
def test_a_copy_without_a_repository_says_what_to_do(tmp_path):
    done = run_cell(tmp_path, "", COLAB_RELEASE_TAG="x")
    assert "AssertionError: run `python course.py badges --repo OWNER/NAME` first" in done.stderr
