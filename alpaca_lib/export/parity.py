"""Compares a GGUF file in llama.cpp with the PyTorch model that it was exported from.

llama.cpp is asked over HTTP, as by any client. Three things are compared: the tokens of texts,
greedy answers token by token, and the probabilities of the next token.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpaca_lib.inference.decoding import Decoding, end_tokens, generate_tokens, prompt_ids
from alpaca_lib.models.llama_server import serve
from alpaca_lib.records import Example


@dataclass(frozen=True)
class Parity:
    """How far llama.cpp's results equal PyTorch's."""

    texts: int  # compared
    tokenized_alike: int  # texts with the same tokens
    tokens: int  # compared, of greedy answers
    same: float  # fraction of these tokens that are equal, position by position
    contexts: int  # whose next token's probabilities were compared
    kl: float  # mean KL(PyTorch || llama.cpp) over these contexts, in nats


@dataclass(frozen=True)
class Reference:
    """PyTorch's results for some examples: computed once, compared with several files."""

    prompts: list[list[int]]  # token ids
    answers: list[list[int]]  # greedy, without the end token
    contexts: list[list[int]]  # prompts with a beginning of the reference answer
    logprobs: list[Any]  # [vocab_size] per context, of the next token, float64
    tokens: int  # most tokens of an answer
    ends: set[int]  # ids of the end tokens


def compute_reference(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    template: str = "alpaca",
    tokens: int = 32,
    contexts: int = 60,
) -> Reference:
    """Returns greedy answers of up to ``tokens`` tokens to all examples, and the next token's
    probabilities after the prompts of the first ``contexts`` examples.

    These prompts are followed by none, a third or two thirds of the reference, in turn.
    """
    prompts = [prompt_ids(example, tokenizer, template) for example in examples]
    decoding = Decoding(max_new_tokens=tokens)
    answers = []
    for start in range(0, len(prompts), 16):
        rows = generate_tokens(model, tokenizer, prompts[start : start + 16], decoding)
        answers += [row for row, _ in rows]
    some = []
    for number, (example, prompt) in enumerate(zip(examples[:contexts], prompts, strict=False)):
        reply = tokenizer(example.output, add_special_tokens=False)["input_ids"]
        some.append(prompt + reply[: len(reply) * (number % 3) // 3])
    return Reference(
        prompts=prompts,
        answers=answers,
        contexts=some,
        logprobs=[_logprobs(model, context) for context in some],
        tokens=tokens,
        ends=end_tokens(model, tokenizer),
    )


def measure_parity(
    model: Any,
    tokenizer: Any,
    file: Path,
    examples: Sequence[Example],
    template: str = "alpaca",
    tokens: int = 32,
    contexts: int = 60,
    adapters: Sequence[Path] = (),
) -> Parity:
    """Returns the Parity of ``model`` and a GGUF file, with GGUF ``adapters`` attached to it."""
    reference = compute_reference(model, tokenizer, examples, template, tokens, contexts)
    return compare_file(reference, tokenizer, file, adapters)


def compare_file(
    reference: Reference, tokenizer: Any, file: Path, adapters: Sequence[Path] = ()
) -> Parity:
    """Returns the Parity of PyTorch's results and a GGUF file."""
    longest = max(map(len, reference.prompts + reference.contexts)) + reference.tokens
    same = tokens = alike = 0
    with serve(file, slots=1, context=longest + 512, adapters=adapters) as address:
        root = address.removesuffix("/v1")
        for prompt, answer in zip(reference.prompts, reference.answers, strict=True):
            text = tokenizer.decode(prompt)
            body = {"content": text, "add_special": False, "parse_special": True}
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            alike += post(f"{root}/tokenize", body)["tokens"] == ids
            body = {"prompt": prompt, "n_predict": reference.tokens, "temperature": 0}
            theirs = post(f"{root}/completion", body | {"return_tokens": True})["tokens"]
            theirs = [token for token in theirs if token not in reference.ends]
            tokens += max(len(answer), len(theirs))
            same += sum(a == b for a, b in zip(answer, theirs, strict=False))
        divergences = [
            _divergence(logprobs, context, root)
            for context, logprobs in zip(reference.contexts, reference.logprobs, strict=True)
        ]
    return Parity(
        texts=len(reference.prompts),
        tokenized_alike=alike,
        tokens=tokens,
        same=same / max(tokens, 1),
        contexts=len(divergences),
        kl=sum(divergences) / max(len(divergences), 1),
    )


def _logprobs(model: Any, context: list[int]) -> Any:
    """Returns PyTorch's log-probabilities of the next token, [vocab_size], float64."""
    import torch

    with torch.inference_mode():
        ids = torch.tensor([context], device=model.device)
        return model(ids, logits_to_keep=1).logits[0, -1].double().log_softmax(-1).cpu()


def _divergence(ours: Any, context: list[int], root: str) -> float:
    """Returns KL(PyTorch || llama.cpp) of the next token's probabilities, in nats."""
    import torch

    body = {"prompt": context, "n_predict": 1, "temperature": 0, "n_probs": len(ours)}
    reply = post(f"{root}/completion", body)
    theirs = torch.full_like(ours, float("-inf"))
    for token in reply["completion_probabilities"][0]["top_logprobs"]:
        theirs[token["id"]] = token["logprob"]
    theirs = theirs.log_softmax(-1)  # llama.cpp normalises them by a float32 sum
    return float((ours.exp() * (ours - theirs)).sum())


def post(url: str, body: dict[str, Any]) -> Any:
    """Sends a JSON body to a server and returns its JSON reply."""
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as reply:
        return json.loads(reply.read())
