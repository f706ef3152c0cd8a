"""The course's replies: what runs on them writes, undisturbed and killed, and what they cost."""

import pytest

from alpaca_lib.course import costs, replays
from alpaca_lib.errors import RunError
from alpaca_lib.generation import estimate, load_prices
from alpaca_lib.records import load_examples


@pytest.mark.slow
def test_a_killed_run_is_resumed_to_the_same_bytes(tmp_path):
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    replays.run_replayed(calm)
    for _ in range(2):  # the second time the folder is emptied first
        replays.run_replayed(killed, kill_at=10)
        assert not (killed / "regen.json").exists()
        assert 10 <= len(replays.answered_requests(killed)) < 34
    replays.run_replayed(killed)
    assert (killed / "regen.json").read_bytes() == (calm / "regen.json").read_bytes()
    assert len(load_examples(calm / "regen.json")) == replays.TASKS
    asked = replays.answered_requests(killed)
    assert sorted(asked) == list(range(34))


@pytest.mark.slow
def test_a_run_that_fails_says_why_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"generate_instruction\.py failed: .*file") as error:
        replays.run_replayed(tmp_path / "file")
    assert "\n" not in str(error.value)


def test_the_parser_finds_more_tasks_than_are_kept():
    assert len(replays.recorded_replies()) == 34
    assert len(replays.recorded_tasks()) > replays.TASKS


def test_the_formula_of_the_lesson_gives_the_librarys_estimate():
    """With the share that the estimate draws replaced by its mean."""
    sample = costs.recorded_sample()
    means = costs.mean_request(sample)
    price = load_prices()[costs.ALPACAS_TEACHER]
    requests = 52_000 / (means.kept * (1 + 0.75) / 2)
    found = estimate(52_000, sample, price, falls_to=0.5)
    assert found.requests[1] == pytest.approx(requests, rel=0.01)
    dollars = price.cost(means.prompt_tokens, means.completion_tokens) * requests
    assert found.usd[1] == pytest.approx(dollars, rel=0.01)


def test_prices_are_sorted_and_leave_out_what_is_shut_down():
    rows = costs.price_rows(52_000, costs.recorded_sample(), 0.5)
    dollars = [float(row[1].removeprefix("$").replace(",", "")) for row in rows]
    assert dollars == sorted(dollars)
    names = {row[0] for row in rows}
    online = load_prices()
    assert names == {n for n, p in online.items() if not p.gone} | {costs.ALPACAS_TEACHER}
    batch = {row[0]: row[3] for row in rows}
    assert batch["deepseek-flash"] == "-" and batch["gpt-6-luna"].startswith("$")
