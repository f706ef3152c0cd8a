"""The figures that are redrawn during a run, and a sequence whose counted tokens are marked."""

import json
import re
from types import SimpleNamespace

import matplotlib.pyplot
import PIL.Image
import pytest

from alpaca_lib.course import notebooks, plots, widgets


@pytest.fixture
def shown(monkeypatch):
    """What IPython would display, in order."""
    found = []

    def display(what, display_id=None, **options):
        found.append(what)
        return Handle(found) if display_id else None

    monkeypatch.setattr("IPython.display.display", display)
    return found


@pytest.fixture
def drawn(monkeypatch, shown):
    """The figures that a reader would see, in order."""
    found = []

    def render(figure):
        found.append(figure)
        return b"a png"

    monkeypatch.setattr(plots, "is_headless", lambda: False)
    monkeypatch.setattr(plots, "_render", render)
    yield found
    assert [image.data for image in shown] == [b"a png"] * len(found)


class Handle:
    def __init__(self, found):
        self.found = found

    def update(self, figure):
        self.found.append(figure)


def step(number, loss=2.0):
    return {
        "step": number, "loss": loss, "lr": 1e-5, "tokens_per_second": 300.0, "mfu": 0.4,
        "peak_memory_bytes": 3e9, "seconds_left": 40.0,
    }  # fmt: skip


def held(number):
    return {"step": number, "validation_loss": 2.5}


def test_steps_that_are_taken_again_take_the_place_of_the_lost_ones(tmp_path):
    live = plots.LiveLosses(tmp_path)
    for line in (held(0), step(1), step(2), step(3, 9.0), step(2, 2.1), step(3), held(3)):
        live.update(line)
    assert live.items == [held(0), step(1), step(2, 2.1), step(3), held(3)]


def test_it_is_silent_where_nobody_watches(tmp_path, shown):
    plots.LiveLosses(tmp_path, every=0.0).update(step(1))  # a test is headless
    assert shown == []


def test_a_reader_sees_one_figure_that_grows_below_the_newest_line(tmp_path, drawn):
    (tmp_path / "run.json").write_text(json.dumps({"steps": 12}), encoding="utf-8")
    live = plots.LiveLosses(tmp_path, every=0.0)
    live.update(step(1))
    live.update(step(2, 1.75))
    first, second = (figure.axes[0] for figure in drawn)
    assert len(first.lines[0].get_xdata()) == 1
    assert list(second.lines[0].get_ydata()) == [2.0, 1.75]
    assert "step 2/12" in second.get_title() and "300 tokens/s" in second.get_title()
    live.every = 60.0
    live.update(step(3))  # too soon: kept, not drawn
    assert len(drawn) == 2 and len(live.items) == 3
    live.update(step(12))  # the end is drawn at once
    assert list(drawn[-1].axes[0].lines[0].get_xdata()) == [1, 2, 3, 12]


def test_the_tasks_of_a_single_reply_are_an_area_and_the_last_reply_is_drawn(drawn):
    live = plots.LiveAcceptance(every=60.0)
    for kept in (3, 5, 8):
        live.update(SimpleNamespace(kept=kept, wanted=8, rejected={"too short": 1}))
    first, last = (figure.axes[0].collections for figure in drawn)  # 5 came too soon
    areas = [[part.get_datalim(part.axes.transData) for part in parts] for parts in (first, last)]
    assert [(box.x0, box.x1, box.y1) for box in areas[0]] == [(0, 1, 3), (0, 1, 4)]
    assert [(box.x1, box.y1) for box in areas[1]] == [(3, 8), (3, 9)]


def test_dollars_of_a_table_cannot_be_read_as_a_formula(shown):
    notebooks.show_table(["cost"], [["$2 to $3"]])
    (table,) = shown
    assert r"| <span>\$</span>2 to <span>\$</span>3 |" in table.data


def test_pyplot_cannot_close_a_figure_that_a_slider_draws_in_another_thread(tmp_path, shown):
    """As the end of any cell does: IPython closes all figures of pyplot."""
    figure, axes = plots.matrices({"D": [[0.0, 1.0]]}, "title")
    curve, _ = plots.figure("title", "x", "y")
    matplotlib.pyplot.close("all")
    assert not matplotlib.pyplot.get_fignums()
    axes[0].set_title("kept")
    for fig in (figure, curve):
        path = plots.finish(fig, "figure", tmp_path, alt="what it shows")
        assert len(PIL.Image.open(path).convert("RGB").getcolors(10**6)) > 1
    assert [image.alt for image in shown] == ["what it shows"] * 2


def test_counted_tokens_are_marked_in_colour_in_bold_and_in_plain_text(shown):
    widgets.show_tokens(["### Response:", "\n", "A<b", " <|end|>"], [False, False, True, True])
    (bundle,) = shown
    assert bundle["text/plain"].split() == ["###·Response:", "⏎", "[A<b]", "[·<|end|>]"]
    assert "A<b" not in bundle["text/html"]  # escaped: a token may look like a tag
    bare = re.sub(r' style=("[^"]*"|\'[^\']*\')', "", bundle["text/html"])  # as GitHub shows it
    assert bare.count("<b><code>") == 2
    assert "<b><code>A&lt;b</code></b>" in bare and " <code>⏎</code><br>" in bare


def test_a_mark_is_missing_for_no_token(shown):
    with pytest.raises(ValueError):
        widgets.show_tokens(["a", "b"], [True])
