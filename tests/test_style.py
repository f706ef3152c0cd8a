"""ruff and mypy pass, and the light packages stay light."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("words", [("ruff", "check"), ("ruff", "format", "--check"), ("mypy",)])
def test_the_code_is_clean(words):
    done = run("-m", *words)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["alpaca_lib", "alpaca_lib.generation", "alpaca_lib.dataset"])
def test_light_packages_load_neither_torch_nor_transformers(name):
    code = (
        f"import sys, importlib, pkgutil; m = importlib.import_module({name!r})\n"
        "if m.__name__ != 'alpaca_lib':\n"
        "    for found in pkgutil.iter_modules(m.__path__, m.__name__ + '.'):\n"
        "        importlib.import_module(found.name)\n"
        "heavy = {'torch', 'transformers'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = run("-c", code)
    assert done.returncode == 0, done.stderr


def test_no_stage_imports_another_or_the_course():
    stages = ("generation", "dataset", "training", "inference")
    allowed = {("generation", "dataset.rouge"), ("inference", "dataset.rouge")}
    for stage in stages:
        for file in (ROOT / "alpaca_lib" / stage).glob("*.py"):
            text = file.read_text(encoding="utf-8")
            for other in {*stages, "course"} - {stage}:
                for line in text.splitlines():
                    if f"alpaca_lib.{other}" in line and "import" in line:
                        assert any(
                            (stage, part) in allowed and part in line for part in ("dataset.rouge",)
                        ), f"{file.name}: {line}"
