"""The Chinese rows that the course ships: complete, apart from each other, checks that hold."""

import json
import re
from pathlib import Path

import pytest

from alpaca_lib.course import runner
from alpaca_lib.course.notebooks import LESSONS, REPO
from alpaca_lib.dataset import find_faults, load_proofs, nearest, prove
from alpaca_lib.dataset.check_results import STYLE, format_results
from alpaca_lib.dataset.checks import check
from alpaca_lib.dataset.languages import language_of
from alpaca_lib.dataset.statistics import markdown_table
from alpaca_lib.evaluation.constraint_checks import meets
from alpaca_lib.records import Example, load_examples
from alpaca_lib.training import Settings, load_data

DATA = REPO / "data"
TRAINING, EVALUATION = "chinese_120.json", "chinese_eval_20.json"
SEEDS = "seed_tasks_zh.jsonl"
MEDICAL = {"健康", "就医", "用药", "急救"}
SETS = {name: load_examples(DATA / name) for name in (TRAINING, EVALUATION, SEEDS)}


@pytest.fixture(params=[TRAINING, EVALUATION])
def name(request) -> str:
    return request.param


@pytest.fixture
def rows(name) -> list[Example]:
    return SETS[name]


def characters(text: str) -> int:
    return sum(not one.isspace() for one in text)


def test_the_files_have_the_rows_that_their_names_state(rows, name):
    stated = int(Path(name).stem.split("_")[-1])
    assert len(rows) == stated == len({row.instruction for row in rows})
    assert all(row.output.strip() for row in rows)


def test_every_row_is_chinese(rows):
    assert [row.instruction for row in rows if language_of(row) != "zh"] == []


@pytest.mark.parametrize(
    ("one", "other"), [(TRAINING, EVALUATION), (TRAINING, SEEDS), (EVALUATION, SEEDS)]
)
@pytest.mark.parametrize("field", ["instruction", "input", "output"])
def test_no_text_is_near_one_of_another_file(one, other, field):
    """Held-out tasks and seeds: no instruction, input or answer above ROUGE-L 0.5."""
    mine, theirs = (
        # Of a few characters, as "12" or "好评", any two are alike.
        [text for row in SETS[name] if len(text := getattr(row, field)) > 8]
        for name in (one, other)
    )
    assert max(found.score for found in nearest(mine, theirs, "unicode")) < 0.5


def test_the_check_of_the_data_passes(name):
    results = check(
        SETS[name],
        apart={other: rows for other, rows in SETS.items() if other != name},
        proofs=load_proofs(DATA / "proofs.jsonl"),
        mode="unicode",
    )
    failed = [one for one in results if one.passed is False]
    wrong = [one for one in failed if one.kind != STYLE]
    assert wrong == [], format_results(wrong)
    # A headline has no full stop, and a held-out answer that a program decides is short.
    assert {one.name for one in failed} <= {
        "outputs without a regular end",
        "words per output, mean",
    }, format_results(failed)


def test_nothing_is_taken_from_a_translated_alpaca(stanford_data, rows):
    theirs = stanford_data / "alpaca_zh_demo.json"
    if not theirs.is_file():
        pytest.skip("no alpaca_zh_demo.json")
    results = check(rows, foreign={"theirs": load_examples(theirs)}, mode="unicode")
    compared = [one for one in results if one.name.endswith("in theirs")]
    assert len(compared) == 2 and all(one.passed for one in compared), format_results(compared)


def test_punctuation_is_full_width_and_regular(rows):
    """In prose: code, JSON and CSV have their own."""
    half = re.compile(
        r"[\u4e00-\u9fff][,.!?;:()]|[,!?;:()][\u4e00-\u9fff]|[\u4e00-\u9fff] +[\u4e00-\u9fff]"
    )
    for row in rows:
        if "CSV" in row.instruction:
            continue
        for text in (row.instruction, row.input, row.output):
            prose = re.sub(r"```.*?```|\{.*?\}|print\(.*\)", "", text, flags=re.DOTALL)
            assert not half.search(prose), (row.instruction, half.search(prose))
            assert all(prose.count(a) == prose.count(b) for a, b in ("“”", "（）", "《》")), prose
            assert "##" not in text
        assert re.search("[。？！]$", row.instruction), row.instruction


