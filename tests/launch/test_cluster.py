"""Launcher files: read back, run by bash with stand-ins for a scheduler's commands."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from alpaca_lib.launch.cluster import KINDS, Cluster, notes, render
from alpaca_lib.launch.launcher import free_port, watch
from alpaca_lib.training import checkpoints
from alpaca_lib.training.settings import Settings

# What Slurm's commands do, on one machine. Like the real one, srun kills its tasks when it
# gets SIGTERM itself.
STAND_INS = {
    "srun": """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
trap 'kill -KILL $(cat "$CALLS/step"); exit 137' TERM
: > "$CALLS/step"
for ((node = 0; node < SLURM_JOB_NUM_NODES; node++)); do
    SLURM_NODEID=$node "$@" & echo $! >> "$CALLS/step"
done
code=0
for task in $(cat "$CALLS/step"); do wait "$task" || code=$?; done
exit $code
""",
    "scancel": """#!/bin/bash
[[ $1 == --signal=TERM && $2 == "$SLURM_JOB_ID" ]] && kill -TERM $(cat "$CALLS/step")
""",
    "scontrol": """#!/bin/bash
case "$1 $2" in
"show hostnames") [[ $3 == "node[1-2]" ]] && printf '127.0.0.1\\n127.0.0.2\\n';;
"show job") echo "JobId=$3 JobState=$JOB_STATE Reason=None";;
"requeue $SLURM_JOB_ID") echo "$2" >> "$CALLS/requeued";;
*) exit 1;;
esac
""",
    # For `python` itself: its arguments, a checkpoint or none, and the wait for SIGTERM.
    "stub": """#!/bin/bash
printf '%s\\0' "$@" > "$CALLS/arguments-${SLURM_NODEID:-0}"
printf '%s\\0' "$PWD" "$TORCH_ELASTIC_SHUTDOWN_TIMEOUT" > "$CALLS/environment"
[[ $STUB == fail ]] && exit 3
[[ $STUB == end ]] && exit 0
trap '[[ -n $SAVE ]] && mkdir -p "$SAVE/checkpoint-10"; exit 1' TERM
touch "$CALLS/waits"
while :; do sleep 0.05; done
""",
}


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """A folder of what the stand-ins were called with; they are first on PATH."""
    if sys.platform != "linux":
        pytest.skip("clusters run Linux, and so do these scripts")
    folder = tmp_path / "calls"
    folder.mkdir()
    for name, text in STAND_INS.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    known = {"CALLS": str(folder), "PATH": f"{folder}:{os.environ['PATH']}", "STUB": "end"}
    slurm = {"SLURM_JOB_ID": "123", "SLURM_JOB_NODELIST": "node[1-2]", "JOB_STATE": "RUNNING"}
    for name, value in {**known, **slurm, "SLURM_JOB_NUM_NODES": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield folder
    tasks = (folder / "step").read_text().split() if (folder / "step").exists() else []
    for task in tasks:  # of a test that failed
        with contextlib.suppress(OSError):
            if str(folder).encode() in Path("/proc", task, "environ").read_bytes():
                os.kill(int(task), signal.SIGTERM)


@pytest.fixture
def settings_file(tmp_path):
    """Settings whose own path, and whose output_dir, are hard for a shell."""
    folder = tmp_path / ("it's a $HOME" if os.name == "nt" else """it's "a" $HOME""")
    folder.mkdir()
    out = tmp_path / "out 'of' $HOME"
    settings = Settings(data_path="d.json", output_dir=str(out), save_every=5)
    return settings.save(folder / "my settings.json")


def bash(text, *arguments, **options):
    """The finished run of a script."""
    return subprocess.run(
        ["bash", "-c", text, "script", *arguments],
        capture_output=True, text=True, timeout=120, **options,
    )  # fmt: skip


def read(file):
    """The texts that a stand-in wrote with zero bytes between."""
    return file.read_text().split("\0")[:-1]


