"""What each failure of a server leads to: stop, wait, leave out, and what it may have cost."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import random
import socket
import ssl
import struct
import threading
import time
import traceback
from dataclasses import dataclass, field

import openai
import pytest

from alpaca_lib.errors import BudgetSpent, TeacherError
from alpaca_lib.generation import backoff
from alpaca_lib.generation.backoff import retry_after
from alpaca_lib.generation.budget import Price
from alpaca_lib.generation.ledger import Ledger
from alpaca_lib.generation.messages import RawReply
from alpaca_lib.generation.rate_limit import RateLimit
from alpaca_lib.generation.teacher import Sampling, open_teacher

KEY = "secret-123"
FAST = {"retry-after-ms": "1"}
PRICE = Price("fake-model", 1.0, 2.0, 1.0, "")
GOOD_USD = (100 * 1.0 + 50 * 2.0) / 1e6  # the fake server's replies: 100 and 50 tokens
PROMPT = "Write a task. " * 10


@pytest.fixture(autouse=True)
def sooner(fake, monkeypatch):
    """No wait for acknowledgements, and no certificates are read for each client."""
    monkeypatch.setattr(
        fake.server.RequestHandlerClass, "disable_nagle_algorithm", True, raising=False
    )
    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", lambda *_, **__: None)


class WatchedLedger(Ledger):
    """A ledger that remembers (kind, dollars) of what it forfeits."""

    def __init__(self, *limits) -> None:
        super().__init__(*limits)
        self.failed: list[tuple[str, float]] = []
        self.texts: list[str] = []

    def forfeit(self, number, why):
        before = self.forfeited
        super().forfeit(number, why)
        kinds = {
            "no answer in time": "lost",
            "cannot be reached": "lost",
            "no OpenAI-compatible server": "garbled",
        }
        (kind,) = [kind for text, kind in kinds.items() if text in why]
        self.failed.append((kind, self.forfeited - before))
        self.texts.append(why)


@dataclass
class Asked:
    """What came of some requests: replies or errors in order, and what was told on the way."""

    ledger: WatchedLedger
    rate_limit: RateLimit
    ends: list = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def failed(self) -> list[tuple[str, float]]:
        """(kind, dollars) of each attempt that may have been paid for."""
        return self.ledger.failed

    @property
    def reply(self) -> RawReply:
        """The reply to the only request."""
        (end,) = self.ends
        assert isinstance(end, RawReply), repr(end)
        return end

    @property
    def error(self) -> str:
        """The text of the TeacherError that the only request ended with; it has the address."""
        (end,) = self.ends
        assert type(end) is TeacherError, repr(end)
        assert "127.0.0.1" in str(end)
        return str(end)


def ask(
    times=1, at_once=False, tries=3, timeout=20.0, max_usd=None, sampling=None, prompt=PROMPT,
    key=KEY, clock=time.monotonic, stopping=False,
) -> Asked:  # fmt: skip
    """Asks one teacher so many times, and checks what holds whatever happens.

    Nothing stays reserved or in flight, and the key is in no text that anyone can see.
    """
    asked = Asked(WatchedLedger(PRICE, max_usd), RateLimit(100 if at_once else 1, clock=clock))
    texts = []
    with open_teacher("openai", "fake-model", timeout=timeout) as teacher:
        teacher.tries, teacher.say = tries, asked.notes.append

        async def one(line, number):
            request = teacher.request(
                prompt, first_number=1, tasks=3, seed=7, sampling=sampling or Sampling()
            )
            try:
                return await line.ask(request, number)
            except Exception as error:
                texts.extend([repr(error), *traceback.format_exception(error)])
                return error

        async def work() -> None:
            async with asyncio.timeout(60), teacher.connect(asked.rate_limit, asked.ledger) as line:
                line.stopping = stopping
                if at_once:
                    asked.ends += await asyncio.gather(*(one(line, n) for n in range(times)))
                else:
                    asked.ends += [await one(line, n) for n in range(times)]

        asyncio.run(work())
        texts += [repr(teacher), repr(asked), *asked.notes, *asked.ledger.texts]
    assert not [text for text in texts if key.strip() in text]
    assert asked.rate_limit.in_flight == 0
    assert asked.ledger.reserved == pytest.approx(0, abs=1e-12)
    assert asked.ledger.forfeited == pytest.approx(sum(usd for _, usd in asked.failed))
    return asked


def told(message="no", code=None, param=None, **others) -> dict:
    """An error's body as OpenAI sends it."""
    return {"error": {"message": message, "type": "x", "code": code, "param": param, **others}}


