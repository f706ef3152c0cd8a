"""Finds the models that notebooks 03 and 04 trained, and shows what a comparison of them found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alpaca_lib.course.notebooks import (
    find_model,
    find_newest,
    read_object,
    say,
    shorten_path,
    show_table,
    spread,
    truncate,
)
from alpaca_lib.course.plots import figure
from alpaca_lib.errors import RunError
from alpaca_lib.evaluation.comparison import Difference, Scores, repetition
from alpaca_lib.evaluation.constraint_checks import meets
from alpaca_lib.evaluation.llm_judge import Judgement
from alpaca_lib.evaluation.tasks import load_tasks, task_text
from alpaca_lib.export.parity import Parity
from alpaca_lib.inference.decoding import Answer
from alpaca_lib.inference.safety import PolicyScores
from alpaca_lib.tokenization import Record

FAR = 0.2  # nats; what `alpaca_lib.inference check` accepts is below
MADE_BY = {  # a model's name here: (the notebook that trains it, a file of it)
    "full": ("03_full_finetune_fsdp", "model/config.json"),
    "lora": ("04_lora_finetune", "adapter/adapter_config.json"),
}


def find_trained(base: str, **given: str) -> dict[str, str]:
    """Returns {"base": ..., "full": ..., "lora": ...}, and says which of them is missing.

    ``base`` is the parameter ``model``. A model that is ``given`` by name or path is taken; for
    "" the newest that notebook 03 or 04 trained from this base.
    """
    found = {"base": find_model(base)}
    for name, (lesson, file) in MADE_BY.items():
        newest = find_newest(lesson, file, model=base)
        if given.get(name) or newest:
            found[name] = find_model(given.get(name, "")) or str(newest.parent)  # type: ignore[union-attr]
        else:
            say(f"No model **{name}** from {base} yet: notebook {lesson[:2]} makes it.")
    return found


def _training(folder: str) -> tuple[Any, ...] | None:
    """Returns what decides which examples a run took, by its run.json; None if unknown."""
    run = read_object(Path(folder) / "run.json")
    try:
        settings = run["settings"]
        examples = int(run["steps"] * settings["examples_per_step"])
        keys = "examples_per_step", "seed", "data_path"
        return (examples, *(settings[key] for key in keys))
    except (KeyError, TypeError, ValueError):
        return None


def shown(model: str) -> str:
    """Returns a model's name, or its path as the course writes paths."""
    return shorten_path(model) if Path(model).exists() else model


def show_trained(found: Mapping[str, str], template: str) -> None:
    """Shows each model's path and training, and says what that means for a comparison.

    ``template``: the one that the models are asked in; one that was trained on another is named.
    """
    seen = {name: _training(path) for name, path in found.items() if name != "base"}
    rows = []
    for name, path in found.items():
        number = (seen.get(name) or ["an unknown number of"])[0]
        trained = "" if name == "base" else f"{number} examples"
        rows.append([name, shown(path), trained])
    show_table(["name", "model", "trained in this course on"], rows)
    for name, path in found.items():
        own = read_object(Path(path) / "run.json").get("settings", {}).get("template")
        if own and own != template:
            say(
                f"**{name}** was trained on the template `{own}`, and is asked in `{template}` "
                f'here: set `template = "{own}"`, or its answers are not those of its training.'
            )
    if len(seen) == 2:
        one, two = seen.values()
        say(
            f"Both were trained on the same {one[0]} examples, in the same order."
            if one and one == two
            else "They were trained on different examples: *full* and *lora* are two runs here, "
            "and no comparison of two methods."
        )


def choose_tasks(file: Path, rows: int) -> list[Record]:
    """Returns that many held-out tasks of a file, evenly spread over it; 0: all.

    Raises RunError for fewer than two, DataError for a file that cannot be used.
    """
    tasks = load_tasks(file)
    count = min(rows, len(tasks)) if rows else len(tasks)
    if count < 2:
        raise RunError(
            f"{rows} rows of {shorten_path(file)}, which has {len(tasks)}: a comparison needs two "
            "tasks at least; set eval_rows, or 0 for all"
        )
    return spread(tasks, count)


