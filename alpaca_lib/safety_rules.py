"""Safety rules: which tasks ask for harm, and which answers contain it.

Rules are regular expressions from a file (data/safety_rules.yaml, or your own), so that an
instructor can read, change and extend them. They find what is stated plainly; they do not judge
meaning, and do not replace reading the data. A pattern that backtracks without end is refused:
each search has a time limit.

>>> find_broken_rule(Example("Explain how to cook meth."), load_rules())
'drugs'
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpaca_lib.errors import DataError
from alpaca_lib.optional import require
from alpaca_lib.records import FIELDS, Example, read_text

SECONDS = 2.0  # processor time of one search; a pattern without nested repetitions needs 0.01
PROBE = 3000  # characters of a text that a new pattern is tried on
RULES = Path(__file__).resolve().parents[1] / "data" / "safety_rules.yaml"
_BAD_RULE = (AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError)


@dataclass(frozen=True)
class SafetyRule:
    """A rule: a task breaks it if ``pattern`` occurs in one of ``fields``.

    If ``unless`` occurs in the instruction, the match is harmless. Both are compiled patterns of
    the ``regex`` package, whose searches can be stopped.
    """

    name: str
    pattern: Any
    fields: tuple[str, ...]
    unless: Any = None

    @property
    def text(self) -> list[str]:
        """Everything that decides whether a task breaks the rule, as text."""
        return [self.pattern.pattern, *self.fields, self.unless.pattern if self.unless else ""]

    def is_broken_by(self, task: Example) -> bool:
        """Returns whether a task breaks the rule. Raises DataError if a search takes too long."""
        texts = [getattr(task, field) for field in self.fields]
        if not any(self._occurs(self.pattern, text) for text in texts):
            return False
        return self.unless is None or not self._occurs(self.unless, task.instruction)

    def _occurs(self, pattern: Any, text: str, seconds: float = SECONDS) -> bool:
        try:
            return pattern.search(text, timeout=seconds) is not None
        except TimeoutError:
            raise DataError(
                f"the safety rule {self.name!r}: its pattern {pattern.pattern!r} takes more than "
                f"{seconds:g} s on a text of {len(text)} characters; write a repetition inside a "
                "repetition, as in (a+)+, as one: a+"
            ) from None

    def probe(self) -> None:
        """Runs the patterns on repeated characters. Raises DataError for one without end."""
        for pattern in filter(None, (self.pattern, self.unless)):
            for character in sorted({*pattern.pattern, "a", "0", " "}):
                last = next(c for c in pattern.pattern[::-1] + "b" if c.isalnum())
                for end in ("", f"\n{last}"):
                    self._occurs(pattern, character * PROBE + end, seconds=0.5)


def load_rules(path: Path | None = None) -> list[SafetyRule]:
    """Returns the rules of a YAML file (default: data/safety_rules.yaml).

    Raises DataError, naming the file and the rule that cannot be used.
    """
    import yaml

    path = path or RULES
    try:
        rows = yaml.safe_load(read_text(path))["rules"]
        named = [(str(row["name"]), row) for row in rows]
    except DataError as error:
        why = str(error).removeprefix(str(path)).lstrip(":, ")
        raise DataError(f"{path}: no safety rules: {why}") from None
    except RecursionError:
        raise DataError(f"{path}: no safety rules: lists are nested too deeply") from None
    except (ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise DataError(f"{path}: no safety rules: it needs `rules`, a list ({error})") from None
    rules = []
    for name, row in named:
        try:
            rules.append(_parse_rule(name, row))
        except (*_BAD_RULE, re.error, require("regex").error) as error:
            raise DataError(f"{path}: the rule {name!r} cannot be used ({error!r})") from None
    if path.resolve().parent != RULES.parent:  # tests measure the shipped ones
        for rule in rules:
            try:
                rule.probe()
            except DataError as error:
                raise DataError(f"{path}: {error}") from None
    return rules


def _parse_rule(name: str, row: dict[str, Any]) -> SafetyRule:
    fields = tuple(row.get("fields", FIELDS))
    if not fields or not set(fields) <= set(FIELDS):
        raise ValueError(f"fields are some of {', '.join(FIELDS)}")
    if unknown := set(row) - {"name", "pattern", "fields", "unless"}:
        raise ValueError(f"a rule has no key {', '.join(sorted(unknown))}")
    if not row["pattern"]:
        raise ValueError("an empty pattern")
    regex = require("regex")
    for pattern in filter(None, (row["pattern"], row.get("unless"))):
        re.compile(pattern)  # the syntax is that of Python's own module
    pattern = regex.compile(row["pattern"], regex.IGNORECASE)
    unless = regex.compile(row["unless"], regex.IGNORECASE) if row.get("unless") else None
    return SafetyRule(name, pattern, fields, unless)


def find_broken_rule(task: Example, rules: Sequence[SafetyRule]) -> str | None:
    """Returns the name of the first rule that a task breaks, or None."""
    return next((rule.name for rule in rules if rule.is_broken_by(task)), None)
