"""Adapters merged, started from, and refused; PEFT and transformers alone are the oracles."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from alpaca_lib import models
from alpaca_lib.errors import ModelError
from alpaca_lib.inference.model_pool import ModelPool
from alpaca_lib.training import adapters
from alpaca_lib.training.__main__ import main
from alpaca_lib.training.loop import train
from alpaca_lib.training.settings import Settings

peft = pytest.importorskip("peft")
IDS = torch.arange(50, 90)[None]


@pytest.fixture
def settings(small_folder, data_file, tmp_path):
    """Three steps of LoRA with a rate that shows."""
    return Settings(
        data_path=str(data_file), output_dir=str(tmp_path / "run"), model=str(small_folder),
        method="lora", lora_rank=4, lora_dropout=0.0, max_steps=3, examples_per_step=6,
        max_length=96, row_length=192, learning_rate=5e-2, device="cpu", dtype="float32",
    )  # fmt: skip


@pytest.fixture
def logits():
    """A function: the logits of a model for some ids, in evaluation mode."""

    def of(model):
        with torch.no_grad():
            return model.eval()(input_ids=IDS).logits

    return of


def plain(folder):
    """The model of a folder as anyone loads it, in float32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


# --- merge --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lora_targets": "all-linear", "lora_alpha": 3},
        {"lora_rs": True, "lora_rank": 8},
        {"lora_dora": True, "lora_targets": "all-linear"},
    ],
    ids=["lora", "all-linear", "rslora", "dora"],
)
def test_merged_model_is_the_adapters(settings, small_folder, logits, tmp_path, changes):
    """The merged folder loads without PEFT, and its logits are those of PEFT's model to 1e-5
    of the largest; the base's are other ones."""
    folder = train(settings.replace(**changes))
    adapted = logits(peft.PeftModel.from_pretrained(plain(small_folder), folder))
    base = logits(plain(small_folder))
    assert adapters.merge(str(folder), tmp_path / "merged") == tmp_path / "merged"
    assert not list((tmp_path / "merged").glob("adapter*"))
    merged = logits(plain(tmp_path / "merged"))
    largest = float(adapted.abs().max())
    assert float((merged - adapted).abs().max()) <= 1e-5 * largest
    assert float((base - adapted).abs().max()) >= 1e-2 * largest
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer("Sort the words.") == AutoTokenizer.from_pretrained(folder)("Sort the words.")


def test_merged_in_the_dtype_of_the_base(settings, small_folder, tmp_path):
    """A base in bfloat16 stays one: the sums are float32's, rounded once."""
    shutil.copytree(small_folder, tmp_path / "base")
    plain(small_folder).bfloat16().save_pretrained(tmp_path / "base")
    folder = train(settings.replace(model=str(tmp_path / "base"), dtype="bfloat16"))
    adapters.merge(str(folder), tmp_path / "merged")
    saved = load_file(tmp_path / "merged" / "model.safetensors")
    assert {t.dtype for t in saved.values()} == {torch.bfloat16}
    exact = peft.PeftModel.from_pretrained(plain(tmp_path / "base"), folder).merge_and_unload()
    state = {n: t.bfloat16() for n, t in exact.state_dict().items()}
    assert all(tensor.equal(state[name]) for name, tensor in saved.items())
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16"


def spoil(folder, how):
    """An adapter folder with one thing wrong."""
    file, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    values = json.loads(config.read_text())
    if how == "no config":
        config.unlink()
    elif how in ("torn config", "a list for a config"):
        config.write_text("{" if how == "torn config" else "[]")
    elif how == "no base":
        config.write_text(json.dumps({**values, "base_model_name_or_path": None}))
    elif how == "a base that is gone":
        config.write_text(json.dumps({**values, "base_model_name_or_path": str(folder / "gone")}))
    elif how == "no weights":
        file.unlink()
    elif how == "torn weights":
        file.write_bytes(file.read_bytes()[:-9])
    elif how == "half of the weights":
        save_file({n: t for n, t in load_file(file).items() if "layers.0" in n}, file)
    elif how == "weights of a larger model":
        more = {n.replace("layers.0", "layers.7"): t for n, t in load_file(file).items()}
        save_file(load_file(file) | {n: t.clone() for n, t in more.items()}, file)
    elif how == "other shapes":
        save_file({n: t.repeat(2, 1) for n, t in load_file(file).items()}, file)
    elif how == "443 bytes":  # as Alpaca-LoRA's users got
        save_file({}, file)
    elif how == "another rank":
        config.write_text(json.dumps({**values, "r": 8}))
    elif how == "a scale of its own":
        config.write_text(json.dumps({**values, "alpha_pattern": {"q_proj": 99}}))
    elif how == "a .bin alone":
        torch.save(load_file(file), folder / "adapter_model.bin")
        file.unlink()


