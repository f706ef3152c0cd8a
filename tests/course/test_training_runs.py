"""Lesson 03's helpers: a run is followed and killed, tokens are counted, plans are shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from alpaca_lib.course import original_command, plan_tables, token_counts, training_runs
from alpaca_lib.errors import RunError, UsageError
from alpaca_lib.planning import Work, plan
from alpaca_lib.training import Settings

LINES = [
    {"step": 0, "validation_loss": 3.0},
    {"step": 1, "loss": 2.5},
    {"step": 2, "loss": 2.4},
    {"step": 2, "validation_loss": 2.9},
]


def test_losses_are_those_of_steps_and_checkpoints_are_found(tmp_path):
    assert training_runs.losses_by_step(LINES) == {1: 2.5, 2: 2.4}
    assert training_runs.newest_checkpoint(tmp_path) == 0
    for step in (3, 12, 6):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert training_runs.newest_checkpoint(tmp_path) == 12


def test_shards_come_in_the_order_of_the_ranks(tmp_path):
    assert training_runs.read_shards(tmp_path) == []
    (tmp_path / "shards").mkdir()
    for rank in (10, 0, 2):
        text = json.dumps([{"name": "w", "whole": [4], "mine": [rank]}])
        (tmp_path / "shards" / f"rank{rank}.json").write_text(text)
    found = training_runs.read_shards(tmp_path)
    assert [one[0]["mine"] for one in found] == [[0], [2], [10]]


def test_shards_are_shown_and_counted(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(training_runs, "show_table", lambda head, rows: shown.append((head, rows)))
    assert training_runs.show_shards(tmp_path) == [] and not shown
    (tmp_path / "shards").mkdir()
    for rank, rows in enumerate((3, 2)):
        shards = [{"name": n, "whole": [5, 4], "mine": [rows, 4]} for n in "ab"]
        (tmp_path / "shards" / f"rank{rank}.json").write_text(json.dumps(shards))
    assert training_runs.show_shards(tmp_path, most=1) == [24, 16]
    head, rows = shown[0]
    assert head == ["parameter", "full", "process 0", "process 1"]
    assert rows == [["`a`", [5, 4], [3, 4], [2, 4]]]


def test_losses_are_compared_where_both_have_the_step(monkeypatch):
    shown = []
    monkeypatch.setattr(training_runs, "show_table", lambda head, rows: shown.append((head, rows)))
    one, other = {1: 2.0, 2: 3.0}, {2: 2.5, 4: 1.0}
    assert training_runs.largest_difference(one, other) == 0.5
    assert training_runs.largest_difference(one, {}) == 0.0
    training_runs.show_losses({"one": one, "other": other}, [2, 4])
    training_runs.show_losses({"one": one}, [])  # shows nothing
    assert shown == [(["step", "one", "other"], [[2, "3.000000", "2.500000"], [4, "", "1.000000"]])]


def test_room_is_a_share_of_what_is_free(monkeypatch):
    monkeypatch.setattr(training_runs, "free_memory", lambda device: 100.0)
    assert training_runs.has_room(59, "cuda") and not training_runs.has_room(61, "cuda")


def test_stanfords_flags_are_those_of_the_script():
    rows, settings = original_command.read_train_flags(
        "--model_name_or_path llama-7b --data_path d.json --output_dir out "
        '--per_device_train_batch_size 4 --gradient_accumulation_steps 8 --fsdp "full_shard"',
        processes=4,
    )
    assert settings.examples_per_step == 128 and settings.model == "llama-7b"
    assert ("--fsdp full_shard", rows[-1][1]) == rows[-1] and "FSDP2" in rows[-1][1]
    with pytest.raises(UsageError, match="no flag"):
        original_command.read_train_flags("--no_such_flag 1", processes=1)


@pytest.mark.parametrize(("kill_after", "killed"), [(0, []), (2, [1]), (3, [])])
def test_the_last_rank_is_killed_once_after_its_step(tmp_path, monkeypatch, kill_after, killed):
    victims = []

    class Process:
        def kill(self):
            victims.append(1)

    settings = Settings(data_path="d.json", output_dir=str(tmp_path))
    monkeypatch.setattr(training_runs, "launch", lambda settings, processes: iter(LINES))
    monkeypatch.setattr(training_runs, "find_rank", {1: Process()}.get)
    assert training_runs.follow(settings, 2, kill_after) == []
    assert victims == killed


def test_a_rank_is_found_by_its_environment():
    words = [sys.executable, "-c", "input()"]
    child = subprocess.Popen(words, env={**os.environ, "RANK": "41"}, stdin=subprocess.PIPE)
    try:
        found = training_runs.find_rank(41)
        assert found is not None and found.pid == child.pid
        assert training_runs.find_rank(42) is None
    finally:
        child.communicate(b"\n")


def test_a_freed_model_says_how_to_get_it_back():
    net = training_runs.Freed("run section 1 again")
    for use in (lambda: net(1), lambda: net.device, lambda: net.parameters()):
        with pytest.raises(RunError, match="run section 1 again"):
            use()
    assert "Freed" in repr(net)


def test_packed_tokens_are_those_of_rows_and_shared_ones_fewer():
    header = list(range(20))
    labels = [-100] * 22 + [7, 8]
    rows = [{"input_ids": [*header, n, n, 7, 8], "labels": labels} for n in range(30, 34)]
    assert token_counts.count_packed([rows, rows[:1]], most=512, ranks=1) == 96 + 24
    # One header of 20 tokens, and the four last tokens of each.
    assert token_counts.count_shared([rows, rows[:1]], most=512, ranks=1) == 20 + 4 * 4 + 24
    assert token_counts.count_packed([rows], most=50, ranks=1) == 2 * 48


@pytest.fixture
def tables(monkeypatch):
    shown = []
    monkeypatch.setattr(plan_tables, "show_table", lambda head, rows: shown.append((head, rows)))
    return shown


def test_the_memory_table_adds_up_to_the_plans_peak(tables):
    settings = Settings(data_path="d", output_dir="o", model="llama-7b", gather="layer")
    plan_tables.show_memory(settings, ["4xA100-80"])
    head, (row,) = tables[0]
    assert len(head) == len(row)
    terms = [float(cell) for cell in row[1:-2]]
    assert sum(terms) == pytest.approx(plan(settings, "4xA100-80").peak / 1e9, abs=0.3)
    assert float(row[-2]) == pytest.approx(sum(terms), abs=0.3) and row[-1] == "yes"


def test_a_layout_that_waits_less_takes_fewer_days_and_dollars(tables):
    settings = Settings(
        data_path="d",
        output_dir="o",
        model="gpt-100b",
        sharding="full",
        activation_checkpointing=True,
        examples_per_step=2048,
    )
    predicted = plan(settings, "128x8xH100", Work(rows=10**9, tokens=500.0), price=2.0)
    plan_tables.show_layouts(predicted, most=1)
    (name, _, waits, days, _), other = tables[0][1]
    assert name == "FSDP" and waits == f"{predicted.waits:.0%}"
    assert days == f"{predicted.seconds / 86400:.0f}"
    assert "tensor" in other[0] and int(other[3]) < int(days)
    plan_tables.show_costs([(settings, "128x8xH100")], 2.0)
    assert tables[1][1][0][-1] == f"${plan(settings, '128x8xH100', price=2.0).dollars:.0f}"
