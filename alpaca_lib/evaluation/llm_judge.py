"""A language model as the judge of two answers, behind any OpenAI-compatible address.

Judges prefer what they see first, what is long, and what is their own (arXiv:2306.05685). So
each pair is shown in both orders, and a judge that changes its mind with the order has called
a tie; how often the first place won is reported, and a win rate at equal length. Names of
models are never shown.

What was judged is kept in a file, line by line: a run that was stopped goes on, and what was
paid for is not asked again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alpaca_lib.errors import ModelError
from alpaca_lib.evaluation.intervals import Interval, win_rate
from alpaca_lib.files import dump_json
from alpaca_lib.optional import require
from alpaca_lib.records import Example

PROMPT = """Two answers to the same task follow. Say which one does better what the task asks: \
is it correct, is it complete, does it keep to what was asked? Length by itself is no merit, and \
neither is the order in which the answers stand.

[Task]
{task}
[Answer A]
{first}
[Answer B]
{second}
[End]

Reply with one letter and nothing else: A, B, or T if they are equally good."""
VALUES = {"A": 1.0, "B": 0.0, "T": 0.5}  # for the answer that stood first


@dataclass(frozen=True)
class Pair:
    """A task and the answers of two models to it."""

    task: str
    one: str
    two: str

    @classmethod
    def of(cls, example: Example, one: str, two: str) -> Pair:
        """The pair for an example."""
        text = "\n\n".join(part for part in (example.instruction, example.input) if part)
        return cls(text, one, two)


@dataclass(frozen=True)
class Verdict:
    """What the judge said of a pair: for ``one`` when it stood first, and when second.

    1 a win of ``one``, 0 a loss, 0.5 a tie, None what could not be read.
    """

    first: float | None
    second: float | None

    @property
    def outcome(self) -> float | None:
        """1, 0 or 0.5: both orders agree, or it is a tie; None if one cannot be read."""
        if self.first is None or self.second is None:
            return None
        return self.first if self.first == self.second else 0.5


@dataclass(frozen=True)
class Judged:
    """The verdicts of all pairs, and what they say together."""

    pairs: list[Pair]
    verdicts: list[Verdict]

    @property
    def read(self) -> list[tuple[Pair, float]]:
        """The pairs that have an outcome, with it."""
        found = zip(self.pairs, self.verdicts, strict=True)
        return [(pair, v.outcome) for pair, v in found if v.outcome is not None]

    @property
    def win_rate(self) -> Interval:
        """How often ``one`` wins, a tie counted as half."""
        return win_rate([outcome for _, outcome in self.read])

    @property
    def consistent(self) -> float:
        """The part of the pairs whose verdict is the same in both orders."""
        both = [v for v in self.verdicts if v.outcome is not None]
        return sum(v.first == v.second for v in both) / max(len(both), 1)

    @property
    def first_place(self) -> Interval:
        """How often the answer that stood first won, whichever it was; without a bias, half."""
        both = [v for v in self.verdicts if v.first is not None and v.second is not None]
        # A pair that is won once from each place has shown no bias: one number a pair.
        means = [(v.first + 1 - v.second) / 2 for v in both]  # type: ignore[operator]
        return win_rate(means)

    @property
    def length_controlled(self) -> float:
        """The win rate of ``one`` if its answers were as long as the others'."""
        outcomes = [outcome for _, outcome in self.read]
        longer = [len(pair.one) - len(pair.two) for pair, _ in self.read]
        return length_controlled(outcomes, longer)


def length_controlled(outcomes: Sequence[float], longer: Sequence[float]) -> float:
    """The win rate at equal length: a logistic regression of the outcome on the difference.

    As AlpacaEval 2 takes it out (arXiv:2404.04475): tanh of the difference over its spread;
    the prediction at 0. A faint ridge keeps it finite where one side wins all.
    """
    y = np.asarray(outcomes, dtype=float)
    x = np.asarray(longer, dtype=float)
    x = np.tanh(x / (x.std() or 1.0))
    design = np.stack([np.ones_like(x), x], axis=1)
    ridge, weights = 1e-3 * np.eye(2), np.zeros(2)
    for _ in range(50):
        p = 1 / (1 + np.exp(-design @ weights))
        gradient = design.T @ (y - p) - ridge @ weights
        curvature = (design.T * (p * (1 - p))) @ design + ridge
        step = np.linalg.solve(curvature, gradient)
        weights = weights + np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-10:
            break
    return float(1 / (1 + math.exp(-weights[0])))


