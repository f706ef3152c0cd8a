"""The course's terms in English and Chinese: docs/glossary.md, and one Chinese word per term.

python -m alpaca_lib.course.glossary      writes docs/glossary.md
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from alpaca_lib.course.notebooks import REPO
from alpaca_lib.errors import DataError
from alpaca_lib.files import write_text

TERMS = REPO / "translations" / "glossary.yaml"
PAGE = REPO / "docs" / "glossary.md"


def anchor(heading: str) -> str:
    """Returns the end of a link to a heading, as GitHub and the book make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@dataclass(frozen=True)
class Term:
    """A term, its Chinese word, a sentence in each language, and other Chinese words for it."""

    term: str
    chinese: str
    sentence: str
    chinese_sentence: str
    unused: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()  # phrases in which its word means something else

    @property
    def anchor(self) -> str:
        """The end of a link to the term."""
        return anchor(self.term)


@cache
def load_terms(path: Path = TERMS) -> list[Term]:
    """Returns the terms in alphabetical order. Raises DataError for a conflict between them."""
    rows = yaml.safe_load(path.read_text(encoding="utf-8"))
    terms = [
        Term(
            row["term"], row["zh"], row["en"], row["about"],
            tuple(row.get("not", ())), tuple(row.get("elsewhere", ())),
        )
        for row in rows
    ]  # fmt: skip
    for one in terms:
        for other in terms:
            if one is not other and one.chinese == other.chinese:
                raise DataError(f"{path}: {one.term} and {other.term} are both {one.chinese!r}")
            if other.chinese in one.unused:
                raise DataError(
                    f"{path}: {one.term} excludes {other.chinese!r}, the word for {other.term}"
                )
    return sorted(terms, key=lambda term: term.term.lower())


def find_conflicts(text: str, terms: list[Term]) -> Iterator[tuple[Term, str]]:
    """Yields (term, word) for each word in a Chinese text that its term does not use."""
    for term in terms:
        for word in term.unused:
            if word in text:
                yield term, word


def name_in(term: Term, language: str) -> str:
    """Returns what a page of this language calls a term, without an explanation in brackets.

    "" where that has several meanings: a rank (of a matrix, of a process), a sign like 轮.
    """
    if language == "zh":
        word = term.chinese.partition("（")[0]
        return word if len(word) > 1 else ""
    return "" if "(" in term.term else term.term


def find_terms(
    text: str, terms: list[Term], language: str = "en"
) -> Iterator[tuple[str, Term | None]]:
    """Yields (the words as they stand, their term or None) in the order of the text.

    The words yielded are the whole text. Of two terms at one place the longer one is taken:
    "micro-batch" is no batch. An English term may be a plural, and begin with a capital. A
    phrase that the term lists as ``elsewhere`` is none of its uses.
    """
    named: dict[str, Term | None] = {name_in(term, language).lower(): term for term in terms}
    named |= {phrase.lower(): None for term in terms for phrase in term.elsewhere}
    named.pop("", None)
    known = "|".join(re.escape(name) for name in sorted(named, key=len, reverse=True))
    plural = "" if language == "zh" else "(?:e?s)?"
    pattern = rf"(?<![A-Za-z0-9_-])({known}){plural}(?![A-Za-z0-9_-])"
    end = 0
    for match in re.finditer(pattern, text, re.IGNORECASE):
        yield text[end : match.start()], None
        yield match[0], named[match[1].lower()]
        end = match.end()
    yield text[end:], None


def format_page(terms: list[Term]) -> str:
    """Returns the glossary as Markdown, one heading per term."""
    lines = ["# Glossary · 术语表", "", f"{len(terms)} terms, in English and Chinese.", ""]
    for term in terms:
        lines += [f"## {term.term}", "", f"**{term.chinese}**", ""]
        lines += [term.sentence, "", term.chinese_sentence, ""]
    return "\n".join(lines)


def main() -> int:
    """Writes the page and returns the exit code."""
    write_text(PAGE, format_page(load_terms()))
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
