"""Chat templates of models: rendered with limits, and read for where an answer begins and ends.

A chat template is a program of a model's maker (Jinja). transformers runs it in a sandbox; here
it also gets limits of time and memory, and every fault of it is a SettingsError.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import re
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from alpaca_lib.errors import SettingsError
from alpaca_lib.memory import resident
from alpaca_lib.optional import require

Messages = Sequence[dict[str, str]]
QUESTION, ANSWER = "Qzxquestion7", "Qzxanswer7"  # texts that no template writes itself
OPEN_OR_CLOSED = re.compile(r"[<\[](/?)(?:[\w:|-]*think\w*|reasoning|thought)[>\]]", re.IGNORECASE)
CLOCK = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
KEPT = "{% set keeps_reasoning = true %}"  # a published template of answers with reasoning
SECONDS = 10.0  # for one prompt; most templates need a ten-thousandth of it
BYTES = 1 << 30  # of main memory, for the same


@dataclass(frozen=True)
class ChatFormat:
    """How a chat template writes an assistant's turn, read from a conversation that it renders.

        conversation   <user>Q<end>  <assistant>  answer  <end>
                                     --- tail --          - after

    ``tail`` is None where the generation prompt is what the conversation has before an answer.
    It is text where the two differ: a generation prompt that opens a block of reasoning is
    replaced by what stands before an answer without reasoning. ``lead`` is white space that a
    conversation has between the generation prompt and the answer.
    """

    tail: str | None
    lead: str
    after: str
    strips: bool  # the template removes white space around an answer


def render_chat(
    tokenizer: Any,
    messages: Messages,
    for_answer: bool,
    now: datetime | None = None,
    source: str | None = None,
) -> str:
    """Returns the text of messages by a chat template: ``source``, or the tokenizer's own.

    ``for_answer`` adds the generation prompt. ``now`` is the time that the template sees, by
    default the present one. Raises SettingsError if the template fails.
    """
    source = own_source(tokenizer) if source is None else source
    if now is not None and "strftime_now" in source:
        source = pin_time(source, now)
    try:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=for_answer, chat_template=source
        )
    except Exception as error:
        raise _cannot_render(error) from error
    return str(text)


def render_marked(
    tokenizer: Any, messages: Messages, now: datetime | None, source: str
) -> tuple[str, list[tuple[int, int]]]:
    """Returns the text of messages, and what is inside {% generation %} in it: (start, end).

    Raises SettingsError if the template fails.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    if now is not None and "strftime_now" in source:
        source = pin_time(source, now)
    try:
        texts, marks = render_jinja_template(
            conversations=[list(messages)],
            chat_template=source,
            return_assistant_tokens_mask=True,
            **tokenizer.special_tokens_map,
        )
    except Exception as error:
        raise _cannot_render(error) from error
    return str(texts[0]), [(start, end) for start, end in marks[0]]


def _cannot_render(error: Exception) -> SettingsError:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return SettingsError(
        f"template 'chat': the model's chat template cannot be rendered ({first}); use a "
        "template of this project, such as 'alpaca'"
    )


def own_source(tokenizer: Any) -> str:
    """Returns the text of a tokenizer's chat template: of several, the one called default."""
    source = tokenizer.chat_template
    return str(source["default"] if isinstance(source, dict) else source)


def pin_time(source: str, now: datetime) -> str:
    """Returns a chat template in which the present time is ``now``.

    transformers takes no function as a variable of a template, so calls of strftime_now with a
    literal format are replaced by the text that they give.
    """
    return CLOCK.sub(lambda call: json.dumps(now.strftime(call[2]), ensure_ascii=False), source)


@contextlib.contextmanager
def time_limit(seconds: float = SECONDS) -> Iterator[None]:
    """Raises SettingsError if the block, which renders chat templates, takes longer, or if the
    process grows by more than BYTES in it."""
    thread, lock, finished = threading.get_ident(), threading.Lock(), threading.Event()
    limits: list[str] = []

    def watch() -> None:
        end, most = time.monotonic() + seconds, resident() + BYTES
        while not finished.wait(min(0.02, seconds)):
            # Memory first: an operation on a huge text keeps this thread waiting.
            if resident() > most:
                limits.append(f"takes more than {BYTES / 2**30:.2g} GB of memory")
            elif time.monotonic() >= end:
                limits.append(f"did not end within {seconds:.0f} seconds")
            else:
                continue
            with lock:
                if not finished.is_set():
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(
                        ctypes.c_ulong(thread), ctypes.py_object(_Interrupted)
                    )
            return

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    except (SettingsError, _Interrupted) as error:
        if not is_interrupted(error):
            raise
        raise SettingsError(
            f"template 'chat': the model's chat template {limits[0]}; use a template of this "
            "project, such as 'alpaca'"
        ) from None
    finally:
        with lock:
            finished.set()


class _Interrupted(Exception):
    """Interrupts a template that does not end."""


def is_interrupted(error: Exception) -> bool:
    """Returns whether an error is that of ``time_limit`` on its way to the end of its block."""
    return isinstance(error, _Interrupted) or isinstance(error.__cause__, _Interrupted)


