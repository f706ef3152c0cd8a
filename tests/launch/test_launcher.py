"""Runs in processes of their own: followed, ended with their launcher, and their own errors."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from alpaca_lib.errors import LaunchError
from alpaca_lib.files import write_text
from alpaca_lib.launch import launcher
from alpaca_lib.launch.launcher import launch, watch
from alpaca_lib.training import checkpoints
from alpaca_lib.training.settings import Settings


@pytest.fixture
def settings(tmp_path, data_file):
    """A run on the CPU in float32 that only a signal ends; its model is not there yet."""
    settings = Settings(
        data_path=str(data_file), output_dir=str(tmp_path / "run"), model=str(tmp_path / "model"),
        max_steps=5000, schedule="constant", warmup=0.0, examples_per_step=5, max_length=128,
        row_length=256, rows_per_micro_batch=1, learning_rate=1e-3, device="cpu", dtype="float32",
    )  # fmt: skip
    yield settings
    for process in ranks(settings).values():  # of a test that failed
        os.kill(process, signal.SIGKILL)  # none without /proc


@pytest.fixture(params=["torchrun", "local ranks"])
def starter(request, monkeypatch):
    """How the ranks are started: as on Linux, and as elsewhere."""
    monkeypatch.setattr(launcher, "_uses_torchrun", lambda: request.param == "torchrun")
    return request.param


@pytest.fixture
def tiny_model(settings, make_tiny, tokenizer):
    """The run's model: a LLaMA whose steps take milliseconds."""
    make_tiny(hidden_size=16, intermediate_size=32, num_attention_heads=2).save_pretrained(
        settings.model
    )
    tokenizer.save_pretrained(settings.model)


