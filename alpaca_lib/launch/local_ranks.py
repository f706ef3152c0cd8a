"""Starts the ranks of a run on this machine without torchrun, as on macOS and Windows.

torchrun needs a store with libuv, which torch for Windows is built without, and asks a rank to
save with a signal, which Windows does not have. Here each rank gets torchrun's environment
variables, and a standard input whose end asks it to save and stop (launcher.end_with_launcher).
On macOS the same, so that one way of starting is tried there: see alpaca_lib.launch.probe.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

LOST_SECONDS = 30.0  # after a rank has failed, for the others to notice and to end


class LocalRanks:
    """The processes of one run: rank r is the process number r.

    ``outputs`` gets what torchrun's folder has, each rank's errors and failed.json; ``log`` the
    ranks' output, and in the end their errors.

    >>> ranks = LocalRanks(command, 2, free_port(), outputs, log, os.environ)
    >>> while ranks.poll() is None:
    ...     time.sleep(0.2)
    """

    def __init__(
        self,
        command: Sequence[str],
        processes: int,
        port: int,
        outputs: Path,
        log: IO[str],
        environment: Mapping[str, str],
    ) -> None:
        self.outputs, self.log = outputs, log
        self.returncode: int | None = None
        self.failed: list[tuple[int, int]] = []  # (rank, exit code), in the order of their ends
        self._deadline = float("inf")  # after which the other ranks are killed
        self._errors = [outputs / f"local/attempt_0/{r}/stderr.log" for r in range(processes)]
        self._processes: list[subprocess.Popen[bytes]] = []
        try:
            for rank, errors in enumerate(self._errors):
                errors.parent.mkdir(parents=True)
                with open(errors, "wb") as stream:
                    process = subprocess.Popen(
                        command,
                        # A pipe for each: Windows stops a process at its start while another
                        # one reads from the same pipe (CPython issue 78961).
                        stdin=subprocess.PIPE,
                        stdout=log,
                        stderr=stream,
                        env={**environment, **_rank_variables(rank, processes, port)},
                        # A Ctrl-C goes to a full session; it must not reach a rank before it
                        # has saved.
                        start_new_session=True,
                    )
                self._processes.append(process)
        except BaseException:
            self._kill()
            raise

    def poll(self) -> int | None:
        """Returns the run's exit code, that of the first rank that failed; None while it runs.

        Once a rank has failed the others are asked to end, and killed after LOST_SECONDS.
        """
        if self.returncode is not None:
            return self.returncode
        codes = [process.poll() for process in self._processes]
        known = {rank for rank, _ in self.failed}
        new = [(rank, code) for rank, code in enumerate(codes) if code and rank not in known]
        if new and not self.failed:
            self._deadline = time.monotonic() + LOST_SECONDS
            self._ask_to_stop()
        self.failed += new
        if time.monotonic() > self._deadline:
            self._kill()
        if any(code is None for code in codes):
            return None
        self._finish()
        return self.returncode

    def stop(self, seconds: float) -> None:
        """Asks running ranks to save and stop, waits that long for them, then kills them."""
        try:
            self._ask_to_stop()
            deadline = time.monotonic() + seconds
            for process in self._processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(deadline - time.monotonic(), 0.0))
        finally:
            self._kill()
        self.poll()

    def _ask_to_stop(self) -> None:
        for process in self._processes:
            if process.stdin:
                process.stdin.close()

    def _kill(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
        for process in self._processes:
            process.wait()
            if process.stdin:
                process.stdin.close()

    def _finish(self) -> None:
        """Sets the exit code, writes failed.json and adds the ranks' errors to the log."""
        self._ask_to_stop()  # closes what is open
        self.returncode = self.failed[0][1] if self.failed else 0
        if self.failed:
            (self.outputs / "failed.json").write_text(json.dumps(self.failed), encoding="utf-8")
        for rank, errors in enumerate(self._errors):
            for line in errors.read_text(encoding="utf-8", errors="replace").splitlines():
                self.log.write(f"[rank {rank}] {line}\n")
        self.log.flush()


def free_port() -> int:
    """Returns a TCP port of 127.0.0.1 that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _rank_variables(rank: int, processes: int, port: int) -> dict[str, str]:
    """Returns the environment variables with which torchrun starts a rank of one machine."""
    number, size = str(rank), str(processes)
    variables = {"RANK": number, "LOCAL_RANK": number, "GROUP_RANK": "0"}
    variables |= {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if sys.platform == "darwin" and "GLOO_SOCKET_IFNAME" not in os.environ:
        # gloo looks up the machine's own name, which takes a minute on some Macs.
        variables["GLOO_SOCKET_IFNAME"] = "lo0"
    return variables
