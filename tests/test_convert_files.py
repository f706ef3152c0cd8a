"""alpaca convert on whole files: file types, compression, the hub, streaming, several processes."""

from __future__ import annotations

import csv
import errno
import gzip
import json
import multiprocessing
import os
import random
import subprocess
import sys
import warnings

import pytest

from alpaca_lib.cli import main
from alpaca_lib.errors import DataError, FileError
from alpaca_lib.formats import streams
from alpaca_lib.formats.convert import convert_files
from alpaca_lib.formats.layouts import Options
from alpaca_lib.formats.parts import Plan, _find_quote
from alpaca_lib.records import Conversation, Example, Turn, load_records

PLAN = Plan(Options(answers="optional", is_strict=False))
ALPHABET = "ab ,;\"'\t\n\\{}[]é水🦙|#\u2028\x7f"


def random_text(draw, least=0):
    return "x" * bool(least) + "".join(
        draw.choice(ALPHABET) for _ in range(draw.randint(least, 30))
    )


def random_conversation(draw, has_system=True):
    turns = []
    for _ in range(draw.randint(1, 4)):
        turns += [Turn("user", random_text(draw, 1)), Turn("assistant", random_text(draw, 1))]
    system = draw.choice(["", "Be " + random_text(draw)]) if has_system else ""
    return Conversation(tuple(turns), system)


def as_record(conversation):
    """What the loader gives: one question and answer is an Example."""
    if conversation.system or len(conversation.turns) > 2:
        return conversation
    return Example(
        *[turn.content for turn in conversation.turns][:1], "", conversation.turns[1].content
    )


def keyed(conversation, role, content, names):
    found = [{role: names[turn.role], content: turn.content} for turn in conversation.turns]
    system = [{role: names["system"], content: conversation.system}]
    return system + found if conversation.system else found


NAMES = {"user": "user", "assistant": "assistant", "system": "system"}
HUMAN = {"user": "human", "assistant": "gpt", "system": "system"}


def pairs(conversation):
    texts = [turn.content for turn in conversation.turns]
    return list(zip(texts[::2], texts[1::2], strict=True))


def with_history(c):
    *history, (question, answer) = pairs(c)
    return {"instruction": question, "output": answer, "system": c.system, "history": history}


RENDERED = {
    "messages": lambda c: {"messages": keyed(c, "role", "content", NAMES)},
    "parts": lambda c: {"messages": [{**m, "content": [{"type": "text", "text": m["content"]}]}
                                     for m in keyed(c, "role", "content", NAMES)]},
    "ShareGPT": lambda c: {"conversations": keyed(c, "from", "value", HUMAN)},
    "system column": lambda c: {"system": c.system, "conversations":
                                keyed(Conversation(c.turns), "from", "value", HUMAN)},
    "history": with_history,
    "chosen": lambda c: {"chosen": keyed(c, "role", "content", NAMES), "rejected": []},
    "pairs": lambda c: {"system": c.system, "conversation": [
        {"input": q, "output": a} for q, a in pairs(c)]},
    "lists": lambda c: {"system": c.system, "conversations": [t.content for t in c.turns]},
    "JSON in a cell": lambda c: {"messages": json.dumps(keyed(c, "role", "content", NAMES))},
}  # fmt: skip


