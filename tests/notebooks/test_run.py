"""The whole course with other parameters than its own, and what it recorded."""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from alpaca_lib.course import runner
from alpaca_lib.course.notebooks import LESSONS
from alpaca_lib.records import load_examples


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """{lesson: (folder, results)} of one run of the quick profile."""
    folder = tmp_path_factory.mktemp("course")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALPACA_RUNS", "")  # main() sets it; the context puts it back
        assert runner.main(["--profile", "quick", "--out", str(folder), "-p", "seed=5"]) == 0
    found = {}
    for name in LESSONS:
        one = folder / name / "001"
        found[name] = one, json.loads((one / "result.json").read_text(encoding="utf-8"))
    return found


def values(results, lesson: int) -> dict:
    return results[LESSONS[lesson - 1]][1]["results"]


def folder_of(results, lesson: int) -> Path:
    return results[LESSONS[lesson - 1]][0]


@pytest.mark.slow
def test_01_keeps_new_tasks(results):
    kept = load_examples(folder_of(results, 1) / "regen.json")
    assert len(kept) == values(results, 1)["kept"] >= 4
    assert all(max(e.extra["most_similar_instructions"].values()) <= 0.7 for e in kept)


@pytest.mark.slow
def test_02_reads_what_01_wrote(results):
    assert values(results, 2)["generated_rows"] == values(results, 1)["kept"]
    assert values(results, 2)["rouge_pairs_that_differ"] == 0


@pytest.mark.slow
def test_03_saves_a_model_that_transformers_loads(results):
    got = values(results, 3)
    assert got["processes"] == 2 and got["steps"] == 2
    assert got["held_out_after"] < got["held_out_before"] + 0.01
    assert got["held_out_reloaded"] == pytest.approx(got["held_out_after"], rel=0.02)
    model = AutoModelForCausalLM.from_pretrained(folder_of(results, 3) / "model")
    assert model.num_parameters() > 100e6


@pytest.mark.slow
def test_04_saves_an_adapter_with_something_in_it(results):
    got = values(results, 4)
    assert got["adapter_tensors"] == 420  # 30 layers, 7 linear ones in each, A and B
    assert got["adapter_bytes"] > got["trained_parameters"] * 4
    assert results[LESSONS[3]][1]["parameters"]["seed"] == 5


@pytest.mark.slow
def test_05_compares_all_three(results):
    got = values(results, 5)
    assert {"base_loss", "full_loss", "lora_loss"} <= set(got)
    assert got["base_loss"] != got["full_loss"] and got["base_loss"] != got["lora_loss"]
