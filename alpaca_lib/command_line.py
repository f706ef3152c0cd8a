"""Sub-commands for argparse: declared next to the code that they run, assembled elsewhere.

A package's ``commands.py`` declares each of its sub-commands as a ``Command``; ``alpaca`` and
the ``python -m alpaca_lib.<package>`` spellings assemble them:

>>> PLAN = Command("plan", "what a run needs", add_plan_arguments, run_plan, (
...     "alpaca plan --model llama-7b --gpus 4xA100-80",
...     "alpaca plan --settings settings.json --data my.json",
... ))
>>> sys.exit(main("alpaca", __doc__, [PLAN], sys.argv[1:]))
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from alpaca_lib.errors import AlpacaError


@dataclass(frozen=True)
class Command:
    """A sub-command. ``run`` gets the parsed arguments and returns an exit code (None: 0)."""

    name: str
    help: str  # one line, for the list of commands
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int | None]
    examples: tuple[str, ...]  # two complete command lines, shown at the end of --help
    about: str = ""  # the text of --help, if it says more than ``help``
    error_code: int | None = None  # the exit code of errors, if not that of the error


def build_parser(prog: str, about: str, commands: Iterable[Command]) -> argparse.ArgumentParser:
    """Returns a parser with one sub-parser per command; options.run is the command's function."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=textwrap.dedent(about).strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in commands:
        one = found.add_parser(
            command.name,
            help=command.help,
            description=textwrap.dedent(command.about or command.help).strip(),
            epilog="examples:\n" + "\n".join(f"  {line}" for line in command.examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(one)
        one.set_defaults(run=command.run, error_code=command.error_code)
    return parser


def main(prog: str, about: str, commands: Iterable[Command], arguments: list[str]) -> int:
    """Parses a command line and runs its command; returns the exit code.

    An AlpacaError is one line on stderr and its own exit code; any other exception is a fault
    of the program and keeps its traceback. Ctrl-C exits with 130.
    """
    options = build_parser(prog, about, commands).parse_args(arguments)
    return run(lambda: options.run(options), error_code=options.error_code)


def run(work: Callable[[], int | None], prefix: str = "", error_code: int | None = None) -> int:
    """Runs a function and returns its exit code, with errors as ``main`` describes them."""
    try:
        return work() or 0
    except AlpacaError as error:
        print(f"error: {prefix}{error}", file=sys.stderr, flush=True)
        return error.exit_code if error_code is None else error_code
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr, flush=True)
        return 130
