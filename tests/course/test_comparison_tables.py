"""What lesson 05 shows: the models that it found, their scores, differences and loops."""

from __future__ import annotations

import json
from types import SimpleNamespace

import matplotlib
import pytest

from alpaca_lib.course import comparison_tables as tables
from alpaca_lib.course import notebooks, token_speed
from alpaca_lib.errors import RunError
from alpaca_lib.evaluation.comparison import differences, score
from alpaca_lib.evaluation.llm_judge import Judgement, Pair, Verdict
from alpaca_lib.export.parity import Parity
from alpaca_lib.inference.decoding import Answer
from alpaca_lib.inference.safety import Labelled, PolicyScores
from alpaca_lib.records import Example, save_examples

matplotlib.use("Agg")


@pytest.fixture
def shown(monkeypatch):
    """The Markdown texts that a notebook would show."""
    texts = []
    monkeypatch.setattr(notebooks, "_show_markdown", texts.append)
    return texts


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("ALPACA_RUNS", str(tmp_path))
    monkeypatch.delenv("ALPACA_RUN", raising=False)

    def make(lesson, file, steps=10, seed=0):
        folder = tmp_path / lesson / "001"
        (folder / file).parent.mkdir(parents=True)
        (folder / file).write_text("{}", encoding="utf-8")
        (folder / "parameters.json").write_text('{"model": "m"}', encoding="utf-8")
        (folder / "result.json").write_text("{}", encoding="utf-8")
        settings = {"examples_per_step": 8, "seed": seed, "data_path": "d.json"}
        settings["template"] = "alpaca"
        run = {"steps": steps, "settings": settings}
        (folder / file).with_name("run.json").write_text(json.dumps(run), encoding="utf-8")
        return str((folder / file).parent)

    return make


def test_what_is_missing_is_said_with_its_notebook(runs, shown):
    assert tables.find_trained("m") == {"base": "m"}
    assert shown == [
        "No model **full** from m yet: notebook 03 makes it.",
        "No model **lora** from m yet: notebook 04 makes it.",
    ]


def test_the_newest_models_are_found_and_a_given_one_is_preferred(runs, shown, tmp_path):
    full = runs(*tables.MADE_BY["full"])
    lora = runs(*tables.MADE_BY["lora"])
    assert tables.find_trained("m", full="", lora="") == {"base": "m", "full": full, "lora": lora}
    (tmp_path / "mine").mkdir()
    found = tables.find_trained("m", full="", lora="runs/mine")
    assert found["lora"] == str(tmp_path / "mine") and not shown


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({}, "trained on the same 80 examples, in the same order"),
        ({"steps": 30}, "no comparison of two methods"),
        ({"seed": 1}, "no comparison of two methods"),
    ],
)
def test_two_methods_are_compared_only_if_the_examples_were_the_same(runs, shown, change, text):
    found = {"base": "m", "full": runs(*tables.MADE_BY["full"])}
    found["lora"] = runs(*tables.MADE_BY["lora"], **change)
    tables.show_trained(found, "alpaca")
    assert "| full | runs/03\\_full\\_finetune\\_fsdp/001/model | 80 examples |" in shown[0]
    assert text in shown[1]


def test_a_model_that_is_asked_in_another_template_is_named(runs, shown):
    tables.show_trained({"base": "m", "lora": runs(*tables.MADE_BY["lora"])}, "chat")
    assert 'set `template = "alpaca"`' in shown[1]


def test_a_model_without_a_record_of_its_training_is_shown(shown):
    tables.show_trained({"base": "m", "lora": "owner/name"}, "alpaca")
    assert "| lora | owner/name | an unknown number of examples |" in shown[0]
    assert len(shown) == 1


TASKS = [
    Example("Say a.", output="a b c d", extra={"check": {"contains": ["a"]}}),
    Example("Say e.", output="e f g h"),
    Example("Say i.", output="i j k l"),
]


@pytest.mark.parametrize(("rows", "chosen"), [(0, "0123456789"), (3, "036"), (99, "0123456789")])
def test_tasks_are_spread_over_the_file(tmp_path, rows, chosen):
    file = tmp_path / "tasks.json"
    save_examples([Example(f"Say {n}.", output=str(n)) for n in range(10)], file)
    assert [task.output for task in tables.choose_tasks(file, rows)] == list(chosen)
    for few in (1, -3):
        with pytest.raises(RunError, match=r"which has 10: a comparison needs two tasks at least"):
            tables.choose_tasks(file, few)


