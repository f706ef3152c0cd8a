"""Runs against a server that does everything wrong: the same tasks, and a true account."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import queue
import random
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from alpaca_lib.errors import AlpacaError, FileError, JournalError, TeacherError
from alpaca_lib.generation import filtering
from alpaca_lib.generation.async_runner import run_async
from alpaca_lib.generation.budget import load_prices
from alpaca_lib.generation.journal import Journal
from alpaca_lib.generation.self_instruct import Limits, Settings, generate
from alpaca_lib.generation.teacher import Teacher, open_teacher
from tests.generation.fault_server import FAULTS, ODD_REPLIES, Faults, good_reply
from tests.generation.test_survival import kill_at_random

SETTINGS = Settings(tasks_wanted=60, seeds_per_prompt=3, tasks_per_request=3, seed=5)
HEADER = "Write {count} tasks."
TIMES = {"idle_timeout": 0.4, "max_reply_bytes": 1_000_000}


def run(folder, seeds, settings=SETTINGS, tries=10, **limits):
    """One run with the openai teacher."""
    with open_teacher("openai", "fake-model") as teacher:
        teacher.tries = tries
        return generate(teacher, seeds, HEADER, settings, folder, Limits(**{**TIMES, **limits}))


def rows(path) -> list:
    """The rows of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def lines(folder) -> list[str]:
    """The lines of a journal."""
    return (folder / "journal.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)


@pytest.fixture
def whole(fake, seeds, tmp_path):
    """regen.json of a run that nothing disturbs."""
    fake.respond = good_reply
    run(tmp_path / "whole", seeds)
    fake.requests.clear()
    return (tmp_path / "whole" / "regen.json").read_bytes()


# --- the server ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*FAULTS, *ODD_REPLIES])
def test_every_fault_passes(fake, seeds, tmp_path, kind):
    """Once each: the run ends with the tasks of an undisturbed one."""
    answer = {**FAULTS, **ODD_REPLIES}[kind]
    settings = SETTINGS.replace(tasks_wanted=3)

    def respond(body):
        first = len(fake.requests) == 1 or (
            kind.startswith("a redirect") and len(fake.requests) < 9
        )
        return answer(good_reply(body)) if first else good_reply(body)

    fake.respond = respond
    run(tmp_path / "faulty", seeds, settings, concurrency=1)
    assert len(fake.requests) == 1 if kind in ODD_REPLIES else len(fake.requests) > 1
    fake.respond = good_reply
    run(tmp_path / "calm", seeds, settings, concurrency=1)
    found, calm = ((tmp_path / name / "regen.json").read_bytes() for name in ("faulty", "calm"))
    assert found == calm


@pytest.mark.parametrize("seed", range(2))
def test_a_third_of_all_requests_fails(fake, seeds, tmp_path, whole, seed):
    """30 % faults of all kinds at once: the same bytes, and no reply is requested twice."""
    fake.respond = faults = Faults(seed)
    outcome = run(tmp_path / "run", seeds, concurrency=8, tries=30)
    assert outcome.ended == "enough" and set(faults.answered.values()) == {1}
    assert (tmp_path / "run" / "regen.json").read_bytes() == whole
    assert len([line for line in lines(tmp_path / "run") if '"reply"' in line]) == len(
        faults.answered
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_a_third_of_all_requests_fails_in_a_long_run(fake, seeds, tmp_path, seed):
    """As above, 480 tasks."""
    settings = SETTINGS.replace(tasks_wanted=480)
    fake.respond = good_reply
    run(tmp_path / "whole", seeds, settings, concurrency=8)
    fake.respond = faults = Faults(seed)
    outcome = run(tmp_path / "run", seeds, settings, concurrency=8, tries=30)
    assert outcome.ended == "enough" and set(faults.answered.values()) == {1}
    found, calm = ((tmp_path / name / "regen.json").read_bytes() for name in ("run", "whole"))
    assert found == calm
    print(dict(faults.counts))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kills_and_faults_together(fake, seeds, tmp_path, whole):
    """25 SIGKILLs of runs against a server with 30 % faults: the same bytes; replies that are
    requested again were on their way at a kill."""
    fake.delay = lambda body: 0.02
    draw, kills, runs, again = random.Random(3), 0, 0, 0
    while kills < 25:
        folder = tmp_path / f"run {runs}"
        fake.respond = faults = Faults(runs, hang=0.8)
        mine = 0
        while kill_at_random(folder, seeds, draw.uniform(0.3, 1.2), SETTINGS, **TIMES):
            mine += 1
        assert (folder / "regen.json").read_bytes() == whole
        twice = sum(count - 1 for count in faults.answered.values())
        noted = sum('"the run ended before its reply"' in line for line in lines(folder))
        assert twice <= noted <= 3 * mine
        kills, runs, again = kills + mine, runs + 1, again + twice
    print(f"{kills} kills in {runs} runs: {again} replies requested twice, none unnoted")


def test_a_budget_is_used_up_under_faults(fake, seeds, tmp_path):
    """Requests that fail set aside money for a while; what comes back is used."""
    prices = tmp_path / "prices.yaml"
    prices.write_text("dated: 2026-01-01\nmodels: {fake-model: {input: 1.0, output: 2.0}}\n")
    draw, lock = random.Random(2), threading.Lock()

    def respond(body):
        with lock:
            fails = draw.random() < 0.1
        return None if fails else good_reply(body)

    fake.respond = respond
    settings = SETTINGS.replace(tasks_wanted=6000, max_tokens=2000)
    limits = {"prices_path": prices, "max_usd": 0.05, "concurrency": 8}
    outcome = run(tmp_path / "run", seeds, settings, **limits)
    price = load_prices(prices)["fake-model"]
    most = price.cost(1000, 2000)
    assert outcome.ended == "budget"
    assert 0.05 - 2 * most < outcome.usd + outcome.lost_usd <= 0.05


# --- regen.json ---------------------------------------------------------------------


def test_a_file_without_a_journal_is_not_replaced(fake, seeds, tmp_path):
    """50 rows of another run: refused by name before any request, and still there."""
    fake.respond = good_reply
    text = json.dumps([{"instruction": f"Do {n}.", "input": "", "output": "x"} for n in range(50)])
    (tmp_path / "regen.json").write_text(text)
    with pytest.raises(JournalError, match=r"regen\.json: holds 50 tasks.*another folder"):
        run(tmp_path, seeds)
    assert fake.requests == [] and (tmp_path / "regen.json").read_text() == text
    assert not (tmp_path / "journal.jsonl").exists()
    for nothing in ("", "[]\n", "{}"):
        (tmp_path / "regen.json").write_text(nothing)
        assert len(run(tmp_path, seeds).kept) >= 60
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()


def edit_a_row(found):
    """Changes a text."""
    found[0]["output"] = "by hand"


def delete_a_row(found):
    """Drops a bad task."""
    del found[3]


def add_a_row(found):
    """Adds tasks by hand."""
    found += found[:5]


@pytest.mark.parametrize("edit", [edit_a_row, delete_a_row, add_a_row])
@pytest.mark.parametrize("wanted", [60, 75])
def test_a_file_that_was_edited_is_kept(fake, seeds, tmp_path, capsys, edit, wanted):
    """Between two runs: a line says so, and what was edited is in a file next to it."""
    fake.respond = good_reply
    run(tmp_path, seeds)
    original = (tmp_path / "regen.json").read_bytes()
    found = rows(tmp_path / "regen.json")
    edit(found)
    (tmp_path / "regen.json").write_text(json.dumps(found))
    capsys.readouterr()
    run(tmp_path, seeds, SETTINGS.replace(tasks_wanted=wanted))
    assert rows(tmp_path / "regen.replaced-1.json") == found
    assert "not as a run of this journal wrote it" in capsys.readouterr().out
    assert len(rows(tmp_path / "regen.json")) >= wanted
    if wanted == 60:
        assert (tmp_path / "regen.json").read_bytes() == original
    run(tmp_path, seeds, SETTINGS.replace(tasks_wanted=wanted))
    assert not (tmp_path / "regen.replaced-2.json").exists()


@pytest.mark.parametrize("change", [{"tasks_wanted": 9}, {"max_requests": 2}])
def test_a_smaller_number_wanted_truncates_nothing(fake, seeds, tmp_path, whole, change):
    """A finished run, started with a smaller number: all its tasks stay, nothing is requested."""
    wanted = {"settings": SETTINGS.replace(tasks_wanted=change.pop("tasks_wanted", 60)), **change}
    folder = tmp_path / "whole"
    outcome = run(folder, seeds, **wanted)
    assert fake.requests == [] and len(outcome.kept) == len(rows(folder / "regen.json")) >= 60
    assert (folder / "regen.json").read_bytes() == whole


@pytest.mark.parametrize("error", [TeacherError("no"), KeyboardInterrupt(), OSError("no")])
def test_an_error_before_the_journal_is_read_shrinks_nothing(
    fake, seeds, tmp_path, whole, monkeypatch, error
):
    """A run that cannot even connect leaves the file as it is."""

    @contextlib.asynccontextmanager
    async def fails(self, *_):
        raise error
        yield

    monkeypatch.setattr(Teacher, "connect", fails)
    with pytest.raises(type(error)):
        run(tmp_path / "whole", seeds)
    assert (tmp_path / "whole" / "regen.json").read_bytes() == whole


def test_fewer_tasks_than_before_are_not_written_without_a_copy(
    fake, seeds, tmp_path, whole, monkeypatch, capsys
):
    """A stricter filter of a later version: the old file is kept, and a line says so."""
    from alpaca_lib.generation import run_state

    def strict(*args):
        decisions = filtering.filter_reply(*args)
        del args[-1].kept[1:]
        return decisions

    monkeypatch.setattr(run_state, "filter_reply", strict)
    run(tmp_path / "whole", seeds, max_requests=20)
    assert (tmp_path / "whole" / "regen.replaced-1.json").read_bytes() == whole
    assert "more tasks than this run has" in capsys.readouterr().out


def test_a_folder_in_place_of_a_file_is_named(fake, seeds, tmp_path):
    """regen.json or journal.jsonl that is a folder: the error says so, and blames no disk."""
    for name in ("regen.json", "journal.jsonl"):
        (tmp_path / name / name).mkdir(parents=True)
        with pytest.raises((FileError, JournalError), match=f"{name}: .*folder") as caught:
            run(tmp_path / name, seeds)
        assert "free some space" not in str(caught.value)


def test_what_a_kill_leaves_is_removed(fake, seeds, tmp_path):
    """Half-written files of a killed process go with the next start; other files stay."""
    fake.respond = good_reply
    (tmp_path / "..regen-new.json.0a1b2c3d.tmp").write_text("[")
    for name in (".regen.json.swp", "regen.json.bak", ".regen-new.json.mine"):
        (tmp_path / name).write_text("mine")
    run(tmp_path, seeds)
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {".regen.json.swp", "regen.json.bak", ".regen-new.json.mine", "regen.json"}
    assert not [name for name in names if name.endswith(".tmp")] and ".regen-new.json" not in names


# --- the journal --------------------------------------------------------------------


def delete_a_line(found, draw):
    """A line in the middle is gone."""
    del found[draw.randrange(1, len(found))]


def swap_two_lines(found, draw):
    """Two lines in the middle are swapped."""
    a, b = draw.sample(range(1, len(found)), 2)
    found[a], found[b] = found[b], found[a]


def add_garbage(found, draw):
    """Bytes after the last line, without a newline: a torn line."""
    found.append("\x00\x07garbage")


def add_a_garbage_line(found, draw):
    """A complete line that is none."""
    found.append("garbage\n")


def join_another(found, draw):
    """The same journal once more."""
    found += list(found)


def repeat_a_line(found, draw):
    """A line stands twice."""
    found.append(found[draw.randrange(1, len(found))])


def change_types(found, draw):
    """Values of other types in a reply."""
    n = next(n for n, line in enumerate(found) if '"reply"' in line)
    row = json.loads(found[n])
    name = draw.choice(list(row["reply"]))
    row["reply"][name] = draw.choice([None, [], {}])
    found[n] = json.dumps(row) + "\n"


def nest_deeply(found, draw):
    """A line that no parser can follow."""
    found.insert(2, "[" * 100_000 + "\n")


def change_a_number(found, draw):
    """A request's number that is none."""
    n = next(n for n, line in enumerate(found) if '"reply"' in line)
    row = json.loads(found[n])
    row["request"] = draw.choice([-1, 1.5, "2", None, True, [3]])
    found[n] = json.dumps(row) + "\n"


def change_money(found, draw):
    """Dollars that are none."""
    n = next(n for n, line in enumerate(found) if '"sent"' in line)
    row = json.loads(found[n])
    row["usd"] = draw.choice([-1, float("nan"), float("inf"), "many", None, True])
    found[n] = json.dumps(row) + "\n"


def break_a_batch(found, draw):
    """A batch's state of other types."""
    found.append(
        json.dumps({"batch": "f", "requests": draw.choice(["abc", [1.5], None, 3])}) + "\n"
    )


REFUSED = [add_a_garbage_line, join_another, change_types, nest_deeply, change_a_number,
           change_money, break_a_batch]  # fmt: skip
MENDED = [delete_a_line, swap_two_lines, add_garbage, repeat_a_line]


@pytest.mark.parametrize("edit", [*MENDED, *REFUSED])
def test_edits_of_a_journal(fake, seeds, tmp_path, whole, edit):
    """The same tasks in the end, or a refusal that names the line; never another result."""
    original = lines(tmp_path / "whole")
    for seed in range(12):
        folder = tmp_path / f"edited {seed}"
        shutil.copytree(tmp_path / "whole", folder)
        found = list(original)
        edit(found, random.Random(seed))
        (folder / "journal.jsonl").write_text("".join(found), encoding="utf-8")
        if edit in REFUSED:
            with pytest.raises(JournalError, match=r"journal\.jsonl, line \d+: "):
                run(folder, seeds)
        else:
            run(folder, seeds)
        assert (folder / "regen.json").read_bytes() == whole


def test_two_journals_of_one_configuration_are_not_mixed(fake, seeds, tmp_path, whole):
    """Replies of another run of the same settings after the own ones: refused by line."""
    fake.respond = lambda body: good_reply({"seed": body["seed"] + 1})
    run(tmp_path / "other", seeds)
    found = lines(tmp_path / "whole")[:9] + lines(tmp_path / "other")[1:]
    (tmp_path / "whole" / "journal.jsonl").write_text("".join(found))
    with pytest.raises(JournalError, match=r"line \d+: is a second reply to request \d+"):
        run(tmp_path / "whole", seeds)


def test_a_second_run_is_refused_even_without_the_lock_file(fake, seeds, tmp_path):
    """Who deletes the lock file of a run does not get two runs into one journal."""
    journal = Journal(tmp_path, {})
    (tmp_path / ".generation.lock").unlink()
    with pytest.raises(JournalError, match="another run"):
        Journal(tmp_path, {})
    journal.close()
    Journal(tmp_path, {}).close()


def test_a_disk_that_is_full_at_any_write(fake, seeds, tmp_path, whole, monkeypatch):
    """Whichever write fails: an error with the fix, and with room again the same bytes."""
    real, left = os.write, [0]

    def write(handle, data):
        left[0] -= 1
        if left[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle, data)

    draw = random.Random(0)
    for number in range(6):
        folder = tmp_path / f"full {number}"
        left[0] = draw.randrange(1, 40)
        monkeypatch.setattr("alpaca_lib.files.os.write", write)
        with pytest.raises(AlpacaError, match="free some space"):
            run(folder, seeds, concurrency=2)
        left[0] = 0
        run(folder, seeds, concurrency=2)
        assert (folder / "regen.json").read_bytes() == whole


# --- stopping -----------------------------------------------------------------------


@pytest.mark.posix  # os.kill ends a process of Windows
def test_a_second_interrupt_says_what_it_does(capsys):
    """The first waits for open requests, the second cancels them; each prints a line."""
    events, said = queue.SimpleQueue(), []

    async def work(stop):
        events.put("event")
        await asyncio.sleep(30)

    def interrupt(event):
        raise KeyboardInterrupt

    def interrupt_again():
        while not said:
            time.sleep(0.05)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt_again, daemon=True).start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_async(work, events, interrupt, said.append)
    assert time.monotonic() - start < 10
    assert "interrupt again" in said[0] and "cancelling" in said[1]


# --- documents ----------------------------------------------------------------------


@pytest.mark.posix
def test_documents_do_not_lead_out_of_their_folder(tmp_path):
    """A link to a file or folder elsewhere is refused by name; one inside is read."""
    from alpaca_lib.errors import DataError
    from alpaca_lib.generation.documents import load_passages

    folder, secret = tmp_path / "docs", tmp_path / "private.txt"
    folder.mkdir()
    secret.write_text("The password.")
    (folder / "a.txt").write_text("Tides follow the moon.")
    (folder / "b.txt").symlink_to("a.txt")
    assert {p.file for p in load_passages(folder)} == {"a.txt", "b.txt"}
    for target in (secret, tmp_path):
        (folder / "c.txt").symlink_to(target)
        with pytest.raises(DataError, match=r"c\.txt: is a link to .* outside"):
            load_passages(folder)
        (folder / "c.txt").unlink()
    assert load_passages(Path(folder / "a.txt"))
