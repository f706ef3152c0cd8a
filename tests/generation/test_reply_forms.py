"""The forms that models give to a reply: whatever they are, the same tasks come out."""

from __future__ import annotations

import random

import pytest

from alpaca_lib.generation.parsing import parse_reply
from alpaca_lib.generation.reply import NOT_A_TASK, PREFACE, REMARK
from alpaca_lib.records import Example

INSTRUCTIONS = [
    "Name three uses of old rope.",
    "Explain in one sentence why ice floats.",
    "把这句话改成被动句，不要改变意思。",
    "Sort the words by length, the longest first.",
    "List what a tea ceremony needs: one item per line.",
]
INPUTS = ["", "", "猫吃了鱼。", "pear, fig, banana", "3 and 4", "Input: 3\nOutput: 9"]
OUTPUTS = [
    "Nets and mats.",
    "1. Nets\n2. Mats\n3. Belts\n4. Swings",
    "Two lines:\n\nthe first\n\nthe second",
    "鱼被猫吃了。",
    "```python\nprint(1)  # ### no heading\n```",
    "### Usage\nRun it.\n\n## Notes\nNone.",
    "| a | b |\n|---|---|\n| 1 | 2 |",
    "Title\n\n---\n\nBody\n\n***\n\nEnd",
    "$x$ is 5; see **this** and __that__.",
    "Part one\n###\nPart two",
    "11. Input: two numbers\n12. Output: their sum",
]
NUMBERED_ONLY = ["Input: 5\nOutput: 25", "Task 1: dig\nTask 2: rest", "Answer: B\nResponse: none"]
PREFACES = [
    "",
    "Sure! Here are the tasks:",
    "Certainly. Below is a list of 17 more tasks.\n\nEach has an input.",
    "好的，以下是任务：",
    "# Tasks",
]
REASONING = [
    "",
    "<think>\n\n</think>\n\n",
    "<think>\n4. Instruction: A draft here.\n###\n</think>\n",
]
SEPARATORS = ["###\n", "\n###\n\n", "---\n", "\n***\n\n", "\n", "", "* * *\n", "===\n"]
REMARKS = [
    "",
    "Let me know if you need more!",
    "I hope these tasks help you.\n\nFeel free to ask for more.",
    "希望这些任务对您有帮助！",
    "These tasks cover many subjects.",
]
STYLES = {
    "plain": ("{n}. {name}:", "Instruction Input Output"),
    "heading": ("### {n}. {name}:", "Instruction Input Output"),
    "number first": ("{n}: {name}:", "Instruction Input Output"),
    "number last": ("{name} {n}:", "Instruction Input Output"),
    "number last, bold": ("**{name} {n}:**", "Instruction Input Output"),
    "bold": ("**{n}. {name}**:", "Instruction Input Output"),
    "bold, no colon": ("**{n}. {name}**", "Instruction Input Output"),
    "bracket": ("{n}) {name}:", "Instruction Input Output"),
    "brackets": ("({n}) {name}:", "Instruction Input Output"),
    "lower case": ("{n}. {name}:", "instruction input output"),
    "Chinese": ("{n}. {name}：", "指令 输入 输出"),
    "Chinese, full width": ("{wide}．{name}：", "指令 输入 输出"),
    "Chinese comma": ("{n}、{name}：", "指令 输入 输出"),
    "Chinese, other names": ("{name}{n}：", "任务 输入 回答"),
    "response": ("{n}. {name}:", "Instruction Input Response"),
    "bare fields": ("{name}:", "{n}.Instruction Input Output"),
    "bare, bold": ("**{name}:**", "{n}.Instruction Input Output"),
}
NO_INPUTS = ["<noinput>", "N/A", "None", "无", "[no_input]", "无需输入"]


def write(style: str, number: int, task: Example, no_input: str) -> str:
    """One task in a style."""
    pattern, names = STYLES[style]
    wide = "".join(chr(ord(digit) + 0xFEE0) for digit in str(number))
    texts = (task.instruction, task.input or no_input, task.output)
    out = []
    for name, text in zip(names.split(), texts, strict=True):
        head = pattern.format(n=number, wide=wide, name=name.split(".")[-1])
        if name.startswith("{n}."):
            head = f"{number}. Instruction:"
        out.append(f"{head}\n{text}\n")
    return "".join(out)