def script_of(kind, text):
    """What a machine runs of a launcher file."""
    if kind in ("torchrun", "slurm"):
        return text
    document = yaml.safe_load(text)
    if kind == "skypilot":
        return document["run"]
    assert document["spec"]["trainer"]["command"][:2] == ["bash", "-c"]
    return document["spec"]["trainer"]["command"][2]


# --- one line ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_ends_in_the_same_line(kind, settings_file, calls, tmp_path, monkeypatch):
    """Run by bash, each kind calls torchrun with this node's number, the head's address and
    the settings file, whatever is in its name."""
    work = tmp_path / "a 'work' dir"
    work.mkdir()
    cluster = Cluster(
        nodes=2, gpus_per_node=4, port=30123, head="10.0.0.1", grace=90,
        python=str(calls / "stub"), volume="shared", workdir=str(work), setup="true\nset -x",
    )  # fmt: skip
    if kind == "skypilot":
        cluster = cluster.replace(workdir=str(settings_file.parent))
    text = render(kind, settings_file, cluster)
    script = script_of(kind, text)
    assert bash(f"bash -n <<'END_OF_SCRIPT'\n{script}\nEND_OF_SCRIPT").returncode == 0
    variables = {
        "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        "SKYPILOT_NUM_GPUS_PER_NODE": "4", "PET_NODE_RANK": "1", "PET_MASTER_ADDR": "10.0.0.1",
        "PET_MASTER_PORT": "30123",
    }  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    done = bash(script, "1", cwd=cluster.workdir)
    assert done.returncode == 0, done.stderr
    *_, arguments = sorted(calls.glob("arguments-*"))
    file = settings_file.name if kind == "skypilot" else str(settings_file)
    head = "127.0.0.1" if kind == "slurm" else "10.0.0.1"
    assert read(arguments) == [
        "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=4", "--node_rank=1",
        f"--master_addr={head}", "--master_port=30123",
        "-m", "alpaca_lib.training", "run", file,
    ]  # fmt: skip
    assert read(calls / "environment") == [cluster.workdir, "80"]


def test_torchrun_on_one_node_and_without_a_number(settings_file, calls):
    """One node needs no number and no head; of several, a start without number is refused."""
    one = Cluster(python=str(calls / "stub"))
    assert bash(render("torchrun", settings_file, one)).returncode == 0
    arguments = read(calls / "arguments-0")
    assert "--node_rank=0" in arguments and "--master_addr=127.0.0.1" in arguments
    done = bash(render("torchrun", settings_file, one.replace(nodes=2, head="10.0.0.1")))
    assert done.returncode != 0 and "number of this node" in done.stderr


def test_a_time_limit_is_passed_on(settings_file, calls, tmp_path):
    """minutes: in Slurm's own words, elsewhere a signal that lets the run save."""
    cluster = Cluster(python=str(calls / "stub"), minutes=90)
    assert "#SBATCH --time=90\n" in render("slurm", settings_file, cluster)
    text = render("torchrun", settings_file, cluster)
    assert "timeout 90m " in text
    done = bash(text.replace("timeout 90m", "timeout 0.5s"), env={**os.environ, "STUB": "wait"})
    assert done.returncode == 124 and (calls / "waits").exists()


# --- the files --------------------------------------------------------------------------


def directives(text):
    """The options of the #SBATCH lines, which come before any command."""
    lines = text.splitlines()
    assert lines[0] == "#!/bin/bash"
    found = [n for n, line in enumerate(lines) if line.startswith("#SBATCH ")]
    assert all(line.startswith("#") for line in lines[: found[-1]])
    return [lines[n].removeprefix("#SBATCH ") for n in found]


def test_slurm_options(settings_file):
    """One task a node with all of its GPUs, time to save in, and back into the queue."""
    cluster = Cluster(
        nodes=2, minutes=600, grace=300, name="first-try", partition="gpu,big", account="me",
        options="--mem=0 --exclusive",
    )  # fmt: skip
    assert directives(render("slurm", settings_file, cluster)) == [
        "--job-name=first-try", "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=64",
        "--gpus-per-node=8", "--time=600", "--partition=gpu,big", "--account=me",
        "--output=%x-%j.log", "--open-mode=append", "--signal=B:TERM@300", "--requeue",
        "--mem=0", "--exclusive",
    ]  # fmt: skip
    plain = directives(render("slurm", settings_file, Cluster(gpus_per_node=0)))
    named = ("--gpus", "--time", "--partition", "--account")
    assert not [option for option in plain if option.startswith(named)]


