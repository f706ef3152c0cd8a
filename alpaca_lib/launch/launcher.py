"""Starts a training run in processes of its own, and watches its metrics.

    launch(settings, processes=2)    here, with torchrun
    watch("runs/alpaca")             a run that something else started, such as Slurm

Files for schedulers, which end in the same torchrun line: alpaca_lib.launch.cluster.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alpaca_lib.errors import LaunchError, SettingsError
from alpaca_lib.training.settings import Settings

GRACE = 120  # seconds to finish a step and save it, for a run that was told to stop
_PLACE = "ALPACA_LAUNCHED_IN"  # names the folder where _agent leaves what launch needs
_WORDS = re.compile(r"^(?:error: |Traceback .*\n(?: .*\n)*)(\S.*(?:\n .+)*)", re.MULTILINE)
# What a rank says that only lost another one: never the cause.
_LOST = re.compile(r"(?i)closed by peer|reset by peer|broken pipe|remote process exited|watchdog")


def torchrun_line(settings_file: Path, processes: int, port: int = 0) -> list[str]:
    """The command that starts the run on this machine."""
    return [
        *(sys.executable, "-m", "torch.distributed.run"),
        *("--nnodes=1", f"--nproc_per_node={processes}"),
        *("--master_addr=127.0.0.1", f"--master_port={port or free_port()}"),
        *("-m", "alpaca_lib.training", "run", str(settings_file)),
    ]


def launch(settings: Settings, processes: int = 2, port: int = 0) -> Iterator[dict[str, Any]]:
    """Runs ``settings`` in so many processes; yields each line of metrics as it comes.

    Output goes to output_dir/train.log. A step that a resumed run takes again comes again.
    Closing the iterator early (or Ctrl-C) tells the run to save and stop, and so does the
    end of this Python, however it ends. Raises LaunchError if a process fails, or before
    anything starts if ``port`` (0: a free one) is taken.
    """
    if processes < 1:
        raise SettingsError(f"processes {processes}: at least 1 is needed")
    try:
        socket.create_server(("", port)).close() if port else None
    except (OSError, OverflowError) as error:
        raise LaunchError(
            f"port {port} of this machine cannot be used ({error}): leave port at 0 for a free "
            "one, or end the program that has it"
        ) from None
    return _run(settings, processes, port)


def watch(folder: str | Path, timeout: float = 0.0) -> Iterator[dict[str, Any]]:
    """Yields the metrics of a run in ``folder`` that something else started, until its end.

    The end is a model saved after the last of run.json's steps. A run that died looks,
    from its files, like one that waits in a queue: after ``timeout`` seconds without a
    new line (0: never) LaunchError says how far it came.
    """
    folder = Path(folder)
    metrics, step, heard = _follow(folder / "metrics.jsonl"), 0, time.monotonic()
    while True:
        steps = _steps_of_whole(folder)  # asked first: its lines are then all there
        for line in next(metrics):
            step, heard = int(line.get("step", step)), time.monotonic()
            yield line
        if steps and step >= steps:
            return
        if timeout and time.monotonic() - heard > timeout:
            raise LaunchError(
                f"{folder}: no new line of metrics for {timeout:g} s, after step {step}. If the "
                "run has ended, its log says why; if it waits in a queue, raise timeout"
            )
        time.sleep(0.2)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def end_with_launcher() -> None:
    """Sends this process SIGTERM once the Python whose launch() started it is gone.

    That Python has the other end of standard input, which closes even if it is killed.
    """

    def wait() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    if _PLACE in os.environ:
        threading.Thread(target=wait, daemon=True).start()


def _follow(file: Path) -> Iterator[list[dict[str, Any]]]:
    """Yields whenever asked the lines of metrics that are new, or other ones since a resume."""
    seen: list[str] = []
    while True:
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
        lines = text[: text.rfind("\n") + 1].splitlines()  # the last may be half written
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(lines, seen, strict=False))
        known, seen = len(list(same)), lines
        yield [json.loads(line) for line in lines[known:]]


def _steps_of_whole(folder: Path) -> int:
    """The run's steps, if a model was saved after its last line of metrics; else 0."""
    try:
        written = (folder / "metrics.jsonl").stat().st_mtime_ns
        models = [folder / name for name in ("config.json", "adapter_config.json")]
        saved = any(m.is_file() and m.stat().st_mtime_ns >= written for m in models)
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        return int(run["steps"]) if saved else 0
    except (OSError, ValueError, KeyError):
        return 0


