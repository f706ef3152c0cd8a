"""Runs by the Batch API against a fake of OpenAI's: the same bytes as online, nothing paid twice.

A request that has no fault of its own may be answered by the server once in its life; every
test that breaks something looks at that, and at regen.json.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
import os
import random
import re
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import openai
import pytest
import yaml

from alpaca_lib.errors import DataError, TeacherError
from alpaca_lib.generation import backoff, batch_api
from alpaca_lib.generation.journal import Journal
from alpaca_lib.generation.prompting import Prompter
from alpaca_lib.generation.run_state import RunState
from alpaca_lib.generation.self_instruct import Limits, Settings, generate, send_requests
from alpaca_lib.generation.teacher import Teacher, open_teacher

KEY = "secret-123"
HEADER = "Write {count} tasks."
# Four requests would do; 1.3 times as many are five, which keep ten; the sixth is a second batch.
SETTINGS = Settings(
    tasks_wanted=12, seeds_per_prompt=3, tasks_per_request=3, seed=5, max_tokens=100
)
WORDS = [
    f"{a}{b}"
    for a in ["ba", "ke", "lo", "mu", "ni", "po", "ra", "su", "ti", "ve"]
    for b in ["dan", "fol", "gim", "ner", "tup"]
]
KINDS = {
    ("POST", "/v1/files"): "upload",
    ("POST", "/v1/batches"): "create",
    ("GET", "/v1/batches"): "list",
    ("GET", "/v1/batches/"): "look",
    ("GET", "/v1/files//content"): "download",
    ("POST", "/v1/chat/completions"): "chat",
}
EXPIRED = {"code": "batch_expired", "message": "This request could not be executed before the end."}
YAML = functools.cache(yaml.safe_load)
TLS = functools.cache(ssl.create_default_context)
PRICES = """dated: 2026-01-01
models:
  fake-model: {input: 1000, cached: 300, output: 4000, ways: {batch: 0.5}}
  dear-model: {input: 1000, output: 4000}
