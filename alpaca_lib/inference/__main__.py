"""python -m alpaca_lib.inference COMMAND: compare what was trained, and put it to use.

  compare MODEL ...      the same held-out tasks to each model: one table, with intervals
  outputs A.json B.json  two files of outputs, published ones too, without a judge
  judge A.json B.json    two files of outputs before a judge, in both orders
  export MODEL FILE      a GGUF file for llama.cpp; --adapter: of an adapter alone
  check MODEL FILE       that GGUF file beside PyTorch: tokens, answers, probabilities
  publish MODEL FOLDER   weights, tokenizer and model card, ready for a hub
  serve MODEL            an OpenAI-compatible address on this machine
  safety                 what the rules block of a labelled set, and what they miss

MODEL is a folder (an adapter's too), a hub id, the embedded model's name; for serve also
a .gguf file. Every command has a --help.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import mean

from alpaca_lib.errors import DataError, ModelError
from alpaca_lib.files import dump_json, write_text
from alpaca_lib.models.embedded import DEFAULT_MODEL
from alpaca_lib.records import Example, load_examples

DATA = Path(__file__).resolve().parents[2] / "data"
EVAL = DATA / "eval_60.json"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m alpaca_lib.inference",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    compare = commands.add_parser("compare", help="one table of several models")
    compare.add_argument("models", nargs="+", metavar="NAME=MODEL", help="the first is the base")
    compare.add_argument("--eval", type=Path, default=EVAL, help="held-out tasks (eval_60.json)")
    compare.add_argument("--template", help="the prompt; without it, what they were trained on")
    compare.add_argument("--max-new-tokens", type=int, default=128)
    compare.add_argument("--repetition-penalty", type=float, default=1.0)
    compare.add_argument("--batch", type=int, default=16, help="prompts at a time (default 16)")
    compare.add_argument("--out", type=Path, help="a folder for scores.json and NAME.json, which "
                         "AlpacaEval can score")  # fmt: skip
    outputs = commands.add_parser("outputs", help="two files of outputs, without a judge")
    outputs.add_argument("one", type=Path, help="outputs in AlpacaEval's format")
    outputs.add_argument("two", type=Path, help="outputs of another model to the same tasks")
    judge = commands.add_parser("judge", help="two files of outputs, in both orders")
    judge.add_argument("one", type=Path, help="outputs in AlpacaEval's format")
    judge.add_argument("two", type=Path, help="outputs of another model to the same tasks")
    judge.add_argument("--judge", required=True, help="the judge's name at OPENAI_BASE_URL")
    judge.add_argument("--kept", type=Path, help="replies so far; a stopped run goes on from it")
    judge.add_argument("--at-once", type=int, default=4, help="requests that fly (default 4)")
    export = commands.add_parser("export", help="a GGUF file for llama.cpp")
    export.add_argument("model")
    export.add_argument("file", type=Path)
    export.add_argument("--kind", default="q8_0", help="f32 f16 bf16 q8_0 q4_0 q4_1 (q8_0)")
    export.add_argument("--template", help="what it was trained on (its run.json says so)")
    export.add_argument("--adapter", action="store_true", help="the adapter alone, not merged")
    check = commands.add_parser("check", help="a GGUF file beside PyTorch")
    check.add_argument("model", help="what it was made from")
    check.add_argument("file", type=Path)
    check.add_argument("--eval", type=Path, default=EVAL)
    check.add_argument("--template", help="the prompt; without it, what it was trained on")
    check.add_argument("--most-kl", type=float, default=0.2, help="more is a failure (0.2 nats)")
    publish = commands.add_parser("publish", help="a folder that can go to a hub")
    publish.add_argument("model")
    publish.add_argument("folder", type=Path)
    publish.add_argument("--title", default="")
    publish.add_argument("--licence", default="", help="of the weights, as a hub names it")
    publish.add_argument("--data-licence", default="", help="of what it was trained on")
    publish.add_argument("--scores", type=Path, help="a JSON file of names and numbers, or "
                         "compare's scores.json")  # fmt: skip
    publish.add_argument("--of", default="", help="which model of compare's scores.json")
    serve = commands.add_parser("serve", help="an OpenAI-compatible address")
    serve.add_argument("model", nargs="?", default=DEFAULT_MODEL)
    serve.add_argument("--kind", default="q8_0", help="what a folder is exported as (q8_0)")
    serve.add_argument("--template", help="what it was trained on (its run.json says so)")
    serve.add_argument("--slots", type=int, default=4, help="answers at a time (default 4)")
    serve.add_argument("--context", type=int, default=2048, help="tokens of each (default 2048)")
    serve.add_argument("--host", default="127.0.0.1", help="0.0.0.0: the whole network")
    serve.add_argument("--port", type=int, default=8080, help="0: any free one (default 8080)")
    safety = commands.add_parser("safety", help="what the rules block of a labelled set")
    safety.add_argument("--rules", type=Path, help="the course's, without it")
    safety.add_argument("--set", type=Path, default=DATA / "safety_eval.jsonl")
    safety.add_argument("--show", action="store_true", help="what went wrong, row by row")
    return made


def main(arguments: list[str]) -> int:
    """Runs the command line; the exit code is 0 only if it did what was asked."""
    options = parser().parse_args(arguments)
    try:
        return COMMANDS[options.command](options) or 0
    except (DataError, ModelError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        return 130


def _compare(options: argparse.Namespace) -> None:
    from alpaca_lib.evaluation.alpaca_eval import save_outputs
    from alpaca_lib.evaluation.comparison import Scores, differences, measured
    from alpaca_lib.inference.decoding import Decoding
    from alpaca_lib.inference.model_pool import Voices

    named: dict[str, str] = {}
    for word in options.models:
        name, _, where = word.rpartition("=")
        name = name or Path(where).name
        if name in named:
            raise ModelError(f"two models are called {name}: name them, as in NAME={where}")
        named[name] = where
    tasks = _tasks(options.eval)
    if options.batch < 1:
        raise ValueError(f"--batch {options.batch}: at least 1")
    template = options.template or _template(list(named.values()))
    print(f"template {template}", file=sys.stderr)
    voices = Voices(named)
    how = Decoding(
        max_new_tokens=options.max_new_tokens, repetition_penalty=options.repetition_penalty
    )
    scores: dict[str, Scores] = {}
    for name in voices.names:
        print(f"{name}: {len(tasks)} tasks ...", file=sys.stderr, flush=True)
        with voices.speaking(name) as model:
            scores[name], answers = measured(
                name, model, voices.tokenizer(name), tasks, how, template, options.batch
            )
        if options.out:
            save_outputs(options.out / f"{name}.json", tasks, answers, name)
    if options.out:
        kept = {name: asdict(s) for name, s in scores.items()}
        write_text(options.out / "scores.json", dump_json(kept, indent=1) + "\n")
    columns = ("loss", "bits/byte", "ended", "checks", "ROUGE-L", "repeated", "words", "tokens/s")
    print(f"{'':12}" + "".join(f"{c:>10}" for c in columns))
    for name, s in scores.items():
        met = f"{s.checks_met:.0%}" if s.checks_met is not None else "-"
        print(
            f"{name[:12]:12}{s.loss:10.3f}{s.bits_per_byte:10.3f}{s.ended:10.0%}{met:>10}"
            f"{s.rouge_l:10.3f}{s.repeated:10.1%}{s.words:10.1f}{s.tokens_per_second or 0:10.1f}"
        )
    base, *others = scores
    for name in others:
        print(f"\n{name} minus {base}, with 95 % intervals; better : worse : equal tasks")
        for d in differences(scores[name], scores[base]):
            print(f"  {d.what:12}{d.of!s:28}{d.better:4} :{d.worse:4} :{d.equal:4}   p {d.p:.2g}")


def _both(options: argparse.Namespace) -> tuple[str, str, list[tuple[Example, Example]]]:
    """(a model, another, their outputs to the tasks that both files have)."""
    from alpaca_lib.evaluation.alpaca_eval import load_outputs, paired

    (one, first), (two, second) = load_outputs(options.one), load_outputs(options.two)
    both = paired(first, second)
    if len(both) < 2:
        raise DataError(f"{options.one} and {options.two} share {len(both)} tasks; 2 are needed")
    return one, two, both


def _outputs(options: argparse.Namespace) -> None:
    from alpaca_lib.dataset.rouge import rouge_l
    from alpaca_lib.evaluation.comparison import TEXT_MEASURES, of_texts

    one, two, both = _both(options)
    texts = [a.output for a, _ in both], [b.output for _, b in both]
    print(
        f"{len(both)} tasks; {one} minus {two} with 95 % intervals; on how many tasks more, fewer"
    )
    print(f"  {'':10}{one[:18]:>19}{two[:18]:>19}")
    for d in of_texts(*texts):
        means = [mean(map(TEXT_MEASURES[d.what], side)) for side in texts]
        print(
            f"  {d.what:10}{means[0]:19.3f}{means[1]:19.3f}   {d.of!s:26}{d.better:5} :{d.worse:5}"
        )
    alike = mean(rouge_l(a, b, mode="unicode") for a, b in zip(*texts, strict=True))
    print(f"  ROUGE-L of one with the other: {alike:.3f}")


def _tasks(file: Path) -> list[Example]:
    """Held-out tasks that can be scored; what is wrong with one is said before hours of work."""
    from alpaca_lib.evaluation.constraint_checks import meets

    tasks = load_examples(file)
    for task in tasks:
        if "check" in task.extra:
            meets(task.extra["check"], "x")
    if not any(task.output for task in tasks):
        raise DataError(f"{file}: has no reference answers; a comparison needs them")
    return tasks


def _template(names: list[str]) -> str:
    """What the models were trained on, by their run.json; "alpaca" if none says so."""
    from alpaca_lib import models
    from alpaca_lib.export.serving import trained_template

    told = {name: trained_template(Path(models.ModelSource.resolve(name).path)) for name in names}
    said = {name: template for name, template in told.items() if template}
    if len(set(said.values())) > 1:
        each = ", ".join(f"{name}: {template}" for name, template in said.items())
        raise ModelError(f"trained on different templates ({each}); --template chooses one")
    return next(iter(said.values()), "alpaca")


def _judge(options: argparse.Namespace) -> None:
    from alpaca_lib.evaluation.intervals import sign_test
    from alpaca_lib.evaluation.llm_judge import Pair, judge, open_judge

    one, two, both = _both(options)
    print(f"{len(both)} tasks that both have, shown twice each ...", file=sys.stderr)
    with open_judge(options.judge) as ask:
        found = judge(
            [Pair.of(a, a.output, b.output) for a, b in both], ask, options.kept, options.at_once,
            lambda done, every: print(f"{done}/{every}", end="\r", file=sys.stderr, flush=True),
            options.judge,
        )  # fmt: skip
    outcomes = [outcome for _, outcome in found.read]
    wins, losses = outcomes.count(1.0), outcomes.count(0.0)
    print(f"{one} against {two}, judged by {options.judge}")
    print(f"  read in both orders   {len(outcomes)} of {len(both)}")
    print(f"  wins, losses, ties    {wins} {losses} {outcomes.count(0.5)}")
    print(f"  win rate              {found.win_rate}   sign test p {sign_test(wins, losses):.2g}")
    print(f"  at equal length       {found.length_controlled:.3f}")
    print(f"  same in both orders   {found.consistent:.0%}")
    print(f"  first place won       {found.first_place}")


def _export(options: argparse.Namespace) -> None:
    from alpaca_lib import models
    from alpaca_lib.export import gguf, serving

    if options.adapter:
        gguf.export_adapter(options.model, options.file)
    else:
        template = options.template or serving.trained_template(
            Path(models.ModelSource.resolve(options.model).path)
        )
        gguf.export(options.model, options.file, options.kind, template, _count)
        print(file=sys.stderr)
    print(f"{options.file}: {options.file.stat().st_size / 1e6:.1f} MB")


def _count(done: int, every: int) -> None:
    print(f"{done}/{every} tensors", end="\r", file=sys.stderr, flush=True)


def _check(options: argparse.Namespace) -> int:
    from alpaca_lib import models
    from alpaca_lib.export.parity import agreement

    exact = models.Placement("cpu", "float32", "to compare")
    model, tokenizer = models.load(options.model, exact)
    template = options.template or _template([options.model])
    found = agreement(model, tokenizer, options.file, load_examples(options.eval), template)
    print(f"tokenized alike    {found.tokenized_alike} of {found.texts} texts")
    print(f"greedy answers     {found.same:.2%} of {found.tokens} tokens")
    print(f"probabilities      KL {found.kl:.2g} nats, mean of {found.places} places")
    return 0 if found.tokenized_alike == found.texts and found.kl <= options.most_kl else 1


def _publish(options: argparse.Namespace) -> None:
    from alpaca_lib.export.hub_folder import publish

    scores = _scores(options.scores, options.of) if options.scores else None
    folder = publish(
        options.model, options.folder, options.title, options.licence, options.data_licence, scores
    )
    print(*sorted(file.name for file in folder.iterdir()))


def _scores(file: Path, of: str) -> dict[str, float]:
    """The numbers of a file by name; of one model, if it is compare's."""
    found = json.loads(file.read_text(encoding="utf-8"))
    if isinstance(found, dict) and of:
        found = found.get(of, found)
    numbers = {
        key: value
        for key, value in (found.items() if isinstance(found, dict) else ())
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    if not numbers:
        raise DataError(
            f'{file}: names and numbers are needed, as {{"loss": 2.4}}; of compare\'s scores.json '
            "--of takes one model's"
        )
    return numbers


def _serve(options: argparse.Namespace) -> None:
    from alpaca_lib.export.serving import serving

    with serving(
        options.model, options.kind, options.slots, options.context, options.host, options.port,
        options.template,
    ) as address:  # fmt: skip
        print(f"{address}   (OPENAI_BASE_URL; any OPENAI_API_KEY; Ctrl-C ends it)", flush=True)
        if options.host not in ("127.0.0.1", "localhost"):
            print("open to the network: whoever reaches it can use the model", flush=True)
        while True:
            time.sleep(3600)


def _safety(options: argparse.Namespace) -> None:
    from alpaca_lib.inference.safety import Policy, load_labelled, measure

    rows = load_labelled(options.set)
    found = measure(Policy.load(options.rules), rows)
    harmful = len(found.blocked) + len(found.let_through)
    print(f"blocked            {len(found.blocked)} of {harmful} harmful ({found.caught:.0%})")
    wrongly = len(found.wrongly_blocked)
    print(f"wrongly blocked    {wrongly} of {found.harmless} harmless ({found.wrongly:.0%})")
    caught = Counter(row.category for row in found.blocked)
    missed = Counter(row.category for row in found.let_through)
    wrong = Counter(row.category for row in found.wrongly_blocked)
    print(f"\n{'':28}{'blocked':>8}{'missed':>8}{'wrongly':>9}")
    for category in dict.fromkeys(row.category for row in rows):
        print(f"{category:28}{caught[category]:8}{missed[category]:8}{wrong[category]:9}")
    if options.show:
        for kind, group in (("missed", found.let_through), ("wrongly", found.wrongly_blocked)):
            for row in group:
                print(f"{kind}: {row.instruction[:100]!r} {row.output[:60]!r} ({row.category})")


COMMANDS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "compare": _compare,
    "outputs": _outputs,
    "judge": _judge,
    "export": _export,
    "check": _check,
    "publish": _publish,
    "serve": _serve,
    "safety": _safety,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