@pytest.fixture(scope="module")
def trained_adapter(small_folder, data_file, tmp_path_factory):
    """A trained adapter of the small model, rank 4 on q and v."""
    return train(
        Settings(
            data_path=str(data_file), output_dir=str(tmp_path_factory.mktemp("adapter")),
            model=str(small_folder), method="lora", lora_rank=4, lora_dropout=0.0, max_steps=2,
            max_length=96, row_length=192, learning_rate=5e-2, device="cpu", dtype="float32",
        )
    )  # fmt: skip


BROKEN = ["no config", "torn config", "a list for a config", "no weights", "torn weights"]
BROKEN += ["half of the weights", "weights of a larger model", "other shapes", "443 bytes"]
BROKEN += ["another rank"]


@pytest.mark.parametrize("how", [*BROKEN, "no base", "a base that is gone"])
def test_a_broken_adapter_is_not_merged(trained_adapter, tmp_path, capsys, monkeypatch, how):
    """One error line that names the adapter or its base, and no folder; never half a merge."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = shutil.copytree(trained_adapter, tmp_path / "broken")
    spoil(folder, how)
    assert main(["merge", str(folder), str(tmp_path / "merged")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "broken" in error and "Traceback" not in error
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("how", ["half of the weights", "443 bytes", "no weights"])
def test_a_broken_adapter_is_not_used(trained_adapter, tmp_path, monkeypatch, how):
    """Loading for answers: an error, and not the base with a warning."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = shutil.copytree(trained_adapter, tmp_path / "broken")
    spoil(folder, how)
    with pytest.raises(ModelError, match="broken"):
        models.ModelSource.resolve(str(folder)).load_model(models.place("cpu", "float32"))


# --- a run that begins with an adapter --------------------------------------------------


def test_a_run_begins_with_a_saved_adapter(
    settings, trained_adapter, small_folder, logits, tmp_path
):
    """A step too small to show leaves PEFT's model of the saved adapter; real steps change it;
    and the first loss is far below that of a new adapter."""
    seen = {}
    for name, changes in {
        "still": {"adapter": str(trained_adapter), "learning_rate": 1e-12, "max_steps": 1},
        "begun": {"adapter": str(trained_adapter)},
        "new": {},
    }.items():
        lines = seen[name] = []
        settings = settings.replace(
            output_dir=str(tmp_path / name), examples_per_step=12, seed=3, adapter=""
        )
        train(settings.replace(**changes), report=lines.append)
    saved, still, begun = (
        logits(peft.PeftModel.from_pretrained(plain(small_folder), folder))
        for folder in (trained_adapter, tmp_path / "still", tmp_path / "begun")
    )
    assert torch.allclose(still, saved, atol=1e-6) and not torch.allclose(begun, saved, atol=1e-2)
    assert seen["begun"][0]["loss"] == seen["still"][0]["loss"] < seen["new"][0]["loss"] - 0.01


