"""Small models need neither two threads nor a long measurement of the machine."""

from __future__ import annotations

import pytest

from alpaca_lib.prompts import render_prompt


@pytest.fixture(scope="session", autouse=True)
def quick():
    """One torch thread (two wait for each other more than they compute), and a twentieth
    of a second for the measured FLOP/s that every run begins with."""
    import torch

    from alpaca_lib.training.flops import gemm_rate

    threads, defaults = torch.get_num_threads(), gemm_rate.__defaults__
    torch.set_num_threads(1)
    gemm_rate.__defaults__ = (0.05,)
    yield
    torch.set_num_threads(threads)
    gemm_rate.__defaults__ = defaults


@pytest.fixture(scope="session")
def small():
    """Shapes narrower than the tiny model's."""
    return {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}


@pytest.fixture(scope="session")
def small_folder(make_tiny, tokenizer, some_examples, small, tmp_path_factory):
    """The tiny model, narrower still, vocab_size 461: a run takes a fifth of a second."""
    texts = [f"{render_prompt(e)} {e.output}" for e in some_examples]
    words, folder = tokenizer.train_new_from_iterator(texts, 500), tmp_path_factory.mktemp("small")
    make_tiny(vocab_size=len(words), **small).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder
