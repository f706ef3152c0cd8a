r"""Finds the JSON in a reply, and reads it as it was meant: LaTeX, raw newlines, trailing commas.

Models write "$\frac{1}{2}$" into JSON with one backslash. Read by the letter, \f is a form feed
and \s an error. Here a backslash is text
- before a character that JSON knows no escape for (\s, \(, \_),
- before b and f, as no text contains a backspace or a form feed,
- before n, r or t if the name of a LaTeX command begins there (\nabla, \theta), in a formula or
  before {; short names that may also be words after a newline or tab count in a formula alone.
A text that is properly escaped elsewhere ("\\alpha") is trusted with the ambiguous ones.
Also read: single quotes, comments to the end of a line, Python's words, and of JSON that is cut
the objects that are complete; nothing is ever completed. The time is linear in the length.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

_BLANKS = re.compile(r"(?:\s|//[^\n]*)*")
_STRINGS = {
    '"': re.compile(r'"[^"\\]*(?:\\[\s\S][^"\\]*)*"'),
    "'": re.compile(r"'[^'\\]*(?:\\[\s\S][^'\\]*)*'"),
}
_SCALAR = re.compile(r"-?\d[\d.eE+-]*|-?[A-Za-z]+")
_NOTHING = {"null", "None", "undefined"}
_KNOWN_WORDS = {"true", "false", "True", "False", "NaN", "Infinity", "-Infinity", "nan", "inf"}
# An object that begins with a key, and a list of objects or lists; other brackets are prose.
_KEY = r"(?:\"[^\"\\\n]{0,100}\"|'[^'\\\n]{0,100}')\s*:|//|\}"
_OPENING = re.compile(rf"\{{(?=\s*(?:{_KEY}))|\[(?=\s*(?:\[|\]|//|\{{\s*(?:{_KEY})))")
_OPENINGS = re.compile(r"[\[{\s]*")
WORK = 4  # characters read per character of the text, all attempts together
DEPTH = 200  # of lists and objects in each other
Span = tuple[int, int]


class _Broken(Exception):
    """Reports that no JSON begins at a place, or that it breaks off, and how far was read."""

    def __init__(self, at: int, is_deep: bool = False) -> None:
        super().__init__(at)
        self.at, self.is_deep = at, is_deep


@dataclass
class Found:
    """A JSON value in a text and its place.

    A number or truth value, which is no text, is 0. value of one that breaks off: the complete
    objects in it. places: of objects by id, and of the items of a list by (id, number).
    repeated: ids of objects with one key twice.
    """

    value: Any
    start: int
    end: int
    is_broken: bool = False
    places: dict[Any, Span] = field(default_factory=dict)
    repeated: set[int] = field(default_factory=set)


def find_json(text: str) -> Iterator[Found]:
    """Yields the objects and lists in a text, in order, also one that breaks off."""
    at, budget = 0, WORK * len(text) + 10_000
    while opening := _OPENING.search(text, at):
        found = Found(None, opening.start(), opening.start())
        complete: list[Any] = []
        try:
            _read(text, found, complete)
            at = found.end
        except _Broken as broken:
            found.is_broken = True
            found.value = _outermost(complete, found.places)
            # Prose may have opened a bracket: what follows it may be JSON all the same.
            found.end = found.places[id(found.value[-1])][1] if found.value else opening.end()
            budget -= broken.at - opening.start()
            at = max(found.end, broken.at) if broken.is_deep or budget < 0 else found.end
        yield found


def _read(text: str, found: Found, complete: list[Any]) -> None:
    """Reads the value that begins at a place, without recursion, and notes complete objects."""
    stack: list[tuple[Any, int, str]] = []  # container, where it begins, key that waits
    at = found.start
    while True:
        start = _skip(text, at)
        value, at = _begin_value(text, start)
        is_container = value is not None and not isinstance(value, str | int)
        if not is_container:
            _put(stack[-1], value, (start, at), found)
        elif len(stack) < DEPTH:
            stack.append((value, start, ""))
        else:
            openings = _OPENINGS.match(text, at)
            raise _Broken(openings.end() if openings else at, is_deep=True)
        while True:  # close what ends here, up to the place of the next value
            container, start, _ = stack[-1]
            at, is_closed = _find_next(text, at, container, after_value=not is_container)
            if not is_closed:
                break
            is_container = False
            stack.pop()
            if isinstance(container, dict):
                complete.append(container)
                found.places[id(container)] = (start, at)
            if not stack:
                found.value, found.end = container, at
                return
            _put(stack[-1], container, (start, at), found)
        if isinstance(container, dict):
            key, at = _read_key(text, at)
            stack[-1] = (container, start, key)


def _outermost(objects: list[Any], places: dict[Any, Span]) -> list[Any]:
    """Returns the objects that are in no other of them, in order."""
    out: list[Any] = []
    for one in objects:  # an object is complete after those in it
        while out and places[id(out[-1])][0] > places[id(one)][0]:
            out.pop()
        out.append(one)
    return out


def _put(parent: tuple[Any, int, str], value: Any, span: Span, found: Found) -> None:
    container, _, key = parent
    if isinstance(container, list):
        found.places[id(container), len(container)] = span
        container.append(value)
        return
    if key in container:
        found.repeated.add(id(container))
    container[key] = value


def _begin_value(text: str, at: int) -> tuple[Any, int]:
    """Returns (value, where it ends); an empty object or list for one that begins here."""
    character = text[at : at + 1]
    if character == "{":
        return {}, at + 1
    if character == "[":
        return [], at + 1
    if character in _STRINGS:
        return _read_string(text, at)
    scalar = _SCALAR.match(text, at)
    if scalar is None:
        raise _Broken(at)
    if scalar[0] in _NOTHING:
        return None, scalar.end()
    if scalar[0][-1].isalpha() and scalar[0] not in _KNOWN_WORDS:
        raise _Broken(scalar.end())
    return 0, scalar.end()


def _find_next(text: str, at: int, container: Any, after_value: bool) -> tuple[int, bool]:
    """Returns (where the next value or key of a container begins, False), or (its end, True)."""
    closing = "}" if isinstance(container, dict) else "]"
    at = _skip(text, at)
    if after_value and text.startswith(",", at):
        at = _skip(text, at + 1)
    elif after_value and not text.startswith(closing, at):
        raise _Broken(at)
    return (at + 1, True) if text.startswith(closing, at) else (at, False)


def _read_key(text: str, at: int) -> tuple[str, int]:
    if not text.startswith(tuple(_STRINGS), at):
        raise _Broken(at)
    key, at = _read_string(text, at)
    at = _skip(text, at)
    if not text.startswith(":", at):
        raise _Broken(at)
    return key, at + 1


def _read_string(text: str, at: int) -> tuple[str, int]:
    match = _STRINGS[text[at]].match(text, at)
    if match is None:
        raise _Broken(len(text))
    return decode_string(match[0][1:-1]), match.end()


def _skip(text: str, at: int) -> int:
    blanks = _BLANKS.match(text, at)
    return blanks.end() if blanks else at


_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "/": "/", "\\": "\\", "'": "'"}
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}(?:\\u[dD][c-fC-F][0-9a-fA-F]{2})?|[\s\S])")
_COMMAND = re.compile(r"\\([nrt][A-Za-z]*)(?P<brace>\{?)")
_PROPER = re.compile(r"(?<!\\)(?:\\\\)+[A-Za-z(\[{]")
_SINGLE = re.compile(r"(?<!\\)(?:\\\\)*\\(?:[^nrtu\"/\\'\s]|u(?![0-9a-fA-F]{4}))")
_PATH = re.compile(r"\b[A-Za-z]:(?:\\[^\\/:*?\"<>|\s]+)+")
_DELIMITER = re.compile(r"\$\$?|\\{1,2}[()\[\]]|\n")
_CLOSING = {"$": "$", "$$": "$$", "(": ")", "[": "]"}
# Names that are no word without their first letter: "\nabla" is not a newline and "abla".
_SURE = re.compile(
    "nabla|nexists|nleq|ngeq|nleqslant|ngeqslant|nmid|notin|nsubseteq|nrightarrow|nleftarrow"
    "|nparallel|nonumber|newcommand|newline|nolimits|theta|times|triangle|triangleq|tilde|textbf"
    "|textit|textrm|textsf|texttt|textstyle|tfrac|tbinom|thinspace|therefore|thickapprox|tanh"
    "|triangleright|triangleleft|trianglelefteq|rho|rightarrow|right|rangle|rceil|rfloor"
    "|rightharpoonup|rightleftharpoons|rm|rvert|rVert|root|rbrace|rbrack|rightmost|rlap"
)
_AMBIGUOUS = re.compile("nu|ne|neq|neg|not|ni|near|natural|tau|to|tan|top|text|tiny|tt")


def decode_string(body: str) -> str:
    """Returns the text of a JSON string's body as it was meant (see the module)."""
    if "\\" not in body:
        return body
    literal = _literal_backslashes(body)
    is_single = bool(_SINGLE.search(body))

    def decode(match: re.Match[str]) -> str:
        escape, at = match[1], match.start()
        if at in literal:
            return match[0]
        if escape[0] == "u" and len(escape) > 1:
            codes = [int(code, 16) for code in escape.replace("\\", "")[1:].split("u")]
            if len(codes) == 2 and not 0xD800 <= codes[0] < 0xDC00:
                return chr(codes[0]) + chr(codes[1])
            raw = b"".join(code.to_bytes(2, "little") for code in codes)
            return raw.decode("utf-16-le", "surrogatepass")
        if escape == "\\" and is_single and body[match.end() : match.end() + 1] in " \t\n&[0":
            return match[0]  # the end of a row in LaTeX
        return _ESCAPES.get(escape, match[0])

    return _ESCAPE.sub(decode, body)


