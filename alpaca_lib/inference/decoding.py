"""Instructions -> answers: greedy, sampling, beams; one by one, in batches, streamed."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from alpaca_lib.prompts import CHAT, render_prompt
from alpaca_lib.records import Example

Growing = Generator[str, None, None]  # the answer so far, again and again; close() stops it


@dataclass(frozen=True)
class Decoding:
    """How the next token is chosen. temperature 0 is greedy: always the likeliest."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    beams: int = 1
    max_new_tokens: int = 128
    repetition_penalty: float = 1.0  # above 1: what the answer has said gets less likely
    seed: int | None = None
    stop: tuple[str, ...] = ()  # texts that end an answer, as its end token does

    def __post_init__(self) -> None:
        checks = {
            "temperature": (0 <= self.temperature <= 5, "from 0 (greedy) to 5"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "top_k": (self.top_k >= 0, "0 (all) or more"),
            "beams": (1 <= self.beams <= 16, "from 1 to 16"),
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0; 1 is none"),
            "stop": (
                isinstance(self.stop, tuple) and all(self.stop),
                "a tuple of texts, none of them empty",
            ),
        }
        for name, (good, allowed) in checks.items():
            if not good:
                raise ValueError(f"{name} {getattr(self, name)}: {allowed}")

    def arguments(self, prompt_tokens: int, tokenizer: Any) -> dict[str, Any]:
        """The same for transformers' generate(), for prompts of that many tokens.

        Only what the answer itself repeats is penalised: transformers' own option counts the
        prompt too. What a model's files ask for by themselves (some ask for a penalty) is off, or
        models would be compared by their files.
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
        if self.repetition_penalty != 1:
            from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

            penalty = RepetitionPenaltyLogitsProcessor(self.repetition_penalty, prompt_tokens)
            options["logits_processor"] = LogitsProcessorList([penalty])
        if sample:
            options |= {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        if self.stop:
            options |= {"stop_strings": list(self.stop), "tokenizer": tokenizer}
        return options


@dataclass(frozen=True)
class Answer:
    """A model's answer; ``ended`` if it stopped by itself and not at the limit."""

    text: str
    ended: bool
    tokens: int


def answer(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    decoding: Decoding | None = None,
    template: str = "alpaca",
    batch_size: int = 8,
) -> list[Answer]:
    """One Answer an example, in order; prompts of like length share a batch.

    Raises ValueError if a prompt and its answer would not fit into the model.
    """
    import torch

    decoding = decoding or Decoding()
    ids = [prompt_ids(example, tokenizer, template) for example in examples]
    _check_lengths(model, ids, decoding)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    answers: dict[int, Answer] = {}
    for at in range(0, len(order), batch_size):
        batch = order[at : at + batch_size]
        if decoding.seed is not None:
            torch.manual_seed(decoding.seed + at)
        answers |= dict(
            zip(batch, _batch(model, tokenizer, [ids[i] for i in batch], decoding), strict=True)
        )
    return [answers[i] for i in range(len(ids))]


def stream(
    model: Any,
    tokenizer: Any,
    example: Example,
    decoding: Decoding | None = None,
    template: str = "alpaca",
) -> Growing:
    """The answer so far, each time it has grown; closing the generator stops the model.

    What may still change is held back: a character whose bytes are not all there, and the
    beginning of what may become a stop text.
    """
    import torch
    from transformers import StoppingCriteriaList

    decoding = decoding or Decoding()
    ids = prompt_ids(example, tokenizer, template)
    _check_lengths(model, [ids], decoding)
    if decoding.beams > 1:
        yield answer(model, tokenizer, [example], decoding, template)[0].text
        return
    if decoding.seed is not None:
        torch.manual_seed(decoding.seed)
    stopped = threading.Event()
    tokens = _Tokens()

    def stop(input_ids: Any, scores: Any, **_: Any) -> Any:
        return torch.full((input_ids.shape[0],), stopped.is_set(), device=input_ids.device)

    def work() -> None:
        try:
            with torch.inference_mode():
                row = torch.tensor([ids], device=model.device)
                model.generate(
                    input_ids=row,
                    attention_mask=torch.ones_like(row),
                    streamer=tokens,
                    stopping_criteria=StoppingCriteriaList([stop]),
                    **decoding.arguments(len(ids), tokenizer),
                )
            tokens.queue.put(None)
        except BaseException as error:
            tokens.queue.put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    ends, new, shown = _end_tokens(model, tokenizer), [], ""
    try:
        while isinstance(token := tokens.queue.get(), int):
            if token not in ends:
                new.append(token)
            text, done = cut(tokenizer.decode(new, skip_special_tokens=True), decoding.stop)
            if not done:
                text = settled(text, decoding.stop)
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
    whole = cut(tokenizer.decode(new, skip_special_tokens=True), decoding.stop)[0].strip()
    if whole != shown:
        yield whole


class _Tokens:
    """What generate() calls with the prompt, then with each new token, then at the end."""

    def __init__(self) -> None:
        self.queue: queue.Queue[int | BaseException | None] = queue.Queue()
        self.prompt_came = False

    def put(self, value: Any) -> None:
        if self.prompt_came:
            for token in value.flatten().tolist():
                self.queue.put(token)
        self.prompt_came = True

    def end(self) -> None:
        """Nothing: work() says when the end is."""


def cut(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """(the text before the first stop text in it, whether there is one)."""
    places = [place for word in stop if (place := text.find(word)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


def settled(text: str, stop: Sequence[str]) -> str:
    """A growing text without its end that may still change: an incomplete character, or the
    beginning of a stop text."""
    text = text.rstrip("\ufffd")
    for word in sorted(stop, key=len, reverse=True):
        for size in range(min(len(word) - 1, len(text)), 0, -1):
            if text.endswith(word[:size]):
                return text[:-size]
    return text


def prompt_ids(example: Example, tokenizer: Any, template: str = "alpaca") -> list[int]:
    """The tokens of an example's prompt. What no text may hold (half a character) is replaced."""
    prompt = render_prompt(example, template, tokenizer)
    prompt = prompt.encode("utf-8", "replace").decode("utf-8")
    ids: list[int] = tokenizer(prompt, add_special_tokens=template != CHAT)["input_ids"]
    return ids


def _batch(model: Any, tokenizer: Any, ids: list[list[int]], decoding: Decoding) -> list[Answer]:
    """Left-padded, so that every prompt ends where its answer begins."""
    import torch

    longest = max(map(len, ids))
    pad = tokenizer.pad_token_id
    padded = torch.tensor([[pad] * (longest - len(row)) + row for row in ids])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids])
    with torch.inference_mode():
        out = model.generate(
            input_ids=padded.to(model.device),
            attention_mask=mask.to(model.device),
            **decoding.arguments(longest, tokenizer),
        )[:, longest:]
    ends = _end_tokens(model, tokenizer)
    answers = []
    for row in out.tolist():
        place = next((place for place, token in enumerate(row) if token in ends), None)
        row = row[:place]
        text, stopped = cut(tokenizer.decode(row, skip_special_tokens=True), decoding.stop)
        answers.append(Answer(text.strip(), place is not None or stopped, len(row)))
    return answers


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Every token that ends an answer: a model may have several."""
    ends = getattr(model.generation_config, "eos_token_id", None)
    ends = ends if isinstance(ends, list) else [ends]
    return {token for token in [*ends, tokenizer.eos_token_id] if token is not None}


def _check_lengths(model: Any, ids: Sequence[Sequence[int]], decoding: Decoding) -> None:
    room = getattr(model.config, "max_position_embeddings", None)
    longest = max(map(len, ids), default=0)
    if room and longest + decoding.max_new_tokens > room:
        raise ValueError(
            f"a prompt of {longest} tokens and an answer of up to {decoding.max_new_tokens} do "
            f"not fit into the model's {room}; shorten the input or lower max_new_tokens"
        )
