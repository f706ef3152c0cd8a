"""Command-line flags for the four scripts: one table each, read, checked, explained.

Accepted: --name value, --name=value, --name alone for True; - and _ alike in names.
"""

from __future__ import annotations

import difflib
import logging
import math
import os
import sys
import textwrap
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # last: an installed alpaca_lib goes first
    sys.path.append(str(ROOT))

NEEDED: Any = object()  # the default of a flag that has none
WORDS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}
# Upstream pads rows, so it sorts them; here nothing is left to gain by it.
GROUPED = "batching pack, on or off: rows are filled with whole examples, which pads even less"


class FlagError(ValueError):
    """A command line that cannot be meant so; the text says what is accepted."""


@dataclass(frozen=True)
class Flag:
    """One flag. ``becomes`` is a text in which {} is the value, or makes the text from it."""

    name: str
    kind: type
    default: Any
    help: str
    becomes: str | Callable[[Any], str]
    choices: tuple[str, ...] = ()
    least: float | None = None
    aliases: tuple[str, ...] = ()
    unset: str = ""  # in help, what a default of None or "" means
    many: bool = False  # its value may be several words, with spaces between

    def read(self, text: str) -> Any:
        """The value in ``text``; FlagError with what is accepted."""
        accepted = " or ".join(filter(None, self.choices)) or KINDS[self.kind]
        accepted += f", {self.least:g} or more" if self.least is not None else ""
        value: Any = text
        try:
            if self.kind is bool:
                value = WORDS[text.strip().lower()]
            elif self.kind is not str:
                value = self.kind(text)
            if self.choices and text not in self.choices:
                raise ValueError
            if self.kind in (int, float):
                low = -math.inf if self.least is None else self.least
                if not (math.isfinite(value) and value >= low):
                    raise ValueError
        except (KeyError, ValueError):
            raise FlagError(f"--{self.name} {text!r}: takes {accepted}") from None
        return value

    def explain(self, value: Any) -> str:
        """What the value becomes here."""
        if callable(self.becomes):
            return self.becomes(value)
        shown = "" if value is NEEDED or value is None else str(value)
        return self.becomes.replace("{}", shown or "it")


@dataclass(frozen=True)
class Script:
    """What a script is called, what it does, its flags and an example."""

    name: str
    about: str
    flags: tuple[Flag, ...]
    example: str
    functions: tuple[str, ...] = ()  # the first word of the command line is one of these

    def help(self) -> str:
        """The text of --help."""
        first = " ".join(["python", self.name, *self.functions[:1], "[--flag value ...]"])
        lines = [first, "", textwrap.dedent(self.about).strip(), ""]
        lines.append("Flags, their defaults, and what each becomes here:")
        for flag in self.flags:
            default = "needed" if flag.default is NEEDED else f"default {flag.default}"
            if flag.default in (None, ""):
                default = f"default: {flag.unset or 'none'}"
            choices = f" {'|'.join(filter(None, flag.choices))}" if flag.choices else ""
            kind = choices or f" {flag.kind.__name__}"
            names = ", ".join(f"--{name}" for name in (flag.name, *flag.aliases))
            lines.append(f"  {names}{kind}   ({default})")
            text = f"{flag.help} -> {flag.explain(flag.default)}"
            lines += textwrap.wrap(text, 88, initial_indent=" " * 8, subsequent_indent=" " * 8)
        return "\n".join([*lines, "", "Example:", textwrap.dedent(self.example).strip("\n")])


@dataclass
class Given:
    """The value of every flag; ``given`` names those that the command line set."""

    script: Script
    values: dict[str, Any]
    given: dict[str, str] = field(default_factory=dict)  # name -> as it was written

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def tell(self, file: TextIO | None = None) -> None:
        """Prints, on the first process, what each given flag became."""
        for flag in self.script.flags:
            if flag.name in self.given and first_process():
                became = flag.explain(self.values[flag.name])
                print(f"{self.given[flag.name]} -> {became}", file=file or sys.stdout, flush=True)


