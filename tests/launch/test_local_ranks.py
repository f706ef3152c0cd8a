"""Ranks without torchrun, and whether two processes can train together here."""

from __future__ import annotations

import json
import os
import sys
import time
from types import SimpleNamespace

import pytest

from alpaca_lib.errors import SettingsError
from alpaca_lib.launch import launcher, probe
from alpaca_lib.launch.local_ranks import LocalRanks, free_port
from alpaca_lib.models import Placement
from alpaca_lib.training import sharding


@pytest.fixture
def start(tmp_path):
    """A function: starts two ranks of a program and returns them; the log is tmp_path/log."""
    opened, running = [], []

    def run(code: str) -> LocalRanks:
        opened.append(open(tmp_path / "log", "w", encoding="utf-8"))  # noqa: SIM115
        command = [sys.executable, "-c", code]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        running.append(LocalRanks(command, 2, 4321, tmp_path, opened[0], environment))
        return running[0]

    yield run
    for ranks in running:
        ranks.stop(0.0)
    for stream in opened:
        stream.close()


def end(ranks, seconds=30.0):
    """The exit code of a run, at the latest after so many seconds."""
    deadline = time.monotonic() + seconds
    while ranks.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    return ranks.returncode


def test_each_rank_gets_torchruns_variables(start, tmp_path):
    """Its number and its size, and where rank 0 listens; all of their output is in the log."""
    names = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT"
    ranks = start(f"import os; print(*[os.environ[n] for n in {names!r}.split()])")
    assert end(ranks) == 0 and ranks.failed == []
    lines = sorted((tmp_path / "log").read_text(encoding="utf-8").splitlines())
    assert lines == [f"{rank} {rank} 2 2 127.0.0.1 4321" for rank in (0, 1)]
    assert not (tmp_path / "failed.json").exists()


FAILS = """
import os, sys
if os.environ["RANK"] == "1":
    sys.exit("error: d.json: no such file")
sys.stdin.read()  # until it is asked to stop
print("RuntimeError: Connection closed by peer", file=sys.stderr)
sys.exit(1)
"""


def test_a_rank_that_fails_ends_the_other(start, tmp_path):
    """The error of the first is the run's, as torchrun's files say it; the log has both."""
    ranks = start(FAILS)
    assert end(ranks) == 1
    assert json.loads((tmp_path / "failed.json").read_text(encoding="utf-8")) == [[1, 1], [0, 1]]
    text = launcher._first_error(tmp_path, tmp_path / "log", 1)
    assert text.startswith("rank 1: d.json: no such file")
    log = (tmp_path / "log").read_text(encoding="utf-8")
    assert "[rank 0] RuntimeError" in log and "[rank 1] error: d.json" in log


def test_a_rank_that_does_not_stop_is_killed(start):
    """One ends when it is asked to, the other never would."""
    ranks = start(
        "import os, sys, time\nsys.stdin.read() if os.environ['RANK'] == '0' else time.sleep(300)"
    )
    time.sleep(0.5)
    assert ranks.poll() is None
    began = time.monotonic()
    ranks.stop(1.0)
    assert time.monotonic() - began < 10
    assert ranks.returncode != 0 and [rank for rank, _ in ranks.failed] == [1]


def test_a_rank_that_is_deaf_to_the_end_of_another_is_killed(start, monkeypatch):
    monkeypatch.setattr("alpaca_lib.launch.local_ranks.LOST_SECONDS", 0.5)
    ranks = start(
        "import os, sys, time\ntime.sleep(300) if os.environ['RANK'] == '0' else sys.exit(7)"
    )
    assert end(ranks) == 7
    assert [rank for rank, _ in ranks.failed] == [1, 0]


