"""Each detector: a row that has its fault, and a row like it that has not."""

from __future__ import annotations

import pytest

from alpaca_lib.dataset.detectors import DETECTORS
from alpaca_lib.dataset.endings import ends_properly
from alpaca_lib.dataset.faults import KINDS, count_faults, find_faults
from alpaca_lib.records import Example

FINE = Example("Name a warm colour of autumn.", "", "Orange.")


def row(instruction=FINE.instruction, input="", output=FINE.output):
    """A sound row but for what is given."""
    return Example(instruction, input, output)


CASES = [
    ("word for no input", row(input="<noinput>"), row(input="none of them came back")),
    ("word for no input", row(input="N/A"), row(input="nail")),
    ("no-input mark in output", row(output="<noinput>\nBlue."), row(output="There is no in-put.")),
    ("merged tasks", row(output="Red.\n5. Instruction: Sort these."), row(output="5. Instruct")),
    ("merged tasks", row(output="Red.\n### Input:\nA"), row(output="# A\n\n### Usage\nRun it.")),
    ("merged tasks", row(output="1. Input:\nA\n1. Output:\nB"), row(output="1. Input: the text.")),
    ("merged tasks", row(output="红。\n5. 指令：排序"), row(output="## 指令\n\n运行。")),
    ("empty output", row(output="  "), row(output="0")),
    ("empty output", row(output="<No output>"), row(output="None of the three.")),
    ("empty output", row(output="【无】"), row(output="无人驾驶。")),
    ("word for no input", row(input="＜noinput＞"), row(input="noinputs are read")),
    ("word for no input", row(input="无需输入"), row(input="无人驾驶")),
    ("word for no input", row(input="不适用"), row(input="不适用于儿童的玩具")),
    ("control token", row(output="Blue.<|im_end|>"), row(output="a <| b |> c")),
    ("control token", row(input="[INST] Hi [/INST]"), row(input="[install] </section>")),
    ("control token", row(output="Blue.</s>"), row(output="<s>Blue.</s> is struck out")),
    ("refusal", row(output="很抱歉，您没有给出句子。"), row(output="抱歉让你久等了。")),
    ("refusal", row(output="作为一个人工智能助手，我无法看。"), row(output="人工智能改变世界。")),
    ("cut off", row(output="这座城市有很多公园，"), row(output="这座城市有很多公园。")),
    ("cut off", row(output="我们需要水和"), row(output="他说的是对的")),
    ("cut off", row(output="He was given a"), row(output="It has Vitamin A")),
    ("input missing", row("总结以下文章。"), row("总结以下文章：水会结冰。")),
    ("address", row(output="See https://real.test/x"), row(output="See https://www.example.com/x")),
    ("address", row(input="See https://a.example/x"), row(input="See the page.")),
    ("address", row(output="It is on www.news.test today."), row(output="Www stands for web.")),
    ("not text", row("Say what the given image shows."), row("Say what an image sensor does.")),
    ("not text", row(input="![](cat.png)"), row(input="a!b [c] (d)")),
    ("claims an action", row(output="I have booked a table."), row(output="I have two tables.")),
    ("claims an action", row(output="The alarm has been set."), row(output="The alarm rings.")),
    ("refusal", row(output="As an AI, I feel nothing."), row(output="As an aid.")),
    ("refusal", row(output="I'm sorry, but I can't say."), row(output="I'm sorry to be late.")),
    ("refusal", row(output="I cannot draw a cat."), row(output="I can't believe it!")),
    ("control character", row(output="a\x07b"), row(output="a\tb\nc")),
    ("arithmetic", row("Add 14 + 6.", output="The sum is"), row("Add 14 + 6.", output="20.")),
    ("arithmetic", row("Compute.", "3 × (4 + 5)", "35"), row("Compute.", "3 × (4 + 5)", "27")),
    ("arithmetic", row("Is it 9 - 5?", output="It is 3."), row("Rate it 1 - 5.", output="Four.")),
    ("arithmetic", row("What is 10 / 3?", output="3.34"), row("What is 10 / 3?", output="3.33")),
    ("cut off", row(output="The total cost is $"), row(output="The total cost is $20")),
    ("cut off", row(output="It had happened as of 20"), row(output="There are 1,020")),
    ("cut off", row(output="He walked to the"), row(output="He walked to the house")),
    (
        "list ends at 19",
        row(output="\n".join(f"{n}. word" for n in range(1, 20))),
        row(output="\n".join(f"{n}. word" for n in range(1, 21))),
    ),
    (
        "input stands in instruction",
        row("Translate: I am at home.", "I am at home."),
        row("Translate the sentence.", "I am at home."),
    ),
    ("output is the input", row(input="I am here.", output="I am here."), row(input="Here I am.")),
    (
        "output is the input",
        row("Correct it.", "I is here.", "I is here."),
        row("Sort the words.", "a, b, c", "a, b, c"),
    ),
    ("input missing", row("Shorten the following text."), row("Shorten the following text: Oh!")),
    ("input missing", row("Sort this list by length."), row("Sort this list of mine: [3, 1, 2]")),
    ("input missing", row("Is this sentence true?"), row("Is this sentence true? Snow is white.")),
    ("placeholder", row(output="[Flow chart of it]"), row(output="Dear [Your Name], hello.")),
    ("placeholder", row(output="Play: [Insert notes here]"), row(output="x[Name](y) and a[0]")),
    ("contact details", row(output="Ask jo@mail.net."), row(output="Ask jo@mail.example.org.")),
    ("contact details", row(input="Call 415-823-0182."), row(input="Call 415-555-0182.")),
    ("contact details", row(input="Call 415-823-0182."), row("Is it valid?", "415-823-0182")),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "faulty", "sound"), CASES)
