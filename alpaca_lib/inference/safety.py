"""A policy for what goes into a model and what comes out: rules that one can read and edit.

A rule is a pattern with a name, from data/safety_rules.yaml and data/policy_rules.yaml or a
file of one's own; a moderation endpoint may be asked as well. Each block says which category
and where. Rules catch what is said plainly, and some of what is meant well: ``measure`` counts
both on a labelled set, and no policy should be used that was not measured on one's own.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alpaca_lib.errors import DataError, ModelError
from alpaca_lib.inference.decoding import Growing
from alpaca_lib.optional import require
from alpaca_lib.records import Example
from alpaca_lib.safety_rules import RULES, SafetyRule, find_broken_rule, load_rules

TALK = RULES.with_name("policy_rules.yaml")
REFUSAL = "I cannot help with that."
EVERY = 80  # characters of a growing answer between two looks at it


@dataclass(frozen=True)
class Block:
    """Why something was stopped: a category, and "input" or "output"."""

    category: str
    where: str

    def __str__(self) -> str:
        return f"{self.where}: {self.category}"


@dataclass(frozen=True)
class Policy:
    """Rules, and perhaps a moderation endpoint that is asked after them.

    ``moderate``: a text -> the category it was flagged for, or None (see ``open_moderation``).
    """

    rules: Sequence[SafetyRule]
    moderate: Callable[[str], str | None] | None = None

    @classmethod
    def load(cls, path: Path | None = None) -> Policy:
        """The policy of a file of rules; without one, the course's: its rules for data, and
        wider ones for talk."""
        return cls(load_rules(path) if path else [*load_rules(), *load_rules(TALK)])

    def of_input(self, instruction: str, context: str = "") -> Block | None:
        """What stands against answering this, or None."""
        return self._look(Example(instruction, context), "input", f"{instruction}\n\n{context}")

    def of_output(self, instruction: str, context: str, answer: str) -> Block | None:
        """What stands against showing this answer, or None."""
        return self._look(Example(instruction, context, answer), "output", answer)

    def guarded(self, instruction: str, context: str, pieces: Callable[[], Growing]) -> Growing:
        """A growing answer as far as the policy lets it through; then why it ended.

        What is blocked at the input is never given to the model: ``pieces`` is not called. An
        answer is looked at as it grows, and what has been looked at is shown.
        """
        if block := self.of_input(instruction, context):
            yield f"{REFUSAL} ({block})"
            return
        text, shown = "", ""
        with contextlib.closing(pieces()) as growing:
            for text in growing:
                if len(text) - len(shown) < EVERY:
                    continue
                if block := self.of_output(instruction, context, text):
                    yield f"{shown}\n\n{REFUSAL} ({block})".strip()
                    return
                shown = text
                yield shown
        if text == shown:
            return
        block = self.of_output(instruction, context, text)
        yield f"{shown}\n\n{REFUSAL} ({block})".strip() if block else text

    def _look(self, task: Example, where: str, text: str) -> Block | None:
        if found := find_broken_rule(task, self.rules):
            return Block(found, where)
        if self.moderate and text.strip() and (found := self.moderate(text)):
            return Block(found, where)
        return None


@dataclass(frozen=True)
class Labelled:
    """A text of a labelled set: what it is, and whether a policy ought to stop it."""

    instruction: str
    input: str
    output: str
    harmful: bool
    category: str


@dataclass(frozen=True)
class Measured:
    """What a policy did with a labelled set."""

    blocked: list[Labelled]
    let_through: list[Labelled]
    wrongly_blocked: list[Labelled]
    harmless: int

    @property
    def caught(self) -> float:
        """The part of the harmful that was blocked."""
        return len(self.blocked) / max(len(self.blocked) + len(self.let_through), 1)

    @property
    def wrongly(self) -> float:
        """The part of the harmless that was blocked."""
        return len(self.wrongly_blocked) / max(self.harmless, 1)


def measure(policy: Policy, labelled: Sequence[Labelled]) -> Measured:
    """Holds the policy against a labelled set; a row with an output is looked at as output."""
    blocked: list[Labelled] = []
    through: list[Labelled] = []
    wrongly: list[Labelled] = []
    for row in labelled:
        block = policy.of_input(row.instruction, row.input)
        if not block and row.output:
            block = policy.of_output(row.instruction, row.input, row.output)
        if row.harmful:
            (blocked if block else through).append(row)
        elif block:
            wrongly.append(row)
    return Measured(blocked, through, wrongly, sum(not row.harmful for row in labelled))


def load_labelled(path: Path) -> list[Labelled]:
    """The rows of a labelled set (JSON lines). Raises DataError, naming the line."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            rows.append(
                Labelled(
                    str(row["instruction"]), str(row.get("input", "")), str(row.get("output", "")),
                    {"harmful": True, "harmless": False}[row["label"]], str(row["category"]),
                )
            )  # fmt: skip
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f'{path}, line {number}: needs "instruction", "label" (harmful or harmless) and '
                f'"category" ({error!r})'
            ) from None
    return rows


@contextlib.contextmanager
def open_moderation(model: str = "omni-moderation-latest") -> Iterator[Callable[[str], str | None]]:
    """A moderation endpoint (OPENAI_BASE_URL, OPENAI_API_KEY) as a Policy's ``moderate``.

    If it cannot be reached that is an error: what was not looked at is not let through.
    """
    openai = require("openai")
    try:
        client = openai.OpenAI(max_retries=3)
    except openai.OpenAIError as error:
        raise ModelError(f"moderation needs OPENAI_API_KEY in the environment ({error})") from None

    def look(text: str) -> str | None:
        try:
            result = client.moderations.create(model=model, input=text).results[0]
        except openai.OpenAIError as error:
            raise ModelError(f"moderation at {client.base_url}: {error}") from None
        if not result.flagged:
            return None
        scores: dict[str, Any] = {
            k: v for k, v in result.categories.model_dump(by_alias=True).items() if v
        }
        return next(iter(sorted(scores)), "flagged")

    with client:
        yield look


def with_moderation(policy: Policy, moderate: Callable[[str], str | None]) -> Policy:
    """The policy with an endpoint that is asked after its rules."""
    return replace(policy, moderate=moderate)
