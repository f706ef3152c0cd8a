"""The checks of the browser's tests see faults: each cell here has one."""

import nbformat
import pytest

from tests.browser.moves import check_cell

pytestmark = pytest.mark.browser
SETUP = """
import itertools
import ipywidgets
from IPython.utils.capture import capture_output
from alpaca_lib.course import notebooks as course
from alpaca_lib.course import widgets
count = itertools.count()
"""
FAULTS = {
    "drifts": (
        'widgets.show_slider(lambda x: course.say(f"{x} {next(count)}"), "x", 0, 10, 1, 2)',
        "the output at 2",
    ),
    "same": (
        'widgets.show_slider(lambda x: course.say("always"), "x", 0, 10, 1, 2)',
        "the output is another one",
    ),
    "wide": (
        "widgets.show_slider(\n"
        '    lambda x: course.show_table(["column"] * 60, [[x] * 60]), "x", 0, 10, 1, 2)',
        "too wide",
    ),
    "unknown": (
        "ipywidgets.IntText(3)",
        r"a widget of \['IntText'\] without a call",
    ),
    "absent": (
        'with capture_output():\n    widgets.browse([("a", "b")], "rows")',
        r"\['browse'\] showed no widget",
    ),
    "other": (
        "class Items(list):  # gives something else each time\n"
        "    def __getitem__(self, index):\n"
        '        return ("a", str(next(count)))\n'
        'widgets.browse(Items([("a", "x"), ("a", "x")]), "rows")',
        "at first",
    ),
}


PAGE_FAULTS = r"""
from IPython.display import Markdown, display
display(Markdown("| cost |\n| --- |\n| \\$2 to \\$3 |"))
display(Markdown("![not there](nowhere.png)"))
course.show_table(["cost"], [["$4 to $5"]])
"""


def write_notebook(folder, name, cells):
    """Writes a notebook of {id: code}."""
    made = [nbformat.v4.new_code_cell(code, id=key) for key, code in cells.items()]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    book = nbformat.v4.new_notebook(cells=made, metadata=kernel)
    nbformat.write(book, folder / "notebooks" / f"{name}.ipynb")


@pytest.fixture(scope="module")
def faulty(lab, open_page):
    """A notebook with a fault in each cell but the first, which has run."""
    cells = {"setup": SETUP} | {name: code for name, (code, _) in FAULTS.items()}
    write_notebook(lab.folder, "faulty", cells | {"page": PAGE_FAULTS})
    page = open_page("faulty")
    try:
        page.run()
        page.patience = 5.0
        yield page
    finally:
        page.close()


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_seen(faulty, name):
    assert faulty.state == "done" and not faulty.errors()
    (cell,) = [cell for cell in faulty.cells() if cell["id"] == name]
    with pytest.raises(AssertionError, match=FAULTS[name][1]):
        check_cell(faulty, cell, faulty.calls())


def test_faults_of_the_page_are_seen(faulty):
    """Amounts that are shown as a formula (our tables' are not), and a missing image."""
    faulty.wait(lambda: len(faulty.broken_images()), 1, "the missing image")
    assert "nowhere.png" in faulty.broken_images()[0]
    faulty.wait(lambda: len(faulty.formulas_in_tables()), 1, "an amount")
    assert any("nowhere.png" in text for text in faulty.complaints)


def test_an_error_of_a_cell_is_seen(lab, open_page):
    write_notebook(lab.folder, "broken", {"broken": "1 / 0"})
    page = open_page("broken")
    try:
        page.run()
        assert page.state != "done"
        assert "broken: ZeroDivisionError" in page.errors()[0]
    finally:
        page.close()
