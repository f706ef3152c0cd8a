"""Runs generation from files and flags: chooses the teacher and its defaults, reports the result.

``alpaca generate`` and scripts/generate_instruction.py are both this.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alpaca_lib.errors import UsageError
from alpaca_lib.generation.budget import load_prices
from alpaca_lib.generation.documents import load_passages
from alpaca_lib.generation.filtering import Outcome, Progress
from alpaca_lib.generation.journal import read_sample
from alpaca_lib.generation.plan import DATA, describe_plan
from alpaca_lib.generation.presets import BUILT_IN, find_preset
from alpaca_lib.generation.self_instruct import generate
from alpaca_lib.generation.settings import TEACHER_DEFAULTS, Limits, Settings
from alpaca_lib.generation.teacher import open_teacher
from alpaca_lib.prompts import load_header
from alpaca_lib.records import load_examples, load_lines

SEEDS, HEADER = DATA / "seed_tasks.jsonl", DATA / "prompts" / "generate_en.txt"


def run_generation(
    folder: Path,
    options: Mapping[str, Any],
    limits: Limits,
    *,
    teacher: str = "",
    model: str = "",
    seeds: str = "",
    prompt: str = "",
    documents: str = "",
    topics: str = "",
    verbs: str = "",
    model_flag: str = "--model",
) -> Outcome:
    """Generates tasks into a folder, prints progress and a summary, and returns the outcome.

    options: the options of Settings that the user chose; the teacher's defaults fill the rest.
    teacher: local, replay or a name of data/teachers.yaml; empty: openai if OPENAI_API_KEY is
    set, else local.
    seeds, prompt, documents, topics, verbs: paths; empty: the project's own, or none.
    """
    kind, model, why = choose_teacher(teacher, model, model_flag)
    defaults = TEACHER_DEFAULTS.get(kind, TEACHER_DEFAULTS["openai"])
    chosen = {name: options.get(name, value) for name, value in defaults.items()}
    files = {
        name: tuple(load_lines(path))
        for name, path in {"topics": topics, "verbs": verbs}.items()
        if path
    }
    settings = Settings(**{**options, **chosen, **files})
    examples, header = load_examples(seeds or SEEDS), load_header(prompt or HEADER)
    passages = load_passages(Path(documents)) if documents else []
    with open_teacher(kind, model, slots=limits.concurrency) as opened:
        print(f"teacher: {kind}, {opened.model} ({why})")
        if kind not in BUILT_IN:
            plan = describe_plan(
                settings,
                limits,
                opened.model,
                is_free=opened.is_free,
                has_budget=bool(opened.preset.budget),
                seen=read_sample(folder),
            )
            print(plan, flush=True)
        print(f"{len(examples)} seed tasks; {', '.join(f'{k} {v}' for k, v in chosen.items())}")
        outcome = generate(
            opened, examples, header, settings, folder, limits, passages, print_progress
        )
    print_summary(outcome, settings.tasks_wanted, opened.model, is_paid=not opened.is_free)
    print(folder / "regen.json")
    return outcome


def choose_teacher(kind: str = "", model: str = "", flag: str = "--model") -> tuple[str, str, str]:
    """Returns (teacher, model, reason); the environment decides what is empty.

    Raises UsageError for an unknown teacher, and, naming ``flag``, for OpenAI without a model;
    another server's model may be empty, if it has only one.
    """
    why = "as asked for"
    if not kind:
        has_key = bool(os.environ.get("OPENAI_API_KEY"))
        kind = "openai" if has_key else "local"
        why = f"OPENAI_API_KEY is {'set' if has_key else 'not set'}; --teacher chooses"
    if kind not in BUILT_IN:
        find_preset(kind)
        is_replaced = bool(os.environ.get("OPENAI_BASE_URL"))
        if kind == "openai" or is_replaced:
            model = model or os.environ.get("OPENAI_MODEL", "")
        if kind == "openai" and not model and not is_replaced:
            raise UsageError(
                "the openai teacher needs the name of a model (Stanford's text-davinci-003 was "
                f"shut down in January 2024): give {flag} or set OPENAI_MODEL (with a price: "
                f"{', '.join(name for name, price in load_prices().items() if not price.gone)}); "
                "or take --teacher local, which needs no key"
            )
    return kind, model, why


def print_progress(progress: Progress) -> None:
    """Prints a line for each reply that was filtered."""
    source = " (from the journal)" if progress.resumed else ""
    print(f"request {progress.requests}{source}: {progress}", flush=True)


def print_summary(outcome: Outcome, wanted: int, model: str, is_paid: bool) -> None:
    """Prints tasks, tokens, reasons for rejection, cost, and which limit ended the run."""
    hidden = outcome.reasoning_tokens
    reasoning = f", {hidden:,} of them reasoning" if hidden else ""
    print(
        f"{len(outcome.kept)} kept, {len(outcome.rejected)} rejected in {outcome.requests} "
        f"requests ({outcome.resumed_requests} from the journal), {outcome.prompt_tokens:,} "
        f"prompt and {outcome.completion_tokens:,} reply tokens{reasoning}"
    )
    for reason, count in outcome.reasons().most_common():
        print(f"  {count:4} rejected: {reason}")
    if outcome.usd is None:
        print(f"cost unknown: {model} is not in the prices file")
    elif is_paid:
        lost = f"at most ${outcome.lost_usd:.4f} on attempts without an answer"
        if outcome.in_flight_at_stop:
            lost += f" ({outcome.in_flight_at_stop} requests in flight at the stop among them)"
        print(f"${outcome.usd:.4f} spent, and {lost}")
    if len(outcome.kept) < wanted:
        flag = {"budget": "max_usd"}.get(outcome.ended, outcome.ended)
        print(f"fewer than {wanted}: stopped by --{flag}")
