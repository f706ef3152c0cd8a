"""Sub-commands of inference: a chat in the terminal, and what the safety rules block."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from alpaca_lib import inference
from alpaca_lib.command_line import Command
from alpaca_lib.conversations import as_conversation
from alpaca_lib.errors import AlpacaError, UsageError
from alpaca_lib.inference.decoding import Decoding, TextStream
from alpaca_lib.inference.gguf_chat import open_gguf
from alpaca_lib.inference.terminal_chat import TerminalChat, read_terminal
from alpaca_lib.models import DEFAULT_MODEL, ModelSource, gguf_file
from alpaca_lib.options import add_flags, from_flags
from alpaca_lib.records import Example
from alpaca_lib.tokenization import Record

DATA = Path(__file__).resolve().parents[2] / "data"
EVAL_TASKS, SAFETY_SET = DATA / "eval_60.json", DATA / "safety_eval.jsonl"


def _add_chat_arguments(parser: argparse.ArgumentParser) -> None:
    about = f"default: the adapter's base, else {DEFAULT_MODEL}; a .gguf file too"
    parser.add_argument("model", nargs="?", default="", metavar="MODEL", help=about)
    parser.add_argument("--adapter", help="a folder with LoRA weights to attach to MODEL")
    parser.add_argument("--template", help="prompt template (default: the trained one)")
    parser.add_argument("--prompt", metavar="TEXT", help="answer this instruction, and end")
    parser.add_argument(
        "--history",
        action=argparse.BooleanOptionalAction,
        help="remember the conversation, and take commands (default: in a terminal)",
    )
    parser.add_argument(
        "--system", default="", metavar="TEXT", help="system message; implies --history"
    )
    parser.add_argument(
        "--context",
        type=int,
        default=4096,
        metavar="N",
        help="tokens of prompt and answer, of a .gguf file (default 4096)",
    )
    names = ("temperature", "top_p", "top_k", "max_new_tokens", "repetition_penalty", "seed")
    add_flags(parser, Decoding, names)


def _run_chat(options: argparse.Namespace) -> None:
    decoding = Decoding(**from_flags(options, Decoding))
    is_terminal = options.prompt is None and sys.stdin.isatty()
    history = is_terminal if options.history is None else options.history
    history = (history or bool(options.system)) and options.prompt is None
    if options.history is False and options.system:
        raise UsageError("--system: only with --history; a single task has no system message")
    with _open_model(options, decoding) as stream:
        if history:
            chat = TerminalChat(stream, options.system)
            if is_terminal:
                print("/help lists the commands; Ctrl-D ends", file=sys.stderr, flush=True)
            chat.run(read_terminal() if is_terminal else sys.stdin)
            return
        once = options.prompt is not None
        for instruction in [options.prompt] if once else filter(None, map(str.strip, sys.stdin)):
            try:
                _print_answer(stream(Example(instruction)))
            except AlpacaError as error:
                if once:
                    raise
                print(f"error: {error}", file=sys.stderr, flush=True)


def _print_answer(pieces: Iterable[str]) -> None:
    shown = ""
    for text in pieces:
        print(text[len(shown) :], end="", flush=True)
        shown = text
    print(flush=True)


@contextlib.contextmanager
def _open_model(
    options: argparse.Namespace, decoding: Decoding
) -> Iterator[Callable[[Record], TextStream]]:
    """Yields a function that streams the answer of the command line's model to a record."""
    if file := _find_gguf(options.model):
        adapters = [Path(options.adapter)] if options.adapter else []
        if options.template or any(one.suffix != ".gguf" for one in adapters):
            raise UsageError(
                f"{options.model}: a .gguf file has its own template, and its adapter is a .gguf "
                "file (alpaca export --adapter); give the model's folder for anything else"
            )
        with open_gguf(file, decoding, options.context, adapters) as stream:
            print(f"{file.name} in llama.cpp; its own template", file=sys.stderr, flush=True)
            yield lambda record: stream(as_conversation(record).question())
        return
    source = ModelSource.resolve(options.adapter or options.model or DEFAULT_MODEL)
    pool = inference.ModelPool({source.name: source}, base=options.model if options.adapter else "")
    own_chat = not source.is_adapter and pool.tokenizer(source.name).chat_template
    trained = inference.trained_template(source) or ("chat" if own_chat else "alpaca")
    template = options.template or trained
    print(f"{source.name} on {pool.device}; template {template}", file=sys.stderr, flush=True)
    yield lambda record: pool.stream(source.name, record, decoding, template)


def _find_gguf(model: str) -> Path | None:
    """Returns the GGUF file that a name means; None for other models."""
    path = Path(model).expanduser()
    names = ("config.json", "adapter_config.json")
    only_gguf = path.is_dir() and not any((path / name).is_file() for name in names)
    if path.suffix == ".gguf" or (model and only_gguf and any(path.glob("*.gguf"))):
        return gguf_file(model)
    return None


def _add_safety_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rules", type=Path, help="a file of rules (default: the course's)")
    parser.add_argument("--set", type=Path, default=SAFETY_SET, help="a labelled set (JSON lines)")
    parser.add_argument("--show", action="store_true", help="print the rows with a wrong decision")


def _run_safety(options: argparse.Namespace) -> None:
    rows = inference.load_labelled(options.set)
    found = inference.measure(inference.Policy.load(options.rules), rows)
    blocked, wrongly, rate = len(found.blocked), len(found.wrongly_blocked), found.recall
    print(f"blocked            {blocked} of {blocked + len(found.missed)} harmful ({rate:.0%})")
    rate = found.false_positive_rate
    print(f"wrongly blocked    {wrongly} of {found.harmless} harmless ({rate:.0%})")
    groups = {"blocked": found.blocked, "missed": found.missed, "wrongly": found.wrongly_blocked}
    counts = {name: Counter(row.category for row in group) for name, group in groups.items()}
    print(f"\n{'':28}{'blocked':>8}{'missed':>8}{'wrongly':>9}")
    for name in dict.fromkeys(row.category for row in rows):
        blocked, missed, wrongly = (count[name] for count in counts.values())
        print(f"{name:28}{blocked:8}{missed:8}{wrongly:9}")
    for name in ("missed", "wrongly") if options.show else ():
        for row in groups[name]:
            print(f"{name}: {row.instruction[:100]!r} {row.output[:60]!r} ({row.category})")


CHAT = Command(
    "chat",
    "talk to a model in the terminal",
    _add_chat_arguments,
    _run_chat,
    (
        'alpaca chat runs/my --system "You answer in one sentence."',
        'alpaca chat --adapter runs/lora --prompt "Name three rivers."',
    ),
    about="""
In a terminal: a conversation, which is remembered; /help lists the commands (/system, /retry,
/undo, /drop, /clear, /save), Ctrl-C stops an answer, Ctrl-D ends.
From a pipe: each line is one instruction, and nothing is remembered; --history remembers.
""",
)
SAFETY = Command(
    "safety",
    "what the rules block of a labelled set, and what they miss",
    _add_safety_arguments,
    _run_safety,
    ("alpaca safety --show", "alpaca safety --rules my_rules.yaml --set my_set.jsonl"),
)
COMMANDS = (CHAT, SAFETY)
