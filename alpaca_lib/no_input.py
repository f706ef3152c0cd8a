"""Recognises the words that say that a task has no input: <noinput>, "N/A", 无需输入."""

from __future__ import annotations

import html
import re
import unicodedata

_GIVEN = r"(?:needed|required|necessary|provided|given|available|applicable|supplied|specified)"
_KIND = r"(?:additional |further |extra |specific |explicit )?"
_ZH_KIND = r"(?:额外的?|附加的?|其他的?|具体的?|額外的?|附加的?|其他的?|具體的?)?"
_ZH_INPUT = r"(?:输入|輸入)(?:内容|數據|数据|信息|文本|项|內容|資料)?"
_MARK = (
    rf"(?:(?:there is )?no ?{_KIND}inputs?(?: data| text)?(?: (?:is |was |are )?{_GIVEN})?"
    r"(?: (?:for|by) (?:this|the) (?:task|instruction|question|prompt))?"
    rf"|inputs? (?:is )?(?:not {_GIVEN}|none)|none(?: {_GIVEN})?|n/a|not (?:applicable|required)"
    r"|n a|not needed|(?:(?:this|the) (?:task|instruction|question) )?"
    rf"(?:requires no|needs no|(?:does not|doesn't|doesn t) (?:require|need)(?: any)?) {_KIND}input"
    rf"|no {_KIND}(?:information|context) (?:is )?{_GIVEN}|no external inputs?|inputs? none inputs?"
    r"|noinput noinput"
    r"|特になし|入力(?:は|が)?(?:なし|無し|ありません|不要)|없음|입력 ?없음|해당 ?없음"
    r"|aucune entrée|pas d entrée|keine eingabe|sin entrada|ninguna entrada"
    r"|нет (?:входных данных|ввода)"
    r"|無|无|没有|沒有|不适用|不適用|暂无|暫無|无需|無需|未提供"
    r"|(?:(?:此|本|该|這個|这个)(?:任务|指令|任務))?"
    r"(?:无|無|没有|沒有|无需|無需|无须|無須|不需要?|不用|未提供|暂无|暫無|未给出|没有提供)"
    rf"(?:提供|任何)?{_ZH_KIND}{_ZH_INPUT}"
    rf"|{_ZH_INPUT}(?:为空|為空|无|無))"
)
_NO_INPUT = re.compile(rf"{_MARK}(?: {_MARK})?", re.IGNORECASE)
# Words that are an input by themselves ("Name the opposite." "empty"), unless in brackets.
_BRACKETED = re.compile(r"[<\[({](?:empty|null|nil|blank|空|空白)?[>\])}]", re.IGNORECASE)
_QUOTES = str.maketrans("《》「」『』【】〈〉〔〕“”‘’`*\"'", "<>" * 6 + " " * 8)
_BREAKS = re.compile(r"[\s_\-–—<>\[\](){}.,;:!。，；：！]+")
LONGEST = 80  # characters: a longer text is text


def says_no_input(text: str) -> bool:
    """Returns whether a text only says that there is no input, in English, Chinese
    or a few other languages.

    Case, width, brackets, quotes and snake_case do not matter. A text that says more than that
    ("None of the above, pick B") is an input.
    """
    text = text.strip()
    if len(text) > LONGEST:
        return False
    text = html.unescape(text).replace("\\", "")
    plain = unicodedata.normalize("NFKC", text).translate(_QUOTES).strip()
    if _BRACKETED.fullmatch(re.sub(r"\s", "", plain)):
        return True
    return bool(_NO_INPUT.fullmatch(_BREAKS.sub(" ", plain).strip()))