def write(path, rows):
    """Writes rows in the format and the compression of a path's name."""
    name = path.name.removesuffix(".gz").removesuffix(".zst")
    plain = path.with_name("plain_" + name)
    if name.endswith(".jsonl"):
        plain.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif name.endswith(".json"):
        plain.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    elif name.endswith(".parquet"):
        arrow = pytest.importorskip("pyarrow")
        import pyarrow.parquet

        pyarrow.parquet.write_table(arrow.Table.from_pylist(rows), plain)
    else:
        with open(plain, "w", encoding="utf-8", newline="") as stream:
            table = csv.DictWriter(stream, list(rows[0]), delimiter="\t" if ".tsv" in name else ",")
            table.writeheader()
            table.writerows(rows)
    data = plain.read_bytes()
    plain.unlink()
    if path.suffix == ".gz":
        data = gzip.compress(data)
    if path.suffix == ".zst":
        arrow = pytest.importorskip("pyarrow")
        half = len(data) // 2  # two frames, as parallel compressors write
        data = b"".join(
            arrow.compress(part, "zstd", asbytes=True) for part in (data[:half], data[half:])
        )
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("layout", RENDERED)
def test_random_conversations_survive_each_layout(tmp_path, layout):
    """Rendered into a layout, loaded, converted and loaded again: the same conversation."""
    draw = random.Random(layout)
    for number in range(12):
        talks = [random_conversation(draw) for _ in range(draw.randint(1, 5))]
        wanted = [as_record(talk) for talk in talks]
        path = write(tmp_path / f"{number}.jsonl", [RENDERED[layout](talk) for talk in talks])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the rejected answers
            assert load_records(path) == wanted
        for suffix in (".json", ".jsonl.gz"):
            out = tmp_path / f"o{number}{suffix}"
            convert_files([path], out, PLAN)
            assert load_records(out) == wanted


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".tsv", ".parquet"])
def test_every_file_type_loads_and_converts(tmp_path, suffix, compression):
    rows = [{"question": 'a, "b"\n水', "answer": f"No. {n}"} for n in range(5)]
    wanted = [Example(row["question"], "", row["answer"]) for row in rows]
    path = write(tmp_path / f"d{suffix}{compression}", rows)
    assert load_records(path) == wanted
    assert main(["convert", str(path), "--out", str(tmp_path / "o.jsonl")]) == 0
    assert load_records(tmp_path / "o.jsonl") == wanted


@pytest.mark.parametrize("compression", [".gz", ".zst"])
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_a_torn_file_is_refused(tmp_path, capsys, suffix, compression):
    """Cut in the middle: named, by loader and command, and nothing is written."""
    draw = random.Random(1)
    rows = [{"question": "a", "answer": random_text(draw, 20)} for _ in range(3000)]
    path = write(tmp_path / f"d{suffix}{compression}", rows)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"d.*(damaged|cannot be read)"):
        load_records(path)
    assert main(["convert", str(path), "--out", str(tmp_path / "o.jsonl")]) == 1
    assert path.name in capsys.readouterr().err
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_compression_is_found_from_the_bytes(tmp_path):
    """Whatever the name says."""
    path = tmp_path / "d.jsonl"
    path.write_bytes(gzip.compress(b'{"question": "a", "answer": "b"}\n'))
    assert load_records(path) == [Example("a", "", "b")]
    path = tmp_path / "d.jsonl.gz"
    path.write_bytes(b'{"question": "a", "answer": "b"}\n')
    assert load_records(path) == [Example("a", "", "b")]


