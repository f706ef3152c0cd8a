"""Instructions -> answers: greedy, sampling, beams; one by one, in batches, streamed."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from alpaca_lib.prompts import render_prompt
from alpaca_lib.records import Example


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

    def __post_init__(self) -> None:
        checks = {
            "temperature": (0 <= self.temperature <= 5, "from 0 (greedy) to 5"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "top_k": (self.top_k >= 0, "0 (all) or more"),
            "beams": (1 <= self.beams <= 16, "from 1 to 16"),
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0; 1 is none"),
        }
        for name, (good, allowed) in checks.items():
            if not good:
                raise ValueError(f"{name} {getattr(self, name)}: {allowed}")

    def arguments(self, prompt_tokens: int) -> dict[str, Any]:
        """The same for transformers' generate(), for prompts of that many tokens.

        Only what the answer itself repeats is penalised. transformers' own option
        counts the prompt too, and with it the padding, which here is an end token.
        """
        sample = self.temperature > 0
        options: dict[str, Any] = {
            "do_sample": sample,
            "num_beams": self.beams,
            "max_new_tokens": self.max_new_tokens,
        }
        if self.repetition_penalty != 1:
            from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

            penalty = RepetitionPenaltyLogitsProcessor(self.repetition_penalty, prompt_tokens)
            options["logits_processor"] = LogitsProcessorList([penalty])
        if sample:
            options |= {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
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
    """One Answer an example, in order; prompts of like length share a batch."""
    import torch

    decoding = decoding or Decoding()
    prompts = [render_prompt(example, template, tokenizer) for example in examples]
    ids = [
        tokenizer(prompt, add_special_tokens=template != "chat")["input_ids"] for prompt in prompts
    ]
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
) -> Iterator[str]:
    """The answer so far, each time it has grown; closing the iterator stops the model."""
    import torch
    from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

    decoding = decoding or Decoding()
    prompt = render_prompt(example, template, tokenizer)
    ids = tokenizer(prompt, add_special_tokens=template != "chat", return_tensors="pt")["input_ids"]
    _check_lengths(model, ids.tolist(), decoding)
    if decoding.beams > 1:
        yield answer(model, tokenizer, [example], decoding, template)[0].text
        return
    if decoding.seed is not None:
        torch.manual_seed(decoding.seed)
    stopped = threading.Event()
    failure: list[BaseException] = []

    class Stop(StoppingCriteria):
        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            return torch.full((input_ids.shape[0],), stopped.is_set(), device=input_ids.device)

    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)

    def work() -> None:
        try:
            with torch.inference_mode():
                model.generate(
                    input_ids=ids.to(model.device),
                    attention_mask=torch.ones_like(ids).to(model.device),
                    streamer=streamer,
                    stopping_criteria=StoppingCriteriaList([Stop()]),
                    pad_token_id=tokenizer.pad_token_id,
                    **decoding.arguments(ids.shape[1]),
                )
        except BaseException as error:
            failure.append(error)
            streamer.end()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    text = ""
    try:
        for piece in streamer:
            text += piece
            yield text.strip()
    finally:
        stopped.set()
        thread.join()
    if failure:
        raise failure[0]


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
            pad_token_id=pad,
            **decoding.arguments(longest),
        )[:, longest:]
    ends = _end_tokens(model, tokenizer)
    answers = []
    for row in out.tolist():
        stop = next((place for place, token in enumerate(row) if token in ends), None)
        ended = stop is not None
        row = row[:stop]
        text = tokenizer.decode(row, skip_special_tokens=True).strip()
        answers.append(Answer(text, ended, len(row)))
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
