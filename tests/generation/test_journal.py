"""The journal: what a crash may do to it, and what it refuses."""

from __future__ import annotations

import json
import threading

import pytest

from alpaca_lib.errors import JournalError
from alpaca_lib.generation.journal import Journal
from alpaca_lib.generation.messages import RawReply

CONFIGURATION = {"seed": 1, "temperature": 0.7, "model": "m"}


def write(folder, count=3, text="reply"):
    """A journal with so many replies, closed."""
    journal = Journal(folder, CONFIGURATION)
    for n in range(count):
        journal.append(n, RawReply(f"{text} {n}", "stop", 10 + n, 20 + n))
    journal.close()
    return journal.path


def read(folder, configuration=None):
    """The replies of a journal that is opened again."""
    journal = Journal(folder, configuration or CONFIGURATION)
    found = {n: journal.reply(n) for n in range(20) if n in journal}
    assert len(found) == len(journal)
    journal.close()
    return found


@pytest.mark.parametrize("text", ["a", "línea 你好", "x\u2028y\x85z\rw\nv", "lone \ud800", "\x00"])
def test_round_trip(tmp_path, text):
    """Every reply comes back as it was, whatever characters it holds."""
    write(tmp_path, text=text)
    assert read(tmp_path) == {n: RawReply(f"{text} {n}", "stop", 10 + n, 20 + n) for n in range(3)}


def test_replies_are_on_disk_before_close(tmp_path):
    """append() has written when it returns: another reader sees the line."""
    journal = Journal(tmp_path, CONFIGURATION)
    journal.append(5, RawReply("x", "stop", 1, 2))
    assert json.loads(journal.path.read_text().splitlines()[-1])["request"] == 5
    journal.close()


def test_torn_last_line_is_cut_off(tmp_path):
    """A line that a crash tore is dropped from the file, at any byte; the rest stays."""
    path = write(tmp_path)
    data = path.read_bytes()
    last = data.rstrip(b"\n").rfind(b"\n") + 1
    for cut in (last + 1, last + 20, len(data) - 1):
        path.write_bytes(data[:cut])
        assert sorted(read(tmp_path)) == [0, 1]
        assert path.read_bytes() == data[:last]


def test_writing_goes_on_after_a_torn_line(tmp_path):
    """A reply added after the cut is a line of its own."""
    path = write(tmp_path)
    path.write_bytes(path.read_bytes()[:-5])
    journal = Journal(tmp_path, CONFIGURATION)
    journal.append(2, RawReply("again", "stop", 1, 1))
    journal.close()
    assert read(tmp_path)[2].text == "again" and sorted(read(tmp_path)) == [0, 1, 2]


def test_torn_first_line_begins_anew(tmp_path):
    """If not even the configuration was whole, the journal starts from nothing."""
    path = write(tmp_path, count=0)
    path.write_bytes(path.read_bytes()[:-3])
    assert read(tmp_path, {"other": 1}) == {}
    with pytest.raises(JournalError):
        read(tmp_path, CONFIGURATION)


@pytest.mark.parametrize(
    "change, parts",
    [
        ({"temperature": 0.9}, ["temperature", "0.7", "0.9"]),
        ({"new": 3}, ["new", "None", "3"]),
    ],
)
def test_another_configuration_is_named(tmp_path, change, parts):
    """What differs is named with both values, and only that."""
    write(tmp_path)
    with pytest.raises(JournalError) as caught:
        read(tmp_path, {**CONFIGURATION, **change})
    text = str(caught.value)
    assert all(part in text for part in [*parts, "journal.jsonl", "new folder"])
    assert "model:" not in text


def test_configuration_that_lost_a_setting(tmp_path):
    """A setting that is only in the journal differs too."""
    write(tmp_path)
    with pytest.raises(JournalError, match="seed"):
        read(tmp_path, {k: v for k, v in CONFIGURATION.items() if k != "seed"})


