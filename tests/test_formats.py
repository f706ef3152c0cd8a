"""Files of columns: read in the right columns, or refused with the option to give."""

from __future__ import annotations

import csv
import json
import os
import random
import shlex
import socket
import time

import pytest

from alpaca_lib.cli import main
from alpaca_lib.errors import AlpacaError, DataError, UsageError
from alpaca_lib.formats import convert_rows, detect_columns, read_table
from alpaca_lib.records import Conversation, Example, Turn, load_examples, load_records
from alpaca_lib.training.examples import load_data
from alpaca_lib.training.settings import Settings

ASK, MATERIAL, ANSWER = "Say what a kettle is for.", "It is of steel.", "To boil water."
# (instruction, input, output) under the names that public files use
LAYOUTS = {
    "Dolly": ("instruction", "context", "response"),
    "answer": ("instruction", "input", "answer"),
    "question": ("question", "context", "answer"),
    "query": ("query", "input", "response"),
    "prompt": ("prompt", "input", "completion"),
    "Chinese": ("指令", "输入", "输出"),
    "Chinese questions": ("问题", "输入", "回答"),
    "capitals": ("Instruction", "Input", "Output"),
    "blanks": (" instruction", "input", "response "),
}


def row(names, *values):
    """A row with these columns, and one that is nobody's."""
    return {**dict(zip(names, values, strict=False)), "category": "kitchen"}


def write(path, rows, delimiter=","):
    """Writes rows in the format of a path's suffix."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    elif path.suffix == ".parquet":
        arrow = pytest.importorskip("pyarrow")
        import pyarrow.parquet

        pyarrow.parquet.write_table(arrow.Table.from_pylist(rows), path)
    else:
        with open(path, "w", encoding="utf-8", newline="") as stream:
            table = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
            table.writeheader()
            table.writerows(rows)
    return path


def refusal(path, answers="required"):
    """The text of the loader's error."""
    with pytest.raises(DataError) as caught:
        load_examples(path, answers)
    return str(caught.value)


def suggested(text):
    """The words of the command that an error names."""
    line = next(part for part in text.split("\n") if "alpaca convert" in part)
    return shlex.split(line[line.index("alpaca convert") :])[1:]


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_loads_and_converts(tmp_path, capsys, layout, suffix):
    """The loader and the command give the same three texts, and keep what is nobody's."""
    names = LAYOUTS[layout]
    rows = [row(names, ASK, MATERIAL, ANSWER), row(names, ASK + " Now.", "", "Water.")]
    path = write(tmp_path / f"d{suffix}", rows)
    wanted = [Example(ASK, MATERIAL, ANSWER), Example(ASK + " Now.", "", "Water.")]
    assert main(["convert", str(path), "--out", str(tmp_path / "o.json")]) == 0
    out = capsys.readouterr().out
    assert f"{path}: " in out and "2 rows, all answered" in out and "`category`" in out
    for made in (load_examples(path), load_examples(tmp_path / "o.json")):
        assert made == wanted
        assert made[0].extra == {"category": "kitchen"}


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_tables_load_and_convert(tmp_path, suffix):
    """CSV, TSV and Parquet: the same rows, with commas, quotes and line breaks in the cells."""
    answer = 'It "boils",\nso to speak;\tand hums.'
    names = LAYOUTS["Dolly"]
    rows = [row(names, ASK, MATERIAL, answer), row(names, ASK + " Now.", "", "007")]
    path = write(tmp_path / f"d{suffix}", rows, "\t" if suffix == ".tsv" else ",")
    assert main(["convert", str(path), "--out", str(tmp_path / "o.jsonl")]) == 0
    for made in (load_examples(path), load_examples(tmp_path / "o.jsonl")):
        assert [(e.input, e.output) for e in made] == [(MATERIAL, answer), ("", "007")]


