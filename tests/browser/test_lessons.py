"""Each lesson in JupyterLab in a headless Chromium: all cells, each widget, what is shown."""

from __future__ import annotations

import time

import pytest

from alpaca_lib.course.notebooks import LESSONS
from tests.browser.moves import check_widgets

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module", params=LESSONS)
def lesson(request, open_page, pictures):
    """A lesson that has run, up to its end or to the cell that failed."""
    lesson = open_page(request.param)
    try:
        lesson.run()
        yield lesson
        lesson.save_screenshot(pictures / f"{request.param}.png")
    finally:
        lesson.close()


def test_every_cell_runs(lesson):
    assert not lesson.errors(), "\n\n".join(lesson.errors())
    assert lesson.state == "done"


def test_each_widget_shows_what_it_is_moved_to(lesson, say):
    if lesson.state != "done":
        pytest.skip("a cell has failed")
    start = time.monotonic()
    for line in check_widgets(lesson):
        say(line)
    say(f"{lesson.name}: ran in {lesson.seconds:.0f} s, moved in {time.monotonic() - start:.0f} s")


def test_nothing_is_broken_on_the_page(lesson):
    """All images are shown, amounts are no formulas, and neither page nor widgets report errors."""
    assert lesson.broken_images() == []
    assert lesson.formulas_in_tables() == []
    assert not lesson.complaints, "\n".join(lesson.complaints)
