"""Instructions and conversations -> answers: greedy decoding, sampling or beam search.

Answers come in batches, or streamed. The answer to a conversation is its next turn: what the
model says after the user's last one.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import field_validator

from alpaca_lib.errors import SettingsError
from alpaca_lib.inference.turns import oldest_to_drop
from alpaca_lib.options import Options, option
from alpaca_lib.records import Conversation
from alpaca_lib.tokenization import PromptEncoder, Record, prompt_ids, without_surrogates

__all__ = [
    "Answer",
    "ContextError",
    "Decoding",
    "TextStream",
    "answer",
    "end_tokens",
    "prompt_ids",
    "stream",
]


TextStream = Generator[str, None, None]  # the answer so far, again and again; close() stops it


class Decoding(Options):
    """How the next token is chosen, and where an answer ends.

    >>> Decoding(temperature=0.7, top_p=0.9, seed=1).replace(max_new_tokens=32)
    """

    temperature: float = option(0.0, "0: greedy, the most likely token", least=0, most=5)
    top_p: float = option(
        1.0, "sample among the most likely tokens of this total probability", above=0, most=1
    )
    top_k: int = option(0, "sample among this many most likely tokens; 0: all", least=0, most=10**7)
    beams: int = option(1, "beams of beam search; 1: none", least=1, most=16)
    max_new_tokens: int = option(128, "tokens per answer, at most", least=1, most=10**6)
    repetition_penalty: float = option(
        1.0, "above 1: tokens already in the answer become less likely", above=0, most=100
    )
    seed: int | None = option(None, "seed of sampling; unset: another answer each time")
    stop: tuple[str, ...] = option((), "texts that end an answer, as its end token does")

    @field_validator("stop", mode="before")
    @classmethod
    def _check_stop(cls, stop: Any) -> Any:
        if not isinstance(stop, tuple) or not all(stop):
            raise ValueError("a tuple of texts, none of them empty")
        return stop

    def to_arguments(
        self, prompt_tokens: int, tokenizer: Any, ends: Collection[int] = ()
    ) -> dict[str, Any]:
        """Returns the arguments of transformers' generate(), for prompts of that many tokens.

        ``ends``: ids that end an answer, in addition to those that the model's files name.

        The penalty counts the answer's tokens alone; transformers' own option counts the
        prompt's too. Penalties that a model's own files ask for are off, or the comparison would
        be one of files.
        """
        sample = self.temperature > 0
        options: dict[str, Any] = {
            "do_sample": sample,
            "num_beams": self.beams,
            "max_new_tokens": self.max_new_tokens,
            "pad_token_id": tokenizer.pad_token_id,
            "repetition_penalty": 1.0,
            "no_repeat_ngram_size": 0,
        }
        if ends:
            options["eos_token_id"] = sorted(ends)
        if self.repetition_penalty != 1:
            from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

            penalty = RepetitionPenaltyLogitsProcessor(self.repetition_penalty, prompt_tokens)
            options["logits_processor"] = LogitsProcessorList([penalty])
        if sample:
            options |= {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        if self.stop:
            options |= {"stop_strings": list(self.stop), "tokenizer": tokenizer}
        return options


class ContextError(SettingsError):
    """Reports a prompt that does not fit into the model's context with its answer.

    ``oldest``: how many of a conversation's oldest questions, with their answers, would have to
    go so that it fits; 0 if that does not help.
    """

    def __init__(self, text: str, oldest: int = 0) -> None:
        super().__init__(text)
        self.oldest = oldest

    @classmethod
    def explain(cls, prompt: int, answer: int, context: int, oldest: int = 0) -> ContextError:
        """Returns the error of a prompt and an answer of these tokens in a ``context``."""
        text = (
            f"a prompt of {prompt} tokens and an answer of up to {answer} do not fit into the "
            f"model's {context}; shorten the input or lower max_new_tokens"
        )
        if oldest:
            many = f"{oldest} oldest questions and their answers" if oldest > 1 else ""
            text += f"; it fits without the {many or 'oldest question and its answer'}"
        return cls(text, oldest)


@dataclass(frozen=True)
class Answer:
    """A model's answer: its text and its length in tokens, the end token not counted."""

    text: str
    ended: bool  # by an end token or a stop text, and not at max_new_tokens
    tokens: int


def answer(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Record],
    decoding: Decoding | None = None,
    template: str = "alpaca",
    batch_size: int = 8,
) -> list[Answer]:
    """Returns one Answer per example, in their order; prompts of similar length share a batch.

    A Conversation is answered after its last question; an answer that it has is not shown to
    the model. Raises ContextError if a prompt and its answer do not fit into the model.
    """
    import torch

    if batch_size < 1:
        raise SettingsError(f"batch size {batch_size}: at least 1")
    decoding = decoding or Decoding()
    encoder = PromptEncoder(tokenizer, template)
    ids = encoder.prompts([without_surrogates(example) for example in examples])
    ends = end_tokens(model, encoder)
    _check_lengths(model, encoder, examples, ids, decoding)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    answers: dict[int, Answer] = {}
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        if decoding.seed is not None:
            torch.manual_seed(decoding.seed + start)
        rows = generate_tokens(model, tokenizer, [ids[i] for i in batch], decoding, ends)
        for i, (tokens, ended) in zip(batch, rows, strict=True):
            text, stopped = cut(tokenizer.decode(tokens, skip_special_tokens=True), decoding.stop)
            answers[i] = Answer(text.strip(), ended or stopped, len(tokens))
    return [answers[i] for i in range(len(ids))]


