"""Writes new instruction tasks with a teacher model, as Stanford's script of that name.

python -m generate_instruction generate_instruction_following_data [--flag value ...]
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flags
from flags import Flag, Given, Script

if TYPE_CHECKING:
    from alpaca_lib.generation.self_instruct import Outcome

FUNCTION = "generate_instruction_following_data"
LOCAL_TASKS, LOCAL_TEMPERATURE, LOCAL_TOP_P = 3, 0.8, 0.95
OPENAI_TASKS, OPENAI_TEMPERATURE, OPENAI_TOP_P = 20, 1.0, 1.0

SCRIPT = Script(
    name="generate_instruction.py",
    functions=(FUNCTION,),
    about="""
        Stage 01 of the Alpaca recipe (Self-Instruct in Stanford's form). Shows a teacher model a
        few human-written seed tasks, asks it for more of the kind, drops what breaks a rule or
        is too like a known instruction (ROUGE-L above 0.7), and goes on until enough are kept.

        Every reply is put into OUTPUT_DIR/journal.jsonl as it arrives, what is kept into
        OUTPUT_DIR/regen.json. The same command again goes on where it was, and pays for
        nothing twice.
    """,
    flags=(
        Flag("output_dir", str, "./", "where the results go", "{}: regen.json, journal.jsonl"),
        Flag(
            *("seed_tasks_path", str, "", "the human-written tasks, .jsonl or .json"),
            lambda path: f"seeds from {path or 'data/seed_tasks.jsonl'}",
            unset="the project's data/seed_tasks.jsonl",
        ),
        Flag(
            *("num_instructions_to_generate", int, 100, "stop when so many are kept"),
            *("tasks_wanted {} (a whole reply is kept, so a few more are possible)",),
            least=1,
        ),
        Flag(
            *("model_name", str, "", "the teacher's model"),
            "model {}",
            unset="local: the embedded smollm2-135m; openai: OPENAI_MODEL, or give it here",
        ),
        Flag(
            *("num_prompt_instructions", int, 3, "how many seeds a prompt shows"),
            *("seeds_per_prompt {}",),
            least=1,
        ),
        Flag(
            *("request_batch_size", int, 5, "prompts sent together, upstream as one batch"),
            *("{} requests in flight at once",),
            least=1,
        ),
        Flag(
            *("temperature", float, None, "how freely the teacher samples"),
            *("temperature {}",),
            least=0,
            unset=f"{OPENAI_TEMPERATURE}, for the local teacher {LOCAL_TEMPERATURE}",
        ),
        Flag(
            *("top_p", float, None, "sample from the likeliest tokens with this total"),
            *("top_p {}",),
            least=0,
            unset=f"{OPENAI_TOP_P}, for the local teacher {LOCAL_TOP_P}",
        ),
        Flag(
            *("num_cpus", int, 16, "processes that upstream started to compute ROUGE-L"),
            *("nothing: one core is enough now (RapidFuzz compares in bits, not in Python)",),
            least=1,
        ),
        Flag(
            *(
                "teacher",
                str,
                "",
                "who writes: local (llama.cpp), openai (any such server), replay",
            ),
            *("teacher {}", ("local", "openai", "replay")),
            unset="openai if OPENAI_API_KEY is set, else local",
        ),
        Flag(
            *("tasks_per_request", int, None, "new tasks that one prompt asks for"),
            *("tasks_per_request {}",),
            least=1,
            unset=f"{OPENAI_TASKS}, for the local teacher {LOCAL_TASKS}",
        ),
        Flag(
            *("prompt_path", str, "", "the text above the list of tasks in a prompt"),
            lambda path: f"header from {path or 'data/prompts/generate_en.txt'}",
            unset="the project's data/prompts/generate_en.txt",
        ),
        Flag("seed", int, 0, "draws the seeds of each prompt, and the local sampling", "seed {}"),
        Flag(
            *("max_requests", int, 1000, "stop after so many requests, enough or not"),
            *("max_requests {}",),
            least=1,
        ),
    ),
    example=f"""
        python -m generate_instruction {FUNCTION} \\
            --output_dir runs/generated --num_instructions_to_generate 10
    """,
)


def choose_teacher(given: Given) -> tuple[str, str, str]:
    """(teacher, model, why this teacher). FlagError if the openai one has no model."""
    kind, why = given["teacher"], "as asked for"
    if not kind:
        keyed = bool(os.environ.get("OPENAI_API_KEY"))
        kind = "openai" if keyed else "local"
        why = f"OPENAI_API_KEY is {'set' if keyed else 'not set'}; --teacher chooses"
    model = given["model_name"]
    if kind == "openai" and not model:
        model = os.environ.get("OPENAI_MODEL", "")
        if not model:
            raise flags.FlagError(
                "the openai teacher needs the name of a model (Stanford's text-davinci-003 was "
                "shut down in January 2024): give --model_name or set OPENAI_MODEL; or take "
                "--teacher local, which needs no key"
            )
    return kind, model, why


def work(given: Given) -> None:
    """Asks the teacher until enough tasks are kept, and says what came of it."""
    kind, model, why = choose_teacher(given)
    given.tell()

    from alpaca_lib.generation import self_instruct
    from alpaca_lib.generation.teacher import open_teacher
    from alpaca_lib.prompts import load_header
    from alpaca_lib.records import load_examples

    local = kind == "local"
    by_teacher: dict[str, Any] = {
        "tasks_per_request": LOCAL_TASKS if local else OPENAI_TASKS,
        "temperature": LOCAL_TEMPERATURE if local else OPENAI_TEMPERATURE,
        "top_p": LOCAL_TOP_P if local else OPENAI_TOP_P,
    }
    chosen = {name: v if given[name] is None else given[name] for name, v in by_teacher.items()}
    settings = self_instruct.Settings(
        tasks_wanted=given["num_instructions_to_generate"],
        seeds_per_prompt=given["num_prompt_instructions"],
        seed=given["seed"],
        **chosen,
    )
    if not 0 < settings.top_p <= 1:
        raise flags.FlagError(f"--top_p '{settings.top_p}': takes a number above 0, at most 1")
    folder = Path(given["output_dir"])
    seeds = load_examples(given["seed_tasks_path"] or flags.ROOT / "data" / "seed_tasks.jsonl")
    header = load_header(
        given["prompt_path"] or flags.ROOT / "data" / "prompts" / "generate_en.txt"
    )
    in_flight = given["request_batch_size"]
    with open_teacher(kind, model, slots=in_flight) as teacher:
        print(f"teacher: {kind}, {teacher.model} ({why})")
        print(f"{len(seeds)} seed tasks; {', '.join(f'{k} {v}' for k, v in chosen.items())}")
        progress = Progress(settings.tasks_wanted)
        outcome = self_instruct.generate(
            *(teacher, seeds, header, settings, folder),
            concurrency=in_flight,
            max_requests=given["max_requests"],
            progress=progress,
        )
    print(f"{len(outcome.kept)} kept, {len(outcome.rejected)} rejected", end=" ")
    print(f"in {outcome.requests} requests ({outcome.resumed_requests} from the journal),", end=" ")
    print(f"{outcome.prompt_tokens:,} prompt and {outcome.completion_tokens:,} reply tokens")
    for reason, count in outcome.reasons().most_common():
        print(f"  {count:4} rejected: {reason}")
    if len(outcome.kept) < settings.tasks_wanted:
        print(f"fewer than {settings.tasks_wanted}: stopped by --max_requests")
    print(folder / "regen.json")


class Progress:
    """Prints a line for each request that has been judged."""

    def __init__(self, wanted: int) -> None:
        self.wanted, self.kept, self.rejected = wanted, 0, 0
        self.since = time.perf_counter()

    def __call__(self, outcome: Outcome) -> None:
        kept, rejected = len(outcome.kept), len(outcome.rejected)
        now = time.perf_counter()
        resumed = outcome.requests <= outcome.resumed_requests
        took = "from the journal" if resumed else f"{now - self.since:.1f} s"
        print(
            f"request {outcome.requests}: {kept - self.kept} kept, "
            f"{rejected - self.rejected} rejected ({took}); {kept} of {self.wanted}",
            flush=True,
        )
        self.kept, self.rejected, self.since = kept, rejected, now


def main(arguments: list[str]) -> int:
    """Runs the command line; returns the exit code."""
    return flags.run(lambda: work(flags.parse(SCRIPT, arguments)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
