"""A transformers tokenizer -> the keys of a GGUF file that make llama.cpp tokenize alike.

Two kinds are known: byte-level BPE (GPT-2, LLaMA 3, Qwen, SmolLM, Phi-4), whose merges are
written and whose pre-tokenizer llama.cpp knows by name; and SentencePiece's BPE (LLaMA 1 and 2,
Mistral 7B, Gemma, Phi-3), whose merges become scores of the tokens that they make.
"""

from __future__ import annotations

import json
import re
from typing import Any

from alpaca_lib.errors import ModelError
from alpaca_lib.optional import require
from alpaca_lib.prompts import CHAT
from alpaca_lib.tokenization import PromptEncoder, prefix_tokens

# llama.cpp's name of a pre-tokenizer: whether a word that is a token is not merged
# (ignore_merges), and parts of its definition. The first full match counts.
PRE_TOKENIZERS = {
    "gpt-4o": (False, (r"\p{Lu}\p{Lt}", r"\p{N}{1,3}")),
    "llama-bpe": (True, (r"\p{N}{1,3}", "(?i:'s|'t|'re|'ve|'m|'ll|'d)")),
    "dbrx": (False, (r"\p{N}{1,3}", "(?i:'s|'t|'re|'ve|'m|'ll|'d)")),
    "qwen2": (False, (r"\p{N}|", "(?i:'s|'t|'re|'ve|'m|'ll|'d)")),
    "smollm": (False, ('"Digits"', '"individual_digits": true', '"use_regex": true')),
    "gpt-2": (False, ('"ByteLevel"', '"use_regex": true')),
}
# llama.cpp removes white space after special tokens if the model's name has one of these, and
# not after the tokens of PHI3_KEEPS: a rule by name, as GGUF has no place for it.
PHI3_NAMES, PHI3_KEEPS = ("phi-3", "phi3"), {"<unk>", "<s>", "<|endoftext|>"}


def add_tokenizer(writer: Any, tokenizer: Any, size: int, template: str | None = None) -> None:
    """Adds tokens, merges, special tokens and chat template to a GGUFWriter.

    ``size``: rows of the embedding, at least one per token. ``template``: see ``export_gguf``.
    Raises ModelError for a tokenizer that llama.cpp does not know.
    """
    gguf = require("gguf")
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError("llama.cpp needs a tokenizer.json; this tokenizer has none")
    rules = json.loads(backend.to_str())
    model = rules["model"]
    if model.get("type") != "BPE":
        raise ModelError(f"a tokenizer of type {model.get('type')} is not exported here")
    sentencepiece = bool(model.get("byte_fallback"))
    tokens, kinds = _tokens(gguf, rules, size)
    if sentencepiece:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores(_scores(model, size))
        writer.add_add_space_prefix(_adds_prefix_space(rules))
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_pre_tokenizer(rules))
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
        writer.add_token_merges(merges)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    ids = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "unk": tokenizer.unk_token_id,
        "pad": tokenizer.pad_token_id,
    }
    prefix = prefix_tokens(tokenizer)
    if len(prefix) > 1:
        names = "".join(tokenizer.convert_ids_to_tokens(prefix))
        raise ModelError(f"the tokenizer puts {names} before every text; llama.cpp has one BOS")
    if prefix:  # what llama.cpp adds is what it calls BOS
        ids["bos"] = prefix[0]
    template = template or (CHAT if tokenizer.chat_template else None)
    if template:
        encoder = PromptEncoder(tokenizer, template)
        if encoder.end and encoder.end[-1] != ids["eos"]:
            ids["eot"] = encoder.end[-1]  # an answer of a conversation ends there
        published = encoder.published_template()
        if not _strips_as_phi3(rules):
            _check_strips(rules, published)
        writer.add_chat_template(published)
    for name, token in ids.items():
        if token is not None:
            getattr(writer, f"add_{name}_token_id")(token)
    writer.add_add_bos_token(bool(prefix))
    writer.add_add_eos_token(False)


