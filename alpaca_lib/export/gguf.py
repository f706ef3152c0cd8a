"""A model or an adapter -> one GGUF file, which llama.cpp runs without Python.

The `gguf` package writes and quantises; nothing is compiled or fetched. What a file
needs beyond the weights goes in as well: shapes, tokenizer, and a chat template that makes
the prompt that the model was trained on. ``check`` holds the file against PyTorch.

Weights are read, converted and written one tensor at a time; a file has its final name
only when it is whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from alpaca_lib import models
from alpaca_lib.errors import ModelError
from alpaca_lib.export.gguf_tokenizer import add_tokenizer
from alpaca_lib.optional import require

KINDS = {  # name: (llama.cpp's, bits a weight of a matrix, scales included)
    "f32": ("F32", 32.0),
    "f16": ("F16", 16.0),
    "bf16": ("BF16", 16.0),
    "q8_0": ("Q8_0", 8.5),
    "q4_0": ("Q4_0", 4.5),
    "q4_1": ("Q4_1", 5.0),
}
# transformers' model_type: (llama.cpp's architecture, whether its rotary embedding
# turns neighbours, as in Meta's files, and not halves, as in transformers').
FAMILIES = {
    "llama": ("llama", True),
    "mistral": ("llama", True),
    "qwen2": ("qwen2", False),
    "qwen3": ("qwen3", False),
}
SUFFIXES = (".weight", ".bias")


def export(
    name: str,
    file: Path,
    kind: str = "f16",
    template: str | None = None,
    report: Callable[[int, int], None] | None = None,
) -> Path:
    """Writes a model as GGUF; an adapter folder is merged into its base. Returns ``file``.

    ``kind``: one of KINDS; vectors stay float32, and with 4 bits the embedding has 8, as
    llama.cpp's own tool does. ``template``: the prompt that the model was trained on, for
    llama.cpp's chat; None keeps the model's own. ``report(done, all)`` hears of each tensor.
    Raises ModelError for a family that FAMILIES does not have.
    """
    if kind not in KINDS:
        raise ModelError(f"kind {kind!r}: use one of {', '.join(KINDS)}")
    gguf = require("gguf")
    config = _config(name)
    arch, turns = _family(name, config)
    names = gguf.get_tensor_name_map(_architecture(gguf, arch), config.num_hidden_layers)
    with ExitStack() as stack:
        tensors = _tensors(name, stack)
        part = stack.enter_context(_whole(file))
        if config.tie_word_embeddings:
            tensors.pop("lm_head.weight", None)
        writer = gguf.GGUFWriter(part, arch)
        _add_shape(gguf, writer, Path(name).name, config, kind)
        tokenizer = models.ModelSource.resolve(name).load_tokenizer()
        add_tokenizer(writer, tokenizer, config.vocab_size, template)
        factors = _rope_factors(config)
        if factors is not None:
            writer.add_tensor("rope_freqs.weight", factors)
        plans = []
        for key, (shape, load) in tensors.items():
            to = names.get_name(key, SUFFIXES)
            if to is None:
                raise ModelError(f"{name}: llama.cpp's {arch} has no place for {key}")
            stored = _stored_as(gguf, to, shape, kind)
            heads = _heads(key, config) if turns else 0
            plans.append((stored, heads, load))
            nbytes = _bytes(gguf, shape, stored)
            np = require("numpy")
            writer.add_tensor_info(to, shape, np.dtype(np.float32), nbytes, stored)
        _write(gguf, writer, plans, factors, report)
    return file


def export_adapter(folder: str, file: Path) -> Path:
    """Writes a LoRA adapter as GGUF (float32), to be laid over its base's GGUF. Returns ``file``.

    llama.cpp scales by alpha / rank; rsLoRA's alpha / sqrt(rank) is folded into alpha. Raises
    ModelError for what llama.cpp cannot express: DoRA, biases, trained embeddings, ranks or
    alphas that differ between matrices. Merge those.
    """
    gguf = require("gguf")
    path = Path(models.ModelSource.resolve(folder).path)
    given = _adapter_config(path)
    base = models.base_name(path)
    config = _config(base)
    arch, turns = _family(base, config)
    names = gguf.get_tensor_name_map(_architecture(gguf, arch), config.num_hidden_layers)
    rank, alpha = int(given["r"]), float(given["lora_alpha"])
    with ExitStack() as stack:
        saved = _opened(path / "adapter_model.safetensors", stack)
        part = stack.enter_context(_whole(file))
        writer = gguf.GGUFWriter(part, arch)
        writer.add_type("adapter")
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(
            gguf.Keys.Adapter.LORA_ALPHA, alpha * rank**0.5 if given.get("use_rslora") else alpha
        )
        for key in list(saved.keys()):
            matrix, _, which = key.removeprefix("base_model.model.").partition(".lora_")
            to = names.get_name(f"{matrix}.weight", SUFFIXES)
            if which not in ("A.weight", "B.weight") or to is None:
                raise ModelError(f"{folder}: llama.cpp has no place for {key}; merge the adapter")
            tensor = saved.get_tensor(key).float().numpy()
            heads = _heads(f"{matrix}.weight", config) if turns else 0
            if heads and which == "B.weight":  # B's rows are the matrix's
                tensor = turned(tensor, heads)
            writer.add_tensor(f"{to}.lora_{which[0].lower()}", tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return file


def turned(matrix: Any, heads: int) -> Any:
    """Rows of a query or key projection in Meta's order: the two halves of each head, which
    transformers rotates against each other, become neighbours."""
    half = matrix.shape[0] // heads // 2
    return matrix.reshape(heads, 2, half, *matrix.shape[1:]).swapaxes(1, 2).reshape(matrix.shape)


def file_bytes(name: str, kind: str) -> int:
    """About how large ``export`` makes a file: its tensors, without names and tokenizer."""
    gguf = require("gguf")
    config = _config(name)
    names = gguf.get_tensor_name_map(
        _architecture(gguf, _family(name, config)[0]), config.num_hidden_layers
    )
    with ExitStack() as stack:
        return sum(
            _bytes(gguf, shape, _stored_as(gguf, names.get_name(key, SUFFIXES), shape, kind))
            for key, (shape, _) in _tensors(name, stack).items()
        )


# --- reading ----------------------------------------------------------------------------


def _config(name: str) -> Any:
    adapter = Path(models.ModelSource.resolve(name).path) / "adapter_config.json"
    if adapter.is_file():
        return _config(models.base_name(adapter.parent))
    return require("transformers").AutoConfig.from_pretrained(models.ModelSource.resolve(name).path)


def _adapter_config(folder: Path) -> dict[str, Any]:
    """Its settings, if llama.cpp can express them."""
    file = folder / "adapter_config.json"
    if not file.is_file():
        raise ModelError(f"{folder}: is no LoRA adapter (no adapter_config.json)")
    given: dict[str, Any] = json.loads(file.read_text("utf-8"))
    if given.get("peft_type") != "LORA" or not {"r", "lora_alpha"} <= set(given):
        raise ModelError(f"{folder}: is an adapter of another kind; a GGUF adapter is LoRA")
    for key, what in (
        ("use_dora", "DoRA"),
        ("rank_pattern", "ranks that differ"),
        ("alpha_pattern", "alphas that differ"),
        ("modules_to_save", "whole layers that were trained"),
        ("trainable_token_indices", "tokens that were trained"),
    ):
        if given.get(key):
            raise ModelError(f"{folder}: a GGUF adapter cannot hold {what}; merge it instead")
    return given


def _family(name: str, config: Any) -> tuple[str, bool]:
    if config.model_type not in FAMILIES:
        raise ModelError(
            f"{name}: is a {config.model_type} model; this project exports "
            f"{', '.join(FAMILIES)}. For others llama.cpp has its own converter"
        )
    return FAMILIES[config.model_type]


def _architecture(gguf: Any, arch: str) -> Any:
    return next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == arch)


def _tensors(name: str, stack: ExitStack) -> dict[str, tuple[tuple[int, ...], Callable[[], Any]]]:
    """name: (shape, what loads it as float32) for each weight; nothing is loaded yet, but an
    adapter's base, which is merged with it in memory."""
    folder = Path(models.ModelSource.resolve(name).path)
    if (folder / "adapter_config.json").is_file():
        merged, _ = models.ModelSource.resolve(name).load_merged()
        state = merged.state_dict()
        return {
            key: (tuple(tensor.shape), partial(_float32, tensor)) for key, tensor in state.items()
        }
    if not folder.is_dir():
        hub = require("huggingface_hub")
        try:
            wanted = ["model*.safetensors", "*.json", "*.jinja", "tokenizer*"]
            folder = Path(hub.snapshot_download(name, allow_patterns=wanted))
        except Exception as error:
            raise ModelError(f"{name}: cannot be fetched ({type(error).__name__})") from None
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise ModelError(f"{folder}: no model*.safetensors in it")
    found: dict[str, tuple[tuple[int, ...], Callable[[], Any]]] = {}
    for file in files:
        saved = _opened(file, stack)
        for key in list(saved.keys()):
            shape = tuple(saved.get_slice(key).get_shape())
            found[key] = (shape, partial(_read, saved, key))
    return {key: one for key, one in found.items() if not key.endswith("rotary_emb.inv_freq")}


