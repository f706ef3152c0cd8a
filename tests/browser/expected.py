"""What a lesson's widgets should show: from what the lesson itself gave them."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from typing import Any

# The functions of alpaca_lib.course.widgets whose result a reader moves, and the kinds
# of ipywidgets that each shows for that. A widget with other controls needs a check of its own.
CONTROLS = {
    "browse": ["Button", "Button", "Dropdown"],
    "show_slider": ["FloatSlider"],
    "ask": ["Button", "Textarea", "Textarea"],
}
PROGRESS = ("FloatProgress", "IntProgress")
PASSIVE = (
    *("GridBox", "HBox", "HTML", "HTMLMath", "Image", "Label", "Output", "TqdmHBox", "VBox"),
    "interactive",
)

# Run in the kernel before the lesson; the names begin with _, as no parameter's does.
KERNEL = (
    f"_course_kinds = {sorted(CONTROLS)!r}"
    + """
_course_calls = []  # what the lesson gives each widget: names may mean something else later

def _course_record(name):
    import functools, inspect
    from alpaca_lib.course import widgets
    original = getattr(widgets, name)
    @functools.wraps(original)
    def call(*args, **options):
        given = inspect.signature(original).bind(*args, **options).arguments
        given = {k: list(v) if isinstance(v, list) else v for k, v in given.items()}
        cell = get_ipython().kernel.get_parent("shell")["metadata"].get("cellId", "")
        _course_calls.append({"name": name, "cell": cell, "given": given})
        return original(*args, **options)
    setattr(widgets, name, call)

for _course_name in _course_kinds:
    _course_record(_course_name)

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
)


@dataclass(frozen=True)
class Call:
    """A call of a function of CONTROLS that KERNEL has recorded."""

    number: int
    name: str
    cell: str

    def given(self, parameter: str) -> str:
        """Returns the expression of an argument, for the lesson's kernel."""
        return f"_course_calls[{self.number}]['given'][{parameter!r}]"


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
    return squash(html.unescape(re.sub(r"<br\s*/?>|</?span>", " ", without_rules)))


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
