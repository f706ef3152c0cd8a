"""Settings and adapters: what is refused, and that the error names it."""

from __future__ import annotations

import json
import re

import pytest

from alpaca_lib.errors import SettingsError
from alpaca_lib.training import adapters
from alpaca_lib.training.settings import Settings

GOOD = {"data_path": "data.json", "output_dir": "out"}


@pytest.mark.parametrize(
    "name, value",
    [
        ("method", "qlora"), ("schedule", "cosin"), ("max_length", 1), ("row_length", 100),
        ("examples_per_step", 0), ("rows_per_micro_batch", 0), ("learning_rate", 0.0),
        ("learning_rate", -1.0), ("learning_rate", float("nan")), ("epochs", 0.0), ("epochs", -1.0),
        ("validation_rows", -1), ("log_every", 0), ("lora_rank", 0),
        ("keep_checkpoints", 0), ("keep_checkpoints", -1),
        ("save_every", -1), ("eval_every", -1), ("max_steps", -1), ("warmup", -0.5),
        ("max_grad_norm", 0.0), ("lora_dropout", 1.0), ("lora_dropout", 1.5),
        ("lora_dropout", -0.1), ("lora_alpha", 0), ("lora_alpha", -1), ("lora_alpha", 10**9),
        ("lora_alpha", float("nan")), ("lora_alpha", "NaN"), ("lora_alpha", 16.5),
        ("lora_rank", 10**9), ("lora_rank", -1), ("learning_rate", float("inf")),
        ("learning_rate", float("-inf")), ("weight_decay", float("nan")), ("weight_decay", 99.0),
        ("dtype", "float99"), ("dtype", "int8"), ("dtype", ""), ("max_length", 10**9),
        ("row_length", 10**9), ("rows_per_micro_batch", 10**9), ("examples_per_step", 10**9),
        ("examples_per_step", -16), ("epochs", float("inf")), ("epochs", 1e9),
        ("max_steps", 10**12),
        ("warmup", float("nan")), ("warmup", 1.5), ("max_grad_norm", float("inf")),
        ("seed", -1), ("seed", 2**64), ("device", "gpu"), ("device", "cuda:x"), ("device", ""),
        ("output_dir", ""), ("data_path", ""), ("model", ""), ("output_dir", "a\0b"),
        ("data_path", "a\nb"), ("run_name", "\ud83d"), ("trackers", "mlflow"),
    ],
)  # fmt: skip
def test_impossible_values_are_named(name, value):
    """Each impossible value is refused at once, with its name and the value."""
    with pytest.raises(ValueError, match=name) as caught:
        Settings(**{**GOOD, name: value})
    assert repr(value) in str(caught.value)


def test_every_number_has_bounds():
    """Infinity and NaN are refused for each number, and so is what no machine could do."""
    from alpaca_lib.options import base_type

    for name, field in Settings.model_fields.items():
        if base_type(field) is float:
            for value in (float("inf"), float("-inf"), float("nan")):
                with pytest.raises(SettingsError, match=f"{name} {value}: a finite number"):
                    Settings(**{**GOOD, name: value})
        if base_type(field) in (int, float):
            with pytest.raises(SettingsError, match=name):
                Settings(**{**GOOD, name: -(10**6)})
    with pytest.raises(SettingsError, match="set one of the two"):
        Settings(**GOOD, validation_rows=5, validation_path="v.json")


@pytest.mark.parametrize("name, near", [("learning_rat", "learning_rate"), ("epoch", "epochs")])
def test_unknown_setting_has_a_suggestion(name, near):
    """A misspelt name is answered with the nearest one."""
    with pytest.raises(ValueError, match=rf"'{name}'.*{near}"):
        Settings.from_dict({**GOOD, name: 1}, "file.json")


@pytest.mark.parametrize("missing", ["data_path", "output_dir"])
def test_needed_settings(missing):
    """Without data or output folder the error names which."""
    values = {k: v for k, v in GOOD.items() if k != missing}
    with pytest.raises(ValueError, match=f"file.json: {missing}"):
        Settings.from_dict(values, "file.json")


@pytest.mark.parametrize(
    "values",
    [{"epochs": "3"}, {"learning_rate": None}, {"max_length": "512"}, {"method": ["full"]}],
)
def test_wrong_types_are_value_errors(values):
    """A text where a number belongs (in a hand-written file) is named, no TypeError."""
    with pytest.raises(ValueError, match=next(iter(values))):
        Settings.from_dict({**GOOD, **values}, "file.json")


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "5", '"x"'])
def test_file_that_is_no_settings(tmp_path, content):
    """A file that holds no object is a ValueError with its name."""
    (tmp_path / "settings.json").write_text(content)
    with pytest.raises(ValueError, match=r"settings\.json"):
        Settings.load(tmp_path / "settings.json")
    with pytest.raises(ValueError, match=r"none\.json"):
        Settings.load(tmp_path / "none.json")


