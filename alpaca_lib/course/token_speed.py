"""Measures the tokens per second of one answer, in PyTorch and in llama.cpp."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from alpaca_lib.export import post, serve_model


def tokens_per_second(speak: Callable[[int], object], tokens: int = 16) -> float:
    """Returns the speed of one answer of that many tokens, without the time of its prompt.

    ``speak(n)`` answers the same prompt with n tokens. Its first call warms up and is not timed.
    """
    speak(1)
    prompt = _seconds(speak, 1)
    return tokens / max(_seconds(speak, tokens + 1) - prompt, 1e-9)


def _seconds(speak: Callable[[int], object], tokens: int) -> float:
    start = time.perf_counter()
    speak(tokens)
    return time.perf_counter() - start


def torch_speed(model: Any, prompt: Sequence[int], tokens: int = 16) -> float:
    """Returns the tokens per second of transformers' generate(), greedy, for token ids."""
    import torch

    row = torch.tensor([list(prompt)], device=model.device)
    options = {
        "attention_mask": torch.ones_like(row),
        "do_sample": False,
        "pad_token_id": model.generation_config.pad_token_id or 0,
    }

    def speak(n: int) -> None:
        model.generate(row, max_new_tokens=n, min_new_tokens=n, **options)

    return tokens_per_second(speak, tokens)


def llama_speed(file: Path, prompt: Sequence[int], tokens: int = 16) -> float:
    """Returns the tokens per second of a GGUF file in llama.cpp, greedy, for token ids."""
    with serve_model(str(file), slots=1) as address:
        url = address.removesuffix("/v1") + "/completion"
        body = {
            "prompt": list(prompt),
            "ignore_eos": True,
            "temperature": 0,
            "cache_prompt": False,
        }

        def speak(n: int) -> None:
            post(url, body | {"n_predict": n})

        return tokens_per_second(speak, tokens)


def step_times(model: Any, rows: Sequence[int] = (1, 16), tries: int = 5) -> list[float]:
    """Returns the median seconds of a forward pass of one token for each number of rows."""
    import torch

    medians = []
    with torch.inference_mode():
        for count in rows:
            ids = torch.ones(count, 1, dtype=torch.long, device=model.device)
            model(ids, use_cache=False)
            times = sorted(_seconds(partial(_run, model, ids), 0) for _ in range(tries))
            medians.append(times[tries // 2])
    return medians


def _run(model: Any, ids: Any, _: int) -> None:
    float(model(ids, use_cache=False).logits[0, -1, 0])  # waits until a GPU is done