def test_skypilot_task(settings_file):
    """The fields of a task; a bucket is mounted so that files in it can grow."""
    file = settings_file
    settings = Settings.load(file).replace(output_dir="/runs/first")
    settings.save(file)
    cluster = Cluster(
        gpus_per_node=4, gpu="A100-80GB", spot=True, image="me/alpaca:1", volume="s3://mine",
        setup="pip install -r requirements.txt", workdir=str(file.parent), name="first",
    )  # fmt: skip
    task = yaml.safe_load(render("skypilot", file, cluster))
    run = task.pop("run")
    assert task == {
        "name": "first",
        "num_nodes": 1,
        "resources": {
            "accelerators": "A100-80GB:4",
            "cpus": "32+",
            "use_spot": True,
            "image_id": "docker:me/alpaca:1",
        },
        "workdir": str(file.parent),
        "file_mounts": {"/runs": {"source": "s3://mine", "mode": "MOUNT_CACHED"}},
        "setup": "pip install -r requirements.txt\n",
    }
    assert "pip install" not in run
    many = cluster.replace(nodes=2, volume="my-volume", setup="", image="", gpus_per_node=0)
    task = yaml.safe_load(render("skypilot", file, many))
    assert task["volumes"] == {"/runs": "my-volume"} and task["num_nodes"] == 2
    assert task["resources"] == {"cpus": "8+", "use_spot": True}
    assert "setup" not in task and "file_mounts" not in task


def test_kubernetes_job(settings_file):
    """The fields of Kubeflow Trainer's TrainJob, with the claim where output_dir is."""
    Settings.load(settings_file).replace(output_dir="/runs/first").save(settings_file)
    cluster = Cluster(nodes=3, gpus_per_node=2, image="me/alpaca:1", volume="claim", name="b2")
    job = yaml.safe_load(render("kubernetes", settings_file, cluster))
    assert (job["apiVersion"], job["kind"]) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")
    assert job["metadata"] == {"name": "b2"}
    assert job["spec"]["runtimeRef"] == {"name": "torch-distributed"}
    trainer = job["spec"]["trainer"]
    assert (trainer["image"], trainer["numNodes"]) == ("me/alpaca:1", 3)
    assert trainer["numProcPerNode"] == 2
    assert trainer["resourcesPerNode"] == {
        "requests": {"cpu": "16"},
        "limits": {"nvidia.com/gpu": 2},
    }
    (patch,) = job["spec"]["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = node["template"]["spec"]["template"]["spec"]
    assert {"name": "runs", "persistentVolumeClaim": {"claimName": "claim"}} in pod["volumes"]
    (container,) = pod["containers"]
    assert node["name"] == container["name"] == "node"  # the runtime's own names
    paths = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert paths == {"runs": "/runs", "memory": "/dev/shm"}
    plain = yaml.safe_load(render("kubernetes", settings_file, Cluster(gpus_per_node=0)))
    assert "image" not in plain["spec"]["trainer"]
    assert plain["spec"]["trainer"]["resourcesPerNode"] == {"requests": {"cpu": "8"}}
    assert plain["spec"]["trainer"]["numProcPerNode"] == 1


# --- what does not fit ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"nodes": 0}, "nodes 0: a whole number, at least 1"),
        ({"nodes": 1.5}, "nodes 1.5"),
        ({"gpus_per_node": -1}, "gpus_per_node -1"),
        ({"grace": 10}, "grace 10.* at least 30"),
        ({"minutes": 2}, "minutes 2: more than grace, 120 s"),
        ({"port": 70000}, "port 70000: .*at most 65535"),
        ({"name": "My Run"}, "name 'My Run': use a letter"),
        ({"partition": "gpu\n#SBATCH --uid=0"}, "partition .* one line"),
        ({"options": "-q low"}, "options '-q': write each of them as --name=value"),
    ],
)
def test_wrong_machines(values, words):
    """A value that cannot be is named with its fix."""
    with pytest.raises(ValueError, match=words):
        Cluster(**values)


