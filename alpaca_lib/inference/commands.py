"""Sub-commands of inference: a chat in the terminal, and what the safety rules block."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from alpaca_lib.command_line import Command
from alpaca_lib.errors import AlpacaError
from alpaca_lib.inference.decoding import Decoding
from alpaca_lib.models import DEFAULT_MODEL, ModelSource
from alpaca_lib.options import add_flags, from_flags

DATA = Path(__file__).resolve().parents[2] / "data"
EVAL_TASKS, SAFETY_SET = DATA / "eval_60.json", DATA / "safety_eval.jsonl"


def _add_chat_arguments(parser: argparse.ArgumentParser) -> None:
    about = f"default: the adapter's base, else {DEFAULT_MODEL}"
    parser.add_argument("model", nargs="?", default="", metavar="MODEL", help=about)
    parser.add_argument("--adapter", help="a folder with LoRA weights to attach to MODEL")
    parser.add_argument("--template", help="prompt template (default: the trained one)")
    parser.add_argument("--prompt", metavar="TEXT", help="answer this instruction, and end")
    names = ("temperature", "top_p", "top_k", "max_new_tokens", "repetition_penalty", "seed")
    add_flags(parser, Decoding, names)


def _run_chat(options: argparse.Namespace) -> None:
    from alpaca_lib.inference.model_pool import ModelPool, trained_template
    from alpaca_lib.records import Example

    decoding = Decoding(**from_flags(options, Decoding))
    source = ModelSource.resolve(options.adapter or options.model or DEFAULT_MODEL)
    pool = ModelPool({source.name: source}, base=options.model if options.adapter else "")
    own_chat = not source.is_adapter and pool.tokenizer(source.name).chat_template
    trained = trained_template(source) or ("chat" if own_chat else "alpaca")
    template = options.template or trained
    print(f"{source.name} on {pool.device}; template {template}", file=sys.stderr, flush=True)
    once = options.prompt is not None
    for instruction in [options.prompt] if once else _read_instructions():
        shown = ""
        try:
            for text in pool.stream(source.name, Example(instruction), decoding, template):
                print(text[len(shown) :], end="", flush=True)
                shown = text
            print(flush=True)
        except AlpacaError as error:
            if once:
                raise
            print(f"error: {error}", file=sys.stderr, flush=True)


def _read_instructions() -> Iterator[str]:
    """Yields the lines of stdin that are not empty, until its end (Ctrl-D)."""
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if line:
            yield line


def _add_safety_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rules", type=Path, help="a file of rules (default: the course's)")
    parser.add_argument("--set", type=Path, default=SAFETY_SET, help="a labelled set (JSON lines)")
    parser.add_argument("--show", action="store_true", help="print the rows with a wrong decision")


def _run_safety(options: argparse.Namespace) -> None:
    from alpaca_lib.inference.safety import Policy, load_labelled, measure

    rows = load_labelled(options.set)
    found = measure(Policy.load(options.rules), rows)
    blocked, wrongly = len(found.blocked), len(found.wrongly_blocked)
    harmful = blocked + len(found.missed)
    print(f"blocked            {blocked} of {harmful} harmful ({found.recall:.0%})")
    print(
        f"wrongly blocked    {wrongly} of {found.harmless} harmless "
        f"({found.false_positive_rate:.0%})"
    )
    groups = {"blocked": found.blocked, "missed": found.missed, "wrongly": found.wrongly_blocked}
    counts = {name: Counter(row.category for row in group) for name, group in groups.items()}
    print(f"\n{'':28}{'blocked':>8}{'missed':>8}{'wrongly':>9}")
    for category in dict.fromkeys(row.category for row in rows):
        print(
            f"{category:28}{counts['blocked'][category]:8}{counts['missed'][category]:8}"
            f"{counts['wrongly'][category]:9}"
        )
    for name in ("missed", "wrongly") if options.show else ():
        for row in groups[name]:
            print(f"{name}: {row.instruction[:100]!r} {row.output[:60]!r} ({row.category})")


CHAT = Command(
    "chat",
    "answer instructions in the terminal",
    _add_chat_arguments,
    _run_chat,
    (
        "alpaca chat runs/alpaca",
        'alpaca chat smollm2-135m --adapter runs/lora-alpaca --prompt "Name three rivers."',
    ),
    about="Answers each line of stdin as one instruction, until Ctrl-D; nothing is remembered.",
)
SAFETY = Command(
    "safety",
    "what the rules block of a labelled set, and what they miss",
    _add_safety_arguments,
    _run_safety,
    ("alpaca safety --show", "alpaca safety --rules my_rules.yaml --set my_set.jsonl"),
)
COMMANDS = (CHAT, SAFETY)
