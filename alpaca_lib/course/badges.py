"""Links each notebook to Colab and Kaggle, for the repository where a copy of the course lives.

    python course.py badges --repo OWNER/NAME [--branch main]

The second cell of every lesson fetches the course there; elsewhere it does nothing.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from alpaca_lib import command_line
from alpaca_lib.course.exercises import NOTEBOOKS, read_notebook, write_notebook
from alpaca_lib.course.notebooks import REPO
from alpaca_lib.errors import SettingsError

FETCH = "fetch"  # the id of the cell
CODE = """\
# On Colab and Kaggle: gets the course, and installs what is missing there.
import os
import subprocess
import sys

repository = "{repository}"  # set by `python course.py badges`
if {{"COLAB_RELEASE_TAG", "KAGGLE_URL_BASE"}} & os.environ.keys():
    assert repository, "run `python course.py badges --repo OWNER/NAME` first"
    if not os.path.exists("course"):
        address = f"https://github.com/{{repository}}"
        clone = ["git", "clone", "--depth=1", address, "course"]
        subprocess.run(clone, check=True)
    sys.path.insert(0, os.path.abspath("course"))
    command = [sys.executable, "course/course.py", "--here", "check"]
    subprocess.run(command, check=True)
"""
LINE = re.compile(r"^\[!\[Open in Colab\].*\n{0,2}", re.MULTILINE)  # and the empty line after it


def badge_line(repository: str, branch: str, path: Path) -> str:
    """Returns the line of Markdown that links a notebook's file to Colab and Kaggle."""
    file = f"{repository}/blob/{branch}/{path.relative_to(REPO).as_posix()}"
    up = "../" * (len(path.relative_to(REPO).parts) - 1)
    return (
        f"[![Open in Colab]({up}images/badge_colab.svg)]"
        f"(https://colab.research.google.com/github/{file}) "
        f"[![Open in Kaggle]({up}images/badge_kaggle.svg)]"
        f"(https://kaggle.com/kernels/welcome?src=https://github.com/{file})\n"
    )


def set_badges(book: Any, line: str, repository: str) -> None:
    """Puts the line under a notebook's title, and the repository into its first code cell."""
    title = book.cells[0]
    heading, _, rest = LINE.sub("", title.source).partition("\n")
    title.source = f"{heading}\n\n{line}{rest}".rstrip("\n")
    _name_repository(book, repository)


def without_badges(book: Any) -> Any:
    """Returns a notebook as it was before ``set_badges``, changed in place."""
    book.cells[0].source = LINE.sub("", book.cells[0].source)
    _name_repository(book, "")
    return book


def _name_repository(book: Any, repository: str) -> None:
    for cell in book.cells:
        if cell.id == FETCH:  # its comments may be in another language
            new = f'repository = "{repository}"'
            cell.source = re.sub(r'^repository = ".*?"', new, cell.source, count=1, flags=re.M)


def write_badges(repository: str, branch: str = "main") -> list[Path]:
    """Sets the badges of all notebooks; returns their paths. Raises SettingsError."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise SettingsError(f"--repo {repository!r}: OWNER/NAME is wanted")
    if not re.fullmatch(r"[\w./-]+", branch):
        raise SettingsError(f"--branch {branch!r}: the name of a branch is wanted")
    paths = sorted(NOTEBOOKS.rglob("0*.ipynb"))  # in every language
    paths = [path for path in paths if ".ipynb_checkpoints" not in path.parts]
    for path in paths:
        book = read_notebook(path)
        set_badges(book, badge_line(repository, branch, path), repository)
        write_notebook(book, path)
    return paths


def main(arguments: list[str]) -> int:
    """Runs ``course.py badges`` and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="course.py badges",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--repo", required=True, metavar="OWNER/NAME", help="on GitHub")
    parser.add_argument("--branch", default="main", help="default: main")
    options = parser.parse_args(arguments)

    def work() -> int:
        print(*write_badges(options.repo, options.branch), sep="\n")
        return 0

    return command_line.run(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
