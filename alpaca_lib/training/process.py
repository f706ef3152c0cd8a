"""What the loop asks of the process it runs in: memory, and the wish to be stopped."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import torch


def keep_memory() -> None:
    """Lets freed memory be used again at once, on Linux.

    By default glibc gives every large block back to the system, which hands it out again
    page by page, zeroed: a sixth of a training step on a CPU.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3
    for option in (m_mmap_threshold, m_trim_threshold):
        _glibc("mallopt", option, 2**31 - 1)


def _glibc(function: str, *arguments: int) -> bool:
    """Whether the C library has such a function, which is then called."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            getattr(ctypes.CDLL("libc.so.6"), function)(*arguments)
            return True
    return False


class Heap:
    """Bounds what keep_memory() keeps: rows of other lengths leave holes, and holes add up.

    Called after each step, it gives all free memory back once the process holds a third more
    than after the first step, or than after the step that followed the last giving back. What
    stays and still grows for a while, ever more slowly, is no hole: it is the kernels that
    oneDNN compiles for each new shape of rows, half a megabyte each, 1,024 of them at most.
    """

    def __init__(self) -> None:
        self.most = 0

    def tidy(self) -> bool:
        """True if memory was given back (on Linux with glibc; elsewhere nothing is kept)."""
        held = resident()
        if not self.most:
            self.most = held * 4 // 3
        elif held > self.most and _glibc("malloc_trim", 0):
            self.most = 0
            return True
        return False


def resident() -> int:
    """The bytes of main memory that this process has now; 0 where Linux does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_memory(device: str) -> int:
    """The most bytes this process has used: of GPU memory, or of main memory."""
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextlib.contextmanager
def stop_signal() -> Iterator[threading.Event]:
    """An event that SIGTERM or Ctrl-C sets, so that a step is finished and saved first; a
    second Ctrl-C stops at once."""
    told = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield told
        return

    def interrupted(*_: object) -> None:
        if told.is_set():
            raise KeyboardInterrupt
        told.set()
        print("finishing this step, then saving; once more stops at once", flush=True)

    before = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: told.set()),
        signal.SIGINT: signal.signal(signal.SIGINT, interrupted),
    }
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def free_memory(device: str) -> int:
    """The bytes that one process may still use: of its GPU, or its share of main memory."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info()[0])
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
        return found["MemAvailable"] // processes
    except (OSError, ValueError, KeyError, IndexError):  # not Linux
        return 0
