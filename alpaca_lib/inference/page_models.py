"""What the tabs of the page share: the models, one of which answers at a time, and the controls.

A policy checks what goes into a model and what comes out.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from alpaca_lib.inference.decoding import Decoding, TextStream
from alpaca_lib.inference.safety import REFUSAL, Policy
from alpaca_lib.records import Example
from alpaca_lib.tokenization import Record

BUSY = "(another answer is being written; this one is next)"
ENDED_AT_ONCE = "(the model ended its answer at once)"
CHARACTERS_PER_TOKEN = 16  # at most, on average, in a text that can fit; English has 4 to 5
# Streams a model's answer to a task or a conversation: ModelPool.stream with its name and
# template filled in.
StreamFunction = Callable[[Record, Decoding], TextStream]


@dataclass(frozen=True)
class PageModels:
    """The models of a page by their names on it, and the policy that checks them.

    ``longest``: the tokens of context.
    """

    streams: Mapping[str, StreamFunction]
    longest: int
    policy: Policy | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def most(self) -> int:
        """The characters of a request that is not refused before it is tokenized."""
        return CHARACTERS_PER_TOKEN * self.longest

    def refuse_length(self, *texts: str) -> str:
        """Returns an error if texts have more characters than fit into the context, or ""."""
        if (length := sum(map(len, texts))) <= self.most:
            return ""
        text = f"error: {length:,} characters do not fit into {self.longest:,} tokens of context"
        return f"{text}; write at most {self.most:,}"

    def wait(self) -> Iterator[None]:
        """Yields as long as another answer is being written; then ``lock`` is held."""
        while not self.lock.acquire(timeout=0.2):
            yield

    def stream(self, name: str, request: Record, decoding: Decoding) -> TextStream:
        """Yields a model's growing answer as far as the policy allows it, or the refusal."""
        if refusal := self.refuse_request(request):
            yield refusal
            return
        with contextlib.closing(self.stream_answer(name, request, decoding)) as pieces:
            yield from pieces

    def refuse_request(self, request: Record) -> str:
        """Returns the refusal of a request that the policy blocks, or ""."""
        block = self.policy and self.policy.check_input(*checked_texts(request))
        return f"{REFUSAL} ({block})" if block else ""

    def stream_answer(self, name: str, request: Record, decoding: Decoding) -> TextStream:
        """Yields the growing answer to a request that was checked."""
        pieces = self.streams[name](request, decoding)
        if self.policy is None:
            return pieces
        return self.policy.guard_answer(*checked_texts(request), pieces)


def checked_texts(request: Record) -> tuple[str, str]:
    """Returns (instruction, context) that a policy checks: of a conversation, the last question,
    and the system message with the earlier questions."""
    if isinstance(request, Example):
        return request.instruction, request.input
    *earlier, last = [turn.content for turn in request.turns if turn.role == "user"]
    return last, "\n\n".join(filter(None, [request.system, *earlier]))


def add_controls(gradio: Any, start: Decoding, longest: int, stream_answers: bool) -> list[Any]:
    """Adds the controls of decoding to the page; returns them in the order of read_decoding."""
    sliders = (  # label, least, most, initial value, step, note
        ("Temperature", 0, max(2, start.temperature), start.temperature, 0.05, "0: greedy"),
        ("Top-p", min(0.05, start.top_p), 1, start.top_p, 0.05, None),
        ("Top-k", 0, max(200, start.top_k), start.top_k, 1, "0: all"),
        ("Beams", 1, max(8, start.beams), start.beams, 1, "above 1: no streaming, no Stop"),
        ("Max tokens", 1, longest, min(start.max_new_tokens, longest), 1, None),
    )
    controls = [
        gradio.Slider(least, most, value, step=step, label=label, info=note)
        for label, least, most, value, step, note in sliders
    ]
    return [*controls, gradio.Checkbox(stream_answers, label="Show the answer as it grows")]


def read_decoding(
    temperature: float, top_p: float, top_k: float, beams: float, tokens: float
) -> Decoding:
    """Returns the Decoding of the sliders' values."""
    return Decoding(
        temperature=float(temperature),
        top_p=float(top_p),
        top_k=int(top_k),
        beams=int(beams),
        max_new_tokens=int(tokens),
    )
