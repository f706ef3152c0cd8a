"""What Windows and macOS lack, hidden: every module and every test file can be imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
IMPORT_ALL = """
import importlib, pkgutil, runpy, sys
from tests.other_platforms import hide
hide(sys.argv[1])
import alpaca_lib
for found in pkgutil.walk_packages(alpaca_lib.__path__, "alpaca_lib."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
sys.path.insert(0, "scripts")
for name in ("course", "conftest", "train", "finetune", "generate", "generate_instruction"):
    importlib.import_module(name)
from alpaca_lib import memory
from alpaca_lib.training.process import free_memory, keep_freed_memory, peak_memory
keep_freed_memory()
assert min(memory.resident(), memory.available(), memory.installed(), free_memory("cpu")) > 0
try:
    open("/proc/self/statm")
    raise SystemExit("/proc is still there")
except FileNotFoundError:
    pass
"""
pytestmark = [pytest.mark.linux, pytest.mark.slow]


def run(*words, system):
    environment = {**os.environ, "TESTS_AS_ON": system, "PYTHONPATH": str(ROOT)}
    environment["PYTEST_ADDOPTS"] = ""  # a --lf or -k there would leave tests out
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_every_module_of_the_project_is_imported(system):
    """And what asks for memory finds another way."""
    run("-c", IMPORT_ALL, system, system=system)


def test_every_test_is_collected():
    """A name that is not there, in a decorator say, would break its file."""
    words = ["-p", "tests.other_platforms", "--collect-only", "-p", "no:cacheprovider"]
    text = run("-m", "pytest", *words, "tests", system="win32")
    assert "test_other_platforms.py" in text