@pytest.mark.parametrize("code, killed", [(15, True), (1, False)])
def test_a_killed_process_of_windows_is_named(tmp_path, monkeypatch, code, killed):
    """It has an exit code and no signal; the other rank's error only follows from it."""
    monkeypatch.setattr(launcher, "_uses_torchrun", lambda: False)
    for rank, text in enumerate(["RuntimeError: Connection closed by peer", ""]):
        file = tmp_path / f"local/attempt_0/{rank}/stderr.log"
        file.parent.mkdir(parents=True)
        trace = f"Traceback (most recent call last):\n  File x\n{text}\n" if text else ""
        file.write_text(trace, encoding="utf-8")
    (tmp_path / "failed.json").write_text(json.dumps([[1, code], [0, 1]]), encoding="utf-8")
    text = launcher._first_error(tmp_path, tmp_path / "log", code)
    assert text.startswith("rank 1: ended with exit code 15") == killed


# --- how many processes -----------------------------------------------------------------


@pytest.fixture
def elsewhere(monkeypatch):
    """Another system than Linux, whose auto device is the CPU, and where gloo works."""
    import alpaca_lib.models

    system = SimpleNamespace(platform="win32", executable=sys.executable)
    monkeypatch.setattr(probe, "sys", system)
    monkeypatch.setattr(probe, "_said", set())
    monkeypatch.setattr(probe, "find_gloo_fault", lambda: "")
    named = {"auto": "cpu"}
    monkeypatch.setattr(
        alpaca_lib.models,
        "place",
        lambda device: Placement(named.get(device, device), "float32", ""),
        raising=False,
    )
    return named


def test_linux_takes_as_many_as_are_wanted(monkeypatch, capsys):
    """Nothing is tried there."""
    monkeypatch.setattr(probe, "find_gloo_fault", lambda: pytest.fail("tried"))
    monkeypatch.setattr(probe, "sys", SimpleNamespace(platform="linux"))
    assert probe.usable_processes(2) == 2 and capsys.readouterr().out == ""


@pytest.mark.usefixtures("elsewhere")
def test_one_process_where_two_do_not_work(monkeypatch, capsys):
    """One sentence, once, with the reason."""
    monkeypatch.setattr(probe, "find_gloo_fault", lambda: "two gloo processes do not (x)")
    assert [probe.usable_processes(2) for _ in range(2)] == [1, 1]
    assert capsys.readouterr().out == ("1 process instead of 2: two gloo processes do not (x)\n")
    assert probe.usable_processes(1) == 1 and capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("auto", "device", "processes", "says"),
    [
        ("cpu", "auto", 2, ""),
        ("mps", "auto", 2, "2 processes compute on the CPU: torch.distributed has no backend"),
        ("mps", "mps", 1, "1 process instead of 2: torch.distributed has no backend for Apple"),
        ("mps", "cpu", 2, ""),
        ("cuda", "auto", 1, "1 process instead of 2: several GPU processes need NCCL"),
    ],
)
def test_processes_by_device(elsewhere, monkeypatch, capsys, auto, device, processes, says):
    import torch.distributed as c10d

    monkeypatch.setattr(c10d, "is_nccl_available", lambda: False)
    elsewhere["auto"] = auto
    assert probe.usable_processes(2, device) == processes
    out = capsys.readouterr().out
    assert out.startswith(says) and out.count("\n") == bool(says)


def test_several_processes_on_an_apple_gpu_are_refused(monkeypatch):
    """As torchrun by hand would start them."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(SettingsError, match=r'2 processes need device "cpu"'),
        sharding.distributed("mps"),
    ):
        pass


def test_a_trial_that_does_not_end(monkeypatch):
    """It is ended, and that is the reason."""
    monkeypatch.setattr(probe, "MOST_SECONDS", 0.5)
    text = probe.find_gloo_fault.__wrapped__()
    assert text == "two gloo processes do not work together here (no end after 0 s)"


@pytest.mark.linux  # elsewhere it decides, and may fail
@pytest.mark.slow
def test_two_processes_train_together_here():
    assert probe.find_gloo_fault() == ""


@pytest.mark.slow
def test_a_trial_that_fails_says_why(monkeypatch):
    """gloo's own words, in one line."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nosuch0")
    text = probe.find_gloo_fault.__wrapped__()
    assert text.startswith("two gloo processes do not work together here (") and "\n" not in text
    assert "Error" in text


def test_a_free_port_is_free():
    assert free_port() > 1023
