"""Writes new instruction tasks with a teacher model, as Stanford's script of that name.

python -m generate_instruction generate_instruction_following_data [--flag value ...]
"""

from __future__ import annotations

import sys
from pathlib import Path

import flags
from flags import Flag, Given, Script
from pydantic import PositiveInt

from alpaca_lib.generation.presets import BUILT_IN, load_presets
from alpaca_lib.generation.settings import TEACHER_DEFAULTS, Limits, Settings

FUNCTION = "generate_instruction_following_data"


def _default_of(name: str) -> str:
    openai, local = TEACHER_DEFAULTS["openai"], TEACHER_DEFAULTS["local"]
    return f"{openai[name]}, for the local teacher {local[name]}"


SCRIPT = Script(
    name="generate_instruction.py",
    function=FUNCTION,
    about="""
Stage 01 of the Alpaca recipe (Self-Instruct in Stanford's form). Shows a teacher model a few
human-written seed tasks, asks it for more of the kind, drops tasks that break a rule or are too
similar to a known instruction (ROUGE-L above 0.7), and repeats that until enough are kept.

Each reply is added to OUTPUT_DIR/journal.jsonl when it arrives; the tasks that are kept are in
OUTPUT_DIR/regen.json. The same command again resumes the run and pays for no reply that has
arrived twice; requests in flight when it was killed, --request_batch_size at most, are sent again.

--max_usd limits what the run spends; --way flex or batch costs half where the provider offers
that. --documents asks for tasks about your own texts.
""",
    options={**Settings.model_fields, **Limits.model_fields},
    flags=(
        Flag(
            "output_dir",
            default="./",
            help="folder for the results",
            becomes="{}: regen.json, journal.jsonl",
        ),
        Flag(
            "seed_tasks_path",
            default="",
            help="the human-written tasks, .jsonl or .json",
            becomes="seeds from {}",
            unset="data/seed_tasks.jsonl",
        ),
        Flag(
            "num_instructions_to_generate",
            sets="tasks_wanted",
            default=100,
            kind=PositiveInt,
            help="stop when that many are kept",
            becomes="tasks_wanted {} (a reply is kept in full, so a few more are possible)",
        ),
        Flag(
            "model_name",
            default="",
            help="the teacher's model",
            becomes="model {}",
            unset="local: the embedded smollm2-135m; else OPENAI_MODEL, or the server's only one",
        ),
        Flag("num_prompt_instructions", sets="seeds_per_prompt", default=3, kind=PositiveInt),
        Flag(
            "request_batch_size",
            sets="concurrency",
            default=5,
            help="concurrent requests; upstream sent them as one batch",
        ),
        Flag("temperature", sets="temperature", default=None, unset=_default_of("temperature")),
        Flag("top_p", sets="top_p", default=None, unset=_default_of("top_p")),
        Flag(
            "num_cpus",
            default=16,
            kind=PositiveInt,
            help="processes that upstream started to compute ROUGE-L",
            becomes="nothing: one core is enough (RapidFuzz compares in bits, not in Python)",
        ),
        Flag(
            "teacher",
            default="",
            help=f"who writes: {', '.join([*BUILT_IN, *load_presets()])} (data/teachers.yaml)",
            becomes="teacher {}",
            unset="openai if OPENAI_API_KEY is set, else local",
        ),
        Flag(
            "tasks_per_request",
            sets="tasks_per_request",
            default=None,
            unset=_default_of("tasks_per_request"),
        ),
        Flag("seed_words", sets="seed_words", default=None, unset=_default_of("seed_words")),
        Flag(
            "prompt_path",
            default="",
            help="the text above the list of tasks in a prompt",
            becomes="header from {}",
            unset="data/prompts/generate_en.txt",
        ),
        Flag("seed", sets="seed", default=0),
        Flag(
            "max_requests",
            sets="max_requests",
            default=None,
            help="stop after that many requests, enough or not",
            unset="5 times what is needed if every task is kept",
        ),
        Flag("machine_tasks", sets="machine_tasks", default=0),
        Flag(
            "documents",
            default="",
            help="a folder of .txt, .md or .rst files: tasks are about them",
            becomes="a passage of {} in each prompt",
        ),
        Flag(
            "topics_path",
            default="",
            help="a file with one subject per line; a prompt names one",
            becomes="subjects from {}",
        ),
        Flag(
            "verbs_path",
            default="",
            help="a file with one verb per line; a prompt asks for rare ones",
            becomes="verbs from {}",
        ),
        Flag("language", sets="language", default="", unset="that of the prompt"),
        Flag("rouge_mode", sets="rouge_mode", default="auto"),
        Flag("reply_format", sets="reply_format", default="text"),
        Flag("reasoning_effort", sets="reasoning_effort", default="none"),
        Flag(
            "safety_path",
            sets="safety_path",
            default="",
            becomes="rules from {}",
            unset="data/safety_rules.yaml",
        ),
        Flag("way", sets="way", default="online"),
        Flag("max_usd", sets="max_usd", default=None, unset="no limit"),
        Flag(
            "prices_path",
            sets="prices_path",
            default=None,
            becomes="prices from {}",
            unset="data/prices.yaml",
        ),
        Flag(
            "requests_per_minute",
            sets="requests_per_minute",
            default=None,
            unset="the server's limit",
        ),
        Flag(
            "tokens_per_minute", sets="tokens_per_minute", default=None, unset="the server's limit"
        ),
    ),
    examples=(
        f"""\
  python -m generate_instruction {FUNCTION} \\
      --output_dir runs/generated --num_instructions_to_generate 10""",
        f"""\
  OPENAI_API_KEY=... python scripts/generate_instruction.py {FUNCTION} \\
      --model_name MODEL --output_dir runs/generated --way flex --max_usd 5""",
    ),
)


def work(given: Given) -> None:
    """Asks the teacher until enough tasks are kept, and prints a summary."""
    from alpaca_lib.generation import run_generation

    given.print_changes()
    limits = {name: given.options[name] for name in Limits.model_fields if name in given.options}
    settings = {name: value for name, value in given.options.items() if name not in limits}
    run_generation(
        Path(given["output_dir"]),
        settings,
        Limits.from_dict(limits, SCRIPT.name),
        teacher=given["teacher"],
        model=given["model_name"],
        seeds=given["seed_tasks_path"],
        prompt=given["prompt_path"],
        documents=given["documents"],
        topics=given["topics_path"],
        verbs=given["verbs_path"],
        model_flag="--model_name",
    )


def main(arguments: list[str]) -> int:
    """Runs the command line and returns the exit code."""
    return flags.run(lambda: work(flags.parse(SCRIPT, arguments)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
