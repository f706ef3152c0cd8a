"""Translations of a notebook's or a page's cells, checked against the English source.

A file of translations holds, for each cell, its id and the hash of the English source that the
translation was made from:

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
cell that needs no translation has no entry. Which files there are: alpaca_lib.course.editions.
"""

from __future__ import annotations

import ast
import copy
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from alpaca_lib.course import glossary
from alpaca_lib.errors import DataError
from alpaca_lib.files import sha256_text

HEAD = re.compile(r"^%% (\S+) ([0-9a-f]{8})$")


@dataclass
class Entry:
    """The translation of one cell."""

    cell: str  # its id
    source_hash: str  # of the English source
    line: int  # of the file, from 1
    text: str = ""
    pairs: list[tuple[str, str]] = field(default_factory=list)  # comments and strings of code


class Span:
    """A comment or string in code: rows from 1, columns from 0, and the text there."""

    def __init__(self, start: tuple[int, int], end: tuple[int, int], lines: list[str]) -> None:
        self.start, self.end = start, end
        text = "".join(lines[start[0] - 1 : end[0]])
        self.text = text[start[1] : len(text) - len(lines[end[0] - 1]) + end[1]]


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


def find_texts(code: str) -> list[list[Span]]:
    """Returns the comments and strings of code, each with its place; adjacent strings together."""
    lines = code.splitlines(keepends=True)
    runs: list[list[Span]] = []
    begin, depth, joins = (0, 0), 0, False
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        kind = tokenize.tok_name[token.type]
        if kind == "FSTRING_START":  # from Python 3.12 on an f-string is several tokens
            begin = begin if depth else token.start
            depth += 1
        if kind == "FSTRING_END":
            depth -= 1
        if depth or kind in ("NL", "INDENT", "DEDENT"):
            continue
        if kind not in ("STRING", "COMMENT", "FSTRING_END"):
            joins = False
            continue
        span = Span(begin if kind == "FSTRING_END" else token.start, token.end, lines)
        if joins and kind != "COMMENT":
            runs[-1].append(span)
        else:
            runs.append([span])
        joins = kind != "COMMENT"
    return runs


def replace_texts(code: str, pairs: list[tuple[str, str]]) -> str:
    """Returns code with comments and strings replaced. Raises DataError for another text.

    Several lines stand for several strings that Python joins, if no single one has them.
    """
    wanted, used = dict(pairs), set()
    lines = code.splitlines(keepends=True)
    for run in reversed(find_texts(code)):
        parts = [run] if "\n".join(span.text for span in run) in wanted else [[s] for s in run]
        for part in reversed(parts):
            old = "\n".join(span.text for span in part)
            if old not in wanted:
                continue
            used.add(old)
            (first, start), (last, end) = part[0].start, part[-1].end
            new = wanted[old]
            if len(part) > 1:
                new = new.replace("\n", "\n" + " " * start)
            lines[first - 1 : last] = [lines[first - 1][:start] + new + lines[last - 1][end:]]
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
                cell.source = replace_texts(cell.source, entry.pairs)
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
            yield f"cell {name} (line {entry.line}): the source has no such cell; delete the entry"
            continue
        source = cells[name].source
        if entry.source_hash != hash_of(source):
            yield (
                f"cell {name} (line {entry.line}): the English text has changed; compare, then "
                f"set its hash to {hash_of(source)}"
            )
        elif cells[name].cell_type == "code":
            yield from _code_problems(name, entry, source)
        written = "\n".join(new for _, new in entry.pairs) or entry.text
        for term, word in glossary.find_conflicts(written, terms):
            yield f"cell {name}: {term.term} is {term.chinese!r} in this course, not {word!r}"


def _code_problems(name: str, entry: Entry, source: str) -> Iterator[str]:
    try:
        same = shape_of(replace_texts(source, entry.pairs)) == shape_of(source)
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
