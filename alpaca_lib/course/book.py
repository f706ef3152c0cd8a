"""Builds the book: lessons, exercises, guides and the API as pages that work offline.

    python course.py book [--out FOLDER] [--no-open]

The sources are copied in the project's own layout, so links between them are the same in the
repository and in the book; pages of the API are written from the docstrings. Notebooks are shown
with their committed outputs.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import shutil
import subprocess
import sys
import webbrowser
from pathlib import Path

from alpaca_lib import command_line
from alpaca_lib.course import api_pages, glossary
from alpaca_lib.course.notebooks import REPO, make_folder
from alpaca_lib.errors import RunError
from alpaca_lib.files import write_text

# What the pages are made from, or link to.
SOURCES = ("docs", "notebooks", "images", "data", "benchmarks/results")
FILES = ("README.md", "README_zh.md", "LICENSE")
# Of MathJax, 24 MB: what a page with TeX loads, and its menu does not.
FORMULAS = ("tex-chtml.js", "input/tex/", "output/chtml/fonts/")
# The tables of benchmarks/results, in the order of the page.
TABLES = {
    "course": "The course on two cores",
    "training": "Training",
    "inference": "Answers and files",
    "gpu": "Training and decoding on a GPU",
    "memory": "Predicted and measured memory",
    "generation": "Generation",
    "rouge": "ROUGE-L of a whole data set",
}
NEEDED = ("sphinx", "myst_nb", "sphinx_book_theme", "sphinx_copybutton", "jieba")


def gather(target: Path) -> None:
    """Copies the sources into an empty folder, and adds the API's pages and the search's words."""
    ignored = shutil.ignore_patterns(".ipynb_checkpoints", "__pycache__")
    for name in SOURCES:
        if (REPO / name).exists():
            shutil.copytree(REPO / name, target / name, ignore=ignored)
    for name in FILES:
        shutil.copy(REPO / name, target / name)
    chinese = "\n".join(term.chinese for term in glossary.load_terms())
    words = re.findall(r"[\u4e00-\u9fff]{2,}", chinese)  # without Latin names and brackets
    write_text(target / "docs" / "words.txt", "\n".join(words))
    write_text(target / "docs" / "benchmarks.md", format_tables())
    api_pages.write_pages(make_folder(target / "docs" / "api"))


def format_tables() -> str:
    """Returns the page that shows the tables of benchmarks/results."""
    lines = ["# Measured results", "", "Each text says how, when and on what it was measured."]
    for name, title in TABLES.items():
        file = f"benchmarks/results/{name}.txt"
        lines += [
            "",
            f"## {title}",
            "",
            f"```{{literalinclude}} ../{file}",
            ":language: text",
            "```",
        ]
    return "\n".join(lines) + "\n"


def build(out: Path) -> Path:
    """Builds the book below ``out`` and returns its first page.

    Raises RunError if a package is missing, or with Sphinx's warnings if there is one.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise RunError(
            f"the book needs {', '.join(missing)}: "
            f"{sys.executable} -m pip install -r requirements-book.txt"
        )
    source, html = out / "source", out / "html"
    for folder in (source, html):
        shutil.rmtree(folder, ignore_errors=True)
    gather(make_folder(source))
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going"]
    command += ["-b", "html", "-c", str(source / "docs"), "-d", str(out / "doctrees")]
    done = subprocess.run([*command, str(source), str(html)], capture_output=True, text=True)
    if done.returncode:
        lines = (done.stdout + done.stderr).replace(f"{source}/", "").strip().splitlines()
        raise RunError("the book has warnings:\n  " + "\n  ".join(lines[-40:]))
    keep_only(html / "_static" / "mathjax", FORMULAS)
    return html / "index.html"


def keep_only(folder: Path, beginnings: tuple[str, ...]) -> None:
    """Deletes the files of a folder whose relative paths begin otherwise."""
    for file in folder.rglob("*"):
        if file.is_file() and not file.relative_to(folder).as_posix().startswith(beginnings):
            file.unlink()


def main(arguments: list[str]) -> int:
    """Runs ``course.py book`` and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="course.py book",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    out = REPO / "build" / "book"
    parser.add_argument("--out", type=Path, default=out, help="default: build/book")
    parser.add_argument("--no-open", action="store_true", help="do not open it in a browser")
    options = parser.parse_args(arguments)

    def work() -> int:
        page = build(options.out.resolve())
        size = sum(file.stat().st_size for file in page.parent.rglob("*") if file.is_file())
        print(f"{page}: {size / 1e6:.1f} MB")
        if not options.no_open:
            webbrowser.open(page.as_uri())
        return 0

    return command_line.run(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