def fails_first(fake, times, status, content, headers=FAST, good="fine"):
    """Lets the server fail so many times, then answer well."""
    fake.respond = lambda body: (status, headers, content) if len(fake.requests) <= times else good


# --- what stops at once -------------------------------------------------------------

FATAL = {
    "401": (401, told(f"Incorrect API key provided: {KEY}", "invalid_api_key"), "OPENAI_API_KEY"),
    "401 without a code": (401, told(f"bad key {KEY}"), "OPENAI_API_KEY"),
    "401 as a web page": (401, b"<html>Login</html>", "OPENAI_API_KEY"),
    "403": (403, told(f"not for {KEY}", "forbidden"), "OPENAI_API_KEY"),
    "404": (404, told(f"no such model, {KEY}", "model_not_found"), "fake-model"),
    "404 as a web page": (404, b"<html>Not found</html>", "fake-model"),
    "no credit": (429, told(f"You exceeded your quota {KEY}", "insufficient_quota"), "credit"),
    "no credit, 402": (402, told("No money", "insufficient_quota"), "credit"),
    "too long": (
        400,
        told(f"maximum context length is 10 {KEY}", "context_length_exceeded", "messages"),
        "shorter seeds",
    ),
    "bad request": (400, told(f"wrong, {KEY}"), "wrong, (the key)"),
    "too large": (413, told("too large for this server"), "too large for this server"),
    "unknown": (418, told(f"a teapot, {KEY}"), "a teapot, (the key)"),
    "unprocessable": (422, told("odd messages"), "odd messages"),
}


@pytest.mark.parametrize("status, content, fix", FATAL.values(), ids=FATAL)
def test_hopeless_is_asked_once(fake, status, content, fix):
    """One request, an error with the fix, and nothing is paid, lost or slowed down."""
    fake.respond = lambda body: (status, FAST, content)
    asked = ask(tries=5)
    assert fix in asked.error
    assert len(fake.requests) == 1
    assert asked.failed == [] and asked.ledger.spent == 0
    assert asked.rate_limit.refusals == 0 and asked.notes == []


def test_teacher_ask_raises_the_same(fake):
    """The one-request way, as the first notebook uses it, stops the same way."""
    fake.respond = lambda body: (401, {}, told(f"Incorrect API key provided: {KEY}"))
    with (
        open_teacher("openai", "fake-model") as teacher,
        pytest.raises(TeacherError, match="OPENAI_API_KEY") as caught,
    ):
        teacher.ask(PROMPT, first_number=1, tasks=3, seed=7)
    assert KEY not in "".join(traceback.format_exception(caught.value))
    assert len(fake.requests) == 1


@pytest.mark.parametrize("status", [400, 500])
def test_no_part_of_the_key_is_shown(fake, status):
    """Wherever in a long message the key stands, not even its beginning is repeated."""
    lengths = iter(range(250, 300))
    fake.respond = lambda body: (status, FAST, told("x" * next(lengths) + KEY))
    ends = ask(times=50, tries=1).ends
    assert len(fake.requests) == 50 and not [str(e) for e in ends if "secret" in str(e)]


@pytest.mark.parametrize("key", ["schlüssel-4711", "secret-4711\n", "secret\t\n4711"])
def test_a_key_that_cannot_be_sent(fake, monkeypatch, key):
    """Pasted with a line break or an umlaut: it works, or is an error that names the variable."""
    monkeypatch.setenv("OPENAI_API_KEY", key)
    fake.respond = lambda body: "fine"
    try:
        (end,) = ask(tries=1, key=key).ends
    except TeacherError as error:  # open_teacher may say it
        end = error
    if not isinstance(end, RawReply):
        assert type(end) is TeacherError
        assert "OPENAI_API_KEY" in str(end) and "4711" not in repr(end)


# --- what passes --------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529])
@pytest.mark.parametrize("content", [told("busy", "rate_limit_exceeded"), b"<html>busy</html>"])
def test_passing_failures_are_tried_again(fake, status, content):
    """Two refusals, then a reply: three requests, paid for once."""
    fails_first(fake, 2, status, content)
    asked = ask()
    assert asked.reply.text == "fine"
    assert len(fake.requests) == 3
    assert fake.requests[0] == fake.requests[1] == fake.requests[2]
    assert asked.ledger.spent == pytest.approx(GOOD_USD) and asked.failed == []
    assert asked.rate_limit.refusals == (2 if status == 429 else 0)


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
@pytest.mark.parametrize("tries", [1, 4])
def test_lasting_failures_end(fake, status, tries):
    """Exactly ``tries`` requests, then an error; a refusal costs nothing."""
    fake.respond = lambda body: (status, FAST, told(f"busy {KEY}", "server_error"))
    asked = ask(tries=tries)
    assert ("lower concurrency" if status == 429 else "several tries") in asked.error
    assert len(fake.requests) == tries
    assert asked.failed == [] and asked.ledger.spent == 0
    assert (asked.rate_limit.share < 1) == (status == 429)


