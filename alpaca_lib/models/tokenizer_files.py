"""A tokenizer as its tokenizer.json says, whatever class transformers has for the model's type.

transformers chooses a class by model_type, and some classes build the rules for splitting a text
from the vocabulary alone. llama.cpp, vLLM and the tokenizers library follow the file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from alpaca_lib.optional import require

RULES = ("normalizer", "pre_tokenizer", "model")
NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")


def load_tokenizer(path: str) -> Any:
    """Loads the tokenizer of a folder or hub id; none of its own code is run.

    Special tokens and chat template are those of its tokenizer_config.json, or else what
    transformers has for the type of model.
    """
    transformers = require("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    file = _find_file(path)
    if file is None or _follows(tokenizer, file):
        return tokenizer
    exact = transformers.PreTrainedTokenizerFast.from_pretrained(path, trust_remote_code=False)
    known = exact.get_vocab()
    for name in NAMED:
        token = getattr(tokenizer, name)
        if getattr(exact, name) is None and token in known:
            setattr(exact, name, token)
    if exact.chat_template is None:
        exact.chat_template = tokenizer.chat_template
    return exact


def _find_file(path: str) -> Path | None:
    """Returns the tokenizer.json of a folder, or the cached one of a hub id; None without."""
    if Path(path).is_dir():
        file = Path(path) / "tokenizer.json"
        return file if file.is_file() else None
    hub = require("huggingface_hub")
    found = hub.try_to_load_from_cache(path, "tokenizer.json")
    return Path(found) if isinstance(found, str) else None


def _follows(tokenizer: Any, file: Path) -> bool:
    """Returns whether a loaded tokenizer has the rules and added tokens of a tokenizer.json."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return False
    if type(tokenizer) is require("transformers").PreTrainedTokenizerFast:
        return True  # it reads the file itself
    saved = require("tokenizers").Tokenizer.from_file(str(file))
    mine, theirs = json.loads(backend.to_str()), json.loads(saved.to_str())
    same_ids = {token["content"]: token["id"] for token in mine["added_tokens"]}
    return all(mine[rule] == theirs[rule] for rule in RULES) and all(
        same_ids.get(token["content"]) == token["id"] for token in theirs["added_tokens"]
    )
