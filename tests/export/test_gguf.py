"""GGUF: files that llama.cpp loads, compared with PyTorch; adapters; what cannot be exported."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from alpaca_lib import models
from alpaca_lib.errors import AdapterError, FileError, ModelError
from alpaca_lib.export import parity
from alpaca_lib.export.gguf import COARSE, KINDS, export_adapter, export_gguf
from alpaca_lib.export.gguf_families import permute
from alpaca_lib.export.parity import measure_parity, post
from alpaca_lib.export.serving import find_gguf, serve_model
from alpaca_lib.models.llama_server import serve
from alpaca_lib.records import Example

gguf = pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")
EXACT = models.Placement("cpu", "float32", "tests")


@pytest.fixture(scope="module")
def tokenizer(build_tokenizer):
    """A small vocabulary: llama.cpp's server sends a probability of every token in it."""
    return build_tokenizer()


@pytest.fixture(scope="module")
def tiny_folder(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    return folder_of(folder, tokenizer, family("llama", tokenizer, tie_word_embeddings=True))


def folder_of(tmp_path, tokenizer, model):
    """A model folder with that model."""
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return str(tmp_path)


def family(name, tokenizer, **options):
    """A tiny random model of a family."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(5)
    config = AutoConfig.for_model(
        name, vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        max_position_embeddings=1024, initializer_range=0.1, bos_token_id=1, eos_token_id=2,
        pad_token_id=2, **options,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"tie_word_embeddings": False, "rope_parameters": LLAMA3}),
        ("mistral", {"sliding_window": None}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen3", {}),
    ],
)
def test_every_family_is_pytorch(name, options, tokenizer, some_examples, tmp_path):
    """A float32 file's greedy answers and probabilities are PyTorch's, family by family."""
    if name == "qwen3":  # once with a vocabulary of 49,152
        tokenizer = models.ModelSource.resolve("smollm2-135m").load_tokenizer()
    model = family(name, tokenizer, **options)
    folder = folder_of(tmp_path / "model", tokenizer, model)
    file = export_gguf(folder, tmp_path / "model.gguf", "f32")
    theirs = models.ModelSource.resolve(
        folder
    ).load_tokenizer()  # transformers has a class of its own for some
    found = measure_parity(model, theirs, file, some_examples[:4], tokens=12)
    assert found.tokenized_alike == found.texts == 4
    assert found.same > 0.9 and found.tokens >= 40
    assert found.kl < 1e-4


@pytest.mark.parametrize("kind", list(KINDS))
def test_kinds(kind, tiny_folder, tokenizer, some_examples, tmp_path):
    """Each kind has its size, and its error: the fewer bits, the more."""
    file = export_gguf(str(tiny_folder), tmp_path / "k.gguf", kind)
    reader = gguf.GGUFReader(file)
    types = {t.name: t.tensor_type.name for t in reader.tensors}
    assert types["blk.0.attn_q.weight"] == KINDS[kind][0]
    assert types["blk.0.attn_norm.weight"] == "F32"
    assert types["token_embd.weight"] == ("Q8_0" if kind in COARSE else KINDS[kind][0])
    bits = 8 * sum(t.n_bytes for t in reader.tensors if t.name.startswith("blk.0.ffn"))
    numbers = sum(t.n_elements for t in reader.tensors if t.name.startswith("blk.0.ffn"))
    assert bits / numbers == pytest.approx(KINDS[kind][1], rel=0.02)
    model = models.ModelSource.resolve(str(tiny_folder)).load_model(EXACT)
    found = measure_parity(model, tokenizer, file, some_examples[:3], tokens=4)
    most = {"f32": 1e-5, "f16": 1e-4, "bf16": 1e-2, "q8_0": 1e-2}.get(kind, 1.0)
    assert found.kl < most
    if kind.startswith("q4"):
        assert found.kl > 1e-3


def test_turned_is_undone_by_transformers(tokenizer):
    """transformers' own reader of GGUF files turns the rows back."""
    from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

    matrix = torch.arange(8 * 3.0).reshape(8, 3).numpy()
    back = LlamaTensorProcessor({})._reverse_permute_weights(permute(matrix, 2), 2)
    assert (back == matrix).all() and not (permute(matrix, 2) == matrix).all()


@pytest.fixture
def adapter(tiny_folder, tmp_path):
    """A folder with a LoRA adapter of the tiny model whose B is not zero."""
    import peft

    def make(**options):
        model = models.ModelSource.resolve(str(tiny_folder)).load_model(EXACT)
        config = peft.LoraConfig(
            task_type="CAUSAL_LM", r=4, lora_alpha=16, target_modules="all-linear", **options
        )
        torch.manual_seed(1)
        adapted = peft.get_peft_model(model, config)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        adapted.peft_config["default"].base_model_name_or_path = str(tiny_folder)
        folder = tmp_path / "adapter"
        adapted.save_pretrained(folder)
        return folder

    return make


@pytest.mark.parametrize("rslora", [False, True])
def test_adapter_file_is_the_merged_model(
    rslora, adapter, tiny_folder, tokenizer, some_examples, tmp_path
):
    """An adapter's GGUF over its base's, and the merged model's GGUF: both are PyTorch's."""
    folder = adapter(use_rslora=rslora)
    base = export_gguf(str(tiny_folder), tmp_path / "base.gguf", "f32")
    lora = export_adapter(str(folder), tmp_path / "lora.gguf")
    merged = export_gguf(str(folder), tmp_path / "merged.gguf", "f32")
    model = models.ModelSource.resolve(str(folder)).load_model(EXACT)
    for file, more in ((base, [lora]), (merged, [])):
        found = measure_parity(model, tokenizer, file, some_examples[:4], tokens=8, adapters=more)
        assert found.kl < 1e-3 and found.same > 0.9
    without = measure_parity(model, tokenizer, base, some_examples[:4], tokens=8)
    assert without.kl > 0.05


def test_what_an_adapter_file_cannot_hold(adapter, tmp_path):
    """DoRA is refused, with the fix, and no file is left."""
    folder = adapter(use_dora=True)
    with pytest.raises(ModelError, match=r"DoRA; merge it"):
        export_adapter(str(folder), tmp_path / "lora.gguf")
    assert not [f for f in tmp_path.iterdir() if "lora" in f.name]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        *(({"lora_alpha": v}, "lora_alpha") for v in (float("nan"), float("inf"), 1e300, None, 0)),
        *(({"r": v}, "adapter_config.json has r") for v in (None, 0, -1, "8", 2.5, True, 10**9)),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base; merge it"),
    ],
)
def test_settings_of_an_adapter_that_cannot_be(values, message, adapter, tmp_path):
    """A rank or alpha that is no number, and matrices of a changed base: no file."""
    folder = adapter()
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | values))
    with pytest.raises((ModelError, AdapterError), match=message):
        export_adapter(str(folder), tmp_path / "lora.gguf")
    if "init_lora_weights" not in values:
        with pytest.raises((ModelError, AdapterError), match=r"adapter"):
            models.ModelSource.resolve(str(folder)).load_model(EXACT)


