"""Records: what is written is read back, and every bad file is named with the fix."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import pytest

from alpaca_lib.errors import DataError
from alpaca_lib.files import write_text
from alpaca_lib.records import (
    Conversation,
    Example,
    Turn,
    load_examples,
    load_records,
    save_examples,
)

ROW = {"instruction": "Name a colour.", "input": "", "output": "Blue."}
TEXTS = [
    "plain",
    "línea ü ß 你好 日本語 한국어 русский עברית 🦙",
    'quote " backslash \\ slash / tab \t',
    "line\nbreak and \r\n and \r alone",
    "line separator \u2028 paragraph separator \u2029 next line \u0085 form feed \x0c",
    "a zero \x00 and \x1f",
    "{braces} [brackets] ### 1. Instruction:",
    "  spaces around  ",
    "\ufeff a byte order mark inside",
]


def put(path, content):
    """Writes bytes or text as they are."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def message(path) -> str:
    """The text of the DataError that loading raises."""
    with pytest.raises(DataError) as caught:
        load_examples(path)
    return str(caught.value)


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@pytest.mark.parametrize("text", TEXTS)
def test_round_trip_of_difficult_text(tmp_path, suffix, text):
    """Any text in any field comes back as it was."""
    examples = [Example("x" + text, text, text), Example("Second.", "", text + text)]
    path = save_examples(examples, tmp_path / f"data{suffix}")
    assert load_examples(path) == examples
    assert path.read_bytes().decode("utf-8")  # no surrogate gets into the file


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_round_trip_keeps_other_keys_and_order(tmp_path, suffix):
    """Keys that are not the three fields are kept, with their values and types."""
    extra = {"id": 7, "tags": ["a", None], "check": {"words_max": 3}, "score": 0.1}
    examples = [Example(f"Task {n} of many.", "", str(n), {**extra, "n": n}) for n in range(30)]
    back = load_examples(save_examples(examples, tmp_path / f"d{suffix}"))
    assert back == examples
    assert [e.extra for e in back] == [e.extra for e in examples]


def test_json_is_readable_by_others(tmp_path):
    """The file is standard JSON with readable Unicode and three fields first."""
    path = save_examples([Example("你好吗？", "", "好", {"id": 1})], tmp_path / "d.json")
    text = path.read_text(encoding="utf-8")
    assert "你好吗？" in text
    row = json.loads(text)[0]
    assert list(row) == ["instruction", "input", "output", "id"]


def test_jsonl_is_one_line_a_row(tmp_path):
    """Each row is one line, whatever line breaks its text holds."""
    examples = [Example("a\nb", "c\r\nd", "e"), Example("f", "", "g")]
    path = save_examples(examples, tmp_path / "d.jsonl")
    lines = path.read_bytes().split(b"\n")
    assert len(lines) == 3 and lines[-1] == b""
    assert [json.loads(line)["instruction"] for line in lines[:2]] == ["a\nb", "f"]


@pytest.mark.parametrize("name", ["d.json", "d.jsonl"])
def test_byte_order_mark_and_windows_lines(tmp_path, name):
    """A file from a Windows editor loads as the plain one does."""
    text = json.dumps(ROW) + "\r\n" + json.dumps({**ROW, "output": "Red."}) + "\r\n"
    if name == "d.json":
        text = "[\r\n" + text.strip().replace("\r\n", ",\r\n") + "\r\n]\r\n"
    path = put(tmp_path / name, b"\xef\xbb\xbf" + text.encode())
    assert [e.output for e in load_examples(path)] == ["Blue.", "Red."]


def test_extra_keys_never_replace_a_field():
    """An `extra` with a field's name does not overwrite the field."""
    assert Example("a", "b", "c", {"output": "no", "x": 1}).to_dict() == {
        "instruction": "a", "input": "b", "output": "c", "x": 1,
    }  # fmt: skip


def test_missing_input_is_empty_and_a_missing_output_is_named(tmp_path):
    """A row needs no input; without output it loads only where answers are not needed."""
    path = put(tmp_path / "d.jsonl", '{"instruction": "Only this."}\n\n   \n')
    assert load_examples(path, answers="optional") == [Example("Only this.", "", "")]
    assert "row 1 (line 1) has no `output` (it has `instruction`)" in message(path)
    path = put(tmp_path / "e.jsonl", '{"instruction": "Only this.", "output": ""}')
    assert load_examples(path) == [Example("Only this.", "", "")]


