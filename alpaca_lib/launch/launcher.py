"""Starts training runs in processes of their own, and follows their metrics.

    launch(settings, processes=2)    on this machine, on Linux with torchrun
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from alpaca_lib.errors import LaunchError, SettingsError
from alpaca_lib.launch.local_ranks import LocalRanks, free_port
from alpaca_lib.launch.probe import usable_processes
from alpaca_lib.models import ModelSource
from alpaca_lib.training.settings import Settings

# Seconds between SIGTERM and SIGKILL, to finish a step and save it: a step of a large model, or
# on a busy machine, takes minutes. A second Ctrl-C does not wait.
GRACE = 900
_FOLDER = "ALPACA_LAUNCHED_IN"  # variable with the folder of each rank's output
_ERROR = re.compile(r"^(?:error: |Traceback .*\n(?: .*\n)*)(\S.*(?:\n .+)*)", re.MULTILINE)
# Errors of a rank that only lost another one: never the cause.
_LOST = re.compile(r"(?i)closed by peer|reset by peer|broken pipe|remote process exited|watchdog")


def run(
    settings: Settings,
    report: Callable[[dict[str, Any]], None] = lambda line: None,
    adapt: Callable[[Settings, int], Settings] = lambda settings, rows: settings,
    say: Callable[[str], None] = print,
) -> Path:
    """Trains in this process, one rank of torchrun or alone, and returns the output folder.

    ``adapt`` gives the final settings for the number of rows that are trained, and ``say`` prints
    that number. Raises NotEnoughMemory, with settings that would fit, before any work; else as
    ``alpaca_lib.training.train``.
    """
    from alpaca_lib.planning import check_memory
    from alpaca_lib.training import train

    return train(settings, report, check_memory, adapt, say)


def torchrun_line(settings_file: Path, processes: int, port: int = 0) -> list[str]:
    """Returns the command that starts a run on this machine."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1"]
    torchrun += [f"--nproc_per_node={processes}", "--master_addr=127.0.0.1"]
    torchrun += [f"--master_port={port or free_port()}"]
    return [*torchrun, "-m", "alpaca_lib.training", "run", str(settings_file)]


def launch(settings: Settings, processes: int = 2, port: int = 0) -> Iterator[dict[str, Any]]:
    """Trains in ``processes`` processes and yields each line of metrics as it is written.

    Output goes to output_dir/train.log. Steps that a resumed run repeats are yielded again.
    Closing the iterator (or Ctrl-C) makes the run save and stop, and so does the end of this
    Python, however it ends. Where several processes cannot train together the run takes one,
    and a printed line says why (see usable_processes). Raises LaunchError if a process fails,
    or before anything starts if ``port`` (0: a free one) is taken.
    """
    if processes < 1:
        raise SettingsError(f"processes {processes}: at least 1 is needed")
    if port:
        try:
            socket.create_server(("", port)).close()
        except (OSError, OverflowError) as error:
            raise LaunchError(
                f"port {port} of this machine cannot be used ({error}): leave port at 0 for a "
                "free one, or end the program that has it"
            ) from None
    return _launch(settings, usable_processes(processes, settings.device), port)


def watch(folder: str | Path, timeout: float = 0.0) -> Iterator[dict[str, Any]]:
    """Yields the metrics of a run in ``folder`` that something else started, until its end.

    The end is a model saved after the last of run.json's steps. Files do not tell a dead run
    from one in a queue: after ``timeout`` seconds without a new line (0: never) LaunchError
    names the last step.
    """
    folder = Path(folder)
    metrics, step, last = _follow(folder / "metrics.jsonl"), 0, time.monotonic()
    while True:
        steps = _finished_steps(folder)  # before its lines are read: they are then complete
        for line in next(metrics):
            step, last = int(line.get("step", step)), time.monotonic()
            yield line
        if steps and step >= steps:
            return
        if timeout and time.monotonic() - last > timeout:
            raise LaunchError(
                f"{folder}: no new line of metrics for {timeout:g} s, after step {step}. If the "
                "run has ended, its log says why; if it waits in a queue, raise timeout"
            )
        time.sleep(0.2)


def end_with_launcher() -> None:
    """Sends this process SIGTERM when the Python whose launch() started it ends.

    That Python has the other end of standard input, which closes even if it is killed.
    """

    def wait() -> None:
        while os.read(0, 1024):
            pass
        if os.name == "posix":
            os.kill(os.getpid(), signal.SIGTERM)
        else:  # os.kill ends a process of Windows at once
            signal.raise_signal(signal.SIGTERM)

    if _FOLDER in os.environ:
        threading.Thread(target=wait, daemon=True).start()


def _follow(file: Path) -> Iterator[list[dict[str, Any]]]:
    """Yields, each time, the lines that are new since the last time, or changed by a resume."""
    seen: list[str] = []
    while True:
        text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
        lines = text[: text.rfind("\n") + 1].splitlines()  # the last may be half written
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(lines, seen, strict=False))
        known, seen = len(list(same)), lines
        yield [row for line in lines[known:] if isinstance(row := _parse(line), dict)]


