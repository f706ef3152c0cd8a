"""A GGUF file beside the PyTorch model that it was made from: do they say the same?

llama.cpp is asked over HTTP, as any client would. Three things are compared: how texts
become tokens, the likeliest next tokens of whole answers, and the probabilities of all tokens
at single places.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpaca_lib.inference.decoding import prompt_ids
from alpaca_lib.models.llama_server import serve
from alpaca_lib.records import Example


@dataclass(frozen=True)
class Agreement:
    """How far llama.cpp's answers are PyTorch's."""

    texts: int  # compared
    tokenized_alike: int  # of them
    tokens: int  # compared, of greedy answers
    same: float  # the part of them that is equal, place by place
    places: int  # at which all probabilities were compared
    kl: float  # mean of KL(PyTorch || llama.cpp) there, in nats


@dataclass(frozen=True)
class Said:
    """What PyTorch says of some examples: computed once, held against several files."""

    prompts: list[list[int]]
    answers: list[list[int]]  # greedy, without the end token
    contexts: list[list[int]]  # prompts and a beginning of the reference answer
    logprobs: list[Any]  # of all tokens behind each context, float64
    tokens: int


def said(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    template: str = "alpaca",
    tokens: int = 32,
    places: int = 60,
) -> Said:
    """Greedy answers of up to ``tokens`` tokens to all examples; the probabilities behind the
    prompts and, in turn, behind a third or two thirds of the reference, at ``places`` places."""
    prompts = [prompt_ids(example, tokenizer, template) for example in examples]
    contexts = []
    for at, (example, prompt) in enumerate(zip(examples[:places], prompts, strict=False)):
        reference = tokenizer(example.output, add_special_tokens=False)["input_ids"]
        contexts.append(prompt + reference[: len(reference) * (at % 3) // 3])
    return Said(
        prompts,
        greedy(model, prompts, tokens, tokenizer.eos_token_id),
        contexts,
        [_logprobs(model, context) for context in contexts],
        tokens,
    )


def agreement(
    model: Any,
    tokenizer: Any,
    file: Path,
    examples: Sequence[Example],
    template: str = "alpaca",
    tokens: int = 32,
    places: int = 60,
    adapters: Sequence[Path] = (),
) -> Agreement:
    """The Agreement of ``model`` and a GGUF file (with GGUF ``adapters`` over it, if any)."""
    mine = said(model, tokenizer, examples, template, tokens, places)
    return compared(mine, tokenizer, file, adapters)


def compared(mine: Said, tokenizer: Any, file: Path, adapters: Sequence[Path] = ()) -> Agreement:
    """The Agreement of what PyTorch said and a GGUF file."""
    longest = max(map(len, mine.prompts + mine.contexts)) + mine.tokens
    end = tokenizer.eos_token_id
    same = tokens = alike = 0
    divergence: list[float] = []
    with serve(file, slots=1, context=longest + 512, adapters=adapters) as address:
        root = address.removesuffix("/v1")
        for prompt, answer in zip(mine.prompts, mine.answers, strict=True):
            text = tokenizer.decode(prompt)
            asked = {"content": text, "add_special": False, "parse_special": True}
            again = tokenizer(text, add_special_tokens=False)["input_ids"]
            alike += post(f"{root}/tokenize", asked)["tokens"] == again
            body = {"prompt": prompt, "n_predict": mine.tokens, "temperature": 0}
            theirs = post(f"{root}/completion", body | {"return_tokens": True})["tokens"]
            theirs = [token for token in theirs if token != end]
            tokens += max(len(answer), len(theirs))
            same += sum(a == b for a, b in zip(answer, theirs, strict=False))
        for context, logprobs in zip(mine.contexts, mine.logprobs, strict=True):
            divergence.append(_divergence(logprobs, context, root))
    return Agreement(
        len(mine.prompts), alike, tokens, same / max(tokens, 1), len(divergence),
        sum(divergence) / max(len(divergence), 1),
    )  # fmt: skip


def greedy(model: Any, prompts: Sequence[list[int]], tokens: int, end: int) -> list[list[int]]:
    """The likeliest next tokens of each prompt, up to ``tokens`` of them or the end token, which
    is left out; 16 prompts at a time, filled up on the left."""
    import torch

    found = []
    for at in range(0, len(prompts), 16):
        some = prompts[at : at + 16]
        longest = max(map(len, some))
        ids = torch.tensor([[end] * (longest - len(p)) + p for p in some])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in some])
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids.to(model.device), attention_mask=mask.to(model.device),
                do_sample=False, max_new_tokens=tokens, pad_token_id=end,
                repetition_penalty=1.0, no_repeat_ngram_size=0,
            )[:, longest:]  # fmt: skip
        found += [row[: row.index(end)] if end in row else row for row in out.tolist()]
    return found


def _logprobs(model: Any, context: list[int]) -> Any:
    import torch

    with torch.inference_mode():
        ids = torch.tensor([context], device=model.device)
        return model(ids, logits_to_keep=1).logits[0, -1].double().log_softmax(-1).cpu()


def _divergence(mine: Any, context: list[int], root: str) -> float:
    """KL(PyTorch || llama.cpp) of the next token's probabilities, in nats."""
    import torch

    body = {"prompt": context, "n_predict": 1, "temperature": 0, "n_probs": len(mine)}
    reply = post(f"{root}/completion", body)
    theirs = torch.full_like(mine, float("-inf"))
    for one in reply["completion_probabilities"][0]["top_logprobs"]:
        theirs[one["id"]] = one["logprob"]
    theirs = theirs.log_softmax(-1)  # theirs were normed by a float32 sum over the vocabulary
    return float((mine.exp() * (mine - theirs)).sum())


def post(url: str, body: dict[str, Any]) -> Any:
    """What a server replies to a JSON body, as read from JSON."""
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as reply:
        return json.loads(reply.read())
