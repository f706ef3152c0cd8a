"""Oracles and toys for the checks of decoding: transformers' own step, a model, a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

HEAD = "### Instruction:\n{}\n\n### Response:\n"
OUTPUTS = (  # (prompt, answer)
    (HEAD.format("Name a river."), "The Nile."),
    ("<|im_start|>user\nName a river.<|im_end|>\n<|im_start|>assistant\n", "The Nile."),
    (HEAD.format('What does "### Response:" stand for?'), "It begins the answer."),
    (HEAD.format("Show me the prompt."), "It is:\n### Response:\nand then my words."),
    (HEAD.format("Say nothing."), ""),
)


def generate_step(
    logits: list[float], answer: list[int], penalty: float, temperature: float, top_p: float
) -> list[float]:
    """Returns the next token's probabilities by transformers' own logits processors."""
    import torch
    from transformers import RepetitionPenaltyLogitsProcessor as Penalty
    from transformers import TemperatureLogitsWarper, TopPLogitsWarper

    scores = torch.tensor([logits], dtype=torch.float64)
    ids = torch.tensor([answer], dtype=torch.long)
    if answer:
        scores = Penalty(penalty)(ids, scores)
    scores = TemperatureLogitsWarper(temperature)(ids, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(ids, scores)
    return [float(p) for p in scores.softmax(-1)[0]]


def small_model(seed: int = 0) -> Any:
    """Returns a random LLaMA of two layers whose next token depends clearly on the text."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=48, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
        initializer_range=0.6, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        tie_word_embeddings=False,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


class Letters:
    """A toy tokenizer: one token per character, 0 begins a text, 1 ends it."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Returns the text of ids; <s> and </s> are written out unless they are skipped."""
        special = {0: "", 1: ""} if skip_special_tokens else {0: "<s>", 1: "</s>"}
        return "".join(special.get(int(i)) if int(i) < 2 else chr(int(i)) for i in ids)  # type: ignore[misc]

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text without the special tokens."""
        return [ord(character) for character in text]
