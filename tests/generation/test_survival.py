"""Whatever happens to a run, it ends as if nothing had: faults, kills, full disks, budgets."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import threading
import time

import pytest

from alpaca_lib.errors import JournalError
from alpaca_lib.generation.budget import load_prices
from alpaca_lib.generation.journal import Journal
from alpaca_lib.generation.self_instruct import Limits, Settings, generate
from alpaca_lib.generation.teacher import open_teacher

SETTINGS = Settings(tasks_wanted=60, seeds_per_prompt=3, tasks_per_request=3, seed=5)
HEADER = "Write {count} tasks."
WORDS = [a + b for a in ("ba", "ke", "lo", "mu", "ni", "po") for b in ("dan", "fol", "gim", "ner")]


def good_reply(body):
    """Three tasks that depend on the request's seed alone."""
    draw = random.Random(body["seed"])
    entries = [
        f"{n}. Instruction: Say {' '.join(draw.sample(WORDS, 8))}.\n{n}. Input:\n<noinput>\n"
        f"{n}. Output:\nsaid\n"
        for n in (4, 5, 6)
    ]
    return "###\n".join(entries).removeprefix("4. Instruction:")


def run(folder, seeds, settings=SETTINGS, progress=lambda p: None, timeout=60.0, **limits):
    """One generation run with the openai teacher; what it says goes to the list ``said``."""
    with open_teacher("openai", "fake-model", timeout=timeout) as teacher:
        return generate(
            teacher, seeds, HEADER, settings, folder, Limits(**limits), progress=progress
        )


@pytest.fixture
def whole(fake, seeds, tmp_path):
    """regen.json of a run that nothing disturbs."""
    fake.respond = good_reply
    run(tmp_path / "whole", seeds)
    fake.requests.clear()
    return (tmp_path / "whole" / "regen.json").read_bytes()


class Faulty:
    """A server that does something wrong with a fifth of all requests, in eight ways."""

    def __init__(self, seed, chat):
        self.draw, self.chat, self.lock = random.Random(seed), chat, threading.Lock()
        self.answered = {}
        self.kinds = dict.fromkeys(
            ("429 and when", "429", "500", "hang", "cut", "not JSON", "empty", "no choices"), 0
        )

    def __call__(self, body):
        with self.lock:
            fails = self.draw.random() < 0.2
            kind = self.draw.choice(list(self.kinds))
        error = {"error": {"message": "no", "code": "rate_limit_exceeded"}}
        if fails:
            self.kinds[kind] += 1
        if not fails or kind == "empty":
            self.answered[body["seed"]] = self.answered.get(body["seed"], 0) + 1
            return 200, {}, self.chat("" if fails else good_reply(body))
        if kind == "hang":
            time.sleep(4)
            return 200, {}, b"too late"
        return {
            "429 and when": (429, {"retry-after": "0.01"}, error),
            "429": (429, {}, error),
            "500": (500, {}, error),
            "cut": (200, {"Content-Length": "100000"}, b'{"choices": ['),
            "not JSON": (200, {}, b"what?"),
            "no choices": (200, {}, {"choices": []}),
        }[kind]


@pytest.mark.parametrize("seed", range(3))
def test_a_fifth_of_all_requests_fails(fake, seeds, tmp_path, make_chat, seed):
    """The run ends with enough tasks, no request is answered twice, and every answer that
    was given is in the journal."""
    fake.respond = faulty = Faulty(seed, make_chat)
    settings = SETTINGS.replace(tasks_wanted=180)
    outcome = run(tmp_path, seeds, settings, timeout=2.0, concurrency=8)
    assert outcome.ended == "enough" and len(outcome.kept) >= 180
    assert set(faulty.answered.values()) == {1}
    lines = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert len([line for line in lines if "reply" in line]) == len(faulty.answered)
    assert sum(faulty.kinds.values()) >= 5


