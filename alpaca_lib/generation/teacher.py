"""A teacher: a model behind an OpenAI-compatible address, asked with the openai client.

"local" is llama.cpp in this process; "openai" is whatever OPENAI_BASE_URL and
OPENAI_API_KEY name: OpenAI, vLLM, Ollama, DeepSeek, Qwen and others; "replay"
answers from a file of replies.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from alpaca_lib import models
from alpaca_lib.errors import ReplyError, TeacherError
from alpaca_lib.generation import local_teacher, replay_teacher
from alpaca_lib.generation.async_runner import run_async
from alpaca_lib.generation.budget import Budget
from alpaca_lib.generation.failures import Failure, failure_of
from alpaca_lib.generation.parsing import FORMATS, reply_schema
from alpaca_lib.generation.rate_limit import Pace
from alpaca_lib.generation.settings import Sampling
from alpaca_lib.models.embedded import DEFAULT_MODEL
from alpaca_lib.models.llama_server import serve
from alpaca_lib.optional import require

__all__ = ["RawReply", "Request", "Sampling", "Teacher", "TeacherError", "open_teacher"]

TEACHERS = ("local", "openai", "replay")
REPLIES = Path(__file__).resolve().parents[2] / "data" / "teacher_replies.jsonl"
FIRST_WAIT = 1.0  # seconds: the mean wait before the second try; then twice as long each time
LONGEST_WAIT = 30.0


@dataclass(frozen=True)
class Request:
    """One request as it is sent: the path below the address, and the body."""

    path: str
    body: dict[str, Any]
    prompt: str

    @property
    def most_tokens(self) -> tuple[int, int]:
        """(prompt, reply) tokens that it cannot pass: a token is a byte or more, and a schema is
        part of the prompt."""
        limit = self.body.get("max_completion_tokens") or self.body.get("max_tokens") or 0
        shown = self.prompt + str(self.body.get("response_format", ""))
        return len(shown.encode("utf-8", "replace")) + 64, int(limit)


@dataclass(frozen=True)
class RawReply:
    """A reply as the teacher sent it; ``refusal`` is the text of a refusal, if it was one.

    usd: what it cost, by the prices and the way of asking of its day.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    refusal: str = ""
    usd: float = 0.0


@dataclass
class Teacher:
    """One model and how it is reached. The key is in the environment and is never shown."""

    kind: str
    model: str
    address: str
    key: str = field(repr=False)
    timeout: float = 600.0  # seconds for one attempt, in all
    tries: int = 10
    refused: set[str] = field(default_factory=set)  # parameters that the server will not have
    say: Callable[[str], None] = field(default=print, repr=False)

    def request(
        self, prompt: str, *, first_number: int, tasks: int, seed: int, sampling: Sampling
    ) -> Request:
        """The request for one generation prompt.

        The local teacher continues the text, as text-davinci-003 did, under a
        grammar for ``tasks`` entries; a chat model gets it as a message.
        """
        if sampling.reply_format not in FORMATS:
            raise ValueError(f"reply_format {sampling.reply_format!r}: {', '.join(FORMATS)}")
        body: dict[str, Any] = {
            "model": self.model,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed,
        }
        if self.kind == "local" and sampling.reply_format == "text":
            # llama.cpp's own options: the format, and less of a small model's repeating.
            body |= local_teacher.options(first_number, tasks)
            body |= {"prompt": prompt, "max_tokens": sampling.max_tokens}
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
        """The body without the parameters that this server has refused so far."""
        left = {name: value for name, value in body.items() if name not in self.refused}
        if "max_completion_tokens" in self.refused and "max_completion_tokens" in body:
            left["max_tokens"] = body["max_completion_tokens"]  # its name until 2024
        return left

    def drop(self, parameter: str) -> None:
        """Remembers a parameter that this server refuses, and says so the first time."""
        if parameter not in self.refused:
            self.refused.add(parameter)
            self.say(
                f"{self.address} does not take `{parameter}` for {self.model}: left out from now on"
            )

    def ask(
        self, prompt: str, *, first_number: int, tasks: int, seed: int,
        sampling: Sampling | None = None,
    ) -> RawReply:  # fmt: skip
        """The reply to one generation prompt. Raises TeacherError."""
        request = self.request(
            prompt, first_number=first_number, tasks=tasks, seed=seed,
            sampling=sampling or Sampling(),
        )  # fmt: skip

        async def once() -> RawReply:
            async with self.connect(Pace(1), Budget()) as line:
                return await line.ask(request)

        return run_async(lambda stop: once())

    @contextlib.asynccontextmanager
    async def connect(self, pace: Pace, budget: Budget) -> AsyncIterator[Line]:
        """A Line for many requests, in the running event loop."""
        openai = require("openai")
        transport: dict[str, Any] = {}
        with contextlib.suppress(RuntimeError, ImportError):
            # Half the processor time a request of the default transport.
            transport["http_client"] = openai.DefaultAioHttpClient()
        async with openai.AsyncOpenAI(
            base_url=self.address,
            api_key=self.key,
            max_retries=0,  # retried here, where the limits and the budget are known
            timeout=self.timeout,
            **transport,
        ) as client:
            yield Line(self, client, pace, budget, openai)

    def redact(self, text: str) -> str:
        """A text without the key, should a server have repeated it."""
        return text.replace(self.key, "(the key)") if len(self.key) > 3 else text