def test_a_stopping_line_tries_no_more(fake):
    """Once the run stops, a failure is final."""
    fake.respond = lambda body: (503, FAST, told("busy"))
    assert "busy" in ask(tries=9, stopping=True).error
    assert len(fake.requests) == 1


def test_waits_grow_and_vary(fake, waits, monkeypatch):
    """Between tries it waits at random, at most twice as long each time, and 30 s at most."""
    monkeypatch.setattr(backoff, "LONGEST_WAIT", 30.0)
    fake.respond = lambda body: (503, {}, told("busy"))
    ask(tries=16, clock=waits.clock)
    assert len(waits) == 15 and len(set(waits)) == 15
    assert all(wait <= min(0.02 * 2**n, 30) for n, wait in enumerate(waits))
    assert max(waits) > 1


# --- Retry-After --------------------------------------------------------------------


class Waits(list):
    """The seconds of every asyncio.sleep, none of which took place."""

    now = 0.0

    def clock(self) -> float:
        """A clock that only sleeping moves."""
        return self.now


@pytest.fixture
def waits(monkeypatch):
    """asyncio.sleep returns at once and is remembered."""
    found, real = Waits(), asyncio.sleep

    async def sleep(seconds, result=None):
        if seconds > 0:
            found.append(seconds)
            found.now += seconds
        return await real(0, result)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return found


def http_date(seconds) -> str:
    """The date so many seconds from now, as HTTP writes it."""
    return email.utils.formatdate(time.time() + seconds, usegmt=True)


ASKED_TO_WAIT = {
    "seconds": ({"retry-after": "7"}, 7),
    "a fraction": ({"retry-after": "0.25"}, 0.25),
    "nothing": ({"retry-after": "0"}, 0),
    "milliseconds": ({"retry-after-ms": "1500"}, 1.5),
    "both": ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5),
    "bad milliseconds": ({"retry-after-ms": "soon", "retry-after": "2"}, 2),
    "absurd milliseconds": ({"retry-after-ms": "1e15", "retry-after": "2"}, 2),
    "the longest": ({"retry-after": "300"}, 300),
    "negative": ({"retry-after": "-5"}, 0),
    "text": ({"retry-after": "in a while"}, 0),
    "empty": ({"retry-after": ""}, 0),
    "nan": ({"retry-after": "nan"}, 0),
    "inf": ({"retry-after": "inf"}, 0),
    "a past date": ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
    "no date": ({"retry-after": "Wed, 99 Foo 2015 99:99:99 GMT"}, 0),
    "a far year": ({"retry-after": "Wed, 21 Oct 99999 07:28:00 GMT"}, 0),
    "a huge year": ({"retry-after": f"Wed, 21 Oct {'9' * 30} 07:28:00 GMT"}, 0),
}


@pytest.mark.parametrize(
    "headers, seconds",
    [pytest.param(*v, id=k) for k, v in ASKED_TO_WAIT.items()],
)
def test_retry_after_is_waited_for(fake, waits, headers, seconds):
    """Just as long as the server says, and its own short wait; nonsense is not waited for."""
    fails_first(fake, 1, 429, told("slow down", "rate_limit"), headers)
    asked = ask(clock=waits.clock)
    assert asked.reply.text == "fine" and len(fake.requests) == 2
    assert seconds - 1e-9 <= sum(waits) <= seconds + 0.0201


@pytest.mark.parametrize("status", [408, 500, 503, 529])
def test_retry_after_of_a_busy_server(fake, waits, status):
    """It counts for other passing failures too."""
    fails_first(fake, 1, status, told("busy"), {"retry-after": "7"})
    assert ask(clock=waits.clock).reply.text == "fine"
    assert 7 <= sum(waits) <= 7.0201