def test_a_file_without_a_known_suffix_is_read_by_its_shape(tmp_path):
    """A .txt file is an array if it begins with [, else one row a line."""
    assert len(load_examples(put(tmp_path / "a.txt", json.dumps([ROW, ROW])))) == 2
    assert len(load_examples(put(tmp_path / "b.txt", json.dumps(ROW) + "\n"))) == 1


# --- seed tasks ---------------------------------------------------------------------


def test_seed_task_schema(tmp_path):
    """A Self-Instruct seed row gives its first instance; its other keys are kept."""
    row = {
        "id": "seed_task_0",
        "instruction": "Add the numbers.",
        "instances": [{"input": "1, 2", "output": "3"}, {"input": "2, 2", "output": "4"}],
        "is_classification": False,
    }
    (example,) = load_examples(put(tmp_path / "seed.jsonl", json.dumps(row) + "\n"))
    assert example == Example("Add the numbers.", "1, 2", "3")
    assert example.extra == {"id": "seed_task_0", "is_classification": False}


@pytest.mark.parametrize("instances", [[], {}, "text", None, ["text"], [None]])
def test_seed_task_with_bad_instances(tmp_path, instances):
    """`instances` that hold no instance are named with their line."""
    row = {"instruction": "Add the numbers.", "instances": instances}
    text = message(put(tmp_path / "seed.jsonl", json.dumps(ROW) + "\n" + json.dumps(row)))
    assert "seed.jsonl" in text and "line 2" in text and "instance" in text


def test_the_courses_own_files_load(repository):
    """Every shipped data set loads; the number in its name is its number of rows."""
    files = sorted((repository / "data").glob("*_[0-9]*[0-9].json"))
    assert files
    for file in files:
        assert len(load_examples(file)) == int(file.stem.rsplit("_", 1)[1]), file.name
    seeds = load_examples(repository / "data" / "seed_tasks.jsonl")
    assert len(seeds) == 175 and all(seed.output for seed in seeds)


# --- bad files ----------------------------------------------------------------------


def test_missing_file_names_the_files_nearby(tmp_path):
    """A wrong name is answered with the data files of that folder."""
    put(tmp_path / "alpaca_data.json", "[]")
    put(tmp_path / "notes.txt", "")
    text = message(tmp_path / "alpaca.json")
    assert "alpaca.json" in text and "alpaca_data.json" in text
    assert "notes.txt" not in text


def test_missing_folder_is_named(tmp_path):
    """If the folder is not there either, that is said."""
    assert str(tmp_path / "nowhere") in message(tmp_path / "nowhere" / "a.json")


def test_a_file_where_a_folder_is_needed(tmp_path):
    """A path that goes through a file is a DataError like any other missing file."""
    put(tmp_path / "a.json", "[]")
    assert "a.json" in message(tmp_path / "a.json" / "b.json")


def test_folder_instead_of_a_file(tmp_path):
    """A folder is called a folder."""
    assert "folder" in message(tmp_path) and str(tmp_path) in message(tmp_path)


@pytest.mark.parametrize("content", ["", " \n\n\t ", "\ufeff"])
@pytest.mark.parametrize("name", ["d.json", "d.jsonl"])
def test_empty_file(tmp_path, name, content):
    """A file of nothing or blanks is called empty."""
    text = message(put(tmp_path / name, content))
    assert name in text and "empty" in text


def test_empty_array(tmp_path):
    """An array without rows is refused."""
    assert "no rows" in message(put(tmp_path / "d.json", "[ ]"))


def test_not_json_names_the_line(tmp_path):
    """The line of a syntax error is the file's line."""
    good = json.dumps(ROW)
    text = message(put(tmp_path / "d.json", f"[\n{good},\n{good},\n{{'single': 1}}\n]"))
    assert "d.json, line 4" in text and "not JSON" in text
    text = message(put(tmp_path / "d.jsonl", f"{good}\n\n{good}\n{good[:-3]}\n{good}\n"))
    assert "d.jsonl, line 4" in text and "not JSON" in text


@pytest.mark.parametrize("value", ["[" * 100_000, "1" * 5000])
def test_json_that_python_cannot_read(tmp_path, value):
    """Absurd nesting and numbers are DataErrors with a line, not crashes."""
    text = message(put(tmp_path / "d.jsonl", f'{json.dumps(ROW)}\n{{"instruction": {value}\n'))
    assert "d.jsonl" in text and "line 2" in text


