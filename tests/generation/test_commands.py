"""``alpaca generate``: flags, defaults by teacher, files; settings that come from JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alpaca_lib.command_line import main
from alpaca_lib.errors import SettingsError, UsageError
from alpaca_lib.generation.commands import GENERATE
from alpaca_lib.generation.pipeline import choose_teacher
from alpaca_lib.generation.plan import describe_plan
from alpaca_lib.generation.presets import load_presets
from alpaca_lib.generation.settings import Limits, Sampling, Settings


def generate(*words: object) -> int:
    """Runs ``alpaca generate`` and returns its exit code."""
    return main("alpaca", "", [GENERATE], ["generate", *map(str, words)])


@pytest.fixture(autouse=True)
def no_openai(monkeypatch):
    """No key and no model in the environment."""
    for name in ("OPENAI_API_KEY", "OPENAI_MODEL"):
        monkeypatch.delenv(name, raising=False)


def test_replayed_tasks_are_those_of_the_data_set(tmp_path, repository, capsys):
    """The course's replies give its first rows; the second start reads the journal alone."""
    words = ("--teacher", "replay", "--tasks-wanted", 30, "--out", tmp_path)
    assert generate(*words) == 0
    rows = json.loads((tmp_path / "regen.json").read_text("utf-8"))
    shipped = json.loads((repository / "data" / "alpaca_520.json").read_text("utf-8"))
    assert 30 <= len(rows) < 60
    assert [row["output"] for row in rows] == [row["output"] for row in shipped[: len(rows)]]
    first = capsys.readouterr().out
    assert "tasks_per_request 20, temperature 1.0, top_p 1.0, seed_words 0" in first
    assert "(0 from the journal)" in first and str(tmp_path / "regen.json") in first
    assert generate(*words) == 0
    assert "requests (2 from the journal)" in capsys.readouterr().out


def test_a_limit_that_ends_the_run_is_named(tmp_path, capsys):
    """Fewer tasks than wanted: the flag to change is printed."""
    words = ("--teacher", "replay", "--tasks_wanted", 500, "--max_requests", 1)
    assert generate(*words, "--out", tmp_path) == 0
    assert "fewer than 500: stopped by --max_requests" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, code, text",
    [
        (["--teacher", "openai"], 2, "give --model or set OPENAI_MODEL"),
        (["--top-p", "1.5"], 1, "top_p 1.5: a number, above 0 and at most 1"),
        (["--max-usd", "-1"], 1, "max_usd -1.0: a number, at least 0"),
        (["--seeds", "none.json"], 1, "none.json: no such file"),
        (["--documents", "nowhere"], 1, "nowhere: no such folder"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, words, code, text):
    """A wrong value or file is one line on stderr, before any teacher is started."""
    assert generate(*words, "--out", tmp_path / "out") == code
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_environment_chooses_the_teacher(monkeypatch):
    """A key means openai, none means local; what is asked for wins."""
    assert choose_teacher()[:2] == ("local", "")
    monkeypatch.setenv("OPENAI_API_KEY", "a-key")
    with pytest.raises(UsageError, match="--model_name"):
        choose_teacher(flag="--model_name")
    monkeypatch.setenv("OPENAI_MODEL", "m")
    assert choose_teacher()[:2] == ("openai", "m")
    assert choose_teacher(model="other")[:2] == ("openai", "other")
    assert choose_teacher("local") == ("local", "", "as asked for")


def test_help_lists_the_teachers_of_the_file(capsys):
    """Each with its address, and its key's variable or the command that starts it."""
    with pytest.raises(SystemExit):
        generate("--help")
    shown = capsys.readouterr().out
    for preset in load_presets().values():
        (line,) = [line for line in shown.splitlines() if line.startswith(f"  {preset.name} ")]
        assert preset.base_url in line and (preset.key or preset.start) in line


@pytest.mark.parametrize("name", ["oracle", "deepsek"])
def test_an_unknown_teacher_is_a_mistake_of_usage(tmp_path, capsys, name):
    assert generate("--teacher", name, "--out", tmp_path / "out") == 2
    assert f"no teacher {name!r}; there are local, replay, openai," in capsys.readouterr().err


def test_the_model_of_openai_is_not_taken_for_another_provider(monkeypatch):
    """OPENAI_MODEL belongs to OpenAI, or to the server at OPENAI_BASE_URL."""
    monkeypatch.setenv("OPENAI_MODEL", "gpt-m")
    assert choose_teacher("deepseek")[:2] == ("deepseek", "")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    assert choose_teacher("deepseek")[:2] == ("deepseek", "gpt-m")


def test_the_cost_is_described():
    """A known price gives an estimate with the limit; an unknown model is named."""
    text = describe_plan(Settings(tasks_wanted=52_000), Limits(max_usd=3.0), "gpt-6-luna")
    assert "cost: about $" in text and "never over 3.0" in text
    assert "no-such-model (online) is not in" in describe_plan(
        Settings(), Limits(), "no-such-model"
    )


@pytest.mark.parametrize(
    "options",
    [
        Settings(topics=("ice", "sea"), verbs=("say",), language="zh", safety=False),
        Sampling(reply_format="json", service_tier="flex"),
        Limits(max_usd=2, way="batch", prices_path=Path("prices.yaml"), max_requests=7),
    ],
    ids=lambda options: type(options).__name__,
)
def test_options_come_back_from_json(tmp_path, options):
    """save() and load() keep every option, tuples and paths included."""
    path = options.save(tmp_path / "options.json")
    assert type(options).load(path) == options


@pytest.mark.parametrize(
    "model, wrong, text",
    [
        (Limits, {"way": "bach"}, "use one of online, flex, batch; did you mean 'batch'"),
        (Limits, {"concurrency": 0}, "concurrency 0: a whole number, at least 1"),
        (Settings, {"reply_format": "xml"}, "use one of text, json"),
        (Settings, {"topics": "ice"}, "topics 'ice': a list"),
        (Settings, {"tasks": 5}, "no setting 'tasks'"),
    ],
)
def test_wrong_options_are_explained(model, wrong, text):
    """The option, its value and what is accepted."""
    with pytest.raises(SettingsError, match=text):
        model(**wrong)