def compose(draw: random.Random) -> tuple[str, str | None, list[Example], dict[str, str]]:
    """A random reply: its text, its finish_reason, the tasks in it, and how it is made."""
    style = draw.choice(list(STYLES))
    is_numbered = not style.startswith("bare") and "other" not in style
    outputs = OUTPUTS + (NUMBERED_ONLY if is_numbered and style != "response" else [])
    inputs = INPUTS if is_numbered else INPUTS[:-1]
    count = draw.randint(1, 4)
    separator = draw.choice(SEPARATORS)
    tasks = [
        Example(draw.choice(INSTRUCTIONS), draw.choice(inputs), draw.choice(outputs))
        for _ in range(count)
    ]
    first = draw.choice([4, 4, 4, 1])
    no_input = draw.choice(NO_INPUTS)
    blocks = [write(style, first + place, task, no_input) for place, task in enumerate(tasks)]
    made = {
        "style": style,
        "separator": separator,
        "reasoning": draw.choice(REASONING),
        "preface": draw.choice(PREFACES),
        "remark": draw.choice(REMARKS),
        "fence": draw.choice(["", "", "```\n", "```markdown\n"]),
    }
    finish_reason = draw.choice(["stop", "stop", "eos", None, "length", "weird"])
    text = separator.join(blocks)
    if finish_reason in ("length", "weird"):
        made["remark"] = made["fence"] = ""
        text = text[:-2]
        tasks = tasks[:-1]
    elif draw.random() < 0.5 and not made["fence"]:
        text += "###\n"
    if made["fence"]:
        text = made["fence"] + text + "```\n"
    preface = made["preface"] + "\n\n" if made["preface"] else ""
    remark = "\n" + made["remark"] if made["remark"] else ""
    return made["reasoning"] + preface + text + remark, finish_reason, tasks, made


@pytest.mark.parametrize("seed", range(40))
def test_any_form_gives_the_same_tasks(seed):
    """Preface x reasoning x headings x separators x fence x remark x end: the tasks are kept."""
    draw = random.Random(seed)
    for _ in range(25):
        text, finish_reason, tasks, made = compose(draw)
        reply = parse_reply(text, finish_reason, 4)
        assert reply.tasks == tasks, f"{made}\n{text}"
        reasons = [one.reason for one in reply.rejected]
        assert reasons.count(PREFACE) == (made["preface"] != ""), text
        assert (REMARK in reasons) == (made["remark"] != ""), text
        assert NOT_A_TASK not in reasons
        rejected = "".join(one.text for one in reply.rejected)
        assert made["preface"] in rejected and made["remark"].split("\n")[-1] in rejected


def block(number: int, output: str = "Nets and mats.", instruction: str = INSTRUCTIONS[0]) -> str:
    return (
        f"{number}. Instruction: {instruction}\n{number}. Input:\n<noinput>\n"
        f"{number}. Output:\n{output}\n"
    )


@pytest.mark.parametrize("preface", ["Sure! Here are the tasks:\n\n", "好的，下面是更多任务：\n"])
def test_preface_before_an_instruction_without_heading(preface):
    """A reply that announces tasks and goes on where the prompt ended."""
    reply = parse_reply(preface + block(4).removeprefix("4. Instruction: "), "stop", 4)
    assert [task.instruction for task in reply.tasks] == [INSTRUCTIONS[0]]
    assert [one.reason for one in reply.rejected] == [PREFACE]


@pytest.mark.parametrize(
    "instruction",
    [
        "Here are two numbers: add them up.",
        "Sure or not? Explain the word.",
        "OK, list three tasks:",
    ],
)
def test_instruction_that_looks_like_a_preface(instruction):
    """What stands before the Input heading is the instruction, unless tasks are announced."""
    reply = parse_reply(f" {instruction}\n4. Input:\n3, 4\n4. Output:\n7\n", "stop", 4)
    assert [task.instruction for task in reply.tasks] == [instruction]


LAST_PARAGRAPHS = [
    ("Write a short e-mail to Tom.", "Dear Tom,\n\nCome over.\n\nLet me know if you can!"),
    ("Reply to the customer in two lines.", "It is on its way.\n\nFeel free to write again."),
    ("Explain how rain is made.", "Water rises.\n\nIf it is cold, it falls as snow."),
    ("Explain how rain is made.", "Water rises.\n\nThese drops fall."),
    ("Explain how rain is made.", "Water rises.\nLet me know if you want more."),
    ("写一封短信给小王。", "小王：\n\n明天来吗？\n\n希望你能来！"),
    ("Explain the end of the list.", "---\ntitle: x\n---"),
    ("Give the sentence in the passive.", "Note that it was eaten."),
]


@pytest.mark.parametrize("instruction, output", LAST_PARAGRAPHS)
def test_last_paragraph_that_belongs_to_the_answer(instruction, output):
    """In doubt, what stands at the end of a reply is the answer's own."""
    reply = parse_reply(block(4) + "###\n" + block(5, output, instruction), "stop", 4)
    assert [task.output for task in reply.tasks] == ["Nets and mats.", output]
    assert reply.rejected == []


