"""No model that its provider has shut down is named where a reader would take it for usable."""

import datetime
import re
import subprocess
from pathlib import Path

import pytest

from alpaca_lib.generation.budget import load_withdrawn

ROOT = Path(__file__).resolve().parents[1]
SHUT_DOWN = load_withdrawn()
# Names that may stand, and why; prices.yaml is the list itself, and tests name what they refuse.
HISTORY = {"text-davinci-003": "Alpaca's own teacher of 2023: the recipe's history"}
NOT_READ = ("data/prices.yaml", "tests/")
OTHERS = {("alpaca_lib/export/gguf_tokenizer.py", "gpt-4o"): "llama.cpp's name of a tokenizer"}


def named(text: str, names) -> set[str]:
    """Returns the models of ``names`` in a text, their dated snapshots included.

    gpt-4 is neither gpt-4o nor gpt-4.1, and not the end of my-gpt-4; o1 may be a variable's name
    and counts in quotes alone.
    """
    found = set()
    for name in names:
        pattern = (
            rf"(?<![\w.-]){re.escape(name)}(?:-\d{{4}}(?:-\d\d-\d\d)?)?(?![\w-]|\.\d)"
            if len(name) > 2
            else rf"[\"'`]{name}[\"'`]"
        )
        if re.search(pattern, text):
            found.add(name)
    return found


def text_files() -> list[Path]:
    """Returns the tracked text files that a reader sees."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True
    ).stdout.decode()
    paths = [path for path in listed.split("\0") if path and not path.startswith(NOT_READ)]
    suffixes = {"", ".cfg", ".ipynb", ".json", ".jsonl", ".md", ".py", ".rst", ".sh", ".svg"}
    suffixes |= {".toml", ".txt", ".yaml", ".yml"}
    return [
        ROOT / path for path in paths if Path(path).suffix in suffixes and (ROOT / path).is_file()
    ]


def places(names) -> list[str]:
    """Returns where models are named that should not be."""
    return [
        f"{path.relative_to(ROOT)}: {name}, shut down from {SHUT_DOWN[name]}"
        for path in text_files()
        for name in sorted(named(path.read_text(encoding="utf-8", errors="replace"), names))
        if (path.relative_to(ROOT).as_posix(), name) not in OTHERS
    ]


def test_no_withdrawn_model_is_named():
    """A model whose shutdown date has come may be named in prices.yaml alone, or as history."""
    today = datetime.date.today().isoformat()
    found = places({name for name, date in SHUT_DOWN.items() if date <= today} - HISTORY.keys())
    assert not found, f"as of {today}, name another model there: {'; '.join(found)}"


def test_no_model_is_named_that_will_be_withdrawn():
    """Nor one with a date to come, so that the test above does not begin to fail on that day."""
    found = places(SHUT_DOWN.keys() - HISTORY.keys())
    assert not found, f"name another model there: {'; '.join(found)}"


def test_the_scan_reads_the_files_that_matter():
    names = {str(path.relative_to(ROOT)) for path in text_files()}
    assert {"README.md", "notebooks/01_self_instruct.ipynb", "data/profiles/gpu.toml"} <= names
    assert {"data/teachers.yaml", "alpaca_lib/generation/commands.py"} <= names
    assert len(names) > 150


@pytest.mark.parametrize(
    "text, found",
    [
        ("o1, o2 = split(x)", set()),
        ("-p teacher_model=gpt-3.5-turbo", {"gpt-3.5-turbo"}),
        ("gpt-3.5-turbo-0125 and (gpt-4-0613).", {"gpt-3.5-turbo", "gpt-4"}),
        ("gpt-4o, gpt-4.5 and gpt-4-turbo", {"gpt-4o", "gpt-4-turbo"}),
        ("gpt-4o-2024-08-06", {"gpt-4o"}),
        ("my-gpt-4, foo1, o1x, gpt-5.6-luna, text_davinci_003, gpt4_1106_preview", set()),
        ('"o1": ask o3-mini', {"o1", "o3-mini"}),
        ("api.deepseek.com/deepseek-chat", {"deepseek-chat"}),
        ("Use gpt-4.", {"gpt-4"}),
    ],
)
def test_what_counts_as_a_name(text, found):
    assert named(text, SHUT_DOWN) == found
