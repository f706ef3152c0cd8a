"""What the tests share: the embedded model's tokenizer, and a tiny random LLaMA."""

from __future__ import annotations

import os
import signal
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


@pytest.fixture(scope="session", autouse=True)
def interrupts():
    """Ctrl-C works here and in what is started, also if a shell started pytest with &."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


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


TEXTS = [
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.",
    "### Instruction:\nName three colours.\n\n### Input:\n1, 2\n\n### Response:\nRed, green, blue.",
    "user assistant system You are a helpful assistant. What is the capital of France? Paris.",
]


@pytest.fixture(scope="session")
def build_tokenizer():
    """A function that builds a small tokenizer, as its maker would publish it.

    ``kind``: byte-level or metaspace (SentencePiece's BPE with byte fallback). ``bos``: who
    writes BOS in a conversation: the template, the post-processor, both or nobody. ``turn``: the
    text that ends a turn, which is EOS or another special token.
    """
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, trainers
    from tokenizers.models import BPE
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    def build(kind="byte-level", bos="nobody", turn="</s>", eos_after_prompts=False):
        special = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
        if kind == "byte-level":
            tokens = Tokenizer(BPE())
            tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokens.decoder = decoders.ByteLevel()
            trainer = trainers.BpeTrainer(
                vocab_size=420,
                special_tokens=special,
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                show_progress=False,
            )
        else:
            tokens = Tokenizer(BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
            space = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
            tokens.normalizer = normalizers.Sequence(space)
            tokens.decoder = decoders.Sequence(
                [
                    decoders.Replace("▁", " "),
                    decoders.ByteFallback(),
                    decoders.Fuse(),
                    decoders.Strip(" ", 1, 0),
                ]
            )
            trainer = trainers.BpeTrainer(
                vocab_size=420,
                special_tokens=[*special[:3], *(f"<0x{b:02X}>" for b in range(256)), *special[3:]],
                show_progress=False,
            )
        tokens.train_from_iterator(TEXTS, trainer)
        if bos in ("post-processor", "both") or eos_after_prompts:
            before = "<s> " if bos in ("post-processor", "both") else ""
            after = " </s>" if eos_after_prompts else ""
            tokens.post_processor = TemplateProcessing(
                single=f"{before}$A{after}",
                pair=f"{before}$A{after} $B",
                special_tokens=[("<s>", 1), ("</s>", 2)],
            )
        rules = tokens.to_str()
        if kind == "metaspace":  # byte tokens are no special tokens
            import json

            read = json.loads(rules)
            read["added_tokens"] = [t for t in read["added_tokens"] if t["content"] in special]
            rules = json.dumps(read)
        built = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(rules),
            bos_token="<s>",
            eos_token="</s>",
            unk_token="<unk>" if kind == "metaspace" else None,
            pad_token="</s>",
        )
        first = "{{ bos_token }}" if bos in ("template", "both") else ""
        built.chat_template = (
            first + "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
            f"{{{{ '{turn}\n' }}}}{{% endfor %}}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
        )
        return built

    return build


@pytest.fixture(scope="session")
def few_tokens_folder(build_tokenizer, make_tiny, tmp_path_factory):
    """The tiny model with a small tokenizer: its GGUF file is read in a hundredth of the time."""
    tokenizer, folder = build_tokenizer(), tmp_path_factory.mktemp("few_tokens")
    special = {
        name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
    make_tiny(vocab_size=len(tokenizer), **special).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
