"""The minutes that a lesson is predicted to take: from the rate of matrix products, and said."""

from __future__ import annotations

import pytest

from alpaca_lib.course import machine, minutes, notebooks
from alpaca_lib.models import Placement

CPU = Placement("cpu", "float32", "a test")


def test_every_lesson_has_a_cost():
    assert list(minutes.COSTS) == list(notebooks.LESSONS)


def test_half_the_rate_takes_longer_where_there_are_matrix_products(monkeypatch):
    monkeypatch.setattr(minutes, "gemm_rate", lambda *_: 2e11)
    fast, rate = minutes.predict_minutes(CPU)
    monkeypatch.setattr(minutes, "gemm_rate", lambda *_: 1e11)
    slow, _ = minutes.predict_minutes(CPU)
    assert rate == 2e11
    for name, (seconds, tflop) in minutes.COSTS.items():
        assert fast[name] == pytest.approx((seconds + tflop * 1e12 / 2e11) / 60)
        assert slow[name] - fast[name] == pytest.approx(tflop * 5 / 60)


def test_the_lesson_says_where_it_computes_and_how_long(monkeypatch, tmp_path):
    said = []
    monkeypatch.setattr(minutes, "gemm_rate", lambda *_: 1e11)
    monkeypatch.setattr(notebooks, "say", said.append)
    lesson = notebooks.Lesson("03_full_finetune_fsdp", tmp_path, {}, False)
    lesson.say_placement(CPU)
    wanted = minutes.predict_minutes(CPU)[0][lesson.name]
    assert said[0] == "Computes on **cpu** in **float32**: a test."
    assert "reach 100 GFLOP/s" in said[1] and f"about **{wanted:.1f} minutes**" in said[1]
    lesson.say_placement(Placement("cuda", "bfloat16", "a GPU"))
    assert len(said) == 3


def test_the_machine_check_says_the_minutes_of_the_course():
    said = {name: text for _, name, text in machine.check_machine() if name == "time"}
    assert "minutes for the course (01: " in said["time"] and "GFLOP/s" in said["time"]