def test_round_trip(tmp_path):
    """Saved settings load as the same, and the file is plain JSON."""
    settings = Settings(**GOOD, learning_rate=3e-4, lora_targets="all-linear", template="chinese")
    assert Settings.load(settings.save(tmp_path / "s.json")) == settings
    assert json.loads((tmp_path / "s.json").read_text())["learning_rate"] == 3e-4


# --- adapters -----------------------------------------------------------------------


def lora(**more):
    """Settings for LoRA."""
    return Settings(**GOOD, method="lora", lora_rank=4, **more)


def test_adapters_alone_train(make_tiny):
    """The frozen base has no gradient; the counts are those of a count by hand."""
    model = adapters.add_lora(make_tiny(), lora())
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    assert names and all("lora_" in n for n in names)
    train, total = adapters.trainable(model)
    assert train == 2 * (4 * (64 + 64) + 4 * (64 + 32))  # q and v of two layers, rank 4
    assert total == train + sum(p.numel() for p in make_tiny().parameters())


def test_all_linear_takes_seven_modules(make_tiny):
    """ "all-linear" puts adapters on every projection and not on the head."""
    model = adapters.add_lora(make_tiny(), lora(lora_targets="all-linear"))
    targets = {
        n.split(".lora_A")[0].rsplit(".", 1)[-1]
        for n, _ in model.named_parameters()
        if "lora_A" in n
    }
    assert targets == {f"{x}_proj" for x in ("q", "k", "v", "o", "gate", "up", "down")}


@pytest.mark.parametrize(
    "targets, words",
    [
        ("q_proj,c_attn", "no module 'c_attn'"),
        ("q_prj", "no module 'q_prj'; did you mean 'q_proj'"),
        ("Q_PROJ", "no module 'Q_PROJ'"),
        ("", "names no module"),
        (" , ", "names no module"),
        ("(a+)+b", "a pattern is not read, only names"),
        (r".*\.q_proj", "a pattern is not read"),
        ("*", "a pattern is not read"),
        ("all-linear,lm_head", "no module 'all-linear'"),
        ("embed_tokens", "embed_tokens is a Embedding"),
        ("q_proj,norm", "norm is a LlamaRMSNorm"),
        ("self_attn", "self_attn is a LlamaAttention"),
        ("layers", "layers is a ModuleList"),
        ("lm_head", "lm_head shares its weight"),
        ("q_proj,lm_head", "lm_head shares its weight"),
    ],
)
def test_targets_that_cannot_have_adapters(make_tiny, targets, words):
    """Unknown, a pattern, no linear layer, a tied weight: the name, why, and what there is."""
    with pytest.raises(adapters.AdapterError, match=re.escape(words)) as caught:
        adapters.add_lora(make_tiny(), lora(lora_targets=targets))
    assert "q_proj" in str(caught.value) or "shares its weight" in words


def test_a_target_by_its_full_name(make_tiny):
    """A path's end names one module alone; an untied head may have an adapter."""
    model = adapters.add_lora(make_tiny(), lora(lora_targets="layers.1.self_attn.q_proj"))
    names = [n for n, _ in model.named_parameters() if "lora_A" in n]
    assert len(names) == 1 and "layers.1.self_attn.q_proj" in names[0]
    model = adapters.add_lora(make_tiny(tied=False), lora(lora_targets="lm_head"))
    assert len([n for n, _ in model.named_parameters() if "lora_A" in n]) == 1


def test_check_saved(make_tiny, tmp_path):
    """Nothing saved, untrained, changed, or incomplete: each is found; a good one counted."""
    import torch
    from safetensors.torch import load_file, save_file

    model = adapters.add_lora(make_tiny(), lora())
    with pytest.raises(adapters.AdapterError, match="no adapter_model"):
        adapters.check_saved(tmp_path, model)
    model.save_pretrained(tmp_path)
    with pytest.raises(adapters.AdapterError, match="zero"):
        adapters.check_saved(tmp_path, model)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    with pytest.raises(adapters.AdapterError, match="differs"):
        adapters.check_saved(tmp_path, model)
    model.save_pretrained(tmp_path)
    assert adapters.check_saved(tmp_path, model) == 8
    file = tmp_path / "adapter_model.safetensors"
    saved = load_file(file)
    saved.pop(next(iter(saved)))
    save_file(saved, file)
    with pytest.raises(adapters.AdapterError, match="7 tensors, 8 expected"):
        adapters.check_saved(tmp_path, model)
