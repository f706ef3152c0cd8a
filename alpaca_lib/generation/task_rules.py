"""Rules that a task must keep, Stanford's for English and their counterparts elsewhere.

A keyword counts as a word of its own; Chinese, Japanese and Korean characters next to it do not
make it part of a longer one. Nor is a script without spaces between words counted in words.
"""

from __future__ import annotations

import re
import string

from alpaca_lib.no_input import says_no_input
from alpaca_lib.records import CJK, Example, words

# Words for what a text model cannot see, hear or create (Stanford's list).
_WORDS = (
    r"(images?|graphs?|pictures?|files?|maps?|draw|plot|go to"
    r"|video|audio|music|flowchart|diagram)"
)
STANFORD_KEYWORD = re.compile(rf"\b{_WORDS}\b", re.IGNORECASE)
_LETTER = rf"[^\W{CJK.pattern[1:-1]}]"  # a word character other than a CJK one
_KEYWORD = re.compile(rf"(?<!{_LETTER}){_WORDS}(?!{_LETTER})", re.IGNORECASE)
_ZH_KEYWORD = re.compile(
    "图片|图像|照片|图表|文件夹|地图|绘制|绘图|作图|画(?:一|出|个|幅|张)|视频|音频|录音|音乐|流程图|示意图"
    "|圖片|圖像|圖表|檔案|地圖|繪製|繪圖|畫(?:一|出|個|幅|張)|視頻|影片|音頻|錄音|音樂|流程圖|示意圖"
)
_REFUSAL = re.compile(
    r"((i['’]?m|i am) sorry,? (but )?i (can|am|['’]m)|sorry, (but )?i can|as an ai\b"
    r"|i can(no|['’])t (help|assist|do|provide)"
    r"|(?:[很非十]?[常分]?(?:抱歉|对不起|對不起|不好意思)[，,。！! ]*(?:但是?|不过)?"
    r"(?:我(?:无法|無法|不能|没有?办法|沒有?辦法|不可以)|作为|作為|身为)"
    r"|(?:作为|作為|身为)一?[个個名款种]?(?:AI|人工智[能慧]|大?语言模型|語言模型)"
    r"|我(?:无法|無法|不能)(?:帮|幫|协助|協助|提供|回答|完成|满足|执行|访问|查看|处理))"
    r"|申し訳(?:ありません|ございません)が|죄송(?:합니다|하지만)"
    r"|lo siento, (?:pero )?no puedo|je suis désolée?, mais je ne peux"
    r"|es tut mir leid, aber ich kann|desculpe, mas (?:eu )?não posso"
    r"|извините, но я не могу|к сожалению, я не могу)",
    re.IGNORECASE,
)
# Marks of lists and ends of sentences; quotation marks, brackets of titles and ¿ ¡ may begin one.
_SYMBOLS = frozenset(string.punctuation + "•·●○■□◆◇★☆※–—―…、，。：；！？（）【】→⇒✓✔")
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]{8}")  # Thai, Lao, Burmese, Khmer
_SURROGATE = re.compile("[\ud800-\udfff]")


def make_task(instruction: str, given: str, output: str) -> Example:
    """Returns the task of three texts, trimmed; a word for no input becomes "".

    Half a character (a lone surrogate), which no file can hold, becomes U+FFFD.
    """
    texts = [_replace_surrogates(text.strip()) for text in (instruction, given, output)]
    return Example(texts[0], "" if says_no_input(texts[1]) else texts[1], texts[2])


def _replace_surrogates(text: str) -> str:
    if not _SURROGATE.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def rule_broken(task: Example) -> str | None:
    """Returns the first of the filter rules that a task breaks, or None."""
    instruction = task.instruction
    length = words(instruction)
    if length <= 3 and not _UNSPACED.search(instruction):
        return "instruction too short (3 words or fewer)"
    if length > 150:
        return "instruction too long (over 150 words)"
    if found := _KEYWORD.search(instruction) or _ZH_KEYWORD.search(instruction):
        return f'needs more than text ("{found[0].lower()}")'
    if instruction.startswith("Write a program"):
        return 'starts with "Write a program"'
    if instruction[0] in _SYMBOLS:
        return "starts with a symbol"
    if not task.output:
        return "empty output"
    if _REFUSAL.match(task.output):
        return "the teacher refused"
    return None


def stanford_rule_broken(instruction: str) -> str | None:
    """Returns the first rule of Stanford's script that an instruction breaks, or None."""
    length = len(instruction.split())
    if length <= 3 or length > 150:
        return "instruction too short or too long"
    if STANFORD_KEYWORD.search(instruction):
        return "keyword"
    if instruction.startswith("Write a program"):
        return 'starts with "Write a program"'
    if instruction[0] in string.punctuation:
        return "starts with a symbol"
    return None if instruction[0].isascii() else "starts with a non-ASCII character"
