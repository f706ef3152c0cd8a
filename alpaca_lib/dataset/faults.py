"""The faults that instruction data is known for: where each occurs, and a suggested cure.

The list is what AlpacaDataCleaned's volunteers found by hand in Alpaca, and what the
generation's own stop sequences did to it. A detector reports; it changes nothing.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from alpaca_lib.dataset.arithmetic import holds_value, stated_sum
from alpaca_lib.records import Example

Span = tuple[int, int]
Hit = tuple[str, Span]  # the field and the place in it


@dataclass(frozen=True)
class Fault:
    """One hit of one detector: ``text`` is what stands at ``span`` of the row's ``field``."""

    row: int
    kind: str
    field: str
    span: Span
    text: str
    severity: str
    fix: str


@dataclass(frozen=True)
class Detector:
    """How one kind of fault is found. Severity "error" is nearly always a fault;
    "review" asks a reader to look, since many hits are in order."""

    kind: str
    severity: str
    fix: str
    meaning: str
    find: Callable[[Example], Iterator[Hit]]


def find_faults(examples: Sequence[Example]) -> list[Fault]:
    """Every hit of every detector, in order of rows; rows count from 0."""
    faults = [
        _fault(row, example, detector, hit)
        for row, example in enumerate(examples)
        for detector in DETECTORS
        for hit in detector.find(example)
    ]
    for kind, name, longer_than in (
        ("repeated input", "input", 25),
        ("repeated output", "output", 40),
    ):
        rows_with: defaultdict[str, list[int]] = defaultdict(list)
        for row, example in enumerate(examples):
            rows_with[getattr(example, name)].append(row)
        for text, rows in rows_with.items():
            if len(text) > longer_than:
                span = (0, len(text))
                faults += [
                    Fault(row, kind, name, span, text, "review", f"keep one of rows {rows[:5]}")
                    for row in rows[1:]
                ]
    return sorted(faults, key=lambda fault: fault.row)


def count_faults(faults: Sequence[Fault]) -> Counter[str]:
    """How many rows each kind of fault has, every kind named, also those with none."""
    rows = {(fault.kind, fault.row) for fault in faults}
    counts = Counter(kind for kind, _ in rows)
    for kind in KINDS:
        counts.setdefault(kind, 0)
    return counts


def ends_properly(text: str) -> bool:
    """Whether an answer ends as answers do: with a stop, a bracket, a list item, a label.

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


def _pattern(field: str, pattern: str, flags: re.RegexFlag = re.IGNORECASE) -> Callable:
    """A detector's function: the first place of a pattern in one field."""
    compiled = re.compile(pattern, flags)

    def find(example: Example) -> Iterator[Hit]:
        if found := compiled.search(getattr(example, field)):
            yield field, found.span()

    return find


def _several(*functions: Callable[[Example], Iterator[Hit]]) -> Callable:
    def find(example: Example) -> Iterator[Hit]:
        for function in functions:
            yield from function(example)

    return find


def _input_in_instruction(example: Example) -> Iterator[Hit]:
    text = example.input.strip()
    if len(text) > 3 and (at := example.instruction.find(text)) >= 0:
        yield "instruction", (at, at + len(text))


def _output_is_input(example: Example) -> Iterator[Hit]:
    if len(example.input) > 3 and example.output.strip() == example.input.strip():
        yield "output", (0, len(example.output))


def _missing_input(example: Example) -> Iterator[Hit]:
    found = _SPEAKS_OF_MATERIAL.search(example.instruction)
    if found and not example.input.strip() and not re.search("[:[\"'“\\n]", example.instruction):
        yield "instruction", found.span()


def _cut_off(example: Example) -> Iterator[Hit]:
    text = example.output.rstrip()
    found = _DANGLING.search(text) or re.search(r"(?<![\d.,$€£:/-])\b20$", text)
    if found and len(text.split()) > 1:
        yield "output", found.span()


def _list_of_nineteen(example: Example) -> Iterator[Hit]:
    items = list(re.finditer(r"^\s*(\d+)[.)]\s", example.output, re.MULTILINE))
    if items and items[-1][1] == "19":
        yield "output", items[-1].span()


def _wrong_arithmetic(example: Example) -> Iterator[Hit]:
    """A plain sum in the task whose value does not occur in the answer."""
    value = stated_sum(f"{example.instruction} {example.input}")
    if value is not None and example.output.strip() and not holds_value(example.output, value):
        yield "output", (0, len(example.output))


def _fault(row: int, example: Example, detector: Detector, hit: Hit) -> Fault:
    field, (start, end) = hit
    text = getattr(example, field)[start:end]
    return Fault(row, detector.kind, field, (start, end), text, detector.severity, detector.fix)


