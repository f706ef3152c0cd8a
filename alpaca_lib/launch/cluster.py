"""Writes the file that starts a run on a cluster: Slurm, SkyPilot, Kubernetes or torchrun.

    render("slurm", Path("settings.json"), Cluster(nodes=2, gpus_per_node=8, minutes=600))

Every kind ends in the same torchrun line on each node. The rendezvous is static: a node gets
the address of node 0, a port there, and its own number.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from shlex import quote
from typing import Any, Self

from pydantic import model_validator

from alpaca_lib.errors import SettingsError
from alpaca_lib.optional import require
from alpaca_lib.options import Options, option
from alpaca_lib.training.settings import Settings


class Cluster(Options):
    """The machines of a run, and what their scheduler needs to know.

    >>> Cluster(nodes=2, gpus_per_node=8, minutes=600, partition="gpu").processes
    8
    """

    nodes: int = option(1, "machines", least=1, most=10**5)
    gpus_per_node: int = option(
        8, "GPUs per machine; 0: one process on its CPU", least=0, most=1024
    )
    gpu: str = option("H100", "SkyPilot's name of the GPU")
    cpus_per_node: int = option(0, "CPU cores requested; 0: 8 per process", least=0, most=4096)
    minutes: int = option(0, "time limit in minutes; 0: none", least=0, most=10**6)
    grace: int = option(
        120, "seconds to finish a step and save it after SIGTERM", least=30, most=10**5
    )
    name: str = option("alpaca", "the job's name")
    partition: str = option("", "Slurm's partition")
    account: str = option("", "Slurm's account")
    options: str = option("", "more options of sbatch, separated by spaces: --mem=0 --qos=low")
    spot: bool = option(False, "SkyPilot: cheaper machines that may be taken away at any time")
    image: str = option("", "SkyPilot, Kubernetes: the container image")
    volume: str = option("", "SkyPilot, Kubernetes: storage mounted at output_dir's parent folder")
    setup: str = option("", "shell commands before the run: pip install -r requirements.txt")
    workdir: str = option(".", "working directory; SkyPilot copies it to the machines")
    python: str = option("python", "the machines' Python")
    head: str = option("", "torchrun: the address of node 0")
    port: int = option(
        0, "port on node 0; 0: 29500, with Slurm one by the job's number", least=0, most=65535
    )

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        for name, value in self:
            if isinstance(value, str) and name != "setup" and not value.isprintable():
                raise ValueError(f"{name} {value!r}: one line of text is needed")
        if 0 < 60 * self.minutes <= self.grace:
            raise ValueError(f"minutes {self.minutes}: more than grace, {self.grace} s, is needed")
        if not re.fullmatch("[a-z]([-a-z0-9]{0,61}[a-z0-9])?", self.name):
            raise ValueError(f"name {self.name!r}: use a letter, then up to 62 of a-z, 0-9 and -")
        for text in self.options.split():
            if not re.fullmatch(r"--[a-z-]+(=\S+)?", text):
                raise ValueError(f"options {text!r}: write each of them as --name=value")
        return self

    @property
    def processes(self) -> int:
        """The number of processes per node."""
        return max(self.gpus_per_node, 1)

    @property
    def cpus(self) -> int:
        """The number of CPU cores requested per node."""
        return self.cpus_per_node or 8 * self.processes


def render(kind: str, settings_file: Path, cluster: Cluster) -> str:
    """Returns the text of the file: bash for torchrun and slurm, YAML for the others.

    Raises SettingsError, which names the value that does not fit and the fix.
    """
    if kind not in KINDS:
        raise SettingsError(f"kind {kind!r}: use one of {', '.join(KINDS)}")
    settings = Settings.load(settings_file)
    command, write = KINDS[kind]
    text = write(settings_file, settings, cluster)
    comments = "".join(f"# {line}\n" for line in [command, *notes(kind, settings, cluster)])
    return ("#!/bin/bash\n" if kind in ("torchrun", "slurm") else "") + comments + text


def notes(kind: str, settings: Settings, cluster: Cluster) -> list[str]:
    """Returns what to know before the start; the file has the same as comments."""
    out, nodes = f"output_dir {settings.output_dir!r}", cluster.nodes
    on_cloud = kind in ("skypilot", "kubernetes")
    found = []
    if nodes > 1 and not PurePosixPath(settings.output_dir).is_absolute():
        found.append(f"{out} is within workdir: all {nodes} nodes must see that one folder")
    if on_cloud and not cluster.volume:
        found.append(f"{out} is lost with the machine: name storage for it, volume")
    if cluster.spot and kind != "skypilot":
        found.append(f"spot is for skypilot: {kind} has its own options")
    if kind == "torchrun" and nodes > 1:
        found.append(f"NUMBER is 0 on {cluster.head}")
    if kind == "kubernetes":
        found.append("needs Kubeflow Trainer 2.2; an evicted pod has 30 s to save in")
    return found


def torchrun(file: Path, settings: Settings, cluster: Cluster) -> str:
    """Returns a bash script, which each of several nodes runs with its own number."""
    if cluster.nodes > 1 and not cluster.head:
        raise SettingsError(f"head '': {cluster.nodes} nodes need the address of node 0")
    number = '"${1:?the number of this node is missing}"' if cluster.nodes > 1 else "0"
    line = _line(cluster, quote(str(file.absolute())), number, quote(cluster.head or "127.0.0.1"))
    return f"{_before(cluster, os.path.abspath(cluster.workdir), cluster.setup)}\nexec {line}\n"


def slurm(file: Path, settings: Settings, cluster: Cluster) -> str:
    """Returns an sbatch script that saves before its time limit, then requeues itself."""
    if cluster.image:
        raise SettingsError(f"image {cluster.image!r}: Slurm has no option for it; use setup")
    options = {
        "job-name": cluster.name,
        "nodes": cluster.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": cluster.cpus,
        "gpus-per-node": cluster.gpus_per_node,
        "time": cluster.minutes,
        "partition": cluster.partition,
        "account": cluster.account,
        "output": "%x-%j.log",
        "open-mode": "append",
        "signal": f"B:TERM@{cluster.grace}",
    }
    directives = [f"--{name}={value}" for name, value in options.items() if value]
    directives += ["--requeue", *cluster.options.split()]
    # A job that reaches its time limit without a checkpoint would do so every time.
    enough = max(60 * cluster.minutes - cluster.grace - 120, 0) if cluster.minutes else 10**9
    line = _line(cluster, '"$SETTINGS"', '"$SLURM_NODEID"', '"$HEAD"', port='"$PORT"')
    lines = [
        *(f"#SBATCH {directive}" for directive in directives),
        _before(cluster, os.path.abspath(cluster.workdir), cluster.setup),
        f"SETTINGS={quote(str(file.absolute()))}",
        f"PORT={cluster.port or '$((20000 + SLURM_JOB_ID % 10000))'}",
        'HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)',
        "export SETTINGS PORT HEAD",
        f"OUTPUT_DIR={quote(settings.output_dir)} MINUTES={cluster.minutes} ENOUGH={enough}",
        "train() {",
        f"srun --kill-on-bad-exit=1 --cpus-per-task={cluster.cpus} bash -c {quote('exec ' + line)}",
        "}",
    ]
    return "\n".join(lines) + "\n" + Path(__file__).with_name("slurm.sh").read_text("utf-8")


def skypilot(file: Path, settings: Settings, cluster: Cluster) -> str:
    """Returns a task for `sky jobs launch`, which replaces preempted spot machines."""
    inside, bucket = os.path.relpath(file, cluster.workdir), "://" in cluster.volume
    if inside.startswith(".."):
        raise SettingsError(f"{file}: only workdir {cluster.workdir!r} is copied; move it there")
    if cluster.spot and not settings.save_every:
        raise SettingsError(
            "save_every 0: a spot machine is preempted without warning; set it above 0"
        )
    if not cluster.volume and (cluster.spot or cluster.nodes > 1):
        raise SettingsError("volume '': spot machines and several nodes need storage that stays")
    if bucket and cluster.nodes > 1:
        # Nodes would see each other's files too late to write one checkpoint together.
        raise SettingsError(f"volume {cluster.volume!r}: several nodes need a volume, not a bucket")
    # Mode MOUNT cannot append to a file, as metrics.jsonl needs.
    source = {"source": cluster.volume, "mode": "MOUNT_CACHED"} if bucket else cluster.volume
    gpus = cluster.gpus_per_node
    node, head = '"$SKYPILOT_NODE_RANK"', '"$(sed -n 1p <<< "$SKYPILOT_NODE_IPS")"'
    processes = '"$SKYPILOT_NUM_GPUS_PER_NODE"' if gpus else "1"
    line = _line(cluster, quote(inside), node, head, gpus=processes)
    task = {
        "name": cluster.name,
        "num_nodes": cluster.nodes,
        "resources": {
            "accelerators": f"{cluster.gpu}:{gpus}" if gpus else "",
            "cpus": f"{cluster.cpus}+",
            "use_spot": cluster.spot,
            "image_id": f"docker:{cluster.image}" if cluster.image else "",
        },
        "workdir": cluster.workdir,
        "file_mounts" if bucket else "volumes": {_mount(settings): source} if source else "",
        "setup": cluster.setup and cluster.setup.strip() + "\n",
        "run": f"{_before(cluster)}\n{line}\n",
    }
    return _yaml(task)


def kubernetes(file: Path, settings: Settings, cluster: Cluster) -> str:
    """Returns a TrainJob of Kubeflow Trainer 2, whose runtime sets the PET_ variables."""
    names = ('"$PET_NODE_RANK"', '"$PET_MASTER_ADDR"', '"$PET_MASTER_PORT"')
    line = _line(cluster, quote(str(file)), *names)
    script = f"{_before(cluster, cluster.workdir, cluster.setup)}\nexec {line}\n"
    # NCCL passes data between the GPUs of a node in shared memory; a pod has 64 MB of it.
    volumes: list[Any] = [{"name": "memory", "emptyDir": {"medium": "Memory"}}]
    mounts = [{"name": "memory", "mountPath": "/dev/shm"}]
    if cluster.volume:
        claim = {"claimName": cluster.volume}
        volumes.append({"name": "runs", "persistentVolumeClaim": claim})
        mounts.append({"name": "runs", "mountPath": _mount(settings)})
    pod = {"volumes": volumes, "containers": [{"name": "node", "volumeMounts": mounts}]}
    job = {"name": "node", "template": {"spec": {"template": {"spec": pod}}}}
    patch = {"template": {"spec": {"replicatedJobs": [job]}}}
    gpus = {"nvidia.com/gpu": cluster.gpus_per_node} if cluster.gpus_per_node else ""
    document = {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": cluster.name},
        "spec": {
            "runtimeRef": {"name": "torch-distributed"},
            "trainer": {
                "image": cluster.image,
                "command": ["bash", "-c", script],
                "numNodes": cluster.nodes,
                "numProcPerNode": cluster.processes,
                "resourcesPerNode": {"requests": {"cpu": str(cluster.cpus)}, "limits": gpus},
            },
            "runtimePatches": [{"manager": "alpaca-lib", "trainingRuntimeSpec": patch}],
        },
    }
    return _yaml(document)


KINDS = {
    "torchrun": ("bash FILE [NUMBER]", torchrun),
    "slurm": ("sbatch FILE", slurm),
    "skypilot": ("sky jobs launch FILE", skypilot),
    "kubernetes": ("kubectl apply -f FILE", kubernetes),
}


def _line(cluster: Cluster, file: str, node: str, head: str, port: str = "", gpus: str = "") -> str:
    """Returns a node's torchrun line; all arguments but cluster are quoted for the shell."""
    limit = f"timeout {cluster.minutes}m " if cluster.minutes and file != '"$SETTINGS"' else ""
    return (
        f"{limit}{quote(cluster.python)} -m torch.distributed.run --nnodes={cluster.nodes} "
        f"--nproc_per_node={gpus or cluster.processes} --node_rank={node} "
        f"--master_addr={head} --master_port={port or cluster.port or 29500} "
        f"-m alpaca_lib.training run {file}"
    )


