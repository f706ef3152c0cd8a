"""Reasoning in a reply: never data, whatever marks it; and tags that an answer writes about."""

from __future__ import annotations

import pytest

from alpaca_lib.generation.parsing import parse_json_reply, parse_reply
from alpaca_lib.generation.reasoning import split_reasoning
from alpaca_lib.generation.reply import REASONING

DRAFT = (
    "Let me think.\n###\n4. Instruction: A draft of no worth here.\n4. Input:\n<noinput>\n"
    "4. Output:\nDraft.\n###\n5. Instruction: Another draft of no worth.\n"
)


def task(number: int, output: str = "Nets and mats.") -> str:
    return (
        f"{number}. Instruction: Name three uses of rope.\n{number}. Input:\n<noinput>\n"
        f"{number}. Output:\n{output}\n"
    )


TASKS = task(4) + "###\n" + task(5, "Ropes tie.")
OUTPUTS = ["Nets and mats.", "Ropes tie."]
BLOCKS = {
    "think": f"<think>\n{DRAFT}</think>\n\n",
    "glued": f"<think>{DRAFT}</think>",
    "one line": "<think>Two tasks, then. </think> ",
    "capitals, attribute": f'<THINK effort="high">\n{DRAFT}</THINK>\n',
    "thinking": f"<thinking>\n{DRAFT}</thinking>\n",
    "thought": f"<thought>\n{DRAFT}</thought>\n",
    "reasoning": f"<reasoning>\n{DRAFT}</reasoning>\n",
    "reflection": f"<reflection>{DRAFT}</reflection>\n",
    "scratchpad": f"<scratchpad>\n{DRAFT}</scratchpad>\n",
    "Chinese": f"<思考>\n{DRAFT}</思考>\n",
    "Magistral": f"[THINK]{DRAFT}[/THINK]",
    "Kimi": f"◁think▷{DRAFT}◁/think▷",
    "Seed": f"<seed:think>{DRAFT}</seed:think>",
    "escaped": f"&lt;think&gt;\n{DRAFT}&lt;/think&gt;\n",
    "harmony": f"<|channel|>analysis<|message|>{DRAFT}<|end|><|start|>assistant<|channel|>final"
    "<|message|>",
    "harmony, two": f"<|channel|>analysis<|message|>{DRAFT}<|end|><|start|>assistant<|channel|>"
    f"commentary<|message|>{DRAFT}<|end|><|start|>assistant<|channel|>final<|message|>",
    "harmony, opened by the prompt": f"{DRAFT}<|end|><|start|>assistant<|channel|>final<|message|>",
    "harmony without marks": f"analysisWe need two.{DRAFT}assistantfinal",
    "Cohere": f"<|START_THINKING|>{DRAFT}<|END_THINKING|><|START_RESPONSE|>",
    "Sky": f"<|begin_of_thought|>\n{DRAFT}<|end_of_thought|>\n<|begin_of_solution|>\n",
    "Gemma": f"<|channel>thought\n{DRAFT}<channel|>",
    "MedGemma": f"<unused94>thought\n{DRAFT}<unused95>",
    "Granite": f"Here is my thought process:\n\n{DRAFT}\n\nHere is my response:\n\n",
    "details": f'<details type="reasoning" done="true">\n<summary>x</summary>\n{DRAFT}</details>\n',
    "ollama": f"Thinking...\n{DRAFT}\n...done thinking.\n\n",
    "only closed": f"{DRAFT}</think>\n\n",
    "only closed, glued": f"{DRAFT}I begin.</think> ",
    "two blocks": f"<think>\n{DRAFT}</think>\n<think>\n{DRAFT}</think>\n",
    "two kinds": f"<thinking>{DRAFT}</thinking><reflection>{DRAFT}</reflection>\n",
    "nested": f"<think>a<think>\n{DRAFT}</think>\n{DRAFT}</think>\n",
    "nested, never closed outside": f"<think>\nI use <think>\n{DRAFT}</think>\n",
    "a mention of the end": f"<think>\nI end with </think> later.\n{DRAFT}</think>\n",
    "a quoted end": f'<think>\nI end with "</think>".\n{DRAFT}</think>\n',
    "the end in code": f"<think>\n```\n</think>\n```\n{DRAFT}</think>\n",
    "code never closed": f"<think>\n```python\n{DRAFT}</think>\n",
    "after a preface": f"Sure!\n<think>\n{DRAFT}</think>\n",
    "with an answer tag": f"<think>{DRAFT}</think>\n<answer>\n",
}


