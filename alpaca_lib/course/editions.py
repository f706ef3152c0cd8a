"""The course in another language: notebooks, exercises and pages made from translations.

    python course.py translate zh                 write the edition, or say what is missing
    python course.py translate zh --stub          add the English text of what is missing
    python course.py translate zh --only 03       what has 03 in its path

| English source                | translations/zh/  | edition                          |
|-------------------------------|-------------------|----------------------------------|
| notebooks/01_*.ipynb          | 01_*.md           | notebooks/zh/01_*.ipynb          |
| notebooks/solutions/01_*.ipynb| solutions/01_*.md | notebooks/zh/solutions/01_*.ipynb|
|                               |                   | notebooks/zh/exercises/01_*.ipynb|
| docs/NAME.md                  | docs/NAME.md      | docs/zh/NAME.md                  |
| README.md                     | README.md         | README_zh.md                     |

The form of a file of translations: alpaca_lib.course.translation. A page is translated by
section, named by its heading. Links in a translation are those of the English text; in the
edition they lead to pages of the same language where there are any.
"""

from __future__ import annotations

import argparse
import posixpath
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbformat.v4 import new_markdown_cell, new_notebook

from alpaca_lib import command_line
from alpaca_lib.course.badges import without_badges
from alpaca_lib.course.exercises import (
    EXERCISES,
    NOTEBOOKS,
    SOLUTIONS,
    read_notebook,
    without_solutions,
    write_notebook,
)
from alpaca_lib.course.glossary import anchor
from alpaca_lib.course.notebooks import LESSONS, REPO, make_folder
from alpaca_lib.course.translation import parse, problems, stub, translate
from alpaca_lib.errors import DataError, RunError
from alpaca_lib.files import write_text

# The glossary is in both languages already.
PAGES = ("index", "instructors", "your-own-model", "questions", "comparison")
NAMES = {"en": "English", "zh": "中文"}
LINK = re.compile(r"(\]\(|src=\")([^)\s\"]+)")
# Sphinx's lists of pages, whose paths have no suffix: `page` or `title <page>`.
TOCTREE = re.compile(r"(?<=```\{toctree\}\n).*?(?=```)", re.DOTALL)
ENTRY = re.compile(r"^((?!:|\s*$)(?:.*<)?)([^<>\s]+)", re.MULTILINE)


@dataclass(frozen=True)
class Edition:
    """One source, its translations and what is made from them, as paths of the project."""

    source: Path
    translations: Path
    target: Path
    exercise: Path | None = None  # of solutions: the same without them


def list_editions(language: str) -> list[Edition]:
    """Returns every source that an edition in a language has."""
    texts = REPO / "translations" / language
    found = []
    for name in LESSONS:
        target = NOTEBOOKS / language / f"{name}.ipynb"
        found.append(Edition(NOTEBOOKS / f"{name}.ipynb", texts / f"{name}.md", target))
    for name in LESSONS:
        folders = (NOTEBOOKS / language / one.name for one in (SOLUTIONS, EXERCISES))
        target, exercise = (folder / f"{name}.ipynb" for folder in folders)
        source = SOLUTIONS / f"{name}.ipynb"
        found.append(Edition(source, texts / "solutions" / f"{name}.md", target, exercise))
    docs = REPO / "docs"
    for page in PAGES:
        source, target = docs / f"{page}.md", docs / language / f"{page}.md"
        found.append(Edition(source, texts / "docs" / f"{page}.md", target))
    readme = REPO / f"README_{language}.md"
    return [*found, Edition(REPO / "README.md", texts / "README.md", readme)]


def read_source(path: Path) -> Any:
    """Returns a notebook, or a Markdown page as one: a cell for each section, named by its title.

    Raises FileError if a notebook cannot be read.
    """
    if path.suffix == ".ipynb":
        return without_badges(read_notebook(path))
    sections: list[list[str]] = [[]]
    in_code = False
    for line in path.read_text(encoding="utf-8").splitlines():
        in_code ^= line.startswith("```")
        if line.startswith("#") and not in_code:
            sections.append([])
        sections[-1].append(line)
    texts = [text for lines in sections if (text := "\n".join(lines).strip())]
    taken: dict[str, int] = {}
    cells = []
    for text in texts:
        name = anchor(text.splitlines()[0].lstrip("# "))[:64] or "section"
        taken[name] = taken.get(name, 0) + 1
        name += f"-{taken[name]}" if taken[name] > 1 else ""
        cells.append(new_markdown_cell(text, id=name))
    return new_notebook(cells=cells)


def write_source(book: Any, path: Path) -> None:
    """Writes what ``read_source`` read: a notebook, or a Markdown page."""
    make_folder(path.parent)
    if path.suffix == ".ipynb":
        write_notebook(book, path)
    else:
        write_text(path, "\n\n".join(cell.source for cell in book.cells) + "\n")


