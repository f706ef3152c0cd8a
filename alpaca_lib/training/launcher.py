"""Starts a training run in processes of its own, and watches its metrics.

The same settings file goes to torchrun on one machine or, with --nnodes, on many.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alpaca_lib.training.settings import Settings


class LaunchError(RuntimeError):
    """A launched run that ended with an error; the text holds its last words."""


def torchrun_line(settings_file: Path, processes: int, port: int = 0) -> list[str]:
    """The command that starts the run on this machine."""
    return [
        *(sys.executable, "-m", "torch.distributed.run"),
        *("--nnodes=1", f"--nproc_per_node={processes}"),
        *("--master_addr=127.0.0.1", f"--master_port={port or free_port()}"),
        *("-m", "alpaca_lib.training", "run", str(settings_file)),
    ]


def launch(settings: Settings, processes: int = 2) -> Iterator[dict[str, Any]]:
    """Runs ``settings`` in so many processes; yields each line of metrics as it comes.

    Output goes to output_dir/train.log. Closing the iterator early (or Ctrl-C) tells
    the run to save and stop. Raises LaunchError if a process fails.
    """
    folder = Path(settings.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    command = torchrun_line(settings.save(folder / "settings.json"), processes)
    threads = max((os.cpu_count() or 1) // processes, 1)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    metrics, log = folder / "metrics.jsonl", folder / "train.log"
    metrics.unlink(missing_ok=True) if settings.resume == "never" else None
    seen = _lines(metrics)
    with open(log, "w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, env=environment
        )
        try:
            position = 0
            while True:
                ended = process.poll() is not None
                lines = _lines(metrics)
                # A resumed run first cuts its file to the checkpoint: begin again.
                position = 0 if lines[: len(seen)] != seen else max(position, 0)
                seen = lines
                while position < len(lines):
                    yield json.loads(lines[position])
                    position += 1
                if ended:
                    break
                time.sleep(0.2)
        finally:
            _end(process)
    if process.returncode != 0:
        raise LaunchError(_last_words(log, process.returncode))


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _lines(file: Path) -> list[str]:
    """The whole lines of a file that is being written."""
    if not file.is_file():
        return []
    text = file.read_text(encoding="utf-8")
    return text[: text.rfind("\n") + 1].splitlines()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Asks a running process to save and stop; kills it if it does not."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _last_words(log: Path, code: int) -> str:
    """The error that a run ended with: its own line if it wrote one, else the log's end."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    if errors:
        return f"{errors[-1].removeprefix('error: ')} (whole log: {log})"
    end = "\n".join(lines[-15:])
    return f"the run ended with code {code}; the end of {log}:\n{end}"
