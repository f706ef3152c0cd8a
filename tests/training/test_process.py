"""What a run keeps of freed memory, and when it gives it back."""

from __future__ import annotations

import subprocess
import sys

import pytest

KEPT = """
import torch
from alpaca_lib.training.process import Heap, keep_freed_memory, resident

keep_freed_memory()
heap = Heap()
assert not heap.trim()  # the first time it only looks
before = resident()
blocks = [torch.ones(1_000_000) for _ in range(200)]
del blocks
kept = resident()
assert kept > before + 700e6, (before, kept)
assert heap.trim()
after = resident()
assert after < before + 100e6, (before, after)
assert not heap.trim() and not heap.trim()  # measured anew, and nothing has grown
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc keeps memory like that")
def test_kept_memory_is_given_back_when_it_grows():
    """800 MB that were freed stay with the process until trim() gives them back."""
    done = subprocess.run([sys.executable, "-c", KEPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