def test_a_vocabulary_that_is_not_there(tiny_folder, tmp_path):
    """A vocab_size of a hundred million beside a small embedding is refused at once."""
    folder = shutil.copytree(tiny_folder, tmp_path / "lies")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 10**8}))
    with pytest.raises(ModelError, match="vocab_size 100000000, and its embedding"):
        export_gguf(str(folder), tmp_path / "x.gguf")


def test_an_adapter_that_is_a_pickle(adapter, tmp_path):
    """adapter_model.bin is not read: each way of exporting and serving it says so."""
    folder = adapter()
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    for use in (
        lambda: find_gguf(str(folder)),
        lambda: export_adapter(str(folder), tmp_path / "x.gguf"),
        lambda: export_gguf(str(folder), tmp_path / "x.gguf"),
    ):
        with pytest.raises(ModelError, match=r"adapter_model\.bin\), which can run code"):
            use()
    assert not (tmp_path / "x.gguf").exists()


def test_bad_input(tiny_folder, tokenizer, tmp_path):
    """Another family, an unknown kind, another model's tokenizer: one line each, no file."""
    with pytest.raises(ModelError, match="kind 'q2_k': use one of"):
        export_gguf(str(tiny_folder), tmp_path / "x.gguf", "q2_k")
    opt = tmp_path / "opt"
    shutil.copytree(tiny_folder, opt)
    config = json.loads((opt / "config.json").read_text())
    (opt / "config.json").write_text(json.dumps(config | {"model_type": "opt"}))
    with pytest.raises(ModelError, match="is a opt model; this project exports llama"):
        export_gguf(str(opt), tmp_path / "x.gguf")
    small = folder_of(tmp_path / "small", tokenizer, family("llama", range(100)))
    with pytest.raises(ModelError, match="only 100 rows: this tokenizer is not this model's"):
        export_gguf(small, tmp_path / "x.gguf")
    with pytest.raises(FileError, match=r"x\.gguf: cannot be written"):
        (tmp_path / "file").write_text("")
        export_gguf(str(tiny_folder), tmp_path / "file" / "x.gguf")
    assert not [f for f in tmp_path.iterdir() if "x.gguf" in f.name]