def check_source(source: str) -> None:
    """Raises SettingsError for a template with arithmetic that no limit can interrupt.

    A rule of twenty dashes (``'-' * 20``) and a product of two numbers are no such arithmetic.
    """
    jinja2 = require("jinja2")
    try:
        tokens = [t for t in jinja2.Environment().lex(source) if t[1] != "whitespace"]
    except jinja2.TemplateSyntaxError as error:
        raise SettingsError(
            f"template 'chat': the model's chat template cannot be read ({error})"
        ) from None
    for place, (line, kind, value) in enumerate(tokens):
        near = tokens[max(place - 1, 0) : place + 2]
        if kind == "integer" and len(value) > 9:
            refused = f"has the number {value[:20]} in line {line}"
        elif kind == "operator" and (value == "**" or (value == "*" and _is_large(near))):
            refused = f"computes {value} in line {line}"
        else:
            continue
        raise SettingsError(
            f"template 'chat': the model's chat template {refused}, which no prompt needs and "
            "which may never end; it is not run"
        )


def _is_large(product: Sequence[tuple[int, str, str]]) -> bool:
    """Returns whether a product of two operands may be a text of many millions of characters."""
    operands = [product[0], product[-1]]
    numbers = [value for _, kind, value in operands if kind == "integer"]
    if len(numbers) == 2:
        return False
    has_text = any(kind == "string" for _, kind, _ in operands)
    return any(len(value) > 4 for value in numbers) or (has_text and not numbers)


def read_format(
    tokenizer: Any, now: datetime | None = None, source: str | None = None
) -> ChatFormat:
    """Returns the ChatFormat of a chat template: ``source``, or the tokenizer's own.

    Raises SettingsError for a template whose answers cannot be found in a conversation, or
    whose answers begin inside a block of reasoning.
    """
    every = tokenizer.chat_template if source is None else source
    for one in every.values() if isinstance(every, dict) else [every]:
        check_source(one)
    now = now or datetime.now()
    asked = [{"role": "user", "content": QUESTION}]
    with time_limit():
        prompt = render_chat(tokenizer, asked, for_answer=True, now=now, source=source)
        opened = render_chat(tokenizer, asked, for_answer=False, now=now, source=source)
        full = _answered(tokenizer, asked, ANSWER, now, source)
        strips = f" {ANSWER} " not in _answered(tokenizer, asked, f" {ANSWER} ", now, source)
    if full.count(ANSWER) != 1 or QUESTION not in full.split(ANSWER)[0]:
        raise SettingsError(
            "template 'chat': the model's chat template does not write a question and then its "
            "answer, once each; use a template of this project, such as 'alpaca'"
        )
    before, after = full.split(ANSWER)
    tail, lead = None, ""
    if before != prompt:
        if before.startswith(prompt) and not before[len(prompt) :].strip():
            lead = before[len(prompt) :]
        elif before.startswith(opened):
            tail = before[len(opened) :]
        else:
            raise SettingsError(
                f"template 'chat': the model's chat template ends its prompt in {prompt[-60:]!r}, "
                f"and has {before[-60:]!r} before an answer; neither contains the other"
            )
    marks = list(OPEN_OR_CLOSED.finditer(before))
    if marks and not marks[-1][1]:
        raise SettingsError(
            f"template 'chat': the model's chat template has an answer inside {marks[-1][0]}, "
            "which is a block of reasoning; use a template of this project, such as 'alpaca'"
        )
    if KEPT in (own_source(tokenizer) if source is None else source):
        tail = None
    return ChatFormat(tail=tail, lead=lead, after=after, strips=strips)


def _answered(tokenizer: Any, asked: Messages, text: str, now: datetime, source: str | None) -> str:
    conversation = [*asked, {"role": "assistant", "content": text}]
    return render_chat(tokenizer, conversation, for_answer=False, now=now, source=source)


def render_asked(
    tokenizer: Any,
    messages: Messages,
    form: ChatFormat,
    now: datetime | None = None,
    source: str | None = None,
) -> str:
    """Returns the prompt of messages, the last of them the user's: everything before the answer."""
    text = render_chat(tokenizer, messages, form.tail is None, now, source)
    return text if form.tail is None else text + form.tail


def write_published(
    source: str, tail: str | None, prefix: str, keeps_reasoning: bool = False
) -> str:
    """Returns a chat template that writes ``prefix`` before everything, and ``tail`` as the
    generation prompt (None: its own). ``keeps_reasoning`` is noted in it."""
    before = "" if not keeps_reasoning or KEPT in source else KEPT
    after = ""
    if prefix:
        before += f"{{{{- {json.dumps(prefix, ensure_ascii=False)} }}}}"
    if tail is not None:
        before += "{% set for_answer = add_generation_prompt %}"
        before += "{% set add_generation_prompt = false %}"
        text = json.dumps(tail, ensure_ascii=False)
        after = f"{{% if for_answer %}}{{{{- {text} }}}}{{% endif %}}"
    if not before:
        return source
    # A newline after a block is dropped, so the source begins a line, as it did.
    return before + "{% set published = true %}\n" + source.removesuffix("\n") + after