class Line:
    """An open connection to a teacher: many requests at once, each tried until it succeeds."""

    def __init__(
        self, teacher: Teacher, client: Any, pace: Pace, budget: Budget, openai: Any
    ) -> None:
        self.teacher, self.client, self.pace, self.budget = teacher, client, pace, budget
        self.openai = openai
        self.mean_reply = 0.0  # tokens, of the replies so far
        self.stopping = False  # nothing is tried again any more

    async def ask(
        self, request: Request,
        failed: Callable[[Failure, float], None] = lambda failure, usd: None,
        keep: Callable[[RawReply], Awaitable[None]] | None = None,
        reserved: float | None = None,
    ) -> RawReply:  # fmt: skip
        """The reply. Raises TeacherError if it cannot be had, BudgetSpent if trying again may
        pass the budget.

        failed(failure, usd) is called after an attempt that may have been paid for; keep(reply)
        puts the reply on disk before others may use what was set aside for it. reserved: the
        dollars that the caller has set aside already.
        """
        if reserved is None:
            reserved = self.budget.reserve(*request.most_tokens)
        attempt = 0
        try:
            while True:
                reply = await self._attempt(request)
                if isinstance(reply, RawReply):
                    reply = replace(reply, usd=self.budget.charge(reserved, reply))
                    if keep:
                        await keep(reply)
                    self.budget.settle(reserved, reply)
                    reserved = 0.0
                    return reply
                failure = replace(reply, text=self.teacher.redact(reply.text)[:500])
                if failure.kind == "filtered":
                    reply = RawReply("", "content_filter", 0, 0, refusal=failure.text)
                    if keep:
                        await keep(reply)
                    return reply
                if failure.kind == "parameter" and failure.parameter in request.body:
                    self.teacher.drop(failure.parameter)
                    request = replace(request, body=self.teacher.without_refused(request.body))
                    continue
                attempt += 1
                if failure.kind in ("fatal", "parameter"):
                    raise TeacherError(failure.text)
                if failure.maybe_paid:
                    lost, reserved = reserved, 0.0
                    self.budget.forfeit(lost)
                    failed(failure, lost)
                if attempt >= self.teacher.tries or self.stopping:
                    raise TeacherError(failure.text)
                if failure.maybe_paid:
                    reserved = self.budget.reserve(*request.most_tokens)
                backoff = min(2 * FIRST_WAIT * 2.0 ** (attempt - 1), LONGEST_WAIT)
                await asyncio.sleep(random.uniform(0.0, backoff) + (failure.wait or 0.0))
        finally:
            self.budget.release(reserved)

    async def _attempt(self, request: Request) -> RawReply | Failure:
        httpx = require("httpx2")
        estimate = len(request.prompt) / 4 + (self.mean_reply or request.most_tokens[1] / 2)
        used: float | None = None
        await self.pace.enter(estimate)
        try:
            async with asyncio.timeout(self.teacher.timeout):
                response = await self.client.post(
                    request.path, body=request.body, cast_to=httpx.Response
                )
            self.pace.learn(response.headers)
            reply = reply_from(response.content)
            used = float(reply.prompt_tokens + reply.completion_tokens) or None
            weight = 0.1 if self.mean_reply else 1.0
            self.mean_reply += weight * (reply.completion_tokens - self.mean_reply)
            return reply
        except Exception as error:
            failure = failure_of(error, self.openai, self.teacher.address, self.teacher.model)
            if failure.kind == "rate":
                self.pace.refused(failure.wait)
            if failure.kind != "lost":
                used = 0.0
            return failure
        finally:
            self.pace.leave(estimate, used)


