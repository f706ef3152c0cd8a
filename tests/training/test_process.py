"""What a run keeps of freed memory, and when it gives it back."""

from __future__ import annotations

import subprocess
import sys

import pytest
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from alpaca_lib import models
from alpaca_lib.training.process import largest_block

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
assert not heap.trim() and not heap.trim()  # measured again, and nothing has grown
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc keeps memory like that")
def test_kept_memory_is_given_back_when_it_grows():
    """800 MB that were freed stay with the process until trim() gives them back."""
    done = subprocess.run([sys.executable, "-c", KEPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


RETURNED = """
import torch
from alpaca_lib.training.process import keep_freed_memory, resident

keep_freed_memory(3_000_000)
before = resident()
blocks = [torch.ones(1_000_000) for _ in range(200)]
del blocks
assert resident() < before + 100e6
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc keeps memory like that")
def test_larger_blocks_are_not_kept():
    done = subprocess.run([sys.executable, "-c", RETURNED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("tokens", "rows"), [(512, 576), (2048, 2048)])
def test_the_largest_block_is_of_a_layer(tokens, rows):
    """SmolLM2-135M's widest layer is 576 x 1,536; its head is 576 x 49,152."""
    model = models.ModelSource.resolve("smollm2-135m").load_model()
    assert largest_block(model, tokens) == 4 * rows * 1536


@pytest.mark.parametrize(
    ("config", "block"),
    [
        # no torch.nn.Linear in its layers
        (GPT2Config(n_layer=1, n_embd=8, n_head=1, n_positions=16, vocab_size=99), 4 * 50 * 32),
        # layers wider than the vocabulary
        (
            LlamaConfig(
                vocab_size=16, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                num_attention_heads=2,
            ),
            4 * 50 * 64,
        ),
    ],
)  # fmt: skip
def test_the_largest_block_of_any_model(config, block):
    assert largest_block(AutoModelForCausalLM.from_config(config), tokens=50) == block


RELEASED = """
import torch
from alpaca_lib.training.process import keep_freed_memory, release_memory, resident

keep_freed_memory()
before = resident()
blocks = [torch.ones(1_000_000) for _ in range(200)]
blocks.append(blocks)  # a cycle
del blocks
assert resident() > before + 700e6
release_memory()
assert resident() < before + 100e6
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc keeps memory like that")
def test_memory_of_a_cycle_is_released_to_the_system():
    done = subprocess.run([sys.executable, "-c", RELEASED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


INTERRUPTED = """
import os, signal, sys
from pathlib import Path
import torch
from alpaca_lib.training import checkpoints
from alpaca_lib.training.process import stop_signal
from alpaca_lib.training.sharding import Distributed

class Twice:
    nbytes = 0
    def __reduce__(self):  # while torch writes the state
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        return int, (1,)

state = {"model": {"w": torch.zeros(4)}, "optimizer": {"w": {"step": Twice()}}}
with stop_signal():
    try:
        checkpoints.Saver(Path(sys.argv[1]), Distributed(0, 1, 0)).save(4, state, {})
    except KeyboardInterrupt:
        print("interrupted")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to a process of one's own")
def test_a_second_interrupt_in_a_save_says_what_it_does(tmp_path):
    """Two lines, an interrupt and no traceback of torch; no checkpoint under its name."""
    words = [sys.executable, "-c", INTERRUPTED, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert lines[0].startswith("finishing this step") and lines[-1] == "interrupted", done.stdout
    assert lines[1].startswith("stopping at once: a save in progress is not completed")
    assert not list(tmp_path.glob("checkpoint-*"))
