"""Writes new instruction tasks with a teacher model, as Stanford's script of that name.

python -m generate_instruction generate_instruction_following_data [--flag value ...]
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flags
from flags import Flag, Given, Script

if TYPE_CHECKING:
    from alpaca_lib.generation.filtering import Progress
    from alpaca_lib.generation.self_instruct import Limits, Settings

FUNCTION = "generate_instruction_following_data"
LOCAL_TASKS, LOCAL_TEMPERATURE, LOCAL_TOP_P, LOCAL_SEED_WORDS = 3, 0.8, 0.95, 60
OPENAI_TASKS, OPENAI_TEMPERATURE, OPENAI_TOP_P = 20, 1.0, 1.0
SAME_NAME = (
    *("machine_tasks", "language", "rouge_mode", "reply_format", "reasoning_effort"),
    "safety_path",
)
LIMITS = ("max_requests", "way", "max_usd", "requests_per_minute", "tokens_per_minute")

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

        With --max_usd the run never spends more; with --way flex or batch it costs half where
        the provider offers that. --documents writes tasks about your own texts.
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
            *("seed_words", int, None, "show only seeds of at most so many words; 0: any"),
            *("seed_words {}",),
            least=0,
            unset=f"any, for the local teacher {LOCAL_SEED_WORDS}",
        ),
        Flag(
            *("prompt_path", str, "", "the text above the list of tasks in a prompt"),
            lambda path: f"header from {path or 'data/prompts/generate_en.txt'}",
            unset="the project's data/prompts/generate_en.txt",
        ),
        Flag("seed", int, 0, "draws the seeds of each prompt, and the local sampling", "seed {}"),
        Flag(
            *("max_requests", int, None, "stop after so many requests, enough or not"),
            *("max_requests {}",),
            least=1,
            unset="five times what would do if every task were kept",
        ),
        Flag(
            *("machine_tasks", int, 0, "the teacher's own tasks in a prompt, beside the seeds"),
            *("machine_tasks {}",),
            least=0,
        ),
        Flag(
            *("documents", str, "", "a folder of .txt, .md or .rst files: tasks are about them"),
            lambda path: f"a passage of {path} in each prompt" if path else "no documents",
        ),
        Flag(
            *("topics_path", str, "", "a file with a subject a line; a prompt names one"),
            lambda path: f"subjects from {path}" if path else "no subjects",
        ),
        Flag(
            *("verbs_path", str, "", "a file with a verb a line; a prompt asks for rare ones"),
            lambda path: f"verbs from {path}" if path else "no verbs asked for",
        ),
        Flag(
            *("language", str, "", "the language of what is added to the prompt"),
            *("language {}", ("en", "zh")),
            unset="that of the prompt",
        ),
        Flag(
            *("rouge_mode", str, "rouge", "how words are compared; unicode for other scripts"),
            *("rouge_mode {}", ("rouge", "unicode")),
        ),
        Flag(
            *("reply_format", str, "text", "text as Stanford's, or json: structured output"),
            *("reply_format {}", ("text", "json")),
        ),
        Flag(
            *("reasoning_effort", str, "none", "how long a reasoning model thinks; it is billed"),
            "reasoning_effort {}",
        ),
        Flag(
            *("safety_path", str, "", "rules for what may be kept"),
            lambda path: f"rules from {path or 'data/safety_rules.yaml'}",
            unset="the project's data/safety_rules.yaml",
        ),
        Flag(
            *("way", str, "online", "online; flex: slower; batch: within a day; both half price"),
            *("way {}", ("online", "flex", "batch")),
        ),
        Flag(
            *("max_usd", float, None, "spend at most so many dollars"),
            *("max_usd {}",),
            least=0,
            unset="no limit",
        ),
        Flag(
            *("prices_path", str, "", "what models cost"),
            lambda path: f"prices from {path or 'data/prices.yaml'}",
            unset="the project's data/prices.yaml",
        ),
        Flag(
            *("requests_per_minute", float, None, "the account's limit"),
            *("requests_per_minute {}",),
            least=1,
            unset="what the server says",
        ),
        Flag(
            *("tokens_per_minute", float, None, "the account's limit"),
            *("tokens_per_minute {}",),
            least=1,
            unset="what the server says",
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
    from alpaca_lib.generation.documents import load_passages
    from alpaca_lib.generation.teacher import open_teacher
    from alpaca_lib.prompts import load_header
    from alpaca_lib.records import load_examples, load_lines

    local = kind == "local"
    by_teacher: dict[str, Any] = {
        "tasks_per_request": LOCAL_TASKS if local else OPENAI_TASKS,
        "temperature": LOCAL_TEMPERATURE if local else OPENAI_TEMPERATURE,
        "top_p": LOCAL_TOP_P if local else OPENAI_TOP_P,
        "seed_words": LOCAL_SEED_WORDS if local else 0,
    }
    chosen = {name: v if given[name] is None else given[name] for name, v in by_teacher.items()}
    settings = self_instruct.Settings(
        tasks_wanted=given["num_instructions_to_generate"],
        seeds_per_prompt=given["num_prompt_instructions"],
        seed=given["seed"],
        topics=tuple(load_lines(given["topics_path"])) if given["topics_path"] else (),
        verbs=tuple(load_lines(given["verbs_path"])) if given["verbs_path"] else (),
        **{name: given[name] for name in SAME_NAME},
        **chosen,
    )
    limits = self_instruct.Limits(
        concurrency=given["request_batch_size"],
        prices_path=Path(given["prices_path"]) if given["prices_path"] else None,
        **{name: given[name] for name in LIMITS},
    )
    if not 0 < settings.top_p <= 1:
        raise flags.FlagError(f"--top_p '{settings.top_p}': takes a number above 0, at most 1")
    folder = Path(given["output_dir"])
    seeds = load_examples(given["seed_tasks_path"] or flags.ROOT / "data" / "seed_tasks.jsonl")
    header = load_header(
        given["prompt_path"] or flags.ROOT / "data" / "prompts" / "generate_en.txt"
    )
    passages = load_passages(Path(given["documents"])) if given["documents"] else []
    with open_teacher(kind, model, slots=limits.concurrency) as teacher:
        print(f"teacher: {kind}, {teacher.model} ({why})")
        if kind == "openai":
            print(foresee(settings, limits, model))
        print(f"{len(seeds)} seed tasks; {', '.join(f'{k} {v}' for k, v in chosen.items())}")
        outcome = self_instruct.generate(
            teacher, seeds, header, settings, folder, limits, passages, tell
        )
    print(f"{len(outcome.kept)} kept, {len(outcome.rejected)} rejected", end=" ")
    print(f"in {outcome.requests} requests ({outcome.resumed_requests} from the journal),", end=" ")
    print(f"{outcome.prompt_tokens:,} prompt and {outcome.completion_tokens:,} reply tokens")
    for reason, count in outcome.reasons().most_common():
        print(f"  {count:4} rejected: {reason}")
    if outcome.usd is None:
        print(f"what it cost is not known: {teacher.model} is not in the prices file")
    elif kind == "openai":
        print(f"${outcome.usd:.4f} spent", end="")
        print(f", and at most ${outcome.lost_usd:.4f} on attempts without an answer")
    if len(outcome.kept) < settings.tasks_wanted:
        flag = {"budget": "max_usd"}.get(outcome.ended, outcome.ended)
        print(f"fewer than {settings.tasks_wanted}: stopped by --{flag}")
    print(folder / "regen.json")


def foresee(settings: Settings, limits: Limits, model: str) -> str:
    """What the run will probably cost, judging by the course's own replies."""
    from alpaca_lib.generation import budget, filtering, replay_teacher
    from alpaca_lib.generation.messages import parse_completion
    from alpaca_lib.generation.teacher import REPLIES
    from alpaca_lib.records import load_examples

    price = budget.load_prices(limits.prices_path, limits.way).get(model)
    if price is None:
        return f"cost: not known, {model} ({limits.way}) is not in the prices file"
    replies = [parse_completion(reply) for reply in replay_teacher.load_replies(REPLIES)]
    seeds = load_examples(flags.ROOT / "data" / "seed_tasks.jsonl")
    sample = filtering.sample_replies(replies, seeds, settings.threshold)
    found = budget.estimate(settings.tasks_wanted, sample, price, falls_to=0.5)
    low, middle, high = found.usd
    return (
        f"cost: about ${middle:.2f} (${low:.2f} to ${high:.2f}), {found.requests[1]:.0f} requests "
        f"of 20 tasks, judging by the course's recorded replies and prices of {price.dated}; "
        + ("--max_usd sets a limit" if limits.max_usd is None else f"never over {limits.max_usd}")
    )


def tell(progress: Progress) -> None:
    """Prints a line for each reply that has been judged."""
    source = " (from the journal)" if progress.resumed else ""
    print(f"request {progress.requests}{source}: {progress}", flush=True)


def main(arguments: list[str]) -> int:
    """Runs the command line; returns the exit code."""
    return flags.run(lambda: work(flags.parse(SCRIPT, arguments)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