"""


def request_of(body) -> int:
    """The number of the request, which its seed carries."""
    return body["seed"] - SETTINGS.seed * 1_000_003


def good_reply(body, times=0) -> str:
    """Three tasks that depend on the request alone; the third repeats the first."""
    draw = random.Random(request_of(body))
    first, second = draw.sample(WORDS, 6), draw.sample(WORDS, 6)
    return "###\n".join(
        f"{n}. Instruction: Say {' '.join(words)}.\n{n}. Input:\n<noinput>\n"
        f"{n}. Output:\n{words[0]}\u2028é\x85您\n"
        for n, words in [(4, first), (5, second), (6, first)]
    ).removeprefix("4. Instruction:")


def chat(body, text: str | None) -> dict:
    """A chat completion as OpenAI sends it; each request has a usage of its own."""
    number = request_of(body)
    usage = {
        "prompt_tokens": 100 + number,
        "completion_tokens": 50 + number,
        "total_tokens": 150 + 2 * number,
        "prompt_tokens_details": {"cached_tokens": 7},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"id": "chatcmpl-1", "object": "chat.completion", "choices": [choice], "usage": usage}


def refusal(message: str, code: str | None = None, status: int = 400, param: str | None = None):
    """An error as respond() returns it."""
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return status, {"error": error}


@dataclass
class Made:
    """A batch that the server has made."""

    id: str
    file: str
    numbers: list[int] = field(default_factory=list)
    status: str = "completed"
    looks: int = 0
    output: str | None = None
    error: str | None = None
    errors: dict | None = None


class FakeBatches:
    """OpenAI's files, batches and chat completions; remembers everything it was asked.

    respond(body, times): the answer to a request that it has answered ``times`` times: a text,
    (status, content), or None: the batch ended before.
    ending(n): the status in which batch number n ends.
    faults[kind]: what goes wrong with the next calls of that kind; always[kind]: with all.
    "reset" and "lost" break the connection before and after the work is done; "500" and "429"
    do not do the work, "504" does; "cut" breaks off in the answer; (status, content) is said.
    """

    def __init__(self) -> None:
        self.respond = good_reply
        self.ending = lambda n: "completed"
        self.errors: dict | None = None  # of a batch that fails
        self.polls = 1  # looks at a batch that is not done
        self.tells_expired = True  # requests that were not executed have a line
        self.edit = lambda lines: lines  # the output file's lines
        self.before = self.after = lambda kind: None
        self.faults: dict[str, list] = {}
        self.always: dict[str, object] = {}
        self.headers = {"retry-after-ms": "1"}  # of an error
        self.calls: list[str] = []
        self.said: list[bytes] = []  # bodies of all requests
        self.wrong: list[str] = []  # requests that OpenAI would refuse
        self.files: dict[str, bytes] = {}
        self.names: dict[str, str] = {}
        self.made: list[Made] = []
        self.others: list[Made] = []  # newer batches of the same account
        self.paid: Counter[int] = Counter()  # how often a request was answered with 200
        self.answered: Counter[int] = Counter()
        self.usd = 0.0  # by PRICES, by batch
        self.lock, self.ids = threading.Lock(), itertools.count(1)
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # headers and body are two writes

            def do_GET(self):
                fake.serve(self, "GET")

            def do_POST(self):
                fake.serve(self, "POST")

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        """Closes the port."""
        self.server.shutdown()
        self.server.server_close()

    def serve(self, handler, method: str) -> None:
        """Reads a request, does the work unless a fault forbids it, and answers."""
        url = urlsplit(handler.path)
        data = handler.rfile.read(int(handler.headers["Content-Length"] or 0))
        parts = url.path.split("/")
        name = parts[3] if len(parts) > 3 and parts[2] != "chat" else ""
        kind = KINDS.get((method, url.path.replace(name, "") if name else url.path), "unknown")
        with self.lock:
            self.calls.append(kind)
            self.said.append(data)
            fault = self.faults.get(kind) and self.faults[kind].pop(0)
            fault = fault or self.always.get(kind)
            self.before(kind)
            if handler.headers["Authorization"] != f"Bearer {KEY}":
                self.wrong.append("no key")
            if len(self.calls) > 1500 or len(self.made) > 15:  # a run that would never end
                fault = (401, {"error": {"message": "the server has had enough"}})
            if isinstance(fault, tuple):
                status, content = fault
            elif fault in ("500", "429"):
                status, content = int(fault), {"error": {"message": "busy", "code": "busy"}}
            elif fault != "reset":
                status, content = self.work(kind, name, data, handler.headers, parse_qs(url.query))
                self.after(kind)
            if fault == "504":
                status, content = 504, b"<html>gateway timeout</html>"
        if fault in ("reset", "lost"):
            self.drop(handler)
            return
        text = content if isinstance(content, bytes) else json.dumps(content).encode()
        try:
            handler.send_response(status)
            json_ = not isinstance(content, bytes)
            handler.send_header("Content-Type", "application/json" if json_ else "text/plain")
            handler.send_header("Content-Length", str(len(text)))
            for header in self.headers.items() if status != 200 else ():
                handler.send_header(*header)
            handler.end_headers()
            handler.wfile.write(text[: len(text) // 2] if fault == "cut" else text)
            if fault == "cut":
                handler.wfile.flush()
                self.drop(handler, linger=False)
        except OSError:  # the client is gone
            handler.close_connection = True

    def drop(self, handler, linger: bool = True) -> None:
        """Breaks the connection."""
        if linger:  # no polite end, but a reset
            option = struct.pack("ii", 1, 0)
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)
        handler.close_connection = True

    def work(self, kind, name, data, headers, query):
        """(status, content) of a call that goes well."""
        if kind == "chat":
            return self.chat(json.loads(data))
        if kind == "upload":
            return 200, self.upload(data, headers["Content-Type"])
        if kind == "create":
            return self.create(json.loads(data))
        if kind == "look" and (found := [made for made in self.made if made.id == name]):
            found[0].looks += 1
            return 200, self.shown(found[0])
        if kind == "download" and name in self.files:
            return 200, self.files[name]
        if kind == "list":
            return 200, self.listed(query)
        return 404, {"error": {"message": f"No such object: {name}", "code": None, "param": "id"}}

    def listed(self, query: dict) -> dict:
        """A page of the batches, the newest first."""
        found = [self.shown(made) for made in reversed([*self.made, *self.others])]
        ids = [one["id"] for one in found]
        first = ids.index(query["after"][0]) + 1 if "after" in query else 0
        last = first + min(int(query.get("limit", ["20"])[0]), 100)
        page = found[first:last]
        ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {}
        return {"object": "list", "data": page, "has_more": last < len(found), **ends}

    def chat(self, body):
        """(status, content) of one request, which is answered now."""
        number = request_of(body)
        answer = self.respond(body, self.answered[number])
        self.answered[number] += 1
        if isinstance(answer, str):
            answer = 200, chat(body, answer)
        if answer and answer[0] == 200:
            self.paid[number] += 1
            if usage := answer[1].get("usage"):
                self.usd += cost(usage["prompt_tokens"] - 7, usage["completion_tokens"], 7)
        return answer

    def upload(self, data: bytes, content_type: str) -> dict:
        """Keeps the file of a multipart form."""
        boundary = content_type.split("boundary=")[1].encode()
        form: dict[str, tuple[bytes, bytes]] = {}
        for part in data.split(b"--" + boundary)[1:-1]:
            head, _, value = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
            name = re.search(rb'\bname="([^"]*)"', head)
            form[name[1].decode()] = head, value.removesuffix(b"\r\n")
        if form["purpose"][1] != b"batch":
            self.wrong.append("purpose is not batch")
        name = f"file-{next(self.ids)}"
        self.names[name] = re.search(rb'filename\*?="?([^"\r]*)', form["file"][0])[1].decode()
        self.files[name] = form["file"][1]
        size = len(self.files[name])
        about = {"filename": self.names[name], "purpose": "batch", "status": "processed"}
        return {"id": name, "object": "file", "bytes": size, "created_at": 1, **about}

    def create(self, asked: dict):
        """Makes a batch; what it will answer is decided at once."""
        file, lines = asked["input_file_id"], []
        if file not in self.files:
            return 400, {"error": {"message": f"No such File object: {file}", "code": None}}
        if (asked["endpoint"], asked["completion_window"]) != (batch_api.ENDPOINT, "24h"):
            self.wrong.append(f"asked for {asked}")
        lines = [json.loads(line) for line in self.files[file].splitlines()]
        ids = [line["custom_id"] for line in lines]
        if not ids or len(set(ids)) < len(ids) or not self.files[file].endswith(b"\n"):
            self.wrong.append(f"custom ids {ids}")
        for line in lines:
            if (sorted(line), line["method"], line["url"]) != (
                ["body", "custom_id", "method", "url"], "POST", batch_api.ENDPOINT,
            ):  # fmt: skip
                self.wrong.append(f"line {line}")
        made = Made(f"batch_{next(self.ids)}", file, status=self.ending(len(self.made)))
        made.numbers = [request_of(line["body"]) for line in lines]
        self.made.append(made)
        if made.status == "failed":
            made.errors = self.errors
        else:
            self.execute(made, lines)
        return 200, self.shown(made)

    def execute(self, made: Made, lines: list[dict]) -> None:
        """Answers a batch's requests, in another order, into its two files."""
        output, errors = [], []
        random.Random(len(self.made)).shuffle(lines)
        for line in lines:
            answer = self.chat(line["body"])
            status, body = answer or (0, None)
            response = {"status_code": status, "request_id": "req", "body": body}
            error = EXPIRED if answer is None else None
            found = {"id": "batch_req_1", "custom_id": line["custom_id"],
                     "response": None if error else response, "error": error}  # fmt: skip
            if answer is not None or self.tells_expired:
                text = json.dumps(found, ensure_ascii=False)
                (output if status == 200 else errors).append(text)
        for name, texts in (("output", self.edit(output) if output else []), ("error", errors)):
            if texts:
                setattr(made, name, f"file-{next(self.ids)}")
                self.files[getattr(made, name)] = "".join(t + "\n" for t in texts).encode()

    def shown(self, made: Made) -> dict:
        """A batch as the API shows it."""
        done = made.looks > self.polls
        total = len(made.numbers) if made.looks > 1 else 0
        counts = {"total": total, "completed": 0, "failed": 0}
        return {"id": made.id, "object": "batch", "endpoint": batch_api.ENDPOINT,
                "errors": made.errors if done else None, "input_file_id": made.file,
                "completion_window": "24h", "created_at": 1, "metadata": None,
                "status": made.status if done else ["validating", "in_progress"][made.looks > 1],
                "output_file_id": made.output if done else None, "request_counts": counts,
                "error_file_id": made.error if done else None}  # fmt: skip

    def forget(self) -> None:
        """As if nothing had been asked."""
        for record in (self.calls, self.said, self.made, self.paid, self.answered):
            record.clear()

    def asked(self) -> list[list[int]]:
        """The requests of each batch that was executed."""
        return [made.numbers for made in self.made if made.status != "failed"]

    def twice(self) -> list[int]:
        """The requests that were paid for more than once."""
        return sorted(number for number, times in self.paid.items() if times > 1)


def cost(prompt: float, reply: float, cached: float = 0) -> float:
    """Dollars by PRICES, at half the price."""
    return 0.5 * (1000 * prompt + 300 * cached + 4000 * reply) / 1e6


@pytest.fixture
def server(monkeypatch):
    """A running FakeBatches that the environment points to; nothing waits long."""
    fake = FakeBatches()
    point_to(fake, monkeypatch)
    yield fake
    fake.close()
    assert fake.wrong == []


