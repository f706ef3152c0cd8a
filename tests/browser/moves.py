"""Moves each kind of widget as a reader does, and checks what it shows then."""

from __future__ import annotations

import math
from typing import Any

from tests.browser.expected import (
    CONTROLS,
    PROGRESS,
    Call,
    browse_state,
    controls_of,
    find_kinds,
    squash,
    squash_rows,
)
from tests.browser.page import ANSWER_SECONDS, LessonPage

WIDGET = "application/vnd.jupyter.widget-view+json"
# What is typed into the form of widgets.ask, with an input and without; the second is long
# enough to be cut off or to overflow, and has what HTML could take for a tag.
QUESTIONS = (
    ("Name three rivers.", ""),
    ("Rewrite the sentence, <b>politely</b> & briefly: " + "verylongword" * 12, "Give me that."),
)
BROWSE = """root => {
  const select = root.querySelector('select');
  const [previous, next] = root.querySelectorAll('button');
  const labels = [...root.querySelectorAll('.widget-label')].map(one => one.textContent);
  return {
    chosen: select.selectedOptions[0].text.replace(/\\s+/g, ' ').trim(),
    counter: labels.find(text => /^\\d+ \\/ \\d+$/.test(text)) ?? labels.join('|'),
    text: root.querySelector('pre')?.textContent, first: previous.disabled, last: next.disabled,
  };
}"""
DRAWN = """root => [...root.querySelectorAll('.widget-output .jp-OutputArea-output')].map(one => {
  const image = one.querySelector('img');
  return image ? {png: image.getAttribute('src').replace(/^data:image.png;base64,/, '')}
               : {text: one.innerText};
})"""
ANSWERS = """root => [...root.querySelectorAll('.widget-html-content')].map(one => ({
  name: one.querySelector('b')?.textContent ?? '',
  text: one.querySelector('p')?.textContent ?? '',
}))"""


def check_widgets(lesson: LessonPage) -> list[str]:
    """Moves every widget of a lesson that has run; returns one line per widget."""
    calls = lesson.calls()
    return [line for cell in lesson.cells() for line in check_cell(lesson, cell, calls)]


def check_cell(lesson: LessonPage, cell: dict[str, Any], calls: list[Call]) -> list[str]:
    """Moves every widget of a cell; returns one line per widget.

    Raises AssertionError if a widget shows something else than the lesson's own code gives, is
    too wide, or has a control that no check moves, and if a call has shown no widget.
    """
    where, done = f"{lesson.name}, cell {cell['id']}", []
    calls = [call for call in calls if call.cell == cell["id"]]
    for number, output in enumerate(cell["outputs"]):
        model_id = output.get("data", {}).get(WIDGET, {}).get("model_id")
        tree = lesson.evaluate(f"_course_tree({model_id!r})") if model_id else None
        if tree is None:  # no widget, or one that was closed
            continue
        controls = controls_of(tree)
        if not controls:
            _check_progress(tree, where)
            continue
        assert calls, f"{where}: a widget of {controls} without a call of widgets.*"
        call = calls.pop(0)
        assert controls == CONTROLS[call.name], f"{where}: {call.name} has {controls}"
        check = {"browse": check_browse, "show_slider": check_slider, "ask": check_ask}
        root = lesson.output(cell["id"], number)
        moved = check[call.name](lesson, root, call, model_id, where)
        wide = lesson.overflows(root)
        assert not wide, f"{where}: {call.name} is too wide: {wide}"
        done.append(f"{where}: {call.name}, {moved}")
    assert not calls, f"{where}: {[call.name for call in calls]} showed no widget"
    return done


def _check_progress(tree: dict[str, Any], where: str) -> None:
    """Checks that each progress bar ended without the colour of an error."""
    for bar in find_kinds(tree, PROGRESS):
        assert bar["style"] != "danger", f"{where}: a bar stopped at {bar['value']} of {bar['max']}"