def kill_at_random(folder, seeds, seconds, settings=SETTINGS, started=lambda: True, **limits):
    """Whether a run in a process of its own was killed before it ended.

    seconds: how long it runs, from when ``started`` says that it has begun.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            run(folder, seeds, settings, **{"concurrency": 3, **limits})
            code = 0
        finally:
            os._exit(code)
    deadline = None
    while deadline is None or time.monotonic() < deadline:
        if deadline is None and started():
            deadline = time.monotonic() + seconds
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0
            return False
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kills_at_random_moments(fake, seeds, tmp_path, whole):
    """SIGKILL again and again: the same bytes as without, and only requests that were on
    their way are asked again."""
    fake.delay = lambda body: 0.01
    draw, kills, runs = random.Random(1), 0, 0
    while kills < 40 and runs < 30:
        folder = tmp_path / f"run {runs}"
        fake.requests.clear()
        mine = 0

        def killed(folder=folder):
            """Kills it at any moment, or some time after a request: however slowly it starts."""
            count, early = len(fake.requests), draw.random() < 0.5
            return kill_at_random(
                folder,
                seeds,
                draw.uniform(0.02, 0.35),
                started=lambda: early or len(fake.requests) > count,
            )

        while killed():
            mine += 1
            assert mine < 60
        assert (folder / "regen.json").read_bytes() == whole
        # 20 replies hold 60 tasks; each kill loses at most the three that were on their way.
        assert 20 <= len(fake.requests) <= 20 + 3 * (mine + 1)
        kills, runs = kills + mine, runs + 1
    assert kills >= 40


def test_a_full_disk_loses_nothing(fake, seeds, tmp_path, whole):
    """The disk fills up in the middle: an error with the fix, and with room again the same
    result; no answer that is in the journal is asked for again."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, limits[1]))
    try:
        with pytest.raises(JournalError, match="free some space"):
            run(tmp_path / "full", seeds, concurrency=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    first = [body["seed"] for body in fake.requests]
    run(tmp_path / "full", seeds, concurrency=1)
    again = [body["seed"] for body in fake.requests][len(first) :]
    assert len(first) > 2 and set(first[:-1]).isdisjoint(again)
    assert (tmp_path / "full" / "regen.json").read_bytes() == whole


def test_two_runs_on_one_folder(fake, seeds, tmp_path):
    """The second is refused while the first goes on, and the first is not disturbed."""
    release = threading.Event()
    fake.respond, fake.delay = good_reply, lambda body: release.wait(20) * 0.0
    done = []
    first = threading.Thread(target=lambda: done.append(run(tmp_path, seeds)))
    first.start()
    try:
        while not fake.requests:
            time.sleep(0.01)
        with pytest.raises(JournalError, match="another run"):
            run(tmp_path, seeds)
    finally:
        release.set()
        first.join()
    assert len(done[0].kept) >= 60


@pytest.mark.parametrize("after", [1, 7])
def test_an_interrupt_keeps_what_is_on_its_way(fake, seeds, tmp_path, whole, after, capsys):
    """Ctrl-C: the replies on their way are waited for and kept; the next start goes on."""
    fake.delay = lambda body: 0.02

    def interrupt(progress):
        if progress.requests == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", seeds, progress=interrupt, concurrency=4)
    assert "interrupt again" in capsys.readouterr().out
    first = [body["seed"] for body in fake.requests]
    assert (tmp_path / "stopped" / "regen.json").exists()
    outcome = run(tmp_path / "stopped", seeds, concurrency=4)
    again = [body["seed"] for body in fake.requests][len(first) :]
    assert outcome.resumed_requests == len(first) < 20 and set(first).isdisjoint(again)
    assert (tmp_path / "stopped" / "regen.json").read_bytes() == whole


def test_an_error_in_the_callers_progress_stops_the_run(fake, seeds, tmp_path):
    """A broken progress function is its caller's error, and the folder is free afterwards."""
    fake.respond = good_reply
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, seeds, progress=lambda progress: 1 / 0)
    assert len(run(tmp_path, seeds).kept) >= 60


# --- money --------------------------------------------------------------------------


@pytest.fixture
def prices(tmp_path):
    """A prices file in which the fake's replies (100 tokens in, 50 out) cost 0.0002 dollars."""
    path = tmp_path / "prices.yaml"
    path.write_text(
        "dated: 2026-01-01\nmodels:\n  fake-model: {input: 1.0, output: 2.0, ways: {flex: 0.5}}\n"
    )
    return path