def point_to(fake: FakeBatches, patch) -> None:
    """Makes a FakeBatches the teacher's address."""
    patch.setenv("OPENAI_BASE_URL", fake.url)
    patch.setenv("OPENAI_API_KEY", KEY)
    patch.setattr(batch_api, "POLL", 0.002)
    patch.setattr(backoff, "FIRST_WAIT", 0.005)
    # Hundreds of runs in half a minute: what is read is read once, the disk is not awaited.
    patch.setattr(yaml, "safe_load", YAML)
    patch.setattr(ssl, "create_default_context", TLS)
    patch.setattr(os, "fsync", lambda file: None)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        patch.delenv(name, raising=False)
        patch.delenv(name.lower(), raising=False)
    patch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="module")
def expected(seeds, tmp_path_factory):
    """regen.json of the run that all others must equal: SETTINGS and good_reply(), online."""
    fake, folder = FakeBatches(), tmp_path_factory.mktemp("online")
    with pytest.MonkeyPatch.context() as patch:
        point_to(fake, patch)
        run(folder, seeds, way="online", concurrency=2)
    fake.close()
    return (folder / "regen.json").read_bytes()


@pytest.fixture
def prices(tmp_path):
    """A prices file for the fake models."""
    path = tmp_path / "prices.yaml"
    path.write_text(PRICES)
    return path


def run(folder, seeds, settings=SETTINGS, said=None, way="batch", model="fake-model", tries=10,
        **limits):  # fmt: skip
    """One generation run by batches; what the teacher says goes to ``said``."""
    with open_teacher("openai", model) as teacher:
        teacher.say = (said if said is not None else []).append
        teacher.tries = tries
        return generate(teacher, seeds, HEADER, settings, folder, Limits(way=way, **limits))


def result(folder) -> bytes:
    """The bytes of regen.json."""
    return (folder / "regen.json").read_bytes()


def no_key_in(folder) -> bool:
    """Whether no file below a folder holds the key."""
    return all(KEY.encode() not in p.read_bytes() for p in folder.rglob("*") if p.is_file())


def left_in(folder) -> list[str]:
    """The names of a run's files that are no part of a finished run."""
    usual = {"journal.jsonl", "regen.json"}
    names = {p.name for p in folder.iterdir() if not p.name.endswith("lock")}
    return sorted(names - usual)


# --- a good run ---------------------------------------------------------------------


def test_same_bytes_as_online(server, seeds, tmp_path, expected):
    """Unordered answers of two batches give the regen.json of a run online, and its counts."""
    said: list[str] = []
    server.polls = 4
    outcome = run(tmp_path, seeds, said=said)
    assert result(tmp_path) == expected
    assert (outcome.ended, len(outcome.kept), outcome.requests) == ("enough", 12, 6)
    assert server.asked() == [[0, 1, 2, 3, 4], [5]]
    order = [
        [json.loads(line)["custom_id"] for line in server.files[made.output].splitlines()]
        for made in server.made
    ]
    assert order[0] != [f"request-{n}" for n in range(5)]  # or the test tests nothing
    assert left_in(tmp_path) == []
    assert Counter(server.calls) == {"upload": 2, "create": 2, "look": 10, "download": 2}
    assert len(said) == len(set(said)) and "5 requests handed in" in said[0]


def test_bodies_are_those_of_online(server, seeds, tmp_path):
    """A request's body is byte for byte what goes to /chat/completions online."""
    run(tmp_path / "online", seeds, way="online", concurrency=1)
    online = {request_of(json.loads(text)): json.loads(text) for text in server.said}
    run(tmp_path / "batch", seeds)
    lines = [json.loads(line) for made in server.made for line in server.files[made.file].split(
        b"\n") if line]  # fmt: skip
    assert {request_of(line["body"]): line["body"] for line in lines} == online
    assert [line["custom_id"] for line in lines] == [f"request-{n}" for n in range(6)]


@pytest.mark.parametrize("settings", [
    Settings(tasks_wanted=14, seeds_per_prompt=2, machine_tasks=1, tasks_per_request=3, seed=5,
             window=2),
    Settings(tasks_wanted=9, seeds_per_prompt=3, tasks_per_request=3, seed=5, window=1,
             verbs=("say", "write", "read", "sing", "draw", "think", "walk", "look", "run", "go")),
])  # fmt: skip
def test_prompts_from_earlier_replies(server, seeds, tmp_path, settings):
    """Prompts that show the teacher's own tasks wait for them, and are the same as online."""
    run(tmp_path / "online", seeds, settings, way="online", concurrency=3)
    online = {request_of(json.loads(text)): json.loads(text) for text in server.said}
    server.paid.clear()
    run(tmp_path / "batch", seeds, settings)
    assert result(tmp_path / "batch") == result(tmp_path / "online")
    sent = {request_of(json.loads(line)["body"]): json.loads(line)["body"]
            for made in server.made for line in server.files[made.file].splitlines()}  # fmt: skip
    assert all(sent[number] == body for number, body in online.items())
    assert len(server.made) > 2 and server.twice() == []


def test_files_by_number_of_requests(server, seeds, tmp_path, expected, monkeypatch):
    """Five requests, two a file: three files, each its own batch, no request in two."""
    monkeypatch.setattr(batch_api, "MOST_REQUESTS", 2)
    run(tmp_path, seeds)
    assert server.asked() == [[0, 1], [2, 3], [4], [5]]
    assert result(tmp_path) == expected
    assert len(set(server.names.values())) == 4  # told apart on the provider's page


@pytest.mark.parametrize("spare", [0, 1])
def test_files_by_bytes(server, seeds, tmp_path, expected, monkeypatch, spare):
    """A file may be as large as the limit, and not by one byte larger."""
    run(tmp_path / "whole", seeds)
    sizes = [len(line) + 1 for line in server.files[server.made[0].file].split(b"\n")]
    server.forget()
    limit = sizes[0] + sizes[1] - spare
    monkeypatch.setattr(batch_api, "MOST_BYTES", limit)
    run(tmp_path / "parts", seeds)
    assert server.asked()[0] == [[0, 1], [0]][spare]
    assert all(len(server.files[made.file]) <= limit for made in server.made)
    assert sorted(itertools.chain(*server.asked())) == list(range(6)) and server.twice() == []
    assert result(tmp_path / "parts") == expected


def test_folder_with_any_name(server, seeds, tmp_path, expected):
    """The folder's name goes into the upload's; Chinese, blanks and quotes do no harm."""
    folder = tmp_path / '课程 "一" é'
    run(folder, seeds)
    assert result(folder) == expected


