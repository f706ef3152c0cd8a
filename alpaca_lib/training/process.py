"""The process of a run: its memory, and signals that ask it to stop."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import torch

from alpaca_lib.errors import ModelError
from alpaca_lib.memory import available, resident
from alpaca_lib.training.sharding import layers_of

LEAST_KEPT, MOST_KEPT = 1_000_000, 32_000_000  # bytes of a block; glibc's limit is 32 MiB


def largest_block(model: Any, tokens: int) -> int:
    """Returns the bytes of the largest float32 matrix of a layer: a weight, or an activation.

    ``tokens`` are computed at once. Embedding and head are no layers: logits are larger.
    MOST_KEPT if the model has no list of layers.
    """
    try:
        parameters = [p for layer in layers_of(model) for p in layer.parameters()]
    except ModelError:
        return MOST_KEPT
    # A 4-bit weight is stored packed; its quant_state knows the original shape.
    shapes = [tuple(getattr(p, "quant_state", p).shape) for p in parameters]
    return 4 * max(max(math.prod(shape), tokens * max(shape[-2:])) for shape in shapes if shape)


def keep_freed_memory(block: int = MOST_KEPT) -> None:
    """Makes the C library reuse freed memory instead of returning it to the system, on Linux.

    The system would hand it out again page by page, zeroed: a sixth of a step on a CPU. Blocks
    above ``block`` bytes are returned: few are larger than a layer's activations (logits, a
    gathered layer if micro-batches are small), and they leave holes that nothing fills. Kept as
    well, they cost 0.6 GB per process of lesson 03, at the same speed.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3  # glibc's malloc.h
    _call_glibc("mallopt", m_mmap_threshold, min(max(block, LEAST_KEPT), MOST_KEPT))
    _call_glibc("mallopt", m_trim_threshold, 2**31 - 1)


def _call_glibc(function: str, *arguments: int) -> bool:
    """Calls a function of the C library; returns False if it does not have it."""
    with contextlib.suppress(OSError, AttributeError):  # no such library: not Linux, or musl
        getattr(ctypes.CDLL("libc.so.6"), function)(*arguments)
        return True
    return False


class Heap:
    """Bounds the memory that keep_freed_memory() keeps, which rows of other lengths fragment.

    ``most``: bytes of main memory above which free memory is returned, a third more than after
    the first step, or the step after the last trim. What still grows then, more and more slowly,
    are oneDNN's compiled kernels: half a megabyte per shape of rows, at most 1,024 of them.

    >>> heap = Heap()
    >>> trimmed = heap.trim()  # after each step
    """

    def __init__(self) -> None:
        self.most = 0

    def trim(self) -> bool:
        """Gives free memory back if more than ``most`` is held; returns whether it did."""
        held = resident()
        if not self.most:
            self.most = held * 4 // 3
        elif held > self.most and _call_glibc("malloc_trim", 0):
            self.most = 0
            return True
        return False


def release_memory() -> None:
    """Returns freed memory to the system: of objects in cycles, of the C library and of the GPU."""
    gc.collect()
    _call_glibc("malloc_trim", 0)
    torch.cuda.empty_cache()


def peak_memory(device: str) -> int:
    """Returns the most bytes that this process has used: of GPU memory, or of main memory."""
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:
        return _peak_on_windows()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _peak_on_windows() -> int:
    """Returns the most bytes of main memory that this process has used; 0 without psutil."""
    with contextlib.suppress(ImportError):
        import psutil

        now = psutil.Process().memory_info()
        return int(getattr(now, "peak_wset", now.rss))
    return 0


def free_memory(device: str) -> int:
    """Returns the bytes that this process can still use: of its GPU, or its share of memory."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info()[0])
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return available() // processes


@contextlib.contextmanager
def stop_signal() -> Iterator[threading.Event]:
    """Yields an event that SIGTERM or Ctrl-C sets, so that a step is finished and saved first.

    A second Ctrl-C raises KeyboardInterrupt at once.
    """
    stop_requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop_requested
        return

    def interrupted(*_: object) -> None:
        if stop_requested.is_set():
            print(
                "stopping at once: a save in progress is not completed, and the same run resumes "
                "from the checkpoint before it",
                flush=True,
            )
            raise KeyboardInterrupt
        stop_requested.set()
        print("finishing this step, then saving; once more stops at once", flush=True)

    before = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: stop_requested.set()),
        signal.SIGINT: signal.signal(signal.SIGINT, interrupted),
    }
    try:
        yield stop_requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
