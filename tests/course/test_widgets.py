"""The widgets of a reader, without a browser: what they show, and what a fault shows."""

import ipywidgets
import pytest

from alpaca_lib.course import widgets
from alpaca_lib.errors import DataError


@pytest.fixture
def shown(monkeypatch):
    """The widgets that a reader would see, in order."""
    found = []
    monkeypatch.setattr(widgets, "is_headless", lambda: False)
    monkeypatch.setattr("IPython.display.display", lambda *what, **options: found.extend(what))
    return found


def find(root, kind):
    own = [root] if type(root) is kind else []
    return own + [one for child in getattr(root, "children", ()) for one in find(child, kind)]


def test_an_error_stands_in_the_answers_place_and_the_others_are_asked(shown):
    def refuse(question, given):
        raise DataError(f"{len(question)} characters do not fit <here>")

    widgets.ask({"one": refuse, "two": lambda question, given: f"{question}|{given}"})
    (root,) = shown
    question, given = find(root, ipywidgets.Textarea)
    question.value, given.value = "Why?", "because"
    (button,) = find(root, ipywidgets.Button)
    button.click()
    first, second = (box.value for box in find(root, ipywidgets.HTML))
    assert "<b>one</b>" in first and "error: 4 characters do not fit &lt;here&gt;" in first
    assert "<b>two</b>" in second and "Why?|because" in second
    assert not button.disabled


def test_a_fault_of_the_program_is_shown_too_and_the_button_works_again(shown):
    """ipywidgets only logs what a button's function raises: a reader would wait for ever."""
    widgets.ask({"one": lambda question, given: 1 / 0})
    (button,) = find(shown[0], ipywidgets.Button)
    button.click()
    (box,) = find(shown[0], ipywidgets.HTML)
    assert "ZeroDivisionError: division by zero" in box.value
    assert not button.disabled


@pytest.mark.parametrize(
    ("numbers", "form"), [((0, 300, 5, 40), "d"), ((0.05, 2, 0.05, 0.7), ".2f")]
)
def test_a_slider_of_whole_numbers_shows_no_decimals(monkeypatch, numbers, form):
    made = []
    monkeypatch.setattr(widgets, "is_headless", lambda: False)
    monkeypatch.setattr(ipywidgets, "interact", lambda draw, value: made.append(value))
    widgets.show_slider(lambda value: None, "step", *numbers)
    (slider,) = made
    assert slider.readout_format == form and slider.value == numbers[-1]
