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
from alpaca_lib.export.gguf_tokenizer import add_tokenizer
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
}
# transformers' model_type: (llama.cpp's architecture, whether its rotary embedding rotates
# neighbouring rows, as Meta's files, where transformers rotates the two halves of a head).
FAMILIES = {
    "llama": ("llama", True),
    "mistral": ("llama", True),
    "qwen2": ("qwen2", False),
    "qwen3": ("qwen3", False),
}
SUFFIXES = (".weight", ".bias")
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

    ``kind``: one of KINDS; vectors stay float32, and with 4 bits the embedding has 8, as in
    llama.cpp's own tool. ``template``: the prompt that the model was trained on, for llama.cpp's
    chat; None keeps the model's own. ``report(done, all)`` is called per tensor. Raises
    ModelError for a model that is not of FAMILIES, FileError if the file cannot be written.
    """
    if kind not in KINDS:
        raise ModelError(f"kind {kind!r}: use one of {', '.join(KINDS)}")
    gguf, numpy, source = require("gguf"), require("numpy"), as_source(model)
    target = _Target(source)
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
        _add_shape(gguf, writer, Path(source.name).name, config, kind)
        add_tokenizer(writer, source.load_tokenizer(), config.vocab_size, template)
        rope_factors = _rope_factors(config)
        if rope_factors is not None:
            writer.add_tensor("rope_freqs.weight", rope_factors)
        types = {}
        for key, (shape, _) in tensors.items():
            name = target.name(key)
            types[key] = stored = _stored_type(gguf, name, shape, kind)
            block, size = gguf.GGML_QUANT_SIZES[stored]  # numbers per block, bytes per block
            nbytes = math.prod(shape) // block * size
            writer.add_tensor_info(name, shape, numpy.dtype(numpy.float32), nbytes, stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if rope_factors is not None:
            writer.write_tensor_data(rope_factors)
        for done, (key, (_, load)) in enumerate(tensors.items(), start=1):
            tensor = numpy.ascontiguousarray(target.reorder(key, load().float().numpy()))
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
    target = _Target(source)
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


def permute(matrix: Any, heads: int) -> Any:
    """Reorders the rows of a query or key projection as in Meta's files.

    The halves of a head, which transformers rotates against each other, become neighbours:
    rows [0, 1, 2, 3] of a head -> [0, 2, 1, 3].
    """
    half = matrix.shape[0] // heads // 2
    return matrix.reshape(heads, 2, half, *matrix.shape[1:]).swapaxes(1, 2).reshape(matrix.shape)


class _Target:
    """llama.cpp's side of a model: ``architecture``, and the names and row orders of tensors."""

    def __init__(self, source: ModelSource) -> None:
        gguf = require("gguf")
        self.source, self.config = source, source.base.config
        if self.config.model_type not in FAMILIES:
            raise ModelError(
                f"{source.base.name}: is a {self.config.model_type} model; this project exports "
                f"{', '.join(FAMILIES)}. For others llama.cpp has its own converter"
            )
        self.architecture, self._permutes = FAMILIES[self.config.model_type]
        known = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
        layers = self.config.num_hidden_layers
        self._names = gguf.get_tensor_name_map(known[self.architecture], layers)

    def name(self, key: str) -> str:
        """Returns llama.cpp's name for a tensor. Raises ModelError if it has none."""
        name: str | None = self._names.get_name(key, SUFFIXES)
        if name is None:
            what = f"{self.source.name}: llama.cpp's {self.architecture} has no place for {key}"
            raise ModelError(what + ("; merge the adapter" if self.source.is_adapter else ""))
        return name

    def reorder(self, key: str, matrix: Any) -> Any:
        """Returns a tensor with its rows in llama.cpp's order."""
        heads = {
            "q_proj": self.config.num_attention_heads,
            "k_proj": self.config.num_key_value_heads,
        }.get(key.split(".")[-2])
        return permute(matrix, heads) if heads and self._permutes else matrix


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


def _add_shape(gguf: Any, writer: Any, name: str, config: Any, kind: str) -> None:
    """Adds a model's dimensions, rotary embedding and kind to a GGUFWriter."""
    rope = config.rope_parameters
    head_dim = _head_dim(config)
    writer.add_type("model")
    writer.add_name(name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif rope["rope_type"] not in ("default", "llama3"):
        raise ModelError(f"a rotary embedding of type {rope['rope_type']} is not exported here")
    stored = "ALL_F32" if kind == "f32" else f"MOSTLY_{KINDS[kind][0]}"
    writer.add_file_type(gguf.LlamaFileType[stored])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _rope_factors(config: Any) -> Any:
    """Returns the divisors of the frequencies of Llama 3's rotary embedding; None for others."""
    if config.rope_parameters["rope_type"] != "llama3":
        return None
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    torch = require("torch")
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    head_dim = _head_dim(config)
    exponents = torch.arange(0, head_dim, 2).float() / head_dim
    return (config.rope_parameters["rope_theta"] ** -exponents / scaled).numpy().astype("float32")


def _stored_type(gguf: Any, name: str, shape: tuple[int, ...], kind: str) -> Any:
    """Returns llama.cpp's type for a tensor: float32 for vectors, ``kind`` for matrices."""
    types = gguf.GGMLQuantizationType
    if len(shape) < 2:
        return types.F32
    if name in ("token_embd.weight", "output.weight") and kind in ("q4_0", "q4_1"):
        kind = "q8_0"
    stored = types[KINDS[kind][0]]
    block = gguf.GGML_QUANT_SIZES[stored][0]
    return stored if shape[-1] % block == 0 else types.F16
