"""Presets of servers: where a teacher answers, which key it wants, and which parameters it takes.

They stand in a dated file, data/teachers.yaml. What the file calls unknown is sent, and left out
as soon as the server refuses it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from alpaca_lib.errors import DataError, UsageError
from alpaca_lib.options import nearest
from alpaca_lib.records import read_text

TEACHERS = Path(__file__).resolve().parents[2] / "data" / "teachers.yaml"
LENGTHS = ("max_completion_tokens", "max_tokens")  # names of a reply's limit, today's first
BUILT_IN = {  # teachers that need no server
    "local": "the embedded model, through llama.cpp in this process",
    "replay": "recorded replies from a file",
}
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Preset:
    """One server of data/teachers.yaml, whose comments explain the fields; None: unknown.

    >>> find_preset("deepseek").thinking("none")
    {'thinking': {'type': 'disabled'}}
    """

    name: str
    title: str = "an OpenAI-compatible server"
    base_url: str = ""
    key: str = ""
    start: str = ""
    max_tokens: str = LENGTHS[0]
    json: str | bool | None = None
    logit_bias: bool | None = None
    seed: bool | None = None
    flex: bool | None = None
    batch: bool | None = None
    disabled: Mapping[str, Any] = field(default_factory=lambda: {"reasoning_effort": "none"})
    enabled: Mapping[str, Any] = field(default_factory=lambda: {"reasoning_effort": "EFFORT"})
    budget: str = ""
    checked: str = ""
    source: str = ""

    @property
    def is_local(self) -> bool:
        """Whether the user starts this server, so that its replies cost nothing."""
        return bool(self.start)

    def thinking(self, effort: str) -> dict[str, Any]:
        """Returns the parameters that ask for a reasoning effort; none for an empty one."""
        if not effort:
            return {}
        return _replace_effort(dict(self.disabled if effort == "none" else self.enabled), effort)


ANY_SERVER = Preset("openai", key="OPENAI_API_KEY")  # at an address that the file does not have


def _replace_effort(value: Any, effort: str) -> Any:
    if isinstance(value, Mapping):
        return {name: _replace_effort(inner, effort) for name, inner in value.items()}
    return effort if value == "EFFORT" else value


@functools.cache
def load_presets(path: Path = TEACHERS) -> dict[str, Preset]:
    """Returns the presets of a file by name. Raises DataError, naming the file and the entry."""
    import yaml

    try:
        table = dict(yaml.safe_load(read_text(path))["teachers"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise DataError(f"{path}: no file of teachers: it needs `teachers` ({error})") from None
    return {str(name): _read_preset(path, str(name), row) for name, row in table.items()}


def _read_preset(path: Path, name: str, row: Any) -> Preset:
    try:
        thinking = row["thinking"]
        found = Preset(
            name=name,
            title=str(row["title"]),
            base_url=str(row["base_url"]),
            key=str(row["key"] or ""),
            start=str(row.get("start", "")),
            max_tokens=str(row["max_tokens"]),
            json=_known(row["json"]),
            **{key: _known(row[key]) for key in ("logit_bias", "seed", "flex", "batch")},
            disabled=dict(thinking["disabled"]),
            enabled=dict(thinking["enabled"]),
            budget=str(thinking.get("budget", "")),
            checked=str(row["checked"]),
            source=str(row["source"]),
        )
        if found.max_tokens not in LENGTHS:
            raise ValueError(f"max_tokens is one of {', '.join(LENGTHS)}")
        if found.json not in ("schema", "object", False, None):
            raise ValueError("json is schema, object, false or unknown")
        flags = (found.logit_bias, found.seed, found.flex, found.batch)
        if not all(flag in (True, False, None) for flag in flags):
            raise ValueError("logit_bias, seed, flex and batch are true, false or unknown")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: the teacher {name} cannot be read ({error!r})") from None
    return found


def _known(value: Any) -> Any:
    return None if value == "unknown" else value


def find_preset(name: str) -> Preset:
    """Returns the preset of a name. Raises UsageError, with all names, for an unknown one."""
    known = load_presets()
    if name not in known:
        names = [*BUILT_IN, *known]
        raise UsageError(f"no teacher {name!r}; there are {', '.join(names)}{nearest(name, names)}")
    return known[name]


def preset_at(url: str) -> Preset:
    """Returns the preset of the provider at an address, or ANY_SERVER.

    An address of this machine tells nothing about the server behind it: it may be a proxy.
    """
    host = urlsplit(url).hostname
    for preset in load_presets().values():
        if host == urlsplit(preset.base_url).hostname and host not in LOOPBACK:
            return preset
    return ANY_SERVER


def describe_presets() -> dict[str, list[str]]:
    """Returns the lines of --help about each teacher, under their heading."""
    lines = [f"{name:11}{text}" for name, text in BUILT_IN.items()]
    for preset in load_presets().values():
        needs = f"key in {preset.key}" if preset.key else f"start it with `{preset.start}`"
        lines.append(f"{preset.name:11}{preset.title}: {preset.base_url}; {needs}")
    return {"teachers (data/teachers.yaml; OPENAI_BASE_URL replaces the address)": lines}
