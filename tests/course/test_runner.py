"""The runner: the errors of a command line, where a run stops, and where it resumes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from unittest import mock

import nbformat
import psutil
import pytest

from alpaca_lib.course import runner
from alpaca_lib.course.notebooks import LESSONS
from alpaca_lib.errors import RunError

FIRST, SECOND = LESSONS[0], LESSONS[1]


def error_of(*arguments: str, capsys) -> str:
    with mock.patch.object(runner, "run_notebooks", side_effect=AssertionError("it runs")):
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
    file.write_bytes(b"\xff\xfe")
    assert "is not TOML" in error_of("--profile", str(file), capsys=capsys)
    file.write_text("epochs = \n", encoding="utf-8")
    assert "is not TOML" in error_of("--profile", str(file), capsys=capsys)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('max_steps = "12"', "max_steps = '12': a whole number is needed"),
        ("max_steps = 12.0", "max_steps = 12.0: a whole number is needed"),
        ("max_steps = true", "max_steps = True: a whole number is needed"),
        ("max_steps = -1", "max_steps -1: a whole number, at least 0 and at most"),
        ("epochs = nan", "a number is needed"),
        ("epochs = inf", "a number is needed"),
        ("epochs = true", "epochs = True: a number is needed"),
        ('epochs = "2"', "epochs = '2': a number is needed"),
        ("model = 3", "model = 3: a text is needed"),
        ("model = ['a']", "model = ['a']: a text is needed"),
        ("model = 2026-11-28", "a text is needed"),
        ("seed = {a = 1}", "seed = {'a': 1}: a whole number is needed"),
        ("learning_rate = -1.0", "learning_rate -1.0: a number, above 0, is needed"),
    ],
)
def test_a_profile_is_checked_before_anything_runs(line, says, tmp_path, capsys):
    """Type, range and choices of each parameter, with file, notebook and value."""
    file = tmp_path / "mine.toml"
    file.write_text(f"[{LESSONS[2]}]\n{line}\n", encoding="utf-8")
    said = error_of("--profile", str(file), capsys=capsys)
    assert said.startswith(f"error: {file}: {LESSONS[2]}: ") and says in said
    file.write_text(f'[{LESSONS[3]}]\nquantization = "int9"\n', encoding="utf-8")
    assert "quantization 'int9': use one of" in error_of("--profile", str(file), capsys=capsys)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("epochs=nan", "a number is needed"),
        ("epochs=1e999", "a number is needed"),
        ("learning_rate=0", "above 0"),
        ("quantization=int9", "use one of"),
        ("max_steps=-1", "at least 0"),
        ("activation_checkpointing=1", "True or False is needed"),
    ],
)
def test_a_parameter_of_the_command_line_is_checked_like_a_profile(given, says, capsys):
    assert says in error_of("-p", given, capsys=capsys)


def test_a_whole_number_is_a_number(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(f"[{LESSONS[2]}]\nepochs = 2\n", encoding="utf-8")
    found = runner.resolve_parameters([LESSONS[2]], str(file), [])[LESSONS[2]]["epochs"]
    assert found == 2.0 and isinstance(found, float)


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
    monkeypatch.setenv("ALPACA_RUN", "")  # the runner sets it; monkeypatch puts it back
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


def newest(tmp_path, lesson):
    """The numbers of a lesson's folders."""
    return sorted(p.name for p in (tmp_path / "runs" / lesson).glob("[0-9][0-9][0-9]"))


@pytest.mark.parametrize("what", ["content", "same size and time", "notebook", "folder", "outputs"])
def test_resume_runs_again_when_what_it_read_has_changed(what, two_notebooks, tmp_path, capsys):
    """The data, the notebook, or the run's own files: each is named in a line."""
    marker = tmp_path / "marker"
    marker.mkdir() if what == "folder" else marker.write_text("one")
    (tmp_path / "marker2").write_text("x")
    two_notebooks[FIRST]["marker"] = str(tmp_path / "marker2")
    assert runner.run_notebooks(two_notebooks) == 0
    assert runner.run_notebooks(two_notebooks, resume=True) == 0
    assert capsys.readouterr().out.count("finished before, skipped") == 2
    if what == "content":
        marker.write_text("two, longer")
    elif what == "same size and time":
        times = marker.stat().st_atime_ns, marker.stat().st_mtime_ns
        marker.write_text("two")
        os.utime(marker, ns=times)
    elif what == "folder":
        (marker / "new.txt").write_text("x")
    elif what == "notebook":
        file = tmp_path / f"{SECOND}.ipynb"
        file.write_text(file.read_text().replace("x=2", "x=3"))
    else:
        (tmp_path / "runs" / SECOND / "001" / "result.json").unlink()
    assert runner.run_notebooks(two_notebooks, resume=True) == 0
    said = capsys.readouterr().out
    assert f"{FIRST}: finished before, skipped" in said
    if what == "outputs":  # the same run is continued
        assert f"{SECOND}: running ..." in said and newest(tmp_path, SECOND) == ["001"]
        return
    named = "the notebook" if what == "notebook" else str(marker)
    assert f"{SECOND}: running ... ({named} changed since runs/{SECOND}/001)" in said
    assert newest(tmp_path, SECOND) == ["001", "002"]


def test_a_lesson_runs_again_when_the_one_before_it_has_a_new_result(tmp_path, two_notebooks):
    """A notebook that reads find_newest of another lesson has its file in the fingerprint."""
    head = "from alpaca_lib.course import notebooks as course\n"
    code = f"lesson = course.start('{SECOND}', globals())\nlesson.record('two')\n"
    code += f'course.find_newest(\n    "{FIRST}", "result.json"\n)'
    small_notebook(tmp_path / f"{SECOND}.ipynb", head + code)
    plan = {FIRST: {}, SECOND: {}}
    assert runner.run_notebooks(plan) == 0
    assert runner.run_notebooks(plan, resume=True) == 0
    assert newest(tmp_path, SECOND) == ["001"]
    assert runner.run_notebooks({FIRST: {"marker": "another"}, SECOND: {}}, resume=True) == 0
    assert newest(tmp_path, SECOND) == ["001", "002"]