def show_scores(scores: Mapping[str, Scores]) -> None:
    """Shows one row of measures per model."""
    head = ["model", "loss", "bits per byte", "ended", "checks", "ROUGE-L", "repeated", "words"]
    rows = [
        [
            name,
            f"{s.loss:.3f}",
            f"{s.bits_per_byte:.3f}",
            f"{s.ended:.0%}",
            "-" if s.checks_met is None else f"{s.checks_met:.0%}",
            f"{s.rouge_l:.3f}",
            f"{s.repeated:.1%}",
            f"{s.words:.0f}",
        ]
        for name, s in scores.items()
    ]
    show_table(head, rows)


def show_answers(
    tasks: Sequence[Any], answers: Mapping[str, Sequence[Answer]], count: int, width: int = 160
) -> None:
    """Shows the first ``count`` tasks, each with its reference and the answers of all models."""
    rows = [
        [
            truncate(task_text(task), width),
            truncate(task.output, width),
            *(truncate(answers[name][i].text, width) for name in answers),
        ]
        for i, task in enumerate(tasks[:count])
    ]
    show_table(["task", "reference", *answers], rows)


def show_met(
    conditions: Mapping[str, dict[str, Any]], answers: Mapping[str, Sequence[Answer]]
) -> None:
    """Shows which model met the condition of which task, and how many of its answers ended.

    Condition i belongs to task i; see constraint_checks for what it may be.
    """
    rows = []
    for name, some in answers.items():
        pairs = zip(conditions.values(), some, strict=False)
        met = ["yes" if meets(condition, a.text) else "no" for condition, a in pairs]
        rows.append([name, *met, f"{sum(a.ended for a in some)} of {len(some)}"])
    show_table(["model", *conditions, "ended by themselves"], rows)


def show_loops(tried: Mapping[float, Sequence[Answer]]) -> None:
    """Shows, per repetition penalty, how many answers ended, and the one that repeats itself most.

    That is the one with the largest share of repeated 4-grams at the first penalty.
    """
    first = [repetition(one.text) for one in next(iter(tried.values()))]
    worst = max(range(len(first)), key=first.__getitem__)
    head = ["penalty", "ended by themselves", f"answer {worst + 1} repeats", "its last words"]
    rows = [
        [
            penalty,
            f"{sum(a.ended for a in some)} of {len(some)}",
            f"{repetition(some[worst].text):.0%}",
            some[worst].text[-120:],
        ]
        for penalty, some in tried.items()
    ]
    show_table(head, rows)


def answer_pages(
    tasks: Sequence[Any], answers: Mapping[str, Sequence[Answer]]
) -> list[tuple[str, str]]:
    """Returns (title, text) per task, for widgets.browse: the task and all its answers."""
    pages = []
    for i, task in enumerate(tasks):
        texts = [task_text(task), f"REFERENCE: {task.output}"]
        texts += [f"{name.upper()}: {answers[name][i].text}" for name in answers]
        pages.append((task_text(task), "\n\n".join(texts)))
    return pages


def show_differences(gains: Mapping[str, Sequence[Difference]]) -> None:
    """Shows each model's differences from the base, and says which of them are beyond chance."""
    show_table(
        ["model", "measure", "minus base", "95 % interval", "tasks better : worse", "p"],
        [
            [
                name,
                d.measure,
                f"{d.interval.value:+.3f}",
                f"{d.interval.low:+.3f} to {d.interval.high:+.3f}",
                f"{d.better} : {d.worse}",
                f"{d.p:.2g}",
            ]
            for name, found in gains.items()
            for d in found
        ],
    )
    for name, found in gains.items():
        moved = [d.measure for d in found if 0 not in d.interval]
        rest = [d.measure for d in found if 0 in d.interval]
        say(
            f"**{name}**: 0 is outside the interval of {', '.join(moved) or 'no measure'}; these "
            f"tasks cannot tell it from the base by {', '.join(rest) or 'nothing else'}."
        )


