"""Models x held-out tasks -> one table of numbers that a program can decide, and what a
difference between two models is worth."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from alpaca_lib.dataset.rouge import rouge_l, tokenize
from alpaca_lib.evaluation.constraint_checks import meets
from alpaca_lib.evaluation.intervals import Interval, interval, sign_test
from alpaca_lib.inference.decoding import Answer, Decoding, answer, prompt_ids
from alpaca_lib.records import Example

RUN = 4  # so many words make a piece that an answer should not say twice


@dataclass(frozen=True)
class Scores:
    """One model on one set of held-out tasks; lists have one number a task, in order."""

    model: str
    loss: float  # nats a token of the reference answers and their end token
    bits_per_byte: float  # the same information, whatever the tokenizer
    ended: float  # the part of the answers that stopped by themselves
    checks_met: float | None  # the part of the checkable constraints that were met
    rouge_l: float  # mean against the references
    repeated: float  # the part of the pieces of an answer that it had said before
    words: float  # mean length of an answer
    tokens_per_second: float | None  # of all answers, as they were made
    losses: list[float] = field(repr=False)  # nats of each reference
    reference_tokens: list[int] = field(repr=False)
    met: list[float | None] = field(repr=False)  # 1 or 0; None where there is nothing to check
    rouge: list[float] = field(repr=False)
    ends: list[float] = field(repr=False)


def score(
    name: str,
    examples: Sequence[Example],
    answers: Sequence[Answer],
    losses: Sequence[tuple[float, int]],
    seconds: float | None = None,
) -> Scores:
    """The Scores of one model from its answers and reference_losses().

    ``seconds``: how long all answers took together.
    """
    if not len(examples) == len(answers) == len(losses) or not examples:
        raise ValueError(
            f"{name}: {len(examples)} examples, {len(answers)} answers and {len(losses)} losses; "
            "as many of each are needed, and at least one"
        )
    nats, tokens = sum(n for n, _ in losses), sum(t for _, t in losses)
    size = sum(len(example.output.encode("utf-8")) for example in examples)
    met = [
        float(meets(e.extra["check"], a.text)) if "check" in e.extra else None
        for e, a in zip(examples, answers, strict=True)
    ]
    checked = [one for one in met if one is not None]
    near = [
        rouge_l(e.output, a.text, mode="unicode") for e, a in zip(examples, answers, strict=True)
    ]
    return Scores(
        model=name,
        loss=nats / tokens,
        bits_per_byte=nats / math.log(2) / size,
        ended=mean(a.ended for a in answers),
        checks_met=mean(checked) if checked else None,
        rouge_l=mean(near),
        repeated=mean(repetition(a.text) for a in answers),
        words=mean(len(tokenize(a.text, "unicode")) for a in answers),
        tokens_per_second=sum(a.tokens for a in answers) / seconds if seconds else None,
        losses=[n for n, _ in losses],
        reference_tokens=[t for _, t in losses],
        met=met,
        rouge=near,
        ends=[float(a.ended) for a in answers],
    )


def repetition(text: str) -> float:
    """The part of a text's runs of 4 words that stood in it before; 0 for shorter ones."""
    words = tokenize(text, "unicode")
    runs = [tuple(words[at : at + RUN]) for at in range(len(words) - RUN + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


# What a program can tell of an answer without its task, its model or a judge.
TEXT_MEASURES: dict[str, Callable[[str], float]] = {
    "words": lambda text: float(len(tokenize(text, "unicode"))),
    "lines": lambda text: float(sum(bool(line.strip()) for line in text.splitlines())),
    "repeated": repetition,
    "whole": lambda text: float(
        text.rstrip("*_)\"'”’ \n").endswith((".", "!", "?", "。", "！", "？"))
    ),
    "empty": lambda text: float(not text.strip()),
}


def measured(
    name: str,
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    decoding: Decoding | None = None,
    template: str = "alpaca",
    batch_size: int = 16,
) -> tuple[Scores, list[Answer]]:
    """(Scores, answers) of one model on the tasks."""
    began = time.perf_counter()
    answers = answer(model, tokenizer, examples, decoding, template, batch_size)
    seconds = time.perf_counter() - began
    losses = reference_losses(model, tokenizer, examples, template)
    return score(name, examples, answers, losses, seconds), answers


@dataclass(frozen=True)
class Difference:
    """One model minus another on the same tasks, and on how many tasks each was better."""

    what: str
    of: Interval
    better: int
    worse: int
    equal: int

    @property
    def p(self) -> float:
        """How often chance alone would part the tasks as unevenly (sign test)."""
        return sign_test(self.better, self.worse)


def differences(one: Scores, other: Scores, seed: int = 0) -> list[Difference]:
    """``one`` minus ``other``: loss a token, ROUGE-L, checks met, ended. Lower loss is better."""
    found = []
    loss = [a - b for a, b in zip(one.losses, other.losses, strict=True)]
    found.append(_difference("loss", loss, one.reference_tokens, lower_is_better=True, seed=seed))
    for what, mine, theirs in (
        ("ROUGE-L", one.rouge, other.rouge),
        ("checks met", one.met, other.met),
        ("ended", one.ends, other.ends),
    ):
        pairs = [
            a - b for a, b in zip(mine, theirs, strict=True) if a is not None and b is not None
        ]
        if len(pairs) > 1:
            found.append(_difference(what, pairs, None, lower_is_better=False, seed=seed))
    return found


def of_texts(one: Sequence[str], other: Sequence[str], seed: int = 0) -> list[Difference]:
    """``one`` minus ``other`` in each of TEXT_MEASURES, for two models' answers to the same
    tasks. More is called better, though it is only more."""
    return [
        _difference(
            what,
            [measure(a) - measure(b) for a, b in zip(one, other, strict=True)],
            None,
            lower_is_better=False,
            seed=seed,
        )
        for what, measure in TEXT_MEASURES.items()
    ]


def _difference(
    what: str,
    pairs: Sequence[float],
    weights: Sequence[float] | None,
    lower_is_better: bool,
    seed: int,
) -> Difference:
    below, above = sum(x < 0 for x in pairs), sum(x > 0 for x in pairs)
    better, worse = (below, above) if lower_is_better else (above, below)
    return Difference(
        what, interval(pairs, weights, seed=seed), better, worse, len(pairs) - below - above
    )


def reference_losses(
    model: Any, tokenizer: Any, examples: Sequence[Example], template: str = "alpaca"
) -> list[tuple[float, int]]:
    """(nats, tokens) of each reference answer with its end token, given its prompt."""
    import torch
    from torch.nn import functional as F

    out = []
    for example in examples:
        start = prompt_ids(example, tokenizer, template)
        reference = tokenizer(example.output, add_special_tokens=False)["input_ids"]
        reference = [*reference, tokenizer.eos_token_id]
        ids = torch.tensor([start + reference], device=model.device)
        with torch.inference_mode():
            logits = model(ids, logits_to_keep=len(reference) + 1, use_cache=False).logits[0, :-1]
        target = torch.tensor(reference, device=model.device)
        nats = float(F.cross_entropy(logits.float(), target, reduction="sum"))
        out.append((nats, len(reference)))
    return out
