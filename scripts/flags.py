"""Command-line flags of the four scripts: a table per script, read by argparse.

Accepted: ``--name value``, ``--name=value``, ``--name`` alone for True; - and _ alike in names.
Each script keeps the flags of the original script and prints what each one becomes.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NoReturn, TextIO

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # at the end: an installed alpaca_lib comes first
    sys.path.append(str(ROOT))

from alpaca_lib import command_line  # noqa: E402
from alpaca_lib.errors import UsageError  # noqa: E402
from alpaca_lib.options import accepted, base_type, choices, nearest  # noqa: E402

REQUIRED: Any = object()  # the default of a flag that has none


@dataclass(frozen=True)
class Flag:
    """A flag, and the option of the library that it sets.

    >>> Flag("warmup_ratio", sets="warmup", default=0.03)  # type and range are the option's
    """

    name: str
    default: Any = REQUIRED
    sets: str = ""  # the option's name
    kind: Any = None  # an annotation, where the type is not the option's; text without either
    help: str = ""  # the description, where it is not the option's
    convert: Callable[[Any], Any] = lambda value: value  # the flag's value -> the option's
    becomes: str | Callable[[Any], str] = ""  # a text in which {} is the value, or its function
    aliases: tuple[str, ...] = ()
    unset: str = "none"  # what a default of None or "" means, for --help
    many: bool = False  # whether the value may be several words

    @property
    def spellings(self) -> list[str]:
        """The flag's names on the command line."""
        return [f"--{name}" for name in (self.name, *self.aliases)]

    def explain(self, value: Any) -> str:
        """Returns what a value of the flag becomes, as text."""
        if callable(self.becomes):
            return self.becomes(value)
        if value in (None, ""):
            return self.unset
        return self.becomes.replace("{}", str(value)) or f"{self.sets} {self.convert(value)}"


@dataclass(frozen=True)
class Script:
    """A script: its file's name, description, flags and two complete command lines.

    ``options`` declares the options that the flags set, as ``Settings.model_fields`` does.
    """

    name: str
    about: str
    flags: tuple[Flag, ...]
    examples: tuple[str, str]
    options: Mapping[str, FieldInfo] = field(default_factory=dict)
    function: str = ""  # the first word of the command line, in Stanford's first script

    def declaration(self, flag: Flag) -> FieldInfo:
        """Returns the type, range and description of a flag: its option's, or its own."""
        option = self.options.get(flag.sets, FieldInfo.from_annotation(str))
        found = FieldInfo.from_annotation(flag.kind) if flag.kind else copy.copy(option)
        found.description = flag.help or option.description
        return found

    def parser(self) -> argparse.ArgumentParser:
        """Returns the argparse parser, which reads the value of each flag as text."""
        parser = _Parser(
            usage=f"python {self.name} {self.function} [--flag value ...]".replace("  ", " "),
            description=self.about.strip(),
            epilog="\n".join(["examples:", *self.examples]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
        )
        if self.function:
            parser.add_argument(
                "function", nargs="?", choices=[self.function], default=self.function
            )
        group = parser.add_argument_group("Flags, what each becomes, and their defaults")
        for flag in self.flags:
            declared = self.declaration(flag)
            kind = base_type(declared)
            if flag.default is REQUIRED:
                shown = "(required)"
            elif flag.default in (None, ""):
                shown = f"(default: {flag.unset})"
            else:
                shown = f"-> {flag.explain(flag.default)} (default: {flag.default})"
            argument = group.add_argument(
                *flag.spellings,
                dest=flag.name,
                nargs="+" if flag.many else None,
                metavar="|".join(filter(None, choices(declared))) or kind.__name__,
                help=f"{declared.description} {shown}".replace("%", "%%"),
            )
            if kind is bool:  # --name alone is True
                argument.nargs, argument.const = "?", "True"
        return parser


@dataclass
class Given:
    """A parsed command line: ``given["seed"]`` is the value of --seed."""

    script: Script
    values: dict[str, Any]  # by flag
    options: dict[str, Any] = field(default_factory=dict)  # by option; not those that are None
    given: dict[str, str] = field(default_factory=dict)  # flags as the command line wrote them

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def print_changes(self, file: TextIO | None = None) -> None:
        """Prints what each given flag becomes, on rank 0."""
        for flag in self.script.flags:
            if flag.name in self.given:
                became = flag.explain(self[flag.name])
                print_once(f"{self.given[flag.name]} -> {became}", file)


def parse(script: Script, arguments: list[str]) -> Given:
    """Reads a command line; prints the help and exits if asked to. Raises UsageError."""
    if script.function and not arguments:
        arguments = ["--help"]
    words = [_with_underscores(word) for word in arguments]
    texts, unknown = script.parser().parse_known_args(words)
    if unknown:
        name = unknown[0].partition("=")[0]
        if not name.startswith("--"):
            raise UsageError(
                f"{name!r} is not understood: a flag begins with --, its value follows"
            )
        near = nearest(name, [spelling for flag in script.flags for spelling in flag.spellings])
        raise UsageError(f"no flag {name}{near or '; --help lists them'}")
    names = {_with_underscores(n): n for n in (word.partition("=")[0] for word in arguments)}
    found = Given(script, {flag.name: flag.default for flag in script.flags})
    for flag in script.flags:
        if hasattr(texts, flag.name):
            text = getattr(texts, flag.name)
            text = " ".join(text) if flag.many else text
            found.values[flag.name] = _read(flag, script.declaration(flag), text)
            written = next(names[spelling] for spelling in flag.spellings if spelling in names)
            found.given[flag.name] = f"{written} {text or repr(text)}"
    for flag in script.flags:
        value = found[flag.name]
        if value is REQUIRED:
            raise UsageError(f"--{flag.name} is needed; --help says what it is")
        if flag.sets and value is not None:
            found.options[flag.sets] = flag.convert(value)
    return found


def run(work: Callable[[], None]) -> int:
    """Runs a script's work and returns its exit code; see alpaca_lib.command_line.run."""
    warnings.simplefilter("ignore", FutureWarning)  # of other packages' internals
    return command_line.run(work, "" if is_rank_zero() else f"(process {os.environ['RANK']}) ")


def is_rank_zero() -> bool:
    """Returns whether this process prints: rank 0 under torchrun, or the only process."""
    return os.environ.get("RANK", "0") == "0"


def print_once(text: str, file: TextIO | None = None) -> None:
    """Prints a line on rank 0 only."""
    if is_rank_zero():
        print(text, file=file or sys.stdout, flush=True)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message.removeprefix("argument "))


def _with_underscores(word: str) -> str:
    name, equals, value = word.partition("=")
    is_flag = name.startswith("--")
    return "--" + name[2:].replace("-", "_") + equals + value if is_flag else word


def _read(flag: Flag, declared: FieldInfo, text: str) -> Any:
    kind: Any = Annotated[declared.annotation, declared]
    try:
        return TypeAdapter(kind, config=ConfigDict(allow_inf_nan=False)).validate_strings(text)
    except ValidationError:
        near = nearest(text, choices(declared))
        raise UsageError(f"--{flag.name} {text!r}: takes {accepted(declared)}{near}") from None