def test_finished_run_asks_nothing_more(server, seeds, tmp_path, expected):
    """Called again on a finished folder it only reads the journal."""
    run(tmp_path, seeds)
    calls = list(server.calls)
    assert run(tmp_path, seeds).resumed_requests == 6
    assert server.calls == calls and result(tmp_path) == expected


def test_max_requests_is_a_limit(server, seeds, tmp_path):
    """No more requests go up than the limit allows, in all rounds together."""
    server.respond = lambda body, times: "nothing"
    outcome = run(tmp_path, seeds, max_requests=7)
    assert (outcome.ended, outcome.kept) == ("max_requests", [])
    assert sorted(itertools.chain(*server.asked())) == list(range(7))


def test_online_run_goes_on_by_batch(server, seeds, tmp_path, expected):
    """What was answered online is not asked again by batch."""
    run(tmp_path, seeds, way="online", max_requests=2, concurrency=1)
    run(tmp_path, seeds)
    assert server.twice() == [] and result(tmp_path) == expected


@pytest.mark.parametrize("kind", ["local", "replay"])
def test_other_teachers_are_refused(server, seeds, tmp_path, kind):
    """Only "openai" has batches; the error names the teacher, and nothing is asked."""
    teacher = Teacher(kind, "fake-model", server.url, KEY)
    with pytest.raises(ValueError, match=f'batch.*{kind}.*only with "openai"'):
        generate(teacher, seeds, HEADER, SETTINGS, tmp_path, Limits(way="batch"))
    assert server.calls == []


# --- requests and batches that fail -------------------------------------------------


@pytest.mark.parametrize("status", [400, 429, 500])
def test_errors_are_asked_again(server, seeds, tmp_path, expected, status):
    """Requests of the error file go into a later batch; those with an answer do not."""
    broken = {1, 3}

    def respond(body, times):
        if request_of(body) in broken and times < 2:
            return refusal("The server had an error", "server_error", status)
        return good_reply(body)

    server.respond = respond
    run(tmp_path, seeds)
    first, *later = server.asked()
    assert first == [0, 1, 2, 3, 4]
    assert Counter(itertools.chain(*later)) == {1: 2, 3: 2, 5: 1}
    assert server.twice() == [] and result(tmp_path) == expected


def test_request_that_always_fails(server, seeds, tmp_path, expected):
    """After three batches a TeacherError with the reason; the rest is kept, and not asked again."""
    server.respond = lambda body, times: (
        refusal("Number two is cursed") if request_of(body) == 2 else good_reply(body)
    )
    with pytest.raises(TeacherError, match=r"127\.0\.0\.1.*request 2 .*Number two is cursed"):
        run(tmp_path, seeds)
    assert batch_api.ROUNDS == 3
    assert Counter(itertools.chain(*server.asked()))[2] == 3
    server.respond = good_reply
    run(tmp_path, seeds)
    assert server.twice() == [] and result(tmp_path) == expected
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("status", ["expired", "cancelled"])
@pytest.mark.parametrize("tells", [True, False])
def test_batch_that_ends_early(server, seeds, tmp_path, expected, status, tells):
    """The answers that an expired batch has are kept, and only the rest is asked again."""
    server.ending = lambda n: status if n == 0 else "completed"
    server.tells_expired = tells
    server.respond = lambda body, times: (
        None if request_of(body) in (0, 3, 4) and not times else good_reply(body)
    )
    run(tmp_path, seeds)
    assert server.asked()[0] == [0, 1, 2, 3, 4]
    assert server.twice() == [] and server.paid.keys() == set(range(6))
    assert not {1, 2} & set(itertools.chain(*server.asked()[1:]))
    assert result(tmp_path) == expected


def test_batch_that_fails(server, seeds, tmp_path, expected):
    """A batch that is refused is a TeacherError with its reasons; the next start makes another."""
    server.ending = lambda n: "failed" if n == 0 else "completed"
    errors = [{"code": "x", "line": n, "message": f"reason {n}", "param": None} for n in (1, 2)]
    server.errors = {"object": "list", "data": errors}
    with pytest.raises(TeacherError, match=r"127\.0\.0\.1.*batch_2.*reason 1; reason 2"):
        run(tmp_path, seeds)
    assert Counter(server.calls)["create"] == 1
    run(tmp_path, seeds)
    assert [made.numbers for made in server.made] == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [5]]
    assert server.made[1].file != server.made[0].file
    assert server.twice() == [] and result(tmp_path) == expected


def test_one_batch_of_several_fails(server, seeds, tmp_path, expected, monkeypatch):
    """The answers of the others are collected by the next start, and only its own asked again."""
    monkeypatch.setattr(batch_api, "MOST_REQUESTS", 2)
    server.ending = lambda n: "failed" if n == 1 else "completed"
    with pytest.raises(TeacherError, match="no reason"):
        run(tmp_path, seeds)
    assert [made.numbers for made in server.made] == [[0, 1], [2, 3], [4]]
    run(tmp_path, seeds)
    assert Counter(itertools.chain(*server.asked())) == dict.fromkeys(range(6), 1)
    assert server.twice() == [] and result(tmp_path) == expected


@pytest.mark.parametrize("errors", [{"object": "list", "data": None}, {"data": []}])
def test_batch_that_fails_without_reasons(server, seeds, tmp_path, errors):
    """The error says that there is no reason."""
    server.ending, server.errors = lambda n: "failed", errors
    with pytest.raises(TeacherError, match="no reason given"):
        run(tmp_path, seeds)


def test_batch_that_fails_with_half_a_reason(server, seeds, tmp_path):
    """An error without a message (the API allows it) does not hide the others."""
    server.ending = lambda n: "failed"
    server.errors = {"data": [{"code": "token_limit", "message": None}, {"message": "reason 2"}]}
    with pytest.raises(TeacherError, match="reason 2"):
        run(tmp_path, seeds)


@pytest.mark.parametrize("code", ["content_filter", "content_policy_violation"])
def test_filtered_request_is_a_counted_reply(server, seeds, tmp_path, code):
    """A prompt that the provider's filter stops counts as a refusal, as online."""
    server.respond = lambda body, times: (
        refusal("Filtered, you see.", code) if request_of(body) == 1 else good_reply(body)
    )
    online = run(tmp_path / "online", seeds, way="online", concurrency=2)
    outcome = run(tmp_path / "batch", seeds)
    assert outcome.reasons() == online.reasons() and outcome.reasons()["the teacher refused"] == 1
    assert result(tmp_path / "batch") == result(tmp_path / "online")
    assert Counter(itertools.chain(*server.asked()))[1] == 1
    assert any(one.text == "Filtered, you see." for one in outcome.rejected)


