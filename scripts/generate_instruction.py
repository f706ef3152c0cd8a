"""Writes new instruction tasks with a teacher model, as Stanford's script of that name.

python -m generate_instruction generate_instruction_following_data [--flag value ...]
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import flags
from flags import ROOT, Flag, Given, Script
from pydantic import Field, NonNegativeInt, PositiveInt

from alpaca_lib.errors import UsageError

if TYPE_CHECKING:
    from alpaca_lib.generation.filtering import Outcome, Progress
    from alpaca_lib.generation.self_instruct import Limits, Settings

FUNCTION = "generate_instruction_following_data"
# The defaults that depend on the teacher: a small model writes few, short tasks per request.
LOCAL_DEFAULTS = {"tasks_per_request": 3, "temperature": 0.8, "top_p": 0.95, "seed_words": 60}
OPENAI_DEFAULTS = {"tasks_per_request": 20, "temperature": 1.0, "top_p": 1.0, "seed_words": 0}
LIMITS = (
    "concurrency",
    "max_requests",
    "way",
    "max_usd",
    "requests_per_minute",
    "tokens_per_minute",
    "prices_path",
)
RateLimit = Annotated[float | None, Field(ge=1)]


def _load_lines(path: str) -> tuple[str, ...]:
    from alpaca_lib.records import load_lines

    return tuple(load_lines(path)) if path else ()


def _default_of(name: str) -> str:
    return f"{OPENAI_DEFAULTS[name]}, for the local teacher {LOCAL_DEFAULTS[name]}"


SCRIPT = Script(
    name="generate_instruction.py",
    function=FUNCTION,
    about="""
