"""LoRA adapter folders of any origin: their base model's name, and how one is attached."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from alpaca_lib.errors import AdapterError, AlpacaError, FileError, ModelError
from alpaca_lib.files import parse_json, read_small, sha256_text
from alpaca_lib.optional import require

MOST_SCALE = 10**6  # of an adapter's rank and alpha; published ones are below 10,000
# Initialisations that change the base: the saved matrices belong to what was left of it.
CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq")


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Reads an adapter's adapter_config.json. Raises AdapterError if there is no readable one, or
    if its rank or alpha is no number that can be."""
    try:
        config = parse_json(read_small(folder / "adapter_config.json"))
    except (FileError, ValueError):
        config = None
    if not isinstance(config, dict):
        raise AdapterError(f"{folder}: no adapter there (no readable adapter_config.json)")
    for name, kinds in (("r", int), ("lora_alpha", int | float)):
        value = config.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value <= MOST_SCALE:
            raise AdapterError(
                f"{folder}: its adapter_config.json has {name} {str(value)[:40]}, and a number "
                f"from 1 to {MOST_SCALE:,} is needed"
            )
    return config


def base_name(folder: Path) -> str:
    """Returns the name of the model that an adapter was trained on. Raises ModelError."""
    peft = require("peft")
    with explained(f"{folder} (an adapter folder)"):
        base = peft.PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    if not base:
        raise ModelError(f"{folder}: its adapter_config.json names no base model")
    return str(base)


