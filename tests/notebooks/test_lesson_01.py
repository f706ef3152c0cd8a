"""The functions that notebook 01 writes out, against the library; and its cells run twice."""

from __future__ import annotations

import random
import re

import pytest

from alpaca_lib import dataset, generation, prompts
from alpaca_lib.course import notebooks, replays
from alpaca_lib.course.notebooks import REPO
from alpaca_lib.records import load_examples
from tests.notebooks.cells import code_cells, define

CELLS = code_cells("01_self_instruct")
SEEDS = load_examples(REPO / "data" / "seed_tasks.jsonl")


@pytest.mark.parametrize("count", [1, 3, 175])
def test_compose_writes_the_librarys_prompt(count):
    header = prompts.load_header(REPO / "data" / "prompts" / "generate_en.txt")
    shown = SEEDS[:count]
    wanted = prompts.generation_prompt(shown, header, count + 20)
    assert define(CELLS)["compose"](shown, header, 20) == wanted


def test_parse_finds_what_the_library_finds_in_a_reply_without_faults():
    text = prompts.generation_prompt(SEEDS, "x", 200).removesuffix("###\n176. Instruction:")
    text = text.removeprefix("x\n\n###\n1. Instruction:")
    found = define(CELLS, re=re)["parse"](text, 1)
    assert found == [(s.instruction, s.input.strip(), s.output.strip()) for s in SEEDS]
    parsed = generation.parse_reply(text, "stop", 1).tasks
    assert {t.instruction for t in parsed} <= {instruction for instruction, _, _ in found}


def test_lcs_gives_the_librarys_rouge():
    lcs, draw = define(CELLS)["lcs"], random.Random(0)
    for _ in range(200):
        a, b = (" ".join(draw.choices("abcdef", k=draw.randint(1, 12))) for _ in "ab")
        words_a, words_b = a.split(), b.split()
        score = 2 * lcs(words_a, words_b) / (len(words_a) + len(words_b))
        assert dataset.rouge_l(a, b) == pytest.approx(score)


def test_the_loop_in_ten_lines_keeps_the_courses_rows():
    loop = define(CELLS, dataset=dataset, generation=generation)["self_instruct"]
    kept = loop(replays.recorded_replies(), [seed.instruction for seed in SEEDS])
    shipped = load_examples(REPO / "data" / "alpaca_520.json")
    columns = [[(t.instruction, t.input, t.output) for t in rows] for rows in (kept, shipped)]
    assert columns[0] == columns[1]


def test_the_three_tasks_are_what_the_request_shows():
    shown = "".join(o.get("text", "") for c in CELLS if c.id == "gen-011" for o in c.outputs)
    for number, task in enumerate(notebooks.three_tasks(), start=1):
        assert f"{number}. Instruction: {task.instruction}\n" in shown


@pytest.mark.slow
def test_the_cells_run_twice_each(monkeypatch, tmp_path):
    monkeypatch.setenv("ALPACA_RUNS", str(tmp_path))
    monkeypatch.setenv("ALPACA_HEADLESS", "1")
    monkeypatch.setenv("ALPACA_RUN", "")
    names = {"__name__": "__main__"}
    for cell in CELLS:
        for _ in range(2):
            exec(compile(cell.source, cell.id, "exec"), names)
            if cell.id == "gen-005":  # as an injected cell would
                names |= {"teacher": "replay", "tasks_wanted": 4}
    folder = tmp_path / "01_self_instruct"
    assert [p.name for p in folder.iterdir()] == ["001"]
    kept = load_examples(folder / "001" / "regen.json")
    assert len(kept) == len(names["kept"]) >= 4
    assert names["lesson"].parameters["teacher"] == "replay"
    parameters = next(cell for cell in CELLS if cell.id == "gen-005")
    assert set(names["lesson"].parameters) == {
        line.partition(":")[0] for line in parameters.source.splitlines()
    }
