"""The course's own data: what the data card says of it is true."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace

import pytest

from alpaca_lib.dataset.check_results import format_results
from alpaca_lib.dataset.checks import check
from alpaca_lib.dataset.faults import find_faults
from alpaca_lib.dataset.proofs import load_proofs, prove
from alpaca_lib.dataset.statistics import markdown_table
from alpaca_lib.evaluation.constraint_checks import meets
from alpaca_lib.generation.filtering import sample_replies
from alpaca_lib.generation.messages import parse_completion
from alpaca_lib.generation.parsing import parse_reply
from alpaca_lib.generation.prompting import Prompter
from alpaca_lib.generation.replay_teacher import load_replies
from alpaca_lib.generation.self_instruct import Settings, generate
from alpaca_lib.generation.teacher import open_teacher
from alpaca_lib.prompts import load_header
from alpaca_lib.records import load_examples, save_examples

SETS = ("alpaca_520.json", "eval_60.json", "seed_tasks.jsonl", "seed_tasks_zh.jsonl")
CHINESE = ("chinese_120.json", "chinese_eval_20.json")  # see test_chinese_data.py


@pytest.fixture(scope="module")
def data(repository):
    """The folder of the data."""
    return repository / "data"


@pytest.fixture(scope="module")
def sets(data):
    """Every set, read."""
    return {name: load_examples(data / name) for name in SETS}


@pytest.fixture(scope="module")
def proofs(data):
    """The proofs, read."""
    return load_proofs(data / "proofs.jsonl")


@pytest.fixture(scope="module")
def replayed(data, sets, tmp_path_factory):
    """What the pipeline makes of the replies."""
    folder = tmp_path_factory.mktemp("replayed")
    header = load_header(data / "prompts" / "generate_en.txt")
    with open_teacher("replay") as teacher:
        return generate(
            teacher, sets["seed_tasks.jsonl"], header, Settings(tasks_wanted=520), folder
        )


def test_the_replies_give_the_set(replayed, sets, tmp_path):
    """The pipeline keeps alpaca_520 of the replies, byte for byte; category is added."""
    assert {frozenset(e.extra) for e in sets["alpaca_520.json"]} == {frozenset({"category"})}
    kept = save_examples([replace(e, extra={}) for e in replayed.kept], tmp_path / "kept.json")
    shipped = [replace(e, extra={}) for e in sets["alpaca_520.json"]]
    assert kept.read_bytes() == save_examples(shipped, tmp_path / "shipped.json").read_bytes()


def test_an_estimate_needs_no_run(replayed, sets, data):
    """sample_replies() finds in the replies what the pipeline found."""
    replies = [parse_completion(reply) for reply in load_replies(data / "teacher_replies.jsonl")]
    samples = sample_replies(replies, sets["seed_tasks.jsonl"])
    assert samples[: len(replayed.samples)] == replayed.samples
    assert sum(sample.kept for sample in samples) == 520


def test_the_replies_hold_what_must_be_rejected(replayed):
    """Each of the filter's reasons occurs, and about a sixth of the tasks are dropped."""
    reasons = Counter(re.sub(r' \(".*', "", reason) for reason in replayed.reasons().elements())
    for reason in (
        "ROUGE-L above 0.7 with a known instruction",
        "not one Instruction, Input and Output with one number",
        "instruction too short (3 words or fewer)",
        "instruction too long (over 150 words)",
        "the teacher refused",
        "cut off by the length limit",
        "needs more than text",
        'starts with "Write a program"',
        "starts with a symbol",
        "empty output",
    ):
        assert reasons[reason] >= 1, reason
    assert len(replayed.rejected) / (520 + len(replayed.rejected)) > 0.1


def test_the_replies_are_as_the_api_sends_them(data, sets, tokenizer):
    """Shape, token counts of this course's tokenizer, and the limit where one is cut off."""
    header, settings = load_header(data / "prompts" / "generate_en.txt"), Settings()
    replies = load_replies(data / "teacher_replies.jsonl")
    assert len(replies) >= 32
    ends = Counter()
    for number, reply in enumerate(replies):
        (choice,), usage = reply["choices"], reply["usage"]
        text = choice["message"]["content"]
        prompt = Prompter(sets["seed_tasks.jsonl"], header, settings).prompt(number).text
        assert usage["prompt_tokens"] == len(tokenizer(prompt)["input_ids"])
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        counted = len(tokenizer(text)["input_ids"])
        if choice["finish_reason"] == "length":
            assert usage["completion_tokens"] == settings.max_tokens
            assert abs(counted - settings.max_tokens) <= 2  # a character may be cut in two
        else:
            assert usage["completion_tokens"] == counted <= settings.max_tokens
        ends[choice["finish_reason"]] += 1
        parsed = parse_reply(text, choice["finish_reason"], 4)
        assert 14 <= len(parsed.tasks) + len(parsed.rejected) <= 24
    assert set(ends) == {"stop", "length"}


def test_stops_would_scar_the_set(data):
    """With Stanford's stop sequences the same replies lose every "20.", as Alpaca did."""
    texts = [
        reply["choices"][0]["message"]["content"]
        for reply in load_replies(data / "teacher_replies.jsonl")
    ]
    assert sum("20." in text for text in texts) >= 8


def test_alpaca_520_is_good(sets, proofs):
    """Every requirement of the check is met."""
    lines = check(
        sets["alpaca_520.json"],
        apart={name: sets[name] for name in ("seed_tasks.jsonl", "eval_60.json")},
        proofs=proofs,
    )
    failed = [line for line in lines if line.passed is False]
    assert not failed, "\n" + format_results(failed)
    assert len(sets["alpaca_520.json"]) == 520


