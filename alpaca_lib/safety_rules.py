"""A rule set for what may be kept: tasks that ask for harm, and answers that hold it.

Rules are patterns from a file (data/safety_rules.yaml, or the reader's own), so that an
instructor can read, change and extend them. They catch what is said plainly; they are
no judge of meaning, and no replacement for reading what was kept.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alpaca_lib.errors import DataError
from alpaca_lib.records import FIELDS, Example

RULES = Path(__file__).resolve().parents[1] / "data" / "safety_rules.yaml"


@dataclass(frozen=True)
class SafetyRule:
    """A name, a pattern for some fields of a task, and one that makes a hit harmless."""

    name: str
    pattern: re.Pattern[str]
    fields: tuple[str, ...]
    unless: re.Pattern[str] | None = None

    @property
    def text(self) -> list[str]:
        """All that decides, as text."""
        return [self.pattern.pattern, *self.fields, self.unless.pattern if self.unless else ""]

    def broken_by(self, task: Example) -> bool:
        """Whether a task breaks this rule."""
        texts = [getattr(task, field) for field in self.fields]
        if not any(self.pattern.search(text) for text in texts):
            return False
        return self.unless is None or not self.unless.search(task.instruction)


def load_rules(path: Path | None = None) -> list[SafetyRule]:
    """The rules of a file. Raises DataError, naming the rule that cannot be used."""
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
            fields = tuple(row.get("fields", FIELDS))
            if not fields or not set(fields) <= set(FIELDS):
                raise ValueError(f"fields are some of {', '.join(FIELDS)}")
            if unknown := set(row) - {"name", "pattern", "fields", "unless"}:
                raise ValueError(f"it has no {', '.join(sorted(unknown))}")
            if not row["pattern"]:
                raise ValueError("an empty pattern")
            unless = row.get("unless")
            rules.append(
                SafetyRule(
                    name,
                    re.compile(row["pattern"], re.IGNORECASE),
                    fields,
                    re.compile(unless, re.IGNORECASE) if unless else None,
                )
            )
        except (
            *(AttributeError, KeyError, TypeError, ValueError),
            *(OverflowError, RecursionError, re.error),
        ) as error:
            raise DataError(f"{path}: the rule {name!r} cannot be used ({error!r})") from None
    return rules


def unsafe(task: Example, rules: Sequence[SafetyRule]) -> str | None:
    """The name of the first rule that a task breaks, or None."""
    return next((rule.name for rule in rules if rule.broken_by(task)), None)
