"""Attention within documents, family by family, against transformers' own unpacked rows."""

from __future__ import annotations

import math
import re

import pytest
import torch
import transformers
from torch.nn import functional as F

from alpaca_lib.errors import ModelError
from alpaca_lib.records import load_examples
from alpaca_lib.training import attention
from alpaca_lib.training.attention import MATMUL_LENGTH, Documents, attach, is_attached
from alpaca_lib.training.examples import encode
from alpaca_lib.training.loop import train
from alpaca_lib.training.loss import LabelLoss
from alpaca_lib.training.packing import IGNORE, collate, count_labels, join
from alpaca_lib.training.settings import Settings

WORDS, WINDOW = 300, 16
LENGTHS = (5, 33, 1, 20, 47, 2)  # of the documents; two are longer than WINDOW


def config_of(family, **more):
    """A tiny configuration of a family, with large weights so that every token matters."""
    values = {
        "vocab_size": WORDS, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 256, "initializer_range": 0.1,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    groups = {"intermediate_size": 96, "num_key_value_heads": 2}
    own = {
        "Llama": groups,
        "OPT": {"ffn_dim": 96, "word_embed_proj_dim": 32, "dropout": 0.0, "init_std": 0.1},
        "Qwen2": groups,
        "GPTNeoX": {"intermediate_size": 96},
        "Mistral": {**groups, "sliding_window": WINDOW},
        "Gemma2": {
            **groups, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 256,
            "attn_logit_softcapping": 5.0, "final_logit_softcapping": None,
        },
        "GptOss": {**groups, "head_dim": 16, "num_local_experts": 2, "num_experts_per_tok": 2},
        "DeepseekV3": {
            "intermediate_size": 96, "num_key_value_heads": 4, "kv_lora_rank": 16,
            "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 12,
            "first_k_dense_replace": 2,
        },
        "Lfm2": {**groups, "layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
        "Falcon": {"alibi": False},
        "Granite": {**groups, "logits_scaling": 8.0},
    }[family]  # fmt: skip
    return getattr(transformers, f"{family}Config")(**{**values, **own, **more})


def make(family, **more):
    """A random model of a family, without a bias of zero."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config_of(family, **more)).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() < 2:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture(scope="module")
def documents():
    """Encoded documents of LENGTHS; the first third of each has no label."""
    draw = torch.Generator().manual_seed(1)
    rows = []
    for length in LENGTHS:
        ids = torch.randint(3, WORDS, (length,), generator=draw).tolist()
        begin = max(length // 3, 1)
        rows.append({"input_ids": ids, "labels": [IGNORE] * begin + ids[begin:]})
    return rows


def own_loss(model, rows):
    """transformers' loss, one unpacked row after another, summed over the labels."""
    return sum(
        model(**{k: torch.tensor([v]) for k, v in row.items()}, use_cache=False).loss
        * count_labels(row)
        for row in rows
        if count_labels(row)
    )


def packed(rows, multiple=1):
    """All rows in one batch row, and its Documents."""
    row = join(rows, range(len(rows)))
    batch = collate([row], 0, multiple)
    return batch, Documents.of([*row.boundaries[:-1], batch["input_ids"].shape[1]], "cpu")


def gradients(model, loss):
    """The gradients of all parameters by name."""
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def close(ours, theirs, tolerance=1e-5):
    """Whether gradients agree: |ours - theirs| of each tensor beside its own norm; or beside a
    hundredth of the largest, for the biases of keys, whose gradient is zero but for rounding."""
    assert ours and set(ours) == set(theirs)
    floor = max(float(g.norm()) for g in theirs.values()) / 100
    return all(
        float((ours[n] - theirs[n]).norm()) <= tolerance * max(float(theirs[n].norm()), floor)
        for n in theirs
    )


# --- whole models -------------------------------------------------------------------


@pytest.mark.parametrize("multiple", [1, 64], ids=["exact", "padding tail"])
@pytest.mark.parametrize("family", ["Llama", "OPT", "Qwen2", "GPTNeoX", "DeepseekV3"])
def test_packed_is_unpacked(family, multiple, documents):
    """Document by document: loss and gradients of the rows one by one, to 1e-5 in fp32."""
    model = make(family)
    expected = own_loss(model, documents)
    theirs = gradients(model, expected)
    assert attach(model, "cpu", 64) == "document by document" and is_attached(model)
    batch, borders = packed(documents, multiple)
    assert batch["input_ids"].shape[1] == (sum(LENGTHS) if multiple == 1 else 128)
    loss = LabelLoss(model)(**batch, documents=borders)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert close(gradients(model, loss), theirs)


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "GPTNeoX", "Mistral", "Gemma2", "DeepseekV3"])
def test_packed_with_a_mask_is_unpacked(family, documents):
    """transformers' own attention, with its mask from position_ids: the same to 1e-5."""
    model = make(family)
    expected = own_loss(model, documents)
    theirs = gradients(model, expected)
    batch, _ = packed(documents, 64)
    loss = LabelLoss(model)(**batch)
    assert not is_attached(model) and loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert close(gradients(model, loss), theirs)


