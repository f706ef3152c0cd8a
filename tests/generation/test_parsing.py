"""Parsing: what a reply gives, why a task is dropped, and Stanford's own rules."""

from __future__ import annotations

import re
import string

import pytest

from alpaca_lib.generation.parsing import parse_reply, rule_broken
from alpaca_lib.records import Example


def block(number: int, instruction: str, given: str = "<noinput>", output: str = "Fine.") -> str:
    """One entry of the list, with its heading."""
    heads = [f"{number}. {name}:" for name in ("Instruction", "Input", "Output")]
    return f"{heads[0]} {instruction}\n{heads[1]}\n{given}\n{heads[2]}\n{output}\n"


def reply_of(*blocks: str, separator: str = "###\n") -> str:
    """A reply: the first block without its heading, as the prompt ends with it."""
    text = separator.join(blocks)
    return re.sub(r"^\d+\. Instruction:", "", text)


GOOD = [
    ("Explain how rain is made.", "<noinput>", "Water rises and falls."),
    ("Add the two numbers given.", "3 and 4", "7"),
    ("List three cold countries please.", "<noinput>", "1. Norway\n2. Canada\n3. Iceland"),
]
TEXT = reply_of(*(block(n, *row) for n, row in enumerate(GOOD, 4)))


def test_good_reply():
    """Three blocks give three tasks in order; <noinput> becomes no input."""
    reply = parse_reply(TEXT, "stop", 4)
    assert reply.rejected == []
    assert reply.tasks == [
        Example(GOOD[0][0], "", GOOD[0][2]),
        Example(*GOOD[1]),
        Example(GOOD[2][0], "", GOOD[2][2]),
    ]


@pytest.mark.parametrize(
    "prefix", ["4. Instruction:", "###\n4. Instruction:", "\n\n4. Instruction:"]
)
def test_teacher_that_repeats_the_heading(prefix):
    """A chat model often writes the first heading again; that is no fault."""
    assert parse_reply(prefix + TEXT, "stop", 4).tasks == parse_reply(TEXT, "stop", 4).tasks


def test_numbered_lists_in_outputs_stay():
    """A list in an output is text, also where its numbers are those of the headings."""
    output = "4. Flour\n5. Sugar\n6. Input devices\n7. Outputs\n20. Salt"
    text = reply_of(block(4, "List what a kitchen needs.", output=output), block(5, *GOOD[1]))
    reply = parse_reply(text, "stop", 4)
    assert [t.output for t in reply.tasks] == [output, "7"]
    assert reply.rejected == []


@pytest.mark.parametrize(
    "output",
    [
        "The sum of 14 and 6 is 20.",
        "As of 2020. It was so.",
        "$20.50",
        "\n".join(f"{n}. x" for n in range(1, 21)),
    ],
)
def test_twenty_survives_in_outputs(output):
    """ "20." cut Alpaca's own outputs short; here it is text like any other."""
    reply = parse_reply(reply_of(block(19, "Do what is asked here.", output=output)), "stop", 19)
    assert [t.output for t in reply.tasks] == [output]


def test_separator_must_be_a_line_of_its_own():
    """### inside an output (a heading, a comment) does not cut it."""
    output = "### Title\ntext ### more\n#### deeper\ndone"
    reply = parse_reply(reply_of(block(4, "Write a short page.", output=output)), "stop", 4)
    assert [t.output for t in reply.tasks] == [output]


def test_windows_line_ends():
    """A reply with \\r\\n gives the same number of tasks."""
    reply = parse_reply(TEXT.replace("\n", "\r\n"), "stop", 4)
    assert len(reply.tasks) == 3 and reply.rejected == []


def test_two_hashes_for_three_spoil_only_their_own_block():
    """## for ### merges two tasks: both are dropped with a reason, later ones are kept."""
    text = reply_of(block(4, *GOOD[0]), block(5, *GOOD[1]), separator="##\n")
    text += "###\n" + block(6, *GOOD[2])
    reply = parse_reply(text, "stop", 4)
    assert [t.instruction for t in reply.tasks] == [GOOD[2][0]]
    (rejected,) = reply.rejected
    assert "one number" in rejected.reason
    assert GOOD[0][0] in rejected.text and GOOD[1][0] in rejected.text