def test_a_table_of_an_excel_in_europe(tmp_path):
    """Semicolons, a byte order mark and Windows lines."""
    path = tmp_path / "d.csv"
    path.write_bytes('\ufeffquestion;answer\r\n"a; b?";Yes, it is.\r\n'.encode())
    table = read_table(path)
    assert table.rows == [{"question": "a; b?", "answer": "Yes, it is."}] and table.lines == [2]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("question,answer\na,b\nc\n", ["row 2 (line 3)", "1 cells", "header 2"]),
        ("question,answer\na,b,c\n", ["row 1 (line 2)", "3 cells"]),
        ("question,answer\na,\"b\n", ["line 2", "not CSV"]),
        ("question,question\na,b\n", ["two columns `question`"]),
        ("question,answer\n", ["no rows"]),
        ("colour,shade\nred,dark\n", ["`colour`, `shade`", "--map instruction=COLUMN"]),
        ("question,answer,response\na,b,c\n", ["`answer`, `response`", "--map output=answer"]),
        ("instruction,ouput\na,b\n", ["`ouput`", "--map output=ouput"]),
        ("instruction,output\n,b\n", ["row 1 (line 2)", "empty `instruction`"]),
    ],
)  # fmt: skip
def test_a_table_that_is_not_clear_is_refused(tmp_path, text, parts):
    """The row, its line, and what to do."""
    path = tmp_path / "d.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        table = read_table(path)
        convert_rows(table, detect_columns(table))
    for part in ["d.csv", *parts]:
        assert part in str(caught.value)


@pytest.mark.parametrize("suffix", [".json", ".parquet"])
def test_a_damaged_parquet_file(tmp_path, suffix):
    """Bytes that are no Parquet, and a Parquet table that is called .json."""
    path = tmp_path / f"d{suffix}"
    path.write_bytes(b"PAR1\xff\xfe damaged PAR1")
    with pytest.raises(DataError, match="Parquet"):
        read_table(path)


def test_parquet_with_numbers_dates_and_gaps(tmp_path):
    """A number is its digits, a gap is no answer, and a date is refused by its column."""
    import datetime

    rows = [{"question": "How many?", "answer": 42.5}, {"question": "How few?", "answer": None}]
    table = read_table(write(tmp_path / "d.parquet", rows))
    made = convert_rows(table, detect_columns(table))
    assert made.rows[0]["output"] == "42.5" and "output" not in made.rows[1]
    assert made.unanswered == [2]
    rows = [{"question": "a", "answer": "b", "day": datetime.date(2020, 1, 2)}]
    table = read_table(write(tmp_path / "e.parquet", rows))
    with pytest.raises(DataError, match="--drop day"):
        convert_rows(table, detect_columns(table))
    assert convert_rows(table, detect_columns(table), drop=["day"]).rows[0]["output"] == "b"


@pytest.mark.parametrize("name", ["ouput", "outputs", "Outputt", "out_put"])
def test_a_misspelt_column_is_named(tmp_path, name):
    """Not read as an empty answer; the command maps it."""
    path = write(tmp_path / "d.json", [{"instruction": ASK, "input": "", name: ANSWER}])
    text = refusal(path)
    assert f"`{name}` looks like it" in text and f"--map output={name}" in text
    assert main(suggested(text)) == 0
    assert load_examples(tmp_path / "d.alpaca.json") == [Example(ASK, "", ANSWER)]


def test_a_context_is_the_input(tmp_path):
    """Also where answers are not needed; next to an empty `input` it would be lost."""
    path = write(tmp_path / "d.json", [{"instruction": ASK, "context": MATERIAL, "output": "x"}])
    for answers in ("required", "optional"):
        assert load_examples(path, answers)[0].input == MATERIAL
    write(path, [{"instruction": ASK, "context": "", "output": "x"}])
    assert load_examples(path)[0].output == "x"


def test_questions_load_where_answers_are_not_needed(tmp_path):
    """Without a column for answers, and with one of another name."""
    path = write(tmp_path / "d.jsonl", [{"id": 1, "instruction": ASK}])
    assert load_examples(path, answers="optional") == [Example(ASK)]
    assert "has no `output`" in refusal(path)
    write(path, [{"instruction": ASK, "response": ANSWER}])
    assert load_examples(path, "optional") == [Example(ASK, "", ANSWER)]


