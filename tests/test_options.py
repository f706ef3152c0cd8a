"""Options declared once: checks, JSON, flags and help come from the declaration."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Literal

import pytest
from pydantic import model_validator

from alpaca_lib.errors import AlpacaError, SettingsError
from alpaca_lib.options import Options, add_flags, from_flags, option


class Oven(Options):
    """An example."""

    dish: str = option(..., "what is baked")
    degrees: float = option(180.0, "temperature in degrees Celsius", least=50, most=250)
    minutes: int = option(30, "baking time", above=0)
    mode: Literal["air", "grill"] = option("air", "where the heat comes from")
    fan: bool = option(True, "whether the fan runs")
    rack: int | None = option(None, "number of the rack", least=1)
    recipe: Path | None = option(None, "a file with the recipe", strict=False)

    @model_validator(mode="after")
    def _grill_is_short(self):
        if self.mode == "grill" and self.minutes > 60:
            raise ValueError(f"minutes {self.minutes}: at most 60 with mode grill")
        return self


@pytest.mark.parametrize(
    "values, text",
    [
        ({"degrees": 20}, "degrees 20: a number, at least 50 and at most 250, is needed"),
        ({"degrees": float("nan")}, "degrees nan"),
        ({"minutes": 0}, "minutes 0: a whole number, above 0, is needed"),
        ({"minutes": 3.5}, "minutes 3.5: a whole number"),
        ({"minutes": "30"}, "minutes '30': a whole number"),
        ({"minutes": True}, "minutes True: a whole number"),
        ({"mode": "gril"}, "mode 'gril': use one of air, grill; did you mean 'grill'?"),
        ({"mode": ["air"]}, "mode ['air']: use one of air, grill"),
        ({"fan": 1}, "fan 1: true or false is needed"),
        ({"rack": 0}, "rack 0: a whole number, at least 1, is needed"),
        ({"degres": 100}, "no setting 'degres'; did you mean 'degrees'?"),
        ({"mode": "grill", "minutes": 90}, "minutes 90: at most 60 with mode grill"),
        ({"dish": 5}, "dish 5: text is needed"),
    ],
)
def test_an_error_names_field_value_range_and_nearest_name(values, text):
    """Direct, from a dictionary with its source, and through replace: the same text."""
    with pytest.raises(SettingsError) as caught:
        Oven(**{"dish": "bread", **values})
    assert text in str(caught.value)
    with pytest.raises(SettingsError) as caught:
        Oven.from_dict({"dish": "bread", **values}, "oven.json")
    assert str(caught.value).startswith("oven.json: ") and text in str(caught.value)
    with pytest.raises(SettingsError) as caught:
        Oven(dish="bread").replace(**values)
    assert text in str(caught.value)
    assert isinstance(caught.value, AlpacaError) and isinstance(caught.value, ValueError)


def test_a_required_option_says_what_it_is():
    """The description helps where a value is missing."""
    with pytest.raises(SettingsError, match="dish is needed: what is baked"):
        Oven()


def test_json_round_trip_and_changed(tmp_path):
    """What is saved loads as the same; `changed` names what differs from the defaults."""
    oven = Oven(dish="bread", degrees=220.0, recipe=Path("a.md"))
    assert Oven.load(oven.save(tmp_path / "oven.json")) == oven
    assert json.loads((tmp_path / "oven.json").read_text())["degrees"] == 220.0
    assert oven.changed() == {"dish": "bread", "degrees": 220.0, "recipe": Path("a.md")}
    with pytest.raises(Exception, match="frozen"):
        oven.degrees = 100.0


def flags(*words, **defaults):
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_flags(parser, Oven, **defaults)
    return from_flags(parser.parse_args(words), Oven)


def test_flags_are_typed_and_only_given_ones_are_there():
    """- and _ alike; a flag that is not given is absent, so a file's value stays."""
    assert flags() == {}
    found = flags("--degrees", "200", "--no-fan", "--mode", "grill", "--rack=2", "--recipe", "r.md")
    assert found == {
        "degrees": 200.0,
        "fan": False,
        "mode": "grill",
        "rack": 2,
        "recipe": Path("r.md"),
    }
    assert Oven(dish="bread", **found).rack == 2


@pytest.mark.parametrize(
    "words, text",
    [
        (("--minutes", "half"), "'half': a whole number, above 0, is needed"),
        (("--mode", "gril"), "use one of air, grill; did you mean 'grill'?"),
    ],
)
def test_a_wrong_flag_says_what_is_accepted(words, text):
    with pytest.raises(argparse.ArgumentError) as caught:
        flags(*words)
    assert text in str(caught.value)


def test_help_has_description_range_and_default():
    """--help shows each option's description and the default of this command."""
    parser = argparse.ArgumentParser()
    add_flags(parser, Oven, minutes=45)
    text = " ".join(parser.format_help().split())
    assert "baking time (default 45)" in text and "air|grill" in text
