"""The Chinese rows that the course ships: complete, apart from each other, checks that hold."""

import json

import pytest

from alpaca_lib.course import runner
from alpaca_lib.course.notebooks import LESSONS, REPO
from alpaca_lib.dataset import find_faults, nearest
from alpaca_lib.evaluation.constraint_checks import CHECKS, detect_language, meets
from alpaca_lib.records import Example, load_examples

TRAINING, EVALUATION = "chinese_72.json", "chinese_eval_16.json"
COUNTED = {"chars_max": lambda n, limit: n <= limit, "chars_min": lambda n, limit: n >= limit}


@pytest.fixture(params=[TRAINING, EVALUATION])
def rows(request):
    return load_examples(REPO / "data" / request.param)


def characters(text: str) -> int:
    return sum(not one.isspace() for one in text)


def test_the_files_have_the_rows_that_their_names_state(rows, request):
    stated = int(request.node.callspec.params["rows"].split("_")[-1].split(".")[0])
    assert len(rows) == stated == len({row.instruction for row in rows})
    assert all(row.output.strip() for row in rows)


def test_instructions_are_chinese(rows):
    assert [row.instruction for row in rows if detect_language(row.instruction) != "zh"] == []


def test_no_instruction_of_one_file_is_near_one_of_the_other():
    training, held_out = (
        [row.instruction for row in load_examples(REPO / "data" / name)]
        for name in (TRAINING, EVALUATION)
    )
    found = nearest(held_out, training, "unicode")
    assert max(one.score for one in found) <= 0.7


def test_no_fault_is_an_error(rows):
    assert [fault for fault in find_faults(rows) if fault.severity == "error"] == []


def test_every_reference_meets_its_check_and_an_empty_answer_none():
    checked = 0
    for row in load_examples(REPO / "data" / EVALUATION):
        for name, value in row.extra.get("check", {}).items():
            checked += 1
            if name in COUNTED:
                assert COUNTED[name](characters(row.output), value), row.instruction
            if name in CHECKS:
                assert meets({name: value}, row.output), row.instruction
                assert not meets({name: value}, "")
            else:
                assert name in COUNTED, name
    assert checked >= 12


def test_the_profile_uses_them_wherever_a_notebook_reads_rows():
    found = runner.resolve_parameters(list(LESSONS), "chinese", [])
    for lesson in LESSONS[1:]:
        assert found[lesson]["eval_path"] == f"data/{EVALUATION}"
    for lesson in LESSONS[1:4]:
        assert found[lesson]["data_path"] == f"data/{TRAINING}"
    for lesson in LESSONS[2:]:
        assert found[lesson]["template"] == "chinese"
    paths = [v for values in found.values() for v in values.values() if "data/" in str(v)]
    assert all((REPO / path).is_file() for path in paths)


def test_the_card_describes_them():
    card = (REPO / "data" / "README.md").read_text(encoding="utf-8")
    for name in (TRAINING, EVALUATION):
        assert f"`{name}`" in card
    rows = json.loads((REPO / "data" / EVALUATION).read_text(encoding="utf-8"))
    assert f"{sum('check' in row for row in rows)} have a condition" in card


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (Example("說一下今天天氣。", "", "作為一個AI語言模型，我無法獲取天氣。"), "refusal"),
        (Example("說一下今天天氣。", "", "抱歉，我無法回答。"), "refusal"),
        (Example("說一下。", "", "無"), "empty output"),
        (
            Example("說一下。", "", "一。\n5. 指令：說顏色。\n5. 輸入：\n無\n5. 輸出：\n紅。"),
            "merged tasks",
        ),
        (Example("说一下。", "", "一。\n\n指令：说颜色。\n输入：无\n输出：红。"), "merged tasks"),
        (Example("Say it.", "", "One.\n\nInstruction: Two.\nInput: 2\nOutput: 2"), "merged tasks"),
        (Example("修改以下句子", "", "好。"), "input missing"),
        (Example("說一下。", "", "蘋果、梨與"), "cut off"),
    ],
)
def test_traditional_characters_and_headings_without_numbers(row, kind):
    assert kind in {fault.kind for fault in find_faults([row])}
