"""A teacher: a model behind an OpenAI-compatible address, called with the openai client.

"local" is llama.cpp in this process; "openai" is whatever OPENAI_BASE_URL and
OPENAI_API_KEY name: OpenAI, vLLM, Ollama, DeepSeek, Qwen and others; "replay"
answers from a file of replies.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from alpaca_lib import models
from alpaca_lib.errors import TeacherError
from alpaca_lib.generation import replay_teacher
from alpaca_lib.generation.async_runner import run_async
from alpaca_lib.generation.backoff import compute_wait
from alpaca_lib.generation.client import open_client
from alpaca_lib.generation.failures import Failure, classify_failure
from alpaca_lib.generation.ledger import Ledger
from alpaca_lib.generation.local_teacher import task_grammar
from alpaca_lib.generation.messages import RawReply, Request, parse_completion
from alpaca_lib.generation.parsing import reply_schema
from alpaca_lib.generation.rate_limit import RateLimit
from alpaca_lib.generation.settings import TEACHER_DEFAULTS, Limits, Sampling
from alpaca_lib.models.embedded import DEFAULT_MODEL
from alpaca_lib.models.llama_server import serve
from alpaca_lib.optional import require
from alpaca_lib.server_address import Redactor, server_address

IDLE_TIMEOUT = 90.0  # seconds without a byte; the time of a reply of 3000 tokens, or more
REPLIES = Path(__file__).resolve().parents[2] / "data" / "teacher_replies.jsonl"


@dataclass
class Teacher:
    """One model and how it is reached. The key is in the environment and is never shown.

    headers, query: of OPENAI_BASE_URL, sent with every request; redact: removes the key, and the
    secrets in these, from a text.

    >>> with open_teacher("local") as teacher:
    ...     reply = teacher.ask(prompt, first_number=4, tasks=3, seed=0)
    """

    kind: str  # local, openai or replay
    model: str
    address: str
    key: str = field(repr=False)
    timeout: float = 600.0  # seconds per attempt, reading the reply included
    tries: int = 10  # attempts per request
    refused: set[str] = field(default_factory=set)  # parameters that the server rejects
    say: Callable[[str], None] = field(default=print, repr=False)
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    query: dict[str, str] = field(default_factory=dict, repr=False)
    redact: Redactor = field(default_factory=lambda: Redactor(()), repr=False)

    def request(
        self, prompt: str, *, first_number: int, tasks: int, seed: int, sampling: Sampling
    ) -> Request:
        """Returns the request for one generation prompt.

        The local teacher continues the text, as text-davinci-003 did, under a
        grammar for ``tasks`` entries; a chat model gets it as a message.
        """
        body: dict[str, Any] = {
            "model": self.model,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed,
        }
        if self.kind == "local" and sampling.reply_format == "text":
            body |= {"prompt": prompt, "max_tokens": sampling.max_tokens}
            body["grammar"] = task_grammar(first_number, tasks)
            body |= {"repeat_penalty": 1.05, "min_p": 0.1}  # less repetition, no unlikely tokens
            return Request("/completions", body, prompt)
        body["messages"] = [{"role": "user", "content": prompt}]
        body["max_completion_tokens"] = sampling.max_tokens
        if sampling.reply_format == "json":
            body["response_format"] = reply_schema()
        if self.kind == "openai":
            for name in ("reasoning_effort", "service_tier"):
                if value := getattr(sampling, name):
                    body[name] = value
        return Request("/chat/completions", self.without_refused(body), prompt)

    def without_refused(self, body: dict[str, Any]) -> dict[str, Any]:
        """Returns the body without the parameters that this server has rejected so far."""
        left = {name: value for name, value in body.items() if name not in self.refused}
        if "max_completion_tokens" in self.refused and "max_completion_tokens" in body:
            left["max_tokens"] = body["max_completion_tokens"]  # its name until 2024
        return left

    def leave_out(self, parameter: str) -> None:
        """Remembers a parameter that this server rejects, and says so the first time."""
        if parameter not in self.refused:
            self.refused.add(parameter)
            self.say(
                f"{self.address} does not take `{parameter}` for {self.model}: left out from now on"
            )

    def ask(
        self,
        prompt: str,
        *,
        first_number: int,
        tasks: int,
        seed: int,
        sampling: Sampling | None = None,
    ) -> RawReply:
        """Returns the reply to one generation prompt. Raises TeacherError."""
        request = self.request(
            prompt,
            first_number=first_number,
            tasks=tasks,
            seed=seed,
            sampling=sampling or Sampling(),
        )

        async def send() -> RawReply:
            async with self.connect(RateLimit(1), Ledger()) as connection:
                return await connection.ask(request)

        return run_async(lambda stop: send())

    def open_client(self, limits: Limits) -> Any:
        """Returns an openai client for this teacher, to be closed by the caller."""
        return open_client(
            self.address,
            self.key,
            timeout=self.idle_timeout(limits),
            limits=limits,
            headers=self.headers,
            query=self.query,
            redact=self.redact,
        )

    def idle_timeout(self, limits: Limits) -> float:
        """Returns the seconds without a byte after which the first attempt of a request ends."""
        if limits.idle_timeout is not None:
            return limits.idle_timeout
        is_slow = self.kind != "openai" or limits.way == "flex"
        return self.timeout if is_slow else min(IDLE_TIMEOUT, self.timeout)

    @contextlib.asynccontextmanager
    async def connect(
        self, rate_limit: RateLimit, ledger: Ledger, limits: Limits | None = None
    ) -> AsyncIterator[Connection]:
        """Opens a Connection for many requests, in the running event loop."""
        limits = limits or Limits()
        async with self.open_client(limits) as client:
            yield Connection(self, client, rate_limit, ledger, limits)


@dataclass
class Attempt:
    """The state of an open request: how often it was tried, since when, and what failed last."""

    number: int = 1
    since: float = field(default_factory=time.monotonic)
    late: int = 0  # attempts that ended without an answer in time
    failure: str = ""


class Connection:
    """An open connection to a teacher: concurrent requests, each tried until it succeeds.

    mean_reply: moving average of the tokens per reply, for the rate limit's estimate.
    slowest: seconds of the slowest reply; an attempt may always take three times as long.
    open: the Attempt of each open request, by number.
    stopping: if true, a failed attempt is not repeated.

    >>> async with teacher.connect(RateLimit(4), Ledger()) as connection:
    ...     reply = await connection.ask(request)
    """

    def __init__(
        self,
        teacher: Teacher,
        client: Any,
        rate_limit: RateLimit,
        ledger: Ledger,
        limits: Limits,
    ) -> None:
        self.teacher, self.client = teacher, client
        self.rate_limit, self.ledger = rate_limit, ledger
        self.connect_timeout = limits.connect_timeout
        self.idle_timeout = teacher.idle_timeout(limits)
        self.timeout = max(teacher.timeout, self.idle_timeout)
        self.mean_reply = self.slowest = 0.0
        self.open: dict[int, Attempt] = {}
        self._has_excess = False
        self.stopping = False

    async def ask(
        self,
        request: Request,
        number: int = 0,
        keep: Callable[[RawReply], Awaitable[None]] | None = None,
    ) -> RawReply:
        """Returns the reply to a request; reserves its dollars unless that is done already.

        number: the request's number in the ledger. keep(reply) writes the reply to disk before
        other requests may use the rest of its reservation. Raises TeacherError if every attempt
        failed, BudgetSpent if the next attempt could exceed the budget.
        """
        self.ledger.reserve(number, *request.most_tokens)
        attempt = self.open[number] = Attempt()
        try:
            while True:
                reply = await self._attempt(request, attempt.late)
                if isinstance(reply, RawReply):
                    self._report_excess(request, reply)
                    usd = self.ledger.cost(number, reply, request)
                    reply = replace(reply, usd=usd)
                    if keep:
                        await keep(reply)
                    self.ledger.charge(number, reply.usd)
                    return reply
                failure = replace(reply, text=self.teacher.redact(reply.text)[:500])
                if failure.kind == "filtered":
                    reply = RawReply("", "content_filter", 0, 0, refusal=failure.text)
                    if keep:
                        await keep(reply)
                    return reply
                if failure.kind == "parameter" and failure.parameter in request.body:
                    self.teacher.leave_out(failure.parameter)
                    request = replace(request, body=self.teacher.without_refused(request.body))
                    continue
                if failure.maybe_paid:
                    self.ledger.forfeit(number, failure.text)
                fatal = failure.kind in ("fatal", "parameter")
                if fatal or self.stopping or attempt.number >= self.teacher.tries:
                    self.ledger.release(number)
                    raise TeacherError(failure.text)
                self.ledger.reserve(number, *request.most_tokens)
                wait = compute_wait(attempt.number, failure.wait)
                attempt.number += 1
                attempt.late += failure.kind == "late"
                attempt.failure = failure.text.replace(", after several tries", "")
                await asyncio.sleep(wait)
        finally:
            self.ledger.close(number)
            del self.open[number]

    def _report_excess(self, request: Request, reply: RawReply) -> None:
        """Prints a line, once, if a reply counts more tokens than its request allows."""
        counted, allowed = (reply.prompt_tokens, reply.completion_tokens), request.most_tokens
        is_excess = counted[0] > allowed[0] or counted[1] > allowed[1] > 0
        if is_excess and not self._has_excess and self.ledger.max_usd is not None:
            self._has_excess = True
            self.teacher.say(
                f"{self.teacher.address} counts {counted[0]} prompt and {counted[1]} reply tokens "
                f"for a request of at most {allowed[0]} and {allowed[1]}: it costs what it counts, "
                "and max_usd can be exceeded by that"
            )

    async def _attempt(self, request: Request, late: int) -> RawReply | Failure:
        httpx, teacher = require("httpx2"), self.teacher
        idle = min(max(self.idle_timeout * 2.0**late, 3 * self.slowest), self.timeout)
        timeout = httpx.Timeout(idle, connect=self.connect_timeout, pool=None)
        estimate = len(request.prompt) / 4 + (self.mean_reply or request.most_tokens[1] / 2)
        used: float | None = None
        await self.rate_limit.acquire(estimate)
        try:
            start = time.monotonic()
            async with asyncio.timeout(self.timeout):
                response = await self.client.post(
                    request.path,
                    body=request.body,
                    cast_to=httpx.Response,
                    options={"timeout": timeout},
                )
            self.rate_limit.learn(response.headers)
            reply = parse_completion(response.content, teacher.redact.redact_data)
            self.slowest = max(self.slowest, time.monotonic() - start)
            used = float(reply.prompt_tokens + reply.completion_tokens) or None
            weight = 0.1 if self.mean_reply else 1.0
            self.mean_reply += weight * (reply.completion_tokens - self.mean_reply)
            return reply
        except Exception as error:
            failure = classify_failure(error, teacher.address, teacher.model, teacher.redact)
            if failure.kind == "rate":
                self.rate_limit.slow_down(failure.wait)
            if failure.kind not in ("late", "lost"):
                used = 0.0
            return failure
        finally:
            self.rate_limit.release(estimate, used)


@contextlib.contextmanager
def open_teacher(
    kind: str = "local", model: str = "", slots: int = 4, timeout: float = 600.0
) -> Iterator[Teacher]:
    """Yields a teacher; a local server is stopped when the block ends.

    model: for "local" an embedded model's name or a .gguf file (default: the
    embedded one); for "openai" the name that the server knows, required; for "replay"
    a .jsonl file of replies (default: the course's own). slots: concurrent requests of a local
    server. timeout: seconds per attempt. Raises TeacherError for a teacher that cannot be used.
    """
    require("openai")
    if kind == "local":
        name = model or DEFAULT_MODEL
        with serve(models.gguf_file(name), slots=slots) as address:
            yield Teacher(kind, name, address, "no", timeout, tries=1)
    elif kind == "openai":
        key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not (key.isascii() and key.isprintable()):
            raise TeacherError(
                "OPENAI_API_KEY holds characters that no key has; copy the key alone, and all of it"
            )
        if not key:
            raise TeacherError(
                'teacher "openai" needs a key: set OPENAI_API_KEY in the environment (any text '
                'for a server without keys), or use teacher "local"'
            )
        if not model:
            raise TeacherError('teacher "openai" needs the name of a model (parameter `model`)')
        where = server_address()
        yield Teacher(
            kind,
            model,
            where.url,
            key,
            timeout,
            headers=where.headers,
            query=where.query,
            redact=Redactor((key, *where.secrets)),
        )
    elif kind == "replay":
        replies = replay_teacher.load_replies(Path(model) if model else REPLIES)
        with replay_teacher.serve(replies) as address:
            yield Teacher(kind, model or REPLIES.name, address, "no", timeout, tries=1)
    else:
        raise TeacherError(f"no teacher {kind!r}; there are {', '.join(TEACHER_DEFAULTS)}")
