"""Compares a GGUF file in llama.cpp with the PyTorch model that it was exported from.

llama.cpp is asked over HTTP, as by any client. Four things are compared: the tokens of a prompt's
text and of a conversation, BOS included; greedy answers token by token; and the probabilities of
the next token. Greedy answers and probabilities are of the same token ids in both.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpaca_lib.errors import ModelError
from alpaca_lib.inference.decoding import Decoding, end_tokens, generate_tokens
from alpaca_lib.models.llama_server import serve
from alpaca_lib.optional import require
from alpaca_lib.prompts import CHAT, chat_messages
from alpaca_lib.records import Conversation, Example
from alpaca_lib.tokenization import PromptEncoder


@dataclass(frozen=True)
class Parity:
    """How far llama.cpp's results equal PyTorch's."""

    texts: int  # compared
    tokenized_alike: int  # texts with the same tokens, in /v1/completions and, if it has a chat
    # template, in /v1/chat/completions
    tokens: int  # compared, of greedy answers
    same: float  # fraction of these tokens that are equal, position by position
    contexts: int  # whose next token's probabilities were compared
    kl: float  # mean KL(PyTorch || llama.cpp) over these contexts, in nats
    text_rows: tuple[int, ...] = ()  # examples, from 1, whose text has other tokens there
    chat_rows: tuple[int, ...] = ()  # examples, from 1, whose conversation has other tokens there


@dataclass(frozen=True)
class Reference:
    """PyTorch's results for some examples: computed once, compared with several files."""

    examples: Sequence[Example | Conversation]
    encoder: PromptEncoder
    prompts: list[list[int]]  # token ids
    answers: list[list[int]]  # greedy, without the end token
    contexts: list[list[int]]  # prompts with a beginning of the reference answer
    logprobs: list[Any]  # [vocab_size] per context, of the next token, float64
    tokens: int  # most tokens of an answer
    ends: set[int]  # ids of the end tokens


