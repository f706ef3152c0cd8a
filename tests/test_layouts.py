"""Layouts of public data sets, by hand: what each row becomes, and what is refused by row."""

from __future__ import annotations

import json
import warnings

import pytest

from alpaca_lib.cli import main
from alpaca_lib.errors import DataError
from alpaca_lib.records import Conversation, Example, Turn, load_examples, load_records

ASK, ANSWER, MORE, END = "What is a kettle for?", "It boils water.", "And a pan?", "It fries."
ONE = Example(ASK, "", ANSWER)
TWO = Conversation(
    tuple(
        Turn(role, text)
        for role, text in zip(["user", "assistant"] * 2, [ASK, ANSWER, MORE, END], strict=True)
    )
)
BRIEF = Conversation(TWO.turns[:2], "Be brief.")


def said(*texts, role="role", content="content", user="user", assistant="assistant"):
    return [{role: (user, assistant)[n % 2], content: text} for n, text in enumerate(texts)]


def shared(*texts, **roles):
    return said(
        *texts, role="from", content="value", **{"user": "human", "assistant": "gpt", **roles}
    )


BOTH = (ASK, ANSWER, MORE, END)
SYSTEM = {"role": "system", "content": "Be brief."}
# data set: (row, its record, what the command calls it)
SETS = {
    "ShareGPT52K": (
        {
            "id": "x_0",
            "conversations": [{**one, "markdown": None, "text": None} for one in shared(*BOTH)],
        },
        TWO,
        "ShareGPT",
    ),
    "OpenHermes": (
        {
            "conversations": shared(*BOTH),
            "source": "airoboros",
            "category": None,
            "system_prompt": None,
            "custom_instruction": None,
        },
        TWO,
        "ShareGPT",
    ),
    "SlimOrca": (
        {
            "conversations": [
                {"from": "system", "value": "Be brief.", "weight": None},
                {"from": "human", "value": ASK, "weight": 0.0} | {"weight": None},
                {"from": "gpt", "value": ANSWER, "weight": 1.0},
            ]
        },
        BRIEF,
        "ShareGPT",
    ),
    "WizardLM evol": ({"idx": "a", "conversations": shared(ASK, ANSWER)}, ONE, "ShareGPT"),
    "Magpie": (
        {
            "uuid": "u",
            "model": "m",
            "instruction": ASK,
            "response": ANSWER,
            "conversations": shared(ASK, ANSWER),
            "language": "EN",
        },
        ONE,
        "ShareGPT",
    ),
    "BELLE conversations": (
        {"id": "1", "conversations": shared(*BOTH, assistant="assistant")},
        TWO,
        "ShareGPT",
    ),
    "LLaMA-Factory ShareGPT": (
        {"conversations": shared(ASK, ANSWER), "system": "Be brief.", "tools": ""},
        BRIEF,
        "ShareGPT",
    ),
    "UltraChat": ({"id": "0", "data": list(BOTH)}, TWO, "lists of texts"),
    "UltraChat 200k": ({"prompt": ASK, "prompt_id": "a", "messages": said(*BOTH)}, TWO, "messages"),
    "tulu": ({"dataset": "flan", "id": "1", "messages": said(*BOTH)}, TWO, "messages"),
    "OpenAI": ({"messages": [SYSTEM, *said(ASK, ANSWER)]}, BRIEF, "messages"),
    "OpenAI developer, parts": (
        {
            "messages": [
                {"role": "developer", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": ASK}]},
                {"role": "assistant", "content": ANSWER},
            ]
        },
        BRIEF,
        "messages",
    ),
    "LIMA": ({"conversations": list(BOTH), "source": "stackexchange"}, TWO, "lists of texts"),
    "Capybara": (
        {
            "source": "s",
            "conversation": [{"input": ASK, "output": ANSWER}, {"input": MORE, "output": END}],
        },
        TWO,
        "input/output turns",
    ),
    "COIG": (
        {"instruction": "", "conversations": [{"question": ASK, "answer": ANSWER}]},
        ONE,
        "question/answer turns",
    ),
    "Firefly conversations": (
        {
            "conversation_id": 1,
            "conversation": [
                {"human": ASK, "assistant": ANSWER},
                {"human": MORE, "assistant": END},
            ],
        },
        TWO,
        "human/assistant turns",
    ),
    "pairs in lists": (
        {"conversation": [[ASK, ANSWER], [MORE, END]]},
        TWO,
        "[question, answer] turns",
    ),
    "Dolly": (
        {"instruction": ASK, "context": "", "response": ANSWER, "category": "open_qa"},
        ONE,
        "Dolly",
    ),
    "MetaMathQA": (
        {"type": "GSM", "query": ASK, "original_question": "x", "response": ANSWER},
        ONE,
        "query/response",
    ),
    "prompt/completion": ({"prompt": ASK, "completion": ANSWER}, ONE, "prompt/completion"),
    "Open-Orca": (
        {"id": "niv.1", "system_prompt": "Be brief.", "question": ASK, "response": ANSWER},
        BRIEF,
        "question/response",
    ),
    "alpaca-gpt4-zh": (
        {"instruction": "壶有什么用？", "input": "", "output": "烧水。"},
        Example("壶有什么用？", "", "烧水。"),
        "Alpaca",
    ),
    "Firefly": ({"kind": "QA", "input": ASK, "target": ANSWER}, ONE, "input/target"),
    "FLAN": ({"inputs": ASK, "targets": ANSWER, "task": "t"}, ONE, "inputs/targets"),
    "Chinese keys": ({"指令": ASK, "输入": "", "输出": ANSWER}, ONE, "指令"),
    "Chinese roles": (
        {"对话": said(*BOTH, role="角色", content="内容", user="用户", assistant="助手")},
        TWO,
        "角色/内容",
    ),
    "UltraFeedback": (
        {
            "prompt": ASK,
            "prompt_id": "p",
            "chosen": said(ASK, ANSWER),
            "rejected": said(ASK, END),
            "messages": said(ASK, ANSWER),
            "score_chosen": 8.5,
            "score_rejected": 2.0,
        },
        ONE,
        "preference pairs",
    ),
    "Orca DPO": (
        {"system": "Be brief.", "question": ASK, "chosen": ANSWER, "rejected": END},
        BRIEF,
        "preference pairs",
    ),
    "TRL preference": (
        {"prompt": said(ASK), "chosen": said(ASK, ANSWER)[1:], "rejected": said(ASK, END)[1:]},
        ONE,
        "preference pairs",
    ),
    "HH-RLHF": (
        {
            "chosen": "\n\nHuman: {}\n\nAssistant: {}\n\nHuman: {}\n\nAssistant: {}".format(*BOTH),
            "rejected": f"\n\nHuman: {ASK}\n\nAssistant: {END}",
        },
        TWO,
        "preference pairs",
    ),
    "LLaMA-Factory pairs": (
        {
            "conversations": shared(*BOTH[:3]),
            "chosen": {"from": "gpt", "value": END},
            "rejected": {"from": "gpt", "value": ANSWER},
        },
        TWO,
        "preference pairs",
    ),
    "LLaMA-Factory history": (
        {"instruction": MORE, "input": "", "output": END, "system": "", "history": [[ASK, ANSWER]]},
        TWO,
        "Alpaca",
    ),
    "seed task": (
        {
            "id": "seed_task_0",
            "name": "n",
            "instruction": ASK,
            "instances": [{"input": "", "output": ANSWER}],
            "is_classification": False,
        },
        ONE,
        "Self-Instruct seed tasks",
    ),
}


def save(path, rows):
    """Writes rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def refusal(path):
    with pytest.raises(DataError) as caught:
        load_records(path)
    return str(caught.value)


@pytest.mark.parametrize("name", SETS)
def test_a_row_of_a_public_data_set(tmp_path, capsys, name):
    """The loader reads it; the command writes what reads as the same record, and names it."""
    row, wanted, layout = SETS[name]
    path = save(tmp_path / "d.jsonl", [row, row])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert load_records(path) == [wanted] * 2
    warned = [str(one.message) for one in caught]
    assert any("`rejected` of 2 rows is left out" in one for one in warned) == ("rejected" in row)
    assert main(["convert", str(path), "--out", str(tmp_path / "o.json")]) == 0
    out = capsys.readouterr().out
    assert layout in out.split("\n")[0] and "2 rows, all answered" in out
    assert load_records(tmp_path / "o.json") == [wanted] * 2
    text = (tmp_path / "o.json").read_text()
    assert "rejected" not in json.loads(text)[0] and ("rejected` (2 rows)" in out) == (
        "rejected" in row
    )


OASST = [
    ("1", None, "prompter", ASK, None),
    ("2", "1", "assistant", "A worse answer.", 1),
    ("3", "1", "assistant", ANSWER, 0),
    ("4", "3", "prompter", MORE, None),
    ("5", "4", "assistant", END, 0),
    ("6", "5", "prompter", "Never answered.", None),
    ("7", None, "prompter", ASK, None),
    ("8", "7", "assistant", ANSWER, None),
]


def messages_of(tree):
    names = ("message_id", "parent_id", "role", "text", "rank")
    return [{**dict(zip(names, row, strict=True)), "lang": "en"} for row in tree]


def test_trees_follow_the_best_rank_to_the_last_answer(tmp_path, capsys):
    path = save(tmp_path / "d.jsonl", messages_of(OASST))
    with pytest.warns(UserWarning, match="2 of them in other branches left out"):
        assert load_records(path) == [TWO, ONE]
    assert main(["convert", str(path), "--out", str(tmp_path / "o.jsonl")]) == 0
    assert "trees of 8 messages, 2 of them in other branches left out" in capsys.readouterr().out
    assert load_records(tmp_path / "o.jsonl") == [TWO, ONE]
    text = refusal(save(path, messages_of([*OASST, ("9", "99", "assistant", "x", 0)])))
    assert "row 9 has a `parent_id` that no row" in text
    nested = {"message_tree_id": "1", "prompt": {"text": ASK, "role": "prompter", "replies": []}}
    assert "tree with its replies inside" in refusal(save(path, [nested]))
    save(path, [{"instruction": ASK, "output": ANSWER}, *messages_of(OASST)])
    assert "row 2 (line 2) is a message of a tree" in refusal(path)


GOOD = {"conversations": shared(*BOTH)}
BAD = [
    ({"conversations": shared(*BOTH)[1:]}, "message 1 that is the assistant's, not the user's"),
    ({"conversations": shared(ASK) * 2}, "message 2 that is the user's.*two turns of one role"),
    ({"conversations": shared(ASK, " ")}, "message 2 that is empty"),
    (
        {"conversations": [*shared(ASK), {"from": "system", "value": "x"}]},
        "system message comes first",
    ),
    (
        {"conversations": shared(ASK, "f()", assistant="function_call")},
        "role function_call, and calls of tools",
    ),
    (
        {"conversations": [*shared(*BOTH[:2]), {"from": "observation", "value": "3"}]},
        "role observation, and calls",
    ),
    ({"conversations": [*shared(ASK), {"from": "alien", "value": "x"}]}, "role alien; roles are"),
    ({"conversations": [*shared(ASK), {"value": "x"}]}, "message 2 that has no `from`"),
    ({"conversations": [*shared(ASK), {"from": "gpt", "text": "x"}]}, "`value` that is null"),
    ({"conversations": [*shared(ASK), "It boils."]}, "message 2 that is text, not an object"),
    (
        {"conversations": [*shared(ASK), {"from": "gpt", "value": ANSWER, "train": False}]},
        "`train` False",
    ),
    (
        {"conversations": [*shared(ASK), {"from": "gpt", "value": ANSWER, "weight": 0}]},
        "`weight` 0",
    ),
    (
        {"conversations": shared(ASK, ANSWER), "tools": '[{"name": "f"}]'},
        "`tools`, which would be silently unused",
    ),
    ({"conversations": shared(ASK, ANSWER), "images": ["a.png"]}, "`images`, which would be"),
    ({"conversations": [{"a": 1}]}, "neither role nor answer"),
    ({"conversations": [3]}, "first message is the number 3"),
    ({"conversations": shared(ASK)}, "last message without an answer"),
    ({"conversations": []}, "no `instruction`"),
]


@pytest.mark.parametrize("number", range(len(BAD)))
def test_a_bad_conversation_is_named_by_file_row_and_line(tmp_path, capsys, number):
    """By the loader and the command alike; the command leaves nothing behind."""
    row, fault = BAD[number]
    path = tmp_path / "d.jsonl"
    lines = [json.dumps(GOOD), "", json.dumps(row), json.dumps(GOOD)]
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(DataError, match=f"d.jsonl: row 2 .line 3. has .*{fault}"):
        load_records(path)
    out = tmp_path / "o.jsonl"
    out.write_text("old")
    words = ["convert", str(path), "--out", str(out)]
    is_unanswered = "without an answer" in fault
    assert main(words) == (0 if is_unanswered else 1)
    said_so = capsys.readouterr()
    if not is_unanswered:
        assert "row 2 (line 3) has" in said_so.err and "--drop-bad" in said_so.err
        assert out.read_text() == "old"
        assert sorted(p.name for p in tmp_path.iterdir()) == ["d.jsonl", "o.jsonl"]
    assert main([*words, "--drop-bad", "--drop-unanswered"]) == 0
    assert load_records(out) == [TWO, TWO]
    label = "unanswered" if is_unanswered else "bad"
    assert "row 2 (line 3)" in (tmp_path / f"o.{label}.txt").read_text()
    assert main(["convert", str(save(path, [GOOD])), "--out", str(out)]) == 0
    assert not (tmp_path / f"o.{label}.txt").exists()


MIXED = [
    (GOOD, {"messages": said(*BOTH)}, "ShareGPT", "messages"),
    (GOOD, {"instruction": ASK, "output": ANSWER}, "ShareGPT", "Alpaca"),
    (
        {"instruction": ASK, "output": ANSWER},
        {"question": ASK, "answer": ANSWER},
        "Alpaca",
        "question/answer",
    ),
    (
        {"instruction": ASK, "output": ANSWER},
        {"instruction": ASK, "response": ANSWER},
        "Alpaca",
        "response -> output",
    ),
    (
        {"conversations": shared(ASK, ANSWER)},
        {"conversations": said(ASK, ANSWER)},
        "ShareGPT",
        "messages",
    ),
    (
        {"prompt": ASK, "chosen": ANSWER},
        {"prompt": ASK, "completion": ANSWER},
        "preference",
        "completion",
    ),
]


@pytest.mark.parametrize("number", range(len(MIXED)))
def test_two_layouts_in_one_file_are_refused_by_row(tmp_path, capsys, number):
    first, second, *names = MIXED[number]
    path = save(tmp_path / "d.jsonl", [first, first, second])
    text = refusal(path)
    assert "row 1 (line 1) is in the layout" in text and "row 3 (line 3) in" in text
    assert all(name in text for name in names)
    assert main(["convert", str(path), "--out", str(tmp_path / "o.json")]) == 1
    assert "row 3 (line 3) in" in capsys.readouterr().err and not (tmp_path / "o.json").exists()


@pytest.mark.parametrize(
    ("row", "drop"),
    [
        ({"instruction": "Sum up.", "output": "No.", "messages": said(ASK, ANSWER)}, "messages"),
        (
            {"instruction": "Talk.", "conversations": [{"question": ASK, "answer": ANSWER}]},
            "instruction",
        ),
        ({"problem": ASK, "solution": "Other.", "messages": said(ASK, ANSWER)}, "solution"),
        ({"system": "Be long.", "messages": [SYSTEM, *said(ASK, ANSWER)]}, "system"),
    ],
)
def test_what_contradicts_a_conversation_is_refused(tmp_path, row, drop):
    """Two questions in one row are not guessed; the option decides."""
    path = save(tmp_path / "d.jsonl", [row])
    assert f"--drop {drop}" in refusal(path)
    assert main(["convert", str(path), "--out", str(tmp_path / "o.jsonl"), "--drop", drop]) == 0
    assert load_records(tmp_path / "o.jsonl")


def test_a_column_can_be_given_for_the_conversation(tmp_path):
    path = save(tmp_path / "d.jsonl", [{"talk": shared(*BOTH), "prompt": "x"}])
    words = ["convert", str(path), "--out", str(tmp_path / "o.jsonl"), "--map", "messages=talk"]
    assert main([*words, "--drop", "prompt"]) == 0
    assert load_records(tmp_path / "o.jsonl") == [TWO]


def test_examples_of_a_conversation(tmp_path):
    path = save(tmp_path / "d.jsonl", [GOOD, {"conversations": shared(*BOTH[:2])}])
    with pytest.raises(DataError, match=r"row 1 .line 1. is a conversation .4 turns"):
        load_examples(path)
    second = Example(MORE, "", END)
    assert load_examples(path, turns="first") == [ONE, ONE]
    assert load_examples(path, turns="last") == [second, ONE]
    assert load_examples(path, turns="each") == [ONE, second, ONE]
    path = save(tmp_path / "d.jsonl", [{"conversations": shared(*BOTH[:3])}])
    assert load_examples(path, "optional", turns="last") == [Example(MORE)]