def judge(
    pairs: Sequence[Pair],
    ask: Callable[[str], str],
    kept: Path | None = None,
    at_once: int = 4,
    report: Callable[[int, int], None] | None = None,
    name: str = "",
) -> Judged:
    """Shows each pair to the judge twice, once in each order.

    ``ask``: a prompt -> the reply, as ``open_judge`` gives it; ``at_once`` of them fly at a
    time. ``kept``: the file that replies are appended to, and read from when a run goes on;
    only replies of the judge of that ``name`` are.
    """
    prompts = [
        PROMPT.format(task=p.task, first=a, second=b)
        for p in pairs
        for a, b in ((p.one, p.two), (p.two, p.one))
    ]
    known, lock = _known(kept, name), threading.Lock()
    missing = list(dict.fromkeys(p for p in prompts if _key(p) not in known))
    done = len(set(prompts)) - len(missing)

    def asked(prompt: str) -> None:
        reply = ask(prompt)
        with lock:  # here, so that what was under way at an error is kept as well
            known[_key(prompt)] = reply
            if kept:
                _append(kept, {"judge": name, "prompt_sha256": _key(prompt), "reply": reply})

    with ThreadPoolExecutor(at_once) as pool:
        flying = [pool.submit(asked, prompt) for prompt in missing]
        try:
            for future in as_completed(flying):
                future.result()
                done += 1
                if report:
                    report(done, len(set(prompts)))
        except BaseException:
            for future in flying:
                future.cancel()
            raise
    said = [verdict_of(known[_key(prompt)]) for prompt in prompts]
    verdicts = [
        Verdict(first, None if second is None else 1 - second)
        for first, second in zip(said[::2], said[1::2], strict=True)
    ]
    return Judged(list(pairs), verdicts)


def verdict_of(reply: str) -> float | None:
    """1 if a reply is for A, 0 for B, 0.5 for a tie, None if it is neither."""
    text = reply.upper().strip(" \n\t*_[](){}\"'.:#")
    if re.match(r"(IT'?S )?(A )?(TIE|DRAW)\b", text):
        return VALUES["T"]
    found = re.match(
        r"(?:THE )?(?:ANSWER|VERDICT|BETTER ANSWER|WINNER)?[\s:=*\"'(\[]*([ABT])\b", text
    )
    if not found or re.match(r"\W*(AND|OR|&|/)\b", text[found.end() :]):
        return None
    return VALUES[found[1]]


@contextlib.contextmanager
def open_judge(model: str, seed: int = 0) -> Iterator[Callable[[str], str]]:
    """What ``judge`` asks: the model of that name at OPENAI_BASE_URL, with OPENAI_API_KEY."""
    openai = require("openai")
    try:
        client = openai.OpenAI(max_retries=6)
    except openai.OpenAIError as error:
        raise ModelError(f"a judge needs OPENAI_API_KEY in the environment ({error})") from None

    def ask(prompt: str) -> str:
        try:
            reply = client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": prompt}],
                temperature=0,
                seed=seed,
                max_tokens=8,
            )
        except openai.OpenAIError as error:
            raise ModelError(f"the judge {model} at {client.base_url}: {error}") from None
        return reply.choices[0].message.content or "" if reply.choices else ""

    with client:
        yield ask


def _key(prompt: str) -> str:
    return hashlib.sha256(prompt.encode("utf-8", "replace")).hexdigest()


def _known(kept: Path | None, name: str) -> dict[str, str]:
    """Replies of an earlier run of that judge; its last line may be cut off."""
    found: dict[str, str] = {}
    if kept and kept.is_file():
        for line in kept.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                row = json.loads(line)
                if row["judge"] == name:
                    found[row["prompt_sha256"]] = row["reply"]
    return found


def _append(file: Path, row: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    cut_off = file.is_file() and not file.read_bytes().endswith(b"\n") and file.stat().st_size
    with open(file, "a", encoding="utf-8") as out:
        out.write(("\n" if cut_off else "") + dump_json(row) + "\n")
        out.flush()