@pytest.mark.parametrize("own", [True, False], ids=["documents", "mask"])
def test_padded_is_unpacked(own, documents):
    """A row for each document, padded on the right, and no mask: the same to 1e-5."""
    model = make("Llama")
    expected = own_loss(model, documents)
    theirs = gradients(model, expected)
    if own:
        attach(model, "cpu", 64)
    batch = collate([join(documents, [i]) for i in range(len(documents))], 0)
    size = batch["input_ids"].shape
    batch["position_ids"] = torch.arange(size[1]).expand(size)
    loss = LabelLoss(model)(**batch)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert close(gradients(model, loss), theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("own", [True, False], ids=["documents", "mask"])
def test_neighbours_do_not_influence_one_another(own, dtype, documents):
    """The loss of one document has a gradient of exactly 0 at every token of the others and
    of the padding, and stays to the bit when their tokens change."""
    model = make("Llama").to(dtype)
    if own:
        attach(model, "cpu", 64)
    batch, borders = packed(documents, 64)
    borders = borders if own else None
    a, b = sum(LENGTHS[:3]), sum(LENGTHS[:4])
    batch["labels"][:, :a] = batch["labels"][:, b:] = IGNORE
    seen = []
    handle = model.get_input_embeddings().register_forward_hook(
        lambda module, inputs, out: (out.retain_grad(), seen.append(out))[0]
    )
    loss = LabelLoss(model)(**batch, documents=borders)
    loss.backward()
    handle.remove()
    grads = seen[0].grad[0]
    assert not grads[:a].any() and not grads[b:].any()
    assert grads[a:b].any(1).sum() == b - a - 1  # the last token is predicted, and predicts nothing
    batch["input_ids"][:, :a] = 7
    batch["input_ids"][:, b:] = 8
    again = LabelLoss(model)(**batch, documents=borders)
    assert again.item() == loss.item() > 0


@pytest.mark.parametrize(
    "family, more, longest, why",
    [
        ("Mistral", {}, 64, "window of 16 tokens"),
        ("Mistral", {}, WINDOW + 1, "window of 16 tokens"),
        ("Gemma2", {}, 64, "caps attention scores"),
        ("GptOss", {"sliding_window": 256}, 64, "sinks"),
        ("Falcon", {}, 64, "an attention of its own"),
    ],
)
def test_what_it_cannot_do_is_left_alone(family, more, longest, why):
    """Windows shorter than an example, capped scores, sinks: the model keeps its own."""
    model = make(family, **more)
    before = model.config._attn_implementation
    assert why in attach(model, "cpu", longest)
    assert model.config._attn_implementation == before and not is_attached(model)


@pytest.mark.parametrize("more", [{"sliding_window": 64}, {"sliding_window": None}])
def test_a_window_that_no_example_reaches(more, documents):
    """It is attached, and gives what the windowed attention gives."""
    model = make("Mistral", **more)
    expected = own_loss(model, documents).item()
    assert attach(model, "cpu", 64) == "document by document"
    batch, borders = packed(documents)
    assert LabelLoss(model)(**batch, documents=borders).item() == pytest.approx(expected, rel=1e-5)


def test_scores_that_it_cannot_make_are_an_error():
    """A model that hands over sinks or caps all the same: no silent other attention."""
    x = torch.zeros(1, 2, 4, 8)
    for name in attention.REFUSED:
        with pytest.raises(ValueError, match=name):
            attention.documents_attention(
                torch.nn.Identity(), x, x, x, None, **{name: torch.ones(2)}
            )


# --- by hand, in bfloat16 -------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 7, 63, 512, 513])
@pytest.mark.parametrize("heads, groups, value_size", [(4, 4, 16), (6, 2, 16), (4, 4, 8)])
def test_by_hand_is_sdpa(length, heads, groups, value_size, monkeypatch):
    """A document in bfloat16 against torch's SDPA in fp32 on the same values, between two
    neighbours: output and gradients to one step of bfloat16 (1/128), as Euclidean norms."""
    calls, by_hand = [], attention._matmul_attention
    monkeypatch.setattr(
        attention, "_matmul_attention", lambda *a: (calls.append(a[0].shape[2]), by_hand(*a))[1]
    )
    torch.manual_seed(length)
    total, size, a = length + 9, 16, 4  # 4 tokens before, 5 after
    q = torch.randn(1, heads, total, size).bfloat16()
    k = torch.randn(1, groups, total, size).bfloat16()
    v = torch.randn(1, groups, total, value_size).bfloat16()
    out = torch.randn(1, length, heads, value_size).bfloat16()

    def gradients_of(run, *tensors):
        leaves = [t.detach().clone().requires_grad_() for t in tensors]
        result = run(*leaves)
        (result.float() * out.float()).sum().backward()
        return [result.float(), *(leaf.grad.float() for leaf in leaves)]

    def ours(q, k, v):
        borders = Documents((0, a, a + length, total))
        whole, _ = attention.documents_attention(
            torch.nn.Identity(), q, k, v, None, scaling=0.3, documents=borders
        )
        return whole[:, a : a + length]

    def sdpa(q, k, v):
        q, k, v = (x[:, :, a : a + length] for x in (q, k, v))
        k, v = (x.repeat_interleave(heads // groups, 1) for x in (k, v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3).transpose(1, 2)

    exact = gradients_of(sdpa, q.float(), k.float(), v.float())
    mine = gradients_of(ours, q, k, v)
    assert (length in calls) == (length <= MATMUL_LENGTH) and calls[:1] == [a]
    for want, got in zip(exact, mine, strict=True):
        assert got.shape == want.shape and torch.isfinite(got).all()
        allowed = torch.finfo(torch.bfloat16).eps * float(want.norm())
        assert float((got - want).norm()) <= allowed
    for grad in mine[1:]:
        assert not grad[:, :, :a].any() and not grad[:, :, a + length :].any()


# --- models whose loss would be another one ---------------------------------------------


@pytest.fixture
def settings(data_file, tmp_path):
    """Two short packed steps; the model is set by the test."""
    return Settings(
        data_path=str(data_file), output_dir=str(tmp_path / "run"), max_steps=2,
        examples_per_step=4, max_length=96, row_length=192, device="cpu", dtype="float32",
    )  # fmt: skip


def save(family, tokenizer, folder, **more):
    """A tiny model of a family with the real tokenizer's vocabulary, as a folder."""
    config = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, **more}
    if family != "GPTNeoX" and "num_key_value_heads" in config_of(family).to_dict():
        config["num_key_value_heads"] = 2
    model = make(family, **{"vocab_size": len(tokenizer), **config})
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


@pytest.mark.parametrize("family", ["Lfm2", "Falcon", "GptOss"])
def test_a_model_that_would_mix_packed_examples_is_refused(family, settings, tokenizer, tmp_path):
    """A convolution between tokens, or an attention that ignores position_ids: an error before
    any output, with the fix; and with the fix the loss is transformers' own. A family whose
    attention learns to read position_ids (Falcon's did in transformers 5.24) is trained
    packed, to the same loss."""
    model = save(family, tokenizer, tmp_path / "model")
    settings = settings.replace(model=str(tmp_path / "model"), examples_per_step=12)
    rows = [encode(e, tokenizer, max_length=96) for e in load_examples(settings.data_path)]
    with torch.no_grad():
        expected = float(own_loss(model, rows)) / sum(count_labels(row) for row in rows)
    seen = []
    try:
        train(settings, report=seen.append)
    except ModelError as error:
        assert re.search(r"would see one another.*bucket", str(error))
        assert not (tmp_path / "run").exists()
        train(settings.replace(batching="bucket"), report=seen.append)
    else:
        assert family == "Falcon"
    assert seen[0]["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "family, more",
    [("Granite", {}), ("Gemma2", {"final_logit_softcapping": 2.0})],
    ids=["Granite", "Gemma2"],
)
def test_a_model_that_scales_its_logits(family, more, settings, tokenizer, tmp_path):
    """The loss is that of the model's own logits, or the run is refused: never another one."""
    model = save(family, tokenizer, tmp_path / "model", **more)
    settings = settings.replace(model=str(tmp_path / "model"), examples_per_step=12)
    rows = [encode(e, tokenizer, max_length=96) for e in load_examples(settings.data_path)]
    with torch.no_grad():
        expected = float(own_loss(model, rows)) / sum(count_labels(row) for row in rows)
    seen = []
    try:
        train(settings, report=seen.append)
    except ModelError as error:
        assert "head's logits" in str(error) and not (tmp_path / "run").exists()
        return
    assert seen[0]["loss"] == pytest.approx(expected, rel=1e-5) and math.isfinite(expected)
