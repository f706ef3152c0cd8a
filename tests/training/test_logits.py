"""What models do with their head's output: scales and caps are in the loss, or refused."""

from __future__ import annotations

import shutil

import pytest
import torch
import transformers
from torch.nn import functional as F

from alpaca_lib.errors import ModelError
from alpaca_lib.training.examples import count_labels, load_data
from alpaca_lib.training.loop import train
from alpaca_lib.training.settings import Settings


def _kinds():
    """Configurations of small random models whose logits are not their head's output."""
    sizes = {
        "vocab_size": 461, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "initializer_range": 0.3,
        "head_dim": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    few = {k: v for k, v in sizes.items() if k != "head_dim"}
    return {
        "gemma2": transformers.Gemma2Config(**sizes, final_logit_softcapping=5.0),
        "cohere": transformers.CohereConfig(**few, logit_scale=0.25),
        "granite": transformers.GraniteConfig(**few, logits_scaling=4.0, residual_multiplier=0.5),
        "llama": transformers.LlamaConfig(**few),
    }


@pytest.fixture(params=["gemma2", "cohere", "granite", "llama"])
def transforming(request, small_folder, tmp_path):
    """A folder with one of them, its model in float32, and whether it changes the logits."""
    config = _kinds()[request.param]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    folder = shutil.copytree(small_folder, tmp_path / request.param)
    model.save_pretrained(folder)
    return folder, model, request.param != "llama"


def test_scaled_and_capped_logits_are_in_the_loss(transforming, data_file, tmp_path):
    """Gemma 2, Cohere, Granite: the first loss is transformers' own, not that of the head's
    bare output, which differs."""
    folder, model, changes = transforming
    settings = Settings(
        data_path=str(data_file), output_dir=str(tmp_path / "run"), model=str(folder), max_steps=1,
        examples_per_step=12, max_length=96, row_length=96, device="cpu", dtype="float32",
        learning_rate=1e-4,
    )  # fmt: skip
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    total = bare = count = 0.0
    for row in load_data(settings, tokenizer).rows:
        ids, labels = (torch.tensor([row[k]]) for k in ("input_ids", "labels"))
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1]
            hidden = model.base_model(input_ids=ids).last_hidden_state
            head = model.get_output_embeddings()(hidden)[0, :-1]
        total += float(F.cross_entropy(logits, labels[0, 1:], reduction="sum"))
        bare += float(F.cross_entropy(head, labels[0, 1:], reduction="sum"))
        count += count_labels(row)
    lines = []
    train(settings, report=lines.append)
    assert lines[0]["loss"] == pytest.approx(total / count, rel=1e-5)
    assert (abs(bare - total) > 1e-2 * total) is changes


@pytest.mark.parametrize("size", [0.3, 1e-4], ids=["large", "small"])
def test_an_unknown_transformation_is_refused(
    make_tiny, small, small_folder, data_file, tmp_path, monkeypatch, size
):
    """A cap that no configuration names, with logits so small that the loss hardly shows it."""
    folder = shutil.copytree(small_folder, tmp_path / "capped")
    make_tiny(vocab_size=461, initializer_range=size, **small).save_pretrained(folder)
    settings = Settings(
        data_path=str(data_file), output_dir=str(tmp_path / "run"), model=str(folder), max_steps=1,
        max_length=96, row_length=96, device="cpu", dtype="float32",
    )  # fmt: skip
    forward = transformers.LlamaForCausalLM.forward

    for change in (lambda z: 30 * torch.tanh(z / 30), lambda z: 1.02 * z):

        def changed(self, *arguments, change=change, **more):
            found = forward(self, *arguments, **more)
            found.logits = change(found.logits)
            return found

        monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", changed)
        with pytest.raises(ModelError, match="changes its head's output"):
            train(settings)
    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", forward)
    train(settings)


def test_a_load_balancing_loss_is_refused(small_folder, data_file, tmp_path):
    """Experts whose configuration asks for the router's loss, which would be left out."""
    config = transformers.MixtralConfig(
        vocab_size=461, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, num_local_experts=2,
        output_router_logits=True,
    )  # fmt: skip
    folder = shutil.copytree(small_folder, tmp_path / "experts")
    transformers.MixtralForCausalLM(config).save_pretrained(folder)
    settings = Settings(
        data_path=str(data_file), output_dir=str(tmp_path / "run"), model=str(folder), max_steps=1,
        max_length=96, row_length=96, device="cpu", dtype="float32",
    )  # fmt: skip
    with pytest.raises(ModelError, match="output_router_logits"):
        train(settings)
    file = folder / "config.json"
    file.write_text(file.read_text().replace('"output_router_logits": true',
                                             '"output_router_logits": false'))  # fmt: skip
    train(settings)
