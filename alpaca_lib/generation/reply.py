"""What parsing returns: the tasks of a reply, and its dropped parts with reasons.

A reply is complete if its finish_reason is None or empty (the server does not say), or one of
COMPLETE, the names that APIs give to an end that the model chose. Any other one, also an unknown
one, means that the last task may be cut.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from alpaca_lib.generation.reasoning import Split
from alpaca_lib.records import Example

NOT_A_TASK = "not one Instruction, Input and Output with one number"
PREFACE = "preface: text before the first task"
REMARK = "remark between or after the tasks, without Instruction, Input and Output"
REASONING = "reasoning of the teacher"

# OpenAI, vLLM, llama.cpp: stop. Anthropic, Bedrock: end_turn, stop_sequence. TGI: eos_token.
# Together: eos. Cohere, Titan: COMPLETE, FINISHED. llama.cpp's own endpoint: eos, word.
COMPLETE = frozenset(
    {"stop", "stop_sequence", "stop_token", "end_turn", "eos", "eos_token", "word"}
)
COMPLETE |= {"complete", "completed", "finish", "finished", "endoftext"}
_KNOWN_CUTS = {
    "length": "cut off by the length limit",
    "content_filter": "stopped by the content filter",
}
_LENGTH = ("max_tokens", "max_length", "max_output_tokens", "model_length", "token_limit")


@dataclass(frozen=True)
class Rejected:
    """A part of a reply that is dropped, and why."""

    reason: str
    text: str


@dataclass(frozen=True)
class Reply:
    """The tasks of one reply in order, and its dropped parts with reasons."""

    tasks: list[Example] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)

    def add(self, task: Example | None, reason: str | None, text: str) -> None:
        """Adds a task, or the text that it is from and the reason why it is dropped."""
        if task is not None and reason is None:
            self.tasks.append(task)
        else:
            self.reject(str(reason), text)

    def reject(self, reason: str, text: str) -> None:
        """Adds a dropped part of the reply."""
        self.rejected.append(Rejected(reason, text))


def why_incomplete(finish_reason: str | None) -> str | None:
    """Returns why a reply may be cut, naming its finish_reason, or None if it is complete."""
    reason = "" if finish_reason is None else str(finish_reason).strip().lower()
    if not reason or reason in COMPLETE:
        return None
    shown = f'finish_reason "{str(finish_reason)[:40]}"'
    if reason in _LENGTH:
        return f"cut off by the length limit ({shown})"
    return _KNOWN_CUTS.get(reason, f"not known to be complete ({shown})")


def open_reply(split: Split, finish_reason: str | None) -> tuple[Reply, str | None]:
    """Returns a Reply with the reasoning among its dropped parts, and why the answer may be cut."""
    reply, cut = Reply(), why_incomplete(finish_reason)
    closed = len(split.reasoning) - split.is_open
    for text in split.reasoning[:closed]:
        reply.reject(REASONING, text)
    if split.is_open:
        cut = f"{cut or 'ended'} inside its reasoning: raise max_tokens or lower reasoning_effort"
        reply.reject(cut, "".join(split.reasoning[closed:]))
    return reply, cut
