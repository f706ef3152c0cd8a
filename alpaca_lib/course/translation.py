"""Makes a language's edition of a notebook from the English one and a file of translations.

translations/zh/01_self_instruct.md holds, for each cell, its id and the hash of the English
source that the translation was made from:

    %% setup-text 1a2b3c4d
    ## 准备
    ...
    %% loop 5e6f7a8b
    < # Ask until enough tasks are kept.
    > # 一直请求，直到留下足够的任务。
    < "kept"
    > "保留"

A Markdown cell is replaced by its text. In a code cell, each comment or string after ``<`` is
replaced by what follows ``>``; everything else stays, so both editions run the same code. A code
cell that needs no translation has no entry.

    python course.py translate zh [--only 01] [--stub]
"""

from __future__ import annotations

import argparse
import ast
import copy
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alpaca_lib import command_line
from alpaca_lib.course import glossary
from alpaca_lib.course.exercises import NOTEBOOKS, read_notebook, write_notebook
from alpaca_lib.course.notebooks import LESSONS, REPO, make_folder
from alpaca_lib.errors import DataError, RunError
from alpaca_lib.files import sha256_text, write_text

HEAD = re.compile(r"^%% (\S+) ([0-9a-f]{8})$")


@dataclass
class Entry:
    """The translation of one cell."""

    cell: str  # its id
    source_hash: str  # of the English source
    line: int  # of the file, from 1
    text: str = ""
    pairs: list[tuple[str, str]] = field(default_factory=list)  # comments and strings of code


def file_of(language: str, lesson: str) -> Path:
    """Returns the path of a lesson's translations."""
    return REPO / "translations" / language / f"{lesson}.md"


def hash_of(source: str) -> str:
    """Returns the first 8 hex digits of a source's SHA-256."""
    return sha256_text(source)[:8]