def check_browse(lesson: LessonPage, root: Any, call: Call, model_id: str, where: str) -> str:
    """Goes through a list by both buttons and by keyboard; all that is shown follows."""
    pairs = lesson.evaluate(f"[list(pair) for pair in {call.given('items')}]")
    last = len(pairs) - 1
    select, buttons = root.locator("select"), root.locator("button")
    label = lesson.evaluate(call.given("label"))
    assert label in root.inner_text(), f"{where}: no label {label!r}"
    assert select.locator("option").count() == len(pairs)

    def expect(index: int, move: str) -> None:
        expected = browse_state(pairs, index)
        lesson.wait(lambda: root.evaluate(BROWSE), expected, f"{where}, {move}")

    expect(0, "at first")
    if last == 0:
        return "one item"
    buttons.nth(1).click()
    expect(1, "the button to the next")
    for key, index in (("ArrowUp", 0), ("End", last)):  # in the open list, else JupyterLab's
        select.click()
        lesson.page.keyboard.press(key)
        lesson.page.keyboard.press("Enter")
        expect(index, f"the {key} key in the list")
    buttons.nth(0).click()
    expect(last - 1, "the button to the previous")
    select.select_option(index=last // 2)
    expect(last // 2, "a choice from the list")
    return f"{len(pairs)} items, 5 moves"


def check_slider(lesson: LessonPage, root: Any, call: Call, model_id: str, where: str) -> str:
    """Moves a slider by keyboard, mouse and typing; the output is what its function draws."""
    low, high, step, start = (
        lesson.evaluate(call.given(name)) for name in ("low", "high", "step", "start")
    )
    handle, readout = root.locator(".noUi-handle"), root.locator(".widget-readout")
    label = lesson.evaluate(call.given("label"))
    assert label in root.inner_text(), f"{where}: no label {label!r}"
    drawn = []

    def value() -> float:
        (slider,) = find_kinds(lesson.evaluate(f"_course_tree({model_id!r})"), ("FloatSlider",))
        return float(slider["value"])

    def draw_at(number: float) -> list[str]:
        rows = lesson.evaluate(f"_course_shown(lambda: {call.given('draw')}({number!r}))")
        expected = squash_rows(rows)
        assert expected, f"{where}: nothing is drawn at {number}"
        drawn.append(expected)
        return expected

    def expect(wanted: float, expected: list[str], move: str) -> None:
        """Compares the kernel's value, the number next to the slider and the output."""
        about = f"{where}, {move}"
        lesson.wait(lambda: round(value(), 9), round(wanted, 9), f"{about}: the value")
        lesson.wait(lambda: _read_drawn(root), expected, f"{about}: the output at {wanted}")
        shown = float(readout.inner_text())
        assert math.isclose(shown, wanted, abs_tol=0.0051), f"{about}: {shown}, not {wanted}"

    # What is expected comes first: JupyterLab may call the slider's function in another thread
    # of the kernel than ours, which would get its output.
    expect(start, draw_at(start), "at first")
    backwards = start + step > high
    wanted = start - step if backwards else start + step
    expected = draw_at(wanted)
    handle.focus()
    lesson.page.keyboard.press("ArrowLeft" if backwards else "ArrowRight")
    expect(wanted, expected, "an arrow key")
    expected = draw_at(high)
    lesson.page.keyboard.press("End")
    expect(high, expected, "the End key")
    track, knob = root.locator(".noUi-base").bounding_box(), handle.bounding_box()
    height = knob["y"] + knob["height"] / 2
    lesson.page.mouse.move(knob["x"] + knob["width"] / 2, height)
    lesson.page.mouse.down()
    lesson.page.mouse.move(track["x"] + track["width"] / 4, height, steps=5)
    lesson.page.mouse.up()
    lesson.wait(lambda: value() != high, True, f"{where}, the mouse: the value changes")
    about = f"{where}, the mouse: the output is another one"
    lesson.wait(lambda: _read_drawn(root) != expected, True, about)
    lesson.wait_until_still(lambda: _read_drawn(root))
    moved = value()
    assert abs(moved - (low + (high - low) / 4)) < (high - low) / 5, f"{where}: {moved} by mouse"
    expect(moved, draw_at(moved), "the mouse")
    middle = low + step * round((high - low) / step / 2)
    expected = draw_at(middle)
    readout.click(click_count=3)
    lesson.page.keyboard.type(f"{middle:.2f}")
    lesson.page.keyboard.press("Enter")
    expect(middle, expected, "a typed number")
    return f"{low:g} to {high:g}, 4 moves, {len({str(one) for one in drawn})} different outputs"


def _read_drawn(root: Any) -> list[str]:
    """Returns the outputs of a slider as ``squash_rows`` returns what they should be."""
    return [
        f"png:{row['png']}" if "png" in row else squash(row["text"]) for row in root.evaluate(DRAWN)
    ]


def check_ask(lesson: LessonPage, root: Any, call: Call, model_id: str, where: str) -> str:
    """Types questions into the form and asks; each model's own answer stands under its name."""
    answers = call.given("answers")
    names = lesson.evaluate(f"list({answers})")
    fields, button = root.locator("textarea"), root.locator("button")
    shown = []
    for question, given in QUESTIONS:
        for number, text in enumerate((question, given)):
            fields.nth(number).click()
            lesson.page.keyboard.press("ControlOrMeta+a")
            lesson.page.keyboard.press("Delete")
            lesson.page.keyboard.type(text)
        before = root.evaluate(ANSWERS)
        button.click()
        lesson.wait(
            lambda before=before: root.evaluate(ANSWERS) != before and button.is_enabled(),
            True,
            f"{where}: answers, and a button that can be used again",
            ANSWER_SECONDS,
        )
        expected = [
            {"name": name, "text": text}
            for name, text in lesson.evaluate(
                f"[(n, f({question!r}, {given!r})) for n, f in {answers}.items()]"
            )
        ]
        lesson.wait(lambda: root.evaluate(ANSWERS), expected, f"{where}: {question}")
        assert [one["name"] for one in expected] == names
        assert any(one["text"] for one in expected), f"{where}: no model answers {question!r}"
        shown.append(expected)
    assert shown[0] != shown[1], f"{where}: both questions have the same answers"
    return f"{len(names)} models, {len(QUESTIONS)} questions"