def test_numbers_that_restart_or_jump_are_taken():
    """What matters is that a block's three headings agree, not that they go on by one."""
    text = reply_of(block(4, *GOOD[0]), block(1, *GOOD[1]), block(17, *GOOD[2]))
    assert len(parse_reply(text, "stop", 4).tasks) == 3


@pytest.mark.parametrize(
    "bad",
    [
        "5. Instruction: Add the two numbers.\n6. Input:\n1\n5. Output:\n2\n",
        "5. Instruction: Add the two numbers.\n5. Output:\n2\n",
        "5. Instruction: Add the two numbers.\n5. Output:\n2\n5. Input:\n1\n",
        "5. Input:\n1\n5. Output:\n2\n",
        "5. Instruction: Add the two numbers.\n5. Input:\n1\n5. Output:\n2\n5. Output:\n3\n",
        "5. Instruction:\n5. Input:\n1\n5. Output:\n2\n",
        "Here are more tasks for you!\n",
    ],
)
def test_block_that_is_not_a_task(bad):
    """A block without its three headings in order is dropped with its text; others stay."""
    text = reply_of(block(4, *GOOD[0]), bad, block(6, *GOOD[2]))
    reply = parse_reply(text, "stop", 4)
    assert [t.instruction for t in reply.tasks] == [GOOD[0][0], GOOD[2][0]]
    assert [r.text for r in reply.rejected] == [bad.strip()]
    assert "Instruction, Input and Output" in reply.rejected[0].reason


@pytest.mark.parametrize("text", ["", " ", "\n###\n", "I'm sorry, but I can't do that."])
def test_reply_without_tasks(text):
    """An empty reply or a refusal gives no task and does not fail."""
    assert parse_reply(text, "stop", 4).tasks == []


@pytest.mark.parametrize("at", [30, 90, 150, 200])
def test_length_cut_drops_the_last_task(at):
    """What the limit cut is dropped; tasks before the cut are kept."""
    text = TEXT[:at]
    whole = text.count("###")
    reply = parse_reply(text, "length", 4)
    assert [t.instruction for t in reply.tasks] == [row[0] for row in GOOD[:whole]]
    assert [r.reason for r in reply.rejected] == ["cut off by the length limit"]


@pytest.mark.parametrize("tail", ["###", "###\n", "###\n\n"])
def test_length_cut_just_after_a_separator(tail):
    """A task that is closed by ### is whole, even if the limit comes right after."""
    text = reply_of(block(4, *GOOD[0]), block(5, *GOOD[1])) + tail
    assert len(parse_reply(text, "length", 4).tasks) == 2


@pytest.mark.parametrize(
    "mark",
    ["<noinput>", "<NoInput>", "noinput", "No input", "[none]", "N/A", "(no input)", "None.", ""],
)
def test_ways_to_say_no_input(mark):
    """Every usual way to say "none" is no input."""
    (task,) = parse_reply(reply_of(block(4, "Explain how rain is made.", mark)), "stop", 4).tasks
    assert task.input == ""


@pytest.mark.parametrize(
    "text", ["none of the above", "No input was given to the machine", "n/a, n/b", "x"]
)
def test_inputs_that_only_look_like_none(text):
    """An input that merely begins so is kept."""
    (task,) = parse_reply(reply_of(block(4, "Explain how rain is made.", text)), "stop", 4).tasks
    assert task.input == text


RULES = [
    ("Explain rain please", "too short"),
    ("Why?", "too short"),
    ("word " * 151, "too long"),
    ("Describe the image in words.", '"image"'),
    ("Please Go To the shop now.", '"go to"'),
    ("Draw, if you can, a bird.", '"draw"'),
    ("Write a program that adds numbers.", "Write a program"),
    ("(Optional) explain how rain is made.", "symbol"),
    ("- explain how rain is made.", "symbol"),
]