@pytest.mark.parametrize("concurrency", [1, 8])
def test_the_budget_is_never_passed(fake, seeds, tmp_path, whole, prices, concurrency):
    """Every reply may be as long as allowed: it stops in time, and a larger budget goes on."""
    fake.respond = good_reply
    price = load_prices(prices)["fake-model"]
    settings = SETTINGS.replace(max_tokens=50)
    spent = []
    for dollars in (0.0, 0.0011, 0.0025, 1.0):
        outcome = run(
            tmp_path / "paid", seeds, settings, prices_path=prices, max_usd=dollars,
            concurrency=concurrency,
        )  # fmt: skip
        spent.append(len(fake.requests) * price.cost(100, 50))
        assert spent[-1] <= dollars and outcome.usd == pytest.approx(outcome.requests * 0.0002)
        assert outcome.ended == ("enough" if dollars == 1.0 else "budget")
    assert spent[0] == 0 and 0 < spent[1] < spent[2] < spent[3]
    assert spent[1] > 0.0011 / 3 and len(fake.requests) == 20


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_budget_holds_across_kills(fake, seeds, tmp_path, prices):
    """Requests on their way when a run is killed may have been paid for: they count, so that
    all that the server was ever asked costs no more than max_usd."""
    fake.respond, fake.delay = good_reply, lambda body: 0.02
    price = load_prices(prices)["fake-model"].cost(100, 50)
    settings = SETTINGS.replace(max_tokens=50, tasks_wanted=600)
    limits = {"max_usd": 0.03, "prices_path": prices, "concurrency": 8}
    draw, kills = random.Random(2), 0

    def killed():
        """Kills a run some time after its first request, however slowly it starts."""
        count = len(fake.requests)
        return kill_at_random(
            tmp_path,
            seeds,
            draw.uniform(0.05, 0.3),
            settings,
            started=lambda: len(fake.requests) > count,
            **limits,
        )

    while killed():
        kills += 1
        assert kills < 100 and len(fake.requests) * price <= 0.03
    assert kills >= 2 and 0.005 < len(fake.requests) * price <= 0.03
    outcome = run(tmp_path, seeds, settings, **limits)
    assert outcome.ended == "budget" and outcome.usd + outcome.lost_usd <= 0.03 + 1e-9
    assert outcome.lost_usd > 0


def left_by_a_kill(path):
    """Dollars that a journal says are spent, lost or on their way."""
    dollars, sent = 0.0, {}
    for line in map(json.loads, path.read_text().splitlines()):
        if "sent" in line:
            sent[line["sent"]] = line["usd"]
        elif "reply" in line or "lost" in line:
            sent.pop(line["request"], None)
            dollars += line["usd"] if "lost" in line else line["reply"]["usd"]
        elif "unsent" in line:
            sent.pop(line["unsent"], None)
    return dollars + sum(sent.values())


@pytest.mark.parametrize("seed", range(4))
def test_at_no_moment_does_the_journal_pass_the_budget(
    fake, seeds, tmp_path, prices, monkeypatch, seed
):  # fmt: skip
    """After each line, what a kill right then would leave is within max_usd: requests that the
    budget was about to hold back are not in it, and a reply's reserve is not spent again before
    the reply is on disk."""
    draw, moments, write, append = random.Random(seed), [], Journal._write, Journal.append

    def respond(body):
        lost = draw.random() < 0.2
        return (200, {"Content-Length": "100000"}, b"{") if lost else good_reply(body)

    def watched(self, *args, **options):
        offset = write(self, *args, **options)
        moments.append(left_by_a_kill(self.path))
        return offset

    def slow(self, *args):
        time.sleep(0.02)
        append(self, *args)

    monkeypatch.setattr(Journal, "_write", watched)
    monkeypatch.setattr(Journal, "append", slow)
    fake.respond = respond
    settings = SETTINGS.replace(max_tokens=50, tasks_wanted=600)
    limits = {"max_usd": 0.01, "prices_path": prices, "concurrency": 8}
    outcome = run(tmp_path, seeds, settings, **limits)
    assert outcome.ended == "budget" and outcome.lost_usd > 0 and outcome.requests > 5
    assert 0.008 < max(moments) <= 0.01 + 1e-9
    assert moments[-1] == pytest.approx(outcome.usd + outcome.lost_usd)


