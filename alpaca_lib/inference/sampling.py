"""How the next token is chosen, and where an answer ends."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import field_validator

from alpaca_lib.options import Options, option

if TYPE_CHECKING:
    import torch


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


class TokenChooser:
    """Chooses the next token of several answers at once: the likeliest, or a random draw.

    Each answer draws from its own generator, so the others of its batch do not change it. The
    logits go through transformers' own processors, in the order of its generate().

    >>> choose = TokenChooser(Decoding(temperature=0.7))
    >>> choose(logits, [[], [311]], [one, other])  # logits of two answers, (2, vocab_size)
    [1042, 25]
    """

    def __init__(self, decoding: Decoding) -> None:
        from transformers import RepetitionPenaltyLogitsProcessor as Penalty
        from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

        penalty, self.samples = decoding.repetition_penalty, decoding.temperature > 0
        self.penalty = Penalty(penalty) if penalty != 1 else None
        self.warpers: list[Any] = []
        if self.samples and decoding.temperature != 1:
            self.warpers.append(TemperatureLogitsWarper(float(decoding.temperature)))
        if self.samples and decoding.top_k:
            self.warpers.append(TopKLogitsWarper(decoding.top_k))
        if self.samples and decoding.top_p < 1:
            self.warpers.append(TopPLogitsWarper(decoding.top_p))

    def __call__(
        self,
        logits: torch.Tensor,
        answers: Sequence[Sequence[int]],
        generators: Sequence[torch.Generator | None],
    ) -> list[int]:
        """Returns one token per row of the float32 ``logits``, which it may change.

        ``answers``: the tokens that each answer has so far.
        """
        import torch

        begun = [row for row, tokens in enumerate(answers) if tokens]
        if self.penalty and begun:
            longest = max(len(answers[row]) for row in begun)
            # A shorter answer is filled up with its first token: a repeated token counts once.
            ids = [[*answers[i], *[answers[i][0]] * (longest - len(answers[i]))] for i in begun]
            seen = torch.tensor(ids, device=logits.device)
            logits[begun] = self.penalty(seen, logits[begun])
        if not self.samples:
            chosen: list[int] = logits.argmax(-1).tolist()
            return chosen
        for warper in self.warpers:
            logits = warper(None, logits)
        draws = [
            torch.multinomial(row, 1, generator=generator)
            for row, generator in zip(logits.softmax(-1), generators, strict=True)
        ]
        drawn: list[int] = torch.cat(draws).tolist()
        return drawn


def cut(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """Returns (the text before the first stop text in it, whether there is one)."""
    places = [place for word in stop if (place := text.find(word)) >= 0]
    return (text[: min(places)], True) if places else (text, False)