@pytest.mark.parametrize(
    ("kind", "values", "words"),
    [
        ("slrum", {}, "kind 'slrum': use one of torchrun, slurm, skypilot, kubernetes"),
        ("torchrun", {"nodes": 2}, "head ''.*address of node 0"),
        ("slurm", {"image": "x"}, "image 'x': .* setup"),
        ("skypilot", {"workdir": "/elsewhere"}, "workdir '/elsewhere' is copied"),
        ("skypilot", {"nodes": 2}, "volume ''"),
        ("skypilot", {"nodes": 2, "volume": "s3://b"}, "volume 's3://b'.* not a bucket"),
        ("skypilot", {"volume": "s3://b"}, "output_dir 'out': volume needs one like"),
        ("skypilot", {"spot": True, "volume": "v"}, "save_every 0"),
        ("kubernetes", {"volume": "claim"}, "output_dir 'out'"),
    ],
)
def test_what_a_kind_cannot_do(kind, values, words, tmp_path):
    """A description that a kind has no option for is refused, with the fix."""
    file = Settings(data_path="d.json", output_dir="out").save(tmp_path / "settings.json")
    with pytest.raises(ValueError, match=words):
        render(kind, file, Cluster(**{"workdir": str(tmp_path), **values}))


def test_settings_are_checked(tmp_path):
    """The settings file is read: a missing or wrong one is an error before any submission."""
    with pytest.raises(ValueError, match=r"none\.json: no readable settings"):
        render("slurm", tmp_path / "none.json", Cluster())


def test_notes(tmp_path):
    """What is only doubtful is said, and stands in the file as a comment."""
    settings = Settings(data_path="d.json", output_dir="runs/first")
    (note,) = notes("slurm", settings, Cluster(nodes=2))
    assert "output_dir 'runs/first'" in note and "2 nodes must see that one folder" in note
    text = render("slurm", settings.save(tmp_path / "s.json"), Cluster(nodes=2))
    assert f"# {note}\n" in text
    assert notes("slurm", settings, Cluster()) == []
    assert notes("slurm", settings.replace(output_dir="/x/y"), Cluster(nodes=2)) == []
    assert any("volume" in note for note in notes("skypilot", settings, Cluster()))
    assert any("spot" in note for note in notes("slurm", settings, Cluster(spot=True)))


# --- the batch script, run --------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "save", "minutes", "again"),
    [
        ("RUNNING", True, 3, True),
        ("RUNNING", False, 0, True),  # preempted while it loads
        ("RUNNING", False, 3, False),  # a limit that is too short would be so for ever
        ("COMPLETING", True, 3, False),  # scancel
    ],
)
def test_stopped_by_sigterm(state, save, minutes, again, settings_file, calls):
    """SIGTERM reaches every node's process, not by way of srun; then the queue, or not."""
    out = Settings.load(settings_file).output_dir
    cluster = Cluster(nodes=2, minutes=minutes, python=str(calls / "stub"))
    known = {"STUB": "wait", "JOB_STATE": state, "SAVE": out if save else ""}
    process = subprocess.Popen(
        ["bash", "-c", render("slurm", settings_file, cluster)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **known},
    )  # fmt: skip
    wait_for(lambda: (calls / "waits").exists() and (calls / "arguments-1").exists(), process)
    time.sleep(0.2)  # the second stub sets its trap
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 1, said
    assert (calls / "requeued").exists() is again, said
    assert ("not queued again" in said) is not again
    assert not [pid for pid in (calls / "step").read_text().split() if Path("/proc", pid).exists()]


