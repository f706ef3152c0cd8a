"""Options declared once: type, default, range, choices and description of each in one model.

A group of options is a pydantic model. Its JSON, its checks, its command-line flags and its
part of ``--help`` all come from the fields' declarations:

>>> class Step(Options):
...     learning_rate: float = option(2e-5, "highest learning rate", above=0)
...     schedule: Literal["cosine", "linear"] = option("cosine", "learning-rate schedule")
>>> Step(schedule="cosin")
Traceback (most recent call last):
SettingsError: schedule 'cosin': use one of cosine, linear; did you mean 'cosine'?
"""

from __future__ import annotations

import argparse
import difflib
import types
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from alpaca_lib.errors import FileError, SettingsError
from alpaca_lib.files import dump_json, parse_json, read_small, write_text

_KINDS = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    Path: "a path",
}
_METAVARS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


def option(
    default: Any,
    description: str,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    strict: bool | None = None,
) -> Any:
    """Declares one option: its default (``...``: required), description and range.

    ``least`` and ``most`` are inclusive bounds, ``above`` and ``below`` exclusive ones. No option
    is infinite or not a number. ``strict`` false converts values, as paths and tuples
    need that come from JSON.
    """
    return Field(
        default, description=description, ge=least, le=most, gt=above, lt=below, strict=strict
    )


class Options(BaseModel):
    """Base class of a group of options: immutable, strict about types, closed to other names."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False
    )

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise SettingsError(explain(type(self), error)) from None

    def replace(self, **changes: Any) -> Self:
        """Returns a copy with some options changed, checked like a new one."""
        return type(self)(**{**self.to_dict(), **changes})

    __replace__ = replace  # copy.replace of Python 3.13

    def to_dict(self) -> dict[str, Any]:
        """Returns the options by name."""
        return {name: getattr(self, name) for name in type(self).model_fields}

    def changed(self) -> dict[str, Any]:
        """Returns the options that differ from their default, by name."""
        fields = type(self).model_fields
        return {k: v for k, v in self.to_dict().items() if v != fields[k].default}

    def save(self, path: Path) -> Path:
        """Writes the options as JSON and returns the path."""
        return write_text(path, dump_json(self.model_dump(mode="json"), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads the options from a JSON file. Raises SettingsError, naming file and option."""
        try:
            values = parse_json(read_small(path))
        except (FileError, ValueError) as error:
            raise SettingsError(f"{path}: no readable settings ({error})") from None
        if not isinstance(values, dict):
            raise SettingsError(f"{path}: is not a JSON object of settings")
        return cls.from_dict(values, str(path))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "settings") -> Self:
        """Returns the options of a dictionary; an error begins with ``source``."""
        try:
            return cls(**values)
        except SettingsError as error:
            raise SettingsError(f"{source}: {error}") from None


def explain(model: type[Options], error: ValidationError) -> str:
    """Returns the first validation error as text: field, value, what is accepted, nearest name."""
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    known = list(model.model_fields)
    if first["type"] == "extra_forbidden":
        return f"no setting {name!r}{nearest(name, known)}"
    if first["type"] == "missing":
        return f"{name} is needed: {model.model_fields[name].description}"
    if not name:  # of a check across several options, whose text is complete
        return str(first["msg"]).removeprefix("Value error, ")
    value = first["input"]
    if first["type"] == "value_error":
        return f"{name} {value!r}: " + str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "finite_number":
        return f"{name} {value!r}: a finite number is needed"
    field = model.model_fields[name]
    near = nearest(value, choices(field)) if isinstance(value, str) else ""
    return f"{name} {value!r}: {_wanted(field)}{near}"


def nearest(name: str, known: Iterable[str], before: str = "") -> str:
    """Returns ``; did you mean 'x'?`` for the known name nearest to one, or an empty text."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {before + found[0]!r}?" if found else ""


def choices(field: FieldInfo) -> tuple[str, ...]:
    """Returns the values that an option of a Literal type can have; none for other types."""
    return tuple(get_args(field.annotation)) if get_origin(field.annotation) is Literal else ()


def accepted(field: FieldInfo) -> str:
    """Returns what an option accepts: its choices, or its kind and range."""
    if found := choices(field):
        return "|".join(value or "''" for value in found)
    bounds = _bounds(field)
    return _KINDS.get(base_type(field), "a list") + (f", {bounds}" if bounds else "")


def base_type(field: FieldInfo) -> Any:
    """Returns the type of an option's value without ``| None``; str for choices."""
    annotation = field.annotation
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(a for a in get_args(annotation) if a is not type(None))
    return str if get_origin(annotation) is Literal else annotation


def _bounds(field: FieldInfo) -> str:
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    found = []
    for bound in field.metadata:
        for name, text in words.items():
            if (limit := getattr(bound, name, None)) is not None:
                found.append(f"{text} {limit:g}")
    return " and ".join(found)


def _wanted(field: FieldInfo) -> str:
    if found := choices(field):
        return "use one of " + ", ".join(value or "''" for value in found)
    return f"{accepted(field)}, is needed" if _bounds(field) else f"{accepted(field)} is needed"


def add_flags(
    parser: argparse.ArgumentParser,
    model: type[Options],
    names: Iterable[str] | None = None,
    **defaults: Any,
) -> None:
    """Adds a flag for each option (of ``names``, or all) to a parser.

    A flag is ``--name``, with - and _ alike; ``defaults`` shows another default than the
    model's. A flag that is not given leaves no attribute: see ``from_flags``.
    """
    for name in names if names is not None else model.model_fields:
        field = model.model_fields[name]
        default = defaults.get(name, field.default)
        shown = "" if default in (None, "", ...) or field.is_required() else f" (default {default})"
        settings: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS}
        if base_type(field) is bool:
            settings["action"] = argparse.BooleanOptionalAction
        else:
            settings["type"] = _reader(field)
            values = "|".join(filter(None, choices(field)))
            settings["metavar"] = values or _METAVARS.get(base_type(field), "TEXT")
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, help=f"{field.description}{shown}", **settings)
        if "_" in name:  # the other spelling, which --help does not repeat
            parser.add_argument(f"--{name}", help=argparse.SUPPRESS, **settings)


def from_flags(namespace: argparse.Namespace, model: type[Options]) -> dict[str, Any]:
    """Returns the options of a model that a command line set, by name."""
    return {k: v for k, v in vars(namespace).items() if k in model.model_fields}


def _reader(field: FieldInfo) -> Callable[[str], Any]:
    kind = base_type(field)

    def read(text: str) -> Any:
        try:
            value = kind(text) if kind in (int, float, str, Path) else text
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r}: {_wanted(field)}") from None
        if (found := choices(field)) and text not in found:
            raise argparse.ArgumentTypeError(f"{text!r}: {_wanted(field)}{nearest(text, found)}")
        return value

    return read
