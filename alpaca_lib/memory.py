"""The main memory of this process and of this machine."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator
from pathlib import Path


def resident() -> int:
    """Returns the bytes of main memory that this process holds now.

    Outside Linux psutil says it; 0 where it is not installed.
    """
    with contextlib.suppress(OSError, ValueError, IndexError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(ImportError):
        import psutil

        return int(psutil.Process().memory_info().rss)
    return 0


def available() -> int:
    """Returns the bytes of main memory that are free, or can be freed, on this machine.

    Outside Linux psutil says it; 0 where it is not installed.
    """
    with contextlib.suppress(OSError, ValueError, KeyError, IndexError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}["MemAvailable"]
    with contextlib.suppress(ImportError):
        import psutil

        return int(psutil.virtual_memory().available)
    return 0


def installed() -> int:
    """Returns the bytes of main memory that this machine has; 0 if nothing here says it."""
    with contextlib.suppress(AttributeError, OSError, ValueError):  # Windows has no sysconf
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(ImportError):
        import psutil

        return int(psutil.virtual_memory().total)
    return 0


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Keeps Python from searching for objects in cycles, which reads every list that there is.

    For code that makes lists by the hundred thousand and no cycles: they are all still in use
    when it searches, again and again.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
