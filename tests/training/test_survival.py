"""One process, two, two nodes: the same run; and a kill at any moment loses nothing.

Children are forked from a server that has imported torch once, so that a test can
have many of them; each is a process of its own, and a kill is a real SIGKILL.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from alpaca_lib.launch import launcher
from alpaca_lib.training import checkpoints
from alpaca_lib.training.loop import train
from alpaca_lib.training.settings import Settings
from alpaca_lib.training.sharding import Distributed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL and no fork"),
]
ALONE = Distributed(0, 1, 0)
PRELOAD = ["alpaca_lib.training.loop", "alpaca_lib.training.checkpoints", "peft", "bitsandbytes"]
PRELOAD += ["torch.distributed.checkpoint", "torch.distributed.fsdp", "torch.distributed.tensor"]
LORA = {"method": "lora", "lora_targets": "all-linear", "lora_dropout": 0.0}

TRAIN = """
import os, signal, sys, traceback
os.environ.update(environment)
errors = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.dup2(errors, 1), os.dup2(errors, 2)
import torch
torch.set_num_threads(1)
from alpaca_lib.training import flops, loop, settings
flops.gemm_rate.__defaults__ = (0.02,)

def report(line):
    if kill_at and "loss" in line and line["step"] == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)

if background:  # as on a GPU
    from alpaca_lib.training import checkpoints

    begin = checkpoints.Saver.__init__
    checkpoints.Saver.__init__ = lambda self, folder, dist, background: begin(
        self, folder, dist, True
    )
loop.train(settings.Settings.from_dict(values), report=report)
"""


@pytest.fixture(scope="module")
def server():
    """The multiprocessing context whose children come from the server."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


@pytest.fixture
def processes(server, tmp_path):
    """A function: trains in that many processes; with ``kill_at`` rank 0 gets SIGKILL in that
    step, and the others after it."""

    def run(settings, size=1, kill_at=0, background=False):
        port, children = str(launcher.free_port()), []
        log = tmp_path / f"{Path(settings.output_dir).name}.log"
        for rank in range(size):
            environment = {
                "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank),
                "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port, "OMP_NUM_THREADS": "1",
            }  # fmt: skip
            values = {
                "environment": environment, "values": settings.to_dict(), "kill_at": kill_at,
                "log": str(log), "background": background,
            }  # fmt: skip
            children.append(server.Process(target=exec, args=(TRAIN, values), daemon=True))
        try:
            for child in children:
                child.start()
            children[0].join(100)
            for child in children[1:]:
                child.kill() if kill_at else child.join(30)
                child.join()
        finally:
            for child in children:
                child.kill()
                child.join()
        said = log.read_text(errors="replace")[-3000:]
        if kill_at:
            assert children[0].exitcode == -9, said
        else:
            assert [child.exitcode for child in children] == [0] * size, said
        return Path(settings.output_dir)

    return run


@pytest.fixture(scope="module")
def wider_folder(make_tiny, small_folder, tmp_path_factory):
    """The same with 64 channels, as blocks of 4-bit weights have values."""
    folder = tmp_path_factory.mktemp("wider")
    shutil.copytree(small_folder, folder, dirs_exist_ok=True)
    make_tiny(vocab_size=461).save_pretrained(folder)
    return folder


@pytest.fixture
def settings(small_folder, data_file, tmp_path):
    """Four packed steps of six examples, in two or three micro-batches, in float32."""
    return Settings(
        data_path=str(data_file), output_dir=str(tmp_path / "run"), model=str(small_folder),
        max_steps=4, examples_per_step=6, max_length=96, row_length=128, rows_per_micro_batch=1,
        learning_rate=1e-2, device="cpu", dtype="float32",
    )  # fmt: skip


def beside(settings, name, **changes):
    """The same run in a folder of its own."""
    return settings.replace(output_dir=str(Path(settings.output_dir).parent / name), **changes)