def test_lost_attempts_count_against_the_budget(fake, seeds, tmp_path, prices):
    """Whether an attempt without an answer was paid for is not known: it counts, for ever."""
    fake.respond = lambda body: (200, {"Content-Length": "100000"}, b"{")
    settings = SETTINGS.replace(max_tokens=50)
    limits = {"prices_path": prices, "max_usd": 0.004, "concurrency": 2}
    first = run(tmp_path, seeds, settings, **limits)
    assert first.ended == "budget" and 0.003 < first.lost_usd <= 0.004
    count = len(fake.requests)
    second = run(tmp_path, seeds, settings, **limits)
    assert second.ended == "budget" and second.lost_usd == pytest.approx(first.lost_usd)
    assert len(fake.requests) == count


def test_what_was_paid_is_what_it_cost_then(fake, seeds, tmp_path, prices, make_chat):
    """Replies without counts cost all that was reserved, and those of a dearer way their own
    price: after a resume as before, and cheaper prices now make nothing of it free."""

    def respond(body):
        answer = make_chat(good_reply(body))
        del answer["usage"]
        return 200, {}, answer

    fake.respond = respond
    settings = SETTINGS.replace(max_tokens=50)
    limits = {"prices_path": prices, "max_usd": 0.004, "concurrency": 1}
    first = run(tmp_path, seeds, settings, **limits)
    assert first.ended == "budget" and 0.003 < first.usd <= 0.004
    count = len(fake.requests)
    again = run(tmp_path, seeds, settings, **limits)
    assert len(fake.requests) == count and again.usd == pytest.approx(first.usd)
    cheaper = run(tmp_path, seeds, settings, **limits, way="flex", max_requests=count)
    assert cheaper.usd == pytest.approx(first.usd)


def test_a_budget_needs_a_price(fake, seeds, tmp_path):
    """A limit that cannot be kept is refused before anything is asked."""
    with pytest.raises(ValueError, match=r"prices\.yaml"):
        run(tmp_path, seeds, max_usd=5.0)
    assert fake.requests == []


def test_flex_is_asked_for_and_paid_at_its_price(fake, seeds, tmp_path, prices):
    """way="flex" sends the service tier and counts half the price."""
    fake.respond = good_reply
    outcome = run(tmp_path, seeds, prices_path=prices, way="flex")
    assert {body["service_tier"] for body in fake.requests} == {"flex"}
    assert outcome.usd == pytest.approx(outcome.requests * 0.0001)


# --- the key ------------------------------------------------------------------------


def test_the_key_is_nowhere(fake, seeds, tmp_path, make_chat, capsys):
    """A server that repeats the key everywhere does not get it into a file, a message or the
    output: it is in the request's header alone."""
    answers = iter(range(1000))

    def respond(body):
        number = next(answers)
        error = {"error": {"message": "key secret-123", "code": "x", "param": "secret-123"}}
        if number % 3 == 0:
            return 500, {"x-note": "secret-123"}, error
        if number % 7 == 1:
            return 400, {}, {"error": {"message": "secret-123", "code": "content_filter"}}
        return good_reply(body)

    fake.respond = respond
    progressed = []
    run(tmp_path, seeds, progress=lambda p: progressed.append(f"{p} {p!r}"))
    fake.respond = lambda body: (401, {}, {"error": {"message": "bad secret-123"}})
    with pytest.raises(Exception, match="refused") as caught:
        run(tmp_path, seeds, SETTINGS.replace(tasks_wanted=200))
    texts = [*progressed, *capsys.readouterr(), str(caught.value), repr(caught.value)]
    texts += [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(texts) > 20 and not any("secret-123" in text for text in texts)
    assert all(h["authorization"] == "Bearer secret-123" for h in fake.headers)


def test_a_port_that_nobody_answers(seeds, tmp_path, monkeypatch):
    """A server that accepts and never answers: an error in time, with the fix."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", "secret-123")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        with open_teacher("openai", "m", timeout=0.2) as teacher:
            teacher.tries = 2
            with pytest.raises(RuntimeError, match="resume later"):
                generate(teacher, seeds, HEADER, SETTINGS, tmp_path)
