"""A language model as the judge of two answers, behind any OpenAI-compatible address.

Judges prefer what they see first, what is long, and what is their own (arXiv:2306.05685). So
each pair is shown in both orders, and a judge that changes its mind with the order has called a
tie; the win rate of the first position is reported, and a win rate at equal length. The names
of the models are never shown. Replies are kept in a file, line by line: a run that was stopped
resumes, and no reply is paid for twice.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alpaca_lib.errors import ModelError, SettingsError
from alpaca_lib.evaluation.intervals import Interval, win_rate
from alpaca_lib.evaluation.tasks import OWN_ANSWERS, number_turns, task_text
from alpaca_lib.files import JsonLines, read_json_lines, sha256_text
from alpaca_lib.inference.safety import open_client
from alpaca_lib.tokenization import Record

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
VALUES = {"A": 1.0, "B": 0.0, "T": 0.5}  # for the answer in first position


@dataclass(frozen=True)
class Pair:
    """A task and the answers of two models to it."""

    task: str
    one: str
    two: str

    @classmethod
    def from_example(cls, example: Record, one: str, two: str) -> Pair:
        """Returns the pair of two answers to an example's instruction and input, or to the last
        turn of a conversation; the judge sees the turns before it."""
        return cls(task_text(example), one, two)

    @classmethod
    def from_outputs(cls, one: Record, two: Record) -> Pair:
        """Returns the pair of two models' outputs to one task.

        Where each question was asked after the model's own answers, all of them are compared.
        """
        if one.extra.get(OWN_ANSWERS):
            answers = [number_turns(outputs, "assistant") for outputs in (one, two)]
            return cls(number_turns(one, "user"), *answers)
        return cls.from_example(one, one.output, two.output)


@dataclass(frozen=True)
class Verdict:
    """The judge's verdicts on ``one`` of a pair: shown in first position, and in second.

    1 a win of ``one``, 0 a loss, 0.5 a tie, None a reply that cannot be read.
    """

    first: float | None
    second: float | None

    @property
    def outcome(self) -> float | None:
        """1 or 0 if both orders agree, else 0.5, a tie; None if a reply cannot be read."""
        if self.first is None or self.second is None:
            return None
        return self.first if self.first == self.second else 0.5


@dataclass(frozen=True)
class Judgement:
    """The verdicts on all pairs, and their statistics."""

    pairs: list[Pair]
    verdicts: list[Verdict]

    @property
    def decided(self) -> list[tuple[Pair, float]]:
        """(pair, outcome) of each pair that has an outcome."""
        found = zip(self.pairs, self.verdicts, strict=True)
        return [(pair, v.outcome) for pair, v in found if v.outcome is not None]

    @property
    def win_rate(self) -> Interval:
        """The win rate of ``one``, a tie counted as half."""
        return win_rate([outcome for _, outcome in self.decided])

    @property
    def consistency(self) -> float:
        """The fraction of the pairs whose verdict is the same in both orders."""
        both = [v for v in self.verdicts if v.outcome is not None]
        return sum(v.first == v.second for v in both) / max(len(both), 1)

    @property
    def first_position(self) -> Interval:
        """The win rate of the answer in first position; without a bias it is half."""
        # A pair that is won once from each position shows no bias: one number per pair.
        both = [(v.first, v.second) for v in self.verdicts]
        return win_rate([(a + 1 - b) / 2 for a, b in both if a is not None and b is not None])

    @property
    def length_controlled(self) -> float:
        """The win rate of ``one`` at equal length: see the function of that name."""
        outcomes = [outcome for _, outcome in self.decided]
        longer = [len(pair.one) - len(pair.two) for pair, _ in self.decided]
        return length_controlled(outcomes, longer)


def length_controlled(outcomes: Sequence[float], longer: Sequence[float]) -> float:
    """Returns the win rate at equal length, by a logistic regression on the length difference.

    As AlpacaEval 2 (arXiv:2404.04475): outcome ~ sigmoid(w0 + w1 tanh(difference / its standard
    deviation)), predicted at 0. A small ridge keeps it finite where one side wins all.
    """
    y = np.asarray(outcomes, dtype=float)
    x = np.asarray(longer, dtype=float)
    x = np.tanh(x / (x.std() or 1.0))
    design = np.stack([np.ones_like(x), x], axis=1)
    ridge, weights = 1e-3 * np.eye(2), np.zeros(2)
    for _ in range(50):  # Newton's method
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
    cache: Path | None = None,
    concurrency: int = 4,
    report: Callable[[int, int], None] | None = None,
    name: str = "",
) -> Judgement:
    """Shows each pair to the judge twice, once in each order; returns the Judgement.

    ``ask`` maps a prompt to the reply (see ``open_judge``), in ``concurrency`` threads.
    ``cache``: a file of replies, appended to; those of the judge of that ``name`` are not asked
    for again. ``report(done, all)`` is called per prompt.
    """
    if concurrency < 1:
        raise SettingsError(f"{concurrency} concurrent requests: at least 1")
    prompts = [
        PROMPT.format(task=pair.task, first=first, second=second)
        for pair in pairs
        for first, second in ((pair.one, pair.two), (pair.two, pair.one))
    ]
    known: dict[str, str] = {}  # replies by the prompt's checksum
    for _, _, row in read_json_lines(cache) if cache else ():
        if row and row.get("judge") == name and {"prompt_sha256", "reply"} <= set(row):
            known[row["prompt_sha256"]] = row["reply"]
    missing = list(dict.fromkeys(p for p in prompts if sha256_text(p) not in known))
    total = len(set(prompts))
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(JsonLines(cache)) if cache else None

        def ask_and_keep(prompt: str) -> None:
            key = sha256_text(prompt)
            known[key] = ask(prompt)
            if log:
                log.append({"judge": name, "prompt_sha256": key, "reply": known[key]})

        pool = stack.enter_context(ThreadPoolExecutor(concurrency))
        futures = [pool.submit(ask_and_keep, prompt) for prompt in missing]
        try:
            for done, future in enumerate(as_completed(futures), total - len(missing) + 1):
                future.result()
                if report:
                    report(done, total)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    values = [parse_verdict(known[sha256_text(prompt)]) for prompt in prompts]
    verdicts = [
        Verdict(first, None if second is None else 1 - second)
        for first, second in zip(values[::2], values[1::2], strict=True)
    ]
    return Judgement(list(pairs), verdicts)


def parse_verdict(reply: str) -> float | None:
    """Returns 1 if a reply is for A, 0 for B, 0.5 for a tie, None if it is neither."""
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
    """Yields the model of that name at OPENAI_BASE_URL as the ``ask`` of ``judge``.

    Raises ModelError without OPENAI_API_KEY, and if the judge cannot be reached.
    """
    with open_client("a judge", max_retries=6) as (client, errors):

        def ask(prompt: str) -> str:
            try:
                reply = client.chat.completions.create(
                    model=model,
                    messages=[{"role": "user", "content": prompt}],
                    temperature=0,
                    seed=seed,
                    max_tokens=8,
                )
            except errors as error:
                raise ModelError(f"the judge {model} at {client.base_url}: {error}") from None
            return reply.choices[0].message.content or "" if reply.choices else ""

        yield ask
