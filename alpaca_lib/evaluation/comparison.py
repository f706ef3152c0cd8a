"""Models x held-out tasks -> numbers that a program can decide, and differences of two models."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from statistics import mean
from typing import Any

from alpaca_lib.dataset.rouge import rouge_l, tokenize
from alpaca_lib.evaluation.constraint_checks import meets
from alpaca_lib.evaluation.intervals import Interval, interval, sign_test
from alpaca_lib.inference.decoding import Answer, Decoding, answer
from alpaca_lib.inference.model_pool import ModelPool
from alpaca_lib.records import Example
from alpaca_lib.tokenization import PromptEncoder, Record

NGRAM = 4  # words of a repeated piece


@dataclass(frozen=True)
class Scores:
    """One model on a set of held-out tasks; lists have one number per task, in order."""

    model: str
    loss: float  # nats per token of the reference answers and their end token
    bits_per_byte: float  # the same information, independent of the tokenizer
    ended: float  # fraction of the answers that ended by themselves
    checks_met: float | None  # fraction of the checkable constraints that were met
    rouge_l: float  # mean ROUGE-L F1 against the references
    repeated: float  # mean fraction of an answer's 4-grams that it had before
    words: float  # mean length of an answer
    tokens_per_second: float | None  # of all answers
    losses: list[float] = field(repr=False)  # nats per reference
    reference_tokens: list[int] = field(repr=False)
    met: list[float | None] = field(repr=False)  # 1 or 0; None where there is nothing to check
    rouge: list[float] = field(repr=False)
    ends: list[float] = field(repr=False)  # 1 or 0


def compare_models(
    pool: ModelPool,
    tasks: Sequence[Record],
    decoding: Decoding | None = None,
    template: str = "alpaca",
    batch_size: int = 0,
    report: Callable[[str], None] = lambda name: None,
    progress: Callable[[str, int], None] = lambda name, done: None,
) -> Iterator[tuple[Scores, list[Answer]]]:
    """Yields (Scores, answers) of each model.

    ``report`` gets each name before the model runs, ``progress`` the name and the number of
    answers that are done.
    """
    for name in pool.names:
        report(name)
        done = count(1)
        with pool.use(name) as model:
            measured = measure_model(
                name,
                model,
                pool.tokenizer(name),
                tasks,
                decoding,
                template,
                batch_size,
                lambda *_, name=name, done=done: progress(name, next(done)),
            )
        yield measured


def measure_model(
    name: str,
    model: Any,
    tokenizer: Any,
    examples: Sequence[Record],
    decoding: Decoding | None = None,
    template: str = "alpaca",
    batch_size: int = 0,
    progress: Callable[[int, Answer], None] | None = None,
) -> tuple[Scores, list[Answer]]:
    """Returns (Scores, answers) of one model on the tasks.

    ``batch_size``: answers at a time, at most (0: as many as fit). ``progress`` gets each task's
    index and answer as soon as it is done.
    """
    start = time.perf_counter()
    answers = answer(model, tokenizer, examples, decoding, template, batch_size, progress)
    seconds = time.perf_counter() - start
    losses = reference_losses(model, tokenizer, examples, template)
    return score(name, examples, answers, losses, seconds), answers


def score(
    name: str,
    examples: Sequence[Record],
    answers: Sequence[Answer],
    losses: Sequence[tuple[float, int]],
    seconds: float | None = None,
) -> Scores:
    """Returns one model's Scores from its answers and reference_losses().

    ``seconds``: the time of all answers together. Raises ValueError for unequal lengths.
    """
    if not len(examples) == len(answers) == len(losses) or not examples:
        raise ValueError(
            f"{name}: {len(examples)} examples, {len(answers)} answers and {len(losses)} losses; "
            "as many of each are needed, and at least one"
        )
    nats, tokens = sum(n for n, _ in losses), sum(t for _, t in losses)
    size = sum(len(example.output.encode("utf-8")) for example in examples)
    pairs = list(zip(examples, answers, strict=True))
    met = [float(meets(e.extra["check"], a.text)) if "check" in e.extra else None for e, a in pairs]
    checked = [value for value in met if value is not None]
    rouge = rouge_scores([e.output for e in examples], [a.text for a in answers])
    return Scores(
        model=name,
        loss=nats / tokens,
        bits_per_byte=nats / math.log(2) / size,
        ended=mean(a.ended for a in answers),
        checks_met=mean(checked) if checked else None,
        rouge_l=mean(rouge),
        repeated=mean(repetition(a.text) for a in answers),
        words=mean(len(tokenize(a.text, "unicode")) for a in answers),
        tokens_per_second=sum(a.tokens for a in answers) / seconds if seconds else None,
        losses=[n for n, _ in losses],
        reference_tokens=[t for _, t in losses],
        met=met,
        rouge=rouge,
        ends=[float(a.ended) for a in answers],
    )


def reference_losses(
    model: Any, tokenizer: Any, examples: Sequence[Record], template: str = "alpaca"
) -> list[tuple[float, int]]:
    """Returns (nats, tokens) of each reference answer with its end token, given its prompt.

    A conversation's reference is its last answer; the turns before it are the prompt.
    """
    from alpaca_lib.inference.likelihood import reply_losses  # loads torch

    encoder = PromptEncoder(tokenizer, template)
    answers = encoder.answers([Example("-", output=example.output) for example in examples])
    replies = [answer + encoder.end for answer in answers]
    nats = reply_losses(model, list(zip(encoder.prompts(examples), replies, strict=True)))
    return list(zip(nats, map(len, replies), strict=True))


def rouge_scores(one: Sequence[str], other: Sequence[str]) -> list[float]:
    """Returns the ROUGE-L F1 of each pair of texts, from 0 to 1, for any script."""
    return [rouge_l(a, b, mode="unicode") for a, b in zip(one, other, strict=True)]


def repetition(text: str) -> float:
    """Returns the fraction of a text's 4-grams of words that stood in it before; 0 if none."""
    words = tokenize(text, "unicode")
    ngrams = [tuple(words[at : at + NGRAM]) for at in range(len(words) - NGRAM + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


# Measures of an answer that need neither its task, nor its model, nor a judge.
TEXT_MEASURES: dict[str, Callable[[str], float]] = {
    "words": lambda text: float(len(tokenize(text, "unicode"))),
    "lines": lambda text: float(sum(bool(line.strip()) for line in text.splitlines())),
    "repeated": repetition,
    "whole": lambda text: float(
        text.rstrip("*_)\"'”’ \n").endswith((".", "!", "?", "。", "！", "？"))
    ),
    "empty": lambda text: float(not text.strip()),
}


@dataclass(frozen=True)
class Difference:
    """One model minus another in one measure, and the number of tasks where each is better."""

    measure: str
    means: tuple[float, float]  # of the two models
    interval: Interval  # of the mean difference, at 95 %
    better: int
    worse: int
    equal: int

    @property
    def p(self) -> float:
        """The sign test's p-value of better : worse."""
        return sign_test(self.better, self.worse)


def differences(one: Scores, other: Scores, seed: int = 0) -> list[Difference]:
    """Returns ``one`` minus ``other``: loss per token, ROUGE-L, checks met, ended.

    A lower loss is better. Raises DataError if there is one task only.
    """
    measures: dict[str, tuple[Sequence[float | None], Sequence[float | None]]] = {
        "ROUGE-L": (one.rouge, other.rouge),
        "checks met": (one.met, other.met),
        "ended": (one.ends, other.ends),
    }
    found = [_subtract("loss", one.losses, other.losses, seed, one.reference_tokens, True)]
    for measure, (mine, theirs) in measures.items():
        if sum(value is not None for value in mine) > 1:
            found.append(_subtract(measure, mine, theirs, seed))
    return found


def compare_texts(one: Sequence[str], other: Sequence[str], seed: int = 0) -> list[Difference]:
    """Returns ``one`` minus ``other`` in each of TEXT_MEASURES, for answers to the same tasks.

    "Better" means more here, of whatever is measured.
    """
    return [
        _subtract(name, list(map(measure, one)), list(map(measure, other)), seed)
        for name, measure in TEXT_MEASURES.items()
    ]


def _subtract(
    measure: str,
    one: Sequence[float | None],
    other: Sequence[float | None],
    seed: int,
    weights: Sequence[float] | None = None,
    lower_is_better: bool = False,
) -> Difference:
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if a is not None and b is not None]
    changes = [a - b for a, b in pairs]
    above, below = sum(x > 0 for x in changes), sum(x < 0 for x in changes)
    size = sum(weights) if weights else len(pairs)
    return Difference(
        measure=measure,
        means=(sum(a for a, _ in pairs) / size, sum(b for _, b in pairs) / size),
        interval=interval(changes, weights, seed=seed),
        better=below if lower_is_better else above,
        worse=above if lower_is_better else below,
        equal=len(pairs) - above - below,
    )
