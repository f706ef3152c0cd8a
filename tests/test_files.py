"""Files that survive: atomic replacement, torn lines, locks, checksums."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import textwrap

import pytest

from alpaca_lib import files
from alpaca_lib.errors import FileError


def test_a_failed_write_leaves_the_old_file(tmp_path):
    """The block fails: the old text stays, and no temporary file."""
    file = files.write_text(tmp_path / "a.txt", "old\n")
    with pytest.raises(RuntimeError), files.atomic_path(file) as work:
        work.write_text("half of the n")
        raise RuntimeError("killed")
    assert file.read_text() == "old\n"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_write_that_the_disk_refuses_names_the_file(tmp_path, monkeypatch):
    """A full disk is a FileError that names the file, keeps the errno and the old text."""
    file = files.write_text(tmp_path / "a.txt", "old\n")

    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "sync", full)
    with pytest.raises(FileError, match=r"a\.txt: cannot be written \(No space left") as caught:
        files.write_text(file, "new\n")
    assert caught.value.errno == errno.ENOSPC
    assert file.read_text() == "old\n" and len(list(tmp_path.iterdir())) == 1


def test_folders_are_created_and_bytes_are_utf8_with_plain_newlines(tmp_path):
    """The file's bytes are the text's UTF-8 on every system."""
    file = files.write_text(tmp_path / "new" / "a.txt", "é\n中\n")
    assert file.read_bytes() == "é\n中\n".encode()
    assert os.stat(file).st_mode & 0o777 == 0o644 or os.name == "nt"


@pytest.mark.parametrize("torn", [b'{"b": 2', b"x" * 200_000, b'{"b": "\xe4\xb8'])
def test_a_torn_last_line_is_cut_off_and_replaced(tmp_path, torn):
    """Whatever a crash left after the last newline is gone; what comes next is complete."""
    file = tmp_path / "log.jsonl"
    file.write_bytes(b'{"a": 1}\n' + torn)
    assert [line.row for line in files.read_json_lines(file)] == [{"a": 1}]
    with files.JsonLines(file) as log:
        offset = log.append({"c": "中"})
        assert log.read_at(offset) == {"c": "中"}
    assert file.read_bytes() == b'{"a": 1}\n' + '{"c": "中"}\n'.encode()


def test_a_damaged_line_in_the_middle_is_reported_by_number(tmp_path):
    """A line that is no JSON object keeps its number and offset; the others are read."""
    file = tmp_path / "log.jsonl"
    file.write_text('{"a": 1}\nnonsense\n[1]\n{"b": 2}\n')
    found = list(files.read_json_lines(file))
    assert [(line.number, line.row) for line in found] == [
        (1, {"a": 1}),
        (2, None),
        (3, None),
        (4, {"b": 2}),
    ]
    data = file.read_bytes()
    assert json.loads(data[found[3].offset :]) == {"b": 2}


def test_a_file_without_any_newline_is_empty(tmp_path):
    """A first line that a crash tore leaves an empty file; a missing file has no lines."""
    file = tmp_path / "log.jsonl"
    file.write_text('{"a": ')
    files.JsonLines(file).close()
    assert file.read_bytes() == b""
    assert list(files.read_json_lines(tmp_path / "none.jsonl")) == []


def test_a_write_that_fails_half_way_leaves_no_part(tmp_path, monkeypatch):
    """The disk takes ten bytes and then no more: the file ends where it ended before."""
    log = files.JsonLines(tmp_path / "log.jsonl")
    log.append({"a": 1})
    write, left = os.write, [10]

    def some(handle, data):
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = write(handle, bytes(data[: left[0]]))
        left[0] = 0
        return count

    monkeypatch.setattr(os, "write", some)
    with pytest.raises(FileError, match=r"log\.jsonl: cannot be written \(No space"):
        log.append({"b": "x" * 100})
    monkeypatch.undo()
    log.append({"c": 3})
    log.close()
    assert [line.row for line in files.read_json_lines(log.path)] == [{"a": 1}, {"c": 3}]


def test_a_killed_writer_leaves_complete_lines(tmp_path):
    """A process is killed while it appends as fast as it can: every line that can be read is
    complete, in order, and the next writer continues after them."""
    file = tmp_path / "log.jsonl"
    code = f"""
        from alpaca_lib.files import JsonLines
        log, n = JsonLines({str(file)!r}), 0
        while True:
            log.append({{"n": n, "text": "x" * 5000}}, sync=False)
            n += 1
            if n == 20:
                print("going", flush=True)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "going\n"
    process.kill()
    process.wait()
    with files.JsonLines(file) as log:
        log.append({"n": -1})
    numbers = [line.row["n"] for line in files.read_json_lines(file)]
    assert numbers == [*range(len(numbers) - 1), -1] and len(numbers) > 20


def test_one_holder_of_a_lock(tmp_path):
    """A second holder is refused with the given text, and served when the first is gone."""
    file = tmp_path / ".lock"
    code = (
        "import sys\nfrom alpaca_lib.files import locked\n"
        f"with locked({str(file)!r}, wait=False, busy='busy: wait'):\n    print('mine')\n"
    )
    with files.locked(file):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode != 0 and "FileError: busy: wait" in done.stderr
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "mine\n"


def test_checksums_are_hashlibs(tmp_path):
    """Files and texts, lone surrogates included."""
    (tmp_path / "a").write_bytes(b"abc" * 1_000_000)
    assert files.sha256_file(tmp_path / "a") == hashlib.sha256(b"abc" * 1_000_000).hexdigest()
    assert files.sha256_text("中") == hashlib.sha256("中".encode()).hexdigest()
    assert files.sha256_text("\ud800") == files.sha256_text("?")


def test_json_is_readable_and_can_always_be_written(tmp_path):
    """Unicode stays as it is; a lone surrogate is escaped and comes back."""
    assert files.dump_json({"a": "中"}) == '{"a": "中"}'
    text = files.dump_json({"a": "\ud800"})
    files.write_text(tmp_path / "a.json", text)
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": "\ud800"}


def test_a_rename_that_another_program_delays(tmp_path, monkeypatch):
    """Windows refuses it while a scanner has a file open: tried again, but not for ever."""
    monkeypatch.setattr(files, "PATIENCE", 0.3)
    replace, refusals = os.replace, [2]

    def busy(*paths):
        refusals[0] -= 1
        if refusals[0] >= 0:
            raise PermissionError(13, "Access is denied")
        replace(*paths)

    monkeypatch.setattr(os, "replace", busy)
    (tmp_path / "new").write_text("new")
    files.move(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old").read_text() == "new" and refusals == [-1]
    refusals[0] = 10**6
    with pytest.raises(FileError, match="Access is denied"):
        files.write_text(tmp_path / "old", "newer")
    assert [p.name for p in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old").read_text() == "new"