@pytest.mark.parametrize("heading", [True, False])
@pytest.mark.parametrize("kind", BLOCKS)
def test_reasoning_is_no_data(kind, heading):
    """Whatever marks a block before the tasks: all tasks, none from it, and it is in rejected."""
    tasks = TASKS if heading or kind == "after a preface" else TASKS.removeprefix("4. Instruction:")
    reply = parse_reply(BLOCKS[kind] + tasks, "stop", 4)
    assert [one.output for one in reply.tasks] == OUTPUTS
    reasons = {one.reason for one in reply.rejected}
    assert reasons == {"reasoning of the teacher"} | (
        {"preface: text before the first task"} if kind == "after a preface" else set()
    )


@pytest.mark.parametrize("block", ["<think></think>", "<think>\n\n</think>\n\n", "<think/>\n"])
def test_empty_block(block):
    """A block that a template writes empty costs nothing and is no loss."""
    reply = parse_reply(block + TASKS, "stop", 4)
    assert [one.output for one in reply.tasks] == OUTPUTS and reply.rejected == []


def test_closing_tag_at_the_end():
    """A last tag after the tasks is a mark, not the end of reasoning that holds them."""
    for before in ("<think>Two.</think>\n", "Two.\n</think>\n"):
        reply = parse_reply(before + TASKS + "</think>\n", "stop", 4)
        assert [one.output for one in reply.tasks] == OUTPUTS


@pytest.mark.parametrize("finish_reason", ["length", "stop", "abort"])
@pytest.mark.parametrize(
    "opening", ["<think>\n", "[THINK]", "<|channel|>analysis<|message|>", "<|START_THINKING|>"]
)
def test_cut_inside_reasoning(opening, finish_reason):
    """Reasoning that never ends: no task, and one reason that says so."""
    reply = parse_reply(opening + DRAFT, finish_reason, 4)
    assert reply.tasks == []
    (rejected,) = reply.rejected
    assert "inside its reasoning" in rejected.reason and "draft of no worth" in rejected.text
    json_reply = parse_json_reply(opening + '{"tasks": [', finish_reason)
    assert [one.reason for one in json_reply.rejected] == [rejected.reason]


def test_reasoning_between_tasks():
    """A block between two tasks or before an answer goes; what is around it stays."""
    block = f"<think>\n{DRAFT}</think>\n"
    reply = parse_reply(task(4) + "###\n" + block + task(5), "stop", 4)
    assert [one.output for one in reply.tasks] == ["Nets and mats."] * 2
    reply = parse_reply(
        task(4, f"{block}Nets.") + "###\n" + task(5, "<think>x</think>Y."), "stop", 4
    )
    assert [one.output for one in reply.tasks] == ["Nets.", "Y."]
    reply = parse_reply(task(4) + "###\n" + task(5) + "###\n<think>\nNow the", "length", 4)
    assert len(reply.tasks) == 2 and "inside its reasoning" in reply.rejected[-1].reason
    reply = parse_reply(task(4) + "\n<think>\nNow the next", "length", 4)
    assert reply.tasks == []