def test_several_files_in_one_call(tmp_path, capsys):
    """Each with its own layout; one conversation makes all of them rows of messages."""
    plain = write(tmp_path / "a.csv", [{"question": "a", "answer": "b"}])
    talk = Conversation((Turn("user", "a"), Turn("assistant", "b")) * 2)
    chat = write(tmp_path / "b.jsonl", [RENDERED["ShareGPT"](talk)])
    out = tmp_path / "o.jsonl"
    assert main(["convert", str(plain), str(chat), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "a.csv: question/answer" in said and "b.jsonl: ShareGPT, 4 turns on average" in said
    assert "2 rows of messages" in said and load_records(out) == [Example("a", "", "b"), talk]
    assert main(["convert", str(plain), str(out), "--out", str(out)]) == 2
    assert "another name" in capsys.readouterr().err


def test_a_late_conversation_turns_all_rows_into_messages(tmp_path, monkeypatch):
    """The first rows are plain examples; the only conversation is far behind them."""
    monkeypatch.setattr(streams, "_HEAD", 1 << 12)
    monkeypatch.setattr(streams, "PART_BYTES", 1 << 12)
    talk = Conversation((Turn("user", "a"), Turn("assistant", "b")) * 2)
    one = Conversation(talk.turns[:2])
    rows = [RENDERED["ShareGPT"](one)] * 500
    path = write(tmp_path / "d.jsonl", [*rows, RENDERED["ShareGPT"](talk)])
    (report,) = convert_files([path], tmp_path / "o.jsonl", PLAN)
    assert report.plan.as_messages and report.counts.kept == 501
    lines = (tmp_path / "o.jsonl").read_text().splitlines()
    assert all(line.startswith('{"messages"') for line in lines) and len(lines) == 501
    (report,) = convert_files([write(path, rows)], tmp_path / "o.jsonl", PLAN)
    assert not report.plan.as_messages and load_records(tmp_path / "o.jsonl")[0] == Example(
        "a", "", "b"
    )


@pytest.mark.parametrize("compression", ["", ".gz"])
def test_parts_and_processes_change_nothing(tmp_path, monkeypatch, compression):
    """Small parts in several processes: the bytes, rows and lines of one part in one process."""
    draw = random.Random(3)
    rows = []
    for number in range(400):
        talk = random_conversation(draw)
        turns = talk.turns if number % 7 else talk.turns[:-1]
        rows.append({"id": number, **RENDERED["messages"](Conversation(turns, talk.system))})
    text = "".join(json.dumps(row) + "\n" * (1 + (n % 50 == 0)) for n, row in enumerate(rows))
    path = tmp_path / f"d.jsonl{compression}"
    path.write_bytes(gzip.compress(text.encode()) if compression else text.encode())
    (whole,) = convert_files([path], tmp_path / "whole.jsonl", PLAN)
    monkeypatch.setattr(streams, "PART_BYTES", 3000)
    monkeypatch.setattr(streams, "_SEVERAL", 1)
    read = []
    (parts,) = convert_files([path], tmp_path / "parts.jsonl", PLAN, 2, read.append)
    assert len(read) > 20 and sum(read) == len(text.encode())
    assert (tmp_path / "parts.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert list(parts.counts.unanswered) == [n + 1 for n in range(0, 400, 7)]
    assert parts.counts == whole.counts and parts.describe() == whole.describe()
    lines = text.split("\n")
    for row in (1, 2, 51, 52, 53, 400):
        line = int(parts.name(row).split("line ")[1].rstrip(")"))
        assert json.loads(lines[line - 1])["id"] == row - 1


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"question": "a", "answer": "b", "answer": "c"}', r"row 300 .line 300. has the key"),
        ('{"question": "a", "answer": [[}', r"line 300: is not JSON"),
        ('{"question": "a", "answer": "\xe9"}', r"line 300: byte 0xe9 is not UTF-8"),
        ("[" * 100_000, r"line 300: cannot be read as JSON .*nested too deeply"),
        ('{"messages": []}', r"row 300 .line 300. has no `instruction`"),
        ('["a"]', r"row 300 .line 300. is a list, not an object"),
    ],
)  # fmt: skip
def test_a_bad_line_far_down_is_named(tmp_path, monkeypatch, workers, line, fault):
    """As strict in a stream as in a small file, and in a process of its own; nothing is left."""
    monkeypatch.setattr(streams, "PART_BYTES", 2000)
    monkeypatch.setattr(streams, "_HEAD", 2000)
    monkeypatch.setattr(streams, "_SEVERAL", 1)
    good = '{"question": "a", "answer": "b"}\n'
    path = tmp_path / "d.jsonl"
    path.write_bytes((good * 299).encode() + line.encode("latin-1") + b"\n" + (good * 99).encode())
    with pytest.raises(DataError, match=f"d.jsonl.*{fault}"):
        convert_files([path], tmp_path / "o.jsonl", PLAN, workers)
    assert [one.name for one in tmp_path.iterdir()] == ["d.jsonl"]


