"""Main memory, as Linux's files say it and as psutil does elsewhere."""

from __future__ import annotations

import os
import sys

import psutil
import pytest

from alpaca_lib import memory
from alpaca_lib.training import process


@pytest.fixture
def no_linux(monkeypatch):
    """No /proc and no sysconf, as on Windows."""
    monkeypatch.setattr(memory, "Path", lambda path: _Missing())
    if hasattr(os, "sysconf"):
        monkeypatch.delattr(os, "sysconf")


class _Missing:
    def read_text(self, encoding):
        raise FileNotFoundError


def close(found, expected, share=0.2):
    """Whether two sizes of memory that is in use are about the same."""
    return abs(found - expected) < share * expected


def test_what_the_system_says():
    assert close(memory.resident(), psutil.Process().memory_info().rss)
    assert close(memory.available(), psutil.virtual_memory().available)
    assert close(memory.installed(), psutil.virtual_memory().total, 0.01)


@pytest.mark.usefixtures("no_linux")
def test_what_psutil_says():
    assert close(memory.resident(), psutil.Process().memory_info().rss)
    assert close(memory.available(), psutil.virtual_memory().available)
    assert memory.installed() == psutil.virtual_memory().total


@pytest.mark.usefixtures("no_linux")
def test_nothing_says_it(monkeypatch):
    """Without psutil too: unknown, and no error."""
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert (memory.resident(), memory.available(), memory.installed()) == (0, 0, 0)


def test_peak_memory_without_the_resource_module(monkeypatch):
    """psutil knows it on Windows; elsewhere, or without psutil, it is unknown."""
    monkeypatch.setitem(sys.modules, "resource", None)
    now = psutil.Process().memory_info()
    assert process.peak_memory("cpu") >= getattr(now, "peak_wset", now.rss * 0.8)
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert process.peak_memory("cpu") == 0


def test_free_memory_is_divided_among_the_ranks(monkeypatch):
    monkeypatch.setattr(process, "available", lambda: 8_000)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert process.free_memory("cpu") == 2_000
