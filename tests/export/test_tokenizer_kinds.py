"""Tokenizers of families, rebuilt small: the ids of llama.cpp are those of tokenizers."""

from __future__ import annotations

import itertools

import pytest
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE

from alpaca_lib import models
from alpaca_lib.errors import ModelError
from alpaca_lib.export.gguf import export_gguf
from alpaca_lib.export.gguf_tokenizer import safe_name
from alpaca_lib.export.parity import post
from alpaca_lib.models.llama_server import serve

pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")

CORPUS = [
    "Below is an instruction that describes a task, paired with an input.  Write a response.",
    "### Instruction:\nName three colours.\n\n### Response:\nRed, green, blue; it's 1234567.",
    "The capital of France is Paris. We've seen WebGPU, HTTPServer, ABCdef and 2024-12-31.",
    "    indented\n\n\n\tand more    spaces  here\nZwei Räume, déjà vu, 日本語のテキスト。",
]
TEXTS = [
    *CORPUS, "", " ", "a", "  two spaces", "\n\n\nthree\n", "x\t\ty", "Übergröße naïve façade",
    "日本 and 한국 😀👍🏽", "I'M HERE, DON'T we'Ll", "12 123 1234 12345",
    "<|user|>\nHi<|end|>\n<|assistant|>\n",
    "<start_of_turn>user\nHi  there<end_of_turn>\n<start_of_turn>model\n",
    "trailing   ", "▁literal",
    "<|user|> \n  text <|end|> x", "</s> after", "a <unk> b", "instruction instructions in struct",
]  # fmt: skip
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level(pattern, ignore_merges=False):
    """A byte-level BPE with a pattern, as Phi-4's and LLaMA 3's."""
    from transformers import PreTrainedTokenizerFast

    tokens = Tokenizer(BPE(ignore_merges=ignore_merges))
    tokens.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    special = ["<|endoftext|>", "<|user|>", "<|end|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokens.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="<|endoftext|>")


def pieces(first, more):
    """(vocabulary, merges) of a SentencePiece BPE: every split of a token is a merge of it."""
    tokens = Tokenizer(BPE())
    words = [text.replace(" ", "▁") for text in CORPUS]
    trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False)
    tokens.pre_tokenizer = pre_tokenizers.Split(Regex("▁+|[^▁]+"), "merged_with_next")
    tokens.train_from_iterator(words, trainer)
    learnt = sorted(tokens.get_vocab().items(), key=lambda item: item[1])
    names = [*first, *(f"<0x{byte:02X}>" for byte in range(256)), *more]
    names += [text for text, _ in learnt if text not in names]
    vocabulary = {text: place for place, text in enumerate(names)}
    merges = []
    for text in [*more, *(text for text, _ in learnt)]:
        for cut in range(1, len(text)):
            if text[:cut] in vocabulary and text[cut:] in vocabulary:
                merges.append((text[:cut], text[cut:]))
    return vocabulary, merges


def gemma():
    """A tokenizer of transformers' own class for Gemma, with runs of spaces and newlines."""
    from transformers import AddedToken, GemmaTokenizer

    runs = [char * count for count, char in itertools.product((2, 3, 4), "▁\n")]
    first = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"]
    vocabulary, merges = pieces(first, ["▁", "\n", *runs])
    built = GemmaTokenizer(vocab=vocabulary, merges=merges)
    built.add_tokens([AddedToken(text, special=True, normalized=False) for text in first[5:]])
    built.add_tokens([AddedToken(text, normalized=False) for text in runs if "\n" in text])
    return built


def phi3(rstrip=True):
    """A tokenizer of transformers' own class for LLaMA, with Phi-3's added tokens."""
    from transformers import AddedToken, PreTrainedTokenizerFast

    vocabulary, merges = pieces(["<unk>", "<s>", "</s>"], ["▁"])
    tokens = Tokenizer(
        BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    space = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    tokens.normalizer = normalizers.Sequence(space)
    kept = ["<unk>", "<s>", "<|endoftext|>"]
    tokens.add_special_tokens(
        [
            AddedToken(text, special=True, normalized=False, rstrip=rstrip and text not in kept)
            for text in [*kept, "</s>", "<|user|>", "<|end|>", "<|assistant|>"]
        ]
    )
    built = PreTrainedTokenizerFast(
        tokenizer_object=tokens, bos_token="<s>", eos_token="<|endoftext|>", unk_token="<unk>"
    )
    built.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    )
    return built


BUILD = {
    "gemma": gemma,
    "phi3": phi3,
    "phi3-without-rstrip": lambda: phi3(rstrip=False),
    "phi4": lambda: byte_level(CL100K),
    "llama3": lambda: byte_level(CL100K, ignore_merges=True),
    "phi4-mini": lambda: byte_level(GPT4O),
}


@pytest.fixture
def save(make_tiny, tmp_path):
    """A function that saves a tokenizer with a tiny model, and returns the folder."""

    def save(tokenizer, name="model"):
        folder = tmp_path / name
        make_tiny(vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=1).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.mark.parametrize("folder", ["model", "My-Phi3-run"])
@pytest.mark.parametrize("kind", BUILD)
def test_ids_are_the_same(kind, folder, save, tmp_path):
    """Texts with spaces, newlines, numbers, emoji and special tokens, whatever the folder's name
    (llama.cpp has a rule for names with phi-3)."""
    path = save(BUILD[kind](), folder)
    tokenizer = models.ModelSource.resolve(str(path)).load_tokenizer()
    file = export_gguf(str(path), tmp_path / "m.gguf", "f16")
    with serve(file, slots=1, context=512) as address:
        root = address.removesuffix("/v1")
        for text in TEXTS:
            body = {"content": text, "add_special": False, "parse_special": True}
            theirs = post(f"{root}/tokenize", body)["tokens"]
            assert theirs == tokenizer(text, add_special_tokens=False)["input_ids"], text


def test_names_and_the_rule_of_phi3():
    """Only a tokenizer with Phi-3's rule has that word in the name of its file."""
    assert safe_name("my-run", phi3()) == "my-run (phi-3)"
    assert safe_name("Phi-3-mini", phi3()) == "Phi-3-mini"
    assert "phi-3" not in safe_name("a-PHI3-Phi-3-run", gemma()).lower().replace("phi 3", "")


def test_merges_that_scores_cannot_order(save, tmp_path):
    """A token that is made at two places of the order of merges: refused, no file."""
    from transformers import GemmaTokenizer

    vocabulary, merges = pieces(
        ["<pad>", "<eos>", "<bos>", "<unk>"], ["▁", "ab", "abc", "bc", "zz"]
    )
    merges = [("ab", "c"), *merges, ("a", "bc")]
    folder = save(GemmaTokenizer(vocab=vocabulary, merges=merges))
    with pytest.raises(ModelError, match="'abc' in two places"):
        export_gguf(str(folder), tmp_path / "x.gguf")
    assert not [file for file in tmp_path.iterdir() if "x.gguf" in file.name]
