"""Sub-commands of evaluation: compare models, files of outputs, and what a judge prefers."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import mean

from alpaca_lib import evaluation, inference
from alpaca_lib.command_line import Command
from alpaca_lib.errors import ModelError, SettingsError
from alpaca_lib.evaluation.comparison import TEXT_MEASURES
from alpaca_lib.files import dump_json, write_text
from alpaca_lib.inference.commands import EVAL_TASKS
from alpaca_lib.inference.decoding import Decoding
from alpaca_lib.models import ModelSource
from alpaca_lib.options import add_flags, from_flags
from alpaca_lib.records import Conversation


def _add_compare_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", nargs="+", metavar="NAME=MODEL", help="the first is the base")
    about = "tasks, or conversations whose last answers are the references (eval_60.json)"
    parser.add_argument("--eval", type=Path, default=EVAL_TASKS, help=about)
    parser.add_argument("--template", help="prompt template (default: the trained one)")
    add_flags(parser, Decoding, ("max_new_tokens", "repetition_penalty"))
    parser.add_argument(
        "--batch", type=int, default=0, help="answers at a time, at most (default 0: all that fit)"
    )
    parser.add_argument(
        "--out", type=Path, help="folder for scores.json and NAME.json, which AlpacaEval can score"
    )


def _run_compare(options: argparse.Namespace) -> None:
    decoding = Decoding(**from_flags(options, Decoding))
    sources = resolve_models(options.models)
    if follow_ups := evaluation.load_follow_ups(options.eval):
        _run_follow_ups(options, sources, follow_ups, decoding)
        return
    tasks = evaluation.load_tasks(options.eval)
    template = options.template or inference.common_template(sources.values())
    print(f"template {template}", file=sys.stderr)

    def report(name: str) -> None:
        print(f"{name}: {len(tasks)} tasks ...", file=sys.stderr, flush=True)

    def progress(name: str, done: int) -> None:
        if sys.stderr.isatty():
            end = "\n" if done == len(tasks) else "\r"
            print(f"{name}: {done} of {len(tasks)} answers", end=end, file=sys.stderr, flush=True)

    scores, pool = [], inference.ModelPool(sources)
    compared = evaluation.compare_models(
        pool, tasks, decoding, template, options.batch, report, progress
    )
    for one, answers in compared:
        scores.append(one)
        if options.out:
            evaluation.save_outputs(options.out / f"{one.model}.json", tasks, answers, one.model)
    if options.out:
        rows = {one.model: vars(one) for one in scores}
        write_text(options.out / "scores.json", dump_json(rows, indent=1) + "\n")
    print_scores(scores)


def _run_follow_ups(
    options: argparse.Namespace,
    sources: dict[str, ModelSource],
    tasks: list[Conversation],
    decoding: Decoding,
) -> None:
    """Asks each model questions with follow-up questions, and prints what its answers are like.

    There are no references, so a judge decides between the files of --out.
    """
    template = options.template or inference.common_template(sources.values())
    print(f"template {template}", file=sys.stderr)
    pool = inference.ModelPool(sources)
    print(f"{'':12}" + "".join(f"{column:>10}" for column in ("tasks", "ended", *TEXT_MEASURES)))
    for name in pool.names:
        asked = sum(len(task.turns) for task in tasks)
        print(f"{name}: {len(tasks)} tasks, {asked} questions ...", file=sys.stderr, flush=True)
        with pool.use(name) as model:
            done = evaluation.answer_follow_ups(
                model, pool.tokenizer(name), tasks, decoding, template, options.batch
            )
        conversations = [conversation for conversation, _ in done]
        answers = [said for _, said in done]
        if options.out:
            file = options.out / f"{name}.json"
            evaluation.save_outputs(file, conversations, answers, name)
        means = [mean(measure(a.text) for a in answers) for measure in TEXT_MEASURES.values()]
        ended = mean(a.ended for a in answers)
        shown = "".join(f"{value:10.2f}" for value in means)
        print(f"{name[:12]:12}{len(tasks):10}{ended:10.0%}{shown}", flush=True)
    if options.out:
        print("the last answers; `alpaca judge` compares the files", file=sys.stderr)


def resolve_models(words: Iterable[str]) -> dict[str, ModelSource]:
    """Returns the models of NAME=MODEL words by name. Raises ModelError for a name used twice."""
    sources: dict[str, ModelSource] = {}
    for word in words:
        name, _, model = word.rpartition("=")
        name = name or Path(model).name
        check_name(name)
        if name.casefold() in map(str.casefold, sources):
            raise ModelError(f"two models are called {name}: name them, as in NAME={model}")
        sources[name] = ModelSource.resolve(model)
    return sources


def check_name(name: str) -> None:
    """Raises SettingsError for a model's name that cannot be a file's: NAME.json is written."""
    plain = re.fullmatch(r"[^/\\:*?\"<>|\x00-\x1f]{1,80}", name) and name.strip(" .") == name
    if not plain or name.casefold() == "scores":
        taken = " is the file of the scores" if name.casefold() == "scores" else ""
        raise SettingsError(
            f"model name {name!r}{taken or ' cannot be a file name'}: it becomes NAME.json; use "
            "letters, digits, - and _, as in base=smollm2-135m"
        )


def print_scores(scores: list[evaluation.Scores]) -> None:
    """Prints a table of models, and each model's differences from the first one."""
    columns = ("loss", "bits/byte", "ended", "checks", "ROUGE-L", "repeated", "words", "tokens/s")
    print(f"{'':12}" + "".join(f"{column:>10}" for column in columns))
    for s in scores:
        met = f"{s.checks_met:.0%}" if s.checks_met is not None else "-"
        print(
            f"{s.model[:12]:12}{s.loss:10.3f}{s.bits_per_byte:10.3f}{s.ended:10.0%}{met:>10}"
            f"{s.rouge_l:10.3f}{s.repeated:10.1%}{s.words:10.1f}{s.tokens_per_second or 0:10.1f}"
        )
    base, *others = scores
    for s in others:
        print(f"\n{s.model} minus {base.model}, with 95 % intervals; better : worse : equal tasks")
        for d in evaluation.differences(s, base):
            counts = f"{d.better:4} :{d.worse:4} :{d.equal:4}"
            print(f"  {d.measure:12}{d.interval!s:28}{counts}   p {d.p:.2g}")