@pytest.mark.parametrize("code, param", [
    ("unsupported_value", "temperature"),
    ("unsupported_parameter", "max_completion_tokens"),
    pytest.param("unknown_parameter", "top_p"),
])  # fmt: skip
def test_refused_parameter_is_left_out(server, seeds, tmp_path, expected, code, param):
    """What a model will not have is left out of the second batch, as it is online."""
    server.respond = lambda body, times: (
        refusal("no such parameter", code, param=param) if param in body else good_reply(body)
    )
    run(tmp_path / "online", seeds, way="online", concurrency=1)
    server.paid.clear()
    run(tmp_path / "batch", seeds)
    assert [made.numbers for made in server.made] == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [5]]
    assert result(tmp_path / "batch") == expected and server.twice() == []


@pytest.mark.parametrize("param", ["messages", "model"])
def test_needed_parameter_is_not_left_out(server, seeds, tmp_path, param):
    """A complaint about the model or the prompt is an error; they go up all the same."""
    server.respond = lambda body, times: refusal("not this", "unsupported_value", param=param)
    with pytest.raises(TeacherError, match="not this"):
        run(tmp_path, seeds)
    for made in server.made:
        for line in server.files[made.file].splitlines():
            assert param in json.loads(line)["body"]


@pytest.mark.parametrize("junk", [
    *("", "not JSON", "{}", '{"custom_id": "hello", "response": null}', '{"custom_id": null}'),
    *(pytest.param(text)
      for text in ("3", "[1]", '{"custom_id": "request-4", "error": "in words alone"}')),
])  # fmt: skip
def test_lines_that_answer_nothing(server, seeds, tmp_path, expected, junk):
    """Odd lines among the answers do not keep the rest from being read."""
    server.edit = lambda lines: [junk, *lines, junk]
    run(tmp_path, seeds)
    assert result(tmp_path) == expected


def test_reply_that_is_no_completion(server, seeds, tmp_path, expected):
    """A 200 without choices is asked again; when it stays so, it is a TeacherError."""

    def respond(body, times):
        if request_of(body) == 1 and times < respond.healthy:
            return 200, {"choices": []}
        return good_reply(body)

    server.respond, respond.healthy = respond, 9
    with pytest.raises(TeacherError, match=r"request 1 .*no completion"):
        run(tmp_path, seeds)
    respond.healthy = 0
    run(tmp_path, seeds)
    assert result(tmp_path) == expected


@pytest.mark.parametrize("ending", ["completed", "expired"])
def test_request_that_never_gets_a_line(server, seeds, tmp_path, ending):
    """A request that is in neither file fails, too, and after three batches the run stops."""
    server.ending, server.tells_expired = lambda n: ending, False
    server.respond = lambda body, times: None if request_of(body) == 2 else good_reply(body)
    with pytest.raises(TeacherError):
        run(tmp_path, seeds)
    assert len(server.made) <= 6


# --- a network that fails -----------------------------------------------------------


@pytest.mark.parametrize("how", ["500", "429", "reset", "lost", "504", "cut"])
@pytest.mark.parametrize("kind", ["upload", "create", "look", "list", "download"])
def test_passing_faults(server, seeds, tmp_path, expected, kill_after, kind, how):
    """Whatever goes wrong twice with a call: the same bytes, and nothing paid twice."""
    if kind == "list":  # only a run that was killed looks for its batches
        kill_after.at = 3
        with pytest.raises(Killed):
            run(tmp_path, seeds)
        kill_after.at = None
        assert server.calls == ["upload", "create"]
    server.faults[kind] = [how, how]
    run(tmp_path, seeds)
    assert server.faults[kind] == []
    assert server.twice() == [] and result(tmp_path) == expected


@pytest.mark.parametrize("nth", [1, 2])
def test_half_a_download(server, seeds, tmp_path, expected, nth):
    """A run that ends in the middle of a download: the next start reads the file again."""
    server.faults["download"] = [*[None] * (nth - 1), "cut"]
    with contextlib.suppress(Exception):
        run(tmp_path, seeds)
    run(tmp_path, seeds)
    assert server.calls.count("download") == 3
    assert server.twice() == [] and result(tmp_path) == expected
    assert left_in(tmp_path) == []


NO_ANSWERS = {
    "error 429": {"error": {"message": "the server's words", "code": 429}},
    "error of text": {"error": "overloaded"},
    "no field": {},
    "other types": {"id": 5, "status": ["completed"], "data": "none"},
    "null": b"null",
    "a list": b"[]",
    "a web page": b"<!doctype html><html>Welcome</html>",
    "deep": b"[" * 100_000,
    "events": b'data: {"id": "x"}\n\ndata: [DONE]\n\n',
}


@pytest.mark.parametrize("content", NO_ANSWERS.values(), ids=NO_ANSWERS)
@pytest.mark.parametrize("kind", ["upload", "create", "list", "look", "download"])
def test_answers_that_are_none(server, seeds, tmp_path, expected, kind, content):
    """Status 200 and no answer in it, twice: tried again; no batch is made or paid for twice."""
    if kind == "list":  # it is looked for if the answer to its creation was lost
        server.faults["create"] = ["lost"]
    server.faults[kind] = [(200, content)] * 2
    run(tmp_path, seeds)
    assert server.faults[kind] == []
    assert server.twice() == [] and result(tmp_path) == expected


def test_lasting_words_are_shown(server, seeds, tmp_path):
    """An error object within status 200 that stays: the server's message is in the error."""
    server.always["look"] = (200, {"error": {"message": f"no {KEY}, see the docs", "code": 429}})
    with pytest.raises(TeacherError, match=r"no \(the key\), see the docs"):
        run(tmp_path, seeds, tries=2)
    server.always["look"] = (200, {"error": {"message": "account closed", "code": 401}})
    count = len(server.calls)
    with pytest.raises(TeacherError, match="account closed"):
        run(tmp_path, seeds)
    assert len(server.calls) == count + 1


def test_answers_to_other_requests_are_not_taken(server, seeds, tmp_path, expected):
    """Lines for requests that are not in the batch, and the same line twice: once each."""

    def edit(found):
        other = json.loads(found[0])
        others = [json.dumps({**other, "custom_id": f"request-{n}"}) for n in (77, -1)]
        return [*others, *found, *found, *others]

    server.edit = edit
    run(tmp_path, seeds)
    assert server.twice() == [] and result(tmp_path) == expected
    lines = (tmp_path / "journal.jsonl").read_bytes().split(b"\n")[:-1]
    numbers = [json.loads(line).get("request") for line in lines]
    assert 77 not in numbers and -1 not in numbers


@pytest.mark.parametrize("how", ["429", "reset"])
@pytest.mark.parametrize("kind", ["upload", "create", "look", "download"])
def test_lasting_faults(server, seeds, tmp_path, expected, kind, how):
    """A server that stays down is a TeacherError with the address; a later start goes on."""
    server.always[kind] = how
    with pytest.raises(TeacherError, match=r"127\.0\.0\.1"):
        run(tmp_path, seeds, tries=3)
    assert Counter(server.calls)[kind] == 3
    server.always.clear()
    run(tmp_path, seeds)
    assert server.twice() == [] and result(tmp_path) == expected