@pytest.mark.parametrize("finish_reason", ["stop", "length"])
def test_line_of_hashes_in_an_output(finish_reason):
    """It is kept with what follows; where the reply was cut, the output is dropped, not cut."""
    text = block(4) + "###\n" + block(5, "Part one\n###\nPart two")
    reply = parse_reply(text, finish_reason, 4)
    outputs = ["Nets and mats.", "Part one\n###\nPart two"]
    assert [task.output for task in reply.tasks] == outputs[: 2 if finish_reason == "stop" else 1]
    assert len(reply.rejected) == (finish_reason == "length")


@pytest.mark.parametrize("cut", ["", "5", "5.", "5. Ins", "**5. Instruc", "### 5", "#"])
def test_cut_in_the_next_heading(cut):
    """A task that a line ### closed is complete if only the next heading was begun."""
    reply = parse_reply(block(4) + "###\n" + cut, "length", 4)
    assert len(reply.tasks) == 1 and len(reply.rejected) == (cut != "")


@pytest.mark.parametrize(
    "demo", ["1. Instruction: Add them.\n1. Input:\n2\n1. Output:\n3", "5. Instruction: Add them."]
)
def test_task_that_an_answer_shows(demo):
    """A task inside an answer is never kept as one, nor does it cut the answer."""
    reply = parse_reply(block(4, f"Such as:\n{demo}\nDone.") + "###\n" + block(6), "stop", 4)
    assert [task.output for task in reply.tasks] == ["Nets and mats."]
    assert [one.reason for one in reply.rejected] == [NOT_A_TASK]


@pytest.mark.parametrize(
    "between, remarks",
    [
        ("＃＃＃\n", 0),
        ("###\nHere are more tasks for you!\n###\n", 1),
        ("\nHere are more tasks:\n\n", 1),
        ("\n下面是更多任务：\n\n", 1),
        ("###\n###\n", 0),
        ("\n---\n\n", 0),
    ],
)
def test_between_two_tasks(between, remarks):
    """A wide separator, a double one, an announcement: in no output."""
    wide = block(5).replace(". ", ".\u00a0")
    for second in (block(5), wide):
        reply = parse_reply(block(4) + between + second, "stop", 4)
        assert [task.output for task in reply.tasks] == ["Nets and mats."] * 2
        assert [one.reason for one in reply.rejected] == [REMARK] * remarks


WRAPPERS = [("```\n", "```\n"), ("```markdown\n", "```")]


@pytest.mark.parametrize("opening, closing", WRAPPERS)
@pytest.mark.parametrize(
    "output", ["Nets.", "```python\nx = 1\n```", "```\nx\n```", "a\n\n```\nb\n```\nc"]
)
def test_fences_around_tasks(opening, closing, output):
    """Around all tasks or each, with words before, between and after: no mark stays, none goes."""
    four, five = block(4, output), block(5, output)
    for text, others in (
        (f"Here:\n{opening}{four}###\n{five}{closing}\nEnjoy!", 2),
        (f"{opening}{four}{five}{closing}\nThat is the lot.", 1),
        (f"{opening}{four}{closing}\n\n{opening}{five}{closing}", 0),
        (f"{four}\n{five}", 0),
        (f"{four}{five}", 0),
    ):
        reply = parse_reply(text, "stop", 4)
        assert [task.output for task in reply.tasks] == [output, output], text
        assert len(reply.rejected) == others


COMPLETE = [None, "", "stop", "STOP", "end_turn", "eos", "eos_token", "stop_sequence", "COMPLETE"]
INCOMPLETE = [
    *("length", "max_tokens", "MAX_TOKENS", "content_filter", "insufficient_system_resource"),
    *("abort", "error", "none", "null", "unknown", "tool_calls", "function_call", "cancelled", "x"),
]


@pytest.mark.parametrize("finish_reason", [*COMPLETE, *INCOMPLETE])
def test_finish_reasons(finish_reason):
    """Only the ends that are known to be complete keep the last task; the reason names others."""
    reply = parse_reply(block(4) + "###\n" + block(5)[:-8], finish_reason, 4)
    is_complete = finish_reason in COMPLETE
    assert [task.output for task in reply.tasks] == ["Nets and mats.", "Nets an"][: 1 + is_complete]
    for one in reply.rejected:
        assert finish_reason in one.reason or finish_reason in ("length", "content_filter")
    assert len(reply.rejected) == (not is_complete)


