"""What the tests share: the embedded model's tokenizer, and a tiny random LLaMA."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from alpaca_lib.records import Example, save_examples


@pytest.fixture(scope="session")
def repository():
    """The root of the repository."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def stanford_data(repository):
    """A folder with Stanford's own files, which may not be shipped; skips without it."""
    folder = Path(os.environ.get("STANFORD_DATA", repository.parent / "shared" / "data"))
    for name in ("alpaca_data.json", "seed_tasks.jsonl"):
        if not (folder / name).is_file():
            pytest.skip(f"no {name} of Stanford's in {folder}; STANFORD_DATA names the folder")
    return folder


@pytest.fixture(scope="session")
def tokenizer():
    """The real tokenizer of the embedded model; its first use fetches the model."""
    from alpaca_lib import models

    return models.ModelSource.resolve("smollm2-135m").load_tokenizer()


@pytest.fixture(scope="session")
def make_tiny(tokenizer):
    """A function that makes a random LLaMA of 2 layers, hidden size 64, in float32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    def make(seed: int = 0, tied: bool = True, **options):
        values = {
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "initializer_range": 0.1,
            "tie_word_embeddings": tied,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**{**values, **options})).float().eval()

    return make


@pytest.fixture(scope="session")
def tiny_folder(make_tiny, tokenizer, tmp_path_factory):
    """A folder that holds the tiny model and the tokenizer, as from_pretrained loads it."""
    folder = tmp_path_factory.mktemp("tiny")
    make_tiny().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def some_examples():
    """Twelve short examples of different lengths, five of them with an input."""
    return [
        Example(
            f"Task number {n}: say something about the word {word}.",
            f"The word is {word}, and it has {len(word)} letters." if n % 5 < 2 else "",
            " ".join([f"{word} is word {n}."] * (1 + n % 4)),
        )
        for n, word in enumerate(
            [
                *("apple", "river", "stone", "cloud", "garden", "winter"),
                *("pencil", "bridge", "candle", "forest", "mirror", "ladder"),
            ]
        )
    ]


@pytest.fixture(scope="session")
def data_file(some_examples, tmp_path_factory):
    """The twelve examples as a .json file."""
    return save_examples(some_examples, tmp_path_factory.mktemp("data") / "twelve.json")
