"""Lesson 04's table and figure of LoRA's ablation, from the measurements of the repository."""

import json

import matplotlib
import pytest

from alpaca_lib.course import ablation
from alpaca_lib.course.notebooks import find_data

matplotlib.use("Agg")


@pytest.fixture
def study():
    return ablation.read_ablation(find_data("data/ablation.json"))


def test_every_line_of_the_file_is_a_row_with_its_own_numbers(study):
    head, rows = ablation.ablation_table(study)
    stored = json.loads(find_data("data/ablation.json").read_text(encoding="utf-8"))["lines"]
    assert len(rows) == len(stored) and {len(row) for row in rows} == {len(head)}
    shown = dict(zip(head, rows[0], strict=True))
    assert shown["after"] == f"{stored[0]['losses']['held_out_after']:.3f}"
    assert shown["peak GB"] == f"{stored[0]['speed']['peak_bytes'] / 1e9:.1f}"
    assert {row[2] for row in rows} == {"", "rsLoRA", "DoRA", "int8", "nf4"}


def test_the_figure_has_one_line_per_choice_of_matrices_without_variants(study):
    _, axes = ablation.ablation_figure(study)
    assert [line.get_label() for line in axes.lines] == ["q_proj,v_proj", "all-linear"]
    assert {len(line.get_xdata()) for line in axes.lines} == {3}
    assert [text.get_text() for text in axes.texts] == ["r = 2", "r = 8", "r = 32"] * 2


def test_the_sentence_says_what_was_measured(study):
    text = ablation.describe_ablation(study)
    assert f"{study['settings']['max_steps']} steps" in text and study["date"] in text
