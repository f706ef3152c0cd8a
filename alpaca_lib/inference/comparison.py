"""Models x held-out tasks -> one table of numbers that a program can decide."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from alpaca_lib.dataset.rouge import rouge_l, tokenize
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
    "ends": lambda text, wanted: text.strip().endswith(wanted),
    "bullets": lambda text, n: sum(line.startswith("- ") for line in text.splitlines()) == n,
    "json": lambda text, keys: _is_object(text, keys),
    "language": lambda text, code: written_in(text) == code,
}
# The commonest words that tell these languages apart; of Chinese the writing does.
COMMON_WORDS = {
    "en": "the and of to is in it you that for was with are this have be not on",
    "fr": "le la les et de des du est une un je vous nous pour dans que qui pas au avec ce",
    "de": "der die das und ist ein eine ich sie wir nicht mit zu den dem auf für im es bitte",
    "es": "el la los las y de es un una que en por para con no se su me muy al lo del",
    "it": "il la gli e di è un una che per con non si sono del della mi al nel ci lo",
}


def written_in(text: str) -> str | None:
    """The language of a text ("zh" or one of COMMON_WORDS), or None if nothing tells."""
    tokens = tokenize(text, "unicode")
    if sum("\u4e00" <= token[0] <= "\u9fff" for token in tokens) * 2 > len(tokens):
        return "zh"
    hits = {
        code: sum(token in words.split() for token in tokens)
        for code, words in COMMON_WORDS.items()
    }
    best = max(hits, key=lambda code: hits[code])
    return best if hits[best] and list(hits.values()).count(hits[best]) == 1 else None


def _is_object(text: str, keys: list[str]) -> bool:
    """Whether a text is one JSON object with just these keys."""
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return isinstance(value, dict) and sorted(value) == sorted(keys)


def meets(check: dict[str, Any], text: str) -> bool:
    """Whether an answer meets a constraint such as {"words_max": 20}; an empty one never."""
    unknown = [name for name in check if name not in CHECKS]
    if unknown or not check:
        raise DataError(f"check {check}: use {', '.join(CHECKS)}")
    return bool(text.strip()) and all(CHECKS[name](text, value) for name, value in check.items())
