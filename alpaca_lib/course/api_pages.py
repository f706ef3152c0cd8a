"""Writes one page of the book per package: its public names, signatures and docstrings."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

# In the order of the lessons, then what is built on them.
PACKAGES = (
    "records", "prompts", "models", "generation", "dataset", "training", "inference",
    "planning", "launch", "evaluation", "export",
)  # fmt: skip


def write_pages(folder: Path) -> None:
    """Writes index.md and a page per package into a folder."""
    names = [f"alpaca_lib.{name}" for name in PACKAGES]
    for name in names:
        page = page_of(importlib.import_module(name))
        (folder / f"{name}.md").write_text(page, encoding="utf-8")
    lines = ["# The library, by package", "", "```{toctree}", *names, "```", ""]
    (folder / "index.md").write_text("\n".join(lines), encoding="utf-8")


def page_of(module: ModuleType) -> str:
    """Returns the Markdown of a module's page."""
    parts = [f"# {module.__name__}", as_markdown(inspect.getdoc(module) or "")]
    for name in public_names(module):
        parts += describe(name, getattr(module, name))
    return "\n\n".join(part for part in parts if part) + "\n"


def public_names(module: ModuleType) -> list[str]:
    """Returns what a module offers: __all__, or what is defined in it without an underscore."""
    listed = getattr(module, "__all__", None)
    if listed is not None:
        return [name for name in listed if not inspect.ismodule(getattr(module, name))]
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == module.__name__
    ]


def describe(name: str, value: Any) -> list[str]:
    """Returns the paragraphs about one public name."""
    if not callable(value):
        kind = type(value).__name__
        return [f"## {name}", f"A constant: {kind}."]
    parts = [f"## {name}", f"```python\n{signature_of(name, value)}\n```"]
    doc = inspect.getdoc(value) or ""
    parts.append(as_markdown(doc) if doc != inspect.getdoc(object) else "")
    if inspect.isclass(value):
        for method, function in vars(value).items():
            text = inspect.getdoc(function)
            if not method.startswith("_") and inspect.isroutine(function) and text:
                parts += [f"### {name}.{method}", as_markdown(text)]
    return parts


def signature_of(name: str, value: Any) -> str:
    """Returns a call as it is written, without default values that are objects of this process."""
    try:
        text = str(inspect.signature(value))
    except (TypeError, ValueError):
        return f"{name}(...)"
    text = re.sub(r"<[^<>]*>", "...", text).replace("typing.", "").replace("pathlib._local.", "")
    if len(text) > 100:
        text = "(\n    " + ",\n    ".join(split_arguments(text[1 : text.rindex(")")])) + "\n)"
    return f"{name}{text}"


def split_arguments(text: str) -> list[str]:
    """Returns a signature cut at the commas that are in no bracket or quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote or letter in "'\"":
            quote = "" if letter == quote else quote or letter
        depth += (letter in "([{") - (letter in ")]}") if not quote else 0
        if letter == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def as_markdown(doc: str) -> str:
    """Returns a docstring as Markdown: prose as prose, indented and >>> lines as code."""
    blocks = []
    for block in re.split(r"\n\s*\n", doc.strip()):
        lines = block.splitlines()
        if any(line.startswith((" ", ">>>")) for line in lines):
            first = next(i for i, line in enumerate(lines) if line.startswith((" ", ">>>")))
            if first:
                blocks.append(_prose(lines[:first]))
            blocks.append("```text\n" + "\n".join(lines[first:]) + "\n```")
        elif block:
            blocks.append(_prose(lines))
    return "\n\n".join(blocks)


def _prose(lines: list[str]) -> str:
    text = re.sub(r"``(.+?)``", r"`\1`", " ".join(lines))
    parts = re.split(r"(`[^`]*`)", text)  # what is not code must not become markup
    return "".join(
        p if p.startswith("`") else re.sub(r"([*_<\[\]{}$#])", r"\\\1", p) for p in parts
    )