def numbers(folder, names=("loss", "validation_loss", "grad_norm")):
    """All losses and norms that a run has logged, in order."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines for name in names if name in line]


def losses(folder):
    """The training losses in order of steps."""
    return numbers(folder, ["loss"])


def weights(folder):
    """All saved tensors of a folder by name."""
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def same(a, b):
    """Whether two runs are equal to the bit: every loss and norm, every weight."""
    mine, theirs = weights(a), weights(b)
    assert mine and set(mine) == set(theirs) and len(losses(a)) == 4
    return numbers(a) == numbers(b) and all(mine[n].equal(theirs[n]) for n in mine)


def agree(a, b, tolerance=1e-5):
    """Whether two runs are the same but for the rounding of float32: losses and norms, and of
    each tensor |a - b| / |b|, as Euclidean norms. And whether they trained at all."""
    mine, theirs, logged, others = weights(a), weights(b), numbers(a), numbers(b)
    assert mine and set(mine) == set(theirs) and len(logged) == len(others) >= 8
    assert max(losses(b)) - min(losses(b)) > 1e-3
    far = [abs(x - y) / y for x, y in zip(logged, others, strict=True)]
    far += [
        float((mine[n].float() - t.float()).norm() / t.float().norm()) for n, t in theirs.items()
    ]
    print(f"{a.name}: {max(far[: len(logged)]):.1e} logged, {max(far[len(logged) :]):.1e} weights")
    return max(far) <= tolerance


# --- the same run on other processes ----------------------------------------------------


def test_batchings_are_one_run(settings):
    """Packed, bucketed, padded as they come, one micro-batch or many: the same steps."""
    packed = train(beside(settings, "pack", validation_rows=2))
    for name, changes in {
        "wide": {"rows_per_micro_batch": 16},
        "bucket": {"batching": "bucket", "rows_per_micro_batch": 4},
        "pad": {"batching": "pad", "rows_per_micro_batch": 2},
    }.items():
        assert agree(train(beside(settings, name, validation_rows=2, **changes)), packed), name


@pytest.mark.parametrize(
    "changes, tolerance",
    [
        ({}, 1e-5),
        ({"activation_checkpointing": True, "batching": "bucket"}, 1e-5),
        ({"rows_per_micro_batch": 16, "validation_rows": 2, "keep_best": True}, 1e-5),
        ({"dtype": "bfloat16"}, 5e-3),  # the saved weights' own rounding
        ({"dtype": "bfloat16", "master_weights": False}, 2e-2),
        ({**LORA}, 1e-5),
        ({**LORA, "lora_dora": True, "lora_rs": True, "activation_checkpointing": True}, 1e-5),
        ({**LORA, "quantization": "nf4"}, 1e-5),
        ({**LORA, "quantization": "int8"}, 1e-3),
    ],
    ids=lambda value: " ".join(value) or "full" if isinstance(value, dict) else "",
)
def test_two_processes_are_one(settings, wider_folder, processes, changes, tolerance):
    """Sharded (FSDP2), or each with the whole quantised base: the losses and final weights of
    one process, to the rounding of float32 (bfloat16 and int8 round more)."""
    if "quantization" in changes:
        pytest.importorskip("bitsandbytes")
        changes = {**changes, "model": str(wider_folder)}
    one = train(beside(settings, "one", **changes))
    two = processes(beside(settings, "two", **changes), 2)
    assert json.loads((two / "run.json").read_text())["processes"] == 2
    shares = json.loads((two / "shards" / "rank1.json").read_text())
    halves = [s["mine"][0] == s["whole"][0] // 2 for s in shares if "lora_" not in s["name"]]
    assert not any(halves) if "quantization" in changes else all(halves)
    assert agree(two, one, tolerance)


def test_a_parameter_that_one_rank_has_nothing_of(settings, small_folder, processes, tmp_path):
    """Experts' gates have a single row, which rank 0 has: the same run on two processes, and
    through a kill and a resume there."""
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    folder = shutil.copytree(small_folder, tmp_path / "experts")
    torch.manual_seed(0)
    config = Qwen2MoeConfig(
        vocab_size=461, hidden_size=16, intermediate_size=32, moe_intermediate_size=16,
        shared_expert_intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_experts=4, num_experts_per_tok=2, initializer_range=0.1,
    )  # fmt: skip
    Qwen2MoeForCausalLM(config).save_pretrained(folder)
    settings = settings.replace(model=str(folder), save_every=2)
    one, two = train(beside(settings, "one")), processes(beside(settings, "two"), 2)
    shares = json.loads((two / "shards" / "rank1.json").read_text())
    assert [0, 16] in [share["mine"] for share in shares] and agree(two, one)
    processes(beside(settings, "killed"), 2, kill_at=3)
    assert same(processes(beside(settings, "killed"), 2), two)


def test_gathering_once_a_step_is_gathering_by_layer(settings, processes):
    """The same losses and weights, on two processes and with several micro-batches."""
    step = processes(beside(settings, "step", gather="step"), 2)
    layer = processes(beside(settings, "layer", gather="layer"), 2)
    assert agree(step, layer, 1e-6)


def test_a_saved_adapter_on_two_processes(settings, processes):
    """A run that begins with an adapter: on two processes the losses of one."""
    first = train(beside(settings, "first", **LORA))
    changes = {**LORA, "adapter": str(first), "seed": 5}
    one = train(beside(settings, "one", **changes))
    assert losses(one)[0] < losses(first)[0] - 1e-3
    assert agree(processes(beside(settings, "two", **changes), 2), one)


NODES = """
import os, sys
from alpaca_lib.training import flops, loop, settings
flops.gemm_rate.__defaults__ = (0.02,)
for file, port in zip(sys.argv[1::2], sys.argv[2::2]):
    loop.train(settings.Settings.load(file))
    # torchrun's own store serves one group of processes; the next has a port of its own.
    os.environ.update(TORCHELASTIC_USE_AGENT_STORE="False", MASTER_PORT=port)
