"""Faults of servers, of every kind that was seen: what to answer in place of a good reply."""

from __future__ import annotations

import gzip
import json
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

WORDS = [a + b for a in ("ba", "ke", "lo", "mu", "ni", "po") for b in ("dan", "fol", "gim", "ner")]
SAID = {"error": {"message": "the server's words", "type": "x", "code": "rate_limit_exceeded"}}
HTML = {"Content-Type": "text/html"}
THINKING = {"type": "thinking", "thinking": "4. Instruction: no"}
BUSY = {"error": {"message": "the server's words", "code": 503}}


def good_reply(body) -> str:
    """Three tasks that depend on the request's seed alone."""
    draw = random.Random(body["seed"])
    entries = [
        f"{n}. Instruction: Say {' '.join(draw.sample(WORDS, 8))}.\n{n}. Input:\n<noinput>\n"
        f"{n}. Output:\nsaid\n"
        for n in (4, 5, 6)
    ]
    return "###\n".join(entries).removeprefix("4. Instruction:")


def completion(text, **usage) -> dict:
    """A chat completion; every one has the same id."""
    usage = {"prompt_tokens": 100, "completion_tokens": 100, **usage}
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {"id": "chatcmpl-1", "choices": [choice], "usage": usage}


def _data(text) -> bytes:
    return json.dumps(completion(text)).encode()


# kind -> the answer to a request whose good reply is ``text``; None resets the connection.
FAULTS = {
    "429 and when": lambda text: (429, {"Retry-After": "0.02"}, SAID),
    "429": lambda text: (429, {}, SAID),
    "429 for 30 years": lambda text: (429, {"Retry-After": "1e9"}, SAID),
    "429 until 2015": lambda text: (429, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, SAID),
    "429 a web page": lambda text: (429, HTML, b"<html>wait</html>"),
    "500": lambda text: (500, {}, BUSY),
    "502 a web page": lambda text: (502, HTML, b"<html><h1>502</h1></html>"),
    "504 empty": lambda text: (504, {}, b""),
    "reset": lambda text: None,
    "cut": lambda text: (200, {"Content-Length": "100000"}, _data(text)[:-30]),
    "cut, of the right length": lambda text: (200, {}, _data(text)[:-30]),
    "no JSON": lambda text: (200, {}, b"what?"),
    "empty": lambda text: (200, {}, b""),
    "204": lambda text: (204, {}, b""),
    "a web page": lambda text: (200, HTML, b"<!doctype html><html>Hi</html>"),
    "error 429 within 200": lambda text: (200, {}, SAID),
    "error 503 within 200": lambda text: (200, {}, BUSY),
    "error of text within 200": lambda text: (200, {}, {"error": "overloaded"}),
    "a stream of events": lambda text: (
        200, {"Content-Type": "text/event-stream"}, b'data: {"choices": []}\n\ndata: [DONE]\n\n',
    ),
    "huge": lambda text: (200, {}, b" " * 3_000_000 + _data(text)),
    "gzip of a huge body": lambda text: (
        200, {"Content-Encoding": "gzip"}, gzip.compress(_data(" " * 20_000_000), 1),
    ),
    "no gzip": lambda text: (200, {"Content-Encoding": "gzip"}, b"no gzip"),
    "brotli": lambda text: (200, {"Content-Encoding": "br"}, b"\x0b\x02\x80hello\x03"),
    "null": lambda text: (200, {}, b"null"),
    "a list": lambda text: (200, {}, b"[]"),
    "deep": lambda text: (200, {}, b"[" * 100_000),
    "no choices": lambda text: (200, {}, {"choices": []}),
    "a redirect to itself": lambda text: (307, {"Location": "/v1/chat/completions"}, b""),
}  # fmt: skip
# Odd, but a reply: it is kept, and costs no second request.
ODD_REPLIES = {
    "text/plain": lambda text: (200, {"Content-Type": "text/plain"}, completion(text)),
    "text/html": lambda text: (200, HTML, completion(text)),
    "gzip": lambda text: (200, {"Content-Encoding": "gzip"}, gzip.compress(_data(text))),
    "usage of text": lambda text: (200, {}, {**completion(text), "usage": "many"}),
    "usage of 10**400": lambda text: (200, {}, completion(text, prompt_tokens=10**400)),
    "usage below zero": lambda text: (200, {}, completion(text, completion_tokens=-9)),
    "no usage": lambda text: (200, {}, {**completion(text), "usage": None}),
    "parts": lambda text: (200, {}, completion([THINKING, {"type": "text", "text": text}])),
}  # fmt: skip


@dataclass
class Faults:
    """Answers a share of all requests with a fault of a random kind; to be a FakeOpenAI's respond.

    hang: seconds of a request that hangs. counts: how often each kind was answered.
    answered: how often each request was answered with its reply, by seed.
    """

    seed: int
    share: float = 0.3
    hang: float = 1.5
    counts: Counter = field(default_factory=Counter)
    answered: Counter = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)

    def __call__(self, body):
        text = good_reply(body)
        with self.lock:
            fails = self.draw.random() < self.share
            kind = self.draw.choice([*FAULTS, "hang"])
            odd = self.draw.choice([*ODD_REPLIES, *["plain"] * 8])
            if not fails:
                self.answered[body["seed"]] += 1
            self.counts[kind if fails else odd] += 1
        if not fails:
            return ODD_REPLIES[odd](text) if odd in ODD_REPLIES else (200, {}, completion(text))
        if kind == "hang":
            time.sleep(self.hang)
            return 200, {}, b"too late"
        return FAULTS[kind](text)