def weights_checksum(folder: Path) -> str:
    """Returns a checksum of a model folder's weights, however they are split into files.

    It is of every tensor's name, dtype, shape and first 4 KB: read in milliseconds. Empty for a
    folder without readable safetensors files.
    """
    tensors = []
    try:
        for file in folder.glob("model*.safetensors"):
            with open(file, "rb") as stream:
                size = int.from_bytes(stream.read(8), "little")
                header = parse_json(stream.read(min(size, 1 << 27)))
                header.pop("__metadata__", None)
                for name, entry in header.items():
                    begin, end = entry["data_offsets"]
                    stream.seek(8 + size + begin)
                    values = stream.read(min(end - begin, 4096)).hex()
                    tensors.append(f"{name} {entry['dtype']} {entry['shape']} {values}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return ""  # refused where it is loaded
    return sha256_text("\n".join(sorted(tensors))) if tensors else ""


def warn_of_other_base(adapter: Path, base: Path, name: str) -> None:
    """Prints a line if the base ``name`` has other weights than those an adapter was trained on.

    They are compared by the checksum in the adapter's run.json; without one there is no line.
    """
    try:
        recorded = parse_json(read_small(adapter / "run.json"))["base_checksum"]
    except (FileError, ValueError, KeyError, TypeError):
        return
    if recorded and (found := weights_checksum(base)) and recorded != found:
        print(
            f"{adapter}: was trained on other weights than those of {name} now (base_checksum in "
            "its run.json), so its answers may be wrong; use the base that it was trained on, or "
            "train it again",
            file=sys.stderr,
        )


def attach_adapter(model: Any, folder: Path, name: str = "default") -> Any:
    """Attaches a LoRA adapter to a model and returns the PeftModel, in eval mode.

    A PeftModel may hold several adapters, each with its own ``name``. Raises ModelError if a
    matrix of the adapter is missing or has no place in this model.
    """
    peft = require("peft")
    with explained(f"{folder} (an adapter folder)"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT calls old names of transformers
        # PEFT leaves missing matrices untrained with a warning; here that is an error, below.
        warnings.filterwarnings("ignore", "Found missing adapter keys")
        saved = _saved_names(folder)
        check_patterns(read_adapter_config(folder), [n for n, _ in model.named_modules()], folder)
        if isinstance(model, peft.PeftModel):
            model.load_adapter(str(folder), adapter_name=name)
        else:
            config = peft.PeftConfig.from_pretrained(str(folder))
            model = peft.PeftModel.from_pretrained(
                model, str(folder), adapter_name=name, config=config
            )
        expected = set(
            peft.get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
        )
    if missing := sorted(expected - saved):
        raise ModelError(f"{folder}: the file of its weights does not have {missing[0]}")
    if unknown := sorted(key for key in saved - expected if "lora_" in key):
        raise ModelError(f"{folder}: {unknown[0]} has no place here: another model's adapter")
    return model.eval()


def shares_weight(model: Any, module: Any) -> bool:
    """Returns whether a module's weight is also another module's, as in tied embeddings."""
    weight = getattr(module, "weight", None)
    others = (m for m in model.modules() if m is not module)
    return weight is not None and any(getattr(m, "weight", None) is weight for m in others)


def merge_exactly(model: Any, name: str) -> Any:
    """Merges a PeftModel's adapter into its base and returns that.

    Raises ModelError if the merged model would compute something else than the adapter does,
    such as one whose adapter is on a tied embedding.
    """
    torch = require("torch")
    vocab_size = model.get_input_embeddings().weight.shape[0]
    ids = torch.arange(1, 9)[None] % vocab_size
    with torch.no_grad():
        before = model(input_ids=ids, use_cache=False).logits
        merged = model.merge_and_unload()
        # save_pretrained writes a tied weight once: what the adapter has untied stays untied.
        head, embedding = merged.get_output_embeddings(), merged.get_input_embeddings()
        if head is not None and head.weight is not embedding.weight:
            merged.config.tie_word_embeddings = False
        after = merged(input_ids=ids, use_cache=False).logits
    difference = float((after - before).abs().max())
    if not difference <= 1e-3 * float(before.abs().max()):
        raise ModelError(
            f"{name}: merged, its logits differ by {difference:.3g}: the adapter changes a weight "
            "that two modules share (tie_word_embeddings). Use it unmerged"
        )
    return merged


# The patterns of an adapter_config.json: applied to module names by PEFT, in these forms.
_PATTERNS = {
    "target_modules": "{}",
    "exclude_modules": "{}",
    "layers_pattern": r"(?:^|.*?\.){}\.(?P<idx>\d+)\.",
    "modules_to_save": r"(^|.*\.){}($|\..*)",
    "rank_pattern": r"(.*\.)?({})$",
    "alpha_pattern": r"(.*\.)?({})$",
}
_MATCH = """
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    compiled = re.compile(pattern)
    for name in names:
        compiled.fullmatch(name), compiled.match(name)
"""
PATTERN_SECONDS = 10.0  # time that all patterns may take on all of a model's names


def check_patterns(config: Mapping[str, Any], names: Iterable[str], folder: Path) -> None:
    """Raises ModelError for a pattern of an adapter_config.json that is invalid or never ends.

    PEFT matches them with ``re``, which cannot be interrupted: another process tries it first.
    """
    patterns = []
    for key, form in _PATTERNS.items():
        value = config.get(key) or []
        texts = [value] if isinstance(value, str) else list(value)
        if key in ("target_modules", "exclude_modules") and not isinstance(value, str):
            continue  # a list of names
        patterns += [form.replace("{}", text) for text in texts if isinstance(text, str)]
    special = [text for text in patterns if re.search(r"[*+?{(|]", text)]
    if not special:
        return
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", _MATCH],
            input=json.dumps([special, list(names)]),
            text=True,
            capture_output=True,
            timeout=PATTERN_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise ModelError(
            f"{folder}: a pattern of its adapter_config.json takes more than {PATTERN_SECONDS:g} s "
            f"on this model's names ({special[0][:80]!r}); write names instead"
        ) from None
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:]
        raise ModelError(f"{folder}: a pattern of its adapter_config.json is invalid: {reason}")


def _saved_names(folder: Path) -> set[str]:
    """Returns the names of the matrices in an adapter's file."""
    if (file := folder / "adapter_model.safetensors").is_file():
        with require("safetensors").safe_open(file, "pt") as saved:
            return set(saved.keys())
    if (file := folder / "adapter_model.bin").is_file():
        return set(require("torch").load(file, map_location="meta", weights_only=True))
    raise ModelError(f"{folder}: no adapter_model.safetensors next to its adapter_config.json")


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Turns an error of loading into a ModelError that begins with ``what``."""
    try:
        yield
    except AlpacaError:
        raise
    except Exception as error:  # files of any origin make libraries raise anything
        name = type(error).__name__
        first = next(iter(str(error).strip().splitlines()), name)
        is_plain = isinstance(error, OSError | ValueError | RuntimeError)
        text = first if is_plain else f"{name}: {first}"
        raise ModelError(f"{what} cannot be loaded: {text}") from error
