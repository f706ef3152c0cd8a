"""One detector a kind of fault: the pattern or rule that finds it in a row.

Most were sharpened on hits in Alpaca's 52,002 rows that were judged by reading; see
benchmarks/faults.py for how many of their hits are faults.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from alpaca_lib.dataset.arithmetic import holds_value, stated_sum
from alpaca_lib.records import Example

Span = tuple[int, int]
Hit = tuple[str, Span]  # the field and the place in it


@dataclass(frozen=True)
class Detector:
    """How one kind of fault is found. Severity "error" is nearly always a fault;
    "review" asks a reader to look, since many hits are in order."""

    kind: str
    severity: str
    fix: str
    meaning: str
    find: Callable[[Example], Iterator[Hit]]


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


def _pattern(
    field: str,
    pattern: str,
    flags: re.RegexFlag = re.IGNORECASE,
    unless: Callable[[Example], bool] = lambda example: False,
) -> Callable[[Example], Iterator[Hit]]:
    """A detector's function: the first place of a pattern in one field."""
    compiled = re.compile(pattern, flags)

    def find(example: Example) -> Iterator[Hit]:
        if (found := compiled.search(getattr(example, field))) and not unless(example):
            yield field, found.span()

    return find


def _asks(pattern: str) -> Callable[[Example], bool]:
    """Whether an example's instruction has a pattern."""
    compiled = re.compile(pattern, re.IGNORECASE)
    return lambda example: bool(compiled.search(example.instruction))


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
    same = len(example.input) > 3 and example.output.strip() == example.input.strip()
    if same and not _LEAVES_AS_IT_IS(example):
        yield "output", (0, len(example.output))


def _missing_input(example: Example) -> Iterator[Hit]:
    found = _SPEAKS_OF_MATERIAL.search(example.instruction)
    # What follows a stop, a colon or a quotation mark may be the text itself.
    given = re.search(r"[:\[\"'“\n]|[.?!] \S| - ", example.instruction)
    if found and not example.input.strip() and not given:
        yield "instruction", found.span()


def _cut_off(example: Example) -> Iterator[Hit]:
    text = example.output.rstrip()
    words = text.split()
    found = _DANGLING.search(text) or re.search(r"(?<![\d.,$€£:/-])\b20$", text)
    task = f"{example.instruction} {example.input}".split()
    if found and len(words) > 1 and words[-1] not in (task[-1], "A"):
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
_ADDRESS = r"\b(https?://|www\.)[^\s\"'<>)]+"
_NOTHING = (
    r"^\s*[<\[(]?\s*(no[ _-]?input( (is )?(needed|required|provided|given))?|none|n/?a|null|nil"
    r"|empty|not applicable)\s*[>\])]?\s*\.?\s*$"
)
_DOES = (
    r"(set|create|generate|draw|play|send|provide|access|open|upload|display|perform|complete|show"
    r"|predict|help|assist|write|make|book|answer|fulfil|process|execute|produce|browse|view)"
)
_REFUSES = (
    r"^((i['’]?m|i am) sorry|sorry|unfortunately|apologies)\b[^.\n]{0,40}\b"
    r"(can['’]?t|cannot|can not|unable|not able|not possible)\b"
    rf"|^i (can(no|['’])t|can not|am (unable|not able) to) {_DOES}\b"
    r"|^i do(n['’]t| not) have (access|the ability|enough)|^as an? (ai|language model)\b"
    r"|\b(gpt|language) models? (cannot|can['’]t|is unable|are unable)\b"
    r"|\bcannot be [^.\n]{0,60}\bmodel\b"
    r"|\bthis (task|instruction|request) (cannot|can not|is (beyond|not possible))"
    r"|^<?no ?output>?\s*[-:(]|^no output (as|,)"
)
_CLAIMS = (
    r"^.{0,60}?\b(i have|i['’]ve) (sent|attached|uploaded|emailed|booked|scheduled|ordered|called|"
    r"set (an|the|a) (alarm|reminder|timer)|changed the (font|colou?r))|"
    r"^.{0,40}?\b(the )?(font|font size|alarm|reminder|email|message|lights?|thermostat|volume"
    r"|appointment) (has|have) been (set|sent|changed|turned|scheduled|adjusted|increased|deleted)"
)
_WRITES_FOR_SOMEBODY = _asks(
    r"\b(letter|e-?mail|dialogue|conversation|flow|message|speech|story)\b"
)
_LEAVES_AS_IT_IS = _asks(
    r"\b(sort|order|rank|arrange|match|transcribe|copy|cite|spell|find|organi[sz]e|sequence|repeat)\b"
)
_ABOUT_FORMATS = _asks(
    r"\b(valid\w*|format\w*|regex|regular expression|hash|redact|mask|pars\w+)\b"
)
_CONTACT = (
    r"\b(?!(test|user\w*|example|abc|name|email|your\w*|[a-z])@)[\w.+-]+"
    r"@(?!([\w-]+\.)*(example|test|domain|abc)\.)[\w-]+\.[a-z]{2,}\b"
    # 555, 123-456-7890 and exchanges that begin with 0 or 1 belong to nobody.
    r"|(?<![\w.-])(\+\d{1,3}[ -]?)?(?!\(?(555|123|000|987)\b)\(?[2-9]\d{2}\)?[ -](?!555|[01])"
    r"\d{3}[ -]\d{4}\b"
)
_GAP = (
    r"^\s*\[[^\],\d\"']{3,80}\]\.?\s*$|\blorem ipsum\b"
    r"|\[(insert (?!(your |the )?\w*name)|picture|image|graph|chart|flow ?chart|screenshot|diagram"
    r"|musical|adjective|noun|verb|adverb)[^\]]{0,60}\]"
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
        _pattern("output", r"\b\d{1,2}\.\s*(Instruction|Input):|^##\s*\n\s*\S|^###", re.MULTILINE),
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
            _pattern("instruction", _ADDRESS),
            _pattern("input", _ADDRESS),
            _pattern("output", _ADDRESS + r"(?<!example\.com)(?<!example\.org)"),
        ),
    ),
    Detector(
        "not text",
        "error",
        "drop the row",
        "it needs something to see or hear that is not there",
        _several(
            _pattern(
                "input", r"!\[[^\]]*\]\(|<(picture|image|photo)|^\s*(image|photo|picture)\s*:"
            ),
            _pattern(
                "input",
                r"\b(see|is|are) attached\b",
                unless=lambda example: len(example.input) > 80,
            ),
            _pattern(
                "instruction",
                r"\b(the|this|an?) (given|attached|following|above|below) "
                r"(image|picture|photo|graph|chart|diagram|video|audio)",
                unless=lambda example: len(example.input) > 60 and "http" not in example.input,
            ),
        ),
    ),
    Detector(
        "claims an action",
        "error",
        "drop the row",
        "the output says that something was done which a text model cannot do",
        _pattern("output", _CLAIMS, unless=_WRITES_FOR_SOMEBODY),
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
        "ask for the output again, or drop the row",
        "a bracket stands where the work should: [Flow chart], [Insert notes]",
        _pattern("output", _GAP),
    ),
    Detector(
        "contact details",
        "review",
        "use example.org, or drop the row",
        "an e-mail address or a telephone number that may be somebody's",
        _several(
            *(
                _pattern(field, _CONTACT, unless=_ABOUT_FORMATS)
                for field in ("instruction", "input", "output")
            )
        ),
    ),
)
