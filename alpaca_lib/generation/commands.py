"""The sub-command ``alpaca generate``; its work is in ``pipeline``."""

from __future__ import annotations

import argparse
from pathlib import Path

from alpaca_lib.command_line import Command
from alpaca_lib.generation.presets import describe_presets
from alpaca_lib.generation.settings import TEACHER_DEFAULTS, Limits, Settings
from alpaca_lib.options import add_flags, from_flags

# Texts and files, by flag: metavar and help.
FLAGS = {
    "model": (
        "NAME",
        "the teacher's model (local: the embedded one; else OPENAI_MODEL, or its only one)",
    ),
    "seeds": ("FILE", "human-written tasks, .jsonl or .json (default: data/seed_tasks.jsonl)"),
    "prompt": ("FILE", "text above a prompt's tasks (default: data/prompts/generate_en.txt)"),
    "documents": ("FOLDER", ".txt, .md or .rst files: each prompt shows one passage of them"),
    "topics": ("FILE", "one subject per line; each prompt names one"),
    "verbs": ("FILE", "one verb per line; each prompt asks for those used least so far"),
}
OUT_HELP = "folder for regen.json and journal.jsonl (default %(default)s)"
TEACHER_HELP = "one of those below (default: openai if OPENAI_API_KEY is set, else local)"


def add_generate_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of ``alpaca generate``."""
    parser.add_argument(
        "--out", type=Path, default=Path("runs/generated"), metavar="FOLDER", help=OUT_HELP
    )
    parser.add_argument("--teacher", default="", metavar="NAME", help=TEACHER_HELP)
    for name, (metavar, text) in FLAGS.items():
        parser.add_argument(f"--{name}", default="", metavar=metavar, help=text)
    add_flags(parser, Settings, [name for name in Settings.model_fields if name not in FLAGS])
    add_flags(parser, Limits)


def run_generate(options: argparse.Namespace) -> None:
    """Runs ``alpaca generate``."""
    from alpaca_lib.generation.pipeline import run_generation

    files = {name: getattr(options, name) for name in FLAGS}
    chosen = {k: v for k, v in from_flags(options, Settings).items() if k not in FLAGS}
    limits = Limits(**from_flags(options, Limits))
    run_generation(options.out, chosen, limits, teacher=options.teacher, **files)


LOCAL = ", ".join(f"{name} {value}" for name, value in TEACHER_DEFAULTS["local"].items())
GENERATE = Command(
    "generate",
    "write new instruction tasks with a teacher model (lesson 01)",
    add_generate_arguments,
    run_generate,
    (
        "alpaca generate --out runs/generated --tasks-wanted 20",
        "alpaca generate --teacher deepseek --model deepseek-flash --max-usd 5",
    ),
    f"""
    Shows a teacher model a few human-written seed tasks, asks it for more of the kind, drops
    tasks that break a rule or are too similar to a known one, and repeats until enough are kept
    (Self-Instruct in Stanford Alpaca's form). The same command again resumes a run that was
    interrupted; requests in flight when it was killed, --concurrency at most, are sent again.

    Defaults of --teacher local: {LOCAL}.
    """,
    notes=describe_presets,
)