@pytest.mark.parametrize("seconds", [20, 200])
def test_retry_after_may_be_a_date(fake, waits, seconds):
    """An HTTP date is waited for, to the second."""
    fails_first(fake, 1, 429, told("slow down"), {"retry-after": http_date(seconds)})
    assert ask(clock=waits.clock).reply.text == "fine"
    assert seconds - 5 <= sum(waits) <= seconds + 0.1


@pytest.mark.parametrize(
    "text",
    ["301", "3600", "1e9", pytest.param(http_date(86400), id="tomorrow"), "9" * 400],
)
def test_nobody_waits_for_hours(fake, waits, text):
    """Absurdly long waits are not believed."""
    fails_first(fake, 1, 429, told("slow down"), {"retry-after": text})
    assert ask(clock=waits.clock).reply.text == "fine"
    assert sum(waits) <= 300.1


def test_live_and_batch_requests_share_one_backoff(monkeypatch):
    """The bound doubles from twice the first wait up to the longest; a hint is added to it."""
    monkeypatch.setattr(backoff.random, "uniform", lambda low, high: high)
    monkeypatch.setattr(backoff, "FIRST_WAIT", 1.0)
    monkeypatch.setattr(backoff, "LONGEST_WAIT", 30.0)
    assert [backoff.compute_wait(n) for n in (1, 2, 3, 20)] == [2.0, 4.0, 8.0, 30.0]
    assert backoff.compute_wait(1, hint=7.0) == 9.0


def test_no_header_no_wait():
    """Without the header, or with one that is in the past, there is nothing to wait for."""
    assert retry_after({}) is None
    assert retry_after({"retry-after": "-5"}) is None
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) is None
    assert retry_after({"x-ratelimit-reset-requests": "5s"}) is None


def test_limits_in_a_replys_headers_are_learned(fake, make_chat):
    """x-ratelimit-limit-* of a good reply reach the rate limit; rubbish does not."""
    headers = {"x-ratelimit-limit-requests": "5000", "x-ratelimit-limit-tokens": "many"}
    fake.respond = lambda body: (200, headers, make_chat("fine"))
    assert ask().rate_limit.limits == {"requests": 5000, "tokens": None}


# --- parameters ---------------------------------------------------------------------

SAMPLING = Sampling(
    temperature=0.5,
    top_p=0.9,
    max_tokens=77,
    reply_format="json",
    reasoning_effort="low",
    service_tier="flex",
)
OPTIONAL = [
    *("reasoning_effort", "temperature", "top_p", "seed", "response_format"),
    "max_completion_tokens",
]


def refusing(*names, code="unsupported_parameter", words="Unsupported parameter: '{}'."):
    """A server that takes none of these parameters, and names one at a time."""

    def respond(body):
        for name in names:
            if name in body:
                return 400, {}, told(words.format(name), code, name if code else None)
        return "fine"

    return respond


@pytest.mark.parametrize("name", OPTIONAL)
@pytest.mark.parametrize(
    "code, words",
    [
        ("unsupported_parameter", "Unsupported parameter: '{}' is not supported here."),
        ("unsupported_value", "Unsupported value: '{}' does not support this."),
        ("unknown_parameter", "Unknown parameter."),
        (None, "Unrecognized request argument supplied: {}"),
        (None, "property '{}' is unsupported"),
        (None, "[{{'loc': ('body', '{}'), 'msg': 'Extra inputs are not permitted'}}]"),
    ],
)
def test_just_the_refused_parameter_is_left_out(fake, name, code, words):
    """The second request is the first without it, it is said once, and it is remembered."""
    fake.respond = refusing(name, code=code, words=words)
    asked = ask(times=2, sampling=SAMPLING, tries=1)
    assert [end.text for end in asked.ends] == ["fine", "fine"]
    first, second, third = fake.requests
    assert name in first
    expected = {key: value for key, value in first.items() if key != name}
    if name == "max_completion_tokens":
        expected["max_tokens"] = 77  # the length stays limited, under its old name
    assert second == third == expected
    assert len(asked.notes) == 1
    assert f"`{name}`" in asked.notes[0] and "fake-model" in asked.notes[0]
    assert asked.failed == [] and asked.ledger.spent == pytest.approx(2 * GOOD_USD)


@pytest.mark.parametrize("order", [OPTIONAL, OPTIONAL[::-1]])
def test_several_parameters_in_a_row(fake, order):
    """All of them, one after another, are left out, whatever ``tries`` is."""
    fake.respond = refusing(*order)
    asked = ask(times=2, sampling=SAMPLING, tries=1)
    assert asked.ends[0].text == asked.ends[1].text == "fine"
    assert len(fake.requests) == len(order) + 2
    assert set(fake.requests[-1]) == {"model", "messages", "service_tier", "max_tokens"}
    assert fake.requests[-1]["max_tokens"] == 77
    assert [note.split("`")[1] for note in asked.notes] == order