@pytest.mark.parametrize("instruction, part", RULES)
def test_each_rule_has_its_reason(instruction, part):
    """Each filter rule drops its task and says which rule it was."""
    reply = parse_reply(reply_of(block(4, instruction.strip())), "stop", 4)
    assert reply.tasks == [] and part in reply.rejected[0].reason


@pytest.mark.parametrize(
    "instruction",
    [
        "Explain rain to me.",
        "word " * 150,
        "Imagine an imagery of profiles.",  # image, file inside other words
        "Explain what mapping and drawing mean.",
        "Describe how to write a program.",
        "Übersetze den Satz ins Englische.",
        "解释一下为什么天空是蓝色的",
        "空はなぜ青いのですか",
        "하늘은 왜 파란색인가요 설명해",
        "Почему небо синее, объясни мне.",
        "3 apples and 4 pears cost what?",
    ],
)
def test_instructions_that_pass(instruction):
    """Rules do not hit words inside words, nor other languages."""
    assert rule_broken(Example(instruction.strip(), "", "x")) is None


KEYWORDS = [  # Stanford's list
    "image", "images", "graph", "graphs", "picture", "pictures", "file", "files", "map", "maps",
    "draw", "plot", "go to", "video", "audio", "music", "flowchart", "diagram",
]  # fmt: skip


@pytest.mark.parametrize("word", KEYWORDS)
def test_every_keyword_counts_in_any_case(word):
    """Each keyword is found alone, capital or not, and not inside a word."""
    assert "needs more than text" in str(
        rule_broken(Example(f"Please use the {word} well.", "", "x"))
    )
    assert "needs more than text" in str(
        rule_broken(Example(f"Please use the {word.upper()}, well.", "", "x"))
    )
    assert rule_broken(Example(f"Please use the x{word}x well.", "", "x")) is None


@pytest.mark.parametrize(
    "instruction, part",
    [
        ("请用graph说明这个问题。", '"graph"'),
        ("请描述这张图片里的人物。", '"图片"'),
        ("畫一幅春天的風景。", '"畫一"'),
        ("播放一段视频给我看。", '"视频"'),
        ("（可选）解释天空为什么是蓝色的。", "symbol"),
        ("•解释天空为什么是蓝色的。", "symbol"),
    ],
)
def test_rules_in_other_languages(instruction, part):
    """Keywords next to Chinese characters, Chinese keywords, wide marks: as in English."""
    assert part in str(rule_broken(Example(instruction, "", "x")))


@pytest.mark.parametrize(
    "instruction",
    [
        "《红楼梦》的作者是谁？",
        "“盐”在化学上是什么？",
        "「木漏れ日」の意味を説明して",
        "¿Quién escribió el Quijote?",
        "Erkläre, was ein Imageschaden ist.",
        "จงอธิบายว่าทำไมท้องฟ้าเป็นสีฟ้า",
        "计划一次去海边的旅行。",
    ],
)
def test_rules_that_do_not_hit_other_languages(instruction):
    """Titles, quotation marks and scripts without spaces pass."""
    assert rule_broken(Example(instruction, "", "x")) is None


@pytest.mark.parametrize(
    "output",
    [
        "抱歉，我无法完成这个任务。",
        "对不起，作为一个AI语言模型，我不能提供这些信息。",
        "很抱歉，我不能帮助您。",
        "作为人工智能，我没有身体。",
        "我无法提供这些信息。",
        "申し訳ありませんが、お手伝いできません。",
        "죄송합니다. 도와드릴 수 없습니다.",
        "Lo siento, pero no puedo ayudar.",
        "Je suis désolé, mais je ne peux pas aider.",
        "Es tut mir leid, aber ich kann nicht helfen.",
        "Извините, но я не могу помочь.",
    ],
)
def test_refusals_in_other_languages(output):
    """A refusal is no answer, whatever its language."""
    assert rule_broken(Example("解释一下为什么天空是蓝色的", "", output)) == "the teacher refused"


