"""The memory of a run: of every process below it, with what they share counted once."""

from __future__ import annotations

import sys
import threading

import psutil
import pytest

from alpaca_lib.course import processes


def fail_with(error):
    def read(self):
        raise error

    return read


@pytest.mark.parametrize("error", [psutil.AccessDenied(1), FileNotFoundError(), AttributeError()])
def test_memory_counts_where_the_shared_part_is_not_told(error, monkeypatch):
    monkeypatch.setattr(psutil.Process, "memory_full_info", fail_with(error))
    me = psutil.Process()
    assert processes._memory(me) == pytest.approx(me.memory_info().rss, rel=0.2)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is shared")
def test_shared_memory_counts_once():
    me = psutil.Process()
    assert 0 < processes._memory(me) <= me.memory_info().rss * 1.1


def test_the_peak_is_sampled_and_a_process_that_ends_is_left_out(monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(processes, "remember_children", lambda: [psutil.Process()])
    sizes = iter([30, psutil.NoSuchProcess(1), 50, 20, 10, 10])

    def size(process):
        value = next(sizes, None)
        if isinstance(value, Exception):
            raise value
        if value == 20:
            ended.set()
        return value

    monkeypatch.setattr(processes, "_memory", size)
    assert processes.sample_peak_memory(ended) == 70  # 30, then 50 + 20