def compute_reference(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example | Conversation],
    template: str = "alpaca",
    tokens: int = 32,
    contexts: int = 60,
) -> Reference:
    """Returns greedy answers of up to ``tokens`` tokens to all examples, and the next token's
    probabilities after the prompts of the first ``contexts`` examples. A conversation counts as
    its last answer's prompt and answer.

    These prompts are followed by none, a third or two thirds of the reference, in turn.
    """
    encoder = PromptEncoder(tokenizer, template)
    prompts, replies = encoder.prompts(examples), encoder.answers(examples)
    decoding, ends = Decoding(max_new_tokens=tokens), end_tokens(model, encoder)
    answers = [row for row, _ in generate_tokens(model, tokenizer, prompts, decoding, ends)]
    some = []
    for number, (reply, prompt) in enumerate(zip(replies[:contexts], prompts, strict=False)):
        some.append(prompt + reply[: len(reply) * (number % 3) // 3])
    return Reference(
        examples=examples,
        encoder=encoder,
        prompts=prompts,
        answers=answers,
        contexts=some,
        logprobs=[_logprobs(model, context) for context in some],
        tokens=tokens,
        ends=ends,
    )


def measure_parity(
    model: Any,
    tokenizer: Any,
    file: Path,
    examples: Sequence[Example | Conversation],
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
    same = tokens = 0
    chat = _chat_encoder(reference.encoder, tokenizer, file)
    one = tokenizer("a", add_special_tokens=False)["input_ids"][0]
    with serve(file, slots=1, context=longest + 512, adapters=adapters) as address:
        root = address.removesuffix("/v1")
        text_rows = _rows_that_differ(reference, root)
        chat_rows = _conversations_that_differ(chat, reference.examples, root) if chat else ()
        for prompt, answer in zip(reference.prompts, reference.answers, strict=True):
            body = {"prompt": prompt, "n_predict": reference.tokens, "temperature": 0}
            theirs = post(f"{root}/completion", body | {"return_tokens": True})["tokens"]
            theirs = [token for token in theirs if token not in reference.ends]
            tokens += max(len(answer), len(theirs))
            same += sum(a == b for a, b in zip(answer, theirs, strict=False))
        divergences = [
            _divergence(logprobs, context, root, one)
            for context, logprobs in zip(reference.contexts, reference.logprobs, strict=True)
        ]
    return Parity(
        texts=len(reference.prompts),
        tokenized_alike=len(reference.prompts) - len({*text_rows, *chat_rows}),
        tokens=tokens,
        same=same / max(tokens, 1),
        contexts=len(divergences),
        kl=sum(divergences) / max(len(divergences), 1),
        text_rows=text_rows,
        chat_rows=chat_rows,
    )


def _rows_that_differ(reference: Reference, root: str) -> tuple[int, ...]:
    """Returns the rows (from 1) whose prompt, sent as text, has other tokens in llama.cpp."""
    prefix, found = reference.encoder.prefix_text, []
    for row, (example, ids) in enumerate(
        zip(reference.examples, reference.prompts, strict=True), start=1
    ):
        # /v1/completions adds BOS to a text as the tokenizer does, also to one that has it.
        text = reference.encoder.render(example).removeprefix(prefix)
        if _tokenize(text, root) != ids:
            found.append(row)
    return tuple(found)


def _conversations_that_differ(
    encoder: PromptEncoder, examples: Sequence[Example | Conversation], root: str
) -> tuple[int, ...]:
    """Returns the rows (from 1) whose conversation has other tokens in llama.cpp's chat."""
    found = []
    for row, (example, ids) in enumerate(zip(examples, encoder.prompts(examples), strict=True), 1):
        messages = chat_messages(example, encoder.template)
        if _tokenize(post(f"{root}/apply-template", {"messages": messages})["prompt"], root) != ids:
            found.append(row)
    return tuple(found)


def _tokenize(text: str, root: str) -> list[int]:
    """Returns the ids that the server makes of a prompt's text, for chat and completions."""
    body = {"content": text, "add_special": True, "parse_special": True}
    ids: list[int] = post(f"{root}/tokenize", body)["tokens"]
    return ids


def _chat_encoder(encoder: PromptEncoder, tokenizer: Any, file: Path) -> PromptEncoder | None:
    """Returns the encoder of the prompts that a file's chat is for; None without a template.

    It is that of the template that is compared, or the model's own where the file has that.
    """
    field = require("gguf").GGUFReader(file).fields.get("tokenizer.chat_template")
    if field is None:
        return None
    inside = field.contents()
    if inside != encoder.published_template() and tokenizer.chat_template:
        own = PromptEncoder(tokenizer, CHAT)
        if inside == own.published_template():
            return own
    return encoder


def _logprobs(model: Any, context: list[int]) -> Any:
    """Returns PyTorch's log-probabilities of the next token, [vocab_size], float64."""
    import torch

    with torch.inference_mode():
        ids = torch.tensor([context], device=model.device)
        return model(ids, logits_to_keep=1).logits[0, -1].cpu().double().log_softmax(-1)


def _divergence(ours: Any, context: list[int], root: str, forced: int) -> float:
    """Returns KL(PyTorch || llama.cpp) of the next token's probabilities, in nats.

    ``forced`` is a token of complete characters, which the server has to choose: where the
    likeliest token is a part of a character, it waits for the rest and reports nothing. The
    probabilities are those before this choice.
    """
    import torch

    body = {"prompt": context, "n_predict": 1, "temperature": 0, "n_probs": len(ours)}
    body["logit_bias"] = [[forced, 1e4]]
    reply = post(f"{root}/completion", body)
    theirs = torch.full_like(ours, float("-inf"))
    for token in reply["completion_probabilities"][0]["top_logprobs"]:
        theirs[token["id"]] = token["logprob"]
    theirs = theirs.log_softmax(-1)  # llama.cpp normalises them by a float32 sum
    return float((ours.exp() * (ours - theirs)).sum())


def post(url: str, body: dict[str, Any]) -> Any:
    """Sends a JSON body to a server and returns its JSON reply. Raises ModelError."""
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=600) as reply:
            return json.loads(reply.read())
    except OSError as error:
        raise ModelError(f"{url}: no reply ({error})") from None