@pytest.mark.parametrize(
    "kind, status", [("upload", 401), ("create", 403), ("look", 401), ("download", 403)]
)
def test_refused_key(server, seeds, tmp_path, expected, kind, status):
    """A key that is refused is not tried twice; with a good one the run goes on."""
    server.always[kind] = refusal(f"Incorrect API key provided: {KEY}", "x", status)
    with pytest.raises(TeacherError, match="OPENAI_API_KEY"):
        run(tmp_path, seeds)
    assert Counter(server.calls)[kind] == 1
    server.always.clear()
    run(tmp_path, seeds)
    assert server.twice() == [] and result(tmp_path) == expected


@pytest.mark.parametrize("kind", ["upload", "create", "look", "download"])
def test_server_without_batches(server, seeds, tmp_path, kind):
    """A server that has no Batch API, or no such batch any more, is not a wrong model."""
    server.always[kind] = (404, {"detail": "Not Found"})
    with pytest.raises(TeacherError) as caught:
        run(tmp_path, seeds)
    assert "no model" not in str(caught.value)


@pytest.mark.parametrize("kind", ["upload", "create", "look"])
def test_address_of_a_web_page(server, seeds, tmp_path, kind):
    """A 200 that is no answer of the API is a TeacherError."""
    server.always[kind] = (200, b"<html>Welcome</html>")
    with pytest.raises(TeacherError, match=r"127\.0\.0\.1"):
        run(tmp_path, seeds, tries=2)


# --- kill and resume ----------------------------------------------------------------


class Killed(BaseException):
    """What stands for the end of the process."""


@pytest.fixture
def kill_after(monkeypatch):
    """Set ``at`` to n: a run dies right after its n-th step, counted from 0.

    A step is a call of the API, answered or lost on the way back, or a line of the journal
    (those that only judge are left out). Or to a step's name.
    """

    class Steps:
        at: int | str | None = None
        done: list[str]

        def step(self, name: str) -> None:
            self.done.append(name)
            here = len(self.done) > self.at if isinstance(self.at, int) else self.at == name
            if here:
                raise Killed(name)

    steps = Steps()
    steps.done = []
    ask, write = openai.AsyncOpenAI.request, Journal._write

    async def asked(self, cast_to, options, **more):
        answer = await ask(self, cast_to, options, **more)
        steps.step(f"{options.method} {options.url}")
        return answer

    def written(self, line, sync=True):
        offset = write(self, line, sync)
        if sync:
            steps.step(f"line {json.dumps(line)[:13]}")
        return offset

    monkeypatch.setattr(openai.AsyncOpenAI, "request", asked)
    monkeypatch.setattr(Journal, "_write", written)
    return steps


@pytest.mark.parametrize("most, failing", [(9, ()), (3, (1, 4))])
def test_killed_after_each_step(server, seeds, tmp_path, expected, monkeypatch, kill_after, most,
                                failing):  # fmt: skip
    """Killed anywhere and started again: the same bytes, and no answer is paid for twice."""
    monkeypatch.setattr(batch_api, "MOST_REQUESTS", most)
    monkeypatch.setattr(batch_api, "POLL", 0.001)
    server.polls = 0
    server.respond = lambda body, times: (
        refusal("busy") if request_of(body) in failing and not times else good_reply(body)
    )
    run(tmp_path / "whole", seeds)
    steps = list(kill_after.done)
    for at, name in enumerate(steps):
        if name.startswith("GET /batches"):  # nothing has changed
            continue
        server.forget()
        folder, where = tmp_path / str(at), f"after step {at}, {name}"
        kill_after.done, kill_after.at = [], at
        with pytest.raises(Killed):
            run(folder, seeds)
        kill_after.at = None
        run(folder, seeds)
        assert result(folder) == expected, where
        assert server.twice() == [] and server.paid.keys() == set(range(6)), where
        batches = Counter(itertools.chain(*server.asked()))
        assert batches == {n: 2 if n in failing else 1 for n in range(6)}, where
        assert len({made.file for made in server.made}) == len(server.made), where
    assert len(steps) > 20


def test_killed_after_the_last_answer(server, seeds, tmp_path, kill_after):
    """Killed between the last reply and the end of its batch: a later start tidies up."""
    kill_after.at = 'line {"request": 5'
    with pytest.raises(Killed):
        run(tmp_path, seeds)
    kill_after.at = None
    assert run(tmp_path, seeds).ended == "enough"
    assert left_in(tmp_path) == []


def test_killed_again_and_again(server, seeds, tmp_path, expected, monkeypatch, kill_after):
    """A run that gets four steps further with each start comes to the same end."""
    monkeypatch.setattr(batch_api, "MOST_REQUESTS", 3)
    server.polls = 0
    for _ in range(30):
        kill_after.done, kill_after.at = [], 4
        try:
            run(tmp_path, seeds)
            break
        except Killed:
            continue
    assert result(tmp_path) == expected
    assert server.twice() == []
    assert Counter(itertools.chain(*server.asked())) == dict.fromkeys(range(6), 1)


@pytest.mark.parametrize("kind, nth", [("create", 1), ("download", 2)])
def test_killed_process_goes_on(server, seeds, tmp_path, expected, kind, nth):
    """SIGKILL when the server has done its work and not answered yet."""
    (tmp_path / "seeds.json").write_text(json.dumps([s.to_dict() for s in seeds]))
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from alpaca_lib.generation import batch_api\n"
        "from alpaca_lib.generation.self_instruct import Limits, Settings, generate\n"
        "from alpaca_lib.generation.teacher import open_teacher\n"
        "from alpaca_lib.records import load_examples\n"
        "batch_api.POLL, batch_api.MOST_REQUESTS = 0.02, 3\n"
        "settings = Settings(tasks_wanted=12, seeds_per_prompt=3, tasks_per_request=3, seed=5,\n"
        "                    max_tokens=100)\n"
        "with open_teacher('openai', 'fake-model') as teacher:\n"
        "    generate(teacher, load_examples(sys.argv[1]), 'Write {count} tasks.', settings,\n"
        "             Path(sys.argv[2]), Limits(way='batch'))\n"
    )
    folder = tmp_path / "killed"
    command = [sys.executable, "-c", code, str(tmp_path / "seeds.json"), str(folder)]
    started: list[subprocess.Popen] = []

    def kill(done: str) -> None:
        if done == kind and server.calls.count(kind) == nth and started[0].poll() is None:
            started[0].kill()
            started[0].wait()

    server.after = kill
    started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    assert started[0].wait(60) == (1 if os.name == "nt" else -9)  # SIGKILL
    calls = len(server.calls)
    run(folder, seeds)
    assert ("list" in server.calls[calls:]) == (kind == "create")
    assert server.twice() == [] and result(folder) == expected
    assert Counter(itertools.chain(*server.asked())) == dict.fromkeys(range(6), 1)
    assert left_in(folder) == []