def _run(settings: Settings, processes: int, port: int) -> Iterator[dict[str, Any]]:
    folder = Path(settings.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    line = torchrun_line(settings.save(folder / "settings.json"), processes, port)
    metrics, log = folder / "metrics.jsonl", folder / "train.log"
    metrics.unlink(missing_ok=True) if settings.resume == "never" else None
    lines = _follow(metrics)
    kept = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    with kept as place, open(log, "w", encoding="utf-8") as stream:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(max((os.cpu_count() or 1) // processes, 1)),
            "PYTHONUNBUFFERED": "1",
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(GRACE),
            "TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE": "[rank ${rank}] ",
            _PLACE: place,
        }
        # The same torchrun, called by _agent; what each rank writes is also kept apart.
        command = [sys.executable, "-m", __name__, f"--log_dir={place}", "--tee=3", *line[3:]]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=stream, stderr=subprocess.STDOUT,
            # A Ctrl-C goes to a whole session; it must not reach a rank before it has saved.
            env=environment, start_new_session=True,
        )  # fmt: skip
        try:
            ended = False
            while not ended:
                ended = process.poll() is not None
                yield from next(lines)
                time.sleep(0.0 if ended else 0.2)
        finally:
            _end(process)
        if process.returncode != 0:
            raise LaunchError(_first_words(Path(place), log, process.returncode))


def _end(process: subprocess.Popen[bytes]) -> None:
    """Asks a running process to save and stop; kills it if it does not."""
    try:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=GRACE + 10)  # torchrun kills its ranks after GRACE
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    finally:
        if process.stdin:
            process.stdin.close()


def _first_words(place: Path, log: Path, code: int) -> str:
    """What the rank that failed first said of it, and where the whole log is."""
    errors = {int(f.parent.name): f for f in place.glob("*/attempt_*/*/stderr.log")}
    failed = [(rank, 1) for rank in sorted(errors)]  # if torchrun was told to stop
    if (place / "failed.json").is_file():
        failed = json.loads((place / "failed.json").read_text(encoding="utf-8"))
    said = [(_words(errors[rank], exit_code), rank) for rank, exit_code in failed]
    if not any(words for words, _ in said):
        end = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        return f"the run ended with code {code}; the end of {log}:\n{end}"
    # In the order of their deaths; but torchrun may find several dead at once.
    words, rank = min(said, key=lambda one: not one[0] or bool(_LOST.search(one[0])))
    return f"{f'rank {rank}: ' if len(errors) > 1 else ''}{words} (whole log: {log})"


def _words(errors: Path, code: int) -> str:
    """A rank's last words: its error, its exception, or the signal that killed it."""
    killer = signal.Signals(-code).name if code < 0 else ""
    if killer == "SIGTERM":  # torchrun's own
        return ""
    if killer == "SIGKILL":
        return "killed by SIGKILL, as the system does when memory runs out"
    text = errors.read_text(encoding="utf-8", errors="replace")
    found = _WORDS.findall(re.sub(r"(?m)^\[rank\d+\]: ", "", text))
    return str(found[-1]) if found else killer and f"killed by {killer}"


def _agent(arguments: list[str]) -> int:
    """torchrun, which ends with its launcher and leaves a list of the ranks that failed."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    end_with_launcher()
    try:
        main(arguments)
    except SignalException:  # its ranks have saved, and said so
        return 1
    except ChildFailedError as error:
        print(error, file=sys.stderr, flush=True)
        failed = [(rank, failure.exitcode) for rank, failure in error.failures.items()]
        Path(os.environ[_PLACE], "failed.json").write_text(json.dumps(failed), encoding="utf-8")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_agent(sys.argv[1:]))