def test_damaged_and_foreign_files(tiny_folder, adapter, tmp_path):
    """A cut-off file of weights, an adapter that is no LoRA: one line each."""
    cut = tmp_path / "cut"
    shutil.copytree(tiny_folder, cut)
    weights = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ModelError, match=r"cut.model\.safetensors: cannot be read"):
        export_gguf(str(cut), tmp_path / "x.gguf")
    other = adapter()
    (other / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    with pytest.raises(ModelError, match="adapter of another kind"):
        export_adapter(str(other), tmp_path / "x.gguf")
    assert not (tmp_path / "x.gguf").exists()


def test_a_tokenizer_with_several_chat_templates(tiny_folder, tmp_path):
    """The one that is called default goes into the file."""
    import gguf

    folder = tmp_path / "several"
    shutil.copytree(tiny_folder, folder)
    loaded = models.ModelSource.resolve(str(folder)).load_tokenizer()
    default = "{% for m in messages %}DEFAULT {{ m.content }}<|im_end|>{% endfor %}"
    loaded.chat_template = {"default": default, "tool_use": "TOOLS"}
    loaded.save_pretrained(folder)
    file = export_gguf(str(folder), tmp_path / "x.gguf", "f16")
    field = gguf.GGUFReader(file).fields["tokenizer.chat_template"]
    assert "DEFAULT" in field.contents() and "TOOLS" not in field.contents()


def test_larger_embedding(tokenizer, some_examples, tmp_path):
    """An embedding with rows that no token has: they are there, unused, and change nothing."""
    model = family("llama", range(len(tokenizer) + 37))
    file = export_gguf(folder_of(tmp_path / "m", tokenizer, model), tmp_path / "m.gguf", "f32")
    found = measure_parity(model, tokenizer, file, some_examples[:2], tokens=6)
    assert found.kl < 1e-4 and found.tokenized_alike == 2


def test_serving_a_folder(tiny_folder, tokenizer, tmp_path):
    """A folder is exported once; its chat makes the prompt that it was trained on."""
    openai = pytest.importorskip("openai")
    folder = tmp_path / "trained"
    shutil.copytree(tiny_folder, folder)
    run = {"settings": {"template": "alpaca-lora"}}
    (folder / "run.json").write_text(json.dumps(run))
    with serve_model(str(folder), "f32", slots=1) as address:
        client = openai.OpenAI(base_url=address, api_key="none", max_retries=0)
        said = client.chat.completions.create(
            model="any", messages=[{"role": "user", "content": "Add 2 and {3}."}],
            temperature=0, max_tokens=8,
        )  # fmt: skip
        from alpaca_lib.prompts import render_prompt

        prompt = render_prompt(Example("Add 2 and {3}."), "alpaca-lora")
        root = address.removesuffix("/v1")
        plain = post(f"{root}/completion", {"prompt": prompt, "temperature": 0, "n_predict": 8})
    assert said.choices[0].message.content == plain["content"]
    assert find_gguf(str(folder), "f32", "short") != find_gguf(str(folder), "f32")
    file = find_gguf(str(folder), "f32")
    written = file.stat().st_mtime_ns
    assert find_gguf(str(folder), "f32").stat().st_mtime_ns == written


def test_port_in_use(tiny_folder, tmp_path):
    """A port that another program has is named, with the fix."""
    import socket

    file = export_gguf(str(tiny_folder), tmp_path / "m.gguf")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with (
            pytest.raises(ModelError, match=f"port {port} .* take another"),
            serve(file, port=port),
        ):
            pass


def test_divergence_of_inexactly_normed_probabilities(monkeypatch):
    """A server sums its probabilities in float32: what that adds to all of them is no
    difference between models, and a divergence is never below zero."""
    mine = torch.randn(50, dtype=torch.float64).log_softmax(-1)
    said = [{"id": at, "logprob": float(value) + 2e-4} for at, value in enumerate(mine)]
    reply = {"completion_probabilities": [{"top_logprobs": said}]}
    monkeypatch.setattr(parity, "post", lambda url, body: reply)
    assert parity._divergence(mine, [1], "", 0) == pytest.approx(0, abs=1e-12)
    said[0]["logprob"] -= 1
    assert parity._divergence(mine, [1], "", 0) > 1e-4
