"""The runner: the errors of a command line, where a run stops, and where it resumes."""

import json

import nbformat
import pytest

from alpaca_lib.course import runner
from alpaca_lib.course.notebooks import LESSONS

FIRST, SECOND = LESSONS[0], LESSONS[1]


def error_of(*arguments: str, capsys) -> str:
    assert runner.main(list(arguments)) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--only", "09"], "--only 09: there are 01_self_instruct"),
        (["-p", "epoch=1"], "did you mean 'epochs'?"),
        (["-p", "epochs"], "write name=value"),
        (["-p", "epochs=many"], "-p epochs=many: a number is needed"),
        (["-p", "max_steps=1.5"], "a whole number is needed"),
        (["--only", "02", "-p", "epoch=1"], "in any notebook; did you mean 'epochs'?"),
        (["--only", "02", "-p", "epochs=many"], "-p epochs=many: a number is needed"),
        (["--profile", "lapdog"], "no such profile; there are chinese, epoch, gpu, gpus,"),
    ],
)
def test_a_wrong_command_line_names_the_fix(arguments, says, capsys):
    assert says in error_of(*arguments, capsys=capsys)


def test_a_parameter_of_another_notebook_is_named_and_not_used(capsys):
    plan = runner.resolve_parameters(LESSONS[:1], "laptop", ["template=chinese", "seed=3"])
    assert plan == {FIRST: {"seed": 3}}
    said = capsys.readouterr().out
    assert said == "-p template: not used here, a parameter of " + ", ".join(LESSONS[2:]) + "\n"


@pytest.mark.parametrize(
    ("given", "says"), [([], True), (["max_steps=0"], False), (["max_steps=3"], True)]
)
def test_epochs_that_max_steps_overrides_are_said(given, says, capsys):
    runner.resolve_parameters(LESSONS[2:3], "laptop", ["epochs=1", *given])
    assert ("decides, not epochs; -p max_steps=0" in capsys.readouterr().out) == says


def test_a_profile_with_an_unknown_name_is_refused(tmp_path, capsys):
    file = tmp_path / "mine.toml"
    file.write_text("[03_full_finetune_fsdp]\nepoch = 1.0\n", encoding="utf-8")
    assert "did you mean 'epochs'?" in error_of("--profile", str(file), capsys=capsys)
    file.write_text("[03]\nepochs = 1.0\n", encoding="utf-8")
    assert "[03] is no notebook" in error_of("--profile", str(file), capsys=capsys)
    file.write_text("epochs = \n", encoding="utf-8")
    assert "is not TOML" in error_of("--profile", str(file), capsys=capsys)


@pytest.mark.parametrize("name", [p.stem for p in sorted(runner.PROFILES.glob("*.toml"))])
def test_every_shipped_profile_fits_the_notebooks(name):
    assert set(runner.resolve_parameters(list(LESSONS), name, [])) == set(LESSONS)


def test_a_parameter_overrides_the_profile_and_reaches_every_notebook_that_has_it():
    plan = runner.resolve_parameters(list(LESSONS), "quick", ["max_steps=7", "template=short"])
    assert plan[LESSONS[2]]["max_steps"] == 7
    assert plan[LESSONS[3]]["max_steps"] == 7
    assert "max_steps" not in plan[FIRST]
    assert [n for n in LESSONS if plan[n].get("template") == "short"] == list(LESSONS[2:])


def small_notebook(path, code: str) -> None:
    cells = [
        nbformat.v4.new_code_cell("marker: str = ''  # a file"),
        nbformat.v4.new_code_cell(code),
    ]
    cells[0].metadata["tags"] = ["parameters"]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)


@pytest.fixture
def two_notebooks(tmp_path, monkeypatch):
    """Two real notebooks; the second fails until the marker file is there."""
    monkeypatch.setattr(runner, "NOTEBOOKS", tmp_path)
    monkeypatch.setenv("ALPACA_RUNS", str(tmp_path / "runs"))
    head = "from alpaca_lib.course import notebooks\nlesson = notebooks.start('{}', globals())\n"
    small_notebook(tmp_path / f"{FIRST}.ipynb", head.format(FIRST) + "lesson.record('one', x=1)")
    small_notebook(
        tmp_path / f"{SECOND}.ipynb",
        head.format(SECOND)
        + "import pathlib\nassert pathlib.Path(marker).exists(), 'the marker is missing'\n"
        + "lesson.record('two', x=2)",
    )
    return {FIRST: {}, SECOND: {"marker": str(tmp_path / "marker")}}


def test_a_failure_stops_the_run_and_resume_continues_there(two_notebooks, tmp_path, capsys):
    assert runner.run_notebooks(two_notebooks) == 1
    said = capsys.readouterr()
    assert f"{SECOND}, cell 3: AssertionError: the marker is missing" in said.err
    assert [
        line.split()[1] for line in said.out.splitlines() if line.startswith("0") and "  " in line
    ] == [
        "done",
        "failed",
    ]

    (tmp_path / "marker").touch()
    assert runner.run_notebooks(two_notebooks, resume=True) == 0
    said = capsys.readouterr()
    assert f"{FIRST}: finished before, skipped" in said.out
    state = json.loads((tmp_path / "runs" / "run.json").read_text(encoding="utf-8"))
    assert [entry["result"] for entry in state] == ["one", "two"]
    assert len(list((tmp_path / "runs" / FIRST).glob("00?"))) == 1  # it ran once


def test_resume_runs_again_what_was_changed(two_notebooks, tmp_path, capsys):
    (tmp_path / "marker").touch()
    assert runner.run_notebooks(two_notebooks) == 0
    two_notebooks[FIRST]["marker"] = "another"
    assert runner.run_notebooks(two_notebooks, resume=True) == 0
    said = capsys.readouterr().out
    assert said.count(f"{FIRST}: running") == 2
    assert f"{SECOND}: finished before, skipped" in said