def answers(*texts):
    return [Answer(text, ended=True, tokens=4) for text in texts]


def scores(name, shift=0.0):
    losses = [(5.0 + n + shift, 4) for n in range(3)]
    return score(name, TASKS, answers("a b c d", "e f", "x x x x x"), losses)


def test_scores_and_differences_have_a_row_each_and_a_sentence(shown):
    named = {"base": scores("base"), "full": scores("full", -1.0)}
    tables.show_scores(named)
    assert "| full | 1.250 |" in shown[0] and "| 100% | 100% |" in shown[0]
    tables.show_differences({"full": differences(named["full"], named["base"])})
    assert "| full | loss | -0.250 | -0.250 to -0.250 | 3 : 0 | 0.25 |" in shown[1]
    assert "0 is outside the interval of loss; these tasks cannot tell" in shown[2]
    fig, axes = tables.draw_paired_losses(named, ["full"])
    assert axes.get_xlabel() == "base (nats)" and len(axes.collections) == 1
    fig.clear()


def test_answers_conditions_and_loops(shown):
    some = {"base": answers("a b c d", "no"), "full": answers("1. x\n2. y", "a b c d a b c d a b")}
    tables.show_answers(TASKS, some, 2)
    assert shown[0].count("\n") == 3 and "1. x<br>2. y" in shown[0]
    tables.show_met({"two lines": {"lines": 2}}, some)
    assert "| base | no | 2 of 2 |" in shown[1] and "| full | yes | 2 of 2 |" in shown[1]
    tables.show_loops({1.0: some["full"], 1.3: some["base"]})
    assert "answer 2 repeats" in shown[2] and "| 1.3 | 2 of 2 | 0% | no |" in shown[2]


def test_pages_hold_the_task_the_reference_and_all_answers():
    some = {"base": answers("x", "y", "z")}
    title, text = tables.answer_pages(TASKS, some)[1]
    assert title == "Say e." and text == "Say e.\n\nREFERENCE: e f g h\n\nBASE: y"


def test_a_judgement_shows_its_bias_and_nothing_is_said_of_too_few_pairs(shown):
    pairs = [Pair("t", "one", "two!")] * 2
    tables.show_judgement(Judgement(pairs, [Verdict(1.0, 0.0)] * 2), "lora")
    assert "| 2 | 2 | 0 | 0 | 2 | 0% | 100% |" in shown[0]
    assert "Win rate of **lora** against the base: 0.500" in shown[1]
    tables.show_judgement(None, "lora")
    assert "too few verdicts" in shown[2]


def test_a_file_that_is_far_off_is_reported_and_other_tokens_are_an_error(shown):
    tables.show_parity(Parity(4, 4, 64, 0.75, 3, 0.01), "q8_0", "float32")
    assert len(shown) == 1 and "75% of 64 greedy tokens" in shown[0]
    tables.show_parity(Parity(4, 4, 64, 0.1, 3, 0.6), "q4_1", "float32")
    assert "That is far" in shown[2]
    with pytest.raises(RunError, match="do not use this file"):
        tables.show_parity(Parity(4, 3, 64, 0.1, 3, 0.6), "q4_1", "float32")


def test_speeds_and_decisions(shown):
    tables.show_speeds({"slow": (200_000_000, 10.0), "fast": (100_000_000, 30.0)})
    assert "| fast | 100 | 30 | 3.0 |" in shown[0]
    assert shown[1] == "**fast** is 3.0 times as fast as slow, with 50% of its bytes."
    tables.show_speeds({})
    assert "Not measured" in shown[3]
    row = Labelled("do it", "", "", True, "kind")
    tables.show_decisions(PolicyScores([row], [row], [], 3))
    assert shown[4] == "1 of 2 harmful requests missed; 0 of 3 harmless ones blocked."
    assert "| missed | do it | kind |" in shown[5]


def test_the_prompts_time_is_taken_out_of_a_speed(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(token_speed.time, "perf_counter", lambda: clock.now)

    def speak(tokens):
        clock.now += 5 + 0.25 * (tokens - 1)

    assert token_speed.tokens_per_second(speak, 24) == pytest.approx(4.0)


def test_steps_are_timed_for_each_number_of_rows():
    from alpaca_lib.course.checks.decoding_oracles import small_model

    one, many = token_speed.step_times(small_model(), rows=(1, 8), tries=3)
    assert 0 < one < 1 and 0 < many < 1
    assert token_speed.torch_speed(small_model(), [5, 6, 7], tokens=4) > 0
