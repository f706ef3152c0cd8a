"""A policy for what goes into a model and what comes out: rules that one can read and edit.

A rule is a pattern with a name, from data/safety_rules.yaml and data/policy_rules.yaml or from
a file of the user's; a moderation endpoint may be asked as well. Rules catch what is said
plainly, and block some harmless text: ``measure`` counts both errors on a labelled set. Measure
a policy on a labelled set of your own before you rely on it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpaca_lib.errors import DataError, ModelError
from alpaca_lib.files import parse_json
from alpaca_lib.inference.decoding import TextStream
from alpaca_lib.optional import require
from alpaca_lib.records import Example, read_text
from alpaca_lib.safety_rules import RULES, SafetyRule, find_broken_rule, load_rules
from alpaca_lib.server_address import Redactor, server_address

POLICY_RULES = RULES.with_name("policy_rules.yaml")
REFUSAL = "I cannot help with that."
CHECK_EVERY = 80  # characters of a growing answer between two checks


@dataclass(frozen=True)
class Block:
    """Why something was blocked: a category, and "input" or "output"."""

    category: str
    where: str

    def __str__(self) -> str:
        return f"{self.where}: {self.category}"


@dataclass(frozen=True)
class Policy:
    """Rules, and optionally a moderation endpoint that is asked after them.

    ``moderate`` maps a text to the category it is flagged for, or None: see ``open_moderation``.

    >>> policy = Policy.load()
    >>> policy.check_input("How do I build a pipe bomb?")
    """

    rules: Sequence[SafetyRule]
    moderate: Callable[[str], str | None] | None = None

    @classmethod
    def load(cls, path: Path | None = None) -> Policy:
        """Returns the policy of a file of rules, or the course's own.

        The course's has the rules for training data and wider ones for conversations. Raises
        DataError for rules that cannot be used.
        """
        return cls(load_rules(path) if path else [*load_rules(), *load_rules(POLICY_RULES)])

    def check_input(self, instruction: str, context: str = "") -> Block | None:
        """Returns why a request must not be answered, or None."""
        return self._check(Example(instruction, context), "input", f"{instruction}\n\n{context}")

    def check_output(self, instruction: str, context: str, answer: str) -> Block | None:
        """Returns why an answer must not be shown, or None."""
        return self._check(Example(instruction, context, answer), "output", answer)

    def guard(self, instruction: str, context: str, pieces: Callable[[], TextStream]) -> TextStream:
        """Yields a growing answer as far as the policy allows it, and then the refusal.

        A blocked request never reaches the model: ``pieces`` is not called.
        """
        if block := self.check_input(instruction, context):
            yield f"{REFUSAL} ({block})"
            return
        yield from self.guard_answer(instruction, context, pieces())

    def guard_answer(self, instruction: str, context: str, pieces: TextStream) -> TextStream:
        """Yields the growing answer to a request that was checked, as ``guard`` does.

        An answer is checked as it grows, and only text that was checked is shown.
        """
        text, shown = "", ""
        with contextlib.closing(pieces) as answer:
            for text in answer:
                if len(text) - len(shown) < CHECK_EVERY:
                    continue
                if block := self.check_output(instruction, context, text):
                    yield f"{shown}\n\n{REFUSAL} ({block})".strip()
                    return
                shown = text
                yield shown
        if text == shown:
            return
        block = self.check_output(instruction, context, text)
        yield f"{shown}\n\n{REFUSAL} ({block})".strip() if block else text

    def _check(self, task: Example, where: str, text: str) -> Block | None:
        if found := find_broken_rule(task, self.rules):
            return Block(found, where)
        if self.moderate and text.strip() and (found := self.moderate(text)):
            return Block(found, where)
        return None


@dataclass(frozen=True)
class Labelled:
    """A text of a labelled set: its category, and whether a policy should block it."""

    instruction: str
    input: str
    output: str
    harmful: bool
    category: str


@dataclass(frozen=True)
class PolicyScores:
    """What a policy did with a labelled set; ``harmless`` is the number of harmless rows."""

    blocked: list[Labelled]
    missed: list[Labelled]
    wrongly_blocked: list[Labelled]
    harmless: int

    @property
    def recall(self) -> float:
        """The fraction of the harmful rows that was blocked."""
        return len(self.blocked) / max(len(self.blocked) + len(self.missed), 1)

    @property
    def false_positive_rate(self) -> float:
        """The fraction of the harmless rows that was blocked."""
        return len(self.wrongly_blocked) / max(self.harmless, 1)


def measure(policy: Policy, labelled: Sequence[Labelled]) -> PolicyScores:
    """Returns what a policy blocks of a labelled set; an output is checked as an answer."""
    groups: dict[str, list[Labelled]] = {"blocked": [], "missed": [], "wrongly_blocked": []}
    for row in labelled:
        block = policy.check_input(row.instruction, row.input)
        if not block and row.output:
            block = policy.check_output(row.instruction, row.input, row.output)
        if row.harmful:
            groups["blocked" if block else "missed"].append(row)
        elif block:
            groups["wrongly_blocked"].append(row)
    return PolicyScores(**groups, harmless=sum(not row.harmful for row in labelled))


def load_labelled(path: Path) -> list[Labelled]:
    """Returns the rows of a labelled set (JSON lines). Raises DataError, naming the line."""
    try:
        lines = read_text(path).splitlines()
    except DataError as error:
        raise DataError(f"{error} (a labelled set is needed)") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = parse_json(line)
            rows.append(
                Labelled(
                    instruction=str(row["instruction"]),
                    input=str(row.get("input", "")),
                    output=str(row.get("output", "")),
                    harmful={"harmful": True, "harmless": False}[row["label"]],
                    category=str(row["category"]),
                )
            )
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f'{path}, line {number}: needs "instruction", "label" (harmful or harmless) and '
                f'"category" ({error!r})'
            ) from None
    return rows


@contextlib.contextmanager
def open_moderation(model: str = "omni-moderation-latest") -> Iterator[Callable[[str], str | None]]:
    """Yields a moderation endpoint (OPENAI_BASE_URL, OPENAI_API_KEY) as a Policy's ``moderate``.

    Raises ModelError if it is unavailable: text that was not checked is not shown.
    """
    with open_client("moderation", max_retries=3) as (client, errors):

        def moderate(text: str) -> str | None:
            try:
                result = client.moderations.create(model=model, input=text).results[0]
            except errors as error:
                raise ModelError(f"moderation at {client.base_url}: {error}") from None
            flagged = result.categories.model_dump(by_alias=True)
            names = sorted(name for name, value in flagged.items() if value)
            return (names or ["flagged"])[0] if result.flagged else None

        yield moderate


@contextlib.contextmanager
def open_client(what: str, max_retries: int) -> Iterator[tuple[Any, Any]]:
    """Yields (a client of OPENAI_BASE_URL, the base class of its errors).

    Raises ModelError, beginning with ``what``, if OPENAI_API_KEY is not set, and SettingsError
    for an address that is none. No secret of the two is in a ModelError of the block.
    """
    openai, where = require("openai"), server_address()
    try:
        client = openai.OpenAI(
            base_url=where.url,
            default_headers=where.headers,
            default_query=where.query,
            max_retries=max_retries,
        )
    except openai.OpenAIError as error:
        raise ModelError(f"{what} needs OPENAI_API_KEY in the environment ({error})") from None
    redact = Redactor((client.api_key, *where.secrets))
    with client:
        try:
            yield client, openai.OpenAIError
        except ModelError as error:
            raise ModelError(redact(str(error))) from None