def parse(text: str, name: str) -> dict[str, Entry]:
    """Returns {cell id: Entry}. Raises DataError with file and line."""
    entries: dict[str, Entry] = {}
    blocks: list[tuple[Entry, list[str]]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if head := HEAD.match(line):
            entry = Entry(head[1], head[2], number)
            if entry.cell in entries:
                raise DataError(f"{name}:{number}: cell {entry.cell} stands there twice")
            entries[entry.cell] = entry
            blocks.append((entry, []))
        elif line.startswith("%%"):
            raise DataError(f"{name}:{number}: {line!r}: `%% CELL HASH` is wanted")
        elif blocks:
            blocks[-1][1].append(line)
        elif line.strip():
            raise DataError(f"{name}:{number}: text before the first `%% CELL HASH`")
    for entry, lines in blocks:
        entry.text = "\n".join(lines).strip("\n")
        entry.pairs = _pairs(lines, f"{name}:{entry.line}")
    return entries


def _pairs(lines: list[str], place: str) -> list[tuple[str, str]]:
    """Returns the replacements of a code cell's block; none for a block of Markdown."""
    if not any(line.startswith("< ") for line in lines):
        return []
    found: list[tuple[list[str], list[str]]] = []
    for line in lines:
        if line.startswith("< "):
            if not found or found[-1][1]:
                found.append(([], []))
            found[-1][0].append(line[2:])
        elif line.startswith("> ") and found:
            found[-1][1].append(line[2:])
        elif line.strip():
            raise DataError(f"{place}: {line!r}: a line of code begins with `< ` or `> `")
    if missing := [old for old, new in found if not new]:
        raise DataError(f"{place}: {missing[0][0]!r} has no `> ` line")
    return [("\n".join(old), "\n".join(new)) for old, new in found]


def replace_tokens(code: str, pairs: list[tuple[str, str]]) -> str:
    """Returns code with whole comments and strings replaced. Raises DataError for another text."""
    wanted, used = dict(pairs), set()
    lines = code.splitlines(keepends=True)
    tokens = list(tokenize.generate_tokens(io.StringIO(code).readline))
    for token in reversed(tokens):
        if token.type in (tokenize.STRING, tokenize.COMMENT) and token.string in wanted:
            used.add(token.string)
            (first, start), (last, end) = token.start, token.end
            head, tail = lines[first - 1][:start], lines[last - 1][end:]
            lines[first - 1 : last] = [head + wanted[token.string] + tail]
    if unknown := [old for old in wanted if old not in used]:
        raise DataError(f"no comment or string {unknown[0]!r} in the cell")
    return "".join(lines)


def shape_of(code: str) -> str:
    """Returns code's syntax tree with every text blanked, and the names inside f-strings kept."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):  # the order of words may differ, the values may not
            values = [v for v in node.values if isinstance(v, ast.FormattedValue)]
            node.values = sorted(values, key=ast.dump)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = ""
    return ast.dump(tree)


def translate(book: Any, entries: dict[str, Entry]) -> Any:
    """Returns a translated copy of a notebook, without outputs. Raises DataError, see problems."""
    if found := list(problems(book, entries)):
        raise DataError("\n".join(found))
    book = copy.deepcopy(book)
    for cell in book.cells:
        entry = entries.get(cell.id)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
            if entry:
                cell.source = replace_tokens(cell.source, entry.pairs)
        elif entry:
            cell.source = entry.text
    return book


def problems(book: Any, entries: dict[str, Entry]) -> Iterator[str]:
    """Yields what is wrong with a lesson's translations: cell, reason and what to do."""
    cells = {cell.id: cell for cell in book.cells}
    terms = glossary.load_terms()
    for cell in book.cells:
        if cell.cell_type == "markdown" and cell.id not in entries:
            yield f"cell {cell.id}: is not translated; --stub adds its text"
    for name, entry in entries.items():
        if name not in cells:
            yield f"cell {name} (line {entry.line}): the lesson has no such cell; delete the entry"
            continue
        source = cells[name].source
        if entry.source_hash != hash_of(source):
            yield (
                f"cell {name} (line {entry.line}): the English text has changed; compare, then "
                f"set its hash to {hash_of(source)}"
            )
        elif cells[name].cell_type == "code":
            yield from _code_problems(name, entry, source)
        for term, word in glossary.find_conflicts(entry.text, terms):
            yield f"cell {name}: {term.term} is {term.chinese!r} in this course, not {word!r}"


def _code_problems(name: str, entry: Entry, source: str) -> Iterator[str]:
    try:
        same = shape_of(replace_tokens(source, entry.pairs)) == shape_of(source)
    except (DataError, SyntaxError) as error:
        yield f"cell {name} (line {entry.line}): {error}"
        return
    if not same:
        yield f"cell {name} (line {entry.line}): the code differs in more than texts"


def stub(book: Any, entries: dict[str, Entry], text: str) -> str:
    """Returns a file of translations with the English text of each Markdown cell it lacks."""
    blocks = [text.rstrip("\n")] if text.strip() else []
    for cell in book.cells:
        if cell.cell_type == "markdown" and cell.id not in entries:
            blocks.append(f"%% {cell.id} {hash_of(cell.source)}\n{cell.source}")
    return "\n\n".join(blocks) + "\n"


def write_edition(language: str, lesson: str) -> Path:
    """Writes one lesson's edition. Raises RunError with every problem of its translations."""
    source = file_of(language, lesson)
    if not source.exists():
        raise RunError(f"{source}: there are no translations; --stub begins the file")
    try:
        entries = parse(source.read_text(encoding="utf-8"), source.name)
        book = translate(read_notebook(NOTEBOOKS / f"{lesson}.ipynb"), entries)
    except DataError as error:
        raise RunError(f"{source}:\n{error}") from None
    target = make_folder(NOTEBOOKS / language) / f"{lesson}.ipynb"
    if target.exists():  # outputs of the same code stay
        old = {cell.id: cell for cell in read_notebook(target).cells}
        for cell in book.cells:
            if cell.cell_type == "code" and getattr(old.get(cell.id), "source", "") == cell.source:
                cell.outputs = old[cell.id].outputs
                cell.execution_count = old[cell.id].execution_count
    write_notebook(book, target)
    return target


def write_stub(language: str, lesson: str) -> Path:
    """Adds what a file of translations lacks, in English; returns the file."""
    path = file_of(language, lesson)
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    entries = parse(text, path.name)
    make_folder(path.parent)
    return write_text(path, stub(read_notebook(NOTEBOOKS / f"{lesson}.ipynb"), entries, text))


def main(arguments: list[str]) -> int:
    """Runs ``course.py translate`` and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="course.py translate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("language", help="the folder in translations/: zh")
    parser.add_argument("--only", default="", help="the lesson's number: 03")
    parser.add_argument("--stub", action="store_true", help="add the English text of what lacks")
    options = parser.parse_args(arguments)

    def work() -> int:
        lessons = [name for name in LESSONS if name.startswith(options.only)]
        if not lessons:
            raise RunError(f"--only {options.only}: the lessons are {', '.join(LESSONS)}")
        do = write_stub if options.stub else write_edition
        print(*[do(options.language, lesson) for lesson in lessons], sep="\n")
        return 0

    return command_line.run(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