def test_parameters_refused_to_many_at_once(fake):
    """Eight on their way when the first refusal comes: each is sent again, and it is said once."""
    together = threading.Barrier(8)

    def respond(body):
        if "temperature" in body:
            together.wait(10)
        return refusing("temperature")(body)

    fake.respond = respond
    asked = ask(times=8, at_once=True, tries=1)
    assert [getattr(end, "text", end) for end in asked.ends] == ["fine"] * 8
    assert len(fake.requests) == 16 and len(asked.notes) == 1


def test_another_teacher_tries_again(fake):
    """What one teacher has learned is not kept for the next one."""
    fake.respond = refusing("seed")
    ask()
    ask()
    assert ["seed" in body for body in fake.requests] == [True, False, True, False]


@pytest.mark.parametrize("name", ["messages", "model", "stream", None])
def test_a_parameter_that_is_needed(fake, name):
    """Refusing what a request cannot do without is an error with the server's words."""
    message = "Unsupported parameter: this one."
    fake.respond = lambda body: (400, {}, told(message, "unsupported_parameter", name))
    asked = ask(tries=5)
    assert message in asked.error and len(fake.requests) == 1 and asked.notes == []


@pytest.mark.parametrize(
    "name, code", [*((name, "unsupported_parameter") for name in OPTIONAL), ("top_p", None)]
)
def test_the_same_parameter_refused_for_ever(fake, name, code):
    """A server that goes on refusing what is not sent any more: an error, after few requests."""

    def respond(body):
        if len(fake.requests) > 9:  # so that this test ends
            return 401, {}, told()
        return 400, {}, told(f"{name} is not supported", code, name if code else None)

    fake.respond = respond
    asked = ask(sampling=SAMPLING)
    assert len(fake.requests) <= 4
    assert f"{name} is not supported" in asked.error and len(asked.notes) <= 1


def test_flex_that_is_refused_is_not_left_out(fake):
    """Without it the same reply costs twice as much: an error that names the fix."""
    fake.respond = refusing("service_tier")
    asked = ask(sampling=SAMPLING)
    assert "does not offer flex" in asked.error and 'way "online"' in asked.error
    assert "Unsupported parameter: 'service_tier'" in asked.error
    assert len(fake.requests) == 1 and asked.notes == []


def test_a_parameter_that_was_not_sent(fake):
    """A server that refuses service_tier where there was none: an error, not a loop."""

    def respond(body):
        assert "service_tier" not in body
        if len(fake.requests) > 9:
            return 401, {}, told()
        return 400, {}, told("no service_tier here", "unsupported_parameter", "service_tier")

    fake.respond = respond
    assert "no service_tier here" in ask().error
    assert len(fake.requests) <= 4


def test_neither_name_of_the_length(fake):
    """Refused as max_completion_tokens, then as max_tokens in favour of the other: an error."""

    def respond(body):
        if len(fake.requests) > 9:
            return 401, {}, told()
        if "max_tokens" in body:
            words = "'max_tokens' is not supported. Use 'max_completion_tokens' instead."
            return 400, {}, told(words)
        return 400, {}, told("'max_completion_tokens' is not supported.")

    fake.respond = respond
    assert "not supported" in ask().error
    assert len(fake.requests) <= 4