def test_half_characters_in_a_stream_are_replaced_and_counted(tmp_path):
    rows = [RENDERED["ShareGPT"](Conversation((Turn("user", text), Turn("assistant", "b")) * 2))
            for text in ("whole \U0001f999", "half \ud83d of it", "plain")]  # fmt: skip
    path = write(tmp_path / "d.jsonl", rows)
    (report,) = convert_files([path], tmp_path / "o.jsonl", PLAN)
    assert report.counts.replaced == 1
    found = [record.turns[0].content for record in load_records(tmp_path / "o.jsonl")]
    assert found == ["whole \U0001f999", "half \ufffd of it", "plain"]


@pytest.mark.parametrize(
    ("cell", "fault"),
    [
        ('[{"role": "user", "content": "half \\ud83d"}]', r"half a character.*in `messages`"),
        ('[{"role": "user", "content": "a", "content": "b"}]', r"the key `content` twice"),
    ],
)
def test_json_in_a_cell_is_read_as_strictly(tmp_path, cell, fault):
    path = write(tmp_path / "d.csv", [{"messages": cell}])
    with pytest.raises(DataError, match=fault):
        load_records(path)
    with pytest.raises(DataError, match=fault):
        convert_files([path], tmp_path / "o.jsonl", PLAN)


def test_a_text_is_encoded_as_json_does(monkeypatch):
    """With orjson and without: the bytes of json.dumps."""
    draw = random.Random(4)
    texts = [random_text(draw) for _ in range(300)] + [chr(n) for n in range(0xD800)]
    fast = _find_quote()
    monkeypatch.setitem(sys.modules, "orjson", None)
    for quote in (fast, _find_quote()):
        assert [quote(text) for text in texts] == [
            json.dumps(text, ensure_ascii=False).encode() for text in texts
        ]


def die(*_):
    os._exit(9)


@pytest.mark.linux  # a forked process
def test_a_process_that_is_killed_is_named(tmp_path, monkeypatch):
    """An error of the command, and nothing half-written."""
    monkeypatch.setattr(streams, "_SEVERAL", 1)
    monkeypatch.setattr(streams, "_convert_block", die)
    monkeypatch.setitem(sys.modules, "test_convert_files", sys.modules[__name__])
    monkeypatch.setattr(streams, "get_context", lambda _: multiprocessing.get_context("fork"))
    path = write(tmp_path / "d.jsonl", [{"question": "a", "answer": "b"}])
    with pytest.raises(FileError, match=r"d\.jsonl: a process that converts it was killed"):
        convert_files([path], tmp_path / "o.jsonl", PLAN, 2)
    assert [one.name for one in tmp_path.iterdir()] == ["d.jsonl"]


def test_a_disk_that_is_full_leaves_nothing(tmp_path, monkeypatch, capsys):
    path = write(tmp_path / "d.jsonl", [{"question": "a", "answer": "b"}])

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    assert main(["convert", str(path), "--out", str(tmp_path / "o.jsonl")]) == 1
    assert "No space left" in capsys.readouterr().err
    assert [one.name for one in tmp_path.iterdir()] == ["d.jsonl"]


