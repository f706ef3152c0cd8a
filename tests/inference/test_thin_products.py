"""Linear layers of a few rows: the same values, and only where it pays."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from alpaca_lib import models
from alpaca_lib.inference import thin_products
from alpaca_lib.inference.thin_products import MOST_ROWS, swap_factors


@pytest.fixture
def other_maker(monkeypatch):
    """A processor that is not Intel's, and MKL in torch."""
    monkeypatch.setattr(thin_products, "made_by_intel", lambda: False)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "shape", [(1, 3), (5, 2), (1, MOST_ROWS), (1, MOST_ROWS + 1), (1, 1), (7,)]
)
def test_the_same_product(shape, bias, other_maker):
    """Values, shape and memory format of the layer, for any number of rows."""
    torch.manual_seed(0)
    layer = nn.Linear(48, 80, bias=bias)
    x = torch.randn(*shape, 48).transpose(0, -2).contiguous().transpose(0, -2)
    with torch.inference_mode():
        expected = layer(x)
        with swap_factors(layer):
            assert "forward" in vars(layer)
            found = layer(x)
    assert found.shape == expected.shape and found.is_contiguous()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert "forward" not in vars(layer)


def test_a_model_with_an_adapter(other_maker, monkeypatch):
    """The embedded model's logits, with LoRA; its products do go the other way."""
    import peft

    model = models.ModelSource.resolve("smollm2-135m").load_model(models.place("cpu", "float32"))
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"])
    model = peft.get_peft_model(model, config).eval()
    ids = torch.randint(0, 1000, (1, 9))
    with torch.inference_mode():
        expected = model(ids, use_cache=False).logits
        with swap_factors(model):
            monkeypatch.setattr(F, "linear", None)  # would be called by a plain layer
            found = model(ids, use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("intel, mkl", [(True, True), (False, False)])
def test_left_alone_elsewhere(intel, mkl, monkeypatch):
    """Nothing changes on an Intel processor, or without MKL (ARM)."""
    monkeypatch.setattr(thin_products, "made_by_intel", lambda: intel)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    layer = nn.Linear(4, 4)
    with swap_factors(layer):
        assert "forward" not in vars(layer)


@pytest.mark.parametrize("kind", ["bfloat16", "subclass", "changed"])
def test_other_layers_are_left_alone(kind, other_maker):
    """Another dtype, a quantised layer, a forward that somebody else has set."""

    class Quantised(nn.Linear):
        """A layer with a product of its own."""

    layer = Quantised(4, 4) if kind == "subclass" else nn.Linear(4, 4)
    if kind == "bfloat16":
        layer.bfloat16()
    if kind == "changed":
        layer.forward = lambda x: x
    before = dict(vars(layer))
    with swap_factors(layer):
        assert vars(layer).get("forward") is before.get("forward")
    assert vars(layer).get("forward") is before.get("forward")


def test_restored_after_an_error(other_maker):
    """An error inside leaves the layers as they were."""
    layer = nn.Linear(4, 4)
    with pytest.raises(ValueError, match="inside"), swap_factors(layer):
        raise ValueError("inside")
    assert "forward" not in vars(layer)