DETAIL = [{"loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]
ELSEWHERE = {
    "FastAPI": (422, {"detail": DETAIL}),
    "Mistral": (422, {"object": "error", "message": {"detail": DETAIL}}),
    "a list": (400, [told("Unrecognized argument: seed")]),
    "a text": (400, {"error": "seed is not supported"}),
    "no JSON": (400, b"seed is not supported"),
}


@pytest.mark.parametrize("status, content", ELSEWHERE.values(), ids=ELSEWHERE)
def test_a_refusal_in_another_shape(fake, status, content):
    """Compatible servers say it elsewhere in the body: understood, or at least shown."""
    fake.respond = lambda body: (status, {}, content) if "seed" in body else "fine"
    (end,) = ask().ends
    assert "seed" in str(end) if isinstance(end, TeacherError) else end.text == "fine"


# --- filtered -----------------------------------------------------------------------


@pytest.mark.parametrize("code", ["content_filter", "content_policy_violation"])
def test_a_filtered_prompt_is_a_reply(fake, code):
    """Azure's 400 is a reply without text: asked once, not paid for, the reason is kept."""
    fake.respond = lambda body: (400, {}, told(f"filtered: violence {KEY}", code, "prompt"))
    asked = ask()
    assert (asked.reply.text, asked.reply.finish_reason) == ("", "content_filter")
    assert "filtered: violence" in asked.reply.refusal
    assert len(fake.requests) == 1
    assert asked.failed == [] and asked.ledger.spent == 0


def test_a_filtered_reply_is_a_reply(fake, make_chat):
    """A reply that was stopped by the filter is paid for."""
    fake.respond = lambda body: (200, {}, make_chat("half a", "content_filter"))
    asked = ask()
    assert (asked.reply.text, asked.reply.finish_reason) == ("half a", "content_filter")
    assert asked.ledger.spent == pytest.approx(GOOD_USD)


# --- replies that are none ----------------------------------------------------------

NO_REPLIES = {
    "empty": b"",
    "no JSON": b'{"choices": [',
    "no UTF-8": b"\xff\xfe\x00",
    "a web page": b"<!doctype html><html>Welcome</html>",
    "null": b"null",
    "a number": b"12",
    "a list": b"[]",
    "no choices": b'{"id": "x"}',
    "choices null": b'{"choices": null}',
    "choices empty": b'{"choices": []}',
    "a choice of text": b'{"choices": ["text"]}',
    "a choice of null": b'{"choices": [null]}',
    "no message": b'{"choices": [{"index": 0}]}',
    "no content": b'{"choices": [{"message": {"role": "assistant"}}]}',
    "content of numbers": b'{"choices": [{"message": {"content": [1, 2]}}]}',
    "a part without text": b'{"choices": [{"message": {"content": [{"type": "text"}]}}]}',
    "deep": b"[" * 200_000,
    "a stream that is cut": b'data: {"choices": [{"delta": {"content": "x"}}]}\n\n',
}


@pytest.mark.parametrize(
    "content",
    [pytest.param(v, id=k) for k, v in NO_REPLIES.items()],
)
def test_a_body_that_is_no_reply(fake, content):
    """Status 200 without a completion: tried again, an error with the address, perhaps paid."""
    fake.respond = lambda body: (200, {}, content)
    asked = ask(tries=2)
    assert "OPENAI_BASE_URL" in asked.error and len(fake.requests) == 2
    assert [kind for kind, _ in asked.failed] == ["garbled"] * 2


def test_a_garbled_reply_may_be_followed_by_a_good_one(fake):
    """The lost attempt is forfeited at its reserve, the good one paid at its cost."""
    fails_first(fake, 1, 200, b"<html>", {})
    asked = ask(max_usd=1.0)
    assert asked.reply.text == "fine"
    assert asked.ledger.spent == pytest.approx(GOOD_USD)
    ((_, usd),) = asked.failed
    # The dearest it can have been: 3072 reply tokens, and a prompt token for each byte or so.
    dearest = (len(PROMPT) * 1.0 + 3072 * 2.0) / 1e6
    assert dearest <= usd <= dearest + 100 / 1e6


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        {"prompt_tokens": -(10**9), "completion_tokens": 5},
        {"prompt_tokens": 5, "completion_tokens": -(10**9)},
    ],
)
def test_replies_without_counts_are_not_free(fake, make_chat, usage):
    """Where the server does not say what it took, the budget still ends."""
    answer = make_chat("fine")
    answer["usage"] = usage
    fake.respond = lambda body: (200, {}, answer)
    most = 3.5 * (len(PROMPT) + 64 + 2 * 3072) / 1e6
    asked = ask(times=8, max_usd=most)
    assert any(isinstance(end, BudgetSpent) for end in asked.ends)
    assert len(fake.requests) <= 4


def test_replies_are_counted(fake):
    """Eight replies are paid for at what they took, not at what was reserved."""
    fake.respond = lambda body: "fine"
    asked = ask(times=8, max_usd=2 * (len(PROMPT) + 64 + 2 * 3072) / 1e6)
    assert [end.text for end in asked.ends] == ["fine"] * 8
    assert asked.ledger.spent == pytest.approx(8 * GOOD_USD)


# --- lost connections ---------------------------------------------------------------