def test_batch_is_found_among_many(server, seeds, tmp_path, expected, kill_after):
    """A batch whose id was lost is found though the account has made hundreds since."""
    kill_after.at = 3  # batches.create() was answered, its id is not in the journal
    with pytest.raises(Killed, match="batches"):
        run(tmp_path, seeds)
    kill_after.at = None
    server.others = [Made(f"batch_other{n}", f"file-other{n}") for n in range(250)]
    run(tmp_path, seeds)
    assert server.twice() == [] and result(tmp_path) == expected


def test_open_batch_is_not_asked_online(server, seeds, tmp_path, expected, kill_after):
    """Another way of asking collects (or refuses) what is under way; it does not pay twice."""
    kill_after.at = 5
    with pytest.raises(Killed):
        run(tmp_path, seeds)
    kill_after.at = None
    try:
        run(tmp_path, seeds, way="online", concurrency=1)
    except (TeacherError, DataError, ValueError):
        run(tmp_path, seeds)
    assert server.twice() == [] and result(tmp_path) == expected


def test_more_wanted_collects_what_is_under_way(server, seeds, tmp_path, monkeypatch):
    """Enough with a batch still open: its answers are used when more tasks are wanted."""
    monkeypatch.setattr(batch_api, "MOST_REQUESTS", 4)
    few, many = (Settings(tasks_wanted=n, seeds_per_prompt=3, tasks_per_request=2, seed=5)
                 for n in (8, 14))  # fmt: skip
    server.polls = 0
    first = Counter()

    def slow(kind):
        if kind == "look":  # only the first batch is ever done
            for made in server.made[1:]:
                made.looks = -1

    server.before = slow
    run(tmp_path / "parts", seeds, few)
    first.update(itertools.chain(*server.asked()))
    assert server.asked() == [[0, 1, 2, 3], [4]]
    server.before = lambda kind: None
    run(tmp_path / "parts", seeds, many)
    assert server.twice() == []
    run(tmp_path / "online", seeds, many, way="online")
    assert result(tmp_path / "parts") == result(tmp_path / "online")


# --- interrupt ----------------------------------------------------------------------


def test_stop_while_waiting(server, seeds, tmp_path, expected, monkeypatch):
    """Asked to stop, a run does not wait for its batch; the next start collects it."""
    monkeypatch.setattr(batch_api, "POLL", 30.0)
    server.polls, stop = 10**6, threading.Event()
    server.after = lambda kind: kind == "look" and stop.set()
    with open_teacher("openai", "fake-model") as teacher:
        one = RunState(teacher, seeds, HEADER, SETTINGS, tmp_path, Limits(way="batch"), ())
        start = time.monotonic()
        outcome = asyncio.run(send_requests(one, stop))
        one.close()
    assert (outcome.ended, outcome.requests) == ("interrupted", 0)
    assert time.monotonic() - start < 5
    assert server.calls == ["upload", "create", "look"]
    server.polls = 0
    monkeypatch.setattr(batch_api, "POLL", 0.002)
    run(tmp_path, seeds)
    assert server.asked() == [[0, 1, 2, 3, 4], [5]]
    assert server.twice() == [] and result(tmp_path) == expected


def test_stop_before_anything(server, seeds, tmp_path):
    """Asked to stop before the first request, a run hands nothing in."""
    stop = threading.Event()
    stop.set()
    with open_teacher("openai", "fake-model") as teacher:
        one = RunState(teacher, seeds, HEADER, SETTINGS, tmp_path, Limits(way="batch"), ())
        assert asyncio.run(send_requests(one, stop)).ended == "interrupted"
        one.close()
    assert server.calls == []


@pytest.mark.posix  # a signal for one thread
@pytest.mark.parametrize("kind", ["upload", "create", "look", "download"])
def test_interrupt(server, seeds, tmp_path, expected, monkeypatch, kind):
    """Ctrl-C at any time: KeyboardInterrupt soon, and the next start pays for nothing again."""
    monkeypatch.setattr(batch_api, "POLL", 30.0 if kind == "look" else 0.02)
    server.polls = 10**6 if kind == "look" else 0

    def interrupt(done):
        if done == kind:
            server.after = lambda kind: None
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            time.sleep(0.05)

    server.after = interrupt
    start, usual = time.monotonic(), signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, seeds)
    finally:
        signal.signal(signal.SIGINT, usual)
    assert time.monotonic() - start < 5
    server.polls = 0
    monkeypatch.setattr(batch_api, "POLL", 0.002)
    run(tmp_path, seeds)
    assert server.twice() == [] and result(tmp_path) == expected
    assert sorted(itertools.chain(*server.asked())) == list(range(6))


def test_stop_while_the_server_is_down(server, seeds, tmp_path):
    """Asked to stop between two tries of a call, a run stops; it does not try on."""
    stop = threading.Event()
    server.always, server.headers = {"look": "500"}, {"retry-after-ms": "300"}
    server.before = lambda kind: kind == "look" and stop.set()
    with open_teacher("openai", "fake-model") as teacher:
        teacher.tries, teacher.say = 3, [].append
        one = RunState(teacher, seeds, HEADER, SETTINGS, tmp_path, Limits(way="batch"), ())
        try:
            assert asyncio.run(send_requests(one, stop)).ended == "interrupted"
        finally:
            one.close()
    assert server.calls.count("look") == 1


# --- budget -------------------------------------------------------------------------

DEAR = SETTINGS.replace(tasks_wanted=40)  # twenty requests, more than the money lasts for


def dearest(seeds, number: int) -> float:
    """The most that a request can cost: a prompt of as many tokens as bytes, and a full reply."""
    prompt = Prompter(seeds, HEADER, SETTINGS).prompt(number).text
    return cost(len(prompt.encode()) + 64, SETTINGS.max_tokens)


@pytest.fixture
def audited(server, seeds):
    """A FakeBatches that notes the most that could have been paid after each new batch."""
    server.commitments = []
    paid = [0.0]

    def note(kind):
        if kind == "create":
            worst = sum(dearest(seeds, number) for number in server.made[-1].numbers)
            server.commitments.append(paid[0] + worst)
            paid[0] = server.usd

    server.after = note
    return server


