"""The report and the card: complete, self-contained, and safe against what the data holds."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from alpaca_lib.dataset.__main__ import main
from alpaca_lib.dataset.card import UNKNOWN, data_card
from alpaca_lib.dataset.html_report import render_report
from alpaca_lib.records import Example, save_examples

ROWS = [
    Example("Name a warm colour of autumn.", "", "Orange."),
    Example("Name one warm colour of autumn.", "none", "Red <script>alert(1)</script>"),
    Example("Write a note to <b>Ida</b>.", "She is ill.", "Dear Ida, get well soon."),
    Example("How tall is an oak?", "", ""),
]
HELD_OUT = {"held.json": [Example("Name a warm colour of late autumn.", "", "Brown.")]}


class Page(HTMLParser):
    """Collects tags, their sources, and the text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.sources, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.text += data


def test_report_is_self_contained_and_escaped():
    """Every figure is inside the page, nothing is fetched, and no text of the data is a tag."""
    steps = []
    page = Page(render_report(ROWS, "my <set>", HELD_OUT, progress=steps.append))
    assert page.tags.count("img") == 4 and len(steps) == 3
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert "script" not in page.tags and "b" in page.tags and "my <set>" in page.text
    assert "2 instructions in 1 groups" in page.text
    assert "word for no input: 1 rows" in page.text and "empty output: 1 rows" in page.text
    assert "placeholder:" not in page.text


def test_report_of_the_smallest_and_of_chinese_sets():
    """One row, no input, no verb: a page all the same."""
    for rows in ([ROWS[3]], [Example("请写一首关于秋天的诗。", "", "秋风起，黄叶落。")]):
        assert Page(render_report(rows, "tiny")).tags.count("img") == 4


def test_card_says_what_is_known_and_what_is_not():
    """Numbers are computed; what nobody stated is named as unknown."""
    text = data_card(ROWS, "my.json", licence="CC BY 4.0", evaluation=HELD_OUT)
    assert "**Licence:** CC BY 4.0" in text and f"**Provenance:** {UNKNOWN}" in text
    assert "| Rows | 4 |" in text
    assert "2 of 4 instructions are joined in 1 groups" in text
    assert re.search(r"`held.json`: 2 rows above ROUGE-L 0.7 .* highest is 0.9", text)
    assert "| empty output | 1 |" in text
    assert "No detector fires." in data_card(ROWS[:1], "one.json")
    assert "Compared with no evaluation set." in data_card(ROWS[:1], "one.json")


def test_commands_write_next_to_the_file(tmp_path, capsys):
    """report and card, with and without a name for the result; a missing file is exit 2."""
    path = save_examples(ROWS, tmp_path / "my.json")
    held = save_examples(HELD_OUT["held.json"], tmp_path / "held.json")
    assert main(["report", str(path), "--apart", str(held)]) == 0
    assert "<img" in (tmp_path / "my.html").read_text(encoding="utf-8")
    assert main(["card", str(path), "--licence", "CC0", "--out", str(tmp_path / "CARD.md")]) == 0
    assert "CC0" in (tmp_path / "CARD.md").read_text(encoding="utf-8")
    assert str(tmp_path / "CARD.md") in capsys.readouterr().out
    assert main(["card", str(tmp_path / "none.json")]) == 2


def test_no_text_of_a_set_becomes_markup():
    """Scripts in every field, category and name: the page has the tags of a harmless one."""
    evil = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>]]></style></title>"
    plain = [Example(f"Name colour {n}.", "", "N/A") for n in range(3)]
    given = f"none {evil} see http://{evil}"
    rows = [Example(f"{evil} name {n}.", given, f"N/A {evil}", {evil: evil}) for n in range(3)]
    page = Page(render_report(rows, evil, {evil: rows}))
    known = {*Page(render_report(plain, "plain", {"held": plain})).tags, "br", "mark", "span", "p"}
    assert set(page.tags) <= known | {"details", "summary"}
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
