"""Parses a reply exactly as Stanford's script does, its faults included."""

from __future__ import annotations

import re

from alpaca_lib.generation.reply import Reply
from alpaca_lib.generation.task_rules import stanford_rule_broken
from alpaca_lib.records import Example


def parse_stanford(text: str, finish_reason: str | None, first_number: int) -> Reply:
    """Parses as stanford_alpaca's generate_instruction.py does (761dc5b)."""
    blocks = re.split("###", f"{first_number}. Instruction:{text}")
    reply = Reply()
    for place, block in enumerate(blocks):
        number = first_number + place
        parts = re.split(rf"{number}\.\s+(Instruction|Input|Output):", block)
        if place == len(blocks) - 1 and finish_reason == "length":
            reply.add(None, "cut off by the length limit", block)
        elif len(parts) != 7:
            reply.add(None, f"does not split into 7 parts at {number}.", block)
        else:
            given = parts[4].strip()
            given = "" if given.lower() == "<noinput>" else given
            task = Example(parts[2].strip(), given, parts[6].strip())
            reply.add(task, stanford_rule_broken(task.instruction), block)
    return reply