def reply_from(content: bytes | Mapping[str, Any]) -> RawReply:
    """The RawReply in a completion's body; ReplyError if it is none."""
    try:
        body = json.loads(content) if isinstance(content, bytes) else content
        choice = body["choices"][0]
        message = choice.get("message") or {}
        text = choice["text"] if "text" in choice else message["content"]
        if not isinstance(text, str | None):
            raise TypeError("the content is not text")
        usage = body.get("usage") or {}
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        reasoning = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens")
        return RawReply(
            text=text or "",
            finish_reason=choice.get("finish_reason") or "stop",
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            completion_tokens=int(usage.get("completion_tokens") or 0),
            cached_tokens=int(cached or 0),
            reasoning_tokens=int(reasoning or 0),
            refusal=str(message.get("refusal") or ""),
        )
    except (
        *(ValueError, KeyError, IndexError, TypeError, AttributeError),
        *(RecursionError, OverflowError),
    ) as error:
        raise ReplyError(f"no completion in its reply, {type(error).__name__}") from None


@contextlib.contextmanager
def open_teacher(
    kind: str = "local", model: str = "", slots: int = 4, timeout: float = 600.0
) -> Iterator[Teacher]:
    """The teacher of that kind; a local server is stopped when the block ends.

    model: for "local" an embedded model's name or a .gguf file (default: the
    embedded one); for "openai" the name that the server knows, needed; for "replay"
    a .jsonl file of replies (default: the course's own).
    """
    openai = require("openai")
    if kind == "local":
        name = model or DEFAULT_MODEL
        with serve(models.gguf_file(name), slots=slots) as address:
            yield Teacher(kind, name, address, "no", timeout, tries=1)
    elif kind == "openai":
        key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not (key.isascii() and key.isprintable()):
            raise TeacherError(
                "OPENAI_API_KEY holds characters that no key has; was it copied whole, and alone?"
            )
        if not key:
            raise TeacherError(
                'teacher "openai" needs a key: set OPENAI_API_KEY in the environment (any text '
                'for a server without keys), or use teacher "local"'
            )
        if not model:
            raise TeacherError('teacher "openai" needs the name of a model (parameter `model`)')
        address = str(openai.OpenAI(max_retries=0).base_url).rstrip("/")
        yield Teacher(kind, model, address, key, timeout)
    elif kind == "replay":
        replies = replay_teacher.load_replies(Path(model) if model else REPLIES)
        with replay_teacher.serve(replies) as address:
            yield Teacher(kind, model or REPLIES.name, address, "no", timeout, tries=1)
    else:
        raise TeacherError(f"no teacher {kind!r}; there are {', '.join(TEACHERS)}")