@pytest.mark.parametrize(("file", "least"), [(TRAINING, 15), (EVALUATION, 5)])
def test_medicine_for_lay_readers_names_what_it_was_compared_with(file, least):
    medical = [row for row in SETS[file] if row.extra["category"] in MEDICAL]
    assert len(medical) >= least
    for row in SETS[file]:
        sources = row.extra.get("sources", [])
        assert (len(set(sources)) >= 2) == (row.extra["category"] in MEDICAL), row.instruction
        assert all(isinstance(one, str) and len(one) > 6 for one in sources)


def test_advice_that_can_wait_no_longer_names_the_ambulance():
    """Each first-aid row says when to call 120 or to go to a hospital."""
    for row in (*SETS[TRAINING], *SETS[EVALUATION]):
        if row.extra["category"] == "急救":
            assert re.search("120|医院|门诊", row.output), row.instruction


def test_no_fault_is_an_error(rows):
    assert [fault for fault in find_faults(rows) if fault.severity == "error"] == []


def test_computed_answers_have_proofs_that_hold(name):
    proofs = load_proofs(DATA / "proofs.jsonl")
    proved = [row for row in SETS[name] if row.instruction in proofs]
    assert [(row, why) for row in proved if (why := prove(row, proofs[row.instruction]))] == []
    computed = [row for row in SETS[name] if row.extra["category"] == "数学"]
    assert computed and all(row in proved for row in computed)
    assert len(proved) >= {TRAINING: 35, EVALUATION: 6}[name]


def test_every_reference_meets_its_check_and_an_empty_answer_none():
    checked = [row for row in SETS[EVALUATION] if "check" in row.extra]
    for row in checked:
        assert meets(row.extra["check"], row.output), row.instruction
        for one, value in row.extra["check"].items():
            assert not meets({one: value}, ""), row.instruction
            if one.startswith("chars_"):  # counted again, without the library
                assert (characters(row.output) <= value) == (one == "chars_max")
    assert len(checked) >= 18


def test_an_instruction_states_the_condition_that_is_checked():
    digits = dict(zip("一二两三四五六七八九", (1, 2, 2, 3, 4, 5, 6, 7, 8, 9), strict=True))
    for row in SETS[EVALUATION]:
        said = re.sub("[一二两三四五六七八九]", lambda f: str(digits[f[0]]), row.instruction)
        for one, value in row.extra.get("check", {}).items():
            if one in ("chars_max", "chars_min"):
                assert f"{value}" in said and "（含标点）" in said, row.instruction
            if one in ("lines", "bullets"):
                assert re.search(f"{value}[行条]|1行", said), row.instruction
            if one == "json":
                assert all(key in said for key in value), row.instruction
            if one == "exact" and not value.replace(".", "").isdigit():
                assert value in said, row.instruction


def test_no_row_is_cut_and_the_small_tokenizer_knows_every_character(name, rows, tokenizer):
    settings = Settings(data_path=str(DATA / name), output_dir="out", template="chinese")
    assert settings.max_length == 512
    loaded = load_data(settings, tokenizer)
    assert (loaded.cut, loaded.dropped, len(loaded.rows)) == (0, 0, len(rows))
    texts = [text for row in rows for text in (row.instruction, row.input, row.output)]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert [tokenizer.decode(one) for one in ids] == texts
    per_character = sum(map(len, ids)) / sum(map(characters, texts))
    assert 1.5 < per_character < 1.75  # data/README.md states it


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
    card = (DATA / "README.md").read_text(encoding="utf-8")
    for one in (TRAINING, EVALUATION):
        assert f"`{one}`" in card
    rows = json.loads((DATA / EVALUATION).read_text(encoding="utf-8"))
    assert f"{sum('check' in row for row in rows)} have a condition" in card
    medical = [
        sum(row.extra["category"] in MEDICAL for row in SETS[one]) for one in SETS if "chin" in one
    ]
    assert f"{medical[0]} of the examples and {medical[1]} of the held-out tasks" in card
    sets = {one: SETS[one] for one in (TRAINING, EVALUATION)}
    assert markdown_table(sets) in card
    assert "Attribution 4.0 International (CC BY 4.0)" in card


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
