"""Processor time of what would take minutes if it grew with the square of its input."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

from alpaca_lib.memory import collector_paused


@contextmanager
def timed() -> Iterator[SimpleNamespace]:
    """Gives an object whose ``seconds`` are the block's, once it has ended.

    Of this thread, without the garbage collector: neither what other tests left running nor what
    they left in memory counts.
    """
    spent = SimpleNamespace(seconds=0.0)
    with collector_paused():
        start = time.thread_time()
        try:
            yield spent
        finally:
            spent.seconds = time.thread_time() - start
