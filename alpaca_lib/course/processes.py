"""The processes below this one: their memory, and their end when a run is stopped.

A process whose parent has ended is no child any more, so every child that was seen is remembered.
"""

from __future__ import annotations

import contextlib
import sys
import threading

import psutil

GRACE_SECONDS = 10.0  # for the processes of a stopped run, to save and to end
_children: set[psutil.Process] = set()


def forget_children() -> None:
    """Drops what is remembered; called before a notebook begins."""
    _children.clear()


def remember_children() -> list[psutil.Process]:
    """Records every process below this one, and returns them."""
    children: list[psutil.Process] = psutil.Process().children(recursive=True)
    _children.update(children)
    return children


def end_children() -> None:
    """Ends the processes below this one: the kernel, and what it started (torchrun, ranks).

    SIGTERM first, at which training saves a checkpoint; after GRACE_SECONDS, or a second
    signal, the rest is killed. Processes whose parent has ended already are among them.
    """
    running = [child for child in _children if child.is_running()]
    try:
        for child in running:
            with contextlib.suppress(psutil.Error):
                child.terminate()
        psutil.wait_procs(running, timeout=GRACE_SECONDS)
    finally:
        for child in running:
            with contextlib.suppress(psutil.Error):
                child.kill()
        psutil.wait_procs(running, timeout=GRACE_SECONDS)


def sample_peak_memory(ended: threading.Event) -> int:
    """Returns the peak memory of this process and its children until an event, in bytes.

    It is sampled twice per second. Memory that several processes share (libraries, mapped
    weights) counts once, where the system tells how many share it (Linux: PSS).
    """
    me, peak = psutil.Process(), 0
    while not ended.wait(0.5):
        total = 0
        for process in [me, *remember_children()]:
            with contextlib.suppress(psutil.Error):  # it has ended
                total += _memory(process)
        peak = max(peak, total)
    return peak


def _memory(process: psutil.Process) -> int:
    """Returns a process's memory in bytes, its share of what it shares (PSS) if that is known."""
    if sys.platform == "linux":
        with contextlib.suppress(psutil.AccessDenied, AttributeError, OSError):
            return int(process.memory_full_info().pss)
    return int(process.memory_info().rss)
