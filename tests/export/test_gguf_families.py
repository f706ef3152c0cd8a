"""Families of models in llama.cpp: equal to PyTorch, or refused; quantisation as in ggml."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import torch

from alpaca_lib import models
from alpaca_lib.errors import ModelError
from alpaca_lib.export.gguf import KINDS, export_adapter, export_gguf
from alpaca_lib.export.gguf_families import FAMILIES, exact_context
from alpaca_lib.export.parity import measure_parity

gguf = pytest.importorskip("gguf")
xllamacpp = pytest.importorskip("xllamacpp")
EXACT = models.Placement("cpu", "float32", "tests")

WINDOW = 24  # tokens, shorter than the prompts
LONG = {
    "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 1000,
    "partial_rotary_factor": 0.75, "short_factor": [1 + n / 20 for n in range(6)],
    "long_factor": [2.0 + n for n in range(6)],
}  # fmt: skip
TWO_ROPES = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
}
CASES = {  # name: (model_type, settings)
    "gemma2": ("gemma2", {"sliding_window": WINDOW, "query_pre_attn_scalar": 16}),
    "gemma2-27b": (
        "gemma2",
        {"num_hidden_layers": 46, "hidden_size": 32, "intermediate_size": 32,
         "sliding_window": WINDOW, "query_pre_attn_scalar": 8},
    ),
    "gemma3": (
        "gemma3_text",
        {"num_hidden_layers": 7, "sliding_window": WINDOW, "query_pre_attn_scalar": 16,
         "final_logit_softcapping": 5.0, "rope_parameters": TWO_ROPES},
    ),
    "phi3": ("phi3", {}),
    "phi4-mini": (
        "phi3",
        {"rope_parameters": LONG, "original_max_position_embeddings": 1000,
         "tie_word_embeddings": True},
    ),
}  # fmt: skip


@pytest.fixture
def save(build_tokenizer, tmp_path):
    """A function that saves a tiny random model of a family, and returns its folder."""
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = build_tokenizer()

    def save(model_type, **options):
        torch.manual_seed(5)
        values = {
            "vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 128,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 2048, "initializer_range": 0.1, "bos_token_id": 1,
            "eos_token_id": 2, "pad_token_id": 2,
        }  # fmt: skip
        if model_type != "phi3":
            values["head_dim"] = 16
        config = AutoConfig.for_model(model_type, **{**values, **options})
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        center = 1.0 - FAMILIES[model_type].norm_offset if model_type in FAMILIES else 1.0
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):  # an offset that is forgotten must show
                torch.nn.init.normal_(parameter, center, 0.2)
        folder = tmp_path / "model"
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return save


def loaded(folder):
    """The folder's model in float32, and its tokenizer."""
    source = models.ModelSource.resolve(str(folder))
    return source.load_model(EXACT), source.load_tokenizer()


@pytest.mark.parametrize("case", CASES)
def test_a_family_is_pytorch(case, save, some_examples, tmp_path):
    """Greedy answers and probabilities are PyTorch's, with texts longer than the window."""
    model_type, options = CASES[case]
    folder = save(model_type, **options)
    file = export_gguf(str(folder), tmp_path / "m.gguf", "f32")
    found = measure_parity(*loaded(folder), file, some_examples[:4], tokens=12)
    assert found.tokenized_alike == found.texts == 4
    assert found.same > 0.9 and found.tokens >= 40
    assert found.kl < 1e-5