def test_detector(kind, faulty, sound):
    """It finds the fault, says where, and leaves the like of it alone."""
    found = [fault for fault in find_faults([faulty]) if fault.kind == kind]
    assert found, "not found"
    for fault in found:
        start, end = fault.span
        assert getattr(faulty, fault.field)[start:end] == fault.text
        assert fault.severity in ("error", "review") and fault.fix
    assert not [fault for fault in find_faults([sound]) if fault.kind == kind]


def test_every_detector_has_a_case():
    """No detector goes untested."""
    assert {detector.kind for detector in DETECTORS} == {kind for kind, _, _ in CASES}


def test_repeated_texts():
    """One text in two rows is a fault if the tasks are alike; short texts never are."""
    long = "The committee met on Tuesday and agreed on three points of order."
    faults = find_faults(
        [
            row("Sum up the minutes in one sentence.", long, "a"),
            row("Name the day of the meeting.", long, "b"),
            row("Sum up these minutes in one sentence.", long, "c"),
            row("Sum up the minutes in one sentence.", "short", "d"),
            row("When did they meet?", "", long),
            row("When did they all meet?", "", long),
            row("Give an example of a long sentence.", "", long),
        ]
    )
    assert [(f.row, f.kind) for f in faults] == [(2, "repeated input"), (5, "repeated output")]
    assert "rows 1 and 3" in faults[0].fix


def test_counts_name_every_kind():
    """A kind without hits is counted as 0, and a row with two hits of a kind once."""
    both = row("See http://a.test now.", "http://b.test", "Yes.")
    counts = count_faults(find_faults([both, FINE]))
    assert set(counts) == set(KINDS) and counts["address"] == 1 and counts["merged tasks"] == 0


@pytest.mark.parametrize(
    ("text", "proper"),
    [
        ("It is so.", True),
        ("trumpet", True),
        ("- one\n- two", True),
        ("```python\nx = 1\n```", True),
        ("春天来了。", True),
        ("Kind regards,\nIda", True),
        ("A", True),
        ("The answer is A", True),
        ("Oranges hold much more Vitamin C than apples, which hold Vitamin A", True),
        ("Read all about it in the long report at https://example.org/a/b", True),
        ("All of it is in the table below:\n\n| a | b |\n|---|---|\n| 1 | 2 |", True),
        ("See the code of the sorter that was asked for:\n\n```\nx = 1\n```\n", True),
        ("他说：“好。”", True),
        ("一、水（H₂O）", True),
        ("这是一个很长的句子，它讲的是春天里的花朵和小鸟》", True),
        ("यह एक बहुत लंबा वाक्य है जो यहाँ पर अच्छी तरह समाप्त होता है।", True),
        ("I like the long walks by the sea so very much 🎉", True),
        ("1. One long item of a list that has no full stop at its end at all", True),
        ("他走到了公园，", False),
        ("I would like to have a pen, a very large sheet of paper and the", False),
        ("", False),
        ("He came to the", False),
        ("The sum is =", False),
        ("and then they went on for a while without any sign of the missing dog", False),
    ],
)
def test_ends_properly(text, proper):
    """Ends as answers do, or breaks off."""
    assert ends_properly(text) is proper