@pytest.mark.parametrize("name", SETS)
def test_no_fault_is_found(name, sets):
    """No detector fires on any set."""
    assert find_faults(sets[name]) == []


@pytest.mark.parametrize("name", SETS)
def test_proofs_hold(name, sets, proofs):
    """Every answer that has a proof is what the proof computes."""
    mine = [e for e in sets[name] if e.instruction in proofs]
    assert [(e.instruction, why) for e in mine if (why := prove(e, proofs[e.instruction]))] == []
    assert len(mine) >= 20


def test_proofs_belong_to_rows_and_can_fail(data, sets, proofs):
    """No proof is left over, and each one fails for some wrong answer."""
    chinese = [load_examples(data / name) for name in CHINESE]
    rows = {e.instruction: e for examples in (*sets.values(), *chinese) for e in examples}
    assert set(proofs) <= set(rows)
    blind = []
    for instruction, proof in proofs.items():
        right = rows[instruction].output
        noise = f'{right}\n{instruction}\n“我” "No such words stand there" ' + "77 goose " * 99
        wrong = ("", "Yes.", right[: len(right) // 2], noise)
        if not any(prove(replace(rows[instruction], output=text), proof) for text in wrong):
            blind.append(instruction)
    assert blind == []


@pytest.mark.parametrize(
    ("category", "part"), [("arithmetic", 0.95), ("logic", 0.9), ("data", 0.95), ("code", 0.6)]
)
def test_what_can_be_computed_has_a_proof(category, part, sets, proofs):
    """Nearly every row of the categories that compute has one."""
    rows = [e for e in sets["alpaca_520.json"] if e.extra["category"] == category]
    assert sum(e.instruction in proofs for e in rows) >= part * len(rows)


@pytest.mark.parametrize("name", ["seed_tasks.jsonl", "seed_tasks_zh.jsonl"])
def test_seeds(name, data):
    """Self-Instruct's schema, its number of tasks, and about its shares of kinds."""
    lines = (data / name).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    for number, row in enumerate(rows):
        assert list(row) == ["id", "name", "instruction", "instances", "is_classification"]
        assert row["id"] == f"seed_task_{number}" and len(row["instances"]) == 1
        assert set(row["instances"][0]) == {"input", "output"} and row["instances"][0]["output"]
    assert len(rows) == len({row["name"] for row in rows}) == 175
    assert 45 <= sum(not row["instances"][0]["input"] for row in rows) <= 55
    assert 22 <= sum(row["is_classification"] for row in rows) <= 28


def test_chinese_seeds_are_chinese(sets):
    """Each instruction has at least six Chinese characters, most of its text."""
    for example in sets["seed_tasks_zh.jsonl"]:
        chinese = sum("\u4e00" <= c <= "\u9fff" for c in example.instruction)
        latin = sum(c.isascii() and c.isalpha() for c in example.instruction)
        assert chinese >= 6 and chinese > latin, example.instruction


def test_eval_60(sets):
    """Sixty tasks; thirty have a check, which their reference meets and an odd answer fails."""
    rows = sets["eval_60.json"]
    checked = [e for e in rows if "check" in e.extra]
    assert len(rows) == 60 and len(checked) == 30
    assert [e.instruction for e in checked if not meets(e.extra["check"], e.output)] == []
    odd = "Well: a good, bad and very odd answer.\n" * 30
    assert sum(meets(e.extra["check"], odd) for e in checked) <= 4


def test_safety_rows(sets):
    """About fifteen rows show how to decline; none begins as a machine does."""
    rows = [e for e in sets["alpaca_520.json"] if e.extra["category"] == "safety"]
    assert 10 <= len(rows) <= 20
    for example in rows:
        assert not re.match(r"(I'm sorry|I am sorry|Sorry|As an|I cannot|I can't)", example.output)
        assert 25 <= len(example.output.split()) <= 100


def test_the_card_says_what_is_there(repository, data, sets, proofs):
    """The statistics in the card are those that the command prints, and every file is named."""
    card = (data / "README.md").read_text(encoding="utf-8")
    assert markdown_table(sets) in card
    assert f"{len(proofs)} short Python programs" in card
    replies = len(load_replies(data / "teacher_replies.jsonl"))
    assert f"{replies} replies" in card
    for path in (path for path in data.iterdir() if path.name != "README.md"):
        assert f"`{path.name}{'/' if path.is_dir() else ''}`" in card, path.name


@pytest.mark.parametrize("theirs", ["alpaca_data.json", "seed_tasks.jsonl"])
@pytest.mark.parametrize("mine", ["alpaca_520.json", "eval_60.json", "seed_tasks.jsonl"])
def test_nothing_is_taken_from_other_sets(mine, theirs, stanford_data, sets):
    """Far from each row of Stanford's files, and no sentence shared with them."""
    lines = check(sets[mine], foreign={"theirs": load_examples(stanford_data / theirs)})
    ours = [line for line in lines if line.name.endswith("in theirs")]
    assert len(ours) == 2 and all(line.passed for line in ours), format_results(ours)


def test_more_varied_than_alpaca(stanford_data, sets):
    """On all four measures better than each of five random samples of 520 rows."""
    theirs = {"alpaca": load_examples(stanford_data / "alpaca_data.json")}
    lines = check(sets["alpaca_520.json"], foreign=theirs)
    beside = [line for line in lines if "rows of alpaca" in line.required]
    assert len(beside) == 4 and all(line.passed for line in beside), format_results(beside)
