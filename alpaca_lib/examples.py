"""Instruction-following examples: an instruction, its input and its output.

>>> Example("Name a colour.", "", "Blue.").to_dict()
{'instruction': 'Name a colour.', 'input': '', 'output': 'Blue.'}
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

FIELDS = ("instruction", "input", "output")


@dataclass(frozen=True)
class Example:
    """One instruction-following example.

    ``input`` is "" if the instruction needs none; ``extra`` keeps the row's other keys and does
    not count in comparisons.
    """

    instruction: str
    input: str = ""
    output: str = ""
    extra: dict[str, Any] = field(default_factory=dict, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Returns the row that is written to a file: the three fields, then ``extra``."""
        row = {name: getattr(self, name) for name in FIELDS}
        return {**row, **{k: v for k, v in self.extra.items() if k not in row}}


def chat_content(example: Example) -> str:
    """Returns the user message of an example: instruction, blank line, input."""
    return "\n\n".join(part for part in (example.instruction, example.input) if part)
