"""The notes of the notebooks' parameters are the descriptions of the options."""

import json
from pathlib import Path

import pytest

from alpaca_lib import training
from alpaca_lib.course import parameters
from alpaca_lib.course.notebooks import LESSONS

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


def source_of(lesson):
    """Returns the source of a lesson's parameters cell."""
    notebook = json.loads((NOTEBOOKS / f"{lesson}.ipynb").read_text(encoding="utf-8"))
    (cell,) = [c for c in notebook["cells"] if "parameters" in c["metadata"].get("tags", ())]
    return "".join(cell["source"])


@pytest.mark.parametrize("lesson", LESSONS)
def test_every_note_is_what_its_option_says(lesson):
    assert parameters.update_notes(lesson, source_of(lesson)) == source_of(lesson), (
        "run python -m alpaca_lib.course.parameters"
    )


def test_a_note_comes_from_the_option_and_another_one_is_kept():
    source = 'epochs: float = 1.0  # old\nkill_after: int = 7  # kept: "  # too"'
    description = training.Settings.model_fields["epochs"].description
    assert parameters.update_notes("03_full_finetune_fsdp", source) == (
        f'epochs: float = 1.0  # {description}\nkill_after: int = 7  # kept: "  # too"'
    )


def test_a_note_of_its_own_belongs_to_a_parameter_that_the_lesson_has():
    for lesson, name in parameters.NOTES:
        assert f"{name}: " in source_of(lesson), (lesson, name)