def _before(cluster: Cluster, workdir: str = ".", setup: str = "") -> str:
    """Returns the shell's lines before the torchrun line."""
    place = f"cd {quote(workdir)}\n" if workdir != "." else ""
    setup = setup.strip() and setup.strip() + "\n"
    threads = cluster.cpus // cluster.processes or 1
    return f"""set -e -o pipefail
{place}{setup}export OMP_NUM_THREADS="${{OMP_NUM_THREADS:-{threads}}}"
# torchrun kills its ranks that many seconds after SIGTERM.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT={cluster.grace - 10}"""


def _mount(settings: Settings) -> str:
    """Returns the path to mount the storage at: the folder around output_dir."""
    out = PurePosixPath(settings.output_dir)
    if len(out.parts) < 3 or not out.is_absolute():
        raise SettingsError(f"output_dir {str(out)!r}: volume needs one like /where/this_run")
    return str(out.parent)


def _yaml(document: dict[str, Any]) -> str:
    """Returns a document as YAML without empty entries; scripts are literal blocks."""
    yaml = require("yaml")

    def represent_text(dumper: Any, value: str) -> Any:
        style = "|" if "\n" in value else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    def drop_empty(part: Any) -> Any:
        if not isinstance(part, dict):
            return part
        return {name: drop_empty(value) for name, value in part.items() if value != ""}

    dumper: Any = type("Dumper", (yaml.SafeDumper,), {})
    dumper.add_representer(str, represent_text)
    options: Any = {"sort_keys": False, "width": 1000, "allow_unicode": True}
    return str(yaml.dump(drop_empty(document), Dumper=dumper, **options))