def test_a_failed_run_is_not_queued_again(settings_file, calls, monkeypatch):
    """A run that fails by itself would fail again: the job ends with its code."""
    monkeypatch.setenv("STUB", "fail")
    cluster = Cluster(nodes=2, python=str(calls / "stub"))
    assert bash(render("slurm", settings_file, cluster)).returncode == 3
    assert not (calls / "requeued").exists()


def wait_for(condition, process, seconds=90):
    """Waits for a condition while the process lives."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, process.args
        time.sleep(0.05)


def losses(folder):
    """The training losses in the order of the file."""
    lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    return [line["loss"] for line in map(json.loads, lines) if "loss" in line]


@pytest.fixture
def settings(make_tiny, tokenizer, data_file, tmp_path):
    """Steps of a few milliseconds on the CPU in float32."""
    make_tiny(hidden_size=16, intermediate_size=32, num_attention_heads=2).save_pretrained(
        tmp_path / "model"
    )
    tokenizer.save_pretrained(tmp_path / "model")
    return Settings(
        data_path=str(data_file), output_dir=str(tmp_path / "one"), model=str(tmp_path / "model"),
        max_steps=3, examples_per_step=5, max_length=128, row_length=256, rows_per_micro_batch=1,
        learning_rate=1e-3, device="cpu", dtype="float32",
    )  # fmt: skip


@pytest.mark.slow
def test_slurm_job_stopped_and_queued_again(settings, calls, tmp_path):
    """Two nodes, one process each: a real job gets SIGTERM, saves, asks to be queued
    again, resumes when it is, and has the losses of one process that was never stopped."""
    from alpaca_lib.training.loop import train

    settings = settings.replace(max_steps=30)
    two = settings.replace(output_dir=str(tmp_path / "two"))
    file = two.save(tmp_path / "settings.json")
    cluster = Cluster(nodes=2, gpus_per_node=0, port=free_port(), python=sys.executable)
    script = tmp_path / "job.sh"
    script.write_text(render("slurm", file, cluster))
    metrics, log = Path(two.output_dir) / "metrics.jsonl", tmp_path / "job.log"
    with open(log, "a", encoding="utf-8") as stream:  # --open-mode=append
        job = subprocess.Popen(["bash", script], stdout=stream, stderr=stream)
        wait_for(lambda: metrics.is_file() and metrics.read_text().count("\n") >= 2, job)
        job.send_signal(signal.SIGTERM)
        assert job.wait(timeout=60) == 1
        path, step = checkpoints.find_newest(Path(two.output_dir))
        assert 2 <= step < 30 and checkpoints.find_damage(path) is None
        assert (calls / "requeued").read_text() == "123\n"
        again = subprocess.run(["bash", script], stdout=stream, stderr=stream, timeout=120)
    said = log.read_text()
    assert again.returncode == 0, said
    assert f"stop requested: step {step} of 30" in said and f"checkpoint-{step}" in said
    assert (calls / "requeued").read_text() == "123\n"
    assert json.loads((Path(two.output_dir) / "run.json").read_text())["processes"] == 2
    assert losses(two.output_dir) == pytest.approx(losses(train(settings)), rel=1e-4)
    seen = [line["step"] for line in watch(two.output_dir, timeout=5)]
    assert seen == list(range(1, 31))


@pytest.mark.slow
def test_skypilot_run(settings, calls, tmp_path, monkeypatch):
    """The run of a task, with the variables that SkyPilot sets, trains to the end."""
    out = tmp_path / "sky" / "first"
    file = settings.replace(output_dir=str(out)).save(tmp_path / "settings.json")
    variables = {"NODE_RANK": "0", "NODE_IPS": "127.0.0.1", "NUM_GPUS_PER_NODE": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(f"SKYPILOT_{name}", value)
    cluster = Cluster(
        gpus_per_node=1, port=free_port(), python=sys.executable, workdir=str(tmp_path)
    )
    task = yaml.safe_load(render("skypilot", file, cluster))
    done = bash(task["run"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(losses(out)) == 3 and (out / "config.json").is_file()