@pytest.mark.parametrize("how", [*BROKEN, "a scale of its own", "a .bin alone"])
def test_a_broken_adapter_is_not_begun_with(settings, trained_adapter, tmp_path, capsys, how):
    """One error line that names the adapter, before any output is written."""
    folder = shutil.copytree(trained_adapter, tmp_path / "broken")
    spoil(folder, how)
    file = settings.replace(adapter=str(folder)).save(tmp_path / "settings.json")
    assert main(["run", str(file)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "broken" in error and "Traceback" not in error
    assert not Path(settings.output_dir).exists()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"lora_rank": 8}, "r is 4 there, 8 here"),
        ({"lora_alpha": 3}, "lora_alpha is 16 there, 3 here"),
        ({"lora_rs": True}, "use_rslora is False there, True here"),
        ({"lora_dora": True}, "use_dora is False there, True here"),
        ({"lora_targets": "all-linear"}, "other lora_targets"),
        ({"lora_targets": "q_proj"}, "other lora_targets"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_that_are_not_the_adapters(settings, trained_adapter, capsys, changes, words):
    """Another rank, scale, method or set of modules than the run's: which, and both values."""
    settings = settings.replace(adapter=str(trained_adapter), **changes)
    with pytest.raises(adapters.AdapterError, match=words) as caught:
        train(settings)
    assert str(trained_adapter) in str(caught.value)
    assert not Path(settings.output_dir).exists()


def test_an_adapter_of_another_model(settings, trained_adapter, small_folder, make_tiny, tmp_path):
    """A wider model: the tensor, its shape there and here."""
    shutil.copytree(small_folder, tmp_path / "wider")
    make_tiny(vocab_size=461, hidden_size=32).save_pretrained(tmp_path / "wider")
    with pytest.raises(adapters.AdapterError, match=r"\(4, 16\).*needs \(4, 32\).*another model"):
        train(settings.replace(model=str(tmp_path / "wider"), adapter=str(trained_adapter)))
    with pytest.raises(adapters.AdapterError, match="no-such"):
        train(settings.replace(adapter=str(tmp_path / "no-such")))
    assert not Path(settings.output_dir).exists()


def test_a_base_that_was_exchanged(
    settings, trained_adapter, small_folder, make_tiny, small, tmp_path, capsys
):
    """Other weights of equal shapes: each use says so; the base itself does not."""
    line = "was trained on other weights than those of"
    base, folder = shutil.copytree(small_folder, tmp_path / "base"), tmp_path / "adapter"
    shutil.copytree(trained_adapter, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(base)
    (folder / "adapter_config.json").write_text(json.dumps(config))

    def uses(number):
        source, again = models.ModelSource.resolve(str(folder)), settings.replace(model=str(base))
        yield source.load_model(models.place("cpu", "float32"))
        yield ModelPool({"it": source}, models.place("cpu", "float32"))
        yield adapters.merge(str(folder), tmp_path / f"merged-{number}")
        yield train(again.replace(adapter=str(folder), output_dir=str(tmp_path / f"run-{number}")))

    for _ in uses(1):
        assert line not in capsys.readouterr().err
    (base / "model.safetensors").unlink()
    plain(small_folder).save_pretrained(base, max_shard_size="20KB")
    assert len(list(base.glob("model*.safetensors"))) > 1
    assert models.adapters.weights_checksum(base) == models.adapters.weights_checksum(small_folder)
    for file in base.glob("model*"):
        file.unlink()
    make_tiny(seed=1, vocab_size=461, **small).save_pretrained(base)
    for _ in uses(2):
        assert line in capsys.readouterr().err


# --- tied weights, and patterns in an adapter's configuration ---------------------------


def test_an_adapter_on_an_untied_head(settings, small_folder, make_tiny, small, logits, tmp_path):
    """Merged, it gives the adapter's logits."""
    base = shutil.copytree(small_folder, tmp_path / "untied")
    make_tiny(tied=False, vocab_size=461, **small).save_pretrained(base)
    folder = train(settings.replace(model=str(base), lora_targets="lm_head,q_proj"))
    adapted = logits(peft.PeftModel.from_pretrained(plain(base), folder))
    merged = logits(plain(adapters.merge(str(folder), tmp_path / "merged")))
    assert float((merged - adapted).abs().max()) <= 1e-5 * float(adapted.abs().max())
    assert float((merged - logits(plain(base))).abs().max()) > 1e-2


@pytest.mark.parametrize("targets", [["lm_head"], ["embed_tokens"], ["embed_tokens", "q_proj"]])
def test_a_foreign_adapter_on_a_tied_weight_is_not_merged(small_folder, tmp_path, targets):
    """PEFT makes such adapters; merged, both modules would change."""
    model = peft.get_peft_model(plain(small_folder), peft.LoraConfig(r=4, target_modules=targets))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    model.peft_config["default"].base_model_name_or_path = str(small_folder)
    model.save_pretrained(tmp_path / "foreign", save_embedding_layers=False)
    with pytest.raises(ModelError, match="two modules share"):
        adapters.merge(str(tmp_path / "foreign"), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    "key, pattern",
    [
        ("target_modules", r"(.*)*(.*)*(.*)*(.*)*x"),
        ("target_modules", r"((\w|\.)+)+!"),
        ("exclude_modules", r"((\w|\.)+)+!"),
        ("alpha_pattern", {r"((\w|\.)+)+!": 3}),
        ("rank_pattern", {r"((\w|\.)+)+!": 3}),
    ],
)
def test_a_pattern_that_never_ends(trained_adapter, tmp_path, monkeypatch, key, pattern):
    """A published adapter's pattern that backtracks for ever: refused in seconds, by name."""
    monkeypatch.setattr(models.adapters, "PATTERN_SECONDS", 1.0)
    folder = shutil.copytree(trained_adapter, tmp_path / "hostile")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, key: pattern}))
    with pytest.raises(ModelError, match=r"hostile: a pattern .* takes more than 1 s"):
        models.ModelSource.resolve(str(folder)).load_model(models.place("cpu", "float32"))