"""


def test_two_nodes_are_one_process(settings, tmp_path):
    """Two torchrun agents on this machine, as on two nodes: hybrid sharding (each node has
    the whole model), then full (each has half), both with the run of one process."""
    one = train(beside(settings, "one"))
    (tmp_path / "nodes.py").write_text(NODES)
    runs = {mode: beside(settings, mode, sharding=mode) for mode in ("auto", "full")}
    arguments = [
        str(value)
        for mode, run in runs.items()
        for value in (run.save(tmp_path / f"{mode}.json"), launcher.free_port())
    ]
    port = launcher.free_port()
    agents = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2"),
                *("--nproc_per_node=1", f"--node_rank={node}", "--master_addr=127.0.0.1"),
                *(f"--master_port={port}", str(tmp_path / "nodes.py"), *arguments),
            ],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for node in (0, 1)
    ]  # fmt: skip
    try:
        said = [agent.communicate(timeout=180)[0] for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
            agent.wait()
    assert [agent.returncode for agent in agents] == [0, 0], "\n".join(said)[-3000:]
    for mode, part in (("auto", 1), ("full", 2)):
        folder = Path(runs[mode].output_dir)
        shares = json.loads((folder / "shards" / "rank1.json").read_text())
        assert shares and all(s["mine"][0] == s["whole"][0] // part for s in shares)
        assert agree(folder, one), mode


@pytest.mark.skipif(
    not (os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")),
    reason="torch.compile needs a C++ compiler on a CPU",
)
def test_compiled_is_not_compiled(settings, make_tiny, small, small_folder, monkeypatch, tmp_path):
    """compile=True: the losses and weights of a run without (one layer, and every step all
    examples in one row, so that one shape is compiled)."""
    import torch._inductor.config as inductor

    monkeypatch.setattr(inductor, "compile_threads", 1)  # no pool of compiling processes
    folder = shutil.copytree(small_folder, tmp_path / "layer")
    make_tiny(vocab_size=461, num_hidden_layers=1, **small).save_pretrained(folder)
    settings = settings.replace(model=str(folder), examples_per_step=12, rows_per_micro_batch=16)
    plain = train(beside(settings, "plain"))
    assert agree(train(beside(settings, "compiled", compile=True)), plain)


# --- killed and gone on -----------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"batching": "bucket", "warmup": 2, "schedule": "linear"},
        {**LORA, "lora_dropout": 0.3},
        {"dtype": "bfloat16"},
        {"dtype": "bfloat16", "master_weights": False},
        {"optimizer": "adamw8bit"},
        {**LORA, "quantization": "nf4", "lora_dropout": 0.1, "dtype": "bfloat16"},
        {"validation_rows": 3, "eval_every": 1, "keep_best": True, "learning_rate": 0.3},
    ],
    ids=lambda value: " ".join(value) or "full",
)
def test_resumed_after_a_kill_is_unbroken(settings, wider_folder, processes, changes):
    """2 steps, a checkpoint, SIGKILL in the third; then the same run again: every loss and
    every weight is that of an unbroken run, to the bit."""
    if "bitsandbytes" in str(changes) or {"optimizer", "quantization"} & set(changes):
        pytest.importorskip("bitsandbytes")
    if "quantization" in changes:
        changes = {**changes, "model": str(wider_folder)}
    settings = settings.replace(save_every=2, **changes)
    whole = train(beside(settings, "whole"))
    killed = processes(beside(settings, "killed"), kill_at=3)
    assert [p.name for p in killed.glob("checkpoint-*")] == ["checkpoint-2"]
    assert not list(killed.glob("*.safetensors"))
    train(beside(settings, "killed"))
    assert same(killed, whole)


@pytest.mark.parametrize(
    "changes", [{}, {"optimizer": "adamw8bit"}, {**LORA}], ids=["full", "adamw8bit", "lora"]
)
def test_two_processes_resumed_after_a_kill(
    settings, processes, small, small_folder, make_tiny, tmp_path, changes
):
    """The same on two processes: to the bit; and where one goes on from the checkpoint of
    two, or two from that of one, to the rounding of float32."""
    if "optimizer" in changes:
        pytest.importorskip("bitsandbytes")
        # 4,096 values or more have averages in 8 bits: some on both ranks, and the embedding
        # on rank 0 alone, whose part has 256 rows.
        folder = shutil.copytree(small_folder, tmp_path / "odd")
        make_tiny(vocab_size=511, **{**small, "intermediate_size": 512}).save_pretrained(folder)
        changes = {**changes, "model": str(folder)}
    settings = settings.replace(save_every=2, **changes)
    whole = processes(beside(settings, "whole"), 2)
    killed = processes(beside(settings, "killed"), 2, kill_at=3)
    shutil.copytree(killed, killed.with_name("other"))
    processes(beside(settings, "killed"), 2)
    assert same(killed, whole)
    if "optimizer" in changes:
        with pytest.raises(checkpoints.CheckpointError, match="processes were 2, are 1"):
            train(beside(settings, "other"))
        return
    assert agree(train(beside(settings, "other")), whole)
    one = processes(beside(settings, "one"), kill_at=3)
    assert agree(processes(beside(settings, "one"), 2), whole)
    assert json.loads((one / "run.json").read_text())["processes"] == 2


def test_two_processes_that_save_in_the_background(settings, processes):
    """As on GPUs: killed with a checkpoint on its way, two processes go on from the newest
    that is whole, and end as those that save before they go on; the best model with them."""
    settings = settings.replace(
        save_every=1, validation_rows=3, eval_every=1, keep_best=True, learning_rate=0.3
    )
    whole = processes(beside(settings, "whole"), 2)
    killed = processes(beside(settings, "killed"), 2, kill_at=3, background=True)
    newest = checkpoints.find_newest(killed, say=lambda text: None)
    assert newest is None or newest[1] in (1, 2)
    assert same(processes(beside(settings, "killed"), 2, background=True), whole)
    assert checkpoints.find_newest(killed)[1] == 4


# --- killed while saving ----------------------------------------------------------------

SAVE = """
import os, pathlib, torch
torch.set_num_threads(1)
os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
from alpaca_lib.training import checkpoints
from alpaca_lib.training.sharding import Distributed