def test_rows_with_and_without_an_answer(tmp_path, capsys):
    """Refused by row; the command leaves them out, and says which."""
    rows = [{"instruction": f"{ASK} {n}"} | ({"output": ANSWER} if n % 3 else {}) for n in range(9)]
    path = write(tmp_path / "d.jsonl", rows)
    text = refusal(path)
    assert all(f"row {n} (line {n}) has no `output`" in text for n in (1, 4, 7))
    words = suggested(text)
    assert words[-1] == "--drop-unanswered"
    assert (
        main(words[:-1]) == 0 and "3 of 9 rows without an answer, listed" in capsys.readouterr().out
    )
    assert "row 4" in refusal(tmp_path / "d.alpaca.json")  # a gap does not become an empty answer
    assert (
        main(words) == 0 and "3 of 9 rows without an answer (left out)" in capsys.readouterr().out
    )
    assert len(load_examples(tmp_path / "d.alpaca.json")) == 6


@pytest.mark.parametrize("extra", [{"images": ["cat.png"]}, {"Tools": "[add]"}])
def test_columns_that_would_be_unused(tmp_path, capsys, extra):
    """Refused by name; `--drop` leaves them out and counts them."""
    plain = {"instruction": ASK, "input": "", "output": ANSWER}
    path = write(tmp_path / "d.json", [{**plain}, {**plain, **extra}])
    for answers in ("required", "optional"):
        text = refusal(path, answers)
        assert "row 2 (line 7)" in text and "silently unused" in text
        assert all(f"`{name}`" in text for name in extra)
    words = suggested(text)
    assert words[-2:] == ["--drop", ",".join(extra)] and main(words) == 0
    out = capsys.readouterr().out
    assert all(f"`{name}` (1 rows)" in out for name in extra)
    assert load_examples(tmp_path / "d.alpaca.json")[1].extra == {}
    assert main(words[:-2]) == 1 and "--drop" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["system", "System", "system_prompt"])
def test_a_row_with_a_system_prompt_is_a_conversation(tmp_path, capsys, name):
    """Of one turn, with the input in the question; `--drop` gives plain rows."""
    plain = {"instruction": ASK, "input": MATERIAL, "output": ANSWER}
    path = write(tmp_path / "d.json", [{**plain, name: ""}, {**plain, name: "Be a pirate."}])
    asked = Turn("user", f"{ASK}\n\n{MATERIAL}")
    wanted = Conversation((asked, Turn("assistant", ANSWER)), "Be a pirate.")
    assert load_records(path) == [Example(ASK, MATERIAL, ANSWER), wanted]
    assert "row 2 (line 8) is a conversation (a system message and 2 turns)" in refusal(path)
    assert load_examples(path, turns="each")[1] == Example(asked.content, "", ANSWER)
    words = ["convert", str(path), "--out", str(tmp_path / "o.jsonl")]
    assert main(words) == 0 and "2 rows of messages" in capsys.readouterr().out
    assert load_records(tmp_path / "o.jsonl")[1] == wanted
    assert main([*words, "--drop", name]) == 0 and f"`{name}` (1 rows)" in capsys.readouterr().out
    assert load_examples(tmp_path / "o.jsonl") == [Example(ASK, MATERIAL, ANSWER)] * 2


def test_a_row_with_a_history_is_a_conversation(tmp_path):
    """LLaMA-Factory's [[question, answer], ...]; another form is refused by row."""
    plain = {"instruction": ASK, "output": ANSWER}
    path = write(tmp_path / "d.json", [{**plain, "history": [["Hello.", "Ahoy."]]}])
    (found,) = load_records(path)
    assert [turn.content for turn in found.turns] == ["Hello.", "Ahoy.", ASK, ANSWER]
    assert load_examples(path, turns="first") == [Example("Hello.", "", "Ahoy.")]
    assert load_examples(path, turns="last") == [Example(ASK, "", ANSWER)]
    for bad in ([["Hello."]], [["Hello.", ""]], "Hello.", [{"role": "user", "content": "Hi."}]):
        write(path, [plain, {**plain, "history": bad}])
        assert "row 2 " in refusal(path) and "--drop history" in refusal(path)


