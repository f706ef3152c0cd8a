"""Detectors: one per kind of fault, each a regular expression or rule that finds it in a row.

They were refined on hits in Alpaca's 52,002 rows that were judged by reading them;
benchmarks/faults.py prints how many of each detector's hits are faults. A detector's time grows
with a text's length, never with its square (see patterns). ``knows`` names the languages whose
words a detector knows; in others it finds nothing, which is no proof that nothing is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from alpaca_lib.dataset import patterns
from alpaca_lib.dataset.arithmetic import contains_value, find_sum
from alpaca_lib.dataset.endings import find_break
from alpaca_lib.no_input import says_no_input
from alpaca_lib.records import FIELDS, Example

Span = tuple[int, int]  # start and end, in characters
Hit = tuple[str, Span]  # a field and the place in it
Find = Callable[[Example], Iterator[Hit]]
Condition = Callable[[Example], bool]
ENGLISH, BOTH = ("en",), ("en", "zh")


@dataclass(frozen=True)
class Detector:
    """A kind of fault, its suggested fix, and the function that yields its hits in a row.

    ``severity`` is "error" (nearly always a fault) or "review" (a reader decides, since many hits
    are correct). ``knows``: the languages whose words it knows; empty if it needs none.
    """

    kind: str
    severity: str
    fix: str
    meaning: str
    find: Find
    knows: tuple[str, ...] = ()


def _match(
    pattern: str,
    *fields: str,
    flags: re.RegexFlag = re.IGNORECASE,
    unless: Condition = lambda example: False,
    needs: tuple[str, ...] = (),
    at_start: bool = False,
) -> Find:
    """Returns a function that yields the first match of a pattern in each of the fields.

    needs: words in lower case, without any of which the pattern cannot match. at_start: only a
    match at the start of the text counts.
    """
    compiled = re.compile(pattern, flags)
    find_match = compiled.match if at_start else compiled.search

    def find(example: Example) -> Iterator[Hit]:
        for field in fields:
            text = getattr(example, field)
            text = patterns.simplify(text)
            if needs and not _has_any(text, needs):
                continue
            if (found := find_match(text)) and not unless(example):
                yield field, found.span()

    return find


def _has_any(text: str, needs: tuple[str, ...]) -> bool:
    """Returns whether one of the words, in lower case, occurs in a text."""
    lower = text.lower()
    return any(word in lower for word in needs)


def _asks(pattern: str) -> Condition:
    """Returns a function that says whether a pattern occurs in the instruction."""
    compiled = re.compile(pattern, re.IGNORECASE)
    return lambda example: bool(compiled.search(example.instruction))


def _rule(
    kind: str, severity: str, fix: str, knows: tuple[str, ...] = ()
) -> Callable[[Find], Detector]:
    """Turns a function into a Detector; its docstring says what a hit means."""
    return lambda find: Detector(kind, severity, fix, (find.__doc__ or "").rstrip("."), find, knows)


def _any_of(*functions: Find) -> Find:
    """Returns a function that yields the hits of several."""

    def find(example: Example) -> Iterator[Hit]:
        for function in functions:
            yield from function(example)

    return find


_PART_NAMES = ("instruction", "input", "output", "response", "指令", "输入", "输出", "回答")
_second_task = _match(
    f"{patterns.SECOND_TASK}|{patterns.BARE_TASK}", "output", flags=re.IGNORECASE | re.MULTILINE
)
_PARTS = {"input": "input", "output": "output", "输入": "input", "输出": "output"}
_ASKS_FOR_A_TEXT = _asks(r"\b(letter|e-?mail|dialogue|conversation|flow|message|speech|story)\b")
_ASKS_ABOUT_FORMATS = _asks(
    r"\b(valid|format|regex|regular expression|hash|redact|mask|pars(e|ing))"
)
_any_telephone = _match(patterns.TELEPHONE, *FIELDS, unless=_ASKS_ABOUT_FORMATS)
_MAY_COPY_INPUT = _asks(
    r"\b(sort|order|rank|arrange|match|transcribe|copy|cite|spell|find|organi[sz]e|sequence|repeat)\b"
)


def _telephone(example: Example) -> Iterator[Hit]:
    """Yields the telephone numbers of a row that may belong to a person."""
    if any(patterns.SEVEN_DIGITS.search(getattr(example, field)) for field in FIELDS):
        yield from _any_telephone(example)


@_rule("input stands in instruction", "review", 'write "" as the input')
def _input_in_instruction(example: Example) -> Iterator[Hit]:
    """the instruction already contains the input, word for word."""
    text = example.input.strip()
    if len(text) > 3 and (at := example.instruction.find(text)) >= 0:
        yield "instruction", (at, at + len(text))


@_rule("output is the input", "review", "ask for the output again")
def _output_is_input(example: Example) -> Iterator[Hit]:
    """the output repeats the input."""
    same = len(example.input) > 3 and example.output.strip() == example.input.strip()
    if same and not _MAY_COPY_INPUT(example):
        yield "output", (0, len(example.output))


@_rule("word for no input", "error", 'write "" as the input', BOTH)
def _word_for_no_input(example: Example) -> Iterator[Hit]:
    """the input is a word such as "none" instead of empty."""
    if example.input.strip() and says_no_input(example.input):
        yield "input", (0, len(example.input))


@_rule("empty output", "error", "ask for the output again", BOTH)
def _empty_output(example: Example) -> Iterator[Hit]:
    """there is no output, or only a word such as "N/A"."""
    text = example.output.strip()
    if not text or (len(text) < 20 and patterns.NO_OUTPUT.fullmatch(patterns.simplify(text))):
        yield "output", (0, len(example.output))


@_rule("merged tasks", "error", "split the row, or drop it", BOTH)
def _merged_tasks(example: Example) -> Iterator[Hit]:
    """the output contains a second task: the parser missed a separator."""
    if not _has_any(patterns.simplify(example.output), _PART_NAMES):
        return
    found = next(_second_task(example), None)
    parts = {
        (m[1], _PARTS[m[2].lower()]): m
        for m in patterns.NUMBERED_PART.finditer(patterns.simplify(example.output))
    }
    for number, name in parts:
        if name == "input" and (number, "output") in parts:
            found = found or ("output", parts[number, name].span())
    if found:
        yield found


@_rule("input missing", "review", "write the input, or drop the row", BOTH)
def _missing_input(example: Example) -> Iterator[Hit]:
    """the instruction refers to a text that is missing."""
    found = patterns.REFERS_TO_MATERIAL.search(patterns.simplify(example.instruction))
    # A full stop, a colon or a quotation mark may be followed by the text itself.
    given = re.search(r"[:\[\"'“\n：「《]|[.?!] \S| - |[。？！].", example.instruction)
    if found and not example.input.strip() and not given:
        yield "instruction", found.span()


@_rule("cut off", "error", "ask for the output again, without stop sequences", BOTH)
def _cut_off(example: Example) -> Iterator[Hit]:
    """the output ends in "20", "=", "$", a comma, or a word such as "the"."""
    if span := find_break(example.output, f"{example.instruction} {example.input}"):
        yield "output", span


@_rule("list ends at 19", "review", "ask for the output again, without stop sequences")
def _list_of_nineteen(example: Example) -> Iterator[Hit]:
    """the last number of a list is 19: a stop sequence "20." did that to Alpaca."""
    items = list(re.finditer(r"^[ \t]*(\d{1,9})[.)]\s", example.output, re.MULTILINE))
    if items and items[-1][1] == "19":
        yield "output", items[-1].span()


@_rule("arithmetic", "review", "compute it, and correct the output")
def _wrong_arithmetic(example: Example) -> Iterator[Hit]:
    """the task states one plain calculation, and the output does not contain its value."""
    value = find_sum(f"{example.instruction} {example.input}")
    if value is not None and example.output.strip() and not contains_value(example.output, value):
        yield "output", (0, len(example.output))


DETECTORS: tuple[Detector, ...] = (
    _word_for_no_input,
    Detector(
        "no-input mark in output",
        "error",
        "ask for the output again",
        "the output mentions <noinput>, which belongs to the prompt",
        _match(
            r"<\s{0,2}no[ _-]?input\s{0,2}>|\bno input\b|[<＜【]无输入[>＞】]",
            "output",
            needs=("input", "输入"),
        ),
        BOTH,
    ),
    _merged_tasks,
    _empty_output,
    Detector(
        "control token",
        "error",
        "remove the token",
        "a chat template's token, such as <|im_end|>, or a reasoning tag stands in the text",
        _match(patterns.CONTROL_TOKEN, *FIELDS, flags=re.MULTILINE),
    ),
    Detector(
        "address",
        "review",
        "put the page's text into the input, or drop the row",
        "a web address: the model cannot open it, and may have invented it",
        _any_of(
            _match(patterns.ADDRESS, "instruction", "input", needs=("http", "www.")),
            _match(patterns.OWN_ADDRESS, "output", needs=("http", "www.")),
        ),
    ),
    Detector(
        "not text",
        "error",
        "drop the row",
        "the task needs a picture, sound or file that is missing",
        _any_of(
            _match(
                r"!\[[^\]\[]{0,300}\]\(|<(picture|image|photo)|\A\s*(image|photo|picture)\s?:",
                "input",
            ),
            _match(r"\b(see|is|are) attached\b", "input", unless=lambda e: len(e.input) > 80),
            _match(
                r"\b(the|this|an?) (given|attached|following|above|below) "
                r"(image|picture|photo|graph|chart|diagram|video|audio)",
                "instruction",
                unless=lambda e: len(e.input) > 60 and "http" not in e.input,
            ),
        ),
        ENGLISH,
    ),
    Detector(
        "claims an action",
        "error",
        "drop the row",
        "the output claims an action that a text model cannot perform",
        _match(patterns.CLAIMED_ACTION, "output", unless=_ASKS_FOR_A_TEXT, at_start=True),
        ENGLISH,
    ),
    Detector(
        "refusal",
        "review",
        "keep it if declining is right, else ask again",
        'the output declines, or says "as an AI"',
        _any_of(
            _match(patterns.REFUSAL, "output", at_start=True),
            _match(patterns.REFUSAL_INSIDE, "output", needs=("model", "this ")),
        ),
        BOTH,
    ),
    Detector(
        "control character",
        "error",
        "remove the character",
        "a control character, which no text should contain",
        _match(r"[\x00-\x08\x0b-\x1f\x7f]", *FIELDS),
    ),
    _wrong_arithmetic,
    _cut_off,
    _list_of_nineteen,
    _input_in_instruction,
    _output_is_input,
    _missing_input,
    Detector(
        "placeholder",
        "review",
        "ask for the output again, or drop the row",
        "a bracket replaces the work: [Flow chart], [Insert notes]",
        _match(patterns.PLACEHOLDER, "output", needs=("[", "lorem")),
        ENGLISH,
    ),
    Detector(
        "contact details",
        "review",
        "use example.org, or drop the row",
        "an e-mail address or a telephone number that may belong to a person",
        _any_of(
            _match(patterns.MAIL, *FIELDS, unless=_ASKS_ABOUT_FORMATS, needs=("@",)), _telephone
        ),
    ),
)
