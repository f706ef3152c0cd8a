"""Families of models in llama.cpp: one table of names, numbers and what llama.cpp has fixed.

A family's code in llama.cpp leaves some settings no choice (its activation, which layers have a
sliding window). A model with another value is refused: llama.cpp would run it, with other logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from alpaca_lib.errors import ModelError
from alpaca_lib.models import ModelSource
from alpaca_lib.optional import require

SUFFIXES = (".weight", ".bias")


@dataclass(frozen=True)
class Family:
    """What differs between families. ``label``: the models that people know it by."""

    architecture: str  # llama.cpp's name
    label: str
    permutes: bool = False  # queries and keys are rotated by neighbouring rows, as in Meta's files
    norm_offset: float = 0.0  # a norm multiplies by this plus its weight
    window_period: int = 0  # every n-th layer attends to everything, the others to a window; 0:
    # llama.cpp has no window
    layers_of_27b: int = 0  # with this many layers the scale is that of hidden_size / heads
    rope_types: tuple[str, ...] = ("default", "linear", "llama3")
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)  # setting: what it may be


_GEMMA: dict[str, tuple[Any, ...]] = {
    "hidden_activation": ("gelu_pytorch_tanh",),
    "use_bidirectional_attention": (None, False),
    "tie_word_embeddings": (True,),
    "attention_bias": (False,),
}
FAMILIES = {  # transformers' model_type
    "llama": Family("llama", "LLaMA, SmolLM", permutes=True),
    "mistral": Family("llama", "Mistral", permutes=True),
    "qwen2": Family("qwen2", "Qwen 2 and 2.5"),
    "qwen3": Family("qwen3", "Qwen 3"),
    "gemma2": Family(
        "gemma2",
        "Gemma 2",
        norm_offset=1.0,
        window_period=2,
        layers_of_27b=46,
        rope_types=("default",),
        fixed=_GEMMA,
    ),
    "gemma3_text": Family(
        "gemma3",
        "Gemma 3, text only",
        norm_offset=1.0,
        window_period=6,
        layers_of_27b=62,
        rope_types=("default", "linear"),
        fixed={**_GEMMA, "attn_logit_softcapping": (None,)},
    ),
    "phi3": Family(
        "phi3",
        "Phi-3, Phi-4, Phi-4-mini",
        rope_types=("default", "longrope"),
        fixed={"hidden_act": ("silu",)},
    ),
}
OTHERS = {  # families that are close to one of these: what to do instead
    "gemma": "Gemma 1 is not: use Gemma 2 or 3",
    "gemma3": "it also reads images; save its text part alone, which is a gemma3_text model",
    "phi4_multimodal": "it also reads images; use Phi-4-mini",
}


def describe_families() -> str:
    """Returns the families that are exported, for --help."""
    return "; ".join(family.label for family in FAMILIES.values())


def get_family(source: ModelSource) -> Family:
    """Returns a model's family. Raises ModelError, with the fix, for one that is not exported."""
    config = source.base.config
    family = FAMILIES.get(config.model_type)
    if family is None:
        hint = OTHERS.get(config.model_type, "for others llama.cpp has its own converter")
        raise ModelError(
            f"{source.base.name}: is a {config.model_type} model; this project exports "
            f"{', '.join(FAMILIES)} ({describe_families()}); {hint}"
        )
    for what in _differences(family, config):
        raise ModelError(
            f"{source.base.name}: llama.cpp's {family.architecture} {what}; it would compute "
            "other answers, so no file is written: use PyTorch or vLLM"
        )
    return family


def _differences(family: Family, config: Any) -> list[str]:
    """Returns what llama.cpp has fixed for a family, and the model has otherwise."""
    found = []
    for setting, allowed in family.fixed.items():
        if (value := getattr(config, setting, None)) not in allowed:
            found.append(f"has {setting} {allowed[0]}, and its config.json {value}")
    for name, rope in _ropes(config).items():
        if rope["rope_type"] not in (family.rope_types if name != "window" else ("default",)):
            found.append(f"has no rotary embedding of type {rope['rope_type']}")
    if family.architecture == "gemma2":
        for setting in ("attn_logit_softcapping", "final_logit_softcapping"):
            if not getattr(config, setting):
                found.append(f"always has {setting}, and its config.json none")
    if family.window_period:
        expected = [
            "sliding_attention" if (layer + 1) % family.window_period else "full_attention"
            for layer in range(config.num_hidden_layers)
        ]
        if list(config.layer_types) != expected or not config.sliding_window:
            found.append(
                f"has a sliding window in all but every {family.window_period}. layer, and its "
                "config.json other layer_types"
            )
        scale = head_dim(config)
        if config.num_hidden_layers == family.layers_of_27b:
            scale = config.hidden_size // config.num_attention_heads
        if config.query_pre_attn_scalar != scale:
            found.append(
                f"divides attention scores by the root of {scale}, and its config.json has "
                f"query_pre_attn_scalar {config.query_pre_attn_scalar}"
            )
    if family.architecture == "phi3":
        width = config.num_attention_heads * head_dim(config)
        if width != config.hidden_size:
            found.append(
                f"has heads as wide as hidden_size together, and its config.json {width} in place "
                f"of {config.hidden_size}"
            )
    return found