class RawServer:
    """Reads each request whole and lets ``answer(connection)`` do the rest; counts them."""

    def __init__(self) -> None:
        self.answer = lambda connection: None
        self.count, self.done = 0, threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}/v1"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                self.count += 1
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection) -> None:
        with connection, contextlib.suppress(OSError, ValueError):
            connection.settimeout(10)
            data = b""
            while b"\r\n\r\n" not in data:
                data += connection.recv(65536) or b"\r\n\r\n"
            head, _, body = data.partition(b"\r\n\r\n")
            size = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            while len(body) < size:
                body += connection.recv(65536)
            self.answer(connection)

    def close(self) -> None:
        """Closes the port and lets go of those who wait."""
        self.done.set()
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


@pytest.fixture(params=["aiohttp", "httpx"])
def raw(request, fake, monkeypatch):
    """A RawServer that the environment points to, asked through either transport."""
    server = RawServer()
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    if request.param == "httpx":

        def missing():
            raise RuntimeError("not installed")

        monkeypatch.setattr(openai, "DefaultAioHttpClient", missing)
    yield server
    server.close()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def reset(connection) -> None:
    """Sends RST instead of FIN."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def cut(connection) -> None:
    """Promises 500 bytes and sends a few."""
    connection.sendall(HEAD + b'Content-Length: 500\r\n\r\n{"id": "x"')


def cut_chunks(connection) -> None:
    """Ends in the middle of a chunked body."""
    connection.sendall(HEAD + b'Transfer-Encoding: chunked\r\n\r\n8\r\n{"id": "\r\n')


def cut_and_reset(connection) -> None:
    """Sends a part, then RST."""
    cut(connection)
    reset(connection)


def no_http(connection) -> None:
    """What listens there is no web server."""
    connection.sendall(b"SSH-2.0-OpenSSH_9.0\r\n")


def no_gzip(connection) -> None:
    """Says gzip and sends none."""
    connection.sendall(HEAD + b"Content-Encoding: gzip\r\nContent-Length: 7\r\n\r\nno gzip")


def nothing(connection) -> None:
    """Closes without an answer."""


@pytest.mark.parametrize("way", [nothing, reset, cut, cut_chunks, cut_and_reset, no_http, no_gzip])
def test_lost_on_the_way(raw, way):
    """Tried ``tries`` times, then an error with the address; each may have been paid for."""
    raw.answer = way
    asked = ask(tries=3)
    assert "OPENAI_BASE_URL" in asked.error
    assert raw.count == 3
    assert len(asked.failed) == 3
    assert all(kind in ("lost", "garbled") for kind, _ in asked.failed)
    assert asked.ledger.spent == 0 and asked.ledger.forfeited > 0


def hang(server, connection) -> None:
    """No answer at all."""
    server.done.wait(10)


def hang_in_the_body(server, connection) -> None:
    """The head comes, the body does not."""
    connection.sendall(HEAD + b"Content-Length: 500\r\n\r\n")
    server.done.wait(10)


def drip(server, connection) -> None:
    """A byte now and then, for ever: no single wait is long."""
    connection.sendall(HEAD + b"Content-Length: 500\r\n\r\n")
    while not server.done.wait(0.03):
        connection.sendall(b" ")


@pytest.mark.parametrize("way", [hang, hang_in_the_body, drip])
def test_no_answer_in_time(raw, way):
    """``timeout`` holds for an attempt as a whole; then it is tried again, and ends."""
    raw.answer = lambda connection: way(raw, connection)
    start = time.monotonic()
    asked = ask(tries=2, timeout=0.25)
    assert time.monotonic() - start < 5
    assert "no answer in time" in asked.error and "resume" in asked.error
    assert raw.count == 2
    assert [kind for kind, _ in asked.failed] == ["lost", "lost"]


def test_lost_once_then_answered(raw, make_chat):
    """After a lost connection the reply comes: paid once, forfeited once."""

    def answer(connection):
        if raw.count > 1:
            body = b'{"choices": [{"text": "fine"}], "usage": {"prompt_tokens": 100, '
            body += b'"completion_tokens": 50}}'
            connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)

    raw.answer = answer
    asked = ask()
    assert asked.reply.text == "fine" and raw.count == 2
    assert asked.ledger.spent == pytest.approx(GOOD_USD) and len(asked.failed) == 1


def test_the_budget_ends_the_tries(raw):
    """Each lost attempt may have been paid for: with money for two there are two."""
    raw.answer = nothing
    most = 2.5 * (len(PROMPT) + 64 + 2 * 3072) / 1e6
    asked = ask(tries=9, max_usd=most)
    assert isinstance(asked.ends[0], BudgetSpent)
    assert raw.count == 2 and len(asked.failed) == 2
    assert asked.ledger.forfeited <= most


def test_tls_to_a_plain_port(raw, monkeypatch):
    """https where there is none: not reached, nothing can have been paid for."""
    monkeypatch.setenv("OPENAI_BASE_URL", raw.url.replace("http:", "https:"))

    def refuse(connection):
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    raw.answer = refuse
    raw._serve = lambda connection: (refuse(connection), connection.close())
    asked = ask(tries=2)
    assert "OPENAI_BASE_URL" in asked.error
    assert asked.failed == []


def test_nobody_there(raw):
    """A closed port: tried again, then an error with the address; nothing was paid."""
    raw.close()
    asked = ask(tries=3)
    assert "cannot be reached" in asked.error and "OPENAI_BASE_URL" in asked.error
    assert asked.failed == [] and asked.ledger.forfeited == 0


def test_a_cancelled_request_holds_nothing(raw):
    """Cancelled while it waits for its answer: no place in flight and no dollars stay held."""
    raw.answer = lambda connection: hang(raw, connection)
    ledger, rate_limit = Ledger(PRICE, 1.0), RateLimit(1)

    async def work(teacher) -> None:
        request = teacher.request(PROMPT, first_number=1, tasks=3, seed=7, sampling=Sampling())
        async with teacher.connect(rate_limit, ledger) as line:
            task = asyncio.create_task(line.ask(request))
            while not raw.count:
                await asyncio.sleep(0.01)
            assert rate_limit.in_flight == 1 and ledger.reserved > 0
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    with open_teacher("openai", "fake-model") as teacher:
        asyncio.run(work(teacher))
    assert rate_limit.in_flight == 0 and ledger.reserved == 0


QUICK = {
    "a reply": "fine",
    "filtered": (400, {}, told("no", "content_filter")),
    "refused": (401, {}, told("no")),
    "garbled": (200, {}, b"<html>"),
}


@pytest.mark.parametrize("answer", QUICK.values(), ids=QUICK)
def test_each_request_holds_its_own_dollars(fake, answer):
    """However one request ends, what is set aside for another on its way stays set aside."""
    hold, ledger = threading.Event(), Ledger(PRICE, 1.0)
    fake.delay = lambda body: hold.wait(10) * 0.0 if "slow" in str(body["messages"]) else 0.0
    fake.respond = lambda body: "fine" if "slow" in str(body["messages"]) else answer

    async def work(teacher) -> None:
        slow, quick = (
            teacher.request(text, first_number=1, tasks=3, seed=7, sampling=Sampling())
            for text in ("slow" * 50, PROMPT)
        )
        async with asyncio.timeout(60), teacher.connect(RateLimit(9), ledger) as line:
            task = asyncio.create_task(line.ask(slow, 1))
            while not fake.requests:
                await asyncio.sleep(0.01)
            held = ledger.reserved
            for _ in range(2):
                with contextlib.suppress(TeacherError):
                    await line.ask(quick, 2)
                assert held > 0 and ledger.reserved == pytest.approx(held)
            hold.set()
            assert (await task).text == "fine"

    with open_teacher("openai", "fake-model") as teacher:
        teacher.tries = 1
        asyncio.run(work(teacher))
    assert ledger.reserved == pytest.approx(0) and len(fake.requests) == 3


# --- all together -------------------------------------------------------------------


def test_the_books_balance_in_a_storm(fake):
    """Forty requests at once, a server that fails in every way: all is accounted for."""
    draw, lock, sent = random.Random(4), threading.Lock(), []

    def respond(body):
        with lock:
            kind = draw.choice(["good", "good", "429", "503", "garbled", "temperature"])
            if kind == "temperature" and kind not in body:
                kind = "good"
            sent.append(kind)
        return {
            "good": "fine",
            "429": (429, FAST, told("slow", "rate_limit_exceeded")),
            "503": (503, FAST, told("busy")),
            "garbled": (200, {}, b"<html>"),
            "temperature": (400, {}, told("no", "unsupported_value", "temperature")),
        }[kind]

    fake.respond = respond
    asked = ask(times=40, at_once=True, tries=30, max_usd=100.0)
    assert [getattr(end, "text", end) for end in asked.ends] == ["fine"] * 40
    assert sent.count("good") == 40 and len(sent) == len(fake.requests)
    assert asked.ledger.spent == pytest.approx(40 * GOOD_USD)
    assert len(asked.failed) == sent.count("garbled") > 0
    assert asked.rate_limit.refusals == sent.count("429") > 0
    assert len(asked.notes) == 1
