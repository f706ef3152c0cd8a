"""The folders of runs: numbered, continued if unfinished, found by later lessons."""

import json
import subprocess
import sys

import pytest

from alpaca_lib.course import notebooks
from alpaca_lib.errors import RunError

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


def test_a_cell_that_runs_twice_continues_its_own_run():
    """The second time the kernel holds the folder itself, and later cells have set scalars."""
    names = {"__annotations__": {"steps": int}, "steps": 2}
    names["lesson"] = notebooks.start(NAME, names)
    names |= {"count": 7, "text": "of a later cell"}
    again = notebooks.start(NAME, names)
    assert again.continued and again.folder == names["lesson"].folder
    assert again.parameters == {"steps": 2}
    names["lesson"] = again
    again.record("done")
    assert notebooks.start(NAME, names).folder.name == "002"


def test_a_folder_that_cannot_be_written_says_what_to_do(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ALPACA_RUNS", str(tmp_path / "file"))
    with pytest.raises(RunError, match=r"cannot be written .*set ALPACA_RUNS to a folder"):
        begin(steps=2)


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


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project's folder in place of this one, with the kernel in its notebooks/."""
    root = tmp_path / "project"
    for folder in ("notebooks", "mymodel", "texts", "runs/ignored"):
        (root / folder).mkdir(parents=True)
    (root / "my.json").write_text("[]", encoding="utf-8")
    monkeypatch.setattr(notebooks, "REPO", root)
    monkeypatch.chdir(root / "notebooks")
    return root


@pytest.mark.parametrize("folder", ["notebooks", ".", "mymodel"])
def test_a_relative_path_is_the_projects_wherever_the_kernel_runs(project, monkeypatch, folder):
    monkeypatch.chdir(project / folder)
    assert notebooks.find_data("my.json") == project / "my.json"
    assert notebooks.find_data("./my.json") == project / "my.json"
    assert notebooks.find_data("texts") == project / "texts"
    assert notebooks.find_model("./mymodel") == str(project / "mymodel")
    assert notebooks.find_model("mymodel/") == str(project / "mymodel")
    assert notebooks.find_model(str(project / "mymodel")) == str(project / "mymodel")
    assert notebooks.find_data("none.json") == project / "none.json"


def test_a_path_of_runs_is_in_the_folder_of_all_outputs(project, runs):
    adapter = begin(steps=1).folder / "adapter"
    adapter.mkdir()
    shown = notebooks.shorten_path(adapter)
    assert shown == f"runs/{NAME}/001/adapter"  # what a table shows is what a parameter takes
    assert notebooks.find_model(shown) == str(adapter)
    assert notebooks.find_model("runs/ignored") == str(project / "runs" / "ignored")


def test_a_file_next_to_the_notebook_is_found_too(project):
    (project / "notebooks" / "beside.json").write_text("[]", encoding="utf-8")
    assert notebooks.find_data("beside.json") == project / "notebooks" / "beside.json"
    (project / "beside.json").write_text("[]", encoding="utf-8")
    assert notebooks.find_data("beside.json") == project / "beside.json"


@pytest.mark.parametrize("name", ["", "smollm2-135m", "owner/model", "runs/04/none/adapter"])
def test_a_name_that_is_no_path_stays(project, name):
    assert notebooks.find_model(name) == name


def test_the_embedded_model_is_not_a_folder_of_that_name(project):
    (project / "smollm2-135m").mkdir()
    assert notebooks.find_model("smollm2-135m") == "smollm2-135m"


def test_newest_of_a_model_is_not_that_of_another_one():
    for number, model in enumerate(("a", "a", "b"), start=1):
        lesson = begin(model=model, number=number)
        (lesson.folder / "regen.json").write_text("[]", encoding="utf-8")
        lesson.record("done")
    assert notebooks.find_newest(NAME, "regen.json").parent.name == "003"
    assert notebooks.find_newest(NAME, "regen.json", model="a").parent.name == "002"
    assert notebooks.find_newest(NAME, "regen.json", model="c") is None


def test_folders_are_counted_by_number_and_by_digits_alone(runs):
    """999 is followed by 1000; a file, a superscript digit and a name are no runs."""
    for name in ("999", "1000", "\u00b2", "1e3", "002-old"):
        (runs / NAME / name).mkdir(parents=True)
    (runs / NAME / "2000").write_text("")
    for name in ("999", "1000"):
        (runs / NAME / name / "result.json").write_text("{}")
        (runs / NAME / name / "regen.json").write_text("[]")
    assert notebooks.find_newest(NAME, "regen.json").parent.name == "1000"
    assert begin(steps=2).folder.name == "1001"


def test_kernels_that_start_together_have_folders_of_their_own(runs):
    """Eight processes, with equal parameters: eight folders, each locked by one."""
    code = (
        "import sys\nfrom alpaca_lib.course import notebooks\n"
        f"lesson = notebooks.start({NAME!r}, {{'steps': 2}})\n"
        "print('FOLDER', lesson.folder.name, flush=True)\nsys.stdin.read()\n"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for _ in range(8)
    ]
    names = []
    for process in running:
        names += [next(x.split()[1] for x in process.stdout if x.startswith("FOLDER"))]
    for process in running:
        process.stdin.close()
        process.wait(30)
    assert len(set(names)) == 8, names


def test_a_lesson_reads_what_its_own_run_made(monkeypatch):
    """With two runs at once, the newest folder may be the other one's."""
    mine = begin(steps=1)
    other = begin(steps=2)
    for lesson in (mine, other):
        (lesson.folder / "regen.json").write_text("[]", encoding="utf-8")
        lesson.record("done")
    assert notebooks.find_newest(NAME, "regen.json").parent == other.folder
    monkeypatch.setenv("ALPACA_RUN", json.dumps({"id": "a", "folders": {NAME: str(mine.folder)}}))
    assert notebooks.find_newest(NAME, "regen.json").parent == mine.folder
    assert notebooks.find_newest(NAME, "none.json") is None


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "7"])
def test_a_damaged_variable_is_no_run(text, monkeypatch):
    monkeypatch.setenv("ALPACA_RUN", text)
    assert begin(steps=2).folder.name == "001"


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
