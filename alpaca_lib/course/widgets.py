"""Widgets for what is better moved than read; each has a plain twin for papermill.

A widget is shown only to a person: in a headless run, on GitHub and in a test the
notebook shows the twin alone.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from alpaca_lib.course.notebooks import headless


def browse(items: Sequence[tuple[str, str]], label: str) -> None:
    """A drop-down over (title, text) pairs; the text is shown as it is, not as HTML."""
    if headless() or not items:
        return
    import ipywidgets
    from IPython.display import display

    choice = ipywidgets.Dropdown(
        options=[(f"{i + 1}. {title[:70]}", i) for i, (title, _) in enumerate(items)],
        description=label,
        layout={"width": "100%"},
    )
    text = ipywidgets.HTML()

    def show(change: Mapping[str, Any] | None = None) -> None:
        text.value = (
            f"<pre style='white-space:pre-wrap'>{html.escape(items[choice.value][1])}</pre>"
        )

    choice.observe(show, names="value")
    show()
    display(ipywidgets.VBox([choice, text]))


def slider(
    draw: Callable[[float], None], label: str, low: float, high: float, step: float, start: float
) -> None:
    """A slider that calls draw(value) when it is moved."""
    if headless():
        return
    import ipywidgets

    ipywidgets.interact(
        draw,
        **{
            "value": ipywidgets.FloatSlider(
                value=start,
                min=low,
                max=high,
                step=step,
                description=label,
                continuous_update=False,
            )
        },
    )


def ask(answers: Mapping[str, Callable[[str, str], str]]) -> None:
    """A small page: one question, every model's answer side by side."""
    if headless():
        return
    import ipywidgets
    from IPython.display import display

    question = ipywidgets.Textarea(
        value="Give two reasons to learn a second language.", layout={"width": "100%"}
    )
    given = ipywidgets.Textarea(placeholder="input (optional)", layout={"width": "100%"})
    button = ipywidgets.Button(description="Ask", button_style="primary")
    boxes = {name: ipywidgets.HTML() for name in answers}

    def run(_: Any) -> None:
        button.disabled = True
        try:
            for name, answer in answers.items():
                boxes[name].value = f"<b>{html.escape(name)}</b><p>...</p>"
                text = html.escape(answer(question.value, given.value))
                boxes[
                    name
                ].value = f"<b>{html.escape(name)}</b><p style='white-space:pre-wrap'>{text}</p>"
        finally:
            button.disabled = False

    button.on_click(run)
    row = ipywidgets.HBox(list(boxes.values()), layout={"grid_gap": "1em"})
    for box in boxes.values():
        box.layout.width = f"{100 // len(boxes)}%"
    display(ipywidgets.VBox([question, given, button, row]))