def head_dim(config: Any) -> int:
    """Returns the width of an attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _ropes(config: Any) -> dict[str, dict[str, Any]]:
    """Returns the settings of the rotary embedding, "main" and, if it has its own, "window"."""
    found = config.rope_parameters
    if "full_attention" not in found:
        return {"main": found}
    return {"main": found["full_attention"], "window": found["sliding_attention"]}


def exact_context(config: Any, family: Family) -> int:
    """Returns the tokens up to which llama.cpp computes what PyTorch does.

    llama.cpp has no sliding window in some families, and it takes LongRoPE's factors by the size
    of the context, where PyTorch takes them by the length of the text.
    """
    most = int(config.max_position_embeddings)
    window = getattr(config, "sliding_window", None)
    if window and not family.window_period:
        most = min(most, int(window))
    rope = _ropes(config)["main"]
    if rope["rope_type"] == "longrope":
        most = min(most, int(rope["original_max_position_embeddings"]))
    return most


def add_shape(writer: Any, config: Any, family: Family) -> None:
    """Adds a model's dimensions, attention and rotary embedding to a GGUFWriter."""
    gguf = require("gguf")
    ropes, width = _ropes(config), head_dim(config)
    rope = ropes["main"]
    writer.add_context_length(exact_context(config, family))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(int(width * rope.get("partial_rotary_factor", 1.0)))
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    if "window" in ropes:
        writer.add_rope_freq_base_swa(ropes["window"]["rope_theta"])
    if family.window_period:
        writer.add_sliding_window(config.sliding_window)
    elif family.architecture == "phi3":
        writer.add_sliding_window(0)  # llama.cpp's sign of a Phi without a window
    if softcap := getattr(config, "attn_logit_softcapping", None):
        writer.add_attn_logit_softcapping(softcap)
    if softcap := getattr(config, "final_logit_softcapping", None):
        writer.add_final_logit_softcapping(softcap)
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "longrope":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        writer.add_rope_scaling_attn_factors(_long_rope(config)[1])


def rope_tensors(config: Any) -> dict[str, Any]:
    """Returns name -> divisors of the rotary embedding's frequencies, [rotated / 2], float32."""
    torch = require("torch")
    rope = _ropes(config)["main"]
    if rope["rope_type"] == "llama3":
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
        width = head_dim(config)
        exponents = torch.arange(0, width, 2).float() / width
        return {"rope_freqs.weight": (rope["rope_theta"] ** -exponents / scaled).float().numpy()}
    if rope["rope_type"] == "longrope":
        return {
            f"rope_factors_{name}.weight": torch.tensor(rope[f"{name}_factor"]).float().numpy()
            for name in ("long", "short")
        }
    return {}


def _long_rope(config: Any) -> tuple[Any, float]:
    """Returns transformers' frequencies of LongRoPE and the factor of its sines and cosines."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    frequencies, factor = ROPE_INIT_FUNCTIONS["longrope"](config, require("torch").device("cpu"))
    return frequencies, float(factor)


def permute(matrix: Any, heads: int) -> Any:
    """Reorders the rows of a query or key projection as in Meta's files.

    The halves of a head, which transformers rotates against each other, become neighbours:
    rows [0, 1, 2, 3] of a head -> [0, 2, 1, 3].
    """
    half = matrix.shape[0] // heads // 2
    return matrix.reshape(heads, 2, half, *matrix.shape[1:]).swapaxes(1, 2).reshape(matrix.shape)


class Target:
    """llama.cpp's side of a model: names, row orders and values of its tensors."""

    def __init__(self, source: ModelSource) -> None:
        """Raises ModelError for a model that llama.cpp cannot compute (see get_family)."""
        gguf = require("gguf")
        self.source, self.config, self.family = source, source.base.config, get_family(source)
        self.architecture = self.family.architecture
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

    def convert(self, key: str, tensor: Any) -> Any:
        """Returns a tensor with llama.cpp's order of rows, and a norm with its offset."""
        if self.family.norm_offset and key.endswith("norm.weight"):
            tensor = tensor + self.family.norm_offset
        return self.reorder(key, tensor)

    def reorder(self, key: str, matrix: Any) -> Any:
        """Returns a tensor with its rows in llama.cpp's order."""
        heads = {
            "q_proj": self.config.num_attention_heads,
            "k_proj": self.config.num_key_value_heads,
        }.get(key.split(".")[-2])
        return permute(matrix, heads) if heads and self.family.permutes else matrix