@pytest.mark.parametrize(
    "text", ["# ", ">\n", "4. Output:\n", "###\nx\n", "\n", "`", "```\n", "<", "</think>\n"]
)
def test_large_replies_of_one_kind(text):
    """A large reply of one kind of line, in any place, ends and gives no task of it."""
    many = text * (100_000 // len(text))
    for one in (many, f" Name a thing, please.\n4. Input:\n{many}", block(4) + "###\n" + many):
        assert len(parse_reply(one, "length", 4).tasks) <= 1


def _three(form, separator, output="Nets and mats."):
    """Returns a reply of three tasks by the form of its headings."""
    tasks = [
        "\n".join(
            (
                form.replace("N", str(number)).replace("F", "Instruction") + " " + instruction,
                (form.splitlines()[-1].replace("N", str(number)).replace("F", "Input")),
                "<noinput>",
                (form.splitlines()[-1].replace("N", str(number)).replace("F", "Output")),
                output,
            )
        )
        for number, instruction in enumerate(INSTRUCTIONS[:3], start=4)
    ]
    return f"\n{separator}\n".join(tasks)


@pytest.mark.parametrize("separator", ["⸻", "–––", "+++", "• • •", "_____", "—", "", "###", "---"])
@pytest.mark.parametrize(
    "form",
    [
        "N. F:",
        "N.\nF:",
        "**N.**\n\n**F:**",
        "#N\nF:",
        "Example N:\nF:",
        "### Item N\n- F:",
        "第N个任务\nF:",
        "N. - F:",
        "- **N. F:**",
        "[N] F:",
        "【N. F】",
        "N F:",
    ],
)
def test_separators_and_labels(form, separator):
    """Any mark may separate tasks, and a line of its own may number them."""
    reply = parse_reply(_three(form, separator), "stop", 4)
    assert [task.instruction for task in reply.tasks] == INSTRUCTIONS[:3]
    assert {task.output for task in reply.tasks} == {"Nets and mats."}


@pytest.mark.parametrize("form", ["F:", "Task N:\nF:", "N.\nF:"])
@pytest.mark.parametrize("separator", ["####", "# # #", "### ###"])
def test_tasks_without_a_separator_are_never_merged(form, separator):
    """Where it is open which task a text belongs to, the tasks are dropped."""
    reply = parse_reply(_three(form, separator), "stop", 4)
    assert not any("Instruction" in task.output or "#" in task.output for task in reply.tasks)
    assert len(reply.tasks) == 3 or NOT_A_TASK in {one.reason for one in reply.rejected}


def test_quoted_reply():
    """Markdown quotes may leave out the separators, and the line that the prompt began."""
    text = "\n".join(
        line if line in ("###", "") else f"> {line}" for line in _three("N. F:", "###").split("\n")
    )
    for reply in (text, text.removeprefix("> 4. Instruction:")):
        tasks = parse_reply(reply, "stop", 4).tasks
        assert [task.output for task in tasks] == ["Nets and mats."] * 3


@pytest.mark.parametrize(
    ("opening", "closing"),
    [("<tasks>\n", "\n</tasks>"), ("```xml\n<list>\n<tasks>\n", "\n</tasks>\n</list>\n```")],
)
def test_tags_around_the_tasks(opening, closing):
    reply = parse_reply(opening + _three("N. F:", "</tasks>\n<tasks>") + closing, "stop", 4)
    assert [task.output for task in reply.tasks] == ["Nets and mats."] * 3


@pytest.mark.parametrize(
    "remark",
    [
        "(End)",
        "### End",
        "**Note:** All tasks follow the given constraints.",
        "I can provide more tasks if needed.",
        "Each of these tasks can be completed by a text model.",
        "J'espère que cela vous aide.",
        "これらのタスクがお役に立てば幸いです。",
    ],
)
def test_more_closing_remarks(remark):
    reply = parse_reply(_three("N. F:", "###") + "\n\n" + remark, "stop", 4)
    assert reply.tasks[-1].output == "Nets and mats."
    assert [(one.reason, one.text) for one in reply.rejected] == [(REMARK, remark)]


@pytest.mark.parametrize(
    "remark", ["That's all 20 tasks.", "以上就是所有任务。", "---\nEnd of list."]
)
def test_closing_remark_directly_below(remark):
    """Without a blank line a remark has to name the tasks, or stand below a rule."""
    reply = parse_reply(_three("N. F:", "###") + "\n" + remark, "stop", 4)
    assert reply.tasks[-1].output == "Nets and mats."


@pytest.mark.parametrize(
    "output",
    [
        "def f\n  1\n\nend",
        "A tale.\n\nThe end.",
        "Bake it.\n\nI hope that one day I can travel.",
        "Ask politely.\n\nIf you need help, call the police.",
        "Stir.\n\nFeel free to add salt.",
        "Plan your day.\n\nAll tasks should be done early.",
        "I studied.\n\nI can write clean code.",
    ],
)
def test_endings_that_are_no_remarks(output):
    assert parse_reply(_three("N. F:", "###", output), "stop", 4).tasks[-1].output == output
