"""A teacher: a model behind an OpenAI-compatible address, asked with the openai client.

"local" is llama.cpp in this process; "openai" is whatever OPENAI_BASE_URL and
OPENAI_API_KEY name: OpenAI, vLLM, Ollama, DeepSeek, Qwen and others; "replay"
answers from a file of replies.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alpaca_lib import models
from alpaca_lib.embedded import DEFAULT_MODEL, need
from alpaca_lib.generation import local_teacher, replay_teacher

TEACHERS = ("local", "openai", "replay")
REPLIES = Path(__file__).resolve().parents[2] / "data" / "teacher_replies.jsonl"
FIRST_WAIT = 1.0  # seconds before the second try; then twice as long each time, up to 30


class TeacherError(RuntimeError):
    """A teacher that cannot answer, now or ever; the text says what to do."""


@dataclass(frozen=True)
class RawReply:
    """A reply as the teacher sent it."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


@dataclass
class Teacher:
    """An open connection to one model. ``client`` holds the key; it is never shown."""

    kind: str
    model: str
    address: str
    client: Any = field(repr=False)
    tries: int = 6

    def ask(
        self,
        prompt: str,
        *,
        first_number: int,
        tasks: int,
        seed: int,
        max_tokens: int = 3072,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ) -> RawReply:
        """The reply to one generation prompt. Raises TeacherError.

        The local teacher continues the text, as text-davinci-003 did, under a
        grammar for ``tasks`` entries; a chat model gets it as a message.
        """
        openai = need("openai")
        options = {"model": self.model, "temperature": temperature, "top_p": top_p, "seed": seed}

        def send() -> tuple[Any, str]:
            if self.kind == "local":
                # llama.cpp's own options: the format, and less of a small model's repeating.
                extra = {
                    "grammar": local_teacher.task_grammar(first_number, tasks),
                    "repeat_penalty": 1.1,
                }
                done = self.client.completions.create(
                    prompt=prompt, max_tokens=max_tokens, extra_body=extra, **options
                )
                return done, done.choices[0].text
            done = self.client.chat.completions.create(
                messages=[{"role": "user", "content": prompt}],
                max_completion_tokens=max_tokens,
                **options,
            )
            return done, done.choices[0].message.content or ""

        try:
            done, text = self._patiently(send, openai)
            usage = done.usage
            return RawReply(
                text=text,
                finish_reason=done.choices[0].finish_reason or "stop",
                prompt_tokens=usage.prompt_tokens if usage else 0,
                completion_tokens=usage.completion_tokens if usage else 0,
            )
        except openai.OpenAIError as error:
            raise TeacherError(self._explain(error, openai)) from None
        except (AttributeError, IndexError, TypeError):
            raise TeacherError(
                f"{self.address}: what answers there is no OpenAI-compatible server; the address "
                "usually ends in /v1 (OPENAI_BASE_URL)"
            ) from None

    def _patiently(self, send: Callable[[], tuple[Any, str]], openai: Any) -> tuple[Any, str]:
        """What send() returns; what may pass is tried again, ever less often."""
        for attempt in range(self.tries):
            try:
                return send()
            except (
                openai.APIConnectionError,
                openai.RateLimitError,
                openai.APIStatusError,
            ) as error:
                passing = getattr(error, "status_code", 500) in (408, 409, 429) or (
                    getattr(error, "status_code", 500) >= 500
                )
                spent = getattr(error, "code", None) == "insufficient_quota"
                if spent or not passing or attempt == self.tries - 1:
                    raise
            time.sleep(random.uniform(0.5, 1.0) * min(FIRST_WAIT * 2.0**attempt, 30.0))
        raise AssertionError("unreachable")

    def _explain(self, error: Exception, openai: Any) -> str:
        """What went wrong, in terms of what the reader can change."""
        code = getattr(error, "code", None)
        if code == "insufficient_quota":
            return f"{self.address}: no credit left on this key; add some, then resume"
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            return f"{self.address}: the key in OPENAI_API_KEY is refused; set a valid one"
        if isinstance(error, openai.NotFoundError):
            return f"{self.address}: no model {self.model!r} there; set another model name"
        if isinstance(error, openai.APITimeoutError):
            return f"{self.address}: no answer in time, after several tries; resume later"
        if isinstance(error, openai.APIConnectionError):
            return f"{self.address}: cannot be reached; check the address (OPENAI_BASE_URL)"
        if isinstance(error, openai.RateLimitError):
            return f"{self.address}: too many requests, after several tries; lower concurrency"
        said = str(error)[:300]
        key = self.client.api_key
        if key and key in said:
            said = said.replace(key, "(the key)")
        return f"{self.address}: {type(error).__name__}: {said}"


@contextlib.contextmanager
def open_teacher(
    kind: str = "local", model: str = "", slots: int = 4, timeout: float = 600.0
) -> Iterator[Teacher]:
    """The teacher of that kind, closed when the block ends.

    model: for "local" an embedded model's name or a .gguf file (default: the
    embedded one); for "openai" the name that the server knows, needed; for "replay"
    a .jsonl file of replies (default: the course's own).
    """
    openai = need("openai")
    if kind == "local":
        name = model or DEFAULT_MODEL
        with local_teacher.serve(models.gguf_file(name), slots=slots) as address:
            client = openai.OpenAI(
                base_url=address, api_key="not-needed", max_retries=0, timeout=timeout
            )
            with client:
                yield Teacher(kind, name, address, client, tries=1)
    elif kind == "openai":
        if not os.environ.get("OPENAI_API_KEY"):
            raise TeacherError(
                'teacher "openai" needs a key: set OPENAI_API_KEY in the environment (any text '
                'for a server without keys), or use teacher "local"'
            )
        if not model:
            raise TeacherError('teacher "openai" needs the name of a model (parameter `model`)')
        with openai.OpenAI(max_retries=0, timeout=timeout) as client:
            yield Teacher(kind, model, str(client.base_url), client)
    elif kind == "replay":
        replies = replay_teacher.load_replies(Path(model) if model else REPLIES)
        with (
            replay_teacher.serve(replies) as address,
            openai.OpenAI(
                base_url=address, api_key="not-needed", max_retries=0, timeout=timeout
            ) as client,
        ):
            yield Teacher(kind, model or REPLIES.name, address, client, tries=1)
    else:
        raise TeacherError(f"no teacher {kind!r}; there are {', '.join(TEACHERS)}")
