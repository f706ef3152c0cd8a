"""IFEval: prompts with instructions that a program verifies, and their verdicts.

Source: Zhou et al. 2023, "Instruction-Following Evaluation for Large Language Models"
(arXiv:2311.07911). The checks themselves are in ifeval_checks.

>>> prompts = load_prompts(Path("ifeval.jsonl"))
>>> verify(prompts[0], "An answer without a comma")
Verdict(strict=(True, False), loose=(True, False))
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpaca_lib.errors import DataError, MissingPackageError
from alpaca_lib.evaluation.ifeval_checks import KINDS
from alpaca_lib.json_rows import describe, read_rows


@dataclass(frozen=True)
class Instruction:
    """One verifiable instruction of a prompt: a name in KINDS and its arguments."""

    kind: str
    arguments: dict[str, Any]

    def is_followed(self, text: str) -> bool:
        """Returns whether a text follows the instruction; an empty one follows nothing."""
        return bool(text.strip()) and KINDS[self.kind].check(text, **self.arguments)


@dataclass(frozen=True)
class Prompt:
    """One prompt of IFEval, with the instructions that it states in words."""

    key: str
    text: str
    instructions: tuple[Instruction, ...]


@dataclass(frozen=True)
class Verdict:
    """Which instructions of a prompt an answer follows, in order; None: it was not judged."""

    strict: tuple[bool | None, ...]
    loose: tuple[bool | None, ...]  # after changes that models often need, see loosen()


def load_prompts(file: Path) -> list[Prompt]:
    """Returns the prompts of a JSON-lines file in Google's format, at least one.

    Its columns: key, prompt, instruction_id_list and kwargs. Raises DataError, naming the row.
    """
    rows = read_rows(file)
    prompts: dict[str, Prompt] = {}
    for number, row in enumerate(rows.values, start=1):
        try:
            if damage := rows.find_damage(number):
                raise ValueError(damage)
            prompt = read_prompt(row)
            if prompt.key in prompts:
                raise ValueError(f"has the `key` {prompt.key} of an earlier row; keys are unique")
        except ValueError as error:
            raise DataError(f"{file}: {rows.name(number)} {error}") from None
        prompts[prompt.key] = prompt
    return list(prompts.values())


def read_prompt(row: object) -> Prompt:
    """Returns the Prompt of a decoded row. Raises ValueError, which says what is wrong."""
    columns = {"key": int | str, "prompt": str, "instruction_id_list": list, "kwargs": list}
    if not isinstance(row, dict):
        raise ValueError(f"is {describe(row)}, not an object with {', '.join(columns)}")
    for name, kind in columns.items():
        if not isinstance(row.get(name), kind) or row[name] in ("", []):
            raise ValueError(f"has no usable `{name}`; IFEval's columns are {', '.join(columns)}")
    names, arguments = row["instruction_id_list"], row["kwargs"]
    if len(names) != len(arguments):
        raise ValueError(f"has {len(names)} instructions and {len(arguments)} `kwargs`")
    instructions = map(_read_instruction, names, arguments)
    return Prompt(str(row["key"]), row["prompt"], tuple(instructions))


def _read_instruction(name: object, arguments: object) -> Instruction:
    name = str(name).removeprefix("en:")
    if name not in KINDS:
        raise ValueError(f"has the instruction {name!r}, which is none of IFEval's {len(KINDS)}")
    if not isinstance(arguments, dict):
        raise ValueError(f"has {describe(arguments)} as `kwargs` of {name}, not an object")
    # On the hub each object has the arguments of all kinds, most of them null.
    given = {key: value for key, value in arguments.items() if value is not None}
    expected = KINDS[name].arguments
    if given.keys() != expected.keys():
        raise ValueError(
            f"has the arguments {sorted(given)} for {name}; it takes {sorted(expected)}"
        )
    for key, kind in expected.items():
        _check_argument(f"{name} with `{key}` {given[key]!r}", given[key], kind)
    return Instruction(name, given)


def _check_argument(what: str, value: Any, kind: Any) -> None:
    if isinstance(kind, tuple):
        if value not in kind:
            raise ValueError(f"has {what}; it is one of {', '.join(map(repr, kind))}")
    elif kind is int:
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ValueError(f"has {what}; it is a number, 0 or more")
    else:
        if kind == "patterns" and (not isinstance(value, list) or not value):
            raise ValueError(f"has {what}; a list of texts is needed")
        for word in value if kind == "patterns" else [value]:
            if not isinstance(word, str) or not word.strip():
                raise ValueError(f"has {what}; a text is needed")
            if kind == "letter" and len(word.strip()) > 1:
                raise ValueError(f"has {what}; it is one character")
            try:
                re.compile(word if kind in ("pattern", "patterns") else "")
            except re.error as error:
                raise ValueError(
                    f"has {what}, which is no regular expression ({error}); write a backslash "
                    "before each of . ^ $ * + ? ( ) [ ] { } | that stands for itself"
                ) from None


def loosen(response: str) -> list[str]:
    """Returns the 8 variants of a response of which one has to follow an instruction loosely.

    They lack the first line, the last line or both (an introduction, a closing remark), and
    the asterisks of Markdown.
    """
    lines = response.split("\n")
    cuts = [lines[1:], lines[:-1], lines[1:-1]]
    texts = [response, *("\n".join(cut).strip() for cut in cuts)]
    return [*texts, *(text.replace("*", "") for text in texts)]


def verify(prompt: Prompt, response: str, unjudged: Iterable[str] = ()) -> Verdict:
    """Returns which instructions a response follows; kinds that are ``unjudged`` have None."""
    skipped = frozenset(unjudged)
    variants = list(dict.fromkeys(loosen(response)))
    strict: list[bool | None] = []
    loose: list[bool | None] = []
    for one in prompt.instructions:
        if one.kind in skipped:
            strict.append(None)
            loose.append(None)
        else:
            strict.append(one.is_followed(response))
            loose.append(strict[-1] or any(map(one.is_followed, variants[1:])))
    return Verdict(tuple(strict), tuple(loose))


def find_unjudged(prompts: Iterable[Prompt]) -> dict[str, str]:
    """Returns the kinds in the prompts that cannot be judged here, and the reason of each."""
    reasons = {}
    for kind in sorted({one.kind for prompt in prompts for one in prompt.instructions}):
        tool = KINDS[kind].tool
        try:
            if tool is not None:
                tool()
        except MissingPackageError as error:
            reasons[kind] = str(error)
    return reasons