def _add_output_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("one", type=Path, help="outputs in AlpacaEval's format")
    parser.add_argument("two", type=Path, help="outputs of another model to the same tasks")


def _run_outputs(options: argparse.Namespace) -> None:
    one, two, pairs = evaluation.load_pairs(options.one, options.two)
    print(
        f"{len(pairs)} tasks; {one} minus {two} with 95 % intervals; on how many tasks more, fewer"
    )
    print(f"  {'':10}{one[:18]:>19}{two[:18]:>19}")
    texts = [a.output for a, _ in pairs], [b.output for _, b in pairs]
    for d in evaluation.compare_texts(*texts):
        means = f"{d.means[0]:19.3f}{d.means[1]:19.3f}"
        print(f"  {d.measure:10}{means}   {d.interval!s:26}{d.better:5} :{d.worse:5}")
    print(f"  ROUGE-L of one with the other: {mean(evaluation.rouge_scores(*texts)):.3f}")


def _add_judge_arguments(parser: argparse.ArgumentParser) -> None:
    _add_output_files(parser)
    parser.add_argument("--judge", required=True, help="the judge's name at OPENAI_BASE_URL")
    parser.add_argument("--kept", type=Path, help="file of replies; a stopped run resumes from it")
    parser.add_argument("--at-once", type=int, default=4, help="concurrent requests (default 4)")


def _run_judge(options: argparse.Namespace) -> None:
    one, two, outputs = evaluation.load_pairs(options.one, options.two)
    print(f"{len(outputs)} tasks that both have, shown twice each ...", file=sys.stderr)

    def report(done: int, total: int) -> None:
        print(f"{done}/{total}", end="\r", file=sys.stderr, flush=True)

    pairs = [evaluation.Pair.from_outputs(a, b) for a, b in outputs]
    with evaluation.open_judge(options.judge) as ask:
        found = evaluation.judge(pairs, ask, options.kept, options.at_once, report, options.judge)
    outcomes = [outcome for _, outcome in found.decided]
    wins, losses, ties = (outcomes.count(value) for value in (1.0, 0.0, 0.5))
    p = evaluation.sign_test(wins, losses)
    print(f"{one} against {two}, judged by {options.judge}")
    print(f"  read in both orders   {len(outcomes)} of {len(pairs)}")
    print(f"  wins, losses, ties    {wins} {losses} {ties}")
    print(f"  win rate              {found.win_rate}   sign test p {p:.2g}")
    print(f"  at equal length       {found.length_controlled:.3f}")
    print(f"  same in both orders   {found.consistency:.0%}")
    print(f"  first place won       {found.first_position}")


COMPARE = Command(
    "compare",
    "compare models on the same held-out tasks, with intervals",
    _add_compare_arguments,
    _run_compare,
    ("alpaca compare base=smollm2-135m lora=runs/lora", "alpaca compare runs/a runs/b --out ab"),
)
OUTPUTS = Command(
    "outputs",
    "two files of outputs, published ones too, without a judge",
    _add_output_files,
    _run_outputs,
    ("alpaca outputs ab/a.json ab/b.json", "alpaca outputs ab/a.json text_davinci_003.json"),
)
JUDGE = Command(
    "judge",
    "two files of outputs before a judge, in both orders",
    _add_judge_arguments,
    _run_judge,
    (
        "alpaca judge ab/a.json ab/b.json --judge gpt-6-luna",
        "alpaca judge a.json b.json --judge gpt-6-luna --kept replies.jsonl --at-once 8",
    ),
)
COMMANDS = (COMPARE, OUTPUTS, JUDGE)