def ranks(settings):
    """The processes that run these settings: rank -> process id."""
    file, found = str(Path(settings.output_dir) / "settings.json"), {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode().split("\0")
            environment = (process / "environ").read_bytes().decode().split("\0")
        except (OSError, UnicodeDecodeError):
            continue
        rank = [entry[5:] for entry in environment if entry.startswith("RANK=")]
        if file in words and rank:  # torchrun itself has no rank
            found[int(rank[0])] = int(process.name)
    return found


def gone(processes, seconds):
    """Whether all of these processes end within so many seconds."""
    deadline = time.monotonic() + seconds
    while any(Path("/proc", str(process)).exists() for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


# --- before the start -------------------------------------------------------------------


def test_a_taken_port_is_refused_before_anything_starts(settings):
    """The port, and the fix; no folder is made. A call without a port finds a free one."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(LaunchError, match=rf"port {port} .*in use.*leave port at 0"):
            launch(settings, port=port)
        line = launcher.torchrun_line(Path("s.json"), 2)
        assert f"--master_port={port}" not in line
    with pytest.raises(LaunchError, match="port 99999"):
        launch(settings, port=99999)
    assert not Path(settings.output_dir).exists()
    assert f"--master_port={port}" in launcher.torchrun_line(Path("s.json"), 2, port)


def test_no_processes(settings):
    """Zero processes are refused, before anything starts."""
    with pytest.raises(ValueError, match="processes 0"):
        launch(settings, processes=0)
    assert not Path(settings.output_dir).exists()


# --- watching ---------------------------------------------------------------------------


def write_lines(folder, steps, **values):
    """metrics.jsonl, replaced as a resume does it."""
    lines = [json.dumps({"step": step, **values}) + "\n" for step in steps]
    write_text(folder / "metrics.jsonl", "".join(lines))


def add(folder, text):
    """More of metrics.jsonl, as a running loop writes it."""
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as stream:
        stream.write(text)


def test_watch_follows_a_run_through_a_resume(tmp_path):
    """Old lines, new ones, half a line, then a cut to step 2: steps 3 and 4 come again, with
    their new losses; the end is the saved model."""
    write_text(tmp_path / "run.json", '{"steps": 5}')
    write_lines(tmp_path, [1, 2, 3, 4], loss=1.0)
    lines = watch(tmp_path, timeout=30)
    assert [next(lines)["step"] for _ in range(4)] == [1, 2, 3, 4]
    write_lines(tmp_path, [1, 2], loss=1.0)
    add(tmp_path, '{"step": 3, "loss": 2.0}\n{"step": 4, "lo')
    assert next(lines) == {"step": 3, "loss": 2.0}
    add(tmp_path, 'ss": 3.0}\n')
    assert next(lines) == {"step": 4, "loss": 3.0}
    add(tmp_path, '{"step": 5, "loss": 4.0}\n{"step": 5, "validation_loss": 5.0}\n')
    assert [next(lines)["step"] for _ in range(2)] == [5, 5]
    write_text(tmp_path / "config.json", "{}")
    assert list(lines) == []


@pytest.mark.parametrize("model", ["config.json", "adapter_config.json"])
def test_watch_of_a_finished_run(tmp_path, model):
    """All of its lines at once, for full training and for LoRA."""
    write_text(tmp_path / "run.json", '{"steps": 2}')
    write_lines(tmp_path, [1, 2])
    write_text(tmp_path / model, "{}")
    assert [line["step"] for line in watch(tmp_path)] == [1, 2]


def test_watch_does_not_take_an_earlier_model_for_the_end(tmp_path):
    """A model of the run before in the folder, or one of fewer steps: no end, until the
    timeout says how far the run came."""
    write_text(tmp_path / "run.json", '{"steps": 2}')
    write_text(tmp_path / "config.json", "{}")
    os.utime(tmp_path / "config.json", (1, 1))
    write_lines(tmp_path, [1, 2])
    with pytest.raises(LaunchError, match=r"for 0\.5 s, after step 2"):
        list(watch(tmp_path, timeout=0.5))
    write_text(tmp_path / "run.json", '{"steps": 3}')
    write_text(tmp_path / "config.json", "{}")
    with pytest.raises(LaunchError, match="after step 2"):
        list(watch(tmp_path, timeout=0.5))


def test_watch_of_a_run_that_never_begins(tmp_path):
    """A folder that is not there is waited for, so long as timeout says."""
    with pytest.raises(LaunchError, match=r"none: no new line .* after step 0\. .*queue"):
        list(watch(tmp_path / "none", timeout=0.3))


# --- whose error it is ------------------------------------------------------------------

LOST = "[rank{}]: Traceback (most recent call last):\n[rank{}]:   File x\n[rank{}]: {}\n"
GLOO = "RuntimeError: [gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1"
NCCL = "torch.distributed.DistBackendError: NCCL error: remote process exited or network error"


@pytest.mark.parametrize(
    ("failed", "texts", "expected"),
    [
        ([(0, 1), (1, -9)], {0: LOST.format(0, 0, 0, GLOO)}, "rank 1: killed by SIGKILL"),
        ([(0, 1), (1, -11)], {0: LOST.format(0, 0, 0, NCCL)}, "rank 1: killed by SIGSEGV"),
        ([(0, 1), (1, 1)], {0: LOST.format(0, 0, 0, GLOO), 1: "error: d.json: no such file\n"},
         "rank 1: d.json: no such file"),
        ([(0, -15), (1, 1)], {1: LOST.format(1, 1, 1, "KeyError: 'x'")}, "rank 1: KeyError: 'x'"),
        ([(1, 1), (0, -9)], {1: "error: first\n"}, "rank 1: first"),  # torchrun killed rank 0
        ([(0, -6), (1, 1)], {0: "Traceback (most:\n  File x\nRuntimeError: watchdog timeout\n",
                             1: "noise\nerror: two\n  lines of it\nmore noise\n"},
         "rank 1: two\n  lines of it"),
        ([(0, 1)], {0: LOST.format(0, 0, 0, GLOO)}, f"rank 0: {GLOO}"),  # the other is elsewhere
        (None, {0: "error: told to stop: step 3\n"}, "rank 0: told to stop: step 3"),
    ],
)  # fmt: skip
def test_the_error_of_the_rank_that_failed_first(failed, texts, expected, tmp_path):
    """A rank that only lost another, or was ended by torchrun, is not the cause."""
    for rank in (0, 1):
        write_text(tmp_path / f"none_x/attempt_0/{rank}/stderr.log", texts.get(rank, ""))
    if failed:
        write_text(tmp_path / "failed.json", json.dumps(failed))
    words = launcher._first_error(tmp_path, tmp_path / "train.log", 1)
    assert words.startswith(expected) and words.endswith(f"(full log: {tmp_path / 'train.log'})")


def test_no_error_of_any_rank(tmp_path):
    """torchrun itself failed: the end of the log, and the code."""
    write_text(tmp_path / "train.log", "one\ntwo\n")
    words = launcher._first_error(tmp_path, tmp_path / "train.log", 2)
    assert "code 2" in words and "two" in words


@pytest.mark.linux
@pytest.mark.slow
@pytest.mark.usefixtures("starter")
def test_a_killed_rank_ends_the_run(settings, tokenizer, tmp_path):
    """An OPT on two processes has the losses of one; then SIGKILL for one rank ends the
    other within seconds, and the error is of the killed one."""
    import torch
    from transformers import OPTConfig, OPTForCausalLM

    from alpaca_lib.training.loop import train

    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=len(tokenizer), hidden_size=16, word_embed_proj_dim=16, ffn_dim=32,
        num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=256, dropout=0.0,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    OPTForCausalLM(config).save_pretrained(settings.model)
    tokenizer.save_pretrained(settings.model)
    one = train(settings.replace(max_steps=3, output_dir=str(tmp_path / "one")))
    lines, start, processes = [], 0.0, {}
    with pytest.raises(LaunchError) as caught:
        for line in launch(settings, processes=2):
            lines.append(line["loss"])
            if len(lines) == 3:
                processes = ranks(settings)
                start = time.monotonic()
                os.kill(processes[1], signal.SIGKILL)
    seconds = time.monotonic() - start
    assert set(processes) == {0, 1} and gone(processes.values(), 0.5)
    assert seconds < 10
    text = str(caught.value)
    assert text.startswith("rank 1: killed by SIGKILL") and "train.log" in text
    expected = [json.loads(line)["loss"] for line in (one / "metrics.jsonl").open()]
    assert lines[:3] == pytest.approx(expected, rel=1e-4)


@pytest.mark.linux
@pytest.mark.slow
@pytest.mark.usefixtures("tiny_model", "starter")
def test_a_rank_that_fails_alone(settings):
    """Rank 1 cannot write its list of shards: its error is shown, not that of rank 0, whose
    collective it leaves."""
    blocked = Path(settings.output_dir) / "shards" / "rank1.json"
    blocked.mkdir(parents=True)
    with pytest.raises(LaunchError, match=r"^rank 1: .*rank1\.json.*Is a directory"):
        list(launch(settings, processes=2))
    assert ranks(settings) == {}


# --- the launcher's own end -------------------------------------------------------------

LAUNCH = """
import sys
from pathlib import Path
from alpaca_lib.launch import launcher
from alpaca_lib.launch.launcher import launch
from alpaca_lib.training.settings import Settings
launcher._uses_torchrun = lambda: sys.argv[2] == "torchrun"
for line in launch(Settings.load(Path(sys.argv[1])), processes=1):
    print(line["step"], flush=True)
"""


@pytest.mark.linux
@pytest.mark.slow
@pytest.mark.usefixtures("tiny_model")
@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT"])
def test_nothing_outlives_the_launching_python(settings, tmp_path, name, starter):
    """Killed, or stopped by a Ctrl-C that reaches its whole session: the run saves a
    checkpoint and ends."""
    end = getattr(signal, name)
    file = settings.save(tmp_path / "given.json")
    python = subprocess.Popen(
        [sys.executable, "-c", LAUNCH, str(file), starter],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    assert [python.stdout.readline() for _ in range(2)] == ["1\n", "2\n"]
    processes = ranks(settings)
    assert set(processes) == {0}
    os.killpg(python.pid, end)
    assert gone(processes.values(), 30)
    path, step = checkpoints.find_newest(Path(settings.output_dir))
    assert step >= 2 and checkpoints.find_damage(path) is None
    python.stdout.close()
    assert python.wait(timeout=30) == -end


@pytest.mark.posix
def test_end_with_launcher():
    """A process that launch started ends by SIGTERM when the other end of its input closes,
    and another process takes no notice of its input."""
    code = (
        "import time; from alpaca_lib.launch.launcher import end_with_launcher; "
        "end_with_launcher(); time.sleep(5)"
    )
    started = {**os.environ, "ALPACA_LAUNCHED_IN": "/nowhere"}
    for environment, expected in ((started, -signal.SIGTERM), (dict(os.environ), None)):
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, env=environment
        )
        process.stdin.close()
        try:
            assert process.wait(timeout=30 if expected else 1.5) == expected
        except subprocess.TimeoutExpired:
            assert expected is None
        finally:
            process.kill()
            process.wait()
