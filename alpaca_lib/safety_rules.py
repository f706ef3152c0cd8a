"""Safety rules: which tasks ask for harm, and which answers contain it.

Rules are regular expressions from a file (data/safety_rules.yaml, or your own), so that an
instructor can read, change and extend them. They find what is stated plainly; they do not judge
meaning, and do not replace reading the data.

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
from alpaca_lib.records import FIELDS, Example

RULES = Path(__file__).resolve().parents[1] / "data" / "safety_rules.yaml"
_BAD_RULE = (AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError)


@dataclass(frozen=True)
class SafetyRule:
    """A rule: a task breaks it if ``pattern`` occurs in one of ``fields``.

    If ``unless`` occurs in the instruction, the match is harmless.
    """

    name: str
    pattern: re.Pattern[str]
    fields: tuple[str, ...]
    unless: re.Pattern[str] | None = None

    @property
    def text(self) -> list[str]:
        """Everything that decides whether a task breaks the rule, as text."""
        return [self.pattern.pattern, *self.fields, self.unless.pattern if self.unless else ""]

    def is_broken_by(self, task: Example) -> bool:
        """Returns whether a task breaks the rule."""
        texts = [getattr(task, field) for field in self.fields]
        if not any(self.pattern.search(text) for text in texts):
            return False
        return self.unless is None or not self.unless.search(task.instruction)


def load_rules(path: Path | None = None) -> list[SafetyRule]:
    """Returns the rules of a YAML file (default: data/safety_rules.yaml).

    Raises DataError, naming the file and the rule that cannot be used.
    """
    import yaml

    path = path or RULES
    try:
        rows = yaml.safe_load(path.read_text(encoding="utf-8"))["rules"]
        named = [(str(row["name"]), row) for row in rows]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise DataError(f"{path}: no safety rules: it needs `rules`, a list ({error})") from None
    rules = []
    for name, row in named:
        try:
            rules.append(_parse_rule(name, row))
        except (*_BAD_RULE, re.error) as error:
            raise DataError(f"{path}: the rule {name!r} cannot be used ({error!r})") from None
    return rules


def _parse_rule(name: str, row: dict[str, Any]) -> SafetyRule:
    fields = tuple(row.get("fields", FIELDS))
    if not fields or not set(fields) <= set(FIELDS):
        raise ValueError(f"fields are some of {', '.join(FIELDS)}")
    if unknown := set(row) - {"name", "pattern", "fields", "unless"}:
        raise ValueError(f"a rule has no key {', '.join(sorted(unknown))}")
    if not row["pattern"]:
        raise ValueError("an empty pattern")
    pattern = re.compile(row["pattern"], re.IGNORECASE)
    unless = re.compile(row["unless"], re.IGNORECASE) if row.get("unless") else None
    return SafetyRule(name, pattern, fields, unless)


def find_broken_rule(task: Example, rules: Sequence[SafetyRule]) -> str | None:
    """Returns the name of the first rule that a task breaks, or None."""
    return next((rule.name for rule in rules if rule.is_broken_by(task)), None)
