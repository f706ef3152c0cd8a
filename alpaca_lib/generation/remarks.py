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
    r"\W*(?:(?:please )?let me know\b|(?:i )?hope (?:this|these|that|it|you)\b[^\n]{0,60}"
    r"\b(?:help\w*|useful|enjoy|find|meets?|works?|needs?|suits?|fits?|looking for|like)\b"
    r"|(?:please )?feel free to (?:ask|request|reach|tell|contact|let)\b"
    r"|if you(?:['’]d| would)? (?:need|want|like|have|require|wish)\b[^\n]{0,80}\b(?:let me|tell me"
    r"|feel free|ask|say so|i can|i['’](?:ll|d|m)|tasks|instructions|examples)\b"
    r"|would you like (?:me|more|any|another|to)\b|do you (?:want|need) (?:me|more|any|another)\b"
    r"|is there anything else\b|(?:these|the above|all of these|this list of|the list of) "
    r"(?:\d+ |\w+ )?(?:tasks|instructions|examples|list|entries)\b"
    r"|that['’]?s (?:all|it|everything)\b|that is all\b|this (?:concludes|completes)\b|enjoy\W*$"
    r"|happy (?:to|prompting|learning|training|tuning)\b|i['’]m happy to\b|please tell me if\b"
    r"|(?:\[|\()?end (?:of|of the) (?:list|tasks|response|output)\b|(?<=[(\[<*])end\W*$"
    r"|(?<=### )end\W*$|done\W*$"
    r"|i(?:['’]ve| have)? (?:written|created|generated|provided|listed|completed)\b"
    r"|i(?:['’]d| would| can| could|['’]ll| will)(?: be \w+ to)? (?:provide|generate|create|write"
    r"|add|continue)\b[^\n]{0,40}\b(?:more|another|further|if (?:you|needed)|upon request)\b"
    r"|more (?:tasks|instructions|examples) (?:can|could|are|will)\b"
    r"|(?:all|each|every one)(?: of (?:the|these))? (?:tasks?|instructions?) "
    r"(?:follow|can be|is|are|has|have|was|were|meets?|covers?)\b"
    r"|(?:please )?note(?: that|:)?\W{1,3}(?:these|the above|all|each|i)\b"
    r"|good luck\b|thank you\W*$"
    r"|(?:j['’]espère|ich hoffe|espero|spero|надеюсь)\b[^\n]{0,40}"
    r"(?:aid|utile|hilf|hilft|nützlich|ayud|útil|aiut|utili|помож|помог|полез)"
    r"|n['’]hésitez pas\b|lass(?:en sie)? (?:es )?mich wissen\b|avísame\b"
    r"|fammi sapere\b|дайте знать\b|[^\n]{0,20}(?:お役に立て|参考になれば)|[^\n]{0,20}도움이 되"
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
    a blank line alone not in a letter or another text to somebody. Without one, it has to
    name the tasks.
    """
    output = task.output
    end = len(output)
    may_be_letter = bool(_LETTER.match(output) or _ASKS_FOR_LETTER.search(task.instruction))
    for _ in range(3):
        begin = max(end - 2 * LONGEST, 0)
        tail = output[begin:end].rstrip()
        blank = max(tail.rfind("\n\n"), tail.rfind("\n \n"))
        line = tail.rfind("\n")
        place = blank
        if is_last and line > blank + 2 and _is_certain(tail, line):
            place = line
        if place < 0:
            break
        paragraph = tail[place:].strip()
        rule, _, after = paragraph.partition("\n")
        above = tail[:place].rstrip().rpartition("\n")[2]
        is_ruled = bool(_RULE.fullmatch(rule) or _RULE.fullmatch(above))
        words = after if _RULE.fullmatch(rule) else paragraph
        is_short = len(words) <= LONGEST and words.count("\n") <= 2
        is_one = _CLOSING.match(words) if is_last else is_preface(words)
        if not (words and is_short and is_one):
            break
        if may_be_letter and not is_ruled and not re.search(_TASKS, words, re.IGNORECASE):
            break
        kept = output[: begin + place].rstrip()
        if is_ruled and _RULE.fullmatch(above):
            kept = kept[: len(kept) - len(above)].rstrip()
        end = len(kept)
    return output[:end].rstrip(), output[end:].strip()


def _is_certain(text: str, line: int) -> bool:
    """Returns whether the last line, without a blank one above, is a remark on the tasks."""
    above, words = text[text.rfind("\n", 0, line) + 1 : line], text[line + 1 :]
    speaks = _CLOSING.match(words) and re.search(_TASKS, words, re.IGNORECASE)
    return bool(speaks or _RULE.fullmatch(above))
