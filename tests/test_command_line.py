"""Commands: what is caught, what keeps its traceback, and what --help shows."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from alpaca_lib import cli, errors
from alpaca_lib.command_line import ENVIRONMENT, Command, build_parser, main
from alpaca_lib.prompts import describe_templates


def command(work):
    return Command("try", "tries", lambda parser: None, work, ("demo try",))


def raises(error):
    def work(options):
        raise error

    return work


@pytest.mark.parametrize(
    "error, code",
    [
        (errors.DataError("a.json: is empty"), 1),
        (errors.UsageError("--x: no"), 2),
        (errors.FileError("b: cannot be written"), 1),
    ],
)
def test_a_users_error_is_one_line(error, code, capsys):
    assert main("demo", "", [command(raises(error))], ["try"]) == code
    assert capsys.readouterr().err == f"error: {error}\n"


@pytest.mark.parametrize("error", [ValueError("x"), OSError(5, "x"), RuntimeError("x")])
def test_a_fault_keeps_its_traceback(error):
    """What is no AlpacaError is not the user's to fix, whatever builtin it is."""
    with pytest.raises(type(error)):
        main("demo", "", [command(raises(error))], ["try"])


def test_ctrl_c_is_130(capsys):
    assert main("demo", "", [command(raises(KeyboardInterrupt()))], ["try"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_every_error_of_the_library_has_the_one_base():
    """No class outside errors.py is an error that a user can see, and each kind has a text."""
    kinds = [k for k in vars(errors).values() if isinstance(k, type)]
    assert len(kinds) > 15
    for kind in kinds:
        assert issubclass(kind, errors.AlpacaError) and kind.__doc__
        assert str(kind("a text")) == "a text"


def test_alpaca_help_fits_a_screen(capsys):
    """At most 24 lines of 80 columns, and every command is in it."""
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 80
    for one in cli.COMMANDS:
        assert any(line.split()[:1] == [one.name] for line in lines), one.name


@pytest.mark.parametrize("one", cli.COMMANDS, ids=lambda one: one.name)
def test_each_commands_help_ends_in_two_worked_examples(one, capsys):
    """The examples are the last lines, begin with the command, and their flags parse."""
    import shlex

    with pytest.raises(SystemExit):
        cli.main([one.name, "--help"])
    last = capsys.readouterr().out.rstrip().splitlines()[-len(one.examples) :]
    assert len(one.examples) >= 2
    assert [line.strip() for line in last] == list(one.examples)
    parser = build_parser("alpaca", "", cli.COMMANDS)
    for example in one.examples:
        words = shlex.split(example)
        assert words[:2] == ["alpaca", one.name]
        assert parser.parse_args(words[1:]).command == one.name


def test_python_m_alpaca_lib_is_the_same_and_light():
    """The module runs, and --help loads neither torch nor transformers."""
    code = (
        "import sys, runpy\nsys.argv = ['alpaca', '--help']\n"
        "try:\n    runpy.run_module('alpaca_lib', run_name='__main__')\n"
        "except SystemExit:\n    pass\n"
        "sys.exit(str({'torch', 'transformers'} & set(sys.modules) or '') or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "generate" in done.stdout and "usage: alpaca" in done.stdout


def test_a_misspelt_flag_is_refused_with_the_nearest_one(capsys):
    """No flag is completed silently: 50 settings have names that begin alike."""
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", "--learning-rat", "3", "--data-path", "a.json"])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert "--learning-rat is not understood; did you mean --learning-rate?" in error
    with pytest.raises(SystemExit):
        cli.main(["plan", "--frobnicate"])
    assert "--frobnicate is not understood" in capsys.readouterr().err


@pytest.mark.parametrize("one", cli.COMMANDS, ids=lambda one: one.name)
def test_help_lists_the_templates_of_each_command_that_takes_one(one, capsys):
    with contextlib.suppress(SystemExit):
        cli.main([one.name, "--help"])
    shown = capsys.readouterr().out
    lists = all(f"  {line}" in shown for line in describe_templates())
    assert lists == ("--template" in shown)


def test_text_that_the_output_cannot_encode_is_escaped():
    """As in a pipe of Windows, whose encoding is cp1252: results and errors, and --help too."""
    code = (
        "import sys; from alpaca_lib.command_line import run; from alpaca_lib.errors import *\n"
        "def work():\n    print('caf\u00e9 \u4e2d')\n    raise DataError('\u6587')\n"
        "sys.exit(run(work))"
    )
    environment = {**os.environ, "PYTHONUTF8": "0", "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    assert done.returncode == 1
    assert done.stdout.split() == [b"caf\xe9", b"\\u4e2d"], done.stderr
    assert done.stderr.strip() == b"error: \\u6587"
    help_ = [sys.executable, "-m", "alpaca_lib", "train", "--help"]
    done = subprocess.run(help_, capture_output=True, env=environment)
    assert done.returncode == 0 and b"examples:" in done.stdout, done.stderr


@pytest.mark.parametrize("module", ["alpaca_lib.cli", "alpaca_lib.training.__main__"])
def test_what_torch_reads_is_set_before_it_is_imported(module):
    """Another busy program makes training several times slower with OpenMP's default; and pages
    of 4 KB take a tenth of a short run."""
    code = (
        "import os, sys\n"
        f"from {module} import main\n"
        "try:\n"
        "    main(['--help'])\n"
        "except SystemExit:\n"
        "    pass\n"
        "assert 'torch' not in sys.modules\n"
        f"assert {ENVIRONMENT}.items() <= os.environ.items()\n"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ENVIRONMENT}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_course_py_sets_the_same():
    """It imports nothing of the library, so it has them written out."""
    source = (Path(__file__).parents[1] / "course.py").read_text(encoding="utf-8")
    for name, value in ENVIRONMENT.items():
        assert f'environment.setdefault("{name}", "{value}")' in source
