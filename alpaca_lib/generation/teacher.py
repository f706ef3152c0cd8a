"""A teacher: a model behind an OpenAI-compatible address, called with the openai client.

"local" is llama.cpp in this process; "replay" answers from a file of replies; every other
teacher is a server of data/teachers.yaml: OpenAI, DeepSeek, Qwen, vLLM, Ollama and others.
OPENAI_BASE_URL replaces the address of each, and names any other one for "openai".
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from alpaca_lib import models
from alpaca_lib.errors import TeacherError
from alpaca_lib.generation import replay_teacher
from alpaca_lib.generation.async_runner import run_async
from alpaca_lib.generation.connection import Connection
from alpaca_lib.generation.ledger import Ledger
from alpaca_lib.generation.local_teacher import task_grammar
from alpaca_lib.generation.messages import RawReply, Request
from alpaca_lib.generation.parsing import reply_schema
from alpaca_lib.generation.presets import LOOPBACK, find_preset, preset_at
from alpaca_lib.generation.rate_limit import RateLimit
from alpaca_lib.generation.server import Server, name_models
from alpaca_lib.generation.settings import Limits, Sampling
from alpaca_lib.models.embedded import DEFAULT_MODEL
from alpaca_lib.models.llama_server import serve
from alpaca_lib.optional import require
from alpaca_lib.server_address import Redactor, server_address

REPLIES = Path(__file__).resolve().parents[2] / "data" / "teacher_replies.jsonl"


class Teacher(Server):
    """A server that is asked for new tasks.

    >>> with open_teacher("local") as teacher:
    ...     reply = teacher.ask(prompt, first_number=4, tasks=3, seed=0)
    """

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
        }
        if self.preset.seed is not False:
            body["seed"] = seed
        if self.kind == "local" and sampling.reply_format == "text":
            body |= {"prompt": prompt, "max_tokens": sampling.max_tokens}
            body["grammar"] = task_grammar(first_number, tasks)
            body |= {"repeat_penalty": 1.05, "min_p": 0.1}  # less repetition, no unlikely tokens
            return Request("/completions", body, prompt)
        body["messages"] = [{"role": "user", "content": prompt}]
        body[self.preset.max_tokens] = sampling.max_tokens
        if sampling.reply_format == "json" and self.preset.json is not False:
            is_object = self.preset.json == "object"
            body["response_format"] = {"type": "json_object"} if is_object else reply_schema()
        if self.kind == "openai":
            body |= self.preset.thinking(sampling.reasoning_effort)
            if self.preset.budget and sampling.reasoning_effort not in ("", "none"):
                body[self.preset.budget] = sampling.max_tokens
            if sampling.service_tier:
                body["service_tier"] = sampling.service_tier
        return Request("/chat/completions", self.without_refused(body), prompt)

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

    @contextlib.asynccontextmanager
    async def connect(
        self, rate_limit: RateLimit, ledger: Ledger, limits: Limits | None = None
    ) -> AsyncIterator[Connection]:
        """Opens a Connection for many requests, in the running event loop."""
        limits = limits or Limits()
        async with self.open_client(limits) as client:
            yield Connection(self, client, rate_limit, ledger, limits)


@contextlib.contextmanager
def open_teacher(
    kind: str = "local", model: str = "", slots: int = 4, timeout: float = 600.0
) -> Iterator[Teacher]:
    """Yields a teacher; a local server is stopped when the block ends.

    kind: "local", "replay" or a name of data/teachers.yaml. model: for "local" an embedded
    model's name or a .gguf file (default: the embedded one); for "replay" a .jsonl file of
    replies (default: the course's own); else the name that the server knows (default: its only
    one). slots: concurrent requests of a local server. timeout: seconds per attempt. Raises
    TeacherError for a teacher that cannot be used, UsageError for an unknown one.
    """
    require("openai")
    if kind == "local":
        name = model or DEFAULT_MODEL
        with serve(models.gguf_file(name), slots=slots) as address:
            yield Teacher(kind, name, address, "no", timeout, tries=1, is_free=True)
    elif kind == "replay":
        replies = replay_teacher.load_replies(Path(model) if model else REPLIES)
        with replay_teacher.serve(replies) as address:
            name = model or REPLIES.name
            yield Teacher(kind, name, address, "no", timeout, tries=1, is_free=True)
    else:
        yield _choose_model(_reach(kind, model, timeout))


def _reach(name: str, model: str, timeout: float) -> Teacher:
    """Returns the teacher of a preset: its address, and its key from the environment."""
    preset = find_preset(name)
    is_replaced = bool(os.environ.get("OPENAI_BASE_URL", "").strip())
    where = server_address(preset.base_url)
    # A provider's key goes to that provider alone; OPENAI_API_KEY belongs to OPENAI_BASE_URL too.
    names = [preset.key, "OPENAI_API_KEY" if is_replaced else ""]
    key_name = next((n for n in names if n and os.environ.get(n, "").strip()), preset.key)
    key = os.environ.get(key_name, "").strip() if key_name else ""
    if not (key.isascii() and key.isprintable()):
        raise TeacherError(
            f"{key_name} holds characters that no key has; copy the key alone, and all of it"
        )
    if not key and preset.key:
        any_text = " (any text for a server without keys)" if name == "openai" else ""
        raise TeacherError(
            f'teacher "{name}" needs a key: set {preset.key} in the environment{any_text}, or use '
            'teacher "local"'
        )
    teacher = Teacher(
        "openai",
        model,
        where.url,
        key or "none",
        timeout,
        headers=where.headers,
        query=where.query,
        redact=Redactor((key, *where.secrets)),
        preset=preset_at(where.url) if name == "openai" else preset,
        key_name=key_name or "OPENAI_API_KEY",
        is_free=preset.is_local and urlsplit(where.url).hostname in LOOPBACK,
    )
    if is_replaced and name != "openai":
        teacher.say(f"OPENAI_BASE_URL replaces {preset.base_url}: asking {where.url}")
    return teacher


def _choose_model(teacher: Teacher) -> Teacher:
    """Returns the teacher with a model: the one that was named, or its server's only one.

    Raises TeacherError, with the server's models, if there is a choice, and if a server of the
    user's own is not running.
    """
    if teacher.model and not teacher.preset.is_local:
        return teacher
    why = ""
    try:
        found = run_async(lambda stop: teacher.list_models())
    except TeacherError as error:
        if teacher.preset.is_local and not teacher.model:
            raise
        found, why = [], str(error)
    if teacher.model:
        if why and "cannot be reached" in why:
            raise TeacherError(why)
        return teacher
    if len(found) == 1:
        teacher.say(f"model {found[0]}: the only one at {teacher.address}")
        return replace(teacher, model=found[0])
    offered = f"{teacher.address} offers {name_models(found)}" if found else why
    raise TeacherError(
        f'teacher "{teacher.preset.name}" needs the name of a model (parameter `model`, or '
        f"--model): {offered or 'its server offers none'}"
    )