def test_object_instead_of_an_array(tmp_path):
    """One key holds the rows, or the object is a row; two keys with rows are not guessed."""
    path = put(tmp_path / "d.json", json.dumps({"data": [ROW]}, indent=1))
    assert load_examples(path)[0].output == "Blue."
    assert load_examples(put(path, json.dumps(ROW)))[0].output == "Blue."
    text = message(put(path, json.dumps({"a": [ROW], "b": [ROW]})))
    assert "d.json: is an object (it has `a`, `b`), not an array of rows" in text


@pytest.mark.parametrize("rows", [1, 3])
def test_json_lines_named_json(tmp_path, rows):
    """The form is found from the content."""
    path = put(tmp_path / "d.json", (json.dumps(ROW) + "\n") * rows)
    assert len(load_examples(path)) == rows


@pytest.mark.parametrize("indent", [None, 2])
def test_array_named_jsonl(tmp_path, indent):
    """The form is found from the content, on one line or many."""
    path = put(tmp_path / "d.jsonl", json.dumps([ROW, ROW], indent=indent))
    assert len(load_examples(path)) == 2


BAD_ROWS = [
    ({"prompt": "x", "completion": "y"}, ["layout Alpaca, and", "prompt/completion"]),
    ({}, ["no `instruction`"]),
    ({**ROW, "instruction": ""}, ["empty `instruction`"]),
    ({**ROW, "instruction": " \n"}, ["empty `instruction`"]),
    ({**ROW, "instruction": None}, ["`instruction`", "null"]),
    ({**ROW, "input": None}, ["`input`", "null"]),
    ({**ROW, "output": None}, ["`output`", "null"]),
    ({**ROW, "output": 5}, ["`output`", "5"]),
    ({**ROW, "output": 2.5}, ["`output`", "2.5"]),
    ({**ROW, "output": True}, ["`output`", "true or false"]),
    ({**ROW, "output": ["a"]}, ["`output`", "a list"]),
    ({**ROW, "input": {"a": 1}}, ["`input`", "an object"]),
    ("text", ["text", "not an object"]),
    (None, ["null"]),
    ([ROW], ["a list"]),
]


@pytest.mark.parametrize("row, parts", BAD_ROWS)
def test_bad_row(tmp_path, row, parts):
    """A bad row is named by file, number and fault, in both formats."""
    array = "[\n  " + json.dumps(ROW) + ",\n\n  " + json.dumps(row) + "\n]\n"
    text = message(put(tmp_path / "d.json", array))
    for part in ["d.json", "row 2", "line 4", *parts]:
        assert part in text
    text = message(put(tmp_path / "d.jsonl", json.dumps(ROW) + "\n" + json.dumps(row) + "\n"))
    for part in ["d.jsonl", "line 2", *parts]:
        assert part in text


def test_row_lines_are_right_in_an_indented_file(tmp_path):
    """The line of a row is where the row begins, also after rows of many lines."""
    rows = [ROW, {**ROW, "output": "two\nlines", "x": {"y": [1, 2]}}, {"bad": 1}, ROW, {"bad": 2}]
    content = json.dumps(rows, indent=4)
    wanted = [n for n, line in enumerate(content.split("\n"), 1) if line == "    {"]
    text = message(put(tmp_path / "d.json", content))
    assert f"row 3 (line {wanted[2]})" in text and f"row 5 (line {wanted[4]})" in text


def test_several_bad_rows_are_listed_and_the_rest_counted(tmp_path):
    """Five faults are shown, further ones counted; no good row is blamed."""
    lines = [json.dumps(ROW if n % 2 else {"n": n}) for n in range(20)]  # ten are bad
    text = message(put(tmp_path / "d.jsonl", "\n".join(lines)))
    assert [n for n in range(1, 21) if f"row {n} (line {n}) " in text] == [1, 3, 5, 7, 9]
    assert "5 more" in text


@pytest.mark.parametrize("name", ["d.json", "d.jsonl"])
def test_wrong_encoding_names_the_line(tmp_path, name):
    """A file in GBK or Latin-1 is refused with the line of the first bad byte."""
    good = json.dumps(ROW).encode()
    path = put(
        tmp_path / name, good + b"\n" + good + b"\n" + '{"instruction": "é"}'.encode("cp1252")
    )
    text = message(path)
    assert f"{name}, line 3" in text and "UTF-8" in text and "0xe9" in text


def test_utf16_file(tmp_path):
    """A UTF-16 file (Windows' "Unicode") is a DataError too."""
    assert "UTF-8" in message(put(tmp_path / "d.json", json.dumps([ROW]).encode("utf-16")))


