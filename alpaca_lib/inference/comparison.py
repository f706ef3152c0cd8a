"""Models x held-out tasks -> one table of numbers that a program can decide."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from alpaca_lib.dataset.rouge import rouge_l
from alpaca_lib.inference.decoding import Answer
from alpaca_lib.prompts import render_prompt
from alpaca_lib.records import DataError, Example


@dataclass(frozen=True)
class Scores:
    """One model on one set of held-out tasks."""

    model: str
    loss: float  # nats a token of the reference answers and their end token
    bits_per_byte: float  # the same information, whatever the tokenizer
    ended: float  # the part of the answers that stopped by themselves
    checks_met: float | None  # the part of the checkable constraints that were met
    rouge_l: float  # mean against the references
    words: float  # mean length of an answer
    losses: list[float]  # nats of each reference, for paired comparison


def score(
    name: str,
    examples: Sequence[Example],
    answers: Sequence[Answer],
    losses: Sequence[tuple[float, int]],
) -> Scores:
    """The Scores of one model from its answers and reference_losses()."""
    if not len(examples) == len(answers) == len(losses) or not examples:
        raise ValueError(
            f"{name}: {len(examples)} examples, {len(answers)} answers and {len(losses)} losses; "
            "as many of each are needed, and at least one"
        )
    nats, tokens = sum(n for n, _ in losses), sum(t for _, t in losses)
    size = sum(len(example.output.encode("utf-8")) for example in examples)
    checked = [
        meets(example.extra["check"], answer.text)
        for example, answer in zip(examples, answers, strict=True)
        if "check" in example.extra
    ]
    pairs = list(zip(examples, answers, strict=True))
    return Scores(
        model=name,
        loss=nats / tokens,
        bits_per_byte=nats / math.log(2) / size,
        ended=mean(answer.ended for answer in answers),
        checks_met=mean(checked) if checked else None,
        rouge_l=mean(rouge_l(e.output, a.text, mode="unicode") for e, a in pairs),
        words=mean(len(answer.text.split()) for answer in answers),
        losses=[n for n, _ in losses],
    )


def reference_losses(
    model: Any, tokenizer: Any, examples: Sequence[Example], template: str = "alpaca"
) -> list[tuple[float, int]]:
    """(nats, tokens) of each reference answer with its end token, given its prompt."""
    import torch
    from torch.nn import functional as F

    out = []
    for example in examples:
        prompt = render_prompt(example, template, tokenizer)
        start = tokenizer(prompt, add_special_tokens=template != "chat")["input_ids"]
        answer = tokenizer(example.output, add_special_tokens=False)["input_ids"]
        answer = [*answer, tokenizer.eos_token_id]
        ids = torch.tensor([start + answer], device=model.device)
        with torch.inference_mode():
            logits = model(ids, logits_to_keep=len(answer) + 1, use_cache=False).logits[0, :-1]
        target = torch.tensor(answer, device=model.device)
        out.append((float(F.cross_entropy(logits.float(), target, reduction="sum")), len(answer)))
    return out


CHECKS: dict[str, Callable[[str, Any], bool]] = {
    "words_max": lambda text, n: len(text.split()) <= n,
    "words_min": lambda text, n: len(text.split()) >= n,
    "contains": lambda text, parts: all(part.lower() in text.lower() for part in parts),
    "excludes": lambda text, parts: not any(part.lower() in text.lower() for part in parts),
    "lines": lambda text, n: sum(bool(line.strip()) for line in text.splitlines()) == n,
    "exact": lambda text, wanted: text.strip() == wanted,
    "starts": lambda text, wanted: text.strip().startswith(wanted),
}


def meets(check: dict[str, Any], text: str) -> bool:
    """Whether an answer meets a constraint such as {"words_max": 20}; an empty one never."""
    unknown = [name for name in check if name not in CHECKS]
    if unknown or not check:
        raise DataError(f"check {check}: use {', '.join(CHECKS)}")
    return bool(text.strip()) and all(CHECKS[name](text, value) for name, value in check.items())
