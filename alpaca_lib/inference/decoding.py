"""Instructions and conversations -> answers: greedy decoding, sampling or beam search.

Answers come in batches, or streamed. The answer to a conversation is its next turn: what the
model says after the user's last one.
"""

from __future__ import annotations

import queue
import threading
import warnings
from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from alpaca_lib.errors import SettingsError
from alpaca_lib.inference.sampling import Decoding, TokenChooser, cut
from alpaca_lib.inference.turns import oldest_to_drop
from alpaca_lib.records import Conversation
from alpaca_lib.tokenization import PromptEncoder, Record, prompt_ids, without_surrogates

__all__ = [
    "Answer",
    "ContextError",
    "Decoding",
    "TextStream",
    "answer",
    "cut",
    "end_tokens",
    "prompt_ids",
    "stream",
]


TextStream = Generator[str, None, None]  # the answer so far, again and again; close() stops it


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
    batch_size: int = 0,
    progress: Callable[[int, Answer], None] | None = None,
) -> list[Answer]:
    """Returns one Answer per example, in their order.

    At most ``batch_size`` are answered at a time; 0: as many as fit, see ``batching``.
    ``progress`` gets each example's index and Answer as soon as it is done. A Conversation is
    answered after its last question; an answer that it has is not shown to the model. With a
    seed, example i draws from ``seed + i``, whatever the batch size. Raises ContextError if a
    prompt and its answer do not fit into the model.
    """
    if batch_size < 0:
        raise SettingsError(f"batch size {batch_size}: at least 1, or 0 for as many as fit")
    decoding = decoding or Decoding()
    encoder = PromptEncoder(tokenizer, template)
    ids = encoder.prompts([without_surrogates(example) for example in examples])
    ends = end_tokens(model, encoder)
    _check_lengths(model, encoder, examples, ids, decoding)
    answers: dict[int, Answer] = {}

    def finish(index: int, tokens: list[int], ended: bool) -> None:
        text, stopped = cut(tokenizer.decode(tokens, skip_special_tokens=True), decoding.stop)
        answers[index] = Answer(text.strip(), ended or stopped, len(tokens))
        if progress:
            progress(index, answers[index])

    generate_tokens(model, tokenizer, ids, decoding, ends, batch_size, finish)
    return [answers[i] for i in range(len(ids))]


def generate_tokens(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    decoding: Decoding,
    ends: Collection[int],
    batch_size: int = 0,
    report: Callable[[int, list[int], bool], None] = lambda index, tokens, ended: None,
) -> list[tuple[list[int], bool]]:
    """Returns (tokens before the end token, whether there was one) for each prompt.

    ``ends``: the end tokens' ids, see ``end_tokens``. ``report`` gets (prompt's index, tokens,
    whether they ended) as soon as an answer is done. Beam search, and a model that ``batching``
    does not support, which is warned of, use transformers' generate().
    """
    import torch

    from alpaca_lib.inference import batching

    if decoding.beams > 1:
        return _generate_padded(model, tokenizer, prompts, decoding, ends, batch_size, report)
    seeds: list[int | None] = [None] * len(prompts)
    if decoding.temperature > 0:
        first = int(torch.randint(2**32, ())) if decoding.seed is None else decoding.seed
        seeds = [first + index for index in range(len(prompts))]
    requests = [
        batching.Request(
            prompt, None if seed is None else torch.Generator(model.device).manual_seed(seed)
        )
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]

    def is_stopped(tokens: list[int]) -> bool:
        texts = (tokenizer.decode(tokens, skip_special_tokens=skip) for skip in (True, False))
        return any(stop in text for text in texts for stop in decoding.stop)

    def finish(index: int) -> None:
        report(index, requests[index].tokens, requests[index].ended)

    try:
        batching.decode(
            model,
            requests,
            TokenChooser(decoding),
            decoding.max_new_tokens,
            ends,
            is_stopped if decoding.stop else lambda tokens: False,
            batch_size,
            finish,
        )
    except batching.Unsupported as reason:
        warnings.warn(f"{reason}: transformers' generate() answers, which is slower", stacklevel=3)
        return _generate_padded(model, tokenizer, prompts, decoding, ends, batch_size, report)
    return [(request.tokens, request.ended) for request in requests]


def _generate_padded(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    decoding: Decoding,
    ends: Collection[int],
    batch_size: int,
    report: Callable[[int, list[int], bool], None],
) -> list[tuple[list[int], bool]]:
    """Does what generate_tokens() does, by transformers' generate().

    Prompts of similar length share a batch. They are padded on the left, so that each ends where
    its answer begins.
    """
    import torch

    order, batch_size = sorted(range(len(prompts)), key=lambda i: len(prompts[i])), batch_size or 8
    rows: dict[int, tuple[list[int], bool]] = {}
    pad = tokenizer.pad_token_id
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        longest = len(prompts[batch[-1]])
        sizes = [len(prompts[i]) for i in batch]
        padded = [[pad] * (longest - len(prompts[i])) + prompts[i] for i in batch]
        mask = [[0] * (longest - size) + [1] * size for size in sizes]
        if decoding.seed is not None:
            torch.manual_seed(decoding.seed + start)
        with torch.inference_mode():
            new = model.generate(
                input_ids=torch.tensor(padded, device=model.device),
                attention_mask=torch.tensor(mask, device=model.device),
                **decoding.to_arguments(longest, tokenizer, ends),
            )[:, longest:]
        for i, row in zip(batch, new.tolist(), strict=True):
            end = next((place for place, token in enumerate(row) if token in ends), None)
            rows[i] = row[:end], end is not None
            report(i, *rows[i])
    return [rows[i] for i in range(len(prompts))]


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