@pytest.mark.parametrize(
    "output", ["抱歉让您久等了。", "我不能同意这个观点，因为它没有根据。", "作为人，我们会犯错。"]
)
def test_answers_that_are_no_refusal_in_chinese(output):
    """Words that only begin alike are kept."""
    assert rule_broken(Example("解释一下为什么天空是蓝色的", "", output)) is None


def test_half_a_character():
    """A lone surrogate becomes U+FFFD, so that the task can be written to a file."""
    text = reply_of(block(4, "Explain how \ud83d rain is made.", "x\udc00", "y\ud83d"))
    (task,) = parse_reply(text, "stop", 4).tasks
    assert task == Example("Explain how \ufffd rain is made.", "x\ufffd", "y\ufffd")


def test_empty_output():
    """A task without an output is dropped with that reason."""
    reply = parse_reply(reply_of(block(4, "Explain how rain is made.", output="")), "stop", 4)
    assert [r.reason for r in reply.rejected] == ["empty output"]


@pytest.mark.parametrize(
    "output",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, but I can’t help with that.",
        "I am sorry, I cannot do that.",
        "Sorry, but I cannot do that.",
        "I cannot assist with this request.",
        "I can’t assist with this request.",
        "As an AI, I have no body.",
    ],
)
def test_refusals(output):
    """A teacher's refusal, with straight or curly apostrophes, is not an answer."""
    reply = parse_reply(reply_of(block(4, "Explain how rain is made.", output=output)), "stop", 4)
    assert reply.tasks == [] and "refused" in reply.rejected[0].reason


@pytest.mark.parametrize(
    "output", ["I can assist you.", "Sorry is a word.", "As an AIRPORT grows, so does noise."]
)
def test_outputs_that_are_no_refusal(output):
    """Words that only begin alike are kept."""
    assert rule_broken(Example("Explain how rain is made.", "", output)) is None


# --- compat: Stanford's behaviour, written here from notes C2 and D1 alone -----------


def stanford(text: str, finish_reason: str, first: int) -> list[tuple[str, str, str]]:
    """What Stanford's post-processing keeps, by its description.

    Split at every ###. Number the blocks on from ``first``. Drop the last one when
    the length limit was hit. Cut a block at each unanchored "N. Instruction:",
    "N. Input:" or "N. Output:" with the expected N; exactly three such cuts are
    needed. Then the filters of C2.
    """
    blocks = (f"{first}. Instruction:" + text).split("###")
    kept = []
    for place, piece in enumerate(blocks):
        if finish_reason == "length" and place + 1 == len(blocks):
            break
        marks = list(re.finditer(str(first + place) + r"\.\s+(?:Instruction|Input|Output):", piece))
        if len(marks) != 3:
            continue
        ends = [marks[1].start(), marks[2].start(), len(piece)]
        parts = [piece[m.end() : e].strip() for m, e in zip(marks, ends, strict=True)]
        instruction, given, output = parts
        words = len(instruction.split())
        if not 3 < words <= 150:
            continue
        banned = ["images?", "graphs?", "pictures?", "files?", "maps?", "draw", "plot", "go to"]
        banned += ["video", "audio", "music", "flowchart", "diagram"]
        if any(re.search(rf"\b({word})\b", instruction, re.I) for word in banned):
            continue
        first_character = instruction[0]
        if instruction.startswith("Write a program") or first_character in string.punctuation:
            continue
        if ord(first_character) > 127:
            continue
        kept.append((instruction, "" if given.lower() == "<noinput>" else given, output))
    return kept