@pytest.mark.parametrize("case", ["gemma2", "gemma3", "phi3", "phi4-mini"])
def test_an_adapter_of_a_family(case, save, some_examples, tmp_path):
    """An adapter of all linear layers, fused ones too: over its base's file, and merged."""
    import peft

    model_type, options = CASES[case]
    folder = save(model_type, **options)
    base = export_gguf(str(folder), tmp_path / "base.gguf", "f32")
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=16, target_modules="all-linear")
    torch.manual_seed(1)
    adapted = peft.get_peft_model(loaded(folder)[0], config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.peft_config["default"].base_model_name_or_path = str(folder)
    adapted.save_pretrained(tmp_path / "adapter")
    lora = export_adapter(str(tmp_path / "adapter"), tmp_path / "lora.gguf")
    merged = export_gguf(str(tmp_path / "adapter"), tmp_path / "merged.gguf", "f32")
    model, tokenizer = loaded(tmp_path / "adapter")
    examples = some_examples[:2]
    for file, adapters in ((base, [lora]), (merged, [])):
        found = measure_parity(model, tokenizer, file, examples, tokens=6, adapters=adapters)
        assert found.kl < 1e-5
    assert measure_parity(model, tokenizer, base, examples, tokens=6).kl > 0.05


@pytest.mark.parametrize(
    ("model_type", "options", "message"),
    [
        ("gemma2", {"query_pre_attn_scalar": 256}, "the root of 16, and .*scalar 256"),
        ("gemma2", {"final_logit_softcapping": None}, "always has final_logit_softcapping"),
        ("gemma2", {"hidden_activation": "silu"}, "has hidden_activation gelu_pytorch_tanh"),
        ("gemma2", {"tie_word_embeddings": False}, "has tie_word_embeddings True"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping None"),
        ("gemma3_text", {"layer_types": ["full_attention"] * 2}, r"every 6\. layer"),
        ("phi3", {"head_dim": 32}, "128 in place of 64"),
        ("gemma", {}, "Gemma 1 is not: use Gemma 2 or 3"),
    ],
)  # fmt: skip
def test_what_llama_cpp_computes_otherwise(model_type, options, message, save, tmp_path):
    """A setting that llama.cpp has fixed to another value: refused, with its name, no file."""
    if model_type in ("gemma2", "gemma3_text"):
        options = {"query_pre_attn_scalar": 16, **options}
    folder = save(model_type, **options)
    with pytest.raises(ModelError, match=message):
        export_gguf(str(folder), tmp_path / "x.gguf", "f32")
    assert not [file for file in tmp_path.iterdir() if "x.gguf" in file.name]


@pytest.mark.parametrize(
    ("model_type", "options", "tokens"),
    [
        ("mistral", {"sliding_window": 300}, 300),
        ("mistral", {"sliding_window": None}, 2048),
        ("phi3", {"sliding_window": 2047}, 2047),
        ("gemma2", {"sliding_window": WINDOW, "query_pre_attn_scalar": 16}, 2048),
        (*CASES["phi4-mini"], 1000),
    ],
)
def test_context_up_to_which_both_are_equal(model_type, options, tokens, save, tmp_path):
    """A window that llama.cpp does not have, and LongRoPE: the file's context ends there."""
    folder = save(model_type, **options)
    file = export_gguf(str(folder), tmp_path / "m.gguf", "f32")
    fields = gguf.GGUFReader(file).fields
    (context,) = (f.contents() for name, f in fields.items() if name.endswith(".context_length"))
    assert context == tokens
    config = models.ModelSource.resolve(str(folder)).config
    assert exact_context(config, FAMILIES[model_type]) == tokens


@pytest.fixture(scope="module")
def ggml():
    """ggml's own quantisation, in the library of xllamacpp."""
    files = list(Path(xllamacpp.__file__).parent.glob("*.so"))
    library = ctypes.CDLL(str(files[0])) if files else None
    if not hasattr(library, "ggml_quantize_chunk"):
        pytest.skip("this build of xllamacpp does not export ggml_quantize_chunk")
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p,
    ]  # fmt: skip

    def quantize(array, kind):
        stored = gguf.GGMLQuantizationType[KINDS[kind][0]]
        block, size = gguf.GGML_QUANT_SIZES[stored]
        result = bytes(array.size // block * size)
        library.ggml_quantize_chunk(stored, array.ctypes.data, result, 0, *array.shape, None)
        return result

    return quantize


@pytest.mark.parametrize("kind", ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1"])
def test_quantisation_is_ggmls(kind, ggml, make_tiny, build_tokenizer, tmp_path):
    """Every matrix of a file has the bytes that ggml's own quantisation writes."""
    tokenizer = build_tokenizer()
    model = make_tiny(tied=False, vocab_size=len(tokenizer))
    with torch.no_grad():  # blocks of zeros, of one value, of huge and of tiny numbers
        matrix = model.model.layers[0].mlp.gate_proj.weight
        matrix[0], matrix[1], matrix[2:4] = 0, -0.25, matrix[2:4] * 1e4
        matrix[4:6] *= 1e-6
    model.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    file = export_gguf(str(tmp_path / "m"), tmp_path / "m.gguf", kind)
    plain = export_gguf(str(tmp_path / "m"), tmp_path / "f.gguf", "f32")
    values = {tensor.name: tensor.data for tensor in gguf.GGUFReader(plain).tensors}
    compared = 0
    for tensor in gguf.GGUFReader(file).tensors:
        if tensor.tensor_type.name == KINDS[kind][0]:
            assert tensor.data.tobytes() == ggml(values[tensor.name].copy(), kind), tensor.name
            compared += 1
    assert compared >= 14