TEXTS = [
    "Write `<think>` before and `</think>` after it.",
    "```xml\n<think>\nHm.\n</think>\n```",
    "~~~\n</think>\n~~~",
    "<note>\n<thought>Buy milk.</thought>\n</note>",
    "<order>\n  <reason>\n  late\n  </reason>\n</order>",
    "The tag <think> opens a block and </think> closes it.",
    'Put it between "<think>" and "</think>".',
    "Der Tag heißt „</think>“ und steht am Ende.",
    "The closing tag is </think>, as in R1.",
    "He stood there [thinking] for long.",
    "[Thinking]\nTo be or not to be.",
    "<analysis>\nRain is water.\n</analysis>",
    "Phi ends a turn with `<|end|>`.",
    "<details>\n<summary>More</summary>\nText.\n</details>",
]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("output", TEXTS)
def test_a_tag_that_an_answer_writes_about(output, last):
    """In code, quotation marks, other markup or a sentence, a tag is the answer's own text."""
    outputs = ["Nets.", output] if last else [output, "Nets."]
    text = task(4, outputs[0]) + "###\n" + task(5, outputs[1])
    for before in ("", "<think>\nTwo.\n</think>\n"):
        reply = parse_reply(before + text, "stop", 4)
        assert [one.output for one in reply.tasks] == outputs


@pytest.mark.parametrize(
    "end", ["<|im_end|>", "</s>", "<|return|>\n", "<|eot_id|><|im_end|>", "<end_of_turn>"]
)
def test_end_of_turn(end):
    """The token that ends a turn is no part of the last output."""
    assert [one.output for one in parse_reply(TASKS + end, "stop", 4).tasks] == OUTPUTS


def test_json_with_reasoning():
    """Drafts in JSON before the answer are no tasks; tags in a string are text."""
    row = '{"instruction": "Name three uses of rope.", "input": "", "output": "%s"}'
    draft = row % "Draft."
    for before in (
        f"<think>\n[{draft}]\n</think>\n",
        f"[{draft}]\n</think>\n",
        f"[THINK]{draft}[/THINK]",
    ):
        for after in (f"[{row % 'Nets.'}]", f"```json\n[{row % 'Nets.'}]\n```"):
            reply = parse_json_reply(before + after, "stop")
            assert [one.output for one in reply.tasks] == ["Nets."]
            assert [one.reason for one in reply.rejected] == ["reasoning of the teacher"]
    for output in ("Use <think> and </think>.", "It ends.</think>", "Say <think>"):
        assert parse_json_reply(f"[{row % output}]", "stop").tasks[0].output == output
    (only,) = parse_json_reply(f"[{row % '<think>Hm.</think>Nets.'}]", "stop").tasks
    assert only.output == "Nets."
    assert parse_json_reply(f"[{row % '<think>Hm.'}]", "stop").tasks == []


@pytest.mark.parametrize("text", ["", "plain", "a < b and c > d", "List<Think>", "x </s> y"])
def test_texts_without_reasoning(text):
    """Other texts come back as they are."""
    assert split_reasoning(text).answer == text and split_reasoning(text).reasoning == []


@pytest.mark.parametrize(
    ("opening", "closing"),
    [
        ("<plan>", "</plan>"),
        ("<chain-of-thought>", "done.</chain-of-thought>"),
        ("<thinking_process>", "</thinking_process>"),
        ("<details><summary>Reasoning</summary>", "</details>"),
        ("<｜begin▁of▁thinking｜>", "<｜end▁of▁thinking｜>"),
        ("<!--", "-->"),
        ("```thinking", "```"),
        ("**Thinking:**", "**Answer:**"),
        ("Thought: I plan.", "Final answer:"),
        ("## Reasoning", "## Tasks"),
        ("思考过程：", "最终答案："),
    ],
)
@pytest.mark.parametrize("draft", ["I plan.", "###\n" + TASKS.replace("Nets", "Drafts")])
def test_other_reasoning_at_the_beginning(opening, closing, draft):
    reply = parse_reply(f"{opening}\n{draft}\n{closing}\n{TASKS}", "stop", 4)
    assert [one.output for one in reply.tasks] == OUTPUTS
    assert [one.reason for one in reply.rejected] == [REASONING]


def test_a_tag_around_each_task_is_no_reasoning():
    first, second = TASKS.split("###\n")
    reply = parse_reply(f"<task>\n{first}</task>\n<task>\n{second}</task>", "stop", 4)
    assert [one.output for one in reply.tasks] == OUTPUTS
