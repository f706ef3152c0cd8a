"""What a lesson's widgets should show: from the lesson's own code, run again in its kernel."""

from __future__ import annotations

import ast
import html
import inspect
import re
from dataclasses import dataclass
from typing import Any

from alpaca_lib.course import widgets

CALLS = ("browse", "show_slider", "ask")  # of alpaca_lib.course.widgets, which a reader moves
# The kinds of ipywidgets that each call shows and a reader can move. A widget whose controls
# are not these needs a check of its own.
CONTROLS = {
    "browse": ["Button", "Button", "Dropdown"],
    "show_slider": ["FloatSlider"],
    "ask": ["Button", "Textarea", "Textarea"],
}
PROGRESS = ("FloatProgress", "IntProgress")
PASSIVE = ("GridBox", "HBox", "HTML", "HTMLMath", "Image", "Label", "Output", "VBox", "interactive")

# Defined in the kernel under names that no lesson has.
KERNEL = """
def _course_tree(model_id):
    from ipywidgets.widgets import widget
    def describe(one):
        return {
            "kind": type(one).__name__,
            "value": getattr(one, "value", None),
            "max": getattr(one, "max", None),
            "style": getattr(one, "bar_style", ""),
            "children": [describe(child) for child in getattr(one, "children", ())],
        }
    found = widget._instances.get(model_id)
    return found and describe(found)

def _course_shown(call):
    import base64
    from IPython.utils.capture import capture_output
    with capture_output() as found:
        call()
    rows = [{"text": found.stdout}] if found.stdout else []
    for output in found.outputs:
        data = output.data
        picture = data.get("image/png")
        if isinstance(picture, bytes):
            picture = base64.b64encode(picture).decode()
        text = data.get("text/markdown", data.get("text/plain", ""))
        rows.append({"png": picture} if picture else {"text": text})
    return rows
"""


@dataclass(frozen=True)
class Call:
    """A call in a lesson's cell."""

    name: str  # of CALLS
    arguments: dict[str, str]  # {parameter: source}


def find_calls(source: str) -> list[Call]:
    """Returns the calls of widgets.NAME in a cell, in the order of the lines."""
    found = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "widgets"
        and node.func.attr in CALLS
    ]
    found.sort(key=lambda node: (node.lineno, node.col_offset))
    return [Call(node.func.attr, _bind(node)) for node in found]


def _bind(node: ast.Call) -> dict[str, str]:
    """Returns the source of each argument by the name of its parameter."""
    named = {one.arg: ast.unparse(one.value) for one in node.keywords if one.arg}
    given = [ast.unparse(one) for one in node.args]
    bound = inspect.signature(getattr(widgets, node.func.attr)).bind(*given, **named)
    return dict(bound.arguments)


def controls_of(tree: dict[str, Any]) -> list[str]:
    """Returns the kinds of widgets in a tree of KERNEL that a reader can move, sorted."""
    own = [] if tree["kind"] in (*PASSIVE, *PROGRESS) else [tree["kind"]]
    return sorted(own + [kind for child in tree["children"] for kind in controls_of(child)])


def find_kinds(tree: dict[str, Any], kinds: tuple[str, ...]) -> list[dict[str, Any]]:
    """Returns the widgets of these kinds in a tree of KERNEL."""
    own = [tree] if tree["kind"] in kinds else []
    return own + [found for child in tree["children"] for found in find_kinds(child, kinds)]


def squash(text: str) -> str:
    """Returns a text without spaces and markup: the same from Markdown and from the page."""
    return re.sub(r"[^\w.%+-]+", "", text)


def squash_markdown(text: str) -> str:
    """Returns what ``squash`` makes of the page that shows a Markdown text."""
    without_rules = re.sub(r"^\|( --- \|)+$", "", text, flags=re.MULTILINE)
    return squash(html.unescape(re.sub(r"<br\s*/?>", " ", without_rules)))


def squash_rows(rows: list[dict[str, str]]) -> list[str]:
    """Returns the outputs of ``_course_shown`` as the page's are read: pictures, and texts."""
    return [
        "png:" + re.sub(r"\s", "", row["png"]) if "png" in row else squash_markdown(row["text"])
        for row in rows
    ]


def browse_state(items: list[list[str]], index: int) -> dict[str, Any]:
    """Returns what ``widgets.browse(items)`` shows of its item ``index``, counted from 0."""
    title, text = items[index]
    return {
        "chosen": " ".join(f"{index + 1}. {title[:70]}".split()),
        "counter": f"{index + 1} / {len(items)}",
        # HTML: \r is \n, and a newline right after <pre> is not shown.
        "text": re.sub(r"\r\n?", "\n", text).removeprefix("\n"),
        "first": index == 0,
        "last": index == len(items) - 1,
    }