def generate_tokens(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    decoding: Decoding,
    ends: Collection[int],
) -> list[tuple[list[int], bool]]:
    """Returns (tokens before the end token, whether there was one) for each prompt of a batch.

    ``ends``: the end tokens' ids, see ``end_tokens``. Prompts are padded on the left, so that
    each ends where its answer begins.
    """
    import torch

    longest = max(map(len, prompts))
    pad = tokenizer.pad_token_id
    padded = torch.tensor([[pad] * (longest - len(row)) + row for row in prompts])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts])
    with torch.inference_mode():
        new = model.generate(
            input_ids=padded.to(model.device),
            attention_mask=mask.to(model.device),
            **decoding.to_arguments(longest, tokenizer, ends),
        )[:, longest:]
    rows = []
    for row in new.tolist():
        end = next((place for place, token in enumerate(row) if token in ends), None)
        rows.append((row[:end], end is not None))
    return rows


def stream(
    model: Any,
    tokenizer: Any,
    example: Record,
    decoding: Decoding | None = None,
    template: str = "alpaca",
) -> TextStream:
    """Yields the answer so far, each time it has grown; closing the generator stops the model.

    Text that may still change is held back: see ``stable_text``. Raises ContextError as
    ``answer`` does, and any error of the model.
    """
    import torch
    from transformers import StoppingCriteriaList

    decoding = decoding or Decoding()
    encoder = PromptEncoder(tokenizer, template)
    (ids,) = encoder.prompts([without_surrogates(example)])
    ends = end_tokens(model, encoder)
    _check_lengths(model, encoder, [example], [ids], decoding)
    if decoding.beams > 1:
        yield answer(model, tokenizer, [example], decoding, template)[0].text
        return
    if decoding.seed is not None:
        torch.manual_seed(decoding.seed)
    stopped = threading.Event()
    tokens = _TokenQueue()

    def should_stop(input_ids: Any, scores: Any, **_: Any) -> Any:
        return torch.full((input_ids.shape[0],), stopped.is_set(), device=input_ids.device)

    def work() -> None:
        try:
            with torch.inference_mode():
                row = torch.tensor([ids], device=model.device)
                model.generate(
                    input_ids=row,
                    attention_mask=torch.ones_like(row),
                    streamer=tokens,
                    stopping_criteria=StoppingCriteriaList([should_stop]),
                    **decoding.to_arguments(len(ids), tokenizer, ends),
                )
            tokens.queue.put(None)
        except BaseException as error:
            tokens.queue.put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    new, shown = [], ""
    try:
        while isinstance(token := tokens.queue.get(), int):
            if token not in ends:
                new.append(token)
            text, done = cut(tokenizer.decode(new, skip_special_tokens=True), decoding.stop)
            if not done:
                text = stable_text(text, decoding.stop)
            if (text := text.strip()) != shown:
                shown = text
                yield text
            if done:
                return
    finally:
        stopped.set()
        thread.join()
    if token is not None:
        raise token
    text = cut(tokenizer.decode(new, skip_special_tokens=True), decoding.stop)[0].strip()
    if text != shown:
        yield text


class _TokenQueue:
    """A streamer for generate(): it gets the prompt first, then each new token."""

    def __init__(self) -> None:
        self.queue: queue.Queue[int | BaseException | None] = queue.Queue()
        self.got_prompt = False

    def put(self, value: Any) -> None:
        """Queues the next token ids; transformers calls it first with the prompt's."""
        if self.got_prompt:
            for token in value.flatten().tolist():
                self.queue.put(token)
        self.got_prompt = True

    def end(self) -> None:
        """Does nothing; the thread itself reports its end."""


def cut(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """Returns (the text before the first stop text in it, whether there is one)."""
    places = [place for word in stop if (place := text.find(word)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


def stable_text(text: str, stop: Sequence[str]) -> str:
    """Returns a growing text without its end that may still change.

    Such an end is an incomplete character, or the beginning of a stop text.
    """
    text = text.rstrip("\ufffd")
    for word in sorted(stop, key=len, reverse=True):
        for size in range(min(len(word) - 1, len(text)), 0, -1):
            if text.endswith(word[:size]):
                return text[:-size]
    return text


def end_tokens(model: Any, encoder: PromptEncoder) -> set[int]:
    """Returns the ids of all tokens that end an answer: a model may have several.

    They are the one that was trained, by the template, and those that the model's files name.
    """
    named = getattr(model.generation_config, "eos_token_id", None)
    named = named if isinstance(named, list) else [named]
    return encoder.stops | {token for token in named if token is not None}


def _check_lengths(
    model: Any,
    encoder: PromptEncoder,
    examples: Sequence[Record],
    ids: Sequence[Sequence[int]],
    decoding: Decoding,
) -> None:
    """Raises ContextError for the longest prompt, if it does not fit with its answer."""
    limit = getattr(model.config, "max_position_embeddings", None)
    longest = max(range(len(ids)), key=lambda i: len(ids[i]), default=0)
    if not limit or not ids or len(ids[longest]) + decoding.max_new_tokens <= limit:
        return
    oldest = 0
    if isinstance(request := examples[longest], Conversation):

        def fits(conversation: Conversation) -> bool:
            (shorter,) = encoder.prompts([without_surrogates(conversation)])
            return len(shorter) + decoding.max_new_tokens <= limit

        oldest = oldest_to_drop(request, fits)
    raise ContextError.explain(len(ids[longest]), decoding.max_new_tokens, limit, oldest)