@pytest.mark.linux  # ru_maxrss in KiB
def test_a_large_file_converts_in_constant_memory(tmp_path):
    """40 MB of lines: the command needs little more memory than for 1 MB."""
    talk = Conversation((Turn("user", "a " * 500), Turn("assistant", "b " * 500)) * 2)
    line = json.dumps(RENDERED["ShareGPT"](talk)) + "\n"
    code = (
        "import resource, sys\n"
        "from alpaca_lib.cli import main\n"
        "assert main(['convert', sys.argv[1], '--out', sys.argv[1] + '.out.jsonl']) == 0\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    peaks = []
    for size in (1, 40):
        path = tmp_path / f"{size}.jsonl"
        path.write_text(line * (size * 10**6 // len(line)))
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
        )
        peaks.append(int(done.stdout.split()[-1]) / 1024)
        assert not done.stderr  # no progress bar without a terminal
    assert peaks[1] < peaks[0] + 25, peaks


# --- data sets of the hub -----------------------------------------------------------


def test_a_data_set_by_name(tmp_path, monkeypatch, capsys):
    """`datasets` finds "owner/name" as a folder here: split by name, "train" by default."""
    pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    talk = Conversation((Turn("user", "a"), Turn("assistant", "b")) * 2)
    write(folder / "train.jsonl", [RENDERED["messages"](talk)] * 3)
    write(folder / "test.jsonl", [RENDERED["messages"](talk)])
    assert load_records("owner/name") == [talk] * 3
    assert load_records("owner/name:test") == [talk]
    assert main(["convert", "owner/name:test", "--out", "o.jsonl"]) == 0
    assert "owner/name:test: messages, 4 turns on average, 1 rows" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"owner/name:dev: has the splits train, test"):
        load_records("owner/name:dev")


def test_a_data_set_that_was_saved_to_a_folder(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [{"question": "a", "answer": str(n)} for n in range(3)]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    assert [one.output for one in load_records(tmp_path / "saved")] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("HF_HUB_OFFLINE", "1", "HF_HUB_OFFLINE is set"),
        ("HF_ENDPOINT", "http://127.0.0.1:9", "http://127.0.0.1:9 is unreachable"),
    ],
)
def test_a_hub_that_cannot_be_reached(name, value, reason, tmp_path):
    """In a process that is offline, or with a hub that is down: the data set, the reason and
    what to do."""
    pytest.importorskip("datasets")
    done = subprocess.run(
        [sys.executable, "-m", "alpaca_lib", "convert", "nobody/nothing", "--out", "o.jsonl"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, name: value, "HF_HOME": str(tmp_path / "cache"),
             "PYTHONPATH": os.pathsep.join(map(os.path.abspath, filter(None, sys.path)))},
    )  # fmt: skip
    assert done.returncode == 1
    assert "nobody/nothing: is no file here, and the Hugging Face hub cannot be" in done.stderr
    assert reason in done.stderr
    assert not (tmp_path / "o.jsonl").exists()


@pytest.mark.parametrize("name", ["data/x.json", "x", "/a/b", "a/b/c", "x.jsonl.gz", "a/b.csv"])
def test_what_is_no_name_of_the_hub_is_a_missing_file(name):
    with pytest.raises(DataError, match="no such file"):
        load_records(name)


def test_the_commands_about_data_take_conversations(tmp_path, capsys):
    """inspect and describe check each question with its answer, and say so."""
    talk = Conversation((Turn("user", "Name a colour."), Turn("assistant", "Blue.")) * 2)
    path = write(tmp_path / "d.jsonl", [RENDERED["ShareGPT"](talk)] * 2)
    assert main(["inspect", str(path), "--apart"]) in (0, 1)
    out = capsys.readouterr().out
    assert "2 of 2 rows are conversations; each question with its answer is one row here (4)" in out
    plain = write(tmp_path / "e.csv", [{"question": "Name a colour.", "answer": "Blue."}])
    assert main(["inspect", str(plain), "--apart"]) in (0, 1)
    assert "conversations" not in capsys.readouterr().out


def test_seeds_are_single_tasks(tmp_path, capsys):
    """The generation command refuses seeds that are conversations, by row."""
    talk = Conversation((Turn("user", "Name a colour."), Turn("assistant", "Blue.")) * 2)
    seeds = write(tmp_path / "d.jsonl", [RENDERED["ShareGPT"](talk)])
    words = ["generate", "--teacher", "replay", "--seeds", str(seeds), "--out", str(tmp_path / "o")]
    assert main(words) != 0
    assert "row 1 (line 1) is a conversation (4 turns)" in capsys.readouterr().err
