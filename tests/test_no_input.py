"""Words for no input, and inputs that only look like them."""

from __future__ import annotations

import unicodedata

import pytest

from alpaca_lib.no_input import says_no_input

WORDS = [
    *("<noinput>", "<NoInput>", "noinput", "No input", "no_input", "no-input", "NO INPUT.", "None"),
    *("none.", "N/A", "n/a", "[none]", "(no input)", "<no_input>", "{no input}", "**None**"),
    *("`<noinput>`", '"<noinput>"', "No input needed", "No input required.", "No input provided"),
    *("No additional input", "No input is necessary", "no input needed for this task", "No inputs"),
    *("There is no input.", "Not applicable", "not_applicable", "None required", "Input: none"),
    *("None (no input needed)", "N/A - no input required", "<no input>", "< noinput >", "[]"),
    *(
        "<empty>",
        "[null]",
        "(empty)",
        "<input not needed>",
        "＜noinput＞",
        "＜ＮＯＩＮＰＵＴ＞",
        "【无】",
    ),
    *(
        "无",
        "无。",
        "（无）",
        "无输入",
        "<无输入>",
        "无需输入",
        "不需要输入",
        "没有输入",
        "没有",
        "不适用",
    ),
    *(
        "暂无",
        "无需额外输入",
        "没有提供输入",
        "此任务无需输入",
        "本任务不需要输入。",
        "「无输入」",
        "《无》",
    ),
    *(
        "無",
        "無輸入",
        "沒有輸入",
        "無需輸入",
        "不需要輸入",
        "输入为空",
        "无输入内容",
        "[无]",
        "<空>",
    ),
]
TEXTS = [
    *("None of the above, pick B", "none of the above", "No input was given to the machine"),
    *(
        "n/a, n/b",
        "x",
        "no",
        "No",
        "Nothing",
        "empty",
        "null",
        "nil",
        "NA",
        "Na",
        "0",
        "-",
        "blank",
    ),
    *(
        "No input device works",
        "Input",
        "no inputs and outputs are typed",
        "Noinputs Ltd",
        "none other",
    ),
    *(
        "无锡",
        "无论如何",
        "没有人",
        "没有输入法",
        "不适用于儿童",
        "无需输入密码即可登录",
        "空",
        "空气",
        "无线输入设备",
    ),
    *("无，有，空", "没有买到票", "<b>", "[1]", "{}x", "(none, one, two)", "no input " * 20),
    "None\nof\nthese",
]


@pytest.mark.parametrize("text", WORDS)
def test_words_for_no_input(text):
    """In any case, width and bracket, with white space around, they say that there is none."""
    wide = "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)
    for one in (text, text.upper(), f" {text}\n", wide, unicodedata.normalize("NFD", text)):
        assert says_no_input(one), one


@pytest.mark.parametrize("text", TEXTS)
def test_inputs(text):
    """A text that says more, or that may be an input by itself, is one."""
    assert not says_no_input(text)


@pytest.mark.parametrize(
    "text",
    [
        "n.a.",
        "入力なし",
        "特になし",
        "없음",
        "입력 없음",
        "Aucune entrée",
        "Keine Eingabe",
        "Sin entrada",
        "This task does not require any input.",
        "The task requires no input.",
        "No context needed",
        "&lt;noinput&gt;",
        "\\<noinput\\>",
        "нет входных данных",
        "No external input",
    ],
)
def test_other_languages_and_escapes(text):
    assert says_no_input(text)


@pytest.mark.parametrize("text", ["Нет", "なし", "keine", "aucun", "ninguna", "This needs input."])
def test_words_that_may_be_an_input(text):
    assert not says_no_input(text)
