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
import difflib
import io
import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from alpaca_lib.errors import AlpacaError
from alpaca_lib.prompts import describe_templates

# What OpenMP and torch read when they are loaded, if the user has not set it; course.py says why.
ENVIRONMENT = {"GOMP_SPINCOUNT": "10000", "THP_MEM_ALLOC_ENABLE": "1"}


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
    notes: Callable[[], Mapping[str, list[str]]] = dict  # {heading: lines}, read for --help alone


def build_parser(prog: str, about: str, commands: Iterable[Command]) -> argparse.ArgumentParser:
    """Returns a parser with one sub-parser per command; options.run is the command's function."""
    commands = list(commands)
    listed = [f"  {command.name:10}{command.help}" for command in commands]
    layout = partial(argparse.RawDescriptionHelpFormatter, max_help_position=30, width=100)
    parser = argparse.ArgumentParser(
        prog=prog,
        description="\n".join([textwrap.dedent(about).strip(), "", *listed]),
        usage=f"{prog} COMMAND ...",
        formatter_class=layout,
        add_help=False,
    )
    parser.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)
    found = parser.add_subparsers(
        dest="command",
        required=True,
        metavar="COMMAND",
        help=argparse.SUPPRESS,
        prog=prog,
        parser_class=_Parser,
    )
    for command in commands:
        one = found.add_parser(
            command.name,
            help=command.help,
            description=textwrap.dedent(command.about or command.help).strip(),
            formatter_class=layout,
            allow_abbrev=False,  # --learning-rat would set --learning-rate
        )
        command.add_arguments(one)
        one.command = command
        one.usage = _usage(one)
        one.set_defaults(run=command.run, error_code=command.error_code, parser=one)
    return parser


class _Parser(argparse.ArgumentParser):
    """Shows its command's notes and examples at the end of --help, and reads them only then."""

    command: Command | None = None

    def format_help(self) -> str:
        if self.command is not None:
            self.epilog = _epilog(self, self.command)
        return super().format_help()


def _epilog(parser: argparse.ArgumentParser, command: Command) -> str:
    """Returns the end of --help: the templates, if one can be chosen, notes and the examples."""
    blocks = {**command.notes(), "examples": list(command.examples)}
    if any(action.dest == "template" for action in parser._actions):
        blocks = {"templates": describe_templates(), **blocks}
    return "\n\n".join("\n  ".join([f"{head}:", *lines]) for head, lines in blocks.items())


def _usage(parser: argparse.ArgumentParser) -> str:
    """Returns a usage line with what is required; --help lists the options."""
    words = [parser.prog]
    for action in parser._actions:
        name = action.metavar or action.dest.upper()
        if action.option_strings:
            words += [f"{action.option_strings[0]} {name}"] if action.required else []
        else:
            words.append({"?": f"[{name}]", "+": f"{name} ..."}.get(str(action.nargs), str(name)))
    return " ".join([*words, "[options]"])


def main(prog: str, about: str, commands: Iterable[Command], arguments: list[str]) -> int:
    """Parses a command line and runs its command; returns the exit code.

    An AlpacaError is one line on stderr and its own exit code; any other exception is a fault
    of the program and keeps its traceback. Ctrl-C exits with 130.
    """
    _accept_all_characters()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    options, unknown = build_parser(prog, about, commands).parse_known_args(arguments)
    if unknown:
        near = difflib.get_close_matches(unknown[0], options.parser._option_string_actions, n=1)
        hint = f"did you mean {near[0]}?" if near else "--help lists the options"
        options.parser.error(f"{unknown[0]} is not understood; {hint}")
    return run(lambda: options.run(options), error_code=options.error_code)


def run(work: Callable[[], int | None], prefix: str = "", error_code: int | None = None) -> int:
    """Runs a function and returns its exit code, with errors as ``main`` describes them."""
    _accept_all_characters()
    try:
        return work() or 0
    except AlpacaError as error:
        print(f"error: {prefix}{error}", file=sys.stderr, flush=True)
        return error.exit_code if error_code is None else error_code
    except KeyboardInterrupt as error:
        print(f"stopped by {error if error.args else 'Ctrl-C'}", file=sys.stderr, flush=True)
        return 130


def _accept_all_characters() -> None:
    """Escapes what the output's encoding lacks, as that of a file or pipe on Windows, cp1252."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
