"""Detectors: one per kind of fault, each a regular expression or rule that finds it in a row.

They were refined on hits in Alpaca's 52,002 rows that were judged by reading them;
benchmarks/faults.py prints how many of each detector's hits are faults.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from alpaca_lib.dataset.arithmetic import contains_value, find_sum
from alpaca_lib.records import FIELDS, Example

Span = tuple[int, int]  # start and end, in characters
Hit = tuple[str, Span]  # a field and the place in it
Find = Callable[[Example], Iterator[Hit]]
Condition = Callable[[Example], bool]

_LIST_ITEM = re.compile(r"([-*•]|\d+[.)])\s")
_DANGLING = re.compile(
    r"(\b(a|an|the|and|or|of|to|as|is|are|was|be|its|their|than)|[=$(]|\w+ \w+ \w+ \w+,)$",
    re.IGNORECASE,
)
_REFERS_TO_MATERIAL = re.compile(
    r"\b(the|this|these) (following|given|above|below|attached)? ?"
    r"(text|passage|paragraph|sentences?|article|story|list|table|email|code)"
    r"( below)?\b(?! (of|about|that|for|on|with|in|to|from|is|called|which|between)\b)",
    re.IGNORECASE,
)
_ADDRESS = r"\b(https?://|www\.)[^\s\"'<>)]+"
_NO_INPUT = (
    r"^\s*[<\[(]?\s*(no[ _-]?input( (is )?(needed|required|provided|given))?|none|n/?a|null|nil"
    r"|empty|not applicable)\s*[>\])]?\s*\.?\s*$"
)
_ACTIONS = (
    r"(set|create|generate|draw|play|send|provide|access|open|upload|display|perform|complete|show"
    r"|predict|help|assist|write|make|book|answer|fulfil|process|execute|produce|browse|view)"
)
_REFUSAL = (
    r"^((i['’]?m|i am) sorry|sorry|unfortunately|apologies)\b[^.\n]{0,40}\b"
    r"(can['’]?t|cannot|can not|unable|not able|not possible)\b"
    rf"|^i (can(no|['’])t|can not|am (unable|not able) to) {_ACTIONS}\b"
    r"|^i do(n['’]t| not) have (access|the ability|enough)|^as an? (ai|language model)\b"
    r"|\b(gpt|language) models? (cannot|can['’]t|is unable|are unable)\b"
    r"|\bcannot be [^.\n]{0,60}\bmodel\b"
    r"|\bthis (task|instruction|request) (cannot|can not|is (beyond|not possible))"
    r"|^<?no ?output>?\s*[-:(]|^no output (as|,)"
)
_CLAIMED_ACTION = (
    r"^.{0,60}?\b(i have|i['’]ve) (sent|attached|uploaded|emailed|booked|scheduled|ordered|called|"
    r"set (an|the|a) (alarm|reminder|timer)|changed the (font|colou?r))|"
    r"^.{0,40}?\b(the )?(font|font size|alarm|reminder|email|message|lights?|thermostat|volume"
    r"|appointment) (has|have) been (set|sent|changed|turned|scheduled|adjusted|increased|deleted)"
)
_CONTACT = (
    r"\b(?!(test|user\w*|example|abc|name|email|your\w*|[a-z])@)[\w.+-]+"
    r"@(?!([\w-]+\.)*(example|test|domain|abc)\.)[\w-]+\.[a-z]{2,}\b"
    # 555, 123-456-7890 and exchanges that begin with 0 or 1 are not assigned.
    r"|(?<![\w.-])(\+\d{1,3}[ -]?)?(?!\(?(555|123|000|987)\b)\(?[2-9]\d{2}\)?[ -](?!555|[01])"
    r"\d{3}[ -]\d{4}\b"
)
_PLACEHOLDER = (
    r"^\s*\[[^\],\d\"']{3,80}\]\.?\s*$|\blorem ipsum\b"
    r"|\[(insert (?!(your |the )?\w*name)|picture|image|graph|chart|flow ?chart|screenshot|diagram"
    r"|musical|adjective|noun|verb|adverb)[^\]]{0,60}\]"
)


@dataclass(frozen=True)
class Detector:
    """A kind of fault, its suggested fix, and the function that yields its hits in a row.

    ``severity`` is "error" (nearly always a fault) or "review" (a reader decides, since many hits
    are correct).
    """

    kind: str
    severity: str
    fix: str
    meaning: str
    find: Find


def ends_properly(text: str) -> bool:
    """Returns whether an answer has a regular end: punctuation, a bracket, a list item or a label.

    An answer that was cut off ends in a comma, a bare "=" or "$", or a word such as "the".
    """
    lines = text.rstrip().splitlines()
    if not lines:
        return False
    last = lines[-1].strip()
    if last[-1] in ";.!?\"'”’»)]}`…|*。！？；」』）】":
        return True
    if _DANGLING.search(text.rstrip()):
        return False
    return len(last.split()) <= 8 or bool(_LIST_ITEM.match(last))


def _match(
    pattern: str,
    *fields: str,
    flags: re.RegexFlag = re.IGNORECASE,
    unless: Condition = lambda example: False,
) -> Find:
    """Returns a function that yields the first match of a pattern in each of the fields."""
    compiled = re.compile(pattern, flags)

    def find(example: Example) -> Iterator[Hit]:
        for field in fields:
            if (found := compiled.search(getattr(example, field))) and not unless(example):
                yield field, found.span()

    return find


def _asks(pattern: str) -> Condition:
    """Returns a function that says whether a pattern occurs in the instruction."""
    compiled = re.compile(pattern, re.IGNORECASE)
    return lambda example: bool(compiled.search(example.instruction))


def _rule(kind: str, severity: str, fix: str) -> Callable[[Find], Detector]:
    """Turns a function into a Detector; its docstring says what a hit means."""
    return lambda find: Detector(kind, severity, fix, (find.__doc__ or "").rstrip("."), find)


def _any_of(*functions: Find) -> Find:
    """Returns a function that yields the hits of several."""

    def find(example: Example) -> Iterator[Hit]:
        for function in functions:
            yield from function(example)

    return find


_ASKS_FOR_A_TEXT = _asks(r"\b(letter|e-?mail|dialogue|conversation|flow|message|speech|story)\b")
_ASKS_ABOUT_FORMATS = _asks(
    r"\b(valid\w*|format\w*|regex|regular expression|hash|redact|mask|pars\w+)\b"
)
_MAY_COPY_INPUT = _asks(
    r"\b(sort|order|rank|arrange|match|transcribe|copy|cite|spell|find|organi[sz]e|sequence|repeat)\b"
)


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


@_rule("input missing", "review", "write the input, or drop the row")
def _missing_input(example: Example) -> Iterator[Hit]:
    """the instruction refers to a text that is missing."""
    found = _REFERS_TO_MATERIAL.search(example.instruction)
    # A full stop, a colon or a quotation mark may be followed by the text itself.
    given = re.search(r"[:\[\"'“\n]|[.?!] \S| - ", example.instruction)
    if found and not example.input.strip() and not given:
        yield "instruction", found.span()


@_rule("cut off", "review", "ask for the output again, without stop sequences")
def _cut_off(example: Example) -> Iterator[Hit]:
    """the output ends in "20", "=", "$", a comma, or a word such as "the"."""
    text = example.output.rstrip()
    words = text.split()
    found = _DANGLING.search(text) or re.search(r"(?<![\d.,$€£:/-])\b20$", text)
    task = f"{example.instruction} {example.input}".split()
    if found and len(words) > 1 and words[-1] not in (task[-1], "A"):
        yield "output", found.span()


@_rule("list ends at 19", "review", "ask for the output again, without stop sequences")
def _list_of_nineteen(example: Example) -> Iterator[Hit]:
    """the last number of a list is 19: a stop sequence "20." did that to Alpaca."""
    items = list(re.finditer(r"^\s*(\d+)[.)]\s", example.output, re.MULTILINE))
    if items and items[-1][1] == "19":
        yield "output", items[-1].span()


@_rule("arithmetic", "review", "compute it, and correct the output")
def _wrong_arithmetic(example: Example) -> Iterator[Hit]:
    """the task states one plain calculation, and the output does not contain its value."""
    value = find_sum(f"{example.instruction} {example.input}")
    if value is not None and example.output.strip() and not contains_value(example.output, value):
        yield "output", (0, len(example.output))


DETECTORS: tuple[Detector, ...] = (
    Detector(
        "word for no input",
        "error",
        'write "" as the input',
        'the input is a word such as "none" instead of empty',
        _match(_NO_INPUT, "input"),
    ),
    Detector(
        "no-input mark in output",
        "error",
        "ask for the output again",
        "the output mentions <noinput>, which belongs to the prompt",
        _match(r"<\s*no[ _-]?input\s*>|\bno input\b", "output"),
    ),
    Detector(
        "merged tasks",
        "error",
        "split the row, or drop it",
        "the output contains a second task: the parser missed a separator",
        _match(
            r"\b\d{1,2}\.\s*(Instruction|Input):|^##\s*\n\s*\S|^###", "output", flags=re.MULTILINE
        ),
    ),
    Detector(
        "empty output",
        "error",
        "ask for the output again",
        'there is no output, or only a word such as "N/A"',
        _match(r"^\s*$|^\s*[<\[(]?\s*(no ?output|n/a|none|null|nan)\s*[>\])]?\s*\.?\s*$", "output"),
    ),
    Detector(
        "address",
        "review",
        "put the page's text into the input, or drop the row",
        "a web address: the model cannot open it, and may have invented it",
        _any_of(
            _match(_ADDRESS, "instruction", "input"),
            _match(_ADDRESS + r"(?<!example\.com)(?<!example\.org)", "output"),
        ),
    ),
    Detector(
        "not text",
        "error",
        "drop the row",
        "the task needs a picture, sound or file that is missing",
        _any_of(
            _match(r"!\[[^\]]*\]\(|<(picture|image|photo)|^\s*(image|photo|picture)\s*:", "input"),
            _match(r"\b(see|is|are) attached\b", "input", unless=lambda e: len(e.input) > 80),
            _match(
                r"\b(the|this|an?) (given|attached|following|above|below) "
                r"(image|picture|photo|graph|chart|diagram|video|audio)",
                "instruction",
                unless=lambda e: len(e.input) > 60 and "http" not in e.input,
            ),
        ),
    ),
    Detector(
        "claims an action",
        "error",
        "drop the row",
        "the output claims an action that a text model cannot perform",
        _match(_CLAIMED_ACTION, "output", unless=_ASKS_FOR_A_TEXT),
    ),
    Detector(
        "refusal",
        "review",
        "keep it if declining is right, else ask again",
        'the output declines, or says "as an AI"',
        _match(_REFUSAL, "output"),
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
        _match(_PLACEHOLDER, "output"),
    ),
    Detector(
        "contact details",
        "review",
        "use example.org, or drop the row",
        "an e-mail address or a telephone number that may belong to a person",
        _match(_CONTACT, *FIELDS, unless=_ASKS_ABOUT_FORMATS),
    ),
)
