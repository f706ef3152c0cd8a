"""The patterns of the detectors, in English and, where they say so, in Chinese.

Each takes time in proportion to the text: no two repetitions next to each other can match the
same characters, and a repetition that a search may begin anywhere is bounded.
"""

from __future__ import annotations

import re

# Traditional characters of the Chinese patterns, and the simplified ones that these are written in.
_SIMPLIFIED = str.maketrans(
    "無輸沒給對這個為語機備執覽開訪問幫確務還並與圖郵碼話詩說識謝閱讀戶",
    "无输没给对这个为语机备执览开访问帮确务还并与图邮码话诗说识谢阅读户",
)


def simplify(text: str) -> str:
    """Returns a text of the same length whose Chinese the patterns know."""
    return text if text.isascii() else text.translate(_SIMPLIFIED)


REFERS_TO_MATERIAL = re.compile(
    r"\b(the|this|these) (following|given|above|below|attached)? ?"
    r"(text|passage|paragraph|sentences?|article|story|list|table|email|code)"
    r"( below)?\b(?! (of|about|that|for|on|with|in|to|from|is|called|which|between)\b)"
    r"|(以下|下面|下列|上面|上述|给定)的?[^，。：:；\n]{0,6}"
    r"(文本|文字|段落|句子|文章|故事|列表|表格|邮件|代码|对话|诗歌?)(?!的)",
    re.IGNORECASE,
)
ADDRESS = r"\b(https?://|www\.)[^\s\"'<>)]+"
OWN_ADDRESS = r"\b(https?://|www\.)(?!([\w-]{1,63}\.){0,4}example\.(com|org|net)\b)[^\s\"'<>)]+"
NO_OUTPUT = re.compile(
    r"[<\[(（【]?(no ?output|n/a|none|null|nan|无输出|没有输出|无|空)[>\])）】]?[.。]?",
    re.IGNORECASE,
)
# What a parser has to separate: a numbered instruction, or a heading of the prompt template.
SECOND_TASK = (
    r"\b\d{1,2}[.)．、][ \t]*(?:Instruction|指令)[ \t]*[:：]"
    r"|^#{2,4}[ \t]*(?:Instruction|Input|Output|Response|指令|输入|输出|回答)[ \t]*[:：]"
)
# Headings without a number, one below the other: a task of three parts.
BARE_TASK = (
    r"^(?:Instruction|指令)[ \t]*[:：][^\n]{1,300}\n{1,2}"
    r"(?:Input|输入)[ \t]*[:：][^\n]{0,300}\n{1,2}"
    r"(?:[^\n]{1,300}\n{1,2})?(?:Output|输出)[ \t]*[:：]"
)
NUMBERED_PART = re.compile(
    r"^(\d{1,2})[.)．、][ \t]*(Input|Output|输入|输出)[ \t]*[:：]", re.MULTILINE | re.IGNORECASE
)
CONTROL_TOKEN = (
    r"<\|[A-Za-z][\w ]{0,40}\|>|\[/?INST\]|<</?SYS>>|</?(?:start|end)_of_turn>"
    r"|<｜[^\s｜]{1,40}｜>|</s>\s?$|</?think>"
)
ACTIONS = (
    r"(set|create|generate|draw|play|send|provide|access|open|upload|display|perform|complete|show"
    r"|predict|help|assist|write|make|book|answer|fulfil|process|execute|produce|browse|view)"
)
REFUSAL = (
    r"((i['’]?m|i am) sorry|sorry|unfortunately|apologies)\b[^.\n]{0,40}\b"
    r"(can['’]?t|cannot|can not|unable|not able|not possible)\b"
    rf"|i (can(no|['’])t|can not|am (unable|not able) to) {ACTIONS}\b"
    r"|i do(n['’]t| not) have (access|the ability|enough)|as an? (ai|language model)\b"
    r"|<?no ?output>?\s?[-:(]|no output (as|,)"
    r"|[^。\n]{0,6}(抱歉|对不起|不好意思)[^。\n]{0,40}(无法|不能|没有|未|不知道|不具备|不确定)"
    r"|[^。\n]{0,20}(作为|是)(一[个名款位])?[^，。\n]{0,8}"
    r"(人工智能|语言模型|AI ?(助手|模型|语言)|文本机器人)"
    r"|[^。\n]{0,8}我(无法|不能)(回答|提供|访问|完成|执行|生成|查看|看到|浏览|打开|帮助)"
    r"|[^。\n]{0,10}您?(并?没有|并?未)(给出|提供|给我|为我提供)"
)
REFUSAL_INSIDE = (
    r"\b(gpt|language) models? (cannot|can['’]t|is unable|are unable)\b"
    r"|\bcannot be [^.\n]{0,60}\bmodel\b"
    r"|\bthis (task|instruction|request) (cannot|can not|is (beyond|not possible))"
)
CLAIMED_ACTION = (
    r".{0,60}?\b(i have|i['’]ve) (sent|attached|uploaded|emailed|booked|scheduled|ordered|called|"
    r"set (an|the|a) (alarm|reminder|timer)|changed the (font|colou?r))|"
    r".{0,40}?\b(the )?(font|font size|alarm|reminder|email|message|lights?|thermostat|volume"
    r"|appointment) (has|have) been (set|sent|changed|turned|scheduled|adjusted|increased|deleted)"
)
MAIL = (
    r"(?<![\w.+-])(?!(test|user\w{0,20}|example|abc|name|email|your\w{0,20}|[a-z])@)"
    r"[\w.+-]{1,64}@(?!([\w-]{1,63}\.){0,4}(example|test|domain|abc)\.)[\w-]{1,63}\.[a-z]{2,}\b"
)
TELEPHONE = (  # 555, 123-456-7890 and exchanges that begin with 0 or 1 are not assigned
    r"(?<![\w.-])(\+\d{1,3}[ -]?)?(?!\(?(555|123|000|987)\b)\(?[2-9]\d{2}\)?[ -](?!555|[01])"
    r"\d{3}[ -]\d{4}\b"
)
SEVEN_DIGITS = re.compile(r"\d{3}[ -]\d{4}\b")
PLACEHOLDER = (
    r"\A\s*\[[^\],\d\"']{3,80}\]\.?\s*\Z|\blorem ipsum\b"
    r"|\[(insert (?!(your |the )?\w{0,20}name)|picture|image|graph|chart"
    r"|flow ?chart|screenshot|diagram|musical|adjective|noun|verb|adverb)[^\]]{0,60}\]"
)