COMPAT_REPLIES = {
    "good": TEXT,
    "repeated heading": "4. Instruction:" + TEXT,
    "two hashes lose all later tasks": TEXT.replace("###\n5.", "##\n5."),
    "hashes in an output": TEXT.replace("Water rises", "### Water rises"),
    "numbers jump": TEXT.replace("6. ", "7. "),
    "numbers restart": TEXT.replace("5. ", "1. "),
    "unanchored number": TEXT.replace("3 and 4", "15. Input: x"),
    "unanchored number, first": TEXT.replace("7\n###", "14. Instruction: merged\n7\n###"),
    "list in output with heading words": TEXT.replace("2. Canada", "6. Input: Canada"),
    "no input spelled otherwise": TEXT.replace("<noinput>", "None"),
    "NOINPUT in capitals": TEXT.replace("<noinput>", "<NoInput>"),
    "empty output": TEXT.replace("Water rises and falls.", ""),
    "refusal": TEXT.replace("Water rises and falls.", "I'm sorry, but I can't."),
    "non-ascii start": TEXT.replace("Explain how", "Élucidate how"),
    "chinese": TEXT.replace("Explain how rain is made.", "解释 一下 为什么 天空 是 蓝色 的"),
    "short": TEXT.replace("Explain how rain is made.", "Explain rain please"),
    "four words": TEXT.replace("Explain how rain is made.", "Explain rain please now"),
    "150 words": TEXT.replace("Explain how rain is made.", "word " * 150),
    "151 words": TEXT.replace("Explain how rain is made.", "word " * 151),
    "keyword": TEXT.replace("Explain how rain", "Draw a picture of how rain"),
    "keyword inside a word": TEXT.replace("Explain how rain", "Explain how the profile of rain"),
    "program": TEXT.replace("Explain how rain is made.", "Write a program to make rain."),
    "program, small": TEXT.replace("Explain how rain is made.", "write a program to make rain."),
    "symbol": TEXT.replace("Explain how rain is made.", "* Explain how rain is made."),
    "quote": TEXT.replace("Explain how rain is made.", '"Explain how rain is made."'),
    "separator at the end": TEXT + "###\n",
    "separator without a line": TEXT.replace("###\n5.", "### 5."),
    "lower case headings": TEXT.replace("Input:", "input:"),
    "bracket numbers": TEXT.replace("5. ", "5) "),
    "newline after the number": TEXT.replace("5. Input", "5.\nInput"),
    "chatter before": "Sure!\n###\n" + TEXT,
    "only text": "I cannot do that.",
    "empty": "",
    "two headings more": TEXT + "6. Input:\nx\n6. Output:\ny\n",
}  # fmt: skip


@pytest.mark.parametrize("finish_reason", ["stop", "length"])
@pytest.mark.parametrize("name", COMPAT_REPLIES)
def test_compat_is_stanford(name, finish_reason):
    """compat=True keeps exactly what the described post-processing keeps."""
    text = COMPAT_REPLIES[name]
    reply = parse_reply(text, finish_reason, 4, compat=True)
    assert [(t.instruction, t.input, t.output) for t in reply.tasks] == stanford(
        text, finish_reason, 4
    )
    blocks = f"4. Instruction:{text}".count("###") + 1
    assert len(reply.tasks) + len(reply.rejected) == blocks


def test_the_oracle_itself_sees_the_known_faults():
    """The description's faults show: a missing # merges two tasks and loses the rest."""
    assert len(stanford(TEXT, "stop", 4)) == 3
    assert len(stanford(TEXT, "length", 4)) == 2
    merged = stanford(COMPAT_REPLIES["two hashes lose all later tasks"], "stop", 4)
    assert len(merged) == 1 and "5. Instruction: Add" in merged[0][2]
    assert len(stanford(COMPAT_REPLIES["numbers jump"], "stop", 4)) == 2


def test_modern_mode_keeps_no_merged_task():
    """A missing #: compat keeps one merged task and no later one; the modern mode the later."""
    text = COMPAT_REPLIES["two hashes lose all later tasks"]
    assert [t.instruction for t in parse_reply(text, "stop", 4).tasks] == [GOOD[2][0]]
    (merged,) = parse_reply(text, "stop", 4, compat=True).tasks
    assert GOOD[1][0] in merged.output