@pytest.mark.parametrize(
    "line",
    ["{broken", "", "null", "[]", "5", "{}", '{"request": 1}',
     '{"request": 1, "reply": {"text": "x"}}',
     '{"request": 1, "reply": null}', '{"reply": {"text": "x"}}'],
)  # fmt: skip
def test_damaged_middle_line(tmp_path, line):
    """A damaged line before the end is a JournalError with its number, never a guess."""
    path = write(tmp_path)
    lines = path.read_text().split("\n")
    lines[2] = line
    path.write_text("\n".join(lines))
    with pytest.raises(JournalError, match=r"line 3.*damaged"):
        read(tmp_path)


@pytest.mark.parametrize("line", ["null", "[]", "5", '"x"', "{}"])
def test_damaged_first_line(tmp_path, line):
    """A first line that is no configuration is a JournalError too."""
    path = write(tmp_path)
    path.write_text("\n".join([line, *path.read_text().split("\n")[1:]]))
    with pytest.raises(JournalError):
        read(tmp_path)


def test_deleting_the_damaged_line_is_the_cure(tmp_path):
    """As the message says: without that line, only its request is missing."""
    path = write(tmp_path)
    lines = path.read_text().split("\n")
    del lines[2]
    path.write_text("\n".join(lines))
    assert sorted(read(tmp_path)) == [0, 2]


def test_threads_that_write_at_once(tmp_path):
    """Replies from one thread and judgements from another: every reply is found again."""
    journal = Journal(tmp_path, CONFIGURATION)

    def append():
        for n in range(300):
            journal.append(n, RawReply(f"reply {n}", "stop", n, n))

    writer = threading.Thread(target=append)
    writer.start()
    for n in range(3000):
        journal.note_filtered(n, [{"instruction": "x" * (n % 50)}])
    writer.join()
    assert [journal.reply(n).text for n in range(300)] == [f"reply {n}" for n in range(300)]
    journal.close()
    again = Journal(tmp_path, CONFIGURATION)
    assert len(again) == 300 and again.filtered == set(range(3000))
    again.close()


def test_one_run_at_a_time(tmp_path):
    """A second journal on the same folder is refused while the first is open, and not after."""
    journal = Journal(tmp_path, CONFIGURATION)
    with pytest.raises(JournalError, match="another run"):
        Journal(tmp_path, CONFIGURATION)
    journal.close()
    Journal(tmp_path, CONFIGURATION).close()


def test_full_disk(tmp_path):
    """A write that the system cuts short is an error with the cure; the line before it stays,
    no torn one is left, and writing goes on once there is room."""
    resource = pytest.importorskip("resource")
    journal = Journal(tmp_path, CONFIGURATION)
    journal.append(0, RawReply("first", "stop", 1, 1))
    size = journal.path.stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, limits[1]))
    try:
        with pytest.raises(JournalError, match="free some space"):
            journal.append(1, RawReply("x" * 500, "stop", 1, 1))
        assert journal.path.stat().st_size == size
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    journal.append(1, RawReply("second", "stop", 1, 1))
    journal.close()
    assert read(tmp_path)[1].text == "second"


def test_folder_that_cannot_be_written(tmp_path):
    """A read-only place is a JournalError that names it."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(JournalError, match="file"):
        Journal(tmp_path / "file" / "below", CONFIGURATION)


def test_other_lines_come_back(tmp_path):
    """Lost attempts add up, batches keep their last state, judged replies are remembered."""
    journal = Journal(tmp_path, CONFIGURATION)
    journal.note_lost(3, "no answer", 0.25)
    journal.note_lost(3, "no answer", 0.5)
    journal.note_batch("file-1", requests=[1, 2], state="uploaded")
    journal.note_batch("file-1", state="done")
    journal.note_filtered(7, [])
    journal.close()
    again = Journal(tmp_path, CONFIGURATION)
    assert again.lost_usd == 0.75 and again.filtered == {7}
    assert again.batches == {"file-1": {"requests": [1, 2], "state": "done"}}
    again.close()