@pytest.mark.parametrize("empty", ["", "  ", None, [], [[]], [["", ""]], {}])
def test_empty_columns_do_not_matter(tmp_path, empty):
    """LLaMA-Factory writes them into every row."""
    rows = [{"instruction": ASK, "output": ANSWER, "system": empty, "history": empty}]
    assert load_examples(write(tmp_path / "d.json", rows))[0].output == ANSWER


@pytest.mark.parametrize("key", ["data", "rows", "训练"])
def test_rows_under_one_key(tmp_path, key):
    document = {"version": "1.0", key: [{"instruction": ASK, "output": ANSWER}] * 2}
    path = write(tmp_path / "d.json", document)
    assert load_examples(path) == [Example(ASK, "", ANSWER)] * 2


def test_several_keys_with_rows_are_not_guessed(tmp_path):
    """Training and test rows in one object."""
    path = write(tmp_path / "d.json", {"train": [{"instruction": "a"}], "test": [{"b": 1}]})
    with pytest.raises(DataError, match="`train`, `test`"):
        read_table(path)


def test_json_lines_under_another_name(tmp_path):
    """convert looks at the content: lines called .json, an array called .jsonl."""
    lines = "".join(json.dumps({"question": "a", "answer": str(n)}) + "\n" for n in range(3))
    (tmp_path / "d.json").write_text(lines)
    assert len(read_table(tmp_path / "d.json").rows) == 3
    (tmp_path / "d.jsonl").write_text(json.dumps([{"question": "a", "answer": "b"}], indent=1))
    assert read_table(tmp_path / "d.jsonl").rows == [{"question": "a", "answer": "b"}]
    (tmp_path / "e.jsonl").write_text(lines.split("\n")[0])
    assert len(read_table(tmp_path / "e.jsonl").rows) == 1


@pytest.mark.parametrize("name", ["d.json", "d.jsonl"])
@pytest.mark.parametrize(
    "row", ['{"instruction": "a", "output": "b", "output": "c"}',
            '{"instruction": "a", "output": "b", "tags": [{"x": 1, "x": 2}]}']
)  # fmt: skip
def test_a_key_twice_is_refused(tmp_path, name, row):
    """The last one would win silently; also deep inside a row."""
    good = '{"instruction": "a", "output": "b"}'
    text = f"{good}\n{row}\n" if name == "d.jsonl" else f"[{good},\n{row}]"
    (tmp_path / name).write_text(text)
    text = refusal(tmp_path / name)
    key = "x" if "tags" in row else "output"
    assert f"row 2 (line 2) has the key `{key}` twice" in text
    with pytest.raises(DataError, match="twice"):
        read_table(tmp_path / name)


@pytest.mark.parametrize("column", ["instruction", "input", "output", "category"])
def test_half_a_character_is_refused_by_row_and_column(tmp_path, capsys, column):
    """A lone surrogate cannot be encoded; the command replaces it and counts."""
    good = {"instruction": ASK, "input": "", "output": ANSWER, "category": "k"}
    rows = [good, {**good, column: "Half \ud83d of it, and \U0001f999 a whole one."}]
    path = write(tmp_path / "d.jsonl", rows)
    text = refusal(path)
    assert f"row 2 (line 2) has half a character, the lone surrogate \\ud83d, in `{column}`" in text
    text.encode("utf-8")  # can be printed
    assert main(suggested(text)) == 0 and "replaced: 1 rows" in capsys.readouterr().out
    made = load_examples(tmp_path / "d.alpaca.json")[1].to_dict()
    assert made[column] == "Half \ufffd of it, and \U0001f999 a whole one."


def test_loader_check_and_trainer_say_the_same(tmp_path, capsys):
    """One function reads the file for all three."""
    path = write(tmp_path / "d.json", [{"instruction": ASK, "answer": "a", "response": "b"}])
    text = refusal(path)
    assert main(["inspect", str(path)]) == 2
    assert capsys.readouterr().err == f"error: {text}\n"
    with pytest.raises(DataError) as caught:
        load_data(Settings(data_path=str(path), output_dir=str(tmp_path / "o")), None)
    assert str(caught.value) == text


NO_FILES = [pytest.param(kind, marks=pytest.mark.posix) for kind in ("pipe", "socket", "device")]