def _literal_backslashes(body: str) -> set[int]:
    r"""Returns the places of the backslashes before n, r and t that are text."""
    places: set[int] = set()
    for path in _PATH.finditer(body):  # C:\Users\name: \U is no escape
        if _SINGLE.search(path[0]):
            places |= {path.start() + n for n, c in enumerate(path[0]) if c == "\\"}
    commands = [m for m in _ESCAPE.finditer(body) if m[1] in "nrt"]
    if not commands:
        return places
    formulas = list(_find_formulas(body))
    is_proper, number = bool(_PROPER.search(body)), 0
    for escape in commands:
        command = _COMMAND.match(body, escape.start())
        if command is None:
            continue
        while number < len(formulas) and formulas[number][1] <= escape.start():
            number += 1
        in_formula = number < len(formulas) and formulas[number][0] <= escape.start()
        name = command[1]
        is_likely = not is_proper and (in_formula or command["brace"])
        if _SURE.fullmatch(name) or (is_likely and _AMBIGUOUS.fullmatch(name)):
            places.add(escape.start())
    return places


def _find_formulas(body: str) -> Iterator[Span]:
    """Yields the spans of LaTeX formulas: $...$ on one line, $$...$$, \(...\) and \[...\]."""
    opened, start = "", 0
    for match in _DELIMITER.finditer(body):
        mark = match[0].lstrip("\\")
        if opened and mark == _CLOSING[opened]:
            yield start, match.end()
            opened = ""
        elif mark in _CLOSING and opened in ("", "$"):
            opened, start = mark, match.start()
        elif mark == "\n" and opened == "$":
            opened = ""