def safe_name(name: str, tokenizer: Any) -> str:
    """Returns the name of a model for its file, in which "phi-3" switches a rule of llama.cpp on.

    A tokenizer that removes white space after its special tokens, as Phi-3's, needs that word; in
    the name of another model it is written otherwise.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    has_rule = backend is not None and _strips_as_phi3(json.loads(backend.to_str()))
    named = any(word in name.lower() for word in PHI3_NAMES)
    if has_rule:
        return name if named else f"{name} (phi-3)"
    return re.sub("(?i)phi-?3", "phi 3", name)


def _strips_as_phi3(rules: dict[str, Any]) -> bool:
    """Returns whether tokens remove white space after them exactly as in llama.cpp's rule."""
    added = rules["added_tokens"]
    return (
        any(token["rstrip"] for token in added)
        and all(
            token["rstrip"] == (token["content"] not in PHI3_KEEPS) and not token["lstrip"]
            for token in added
        )
        and {"</s>", *PHI3_KEEPS} <= {token["content"] for token in added}
    )


def _check_strips(rules: dict[str, Any], template: str) -> None:
    """Raises ModelError if a token of the template removes white space next to it."""
    for added in rules["added_tokens"]:
        if (added["lstrip"] or added["rstrip"]) and added["content"] in template:
            raise ModelError(
                f"the chat template writes {added['content']}, a token that removes white space "
                "next to it (lstrip or rstrip in tokenizer.json); llama.cpp keeps that white "
                "space, so its prompts would differ: export with a template of this project"
            )


def _scores(model: dict[str, Any], size: int) -> list[float]:
    """Returns the scores of SentencePiece's tokens: of two merges llama.cpp takes the higher.

    Raises ModelError if merges that make the same token stand apart: it has one score.
    """
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    scores = [-float(len(merges))] * size
    previous, seen = "", set()
    for rank, (left, right) in enumerate(merges):
        token = left + right
        if token == previous:
            continue
        if token in seen:
            raise ModelError(
                f"the tokenizer merges to {token!r} in two places of its order, which llama.cpp's "
                "scores cannot say; this tokenizer is not exported"
            )
        seen.add(token)
        previous = token
        if (place := model["vocab"][token]) < size:  # a higher one is refused by _tokens
            scores[place] = -float(rank)
    return scores


def _tokens(gguf: Any, rules: dict[str, Any], size: int) -> tuple[list[str], list[Any]]:
    """Returns (texts, kinds) of all ids; ids without a token are marked as unused."""
    types = gguf.TokenType
    tokens = [f"[PAD{place}]" for place in range(size)]
    kinds = [types.UNUSED] * size
    fallback = bool(rules["model"].get("byte_fallback"))
    unknown = rules["model"].get("unk_token") if fallback else None
    for text, place in rules["model"]["vocab"].items():
        _check_place(text, place, size)
        tokens[place] = text
        is_byte = fallback and len(text) == 6 and text.startswith("<0x")
        kinds[place] = types.BYTE if is_byte else types.NORMAL
        if text == unknown:
            kinds[place] = types.UNKNOWN
    for added in rules["added_tokens"]:
        text, place = added["content"], added["id"]
        _check_place(text, place, size)
        # llama.cpp looks for these in the text before it writes spaces as SentencePiece does.
        tokens[place] = text.replace("▁", " ") if fallback else text
        if kinds[place] != types.UNKNOWN:
            kinds[place] = types.CONTROL if added["special"] else types.USER_DEFINED
    return tokens, kinds


def _check_place(text: str, place: int, size: int) -> None:
    if place >= size:
        raise ModelError(
            f"token {text!r} has the id {place}, and the embedding only {size} rows: this "
            "tokenizer is not this model's"
        )


def _pre_tokenizer(rules: dict[str, Any]) -> str:
    """Returns llama.cpp's name of the rule that splits text before merging."""
    text = json.dumps(rules["pre_tokenizer"], ensure_ascii=False).replace("\\\\", "\\")
    keeps_words = bool(rules["model"].get("ignore_merges"))
    for name, (ignores_merges, parts) in PRE_TOKENIZERS.items():
        if ignores_merges == keeps_words and all(part in text for part in parts):
            return name
    raise ModelError(
        f"a pre-tokenizer that is not known here: {text[:300]} (ignore_merges "
        f"{keeps_words}); known are "
        f"{', '.join(PRE_TOKENIZERS)}"
    )


def _adds_prefix_space(rules: dict[str, Any]) -> bool:
    """Returns whether a SentencePiece tokenizer puts a space before a text."""
    text = json.dumps([rules.get("normalizer"), rules.get("pre_tokenizer")])
    parts = ('"Prepend"', '"prepend_scheme": "always"', '"prepend_scheme": "first"')
    return any(part in text for part in parts)