@pytest.mark.parametrize("text", ["null", "[]", "{", '{"a": 1}', '[{"other": 1}]', "7", '[["x"]]'])
def test_a_damaged_state_is_no_obstacle(text, two_notebooks, tmp_path, capsys):
    """run.json is for people; what --resume skips is in the folders, and may be damaged, too."""
    (tmp_path / "marker").touch()
    assert runner.run_notebooks(two_notebooks) == 0
    (tmp_path / "runs" / "run.json").write_text(text)
    (tmp_path / "runs" / SECOND / "001" / ".run.json").write_text(text)
    assert runner.run_notebooks(two_notebooks, resume=True) == 0
    said = capsys.readouterr().out
    assert f"{FIRST}: finished before, skipped" in said and f"{SECOND}: running ..." in said
    assert json.loads((tmp_path / "runs" / "run.json").read_text())[1]["result"] == "two"


def test_a_notebook_that_records_nothing_has_failed(two_notebooks, tmp_path, capsys):
    small_notebook(tmp_path / f"{FIRST}.ipynb", "1 + 1")
    assert runner.run_notebooks(two_notebooks) == 1
    assert "it ran, and recorded no result" in capsys.readouterr().err


RUN = """
import sys
from pathlib import Path
from alpaca_lib.course import runner
runner.NOTEBOOKS = Path(sys.argv[1])
sys.exit(runner.main(["--only", "01", *sys.argv[2:]]))
"""


def start_run(folder, *options):
    """Starts a run of the first notebook of a folder in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(folder), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_runs_at_once_report_their_own_results(tmp_path):
    """The slow one begins first and ends last; each shows its own folder and headline."""
    code = (
        "from alpaca_lib.course import notebooks\nimport time\n"
        f"lesson = notebooks.start('{FIRST}', globals())\n"
        "time.sleep(len(marker))\nlesson.record('result of ' + marker)"
    )
    small_notebook(tmp_path / f"{FIRST}.ipynb", code)
    out = ("--out", str(tmp_path / "out"))
    # Equal parameters would let the second continue nothing, either: the first is locked.
    names = ["sixsix", "one", "one"]
    running = [start_run(tmp_path, *out, "-p", f"marker={name}") for name in names]
    said = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], said
    for (text, _), name in zip(said, names, strict=True):
        assert f"result of {name}" in text and text.count("result of") == 2
    folders = {re.search(r"/(\d{3})\n", text)[1] for text, _ in said}
    assert len(folders) == 3
    assert not list((tmp_path / "out" / FIRST).glob(".*.ipynb"))


@pytest.mark.posix
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_ends_the_kernel_and_its_children(name, tmp_path):
    """One that ends at SIGTERM, and one that ignores it; the state says that it was stopped."""
    number = getattr(signal, name)
    code = (
        "from alpaca_lib.course import notebooks\nimport os, pathlib, subprocess, sys, time\n"
        f"lesson = notebooks.start('{FIRST}', globals())\n"
        "sleep = 'import time; time.sleep(300)'\n"
        "deaf = 'import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);' + sleep\n"
        "children = [subprocess.Popen([sys.executable, '-c', c]) for c in (sleep, deaf)]\n"
        "pids = [os.getpid(), *(child.pid for child in children)]\n"
        "time.sleep(1)\npathlib.Path(marker).write_text(' '.join(map(str, pids)))\ntime.sleep(300)"
    )
    small_notebook(tmp_path / f"{FIRST}.ipynb", code)
    marker = tmp_path / "pids"
    process = start_run(tmp_path, "--out", str(tmp_path / "out"), "-p", f"marker={marker}")
    deadline = time.monotonic() + 60
    while not marker.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(0.5)
    pids = [int(text) for text in marker.read_text().split()]
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    assert f"stopped by {name}" in err
    assert not [pid for pid in pids if psutil.pid_exists(pid)]
    state = json.loads((tmp_path / "out" / "run.json").read_text())
    assert [entry["status"] for entry in state] == ["stopped"]


def test_resume_runs_again_what_was_changed(two_notebooks, tmp_path, capsys):
    (tmp_path / "marker").touch()
    assert runner.run_notebooks(two_notebooks) == 0
    two_notebooks[FIRST]["marker"] = "another"
    assert runner.run_notebooks(two_notebooks, resume=True) == 0
    said = capsys.readouterr().out
    assert said.count(f"{FIRST}: running") == 2
    assert f"{SECOND}: finished before, skipped" in said


def test_an_edition_in_another_language_runs_in_place_of_the_english_one(two_notebooks, tmp_path):
    path = tmp_path / "zh" / f"{FIRST}.ipynb"
    path.parent.mkdir()
    head = "from alpaca_lib.course import notebooks\n"
    small_notebook(
        path, head + f"lesson = notebooks.start('{FIRST}', globals())\nlesson.record('一', x=1)"
    )
    assert runner.run_notebooks({FIRST: {}}, language="zh") == 0
    assert json.loads((tmp_path / "runs" / "run.json").read_text())[0]["result"] == "一"
    with pytest.raises(RunError, match=rf"zh/{SECOND}.ipynb: there is no such notebook"):
        runner.run_notebooks(two_notebooks, language="zh")
    with pytest.raises(RunError, match="there are zh"):
        runner.run_notebooks({FIRST: {}}, language="de")
