"""Continuous batching: an answer that ends leaves its place to the next prompt at once.

Every step is one forward pass over one packed row: the newest token of each answer in progress,
then the prompts that have just been admitted. Each answer has a row of a preallocated KV cache,
written in place. A prompt that begins as another one in the cache does (a template's header, the
turns before) copies those keys and values and computes only the rest.

Models take part that attend through transformers' AttentionInterface (see ``slot_cache``), with
their adapters, quantised layers and sliding windows.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from alpaca_lib.inference.slot_cache import Prefill, SlotCache, Unsupported, attend_in_slots
from alpaca_lib.inference.thin_products import swap_factors
from alpaca_lib.memory import installed

PROMPT_TOKENS = 2048  # of prompts per step: bounds the memory of activations
LEAST_PREFIX = 8  # tokens; a shorter common beginning is computed again
# Answers at a time, where the caller sets no limit: 64 rows on a CPU are hardly faster than 32 but
# hold twice the memory.
ROWS_ON_CPU, ROWS_ON_GPU = 32, 256
# What a model's generation_config may set without changing the choice of a token here.
HARMLESS = {
    "bos_token_id", "cache_implementation", "do_sample", "eos_token_id", "max_length",
    "max_new_tokens", "no_repeat_ngram_size", "output_attentions", "output_hidden_states",
    "pad_token_id", "repetition_penalty", "temperature", "top_k", "top_p",
    "transformers_version", "use_cache",
}  # fmt: skip

# (logits of some answers, float32 [rows, vocab_size]; their tokens so far; their generators)
# -> the next token of each
Choose = Callable[[Tensor, list[list[int]], list[torch.Generator | None]], list[int]]


@dataclass
class Request:
    """A prompt and its answer so far."""

    prompt: list[int]
    generator: torch.Generator | None = None  # of this answer's random draws
    tokens: list[int] = field(default_factory=list)  # of the answer, without the end token
    ended: bool = False  # by an end token


def decode(
    model: Any,
    requests: Sequence[Request],
    choose: Choose,
    max_new_tokens: int,
    ends: Collection[int],
    is_stopped: Callable[[list[int]], bool] = lambda tokens: False,
    rows: int = 0,
    report: Callable[[int], None] = lambda index: None,
) -> None:
    """Answers all requests, the longest prompts first; fills in their ``tokens`` and ``ended``.

    ``ends``: ids of the end tokens. ``is_stopped``: whether an answer ends with these tokens.
    ``rows``: answers at a time, at most (0: as many as fit, see ``budget``). ``report`` gets the
    index of each request that is done. Raises Unsupported before the first answer is done.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    check(model)
    device, config = causal.device, causal.config.get_text_config()
    limit = rows or (ROWS_ON_GPU if device.type == "cuda" else ROWS_ON_CPU)
    tokens_in_memory = budget(device) // bytes_per_token(config, causal.dtype)
    waiting = deque(sorted(range(len(requests)), key=lambda i: -len(requests[i].prompt)))
    active: list[int] = []  # indices of requests; active[i] has row i of the cache
    cache = SlotCache()
    with torch.inference_mode(), attend_in_slots(causal), swap_factors(model):
        while waiting or active:
            # 1. Admit prompts, up to the limits of rows, of memory and of a step's tokens.
            decoding, admitted = len(active), 0
            while waiting and len(active) < limit:
                size = len(requests[waiting[0]].prompt)
                longest = max(len(requests[i].prompt) for i in (*active, waiting[0]))
                enough = (len(active) + 1) * (longest + max_new_tokens) <= tokens_in_memory
                if active and not (enough and admitted + size <= PROMPT_TOKENS):
                    break
                active.append(waiting.popleft())
                admitted += size
            # 2. One packed row: the newest tokens, then each new prompt without its prefix.
            now = [requests[i] for i in active]
            lengths = [len(one.prompt) + len(one.tokens) - 1 for one in now[:decoding]]
            ids, positions = [one.tokens[-1] for one in now[:decoding]], list(lengths)
            prefills = []
            for row in range(decoding, len(now)):
                prompt = now[row].prompt
                source, prefix = longest_prefix(prompt, [one.prompt for one in now[:row]])
                end = len(ids) + len(prompt) - prefix
                prefills.append(Prefill(row, len(ids), end, prefix, source))
                ids += prompt[prefix:]
                positions += range(prefix, len(prompt))
            cache.begin(lengths, prefills)
            last = [*range(decoding), *(one.end - 1 for one in prefills)]
            logits = model(
                input_ids=torch.tensor([ids], device=device),
                position_ids=torch.tensor([positions], device=device),
                use_cache=False,
                logits_to_keep=torch.tensor(last, device=device),
                slots=cache,
            ).logits[0]
            cache.check(config, len(now[0].prompt) + max_new_tokens)
            # 3. Choose; take out what is done, and close the gap with the last row.
            answers, generators = [one.tokens for one in now], [one.generator for one in now]
            chosen = choose(logits.to(torch.float32, copy=True), answers, generators)
            for row in reversed(range(len(now))):
                one, token = now[row], chosen[row]
                one.ended = token in ends
                if not one.ended:
                    one.tokens.append(token)
                if one.ended or len(one.tokens) == max_new_tokens or is_stopped(one.tokens):
                    report(active[row])
                    active[row] = active[-1]
                    active.pop()
                    cache.move(len(active), row)