Stage 01 of the Alpaca recipe (Self-Instruct in Stanford's form). Shows a teacher model a few
human-written seed tasks, asks it for more of the kind, drops tasks that break a rule or are too
similar to a known instruction (ROUGE-L above 0.7), and repeats that until enough are kept.

Each reply is added to OUTPUT_DIR/journal.jsonl when it arrives; the tasks that are kept are in
OUTPUT_DIR/regen.json. The same command again resumes the run and pays for no reply twice.

--max_usd limits what the run spends; --way flex or batch costs half where the provider offers
that. --documents asks for tasks about your own texts.
""",
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
            unset="local: the embedded smollm2-135m; openai: OPENAI_MODEL, or give it here",
        ),
        Flag(
            "num_prompt_instructions",
            sets="seeds_per_prompt",
            default=3,
            kind=PositiveInt,
            help="seed tasks that a prompt shows",
        ),
        Flag(
            "request_batch_size",
            sets="concurrency",
            default=5,
            kind=PositiveInt,
            help="prompts sent together, upstream as one batch",
            becomes="{} concurrent requests",
        ),
        Flag(
            "temperature",
            sets="temperature",
            default=None,
            kind=Annotated[float | None, Field(ge=0)],
            help="sampling temperature",
            unset=_default_of("temperature"),
        ),
        Flag(
            "top_p",
            sets="top_p",
            default=None,
            kind=Annotated[float | None, Field(gt=0, le=1)],
            help="sample from the likeliest tokens with this total",
            unset=_default_of("top_p"),
        ),
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
            kind=Literal["", "local", "openai", "replay"],
            help="who writes: local (llama.cpp), openai (any such server), replay",
            becomes="teacher {}",
            unset="openai if OPENAI_API_KEY is set, else local",
        ),
        Flag(
            "tasks_per_request",
            sets="tasks_per_request",
            default=None,
            kind=Annotated[int | None, Field(ge=1)],
            help="new tasks that one prompt asks for",
            unset=_default_of("tasks_per_request"),
        ),
        Flag(
            "seed_words",
            sets="seed_words",
            default=None,
            kind=Annotated[int | None, Field(ge=0)],
            help="show only seeds of at most that many words; 0: any",
            unset=_default_of("seed_words"),
        ),
        Flag(
            "prompt_path",
            default="",
            help="the text above the list of tasks in a prompt",
            becomes="header from {}",
            unset="data/prompts/generate_en.txt",
        ),
        Flag(
            "seed",
            sets="seed",
            default=0,
            kind=int,
            help="draws the seeds of each prompt, and the local teacher's sampling",
        ),
        Flag(
            "max_requests",
            sets="max_requests",
            default=None,
            kind=Annotated[int | None, Field(ge=1)],
            help="stop after that many requests, enough or not",
            unset="five times what is needed if every task is kept",
        ),
        Flag(
            "machine_tasks",
            sets="machine_tasks",
            default=0,
            kind=NonNegativeInt,
            help="the teacher's own tasks that a prompt also shows",
        ),
        Flag(
            "documents",
            default="",
            help="a folder of .txt, .md or .rst files: tasks are about them",
            becomes="a passage of {} in each prompt",
            unset="no documents",
        ),
        Flag(
            "topics_path",
            sets="topics",
            default="",
            help="a file with one subject per line; a prompt names one",
            convert=_load_lines,
            becomes="subjects from {}",
            unset="no file",
        ),
        Flag(
            "verbs_path",
            sets="verbs",
            default="",
            help="a file with one verb per line; a prompt asks for rare ones",
            convert=_load_lines,
            becomes="verbs from {}",
            unset="no file",
        ),
        Flag(
            "language",
            sets="language",
            default="",
            kind=Literal["", "en", "zh"],
            help="language of what is added to the prompt",
            unset="that of the prompt",
        ),
        Flag(
            "rouge_mode",
            sets="rouge_mode",
            default="rouge",
            kind=Literal["rouge", "unicode"],
            help="tokenizer of ROUGE-L; unicode for other scripts",
        ),
        Flag(
            "reply_format",
            sets="reply_format",
            default="text",
            kind=Literal["text", "json"],
            help="text as Stanford's, or json: structured output",
        ),
        Flag(
            "reasoning_effort",
            sets="reasoning_effort",
            default="none",
            help="how long a reasoning model thinks, billed as output",
        ),
        Flag(
            "safety_path",
            sets="safety_path",
            default="",
            help="rules for what may be kept",
            becomes="rules from {}",
            unset="data/safety_rules.yaml",
        ),
        Flag(
            "way",
            sets="way",
            default="online",
            kind=Literal["online", "flex", "batch"],
            help="online; flex: slower; batch: within a day; both at half the price",
        ),
        Flag(
            "max_usd",
            sets="max_usd",
            default=None,
            kind=Annotated[float | None, Field(ge=0)],
            help="spend at most that many dollars",
            unset="no limit",
        ),
        Flag(
            "prices_path",
            sets="prices_path",
            default="",
            help="prices of models",
            convert=lambda path: Path(path) if path else None,
            becomes="prices from {}",
            unset="data/prices.yaml",
        ),
        Flag(
            "requests_per_minute",
            sets="requests_per_minute",
            default=None,
            kind=RateLimit,
            help="the account's limit",
            unset="what the server says",
        ),
        Flag(
            "tokens_per_minute",
            sets="tokens_per_minute",
            default=None,
            kind=RateLimit,
            help="the account's limit",
            unset="what the server says",
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


def choose_teacher(given: Given) -> tuple[str, str, str]:
    """Returns (teacher, model, reason). Raises UsageError if the openai one has no model."""
    kind, reason = given["teacher"], "--teacher"
    if not kind:
        has_key = bool(os.environ.get("OPENAI_API_KEY"))
        kind = "openai" if has_key else "local"
        reason = f"OPENAI_API_KEY is {'set' if has_key else 'not set'}; --teacher sets another"
    model = given["model_name"]
    if kind == "openai" and not model:
        model = os.environ.get("OPENAI_MODEL", "")
        if not model:
            raise UsageError(
                "the openai teacher needs the name of a model (Stanford's text-davinci-003 was "
                "shut down in January 2024): give --model_name or set OPENAI_MODEL; or take "
                "--teacher local, which needs no key"
            )
    return kind, model, reason


def work(given: Given) -> None:
    """Asks the teacher until enough tasks are kept, and prints a summary."""
    kind, model, reason = choose_teacher(given)
    given.print_changes()

    from alpaca_lib.generation import self_instruct
    from alpaca_lib.generation.documents import load_passages
    from alpaca_lib.generation.teacher import open_teacher
    from alpaca_lib.prompts import load_header
    from alpaca_lib.records import load_examples

    options: dict[str, Any] = dict(given.options)
    limits = self_instruct.Limits(**{k: options.pop(k) for k in LIMITS if k in options})
    by_teacher = LOCAL_DEFAULTS if kind == "local" else OPENAI_DEFAULTS
    settings = self_instruct.Settings(**{**by_teacher, **options})
    folder = Path(given["output_dir"])
    seeds = load_examples(given["seed_tasks_path"] or ROOT / "data" / "seed_tasks.jsonl")
    header = load_header(given["prompt_path"] or ROOT / "data" / "prompts" / "generate_en.txt")
    passages = load_passages(Path(given["documents"])) if given["documents"] else []
    with open_teacher(kind, model, slots=limits.concurrency) as teacher:
        print(f"teacher: {kind}, {teacher.model} ({reason})")
        if kind == "openai":
            print(forecast_cost(settings, limits, model))
        chosen = ", ".join(f"{name} {getattr(settings, name)}" for name in by_teacher)
        print(f"{len(seeds)} seed tasks; {chosen}")
        outcome = self_instruct.generate(
            teacher,
            seeds,
            header,
            settings,
            folder,
            limits=limits,
            passages=passages,
            progress=print_progress,
        )
    print_summary(outcome, settings, kind, teacher.model)
    print(folder / "regen.json")


def forecast_cost(settings: Settings, limits: Limits, model: str) -> str:
    """Returns a line with the expected cost of a run, from the course's recorded replies."""
    from alpaca_lib.generation import budget, filtering, replay_teacher
    from alpaca_lib.generation.teacher import REPLIES, reply_from
    from alpaca_lib.records import load_examples

    price = budget.load_prices(limits.prices_path, limits.way).get(model)
    if price is None:
        return f"cost: unknown, {model} ({limits.way}) is not in the prices file"
    replies = [reply_from(reply) for reply in replay_teacher.load_replies(REPLIES)]
    seeds = load_examples(ROOT / "data" / "seed_tasks.jsonl")
    sample = filtering.samples_of(replies, seeds, settings.threshold)
    found = budget.estimate(settings.tasks_wanted, sample, price, falls_to=0.5)
    low, middle, high = found.usd
    limit = "--max_usd sets a limit" if limits.max_usd is None else f"at most {limits.max_usd}"
    return (
        f"cost: about ${middle:.2f} (${low:.2f} to ${high:.2f}), {found.requests[1]:.0f} requests "
        f"of 20 tasks, from the course's recorded replies and prices of {price.dated}; {limit}"
    )


def print_progress(progress: Progress) -> None:
    """Prints a line for each reply that has been filtered."""
    source = " (from the journal)" if progress.resumed else ""
    print(f"request {progress.requests}{source}: {progress}", flush=True)


def print_summary(outcome: Outcome, settings: Settings, kind: str, model: str) -> None:
    """Prints the numbers of kept and rejected tasks, requests and tokens, and the cost."""
    print(
        f"{len(outcome.kept)} kept, {len(outcome.rejected)} rejected in {outcome.requests} "
        f"requests ({outcome.resumed_requests} from the journal), {outcome.prompt_tokens:,} "
        f"prompt and {outcome.completion_tokens:,} reply tokens"
    )
    for reason, count in outcome.reasons().most_common():
        print(f"  {count:4} rejected: {reason}")
    if outcome.usd is None:
        print(f"cost: unknown, {model} is not in the prices file")
    elif kind == "openai":
        print(
            f"${outcome.usd:.4f} spent, and at most ${outcome.lost_usd:.4f} on attempts without "
            "an answer"
        )
    if len(outcome.kept) < settings.tasks_wanted:
        flag = "max_usd" if outcome.ended == "budget" else outcome.ended
        print(f"fewer than {settings.tasks_wanted}: stopped by --{flag}")


def main(arguments: list[str]) -> int:
    """Runs the command line and returns the exit code."""
    return flags.run(lambda: work(flags.parse(SCRIPT, arguments)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