# --- writing ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["d.txt", "d", "d.json.gz", "d.csv"])
def test_unknown_suffix_is_refused_before_writing(tmp_path, name):
    """A name whose format is not known is refused, and nothing is written."""
    with pytest.raises(DataError, match=r"\.jsonl"):
        save_examples([Example("a")], tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_missing_folders_are_made(tmp_path):
    """Saving makes the folders on the way."""
    assert save_examples([Example("a")], tmp_path / "x" / "y" / "d.json").is_file()


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch, step):
    """A disk that refuses leaves the old file and no other file."""
    path = save_examples([Example("old")], tmp_path / "d.json")
    before = path.read_bytes()

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, refuse)
    with pytest.raises(OSError, match="No space"):
        save_examples([Example("new")], path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["d.json"]


def test_write_that_the_system_cuts_off(tmp_path):
    """With a real limit on file size, the old file stays complete and alone."""
    resource = pytest.importorskip("resource")
    assert resource
    path = save_examples([Example("old")], tmp_path / "d.json")
    code = (
        "import resource, sys\n"
        "from alpaca_lib.records import Example, save_examples\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "save_examples([Example('new ' * 50)] * 500, sys.argv[1])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert done.returncode != 0 and "File too large" in done.stderr
    assert load_examples(path) == [Example("old")]
    assert [p.name for p in tmp_path.iterdir()] == ["d.json"]


def test_row_that_cannot_be_json(tmp_path):
    """A value that JSON cannot hold fails before the file is touched."""
    path = save_examples([Example("old")], tmp_path / "d.jsonl")
    with pytest.raises(TypeError):
        save_examples([Example("good"), Example("bad", extra={"x": object()})], path)
    assert load_examples(path) == [Example("old")]
    assert [p.name for p in tmp_path.iterdir()] == ["d.jsonl"]


def test_target_that_is_a_folder(tmp_path):
    """A folder in the place of the file: an error, and no temporary file stays."""
    (tmp_path / "d.json").mkdir()
    with pytest.raises(OSError):
        save_examples([Example("new")], tmp_path / "d.json")
    assert [p.name for p in tmp_path.iterdir()] == ["d.json"]


def test_write_text_keeps_line_breaks(tmp_path):
    """Line breaks are written as given on every system."""
    path = write_text(tmp_path / "t.txt", "a\nb\r\nc")
    assert path.read_bytes() == b"a\nb\r\nc"


@pytest.mark.parametrize("column", ["image", "messages", "conversations", "functions", "Audio"])
def test_more_columns_that_no_prompt_shows(tmp_path, column):
    path = tmp_path / "rows.json"
    row = {"instruction": "Say hello.", "input": "", "output": "Hi."}
    path.write_text(json.dumps([{**row, column: [{"role": "user", "content": "x"}]}]))
    with pytest.raises(DataError, match=f"row 1 .*`{column}`.*unused[^$]*--drop {column}"):
        load_examples(path)
    path.write_text(json.dumps([{**row, column: []}]))
    assert load_examples(path)[0].output == "Hi."


@pytest.mark.parametrize(("field", "other"), [("input", "context"), ("output", "response")])
def test_text_beside_an_empty_field(tmp_path, field, other):
    """The text that a field should hold stands under another name: it would be lost."""
    path = tmp_path / "rows.json"
    row = {"instruction": "Say hello.", "input": "x", "output": "y", field: "", other: "text"}
    path.write_text(json.dumps([row]))
    with pytest.raises(DataError, match=f"empty `{field}`, but text in `{other}`"):
        load_examples(path)
    path.write_text(json.dumps([{**row, field: "x"}]))
    assert load_examples(path)[0].instruction == "Say hello."


@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_conversations_load(tmp_path, column):
    """One question and answer is an Example, more is a Conversation, which examples refuse."""
    said = [{"role": role, "content": role} for role in ("user", "assistant")]
    path = put(tmp_path / "rows.json", json.dumps([{column: said, "id": 1}, {column: said * 2}]))
    one, two = load_records(path)
    assert one == Example("user", "", "assistant") and one.extra == {"id": 1}
    assert two == Conversation((Turn("user", "user"), Turn("assistant", "assistant")) * 2)
    assert "row 2 (line 1) is a conversation (4 turns)" in message(path)
    assert load_examples(path, turns="each") == [one] * 3
    put(path, json.dumps([{column: said}, {column: said[:1]}]))
    assert "row 2 (line 1) has a last message without an answer" in message(path)
    assert [e.output for e in load_examples(path, answers="optional")] == ["assistant", ""]
