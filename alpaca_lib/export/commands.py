"""Sub-commands of export: GGUF files and their parity, a hub folder, an OpenAI address."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from alpaca_lib import export, inference
from alpaca_lib.command_line import Command
from alpaca_lib.errors import DataError
from alpaca_lib.export.gguf import KINDS
from alpaca_lib.export.gguf_families import describe_families
from alpaca_lib.inference.commands import EVAL_TASKS
from alpaca_lib.models import DEFAULT_MODEL, ModelSource, Placement
from alpaca_lib.records import load_examples

KIND_HELP = f"{', '.join(KINDS)} (default q8_0)"
EXPORT_ABOUT = f"""\
A GGUF file for llama.cpp; --adapter: of an adapter alone, for use with its base's file.

A Modelfile for Ollama is written next to it, whose template makes the prompts of training. The
commands for llama.cpp, Ollama, LM Studio and vLLM are printed.

families: {describe_families()}
kinds: {", ".join(f"{kind} ({bits:g} bits)" for kind, (_, bits) in KINDS.items())}
"""
TEMPLATE_HELP = "prompt template (default: the trained one, by its run.json)"


def _add_export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model")
    parser.add_argument("file", type=Path)
    parser.add_argument("--kind", default="q8_0", help=KIND_HELP)
    parser.add_argument("--template", help=TEMPLATE_HELP)
    parser.add_argument("--adapter", action="store_true", help="the adapter alone, not merged")
    parser.add_argument("--system", default="", help="a system message for the Modelfile")


def _run_export(options: argparse.Namespace) -> None:
    def report(done: int, total: int) -> None:
        if sys.stderr.isatty():  # a log has no use for lines that overwrite each other
            end = "\r" if done < total else "\n"
            print(f"{done}/{total} tensors", end=end, file=sys.stderr, flush=True)

    source = ModelSource.resolve(options.model)
    template = options.template or inference.trained_template(source)
    steps = export.NextSteps(source, options.file, template, options.system, options.adapter)
    if options.system:  # one that cannot be is refused before the work
        steps.modelfile()
    if options.adapter:
        export.export_adapter(source, options.file)
    else:
        export.export_gguf(source, options.file, options.kind, template, report)
    print(f"{options.file}: {options.file.stat().st_size / 1e6:.1f} MB")
    print(*steps.write(), sep="\n")


def _add_check_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="the model that the file was exported from")
    parser.add_argument("file", type=Path)
    parser.add_argument("--eval", type=Path, default=EVAL_TASKS, help="tasks (eval_60.json)")
    parser.add_argument("--template", help=TEMPLATE_HELP)
    parser.add_argument("--most-kl", type=float, default=0.2, help="above it is a failure (nats)")


def _run_check(options: argparse.Namespace) -> int:
    source = ModelSource.resolve(options.model)
    model = source.load_model(Placement("cpu", "float32", "to compare"))
    template = options.template or inference.trained_template(source) or "alpaca"
    tasks = load_examples(options.eval)
    found = export.measure_parity(model, source.load_tokenizer(), options.file, tasks, template)
    print(f"tokenized alike    {found.tokenized_alike} of {found.texts} texts")
    for path, rows in (("completions", found.text_rows), ("chat/completions", found.chat_rows)):
        if rows:
            shown = ", ".join(map(str, rows[:10])) + (", ..." if len(rows) > 10 else "")
            print(f"  other tokens in /v1/{path}: rows {shown} of {options.eval}")
    print(f"greedy answers     {found.same:.2%} of {found.tokens} tokens")
    print(f"probabilities      KL {found.kl:.2g} nats, mean of {found.contexts} places")
    return 0 if found.tokenized_alike == found.texts and found.kl <= options.most_kl else 1


def _add_publish_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--adapter", action="store_true", help="the adapter alone, not merged")
    parser.add_argument("--base", default="", help="hub id of the base, if it is not known")
    parser.add_argument("--title", default="", help="of the card (default: the folder's name)")
    parser.add_argument("--licence", default="", help="of the weights, as a hub names it")
    parser.add_argument("--data-licence", default="", help="of the training data")
    parser.add_argument("--scores", type=Path, help="names and numbers, or compare's scores.json")
    parser.add_argument("--of", default="", help="which model of compare's scores.json")


def _run_publish(options: argparse.Namespace) -> None:
    folder = export.publish(
        model=options.model,
        folder=options.folder,
        title=options.title,
        licence=options.licence,
        data_licence=options.data_licence,
        scores=read_scores(options.scores, options.of) if options.scores else None,
        adapter_only=options.adapter,
        base=options.base,
    )
    print(*sorted(file.name for file in folder.iterdir()))


def read_scores(file: Path, model: str = "") -> dict[str, float]:
    """Returns the numbers of a JSON file by name; of one model, if it is compare's.

    Raises DataError if there are none.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: no readable scores ({error})") from None
    found = found if isinstance(found, dict) else {}
    numbers = {
        name: value
        for name, value in found.get(model, found).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    if not numbers:
        raise DataError(
            f'{file}: names and numbers are needed, as {{"loss": 2.4}}; of compare\'s scores.json '
            "--of takes one model's"
        )
    return numbers


def _add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", default=DEFAULT_MODEL, help="also a .gguf file")
    parser.add_argument("--kind", default="q8_0", help=f"of a folder's export: {KIND_HELP}")
    parser.add_argument("--template", help=TEMPLATE_HELP)
    parser.add_argument("--slots", type=int, default=4, help="concurrent answers (default 4)")
    parser.add_argument("--context", type=int, default=2048, help="tokens per slot (default 2048)")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0: the whole network")
    parser.add_argument("--port", type=int, default=8080, help="0: any free one (default 8080)")


def _run_serve(options: argparse.Namespace) -> None:
    with export.serve_model(
        name=options.model,
        kind=options.kind,
        slots=options.slots,
        context=options.context,
        host=options.host,
        port=options.port,
        template=options.template,
        private=False,
    ) as address:
        print(f"{address}   (OPENAI_BASE_URL; any OPENAI_API_KEY; Ctrl-C ends it)", flush=True)
        if options.host not in ("127.0.0.1", "localhost"):
            print("open to the network: whoever reaches it can use the model", flush=True)
        while True:
            time.sleep(3600)


EXPORT = Command(
    "export",
    "a GGUF file for llama.cpp; --adapter: of an adapter alone",
    _add_export_arguments,
    _run_export,
    ("alpaca export runs/lora-alpaca model.gguf", "alpaca export runs/one one.gguf --kind q5_1"),
    EXPORT_ABOUT,
)
CHECK = Command(
    "check",
    "a GGUF file and its model in PyTorch: tokens, answers, probabilities",
    _add_check_arguments,
    _run_check,
    ("alpaca check runs/lora model.gguf", "alpaca check runs/one one.gguf --most-kl 0.05"),
)
PUBLISH = Command(
    "publish",
    "weights, tokenizer and card in a folder for a hub; or an adapter's",
    _add_publish_arguments,
    _run_publish,
    ("alpaca publish runs/one hub --licence mit", "alpaca publish runs/lora hub --adapter"),
)
SERVE = Command(
    "serve",
    "an OpenAI-compatible address on this machine",
    _add_serve_arguments,
    _run_serve,
    ("alpaca serve model.gguf", "alpaca serve runs/lora-alpaca --port 0"),
)
COMMANDS = (EXPORT, CHECK, PUBLISH, SERVE)