def show_judgement(verdict: Judgement | None, name: str) -> None:
    """Shows how a judge decided, how much the order counted, and the win rate of ``name``."""
    if not verdict or len(verdict.decided) < 2:
        say("There are too few verdicts that can be read, or no two models to compare.")
        return
    outcomes = [outcome for _, outcome in verdict.decided]
    head = ["pairs", "read", "wins", "losses", "ties", "same in both orders", "first place won"]
    counts = [outcomes.count(value) for value in (1.0, 0.0, 0.5)]
    shares = [f"{verdict.consistency:.0%}", f"{verdict.first_position.value:.0%}"]
    show_table(head, [[len(verdict.pairs), len(outcomes), *counts, *shares]])
    say(
        f"Win rate of **{name}** against the base: {verdict.win_rate} (95 % interval); at equal "
        f"length {verdict.length_controlled:.2f}."
    )


def draw_paired_losses(scores: Mapping[str, Scores], names: Sequence[str]) -> tuple[Any, Any]:
    """Draws each reference's loss under the base and under other models: (figure, axes)."""
    fig, axes = figure("Loss of each reference answer", "base (nats)", "trained (nats)", (5, 4.2))
    base = scores["base"].losses
    for name in names:
        axes.scatter(base, scores[name].losses, label=name, alpha=0.7)
    axes.plot([0, max(base)], [0, max(base)], ":", color="black", label="equal")
    axes.legend(frameon=False)
    return fig, axes


def show_parity(parity: Parity, kind: str, dtype: str) -> None:
    """Shows how far llama.cpp's results equal PyTorch's, and warns of a file that is far off.

    Raises RunError if the tokenizers differ.
    """
    say(
        f"{parity.tokenized_alike} of {parity.texts} prompts become the same tokens; "
        f"{parity.same:.0%} of {parity.tokens} greedy tokens are equal; KL {parity.kl:.2g} nats, "
        f"with PyTorch in {dtype}."
    )
    if parity.tokenized_alike < parity.texts:
        raise RunError(
            "llama.cpp makes other tokens of a prompt than PyTorch: do not use this file, and "
            "`python -m alpaca_lib.inference check` lists the rows"
        )
    if parity.kl >= FAR:
        say(
            f"**That is far.** As {kind} this file is another model than the one that was "
            "trained: export it as q8_0 or f16."
        )


def show_speeds(speeds: Mapping[str, tuple[int, float]]) -> None:
    """Shows {form: (bytes, tokens per second)}, and compares the last form with each other one."""
    show_table(
        ["form", "MB read per token", "tokens/s", "GB/s"],
        [
            [form, f"{size / 1e6:.0f}", f"{speed:.0f}", f"{size * speed / 1e9:.1f}"]
            for form, (size, speed) in speeds.items()
        ],
    )
    if not speeds:
        say("Not measured: the model has more than a billion parameters.")
        return
    *others, last = speeds
    size, speed = speeds[last]
    texts = [
        f"{speed / speeds[one][1]:.1f} times as fast as {one}, with {size / speeds[one][0]:.0%} of "
        "its bytes"
        for one in others
    ]
    say(f"**{last}** is {'; '.join(texts)}.")


def show_decisions(scores: PolicyScores, count: int = 3) -> None:
    """Shows how often a policy was wrong in either way, and the first such requests."""
    harmful = len(scores.blocked) + len(scores.missed)
    say(
        f"{len(scores.missed)} of {harmful} harmful requests missed; "
        f"{len(scores.wrongly_blocked)} of {scores.harmless} harmless ones blocked."
    )
    groups = {"missed": scores.missed, "wrongly blocked": scores.wrongly_blocked}
    rows = [[n, r.instruction, r.category] for n, some in groups.items() for r in some[:count]]
    show_table(["", "request", "category"], rows)
