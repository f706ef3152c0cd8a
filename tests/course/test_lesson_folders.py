"""The folders of runs: numbered, continued if unfinished, found by later lessons."""

import json

import pytest

from alpaca_lib.course import notebooks

NAME = "01_self_instruct"


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("ALPACA_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def begin(**parameters):
    lesson = notebooks.start(NAME, {"In": [], "_hidden": 1, "torch": json, **parameters})
    lesson._lock.release()  # as if this kernel had ended
    return lesson


def test_parameters_are_the_scalars_that_the_cell_set():
    lesson = begin(model="a", steps=2, rate=0.5, flag=True)
    assert lesson.parameters == {"model": "a", "steps": 2, "rate": 0.5, "flag": True}
    saved = json.loads((lesson.folder / "parameters.json").read_text(encoding="utf-8"))
    assert saved == lesson.parameters


def test_an_unfinished_run_is_continued_with_the_same_parameters_only():
    first = begin(steps=2)
    again = begin(steps=2)
    other = begin(steps=3)
    assert again.continued and again.folder == first.folder
    assert not other.continued and other.folder.name == "002"


def test_a_finished_run_is_left_alone():
    first = begin(steps=2)
    first.record("done", loss=1.5)
    second = begin(steps=2)
    assert not second.continued
    assert second.folder.name == "002"


def test_a_run_that_another_kernel_holds_is_not_continued():
    held = notebooks.start(NAME, {"steps": 2})
    second = notebooks.start(NAME, {"steps": 2})
    assert second.folder != held.folder


def test_newest_is_the_newest_finished_run_that_has_the_file():
    assert notebooks.find_newest(NAME, "regen.json") is None
    for number in (1, 2, 3):
        lesson = begin(steps=number)
        if number != 2:
            (lesson.folder / "regen.json").write_text("[]", encoding="utf-8")
        if number != 3:
            lesson.record("done")
    assert notebooks.find_newest(NAME, "regen.json").parent.name == "001"


def test_an_unknown_lesson_is_an_error_with_the_names():
    with pytest.raises(ValueError, match=r"no lesson '06'.*01_self_instruct"):
        notebooks.start("06", {})


def test_a_table_survives_bars_and_line_breaks(capsys):
    notebooks.show_table(["a"], [["x | y\nz"]])
    assert notebooks._cell("x | y\nz") == "x \\| y<br>z"


HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "`<script>alert(1)</script>`",
    "``` \n<script>alert(1)</script>\n```",
    "</code><svg/onload=alert(1)>",
    "<!-- --><iframe src='javascript:alert(1)'>",
    "\\<script>alert(1)</script>",
    "| a |\n\n<details open ontoggle=alert(1)>",
    "<scr<script>ipt>alert(1)</script>",
    "[a](javascript:alert(1))",
    "[a](<javascript:alert(1)>)",
    "[a](&#106;avascript:alert(1))",
    "[a](  JavaScript:alert(1))",
    "[a][b]\n\n[b]: javascript:alert(1)",
    "![a](data:text/html,<script>alert(1)</script>)",
    "<javascript:alert(1)>",
    "![a](x\" onerror=\"alert(1))",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("way", ["say", "table", "markup"])
def test_html_of_the_data_is_not_run(monkeypatch, text, way):
    """What nbconvert and Jupyter make of it has no element, attribute or link that runs code."""
    from html.parser import HTMLParser

    import IPython.display
    from nbconvert.filters.markdown import markdown2html

    shown = []
    monkeypatch.setattr(IPython.display, "display", lambda one: shown.append(one.data))
    if way == "say":
        notebooks.say(f"The longest answer is to *{text}*")
    else:
        cell = notebooks.Markup(f"`{text}`") if way == "markup" else text
        notebooks.show_table(["a"], [[cell]])
    found = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attributes):
            found.append((tag, dict(attributes)))

    Reader().feed(markdown2html(shown[0]))
    for tag, attributes in found:
        assert tag not in ("script", "svg", "iframe", "details"), (tag, attributes)
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        links = attributes.get("href", "") or "", attributes.get("src", "") or ""
        assert not any(link.strip().lower().startswith(("java", "data")) for link in links)


def test_links_of_the_web_and_of_the_folder_stay(monkeypatch):
    import IPython.display

    shown = []
    monkeypatch.setattr(IPython.display, "display", lambda one: shown.append(one.data))
    text = "See [the page](https://a.example/b), [lesson 03](03_full_finetune_fsdp.ipynb), 2 < 3."
    notebooks.say(text)
    assert shown == [text]