def _opened(file: Path, stack: ExitStack) -> Any:
    """A safetensors file, open until the stack ends."""
    try:
        return stack.enter_context(require("safetensors").safe_open(file, "pt"))
    except Exception as error:  # safetensors has an exception of its own, which is no OSError
        raise ModelError(f"{file}: cannot be read ({error})") from None


def _read(saved: Any, key: str) -> Any:
    return _float32(saved.get_tensor(key))


def _float32(tensor: Any) -> Any:
    return tensor.float().numpy()


# --- writing ----------------------------------------------------------------------------


@contextmanager
def _whole(file: Path) -> Iterator[Path]:
    """A name beside ``file`` that becomes it when the block ends well, and goes if not."""
    part = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        yield part
        with open(part, "rb") as written:
            os.fsync(written.fileno())
        os.replace(part, file)
    except OSError as error:
        raise ModelError(f"{file}: cannot be written ({error.strerror or error})") from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _add_shape(gguf: Any, writer: Any, name: str, config: Any, kind: str) -> None:
    """What llama.cpp has to know of the architecture."""
    rope = config.rope_parameters
    heads, hidden = config.num_attention_heads, config.hidden_size
    size = getattr(config, "head_dim", None) or hidden // heads
    writer.add_type("model")
    writer.add_name(name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(hidden)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif rope["rope_type"] not in ("default", "llama3"):
        raise ModelError(f"a rotary embedding of type {rope['rope_type']} is not exported here")
    stored = KINDS[kind][0]
    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if kind == "f32" else f"MOSTLY_{stored}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _rope_factors(config: Any) -> Any:
    """Llama 3's stretched rotary embedding: what each frequency is divided by; or None."""
    if config.rope_parameters["rope_type"] != "llama3":
        return None
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    torch = require("torch")
    stretched, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    theta = config.rope_parameters["rope_theta"]
    plain = theta ** -(torch.arange(0, size, 2).float() / size)
    return (plain / stretched).numpy().astype("float32")


def _heads(key: str, config: Any) -> int:
    """How many heads a tensor's rows belong to, if they are turned by position; else 0."""
    module = key.rsplit(".", 2)[-2]
    return {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(
        module, 0
    )


def _stored_as(gguf: Any, name: str, shape: tuple[int, ...], kind: str) -> Any:
    """llama.cpp's type for a tensor: vectors in float32, matrices as ``kind`` says."""
    types = gguf.GGMLQuantizationType
    if len(shape) < 2:
        return types.F32
    if name in ("token_embd.weight", "output.weight") and kind in ("q4_0", "q4_1"):
        kind = "q8_0"
    stored = types[KINDS[kind][0]]
    block = gguf.GGML_QUANT_SIZES[stored][0]
    return stored if shape[-1] % block == 0 else types.F16


def _bytes(gguf: Any, shape: tuple[int, ...], stored: Any) -> int:
    block, size = gguf.GGML_QUANT_SIZES[stored]
    numbers = 1
    for length in shape:
        numbers *= length
    return numbers // block * size


def _write(gguf: Any, writer: Any, plans: list[Any], factors: Any, report: Any) -> None:
    """Header, keys, then each tensor: loaded, turned, quantised, written."""
    np = require("numpy")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors is not None:
        writer.write_tensor_data(factors)
    for done, (stored, heads, load) in enumerate(plans, start=1):
        tensor = load()
        if heads:
            tensor = turned(tensor, heads)
        writer.write_tensor_data(gguf.quantize(np.ascontiguousarray(tensor), stored))
        if report:
            report(done, len(plans))
    writer.close()
