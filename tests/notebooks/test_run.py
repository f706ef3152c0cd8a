"""Lessons with other parameters than their own, and what they recorded.

With their own parameters nbval runs all five.
"""

import json
from pathlib import Path

import pytest

from alpaca_lib.course import runner
from alpaca_lib.course.notebooks import LESSONS
from alpaca_lib.records import load_examples

RUN = LESSONS[:2]  # the two that follow each other without training


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """{lesson: (folder, results)} of one run of the quick profile."""
    folder = tmp_path_factory.mktemp("course")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("ALPACA_RUNS", "ALPACA_RUN"):  # main() sets them; the context puts them back
            patch.setenv(name, "")
        words = [word for name in RUN for word in ("--only", name[:2])]
        words += ["--profile", "quick", "--out", str(folder), "-p", "seed=5"]
        assert runner.main(words) == 0
    found = {}
    for name in RUN:
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
    given = results[LESSONS[0]][1]["parameters"]
    assert given["seed"] == 5 and given["tasks_wanted"] == 4


@pytest.mark.slow
def test_02_reads_what_01_wrote(results):
    assert values(results, 2)["generated_rows"] == values(results, 1)["kept"]
    assert values(results, 2)["rouge_pairs_that_differ"] == 0