def relink(text: str, source: Path, target: Path, moved: dict[str, str]) -> str:
    """Returns Markdown of a source with its relative links as they are at the target.

    ``moved``: {path in the project: the path of its edition}.
    """
    here, there = (path.parent.relative_to(REPO).as_posix() for path in (source, target))
    without_suffix = {posixpath.splitext(a)[0]: posixpath.splitext(b)[0] for a, b in moved.items()}

    def move(path: str, known: Mapping[str, str]) -> str:
        full = posixpath.normpath(posixpath.join(here, path))
        return posixpath.relpath(known.get(full, full), there)

    def replace(match: re.Match[str]) -> str:
        if re.match(r"[a-z]+:|#", match[2]):
            return match[0]
        path, *rest = re.split(r"(?=[#?])", match[2], maxsplit=1)
        return match[1] + move(path, moved) + "".join(rest)

    def replace_entries(match: re.Match[str]) -> str:
        return ENTRY.sub(lambda entry: entry[1] + move(entry[2], without_suffix), match[0])

    return TOCTREE.sub(replace_entries, LINK.sub(replace, text))


def find_problems(edition: Edition) -> Iterator[str]:
    """Yields what is wrong with one file of translations: file, cell and what to do."""
    name = edition.translations.relative_to(REPO).as_posix()
    if not edition.translations.exists():
        yield f"{name}: there are no translations; --stub begins the file"
        return
    try:
        entries = parse(edition.translations.read_text(encoding="utf-8"), name)
    except DataError as error:
        yield str(error)
        return
    yield from (f"{name}: {text}" for text in problems(read_source(edition.source), entries))


def make_edition(edition: Edition, language: str) -> Any:
    """Returns the edition of one source as a notebook, with a link to the English one.

    Code cells keep the outputs that the target has for the same code. Raises RunError with every
    problem of the translations.
    """
    if found := list(find_problems(edition)):
        raise RunError("\n".join(found))
    name = edition.translations.name
    entries = parse(edition.translations.read_text(encoding="utf-8"), name)
    book = translate(read_source(edition.source), entries)
    moved = {}
    for one in list_editions(language):
        if one.translations.exists():
            moved[one.source.relative_to(REPO).as_posix()] = _path_in(one.target)
            if one.exercise:
                moved[_path_in(EXERCISES / one.source.name)] = _path_in(one.exercise)
    for cell in book.cells:
        if cell.cell_type == "markdown":
            cell.source = relink(cell.source, edition.source, edition.target, moved)
    english = posixpath.relpath(_path_in(edition.source), _path_in(edition.target.parent))
    title, _, rest = book.cells[0].source.partition("\n")
    switch = f"[{NAMES['en']}]({english}) · {NAMES.get(language, language)}"
    book.cells[0].source = f"{title}\n\n{switch}\n{rest}".rstrip()
    if edition.target.suffix == ".ipynb" and edition.target.exists():
        old = {cell.id: cell for cell in read_notebook(edition.target).cells}
        for cell in book.cells:
            if cell.cell_type == "code" and getattr(old.get(cell.id), "source", "") == cell.source:
                cell.outputs = old[cell.id].outputs
                cell.execution_count = old[cell.id].execution_count
    return book


def _path_in(path: Path) -> str:
    return path.relative_to(REPO).as_posix()


def write_edition(edition: Edition, language: str) -> list[Path]:
    """Writes one source's edition and returns what was written. Raises RunError, see problems."""
    book = make_edition(edition, language)
    write_source(book, edition.target)
    if edition.exercise is None:
        return [edition.target]
    exercise = without_solutions(book)
    source = EXERCISES / edition.source.name
    english = posixpath.relpath(_path_in(source), _path_in(edition.exercise.parent))
    exercise.cells[0].source = LINK.sub(
        lambda match: match[1] + english, exercise.cells[0].source, count=1
    )
    write_source(exercise, edition.exercise)
    return [edition.target, edition.exercise]


def write_stub(edition: Edition) -> list[Path]:
    """Adds to a file of translations what it lacks, in English; returns the file."""
    path = edition.translations
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    entries = parse(text, path.name)
    make_folder(path.parent)
    return [write_text(path, stub(read_source(edition.source), entries, text))]


def main(arguments: list[str]) -> int:
    """Runs ``course.py translate`` and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="course.py translate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("language", help="the folder in translations/: zh")
    parser.add_argument("--only", default="", help="a part of the translations' path: 03, docs")
    parser.add_argument("--stub", action="store_true", help="add the English text of what lacks")
    options = parser.parse_args(arguments)

    def work() -> int:
        chosen = [
            one
            for one in list_editions(options.language)
            if options.only in _path_in(one.translations)
        ]
        if not chosen:
            raise RunError(f"--only {options.only}: no source has that in its path")
        faults = []
        for edition in chosen:
            try:
                if options.stub:
                    print(*write_stub(edition), sep="\n")
                else:
                    print(*write_edition(edition, options.language), sep="\n")
            except (RunError, DataError) as error:
                faults.append(str(error))
        if faults:
            raise RunError("\n".join(faults))
        return 0

    return command_line.run(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