@pytest.mark.parametrize("fit", [1, 2, 3.5])
def test_budget_holds(audited, seeds, tmp_path, prices, fit):
    """As many requests go up as could all be paid for, no more; then more money goes on."""
    worst = [dearest(seeds, number) for number in range(40)]
    most = sum(worst[: int(fit)]) + (fit % 1) * worst[int(fit)] + 1e-9
    outcome = run(tmp_path / "batch", seeds, DEAR, prices_path=prices, max_usd=most)
    assert outcome.ended == "budget"
    assert len(audited.asked()[0]) == int(fit)
    assert max(audited.commitments) <= most + 1e-9
    assert outcome.usd == pytest.approx(audited.usd) and 0 < outcome.usd <= most
    asked = len(audited.paid)
    assert asked < 20 and outcome.usd + worst[asked] > most  # the next would not have fitted
    calls = len(audited.calls)
    again = run(tmp_path / "batch", seeds, DEAR, prices_path=prices, max_usd=most)
    assert (again.ended, again.usd) == ("budget", pytest.approx(outcome.usd))
    assert len(audited.calls) == calls
    whole = run(tmp_path / "batch", seeds, DEAR, prices_path=prices, max_usd=100.0)
    assert whole.ended == "enough" and whole.usd == pytest.approx(audited.usd)
    assert audited.twice() == []
    run(tmp_path / "online", seeds, DEAR, way="online")
    assert result(tmp_path / "batch") == result(tmp_path / "online")


def test_budget_over_several_files(audited, seeds, tmp_path, prices, monkeypatch):
    """Files that go up together share one budget."""
    monkeypatch.setattr(batch_api, "MOST_REQUESTS", 1)
    most = sum(dearest(seeds, number) for number in range(3)) + 1e-9
    outcome = run(tmp_path, seeds, DEAR, prices_path=prices, max_usd=most)
    assert outcome.ended == "budget"
    assert audited.asked()[:3] == [[0], [1], [2]]
    assert audited.calls[:7] == [*(["upload", "create"] * 3), "look"]
    assert outcome.usd == pytest.approx(audited.usd) and audited.usd <= most


@pytest.mark.parametrize("step", [2, 3, 6])
def test_budget_of_a_killed_run(audited, seeds, tmp_path, prices, kill_after, step):
    """What an open batch will cost counts against the budget of the next start."""
    most = sum(dearest(seeds, number) for number in range(3)) + 1e-9
    kill_after.at = step
    with pytest.raises(Killed):
        run(tmp_path, seeds, DEAR, prices_path=prices, max_usd=most)
    kill_after.at = None
    outcome = run(tmp_path, seeds, DEAR, prices_path=prices, max_usd=most)
    assert outcome.ended == "budget" and audited.asked()[0] == [0, 1, 2]
    assert max(audited.commitments) <= most + 1e-9
    assert outcome.usd == pytest.approx(audited.usd) and audited.usd <= most
    assert audited.twice() == []


def test_no_money_no_request(server, seeds, tmp_path, prices):
    """With max_usd 0 nothing is uploaded."""
    outcome = run(tmp_path, seeds, prices_path=prices, max_usd=0.0)
    assert (outcome.ended, outcome.usd, server.calls) == ("budget", 0.0, [])


def test_errors_cost_nothing(audited, seeds, tmp_path, prices):
    """Requests that failed or expired are not paid for, and their money is free again."""
    audited.ending = lambda n: "expired" if n == 0 else "completed"
    audited.respond = lambda body, times: (
        good_reply(body) if times else None if request_of(body) else refusal("busy")
    )
    most = sum(dearest(seeds, number) for number in range(3)) + 1e-9
    outcome = run(tmp_path, seeds, prices_path=prices, max_usd=most)
    assert audited.asked()[:2] == [[0, 1, 2], [0, 1, 2]]
    assert outcome.usd == pytest.approx(audited.usd) and max(audited.commitments) <= most + 1e-9


@pytest.mark.parametrize("cut", [0, 9])
def test_useless_answers_cost_money(server, seeds, tmp_path, prices, cut):
    """Answers that cannot be read were paid for: they count against the budget, as online."""

    def respond(body, times):
        answer = chat(body, None)
        answer["usage"]["completion_tokens"] = SETTINGS.max_tokens
        return 200, answer if cut else {**answer, "choices": []}

    server.respond = respond
    server.edit = lambda lines: [line[: len(line) - cut] for line in lines]
    most = 1.1 * dearest(seeds, 0)
    with contextlib.suppress(TeacherError):
        run(tmp_path, seeds, prices_path=prices, max_usd=most)
    assert 0 < server.usd <= most


def test_usage_may_be_missing(server, seeds, tmp_path, expected):
    """Answers without a count of tokens are kept all the same."""

    def respond(body, times):
        answer = chat(body, good_reply(body))
        del answer["usage"]
        return 200, answer

    server.respond = respond
    outcome = run(tmp_path, seeds)
    assert result(tmp_path) == expected and outcome.prompt_tokens == 0


def test_model_without_a_batch_price(server, seeds, tmp_path, prices):
    """max_usd needs the price of this way; nothing is asked without it."""
    with pytest.raises(DataError, match="price"):
        run(tmp_path, seeds, model="dear-model", prices_path=prices, max_usd=1.0)
    assert server.calls == []
    assert run(tmp_path, seeds, model="dear-model", prices_path=prices).usd is None


# --- the key ------------------------------------------------------------------------


def test_key_stays_out(server, seeds, tmp_path, capfd):
    """The key goes into a header: into no file, no upload, no message and no output."""
    said: list[str] = []
    server.respond = lambda body, times: (
        refusal(f"busy with {KEY}") if request_of(body) == 1 and not times
        else refusal(f"not for {KEY}", "content_filter") if request_of(body) == 2
        else good_reply(body)
    )  # fmt: skip
    outcome = run(tmp_path, seeds, said=said)
    assert outcome.ended == "enough" and no_key_in(tmp_path)
    assert not any(KEY.encode() in text for text in server.said)
    assert not any(KEY in text for text in (*said, *capfd.readouterr()))
    assert not any(KEY in one.text for one in outcome.rejected)


@pytest.mark.parametrize("where", ["upload", "create", "look", "download", "batch", "request"])
def test_key_is_in_no_error(server, seeds, tmp_path, where):
    """A server that repeats the key does not get it into a TeacherError."""
    said: list[str] = []
    if where == "batch":
        server.ending = lambda n: "failed"
        server.errors = {"data": [{"message": f"not for {KEY}"}]}
    elif where == "request":
        server.respond = lambda body, times: refusal(f"not for {KEY}")
    else:
        server.always[where] = refusal(f"not for {KEY}")
    with pytest.raises(TeacherError, match="not for") as caught:
        run(tmp_path, seeds, said=said)
    assert not any(KEY in text for text in (*said, str(caught.value), repr(caught.value)))
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_key_is_not_left_in_an_error_file(server, seeds, tmp_path):
    """A run that stops because of a request leaves no raw error file in its folder."""
    server.respond = lambda body, times: refusal(f"not for {KEY}")
    with pytest.raises(TeacherError):
        run(tmp_path, seeds)
    assert no_key_in(tmp_path)