@pytest.mark.parametrize("kind", [*NO_FILES, "folder"])
@pytest.mark.parametrize("suffix", [".json", ".csv", ".parquet"])
def test_what_is_no_file_is_refused_at_once(tmp_path, monkeypatch, kind, suffix):
    """No waiting for a writer, no reading without end."""
    path = tmp_path / f"d{suffix}"
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        server = socket.socket(socket.AF_UNIX)
        server.bind(path.name)
        server.close()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    start = time.monotonic()
    for read in (load_examples, read_table):
        with pytest.raises(DataError):
            read(path)
    assert time.monotonic() - start < 1
    if suffix == ".json":
        assert kind in refusal(path)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--map", "outputs=response"], "map to one of instruction, input, output"),
        (["--map", "output=respons"], "did you mean 'response'"),
        (["--map", "output"], "--map output=response"),
        (["--map", "output=a", "output=b"], "use each field once"),
        (["--drop", "sytem"], "did you mean 'system'"),
        (["--drop", "response"], "is needed"),
    ],
)
def test_wrong_options(tmp_path, capsys, words, part):
    """Each is named, with what would do; nothing is written."""
    rows = [{"instruction": ASK, "response": ANSWER, "system": ""}]
    path = write(tmp_path / "d.json", rows)
    assert main(["convert", str(path), "--out", str(tmp_path / "o.json"), *words]) == 2
    assert part in capsys.readouterr().err and not (tmp_path / "o.json").exists()


@pytest.mark.posix
def test_the_file_itself_is_not_overwritten(tmp_path, capsys):
    """Neither under its own name nor through a link; and only JSON is written."""
    path = write(tmp_path / "d.json", [{"question": "a", "answer": "b"}])
    (tmp_path / "link.json").symlink_to(path)
    before = path.read_bytes()
    for out in (path, tmp_path / "link.json", tmp_path / "o.csv"):
        assert main(["convert", str(path), "--out", str(out)]) == 2
    assert path.read_bytes() == before and "another name" in capsys.readouterr().err


def test_a_mapped_column_replaces_the_one_of_that_name(tmp_path, capsys):
    """The replaced column is reported, not lost silently."""
    path = write(tmp_path / "d.json", [{"instruction": "a", "output": "old", "better": "new"}])
    words = ["convert", str(path), "--out", str(tmp_path / "o.json"), "--map", "output=better"]
    assert main(words) == 0 and "left out: `output` (1 rows)" in capsys.readouterr().out
    assert load_examples(tmp_path / "o.json")[0].output == "new"


def test_random_tables_survive_every_format(tmp_path):
    """Random texts under random names: the same three texts from each format."""
    draw = random.Random(5)
    alphabet = "ab ,;\"'\t\n\\{}[]é水🦙|#"

    def text(least=1):
        return "x" + "".join(draw.choice(alphabet) for _ in range(draw.randint(least, 12)))

    for number in range(20):
        names = draw.choice(list(LAYOUTS.values()))
        rows = [row(names, text(), text(0), text()) for _ in range(draw.randint(1, 6))]
        for suffix in (".json", ".jsonl", ".csv", ".parquet"):
            path = write(tmp_path / f"{number}{suffix}", rows)
            table = read_table(path)
            made = convert_rows(table, detect_columns(table)).rows
            wanted = [tuple(one[name] for name in names) for one in rows]
            assert [(m["instruction"], m["input"], m["output"]) for m in made] == wanted, suffix


def test_random_damage_is_a_named_error(tmp_path):
    """A file with random bytes changed loads, or is refused by name: no other exception."""
    draw = random.Random(6)
    good = json.dumps([{"instruction": ASK, "input": "", "output": ANSWER}] * 3).encode()
    for number in range(200):
        data = bytearray(good)
        for _ in range(draw.randint(1, 4)):
            data[draw.randrange(len(data))] = draw.choice(b'{}[]",:\\ntu0\x00\xff\x80')
        path = tmp_path / f"{number}{draw.choice(['.json', '.jsonl', '.csv'])}"
        path.write_bytes(bytes(data))
        for read in (load_examples, read_table):
            try:
                read(path)
            except AlpacaError as error:
                assert isinstance(error, DataError | UsageError) and path.name in str(error)
