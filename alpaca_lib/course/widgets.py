"""Shows widgets to a person; a headless run shows their static twins in the notebook alone."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import IPython.display
import ipywidgets

from alpaca_lib.course.notebooks import is_headless
from alpaca_lib.errors import AlpacaError

# JupyterLab breaks words anywhere in a pre.
_PRE = "white-space:pre-wrap;word-break:normal;overflow-wrap:anywhere"


def browse(items: Sequence[tuple[str, str]], label: str) -> None:
    """Shows (title, text) pairs one at a time, with two buttons and a drop-down list."""
    if is_headless() or not items:
        return
    titles = [(f"{n}. {title[:70]}", n - 1) for n, (title, _) in enumerate(items, 1)]
    # Without min_width the list is as wide as its longest title, and wider than a narrow page.
    layout = {"width": "auto", "flex": "1 1 auto", "min_width": "0"}
    choice = ipywidgets.Dropdown(options=titles, description=label, layout=layout)
    narrow = {"width": "3em"}
    previous = ipywidgets.Button(icon="chevron-left", tooltip="previous", layout=narrow)
    following = ipywidgets.Button(icon="chevron-right", tooltip="next", layout=narrow)
    place, text = ipywidgets.Label(), ipywidgets.HTML(layout={"width": "auto"})

    def show(_: Any = None) -> None:
        number = choice.value
        place.value = f"{number + 1} / {len(items)}"
        previous.disabled, following.disabled = number == 0, number == len(items) - 1
        text.value = f"<pre style='{_PRE}'>{html.escape(items[number][1])}</pre>"

    def step(by: int) -> None:
        choice.value = min(max(choice.value + by, 0), len(items) - 1)

    previous.on_click(lambda _: step(-1))
    following.on_click(lambda _: step(1))
    choice.observe(show, names="value")
    show()
    IPython.display.display(
        ipywidgets.VBox([ipywidgets.HBox([previous, following, place, choice]), text])
    )


def show_slider(
    draw: Callable[[float], None], label: str, low: float, high: float, step: float, start: float
) -> None:
    """Shows a slider that calls draw(value) when it is moved."""
    if is_headless():
        return
    is_whole = all(float(number).is_integer() for number in (low, high, step, start))
    slider = ipywidgets.FloatSlider(
        value=start,
        min=low,
        max=high,
        step=step,
        description=label,
        readout_format="d" if is_whole else ".2f",
        style={"description_width": "initial"},
        continuous_update=False,
    )
    ipywidgets.interact(lambda value: draw(value), value=slider)  # matched by this name


def ask(answers: Mapping[str, Callable[[str, str], str]]) -> None:
    """Shows a form for a question and the answers of several models side by side.

    ``answers`` maps a model's name to a function of (instruction, input) that returns its answer.
    An error that it raises is shown in the answer's place.
    """
    if is_headless():
        return
    wide = {"width": "auto"}  # with 100 % the margins would not fit
    example = "Give two reasons to learn a second language."
    question = ipywidgets.Textarea(value=example, layout=wide)
    context = ipywidgets.Textarea(placeholder="input (optional)", layout=wide)
    button = ipywidgets.Button(description="Ask", button_style="primary")
    column = {"width": "auto", "flex": "1 1 0", "min_width": "0"}
    style = "white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.4"
    boxes = {name: ipywidgets.HTML(layout=column) for name in answers}

    def run(_: Any) -> None:
        button.disabled = True
        try:
            for name, answer in answers.items():
                title = f"<b>{html.escape(name)}</b>"
                boxes[name].value = f"{title}<p>...</p>"
                try:
                    text = answer(question.value, context.value)
                except AlpacaError as error:  # a question too long for the model, for example
                    text = f"error: {error}"
                except Exception as error:  # ipywidgets would write it to a log that is hidden
                    text = f"{type(error).__name__}: {error}"
                boxes[name].value = f"{title}<p style='{style}'>{html.escape(text)}</p>"
        finally:
            button.disabled = False

    button.on_click(run)
    row = ipywidgets.HBox(list(boxes.values()), layout={"grid_gap": "1em"})
    IPython.display.display(ipywidgets.VBox([question, context, button, row]))


def show_tokens(pieces: Sequence[str], counted: Sequence[bool]) -> None:
    """Shows a sequence token by token, with those marked that the loss counts.

    It is shown in headless runs too: in colour, in bold where styles are removed (GitHub), and
    in [brackets] where there is only text.
    """
    marked, plain = [], []
    for piece, counts in zip(pieces, counted, strict=True):
        text = piece.replace("\n", "⏎").replace(" ", "·")
        breaks = piece.count("\n")
        colour = "#009E73;color:white" if counts else "#e8e8e8;color:#333"
        style = f"background:{colour};padding:1px 3px;margin:1px;border-radius:3px"
        code = f'<code style="{style}">{html.escape(text)}</code>'
        if counts:
            code = f"<mark style='background:none'><b>{code}</b></mark>"
            text = f"[{text}]"
        marked.append(code + "<br>" * breaks)
        plain.append(text + "\n" * breaks)
    block = f'<div style="line-height:2">{" ".join(marked)}</div>'
    IPython.display.display({"text/html": block, "text/plain": " ".join(plain)}, raw=True)
