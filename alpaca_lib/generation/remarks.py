"""Recognises what a model says around its tasks: prefaces and closing remarks.

Both are decided by their place and their words, and in doubt a text is a task's own.
"""

from __future__ import annotations

import re

from alpaca_lib.records import Example

_TASKS = (
    r"(?:tasks?|instructions?|examples?|entries|items|prompts?|list"
    r"|任务|任務|指令|示例|例子|列表|条目|题目)"
)
_PREFACE = re.compile(
    r"\W*(?:(?:sure|certainly|of course|okay|ok|absolutely|great|understood|alright|no problem)\b"
    r"|here(?:['’]s| is| are)\b|(?:below|following) (?:is|are)\b|the following\b|i['’]ll\b|i will\b"
    r"|continuing\b|let me\b|more tasks\b"
    r"|好的|当然|當然|没问题|沒問題|以下|下面|这里|這裡|这是|明白|收到|接下来|我来|我將|我将|继续)",
    re.IGNORECASE,
)
_CLOSING = re.compile(
    r"\W*(?:(?:please )?let me know\b|(?:i )?hope (?:this|these|that|it|you)\b"
    r"|(?:please )?feel free to\b|if you(?:['’]d| would)? (?:need|want|like|have|require|wish)\b"
    r"|would you like (?:me|more|any|another|to)\b|do you (?:want|need) (?:me|more|any|another)\b"
    r"|is there anything else\b|(?:these|the above|all of these|this list of|the list of) "
    r"(?:\d+ |\w+ )?(?:tasks|instructions|examples|list|entries)\b"
    r"|that['’]?s (?:all|it|everything)\b|that is all\b|this (?:concludes|completes)\b|enjoy\W*$"
    r"|happy (?:to|prompting|learning|training|tuning)\b|i['’]m happy to\b"
    r"|(?:\[|\()?end (?:of|of the) (?:list|tasks|response|output)\b|\[end\]|done\W*$|the end\W*$"
    r"|i(?:['’]ve| have)? (?:written|created|generated|provided|listed|completed)\b"
    r"|(?:please )?note(?: that|:)? (?:these|the above|all|each|i)\b|good luck\b|thank you\W*$"
    r"|希望(?:这|以上|对|能|您|你|這|對)|如(?:果|需|有|您|你|若)[^\n]{0,30}(?:告诉|告訴|需要|联系|问题|說|说)"
    r"|请(?:随时|告诉|告知|让我)|請(?:隨時|告訴)|以上(?:就是|是|为|為|\d+|所有|任务|內容|内容)"
    r"|(?:您|你)?(?:还)?需要(?:我|更多|其他)|还有(?:什么|其他)|(?:任务|列表|全部)?(?:结束|完成|完毕|结束)[。.!！]*$"
    r"|这些(?:任务|指令|示例)|祝(?:您|你)|有(?:任何|什么)(?:问题|需要))",
    re.IGNORECASE,
)
_LETTER = re.compile(
    r"\W*(?:dear|hi|hello|hey|subject|to|good (?:morning|afternoon|evening))\b"
    r"|\W*(?:尊敬|亲爱|親愛|你好|您好)",
    re.IGNORECASE,
)
_ASKS_FOR_LETTER = re.compile(
    r"\b(?:e-?mails?|letters?|messages?|repl(?:y|ies)|respon[ds]\w*|notes?|posts?|speech|customers?"
    r"|reviews?|chat\w*|invit\w*|announce\w*|draft|write to|thank\w*|closing\w*"
    r"|dialogues?|conversations?|translat\w*|rewrite|proofread|correct)\b"
    r"|邮件|郵件|信|回复|回覆|消息|留言|通知|短信|对话|對話|翻译|翻譯|客服|顾客|客户|话术|改写|致辞|公告",
    re.IGNORECASE,
)
_RULE = re.compile(r"[ \t]*(?:-{3,}|\*{3,}|_{3,}|={3,}|#{3})[ \t]*")
LONGEST = 300  # characters of a remark


def is_preface(text: str) -> bool:
    """Returns whether a line announces tasks: "Sure! Here are the tasks:"."""
    text = text.strip()
    if not text or len(text) > LONGEST or not _PREFACE.match(text):
        return False
    return bool(re.search(_TASKS, text, re.IGNORECASE)) and text.rstrip("*_ ")[-1] in ":：.!。！"


def is_remark(text: str) -> bool:
    """Returns whether a text of its own, such as one between separators, is about the tasks."""
    text = text.strip()
    if len(text) > LONGEST:
        return False
    speaks = _PREFACE.match(text) and re.search(_TASKS, text, re.IGNORECASE)
    return bool(speaks or _CLOSING.match(text))


def split_preface(text: str) -> tuple[str, str]:
    """Returns a first line or paragraph that announces tasks, and the text after it."""
    line, _, rest = text.lstrip().partition("\n")
    if rest.strip() and is_preface(line):
        return line.strip(), rest
    return "", text


def split_closing(task: Example, is_last: bool) -> tuple[str, str]:
    """Returns the output of a task without closing remarks, and these.

    Before another task, only a paragraph that announces it is a remark. After the last one, a
    short last paragraph that begins as remarks do is: after a line such as --- for certain, after
    a blank line alone not in a letter or another text to somebody.
    """
    output = task.output
    end = len(output)
    may_be_letter = bool(_LETTER.match(output) or _ASKS_FOR_LETTER.search(task.instruction))
    for _ in range(3):
        tail = output[max(end - 2 * LONGEST, 0) : end].rstrip()
        blank = max(tail.rfind("\n\n"), tail.rfind("\n \n"))
        if blank < 0:
            break
        paragraph = tail[blank:].strip()
        rule, _, after = paragraph.partition("\n")
        above = tail[:blank].rstrip().rpartition("\n")[2]
        is_ruled = bool(_RULE.fullmatch(rule) or _RULE.fullmatch(above))
        words = after if _RULE.fullmatch(rule) else paragraph
        is_short = len(words) <= LONGEST and words.count("\n") <= 2
        is_one = _CLOSING.match(words) if is_last else is_preface(words)
        if not words or not is_short or not is_one:
            break
        if may_be_letter and not is_ruled and not re.search(_TASKS, words, re.IGNORECASE):
            break
        start = max(end - 2 * LONGEST, 0) + blank
        kept = output[:start].rstrip()
        if is_ruled and _RULE.fullmatch(above):
            kept = kept[: len(kept) - len(above)].rstrip()
        end = len(kept)
    return output[:end].rstrip(), output[end:].strip()