dist, folder = Distributed(0, 1, 0), pathlib.Path(folder)
found = checkpoints.find_newest(folder, say=lambda text: None)
step, state = 1, eval(state)
if found:
    checkpoints.load(found[0], state, dist)
    step = found[1]  # which is saved again, as by a run that was killed after its last step
    assert all((t == step).all() for t in (state["model"]["w"], *state["optimizer"]["w"].values()))
saver = checkpoints.Saver(folder, dist, background=background)
while True:
    for tensor in (state["model"]["w"], *state["optimizer"]["w"].values()):
        tensor.fill_(step)
    saver.save(step, state, {"settings": {}}, keep=keep)
    connection.send_bytes(b".")
    step += 1
"""
STATE = """{
    "model": {"w": torch.empty(500_000)},
    "optimizer": {"w": {"exp_avg": torch.empty(500_000), "exp_avg_sq": torch.empty(500_000)}},
}"""


def whole_state(path, step):
    """Whether every value of a checkpoint is that of its step."""
    state = eval(STATE)
    checkpoints.load(path, state, ALONE)
    return all(
        bool((t == step).all()) for t in (state["model"]["w"], *state["optimizer"]["w"].values())
    )


def test_fifty_kills_while_saving(server, tmp_path):
    """Children that save 6 MB again and again, in the foreground and in the background, each
    killed at a random moment: from the first save on there always is a whole checkpoint,
    never of an earlier step than before, with the values of its step; the next goes on."""
    draw, folder, log = random.Random(0), tmp_path / "run", tmp_path / "log"
    folder.mkdir()
    kills, during, saves, last = 0, 0, 0, 0
    while kills < 50:
        ours, theirs = server.Pipe()
        values = {
            "folder": str(folder), "state": STATE, "background": bool(kills % 2), "log": str(log),
            "keep": 1 + kills % 3 // 2, "connection": theirs,
        }  # fmt: skip
        child = server.Process(target=exec, args=(SAVE, values), daemon=True)
        child.start()
        theirs.close()
        assert ours.poll(60), log.read_text()  # it has saved once
        time.sleep(draw.uniform(0.0, 0.15))
        child.kill()
        child.join()
        kills += 1
        with contextlib.suppress(EOFError):
            while ours.poll():
                ours.recv_bytes()
                saves += 1
        assert child.exitcode == -9, log.read_text()
        during += any(".checkpoint" in p.name for p in folder.iterdir())
        found = checkpoints.find_newest(folder, say=lambda text: None)
        assert found is not None and found[1] >= last and whole_state(*found)
        last = found[1]
    print(f"{kills} kills, {during} of them during one of {saves} saves; step {last}")
    assert during >= 10 and saves >= 50 and last >= 10


@pytest.mark.parametrize("again", [True, False], ids=["the same step again", "the next step"])
@pytest.mark.parametrize("keep", [0, 1])
def test_a_stop_before_every_change_of_the_disk(tmp_path, monkeypatch, again, keep):
    """A save that ends just before its n-th rename, deletion or sync, for every n: there is a
    whole checkpoint, and the next save works and leaves nothing behind."""

    class Stopped(BaseException):
        """As a kill is: nothing cleans up after it."""

    left = [10**9]

    def counted(function):
        def call(*arguments, **more):
            left[0] -= 1
            if left[0] < 0:
                raise Stopped
            return function(*arguments, **more)

        return call

    for module, name in ((os, "replace"), (os, "fsync"), (os, "unlink"), (os, "rmdir")):
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    monkeypatch.setattr(shutil, "rmtree", counted(shutil.rmtree))

    def save(step):
        state = {"model": {"w": torch.full((10,), float(step))}, "optimizer": {}}
        checkpoints.Saver(tmp_path, ALONE).save(step, state, {}, keep=keep)

    save(1)
    found, stops = 1, 0
    while True:
        step, left[0] = found + (not again), stops
        try:
            save(step)
        except (Stopped, checkpoints.CheckpointError):  # the second from within torch
            stops += 1
        else:
            break
        finally:
            left[0] = 10**9
        path, now = checkpoints.find_newest(tmp_path, say=lambda text: None)
        state = {"model": {"w": torch.empty(10)}}
        checkpoints.load(path, state, ALONE)
        assert now in (found, step) and (state["model"]["w"] == now).all()
        found = now
    assert stops >= 8
    assert not list(tmp_path.glob(".*")) and (tmp_path / f"checkpoint-{step}").is_dir()
    assert not keep or len(list(tmp_path.iterdir())) == 1


def test_folders_are_synced_before_old_checkpoints_go(tmp_path, monkeypatch):
    """After a power cut a rename counts only if its folder was synced: the new checkpoint's
    folders and the one it is in are, before the old one is deleted."""
    if os.name != "posix":
        pytest.skip("folders cannot be synced here")
    calls, sync, rmtree, replace_ = [], os.fsync, shutil.rmtree, os.replace

    def noted(handle):
        calls.append(("sync", os.readlink(f"/proc/self/fd/{handle}")))
        sync(handle)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("no /proc to see what is synced")
    state = {"model": {"w": torch.zeros(10)}, "optimizer": {}}
    saver = checkpoints.Saver(tmp_path, ALONE)
    saver.save(1, state, {}, keep=1)
    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(
        shutil, "rmtree", lambda p, **k: (calls.append(("delete", str(p))), rmtree(p, **k))
    )
    monkeypatch.setattr(
        os, "replace", lambda a, b: (calls.append(("rename", str(b))), replace_(a, b))
    )
    saver.save(2, state, {}, keep=1)
    work = str(tmp_path / ".checkpoint-2-partial")
    order = [
        max(n for n, call in enumerate(calls) if call == ("sync", f"{work}/state")),
        calls.index(("sync", work)),
        calls.index(("rename", str(tmp_path / "checkpoint-2"))),
        calls.index(("sync", str(tmp_path))),
        calls.index(("rename", str(tmp_path / ".checkpoint-1-partial"))),
    ]
    assert order == sorted(order)
    written = [p for p in (tmp_path / "checkpoint-2").rglob("*") if p.is_file()]
    assert all(
        any(
            call[0] == "sync" and Path(call[1]).name.lstrip(".").startswith(p.name.lstrip("."))
            for call in calls
        )
        for p in written
    )


def test_a_new_run_in_the_folder_of_a_longer_one(settings, processes):
    """resume "never" over a run with later checkpoints, killed: what it goes on from is its
    own, and the old run's are gone."""
    train(settings.replace(save_every=1, seed=1))
    folder = Path(settings.output_dir)
    assert checkpoints.find_newest(folder)[1] == 4
    again = settings.replace(save_every=2)
    processes(again.replace(resume="never"), kill_at=3)
    assert [p.name for p in folder.glob("checkpoint-*")] == ["checkpoint-2"]
    assert same(train(again), train(beside(again, "alone")))
