"""A model or an adapter -> one GGUF file, which llama.cpp runs without Python.

The `gguf` package writes and quantises; nothing is compiled or downloaded. The file also holds
what llama.cpp needs besides the weights: shapes, tokenizer, and a chat template that renders the
prompt that the model was trained on. ``measure_parity`` compares the file with PyTorch.

Weights are read, converted and written one tensor at a time, and the file is renamed to its
final name when it is complete.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from alpaca_lib.errors import ModelError
from alpaca_lib.export.gguf_families import Target, add_shape, rope_tensors
from alpaca_lib.export.gguf_tokenizer import add_tokenizer, safe_name
from alpaca_lib.files import atomic_path
from alpaca_lib.inference.model_pool import as_source
from alpaca_lib.models import ModelSource
from alpaca_lib.models.adapters import CHANGE_THE_BASE, read_adapter_config, warn_of_other_base
from alpaca_lib.optional import require

KINDS = {  # name: (llama.cpp's name, bits per weight of a matrix, scales included)
    "f32": ("F32", 32.0),
    "f16": ("F16", 16.0),
    "bf16": ("BF16", 16.0),
    "q8_0": ("Q8_0", 8.5),
    "q4_0": ("Q4_0", 4.5),
    "q4_1": ("Q4_1", 5.0),
    "q5_0": ("Q5_0", 5.5),
    "q5_1": ("Q5_1", 6.0),
}
COARSE = ("q4_0", "q4_1", "q5_0", "q5_1")  # with these the embedding has 8 bits
NOT_IN_AN_ADAPTER_FILE = {  # a setting of PEFT: what it means
    "use_dora": "DoRA",
    "rank_pattern": "ranks that differ",
    "alpha_pattern": "alphas that differ",
    "modules_to_save": "layers that were trained in full",
    "trainable_token_indices": "tokens that were trained",
}


def export_gguf(
    model: str | ModelSource,
    file: Path,
    kind: str = "f16",
    template: str | None = None,
    report: Callable[[int, int], None] | None = None,
) -> Path:
    """Writes a model as GGUF and returns ``file``; an adapter folder is merged into its base.

    ``kind``: one of KINDS; vectors stay float32, and with 4 or 5 bits the embedding has 8.
    ``template``: the prompt that the model was trained on, for llama.cpp's chat; None keeps the
    model's own. ``report(done, all)`` is called per tensor. Raises ModelError for a model that
    llama.cpp would compute otherwise (see gguf_families), FileError if the file cannot be written.
    """
    if kind not in KINDS:
        raise ModelError(f"kind {kind!r}: use one of {', '.join(KINDS)}")
    gguf, numpy, source = require("gguf"), require("numpy"), as_source(model)
    target = Target(source)
    config = target.config
    with ExitStack() as stack:
        tensors = _open_tensors(source, stack)
        if config.tie_word_embeddings:
            tensors.pop("lm_head.weight", None)
        rows = tensors.get("model.embed_tokens.weight", ((config.vocab_size,), None))[0][0]
        if rows != config.vocab_size:
            raise ModelError(
                f"{source.name}: its config.json has vocab_size {config.vocab_size}, and its "
                f"embedding {rows} rows; they are of two models"
            )
        writer = gguf.GGUFWriter(stack.enter_context(atomic_path(file)), target.architecture)
        tokenizer = source.load_tokenizer()
        writer.add_type("model")
        writer.add_name(safe_name(Path(source.name).name, tokenizer))
        add_shape(writer, config, target.family)
        stored = "ALL_F32" if kind == "f32" else f"MOSTLY_{KINDS[kind][0]}"
        writer.add_file_type(gguf.LlamaFileType[stored])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        add_tokenizer(writer, tokenizer, config.vocab_size, template)
        computed = rope_tensors(config)
        for name, values in computed.items():
            writer.add_tensor(name, values)
        types = {}
        for key, (shape, _) in tensors.items():
            name = target.name(key)
            types[key] = _stored_type(gguf, name, shape, kind)
            block, size = gguf.GGML_QUANT_SIZES[types[key]]  # numbers per block, bytes per block
            nbytes = math.prod(shape) // block * size
            writer.add_tensor_info(name, shape, numpy.dtype(numpy.float32), nbytes, types[key])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for values in computed.values():
            writer.write_tensor_data(values)
        for done, (key, (_, load)) in enumerate(tensors.items(), start=1):
            tensor = numpy.ascontiguousarray(target.convert(key, load().float().numpy()))
            writer.write_tensor_data(gguf.quantize(tensor, types[key]))
            if report:
                report(done, len(tensors))
        writer.close()
    return file


def export_adapter(model: str | ModelSource, file: Path) -> Path:
    """Writes a LoRA adapter as GGUF (float32), for use with its base's GGUF. Returns ``file``.

    llama.cpp scales by alpha / rank; rsLoRA's alpha / sqrt(rank) is folded into alpha. Raises
    ModelError for what llama.cpp cannot express: DoRA, biases, trained embeddings, ranks or
    alphas that differ between matrices. Merge those.
    """
    gguf, source = require("gguf"), as_source(model)
    adapter = _read_adapter_config(source.folder)
    target = Target(source)
    warn_of_other_base(source.folder, source.base.folder, source.base.name)
    rank, alpha = int(adapter["r"]), float(adapter["lora_alpha"])
    with ExitStack() as stack:
        saved = _open_safetensors(find_adapter_file(source.folder), stack)
        writer = gguf.GGUFWriter(stack.enter_context(atomic_path(file)), target.architecture)
        writer.add_type("adapter")
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        scaled = alpha * rank**0.5 if adapter.get("use_rslora") else alpha
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, scaled)
        for key in list(saved.keys()):
            module, _, which = key.removeprefix("base_model.model.").partition(".lora_")
            if which not in ("A.weight", "B.weight"):
                raise ModelError(
                    f"{source.name}: llama.cpp has no place for {key}; merge the adapter"
                )
            name = target.name(f"{module}.weight")
            matrix = saved.get_tensor(key).float().numpy()
            if which == "B.weight":  # W + B A: the rows of B are those of W
                matrix = target.reorder(f"{module}.weight", matrix)
            writer.add_tensor(f"{name}.lora_{which[0].lower()}", matrix)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return file


def find_adapter_file(folder: Path) -> Path:
    """Returns the file of an adapter's weights. Raises ModelError if it is missing or a pickle."""
    file = folder / "adapter_model.safetensors"
    if file.is_file():
        return file
    if (folder / "adapter_model.bin").is_file():
        raise ModelError(
            f"{folder}: its weights are a pickle (adapter_model.bin), which can run code and is "
            "not read; whoever trusts it converts it: torch.load(file, weights_only=True), then "
            "safetensors.torch.save_file(..., 'adapter_model.safetensors')"
        )
    raise ModelError(f"{folder}: no adapter_model.safetensors next to its adapter_config.json")


