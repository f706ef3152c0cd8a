"""JSON as models write it: LaTeX, raw newlines, trailing commas, words around, several values."""

from __future__ import annotations

import json
import random

import pytest

from alpaca_lib.generation.lenient_json import decode_string, find_json
from alpaca_lib.generation.parsing import parse_json_reply
from alpaca_lib.generation.reply import PREFACE, REMARK

ROW = '{"instruction": "Name two kinds of trees.", "input": "", "output": "%s"}'
OAK, ASH = ROW % "Oak.", ROW % "Ash."

SINGLE = [  # what a model writes with one backslash, and means
    r"$\frac{1}{2}$",
    r"$\sigma$ and $\alpha$",
    r"\(\beta + \bar{x}\)",
    r"$\theta \times \nabla \rho$",
    r"$\nu \neq \tau \to \tan x$",
    r"$$\sum_{n=1}^\infty \text{if } n$$",
    r"\[\left( \right) \rightarrow\]",
    r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
    r"\textbf{x} \underline{y} \_ \% \{ \}",
    r"\d+\s*\b",
    r"C:\Users\name\table",
    r"50\% off \usepackage",
]


@pytest.mark.parametrize("text", SINGLE)
def test_single_backslashes(text):
    """LaTeX, patterns and paths with one backslash come out as they were written."""
    for value in (text, f"See {text} there.\\nNext"):
        reply = parse_json_reply(f'{{"tasks": [{ROW % value}, {ASH}]}}', "stop")
        assert [t.output for t in reply.tasks] == [value.replace("\\nNext", "\nNext"), "Ash."]


WORDS = ["x", "news", "table", "reed", "9", "é", "字", "\U0001f9c2"]
PIECES = ["\n", "\t", " ", "\\alpha ", "\\nu ", '"', "/", "$", "\n\n- ", "\\\\ ", "C:\\new\\", "'"]


@pytest.mark.parametrize("seed", range(20))
def test_proper_strings_are_read_as_json_reads_them(seed):
    """A text that json.dumps escaped is what json.loads gives, with any escapes in it."""
    draw = random.Random(seed)
    for _ in range(100):
        text = "".join(draw.choice(WORDS) + draw.choice(PIECES) for _ in range(draw.randint(1, 12)))
        for ascii_only in (True, False):
            body = json.dumps(text, ensure_ascii=ascii_only)[1:-1]
            assert decode_string(body) == json.loads(f'"{body}"') == text


@pytest.mark.parametrize("text", ["Q:\\nWhat\\nA:\\nYes", "name\\text\\nu = 5", "a\\tb\\nnew\\rx"])
def test_ordinary_escapes(text):
    """Newlines and tabs before ordinary words stay such."""
    assert decode_string(text) == json.loads(f'"{text}"')


TASKS = f'{{"tasks": [{OAK}, {ASH}]}}'
FORMS = {
    "another key": TASKS.replace("tasks", "data"),
    "a key within a key": f'{{"result": {{"items": [{OAK}, {ASH}]}}, "n": 2}}',
    "two keys": f'{{"easy": [{OAK}], "hard": [{ASH}]}}',
    "numbered": f'{{"1": {OAK}, "2": {ASH}}}',
    "lines": f"{OAK}\n{ASH}",
    "lines, commas": f"{OAK},\n{ASH},",
    "one after the other": f'{{"tasks": [{OAK}]}} {{"tasks": [{ASH}]}}',
    "two lists": f"[{OAK}]\n\n[{ASH}]",
    "trailing commas": f'{{"tasks": [{OAK[:-1]},}}, {ASH},],}}',
    "comments": f"[ // two\n{OAK}, // oak\n{ASH}\n]",
    "single quotes": TASKS.replace('"', "'"),
    "Python": TASKS.replace('"', "'").replace("''", "None"),
    "fence": f"```json\n{TASKS}\n```",
    "two fences": f"```json\n{OAK}\n```\n\n```json\n{ASH}\n```",
    "BOM": "\ufeff" + TASKS,
}
BEFORE = [
    "",
    "Sure! Here are 2 tasks:\n",
    "Keys: {instruction, input}. Three [3] {}:\n",
    "a } ] b [c\n",
]
AFTER = ["", "\nHope this helps!", "\n\nLet me know (see [1])."]


@pytest.mark.parametrize("form", FORMS)
def test_forms(form):
    """Whatever holds the tasks and stands around them, they are found; words are rejected."""
    for before in BEFORE:
        for after in AFTER:
            reply = parse_json_reply(before + FORMS[form] + after, "stop")
            assert [task.output for task in reply.tasks] == ["Oak.", "Ash."], before
            reasons = [one.reason for one in reply.rejected]
            assert reasons == [PREFACE] * (before != "") + [REMARK] * (after != "")


def test_raw_newlines():
    """A line break or a tab in a string is part of it."""
    reply = parse_json_reply(ROW % "Oak\n\tand ash", "stop")
    assert [task.output for task in reply.tasks] == ["Oak\n\tand ash"]


@pytest.mark.parametrize("finish_reason", ["length", "abort", "max_tokens", "tool_calls", "stop"])
@pytest.mark.parametrize("form", ["another key", "lines", "numbered", "fence"])
def test_cut(form, finish_reason):
    """Complete tasks before the cut are kept; the rest is one part with the reason."""
    text = FORMS[form]
    for at in range(text.index("Ash"), text.index('Ash."}') + 5):
        reply = parse_json_reply(text[:at], finish_reason)
        assert [task.output for task in reply.tasks] == ["Oak."]
        (rejected,) = reply.rejected
        assert finish_reason in rejected.reason or finish_reason in ("length", "stop")
        assert text[:at].endswith(rejected.text) and "instruction" in rejected.text


def test_broken_row_costs_only_itself():
    """A row with a quotation mark too many is rejected; those around it are kept."""
    broken = ROW % 'He said "x" so.'
    text = f"[{OAK}, {broken}, {ASH}]"
    reply = parse_json_reply(text, "stop")
    assert [task.output for task in reply.tasks] == ["Oak.", "Ash."]
    (rejected,) = reply.rejected
    assert rejected.reason == "not JSON" and "He said" in rejected.text


@pytest.mark.parametrize(
    "row, part",
    [
        (OAK.replace('"input": ""', '"context": "A wood."'), "another name"),
        (OAK.replace('"input": ""', '"output": "Elm."'), "twice"),
        (OAK.replace('"output"', '"ouput"'), "not an instruction"),
    ],
)
def test_rows_with_wrong_keys(row, part):
    """Material under another name, a key twice, no output: rejected by name."""
    reply = parse_json_reply(f"[{row}, {ASH}]", "stop")
    assert [task.output for task in reply.tasks] == ["Ash."]
    (rejected,) = reply.rejected
    assert part in rejected.reason and rejected.text == row


@pytest.mark.parametrize(
    "text", ["{", "[", '{"', '["', "[{", '{"a":', "[1,", '{"\\"', "\\", '"', "//"]
)
def test_large_texts_of_one_kind(text):
    """Brackets without end: no exception, no task, and what follows a few is found."""
    assert parse_json_reply(text * 20_000, "stop").tasks == []
    if text not in ("//", '{"\\"', '"'):
        values = [found.value for found in find_json(f"{text * 3}\n{OAK}")]
        assert any("Oak." in str(value) for value in values)
