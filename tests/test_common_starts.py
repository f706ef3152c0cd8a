"""Tokens of texts that begin alike: those of each text alone, whatever follows the start."""

from __future__ import annotations

import random

import pytest
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE, Unigram, WordPiece

from alpaca_lib import common_starts, models
from alpaca_lib.common_starts import encode_texts
from alpaca_lib.examples import Example
from alpaca_lib.prompts import render_prompt

HEADERS = [
    render_prompt(Example("I", "Q"), "alpaca").split("I\n\n### Input")[0],
    render_prompt(Example("I"), "alpaca").split("I\n\n### Response")[0],
    "<|im_start|>system\nYou are a helpful assistant that answers in one sentence, or in two."
    "<|im_end|>\n<|im_start|>user\n",
    "1234567890" * 12,
    " " * 90,
    "é" * 45 + "e\u0301" * 45,
    "",
]
PIECES = (
    "a", "Paris", " ", "\n", "\n\n", "  ", "\t", "'s", "\u0301", "é", "日本", "\U0001f600", "12",
    ".", ":", "<|im_end|>", "|>", "sponse:", "### ", "\u200d", "\xa0", "ß",
)  # fmt: skip


def some_texts(draw, count=40):
    """Texts after each of the headers."""
    return [
        header + "".join(draw.choice(PIECES) for _ in range(draw.randint(0, 9)))
        for header in HEADERS
        for _ in range(count)
    ]


def bpe(pre_tokenizer=None, normalizer=None, **more):
    """A BPE tokenizer without merges that its maker would not have learned from the headers."""
    tokens = Tokenizer(BPE(**more))
    if pre_tokenizer is not None:
        tokens.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokens.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokens.train_from_iterator([*HEADERS, *PIECES], trainer)
    return tokens


def straddling():
    """A tokenizer with tokens that begin in a header and end in the data."""
    tokens = bpe(pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokens.add_tokens([AddedToken("### Instruction:\nParis"), AddedToken("\n\n\n", lstrip=True)])
    tokens.add_tokens([AddedToken("one sentence, or in two.<|im_end|>\n<|im_start|>user\na")])
    return tokens


def word_pieces():
    """A WordPiece tokenizer, as BERT's."""
    tokens = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokens.normalizer = normalizers.BertNormalizer()
    tokens.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=400, special_tokens=["[UNK]"], show_progress=False
    )
    tokens.train_from_iterator([*HEADERS, *PIECES], trainer)
    return tokens


def unigram():
    """A Unigram tokenizer, as T5's."""
    tokens = Tokenizer(Unigram())
    tokens.normalizer = normalizers.NFKC()
    tokens.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
    )
    tokens.train_from_iterator([*HEADERS, *PIECES], trainer)
    return tokens


CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def llama_3():
    """A tokenizer that splits as LLaMA 3's."""
    from tokenizers import Regex

    split = pre_tokenizers.Split(Regex(CL100K), "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return bpe(pre_tokenizers.Sequence([split, level]))


# Of each: how many of the seven headers are cut at least. One word, as SentencePiece's BPE sees
# a text, has no place to cut at.
KINDS = {
    "byte-level": (lambda: bpe(pre_tokenizers.ByteLevel(add_prefix_space=False)), 2),
    "a space before": (lambda: bpe(pre_tokenizers.ByteLevel(add_prefix_space=True)), 2),
    "llama 3": (llama_3, 2),
    "metaspace": (lambda: bpe(pre_tokenizers.Metaspace()), 2),
    "nfc": (lambda: bpe(pre_tokenizers.ByteLevel(), normalizers.NFC()), 2),
    "one word": (lambda: bpe(None, normalizers.Prepend("▁")), 0),
    "straddling": (straddling, 1),
    "word pieces": (word_pieces, 2),
    "unigram": (unigram, 2),
    "smollm2": (
        lambda: models.ModelSource.resolve("smollm2-135m").load_tokenizer().backend_tokenizer,
        2,
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_texts_have_their_own_tokens(kind, monkeypatch):
    """Random data after seven headers: the ids of the tokenizer itself."""
    build, least = KINDS[kind]
    backend = build()
    monkeypatch.setattr(common_starts, "FEWEST", 30)
    for seed in range(6):
        texts = some_texts(random.Random(seed))
        random.Random(seed).shuffle(texts)
        expected = [backend.encode(text, add_special_tokens=False).ids for text in texts]
        assert encode_texts(backend, texts) == expected
        starts = common_starts._find_starts(backend, texts)
        assert sum(start.size > 0 for start in starts.values()) >= least


def test_few_texts_are_not_searched(monkeypatch):
    """Inference has a few texts: nothing is encoded to find out."""
    backend = KINDS["byte-level"][0]()
    monkeypatch.setattr(common_starts, "_find_starts", None)
    assert len(encode_texts(backend, ["a"] * 20)) == 20


def test_digits_grouped_from_the_right_are_not_cut():
    """Where a group of digits ends depends on all digits after it, so on the data's."""
    from tokenizers import Regex

    groups = Regex(r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))|\P{N}+")
    backend = bpe(pre_tokenizers.Sequence(
        [pre_tokenizers.Split(groups, "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    ))  # fmt: skip
    digits = "1234567890" * 12
    assert common_starts._cut(backend, "the sum of " + digits).size <= len("the sum of ")
    assert common_starts._cut(backend, digits).size == 0
    assert common_starts._cut(backend, digits + " and the sum of").size > 0
