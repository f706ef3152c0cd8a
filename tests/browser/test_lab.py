"""What the browser's tests are made of, without a browser."""

import json
import os
import sys

import nbformat
import psutil
import pytest

from alpaca_lib.course import widgets
from tests.browser import expected, lab


class Kernel:
    """What IPython gives: the kernel, whose parent message names the running cell."""

    kernel = property(lambda self: self)

    def get_parent(self, channel):
        return {"metadata": {"cellId": "some-cell"}}


def test_what_a_lesson_gives_its_widgets_is_recorded(monkeypatch):
    """Also if the names mean something else afterwards; the widgets are shown as before."""
    shown = []
    monkeypatch.setattr(widgets, "browse", lambda items, label: shown.append((items, label)))
    monkeypatch.setattr(widgets, "show_slider", widgets.show_slider)
    monkeypatch.setattr(widgets, "ask", widgets.ask)
    names = {"get_ipython": Kernel}
    exec(expected.KERNEL, names)
    items = [("a", "b")]
    widgets.browse(items, label="rows")
    items.clear()
    (call,) = names["_course_calls"]
    assert call["name"] == "browse" and call["cell"] == "some-cell"
    assert call["given"] == {"items": [("a", "b")], "label": "rows"}
    assert shown == [([], "rows")]
    assert eval(expected.Call(0, "browse", "").given("label"), names) == "rows"
    shown = names["_course_shown"](lambda: print("text", 1.5))
    assert shown == [{"text": "text 1.5\n"}]


@pytest.mark.parametrize(
    ("markdown", "page", "same"),
    [
        ("Above **0.41**: 4 dropped", "Above 0.41: 4 dropped", True),
        ("| a | b |\n| --- | --- |\n| `'\\n'` | 1.5<br>&lt;b&gt; |", "a\tb\n'\\n'\t1.5\n<b>", True),
        ("| % |\n| --- |\n| 1.5 |", "%\n15", False),
        ("Above **0.41**", "Above 0.40", False),
        ("| -0.5 |", "0.5", False),
    ],
)
def test_markdown_and_the_page_that_shows_it_are_the_same_text(markdown, page, same):
    assert (expected.squash_markdown(markdown) == expected.squash(page)) is same


def tree(kind, *children, **more):
    return {"kind": kind, "children": list(children), **more}


def test_controls_are_what_a_reader_can_move():
    bar = tree("HBox", tree("HTML"), tree("FloatProgress", style="danger"))
    assert expected.controls_of(bar) == []
    assert [one["style"] for one in expected.find_kinds(bar, expected.PROGRESS)] == ["danger"]
    form = tree("VBox", tree("Dropdown"), tree("HBox", tree("Button"), tree("NewThing")))
    assert expected.controls_of(form) == ["Button", "Dropdown", "NewThing"]


def test_what_browse_shows():
    items = [["a\n b", "\n\r\ntext"], ["x" * 80, ""]]
    first, last = (expected.browse_state(items, index) for index in (0, 1))
    assert first == {"chosen": "1. a b", "counter": "1 / 2", "text": "\ntext",
                     "first": True, "last": False}  # fmt: skip
    assert last["chosen"] == "2. " + "x" * 70 and last["last"] and not last["first"]


def test_chromium_is_the_named_one_or_the_first_on_the_path():
    def which(name):
        return {"google-chrome": "/usr/bin/google-chrome", "mine": "/opt/mine"}.get(name)

    assert lab.find_chromium({}, which) == "/usr/bin/google-chrome"
    assert lab.find_chromium({"ALPACA_CHROMIUM": "mine"}, which) == "/opt/mine"
    assert lab.find_chromium({}, lambda name: None) is None  # playwright's own
    with pytest.raises(lab.MissingBrowserError, match=r"ALPACA_CHROMIUM=gone .* install"):
        lab.find_chromium({"ALPACA_CHROMIUM": "gone"}, which)


def test_a_missing_playwright_is_one_sentence_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setattr(lab.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(lab.MissingBrowserError, match=r'not installed; run .*"playwright>='):
        lab.require_playwright()


def test_the_copies_have_the_parameters_and_no_outputs(tmp_path):
    lab.copy_lessons(
        tmp_path, {"01_self_instruct": {"tasks_wanted": 4}, "03_full_finetune_fsdp": {}}
    )
    files = sorted((tmp_path / "notebooks").iterdir())
    assert [file.stem for file in files] == ["01_self_instruct", "03_full_finetune_fsdp"]
    book = nbformat.read(files[0], as_version=4)
    sources = [cell.source for cell in book.cells]
    (place,) = [n for n, source in enumerate(sources) if "tasks_wanted = 4" in source]
    assert "tasks_wanted: int" in sources[place - 1]
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert any((tmp_path / "images").glob("*.svg"))
    original = json.loads((lab.ROOT / "notebooks" / "01_self_instruct.ipynb").read_text("utf-8"))
    assert len(book.cells) == len(original["cells"]) + 1


def test_the_server_is_a_readers_and_keeps_to_its_folder(tmp_path):
    base = {"ALPACA_HEADLESS": "1", "PYTEST_CURRENT_TEST": "x", "JUPYTER_TOKEN": "t", "PATH": "p"}
    environment = lab.make_environment(base, tmp_path)
    assert not {"ALPACA_HEADLESS", "PYTEST_CURRENT_TEST", "JUPYTER_TOKEN"} & set(environment)
    inside = [value for name, value in environment.items() if name.endswith(("_DIR", "_RUNS"))]
    assert len(inside) == 6 and all(value.startswith(str(tmp_path)) for value in inside)
    assert environment["PATH"].endswith(f"{os.pathsep}p")
    server = lab.Lab(tmp_path)
    words = server.command()
    assert words[0] == sys.executable and "--ServerApp.ip=127.0.0.1" in words
    assert server.token in server.address("a.ipynb") and f":{server.port}/" in server.address("a")
    server.stop()  # nothing was started


def test_processes_end_by_their_ids():
    process = psutil.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    found = lab.remember([process])
    lab.end(found)
    assert len(found) == 1 and not process.is_running()
    assert lab.remember([process]) == set()