def _read_adapter_config(folder: Path) -> dict[str, Any]:
    """Returns an adapter's settings. Raises ModelError if llama.cpp cannot express them."""
    if not (folder / "adapter_config.json").is_file():
        raise ModelError(f"{folder}: is no LoRA adapter (no adapter_config.json)")
    adapter = read_adapter_config(folder)
    if adapter.get("peft_type") != "LORA" or not {"r", "lora_alpha"} <= set(adapter):
        raise ModelError(f"{folder}: is an adapter of another kind; a GGUF adapter is LoRA")
    for key, meaning in NOT_IN_AN_ADAPTER_FILE.items():
        if adapter.get(key):
            raise ModelError(f"{folder}: a GGUF adapter cannot hold {meaning}; merge it instead")
    if str(how := adapter.get("init_lora_weights")).startswith(CHANGE_THE_BASE):
        raise ModelError(f"{folder}: was initialised as {how}, which changes the base; merge it")
    return adapter


def _open_tensors(
    source: ModelSource, stack: ExitStack
) -> dict[str, tuple[tuple[int, ...], Callable[[], Any]]]:
    """Returns name -> (shape, function that loads it) for each weight of a model.

    Nothing is loaded yet, except for an adapter: it is merged with its base in memory.
    """
    if source.is_adapter:
        find_adapter_file(source.folder)
        state = source.load_merged()[0].state_dict()
        return {key: (tuple(state[key].shape), partial(state.get, key)) for key in state}
    folder = source.folder
    if not folder.is_dir():
        hub = require("huggingface_hub")
        try:
            wanted = ["model*.safetensors", "*.json", "*.jinja", "tokenizer*"]
            folder = Path(hub.snapshot_download(source.path, allow_patterns=wanted))
        except Exception as error:
            raise ModelError(f"{source.name}: download failed ({type(error).__name__})") from None
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise ModelError(f"{folder}: no model*.safetensors in it")
    tensors: dict[str, tuple[tuple[int, ...], Callable[[], Any]]] = {}
    for file in files:
        saved = _open_safetensors(file, stack)
        for key in list(saved.keys()):
            if not key.endswith("rotary_emb.inv_freq"):
                shape = tuple(saved.get_slice(key).get_shape())
                tensors[key] = shape, partial(saved.get_tensor, key)
    return tensors


def _open_safetensors(file: Path, stack: ExitStack) -> Any:
    """Opens a safetensors file until the stack is closed. Raises ModelError."""
    try:
        return stack.enter_context(require("safetensors").safe_open(file, "pt"))
    except Exception as error:  # safetensors has an exception class of its own
        raise ModelError(f"{file}: cannot be read ({error})") from None


def _stored_type(gguf: Any, name: str, shape: tuple[int, ...], kind: str) -> Any:
    """Returns llama.cpp's type for a tensor: float32 for vectors, ``kind`` for matrices."""
    types = gguf.GGMLQuantizationType
    if len(shape) < 2:
        return types.F32
    if name in ("token_embd.weight", "output.weight") and kind in COARSE:
        kind = "q8_0"
    stored = types[KINDS[kind][0]]
    block = gguf.GGML_QUANT_SIZES[stored][0]
    return stored if shape[-1] % block == 0 else types.F16