_LIST_ITEM = re.compile(r"([-*•]|\d+[.)])\s")
_DANGLING = re.compile(
    r"(\b(a|an|the|and|or|of|to|as|is|are|was|be|its|their|than)|[=$(]|\w+ \w+ \w+ \w+,)$",
    re.IGNORECASE,
)
_SPEAKS_OF_MATERIAL = re.compile(
    r"\b(the|this|these) (following|given|above|below|attached)? ?"
    r"(text|passage|paragraph|sentences?|article|story|list|table|email|code)"
    r"( below)?\b(?! (of|about|that|for|on|with|in|to|from|is|called|which|between)\b)",
    re.IGNORECASE,
)
_NOTHING = (
    r"^\s*[<\[(]?\s*(no[ _-]?input( (is )?(needed|required|provided|given))?|none|n/?a|null|nil"
    r"|empty|not applicable)\s*[>\])]?\s*\.?\s*$"
)
_REFUSES = (
    r"^((i['’]?m|i am) sorry|sorry|unfortunately|apologies)\b[^.\n]{0,40}\b"
    r"(can['’]?t|cannot|can not|unable|not able|not possible)\b"
    r"|^i(['’]m| am)? (can(no|['’])t|unable|not able)"
    r"|^i do(n['’]t| not) have (access|the ability|enough)"
    r"|^(this|that|the) (task|request|question) (is|can)( ?not| beyond)"
    r"|^as an? (ai|language model)\b"
    r"|\bas an ai (language )?(model|assistant)\b|\bas a (large )?language model\b"
)
_CLAIMS = (
    r"\b(i have|i['’]ve) (sent|attached|uploaded|emailed|booked|scheduled|ordered|called|"
    r"set (an|the|a) (alarm|reminder|timer)|changed the (font|colou?r))|"
    r"\b(the )?(font|font size|alarm|reminder|email|message|lights?|thermostat|volume|appointment) "
    r"(has|have) been (set|sent|changed|turned|scheduled|adjusted|increased|deleted)"
)

DETECTORS: tuple[Detector, ...] = (
    Detector(
        "word for no input",
        "error",
        'write "" as the input',
        'the input is a word such as "none" instead of empty',
        _pattern("input", _NOTHING),
    ),
    Detector(
        "no-input mark in output",
        "error",
        "ask for the output again",
        "the output speaks of <noinput>, which belongs to the prompt",
        _pattern("output", r"<\s*no[ _-]?input\s*>|\bno input\b"),
    ),
    Detector(
        "merged tasks",
        "error",
        "split the row, or drop it",
        "a second task stands in the output: the parser missed a separator",
        _pattern("output", r"\b\d{1,2}\.\s*(Instruction|Input):|^##\s*$|^###", re.MULTILINE),
    ),
    Detector(
        "empty output",
        "error",
        "ask for the output again",
        'there is no output, or only a word such as "N/A"',
        _pattern(
            "output", r"^\s*$|^\s*[<\[(]?\s*(no ?output|n/a|none|null|nan)\s*[>\])]?\s*\.?\s*$"
        ),
    ),
    Detector(
        "address",
        "review",
        "put the page's text into the input, or drop the row",
        "a web address: the model cannot open it, and may have made it up",
        _several(
            *(
                _pattern(field, r"\bhttps?://\S+|\bwww\.\S+")
                for field in ("instruction", "input", "output")
            )
        ),
    ),
    Detector(
        "not text",
        "error",
        "drop the row",
        "it needs something to see or hear that is not there",
        _several(
            _pattern(
                "input",
                r"!\[[^\]]*\]\(|\b(see|is|are) attached\b|<(picture|image|photo)"
                r"|^\s*(image|photo|picture)\s*:",
            ),
            _pattern(
                "instruction",
                r"\b(the|this|an?) (given|attached|following|above|below) "
                r"(image|picture|photo|graph|chart|diagram|video|audio)",
            ),
        ),
    ),
    Detector(
        "claims an action",
        "error",
        "drop the row",
        "the output says that something was done which a text model cannot do",
        _pattern("output", _CLAIMS),
    ),
    Detector(
        "refusal",
        "review",
        "keep it if declining is right, else ask again",
        'the output declines, or says "as an AI"',
        _pattern("output", _REFUSES),
    ),
    Detector(
        "control character",
        "error",
        "remove the character",
        "a character that no text should hold",
        _several(
            *(
                _pattern(field, r"[\x00-\x08\x0b-\x1f\x7f]")
                for field in ("instruction", "input", "output")
            )
        ),
    ),
    Detector(
        "arithmetic",
        "review",
        "compute it, and correct the output",
        "the task holds one plain sum, and the output does not hold its value",
        _wrong_arithmetic,
    ),
    Detector(
        "cut off",
        "review",
        "ask for the output again, without stop sequences",
        'the output ends in "20", "=", "$", a comma, or a word such as "the"',
        _cut_off,
    ),
    Detector(
        "list ends at 19",
        "review",
        "ask for the output again, without stop sequences",
        'the last number of a list is 19: a stop sequence "20." did that to Alpaca',
        _list_of_nineteen,
    ),
    Detector(
        "input stands in instruction",
        "review",
        'write "" as the input',
        "the instruction already holds the input, word for word",
        _input_in_instruction,
    ),
    Detector(
        "output is the input",
        "review",
        "ask for the output again",
        "the output repeats the input",
        _output_is_input,
    ),
    Detector(
        "input missing",
        "review",
        "write the input, or drop the row",
        "the instruction speaks of a text that is not there",
        _missing_input,
    ),
    Detector(
        "placeholder",
        "review",
        "fill it in, unless the task asks for a form",
        "a gap such as [Name] is left in the output",
        _pattern(
            "output",
            r"\[(your|the|my|insert)?\s?[A-Z][A-Za-z' ]{1,25}\](?!\()|\blorem ipsum\b",
            re.NOFLAG,
        ),
    ),
    Detector(
        "contact details",
        "review",
        "use example.org, or drop the row",
        "an e-mail address or a telephone number that may be somebody's",
        _several(
            *(
                _pattern(
                    field,
                    r"\b[\w.+-]+@(?!([\w-]+\.)*example\.)[\w-]+\.[a-z]{2,}\b"
                    r"|(?<![\w.])(\+\d{1,3}[ -]?)?\(?\d{3,4}\)?[ -]\d{3}[ -]\d{4}\b",
                )
                for field in ("instruction", "input", "output")
            )
        ),
    ),
)
KINDS = (*(detector.kind for detector in DETECTORS), "repeated input", "repeated output")