def parse(script: Script, arguments: list[str]) -> Given:
    """The values of a command line; prints help and exits if asked. Raises FlagError."""
    known = {name: flag for flag in script.flags for name in (flag.name, *flag.aliases)}
    if "--help" in arguments or "-h" in arguments or (script.functions and not arguments):
        print(script.help())
        raise SystemExit(0)
    found = Given(script, {flag.name: flag.default for flag in script.flags})
    words = list(arguments)
    if script.functions and not words[0].startswith("--"):
        if words[0] not in script.functions:
            near = _near(words[0], script.functions)
            raise FlagError(f"no function {words[0]!r}; there is {script.functions[0]}{near}")
        words.pop(0)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise FlagError(f"{word!r} is not understood: a flag begins with --, its value follows")
        written, equals, text = word[2:].partition("=")
        flag = known.get(written.replace("-", "_"))
        if flag is None:
            raise FlagError(f"no flag --{written}{_near(written.replace('-', '_'), known, '--')}")
        if not equals:
            if words and not words[0].startswith("--"):
                text = words.pop(0)
            elif flag.kind is bool:
                text = "True"
            else:
                raise FlagError(f"--{written}: needs a value, {KINDS[flag.kind]}")
        while flag.many and words and not words[0].startswith("--"):
            text += " " + words.pop(0)
        found.values[flag.name] = flag.read(text)
        found.given[flag.name] = f"--{written} {text!r}" if text == "" else f"--{written} {text}"
    missing = [flag.name for flag in script.flags if found.values[flag.name] is NEEDED]
    if missing:
        raise FlagError(f"--{missing[0]} is needed; --help says what it is")
    return found


def run(work: Callable[[], None]) -> int:
    """Runs a script's work; a mistake of the reader's becomes one line and an exit code."""
    # Of other packages' own insides; the reader of a script can do nothing about them.
    warnings.simplefilter("ignore", FutureWarning)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # a line for every product
    here = "" if first_process() else f"(process {os.environ['RANK']}) "
    try:
        work()
    except FlagError as error:
        print(f"error: {here}{error}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr, flush=True)
        return 130
    except Exception as error:
        if not _readers(error):
            raise
        print(f"error: {here}{error}", file=sys.stderr, flush=True)
        return 1
    return 0


def first_process() -> bool:
    """Whether this process is the one that prints: rank 0 under torchrun, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """Prints on the first process only."""
    if first_process():
        print(text, flush=True)


def template(name: str) -> str:
    """The template that a name of Alpaca-LoRA's, or one of our own, means. FlagError."""
    from alpaca_lib.prompts import ALIASES, CHAT, TEMPLATES

    # What Alpaca-LoRA calls alpaca is its own text; Stanford's is its alpaca_legacy.
    found = "alpaca-lora" if name == "alpaca" else ALIASES.get(name, name)
    if found not in (*TEMPLATES, CHAT):
        known = ", ".join(dict.fromkeys(["alpaca", *ALIASES, *TEMPLATES, CHAT]))
        raise FlagError(f"no prompt template {name!r}; there are {known}")
    return found


def resume(text: str) -> str:
    """What Settings.resume is for --resume_from_checkpoint. Raises FlagError."""
    if text.lower() in ("auto", "true", ""):
        return "auto"
    if text.lower() in ("never", "false", "none"):
        return "never"
    if not Path(text).is_dir():
        raise FlagError(f"--resume_from_checkpoint {text!r}: no such folder")
    return text


def trackers(text: str) -> str:
    """What Settings.trackers is for --report_to. Raises FlagError."""
    from alpaca_lib.training.settings import TRACKERS

    names = list(dict.fromkeys(text.replace(",", " ").split()))
    if names in ([], ["none"]):
        return ""
    for name in names:
        if name not in TRACKERS:
            raise FlagError(f"--report_to {text!r}: takes none, or of {', '.join(TRACKERS)}")
    return ",".join(names)


def report_to(default: str, unset: str = "") -> Flag:
    """The flag that names trackers."""
    return Flag(
        *("report_to", str, default, "trackers: wandb, tensorboard, trackio; or none"),
        lambda text: f"trackers {trackers(text) or 'none: OUTPUT_DIR/metrics.jsonl has the lines'}",
        unset=unset,
        many=True,
    )


def project(named: str) -> str:
    """The trackers' project: as named, or as WANDB_PROJECT says."""
    from alpaca_lib.training.settings import Settings

    return named or os.environ.get("WANDB_PROJECT") or Settings.model_fields["project"].default


def _readers(error: Exception) -> bool:
    """Whether an error is the reader's to mend: the library's own, a ValueError that our
    code raised about a setting, or the disk's. Any other is a fault and keeps its trace."""
    if type(error).__module__.startswith("alpaca_lib.") or isinstance(error, OSError):
        return True
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    raised_in = trace.tb_frame.f_globals.get("__name__", "") if trace else ""
    ours = ("alpaca_lib", "__main__", "flags", "train", "finetune", "generate")
    return isinstance(error, ValueError) and raised_in.startswith(ours)


def _near(name: str, known: Any, before: str = "") -> str:
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {before}{found[0]}?" if found else "; --help lists them"
