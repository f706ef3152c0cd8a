"""The chat in the terminal, with the tiny model; what importing the packages loads."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys

import pytest

from alpaca_lib.inference.__main__ import main
from alpaca_lib.inference.decoding import Decoding, answer
from alpaca_lib.records import Example


@pytest.fixture
def trained(tiny_folder, tmp_path):
    """A folder with the tiny model and the run.json of its training."""
    folder = shutil.copytree(tiny_folder, tmp_path / "trained")
    (folder / "run.json").write_text(json.dumps({"settings": {"template": "short"}}))
    return folder


def expected(make_tiny, tokenizer, instruction, decoding, template="short"):
    """Returns the library's answer."""
    return answer(make_tiny(), tokenizer, [Example(instruction)], decoding, template)[0].text


def test_one_answer(trained, make_tiny, tokenizer, capsys):
    """--prompt: stdout is the answer to the trained template, with the flags' decoding."""
    flags = ["--max-new-tokens", "6", "--temperature", "1.0", "--seed", "3"]
    assert main(["chat", str(trained), "--prompt", "Name a river.", *flags]) == 0
    out, err = capsys.readouterr()
    decoding = Decoding(max_new_tokens=6, temperature=1.0, seed=3)
    assert out == expected(make_tiny, tokenizer, "Name a river.", decoding) + "\n"
    assert "template short" in err


def test_a_line_is_an_instruction(trained, make_tiny, tokenizer, monkeypatch, capsys):
    """Each line of stdin is answered on its own; one that does not fit is an error, and no end."""
    lines = ["Name a river.", "", "word " * 2100, "Name a stone."]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    assert main(["chat", str(trained), "--max-new-tokens", "6"]) == 0
    out, err = capsys.readouterr()
    decoding = Decoding(max_new_tokens=6)
    answers = [expected(make_tiny, tokenizer, lines[at], decoding) for at in (0, 3)]
    assert out == "\n".join(answers) + "\n"
    assert "do not fit into the model" in err


def test_errors_of_the_chat(trained, tiny_folder, capsys):
    """An adapter that is none, and an impossible flag: one line each."""
    assert main(["chat", str(trained), "--adapter", "nothing-here", "--prompt", "x"]) == 1
    assert "no model 'nothing-here'" in capsys.readouterr().err
    assert main(["chat", str(trained), "--top-p", "1.5", "--prompt", "x"]) == 1
    assert "top_p 1.5" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["inference", "evaluation", "export"])
def test_importing_a_package_is_light(package):
    """Neither a package nor its commands load torch or transformers; its names all exist."""
    code = (
        f"import sys, alpaca_lib.{package} as package, alpaca_lib.{package}.commands\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
        "assert all(getattr(package, name) for name in package.__all__)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