def _parse(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _finished_steps(folder: Path) -> int:
    """Returns the run's steps if a model was saved after its last line of metrics, else 0."""
    try:
        written = (folder / "metrics.jsonl").stat().st_mtime_ns
        models = [folder / name for name in ("config.json", "adapter_config.json")]
        saved = any(m.is_file() and m.stat().st_mtime_ns >= written for m in models)
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        return int(run["steps"]) if saved else 0
    except (OSError, ValueError, KeyError, TypeError):  # absent, or no run.json of a run
        return 0


def _launch(settings: Settings, processes: int, port: int) -> Iterator[dict[str, Any]]:
    from alpaca_lib.training import output_folder

    folder = Path(settings.output_dir)
    # Before settings.json and train.log are written; the ranks check it again.
    output_folder.check(settings, ModelSource.resolve(settings.model))
    output_folder.check_free(settings)
    line = torchrun_line(settings.save(folder / "settings.json"), processes, port)
    metrics, log = folder / "metrics.jsonl", folder / "train.log"
    if settings.resume == "never":
        metrics.unlink(missing_ok=True)
    lines = _follow(metrics)
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as outputs,
        open(log, "w", encoding="utf-8") as stream,
    ):
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(max((os.cpu_count() or 1) // processes, 1)),
            "PYTHONUNBUFFERED": "1",
            "PYTHONUTF8": "1",  # train.log, where the system has another encoding
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(GRACE),
            "TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE": "[rank ${rank}] ",
            _FOLDER: outputs,
        }
        process: subprocess.Popen[bytes] | LocalRanks
        if _uses_torchrun():
            process = subprocess.Popen(
                # torchrun, called by _agent; each rank's output is kept in files of its own, too.
                [sys.executable, "-m", __name__, f"--log_dir={outputs}", "--tee=3", *line[3:]],
                stdin=subprocess.PIPE,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=environment,
                # A Ctrl-C goes to a full session; it must not reach a rank before it has saved.
                start_new_session=True,
            )
        else:
            command = [sys.executable, *line[line.index("alpaca_lib.training") - 1 :]]
            process = LocalRanks(
                command, processes, port or free_port(), Path(outputs), stream, environment
            )
        try:
            ended = False
            while not ended:
                ended = process.poll() is not None
                yield from next(lines)
                time.sleep(0.0 if ended else 0.2)
        finally:
            _stop(process)
        if code := process.returncode:
            raise LaunchError(_first_error(Path(outputs), log, code))


def _uses_torchrun() -> bool:
    return sys.platform == "linux"


def _stop(process: subprocess.Popen[bytes] | LocalRanks) -> None:
    """Makes a running process save and stop; kills it if it does not."""
    if isinstance(process, LocalRanks):
        process.stop(GRACE)
        return
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


def _first_error(outputs: Path, log: Path, code: int) -> str:
    """Returns the error of the rank that failed first, and the path of the full log."""
    files = {int(f.parent.name): f for f in outputs.glob("*/attempt_*/*/stderr.log")}
    failed = [(rank, 1) for rank in sorted(files)]  # if torchrun itself was stopped
    if (outputs / "failed.json").is_file():
        failed = json.loads((outputs / "failed.json").read_text(encoding="utf-8"))
    errors = [(_read_error(files[rank], exit_code), rank) for rank, exit_code in failed]
    if not any(error for error, _ in errors):
        end = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        return f"the run ended with code {code}; the end of {log}:\n{end}"
    # In the order in which they ended; but torchrun may notice several at once.
    error, rank = min(errors, key=lambda one: not one[0] or bool(_LOST.search(one[0])))
    return f"{f'rank {rank}: ' if len(files) > 1 else ''}{error} (full log: {log})"


def _read_error(file: Path, code: int) -> str:
    """Returns a rank's last error line or exception, or the signal that killed it."""
    killer = signal.Signals(-code).name if code < 0 else ""
    if killer == "SIGTERM":  # sent by torchrun
        return ""
    if killer == "SIGKILL":
        return "killed by SIGKILL, as the system does when memory runs out"
    text = file.read_text(encoding="utf-8", errors="replace")
    found = _ERROR.findall(re.sub(r"(?m)^\[rank\d+\]: ", "", text))
    if code > 1 and not found and not _uses_torchrun():  # of a killed process, on Windows
        return f"ended with exit code {code} and without an error, as a killed process does"
    return str(found[-1]) if found else killer and f"killed by {killer}"


def _agent(arguments: list[str]) -> int:
    """Runs torchrun, ends with its launcher, and writes failed.json: [rank, exit code] each."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    end_with_launcher()
    try:
        main(arguments)
    except SignalException:  # the ranks have saved and printed that
        return 1
    except ChildFailedError as error:
        print(error, file=sys.stderr, flush=True)
        failed = [(rank, failure.exitcode) for rank, failure in error.failures.items()]
        Path(os.environ[_FOLDER], "failed.json").write_text(json.dumps(failed), encoding="utf-8")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_agent(sys.argv[1:]))
