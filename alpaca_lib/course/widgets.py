"""Widgets for what is better moved than read; each has a plain twin for papermill.

A widget is shown only to a person: in a headless run, on GitHub and in a test the
notebook shows the twin alone.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from alpaca_lib.course.notebooks import headless

# JupyterLab breaks words anywhere in a pre.
_PRE = "white-space:pre-wrap;word-break:normal;overflow-wrap:anywhere"


def browse(items: Sequence[tuple[str, str]], label: str) -> None:
    """Two buttons and a drop-down over (title, text) pairs; the text is shown as it is."""
    if headless() or not items:
        return
    import ipywidgets
    from IPython.display import display

    choice = ipywidgets.Dropdown(
        options=[(f"{i + 1}. {title[:70]}", i) for i, (title, _) in enumerate(items)],
        description=label,
        layout={"width": "auto", "flex": "1 1 auto"},
    )
    back, on = (
        ipywidgets.Button(icon=icon, tooltip=tip, layout={"width": "3em"})
        for icon, tip in (("chevron-left", "the one before"), ("chevron-right", "the next one"))
    )
    place, text = ipywidgets.Label(), ipywidgets.HTML(layout={"width": "auto"})

    def show(change: Mapping[str, Any] | None = None) -> None:
        number = choice.value
        place.value = f"{number + 1} / {len(items)}"
        back.disabled, on.disabled = number == 0, number == len(items) - 1
        text.value = f"<pre style='{_PRE}'>{html.escape(items[number][1])}</pre>"

    def step(by: int) -> None:
        choice.value = min(max(choice.value + by, 0), len(items) - 1)

    back.on_click(lambda _: step(-1))
    on.on_click(lambda _: step(1))
    choice.observe(show, names="value")
    show()
    display(ipywidgets.VBox([ipywidgets.HBox([back, on, place, choice]), text]))


def slider(
    draw: Callable[[float], None], label: str, low: float, high: float, step: float, start: float
) -> None:
    """A slider that calls draw(value) when it is moved."""
    if headless():
        return
    import ipywidgets

    ipywidgets.interact(
        lambda value: draw(value),  # interact goes by the parameter's name
        **{
            "value": ipywidgets.FloatSlider(
                value=start,
                min=low,
                max=high,
                step=step,
                description=label,
                style={"description_width": "initial"},
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


def tokens(pieces: Sequence[str], counted: Sequence[bool]) -> None:
    """Shows a sequence token by token; those that the loss counts are marked.

    It is shown everywhere: in colour where styles are, in bold where they are stripped
    (GitHub), and in [brackets] where there is only text.
    """
    from IPython.display import display

    marked, plain = [], []
    for piece, counts in zip(pieces, counted, strict=True):
        text = piece.replace("\n", "⏎").replace(" ", "·")
        colour = "#009E73;color:white" if counts else "#e8e8e8;color:#333"
        style = f"background:{colour};padding:1px 3px;margin:1px;border-radius:3px"
        code = f'<code style="{style}">{html.escape(text)}</code>'
        lines = "<br>" * piece.count("\n")
        code = f"<mark style='background:none'><b>{code}</b></mark>" if counts else code
        marked.append(code + lines)
        plain.append((f"[{text}]" if counts else text) + "\n" * piece.count("\n"))
    block = f'<div style="line-height:2">{" ".join(marked)}</div>'
    display({"text/html": block, "text/plain": " ".join(plain)}, raw=True)