def check(model: Any) -> None:
    """Raises Unsupported, with the reason, if a model is known not to decode here."""
    for adapter in getattr(model, "peft_config", {}).values():
        if adapter.is_prompt_learning or getattr(adapter, "alora_invocation_tokens", None):
            raise Unsupported(f"{adapter.peft_type} adapters change the prompt")
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = causal.config.get_text_config()
    if not getattr(causal, "_supports_attention_backend", False):
        raise Unsupported(f"{type(causal).__name__} has an attention of its own")
    kinds = set(getattr(config, "layer_types", None) or ()) - {
        "full_attention",
        "sliding_attention",
    }
    if kinds or getattr(config, "attention_chunk_size", None):
        raise Unsupported(f"it has layers of {', '.join(sorted(kinds)) or 'chunked attention'}")
    if getattr(config, "num_kv_shared_layers", None):
        raise Unsupported("its layers share keys and values")
    ropes = {str(getattr(module, "rope_type", "")) for module in causal.modules()}
    if any("dynamic" in rope or "longrope" in rope for rope in ropes):
        raise Unsupported("its rotary embedding depends on the longest text of a batch")
    own = causal.generation_config.to_diff_dict()
    asked = [k for k, v in own.items() if v and k not in HARMLESS and not k.startswith("_")]
    if asked:
        raise Unsupported(f"its generation_config sets {', '.join(sorted(asked))}")


def bytes_per_token(config: Any, dtype: torch.dtype) -> int:
    """Returns the bytes of one token's keys and values in all layers."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * size * dtype.itemsize)


def budget(device: torch.device) -> int:
    """Returns the bytes that the KV cache may have: half of a GPU's free memory, or an eighth of
    the main memory, at most 1 GiB."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] // 2)
    return min((installed() or 2**33) // 8, 2**30)


def longest_prefix(prompt: list[int], others: Sequence[list[int]]) -> tuple[int, int]:
    """Returns (index, tokens) of the other prompt with the longest common beginning.

    At most all but the last token of ``prompt``; (0, 0) if it is shorter than LEAST_PREFIX.
    """
    best, most, own = 0, LEAST_PREFIX - 1, prompt[:-1]
    for index, other in enumerate(others):
        if own[: most + 1] == other[: most + 1] and len(own) > most:
            best, most = index, len(os.path.commonprefix([own, other]))  # noqa: RUF071
    return (best, most) if most >= LEAST_PREFIX else (0, 0)