def test_a_pattern_that_is_good_or_invalid(trained_adapter, small_folder, logits, tmp_path):
    """A pattern for the same modules loads as their names do; an invalid one is named."""
    folder = shutil.copytree(trained_adapter, tmp_path / "published")
    config = json.loads((folder / "adapter_config.json").read_text())
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**config, "target_modules": r".*\.(q|v)_proj"}))
    source = models.ModelSource.resolve(str(folder))
    expected = logits(peft.PeftModel.from_pretrained(plain(small_folder), trained_adapter))
    assert torch.equal(logits(source.load_model(models.place("cpu", "float32"))), expected)
    for wrong in ("(q_proj", "nothing_.*"):
        file.write_text(json.dumps({**config, "target_modules": wrong}))
        with pytest.raises(ModelError, match="published"):
            models.ModelSource.resolve(str(folder)).load_model(models.place("cpu", "float32"))


@pytest.mark.parametrize("targets", ["all-linear", "q_proj,v_proj"])
def test_the_sum_inside_the_product_is_that_of_peft(make_tiny, settings, targets):
    """Output and every gradient, with a dropout mask, in float32."""
    found = []
    for ours in (True, False):
        torch.manual_seed(0)
        model = adapters.add_lora(
            make_tiny(), settings.replace(lora_targets=targets, lora_dropout=0.2)
        )
        layers = [m for m in model.modules() if isinstance(m, peft.tuners.lora.layer.Linear)]
        assert all(m.lora_variant for m in layers) and layers
        for number, layer in enumerate(layers):
            if not ours:
                layer.lora_variant.clear()
            torch.manual_seed(number)
            torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.1)
        model.train()
        torch.manual_seed(1)
        out = model(torch.arange(24).reshape(2, 12) % 20).logits
        out.square().sum().backward()
        found.append([out.detach(), *(p.grad for p in model.parameters() if p.requires_grad)])
    for mine, theirs in zip(*found, strict=True):
        assert float((mine - theirs).abs().max()) <= 1e-5 * float(theirs.abs().max())


def test_dora_keeps_its_own_variant(make_tiny, settings):
    model = adapters.add_lora(make_tiny(), settings.replace(lora_dora=True))
    kinds = {type(v) for m in model.modules() for v in getattr(m, "lora_variant", {}).values()}
    assert len(kinds) == 1 and "Dora" in kinds.pop().__name__
