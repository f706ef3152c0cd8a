"""What is said where bitsandbytes is missing or does not work."""

from __future__ import annotations

import sys

import pytest
import torch

from alpaca_lib.errors import ModelError
from alpaca_lib.models import ModelSource, Placement, quantization, usable_quantizations

PLACEMENT = Placement("cpu", "float32", "")


@pytest.fixture(autouse=True)
def tried_again():
    """Nothing is remembered of another test."""
    quantization.find_quantization_fault.cache_clear()
    yield
    quantization.find_quantization_fault.cache_clear()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_both_work_here_and_the_trial_draws_no_number(dtype):
    before, said = torch.get_rng_state(), []
    assert usable_quantizations(Placement("cpu", dtype, ""), said.append) == ["int8", "nf4"]
    assert said == [] and torch.get_rng_state().equal(before)


def test_a_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    said = []
    assert usable_quantizations(PLACEMENT, said.append) == []
    assert len(said) == 1 and said[0].startswith(
        "int8 and nf4 left out: bitsandbytes is not installed; run `pip install bitsandbytes`"
    )


def test_a_package_that_fails_is_one_sentence_for_each_reason(monkeypatch):
    def fail(nn, kind, device, dtype):
        if kind == "int8":
            raise RuntimeError("no kernel\nof that kind")
        return False

    monkeypatch.setattr(quantization, "_try_layer", fail)
    said = []
    assert usable_quantizations(PLACEMENT, said.append) == []
    assert said == [
        "int8 left out: bitsandbytes fails on cpu (no kernel)",
        "nf4 left out: bitsandbytes computes no gradient on cpu",
    ]


def test_a_quantised_base_that_cannot_be_is_an_error_with_the_way_out(monkeypatch, tiny_folder):
    """Before the model is loaded; unquantised it loads."""

    def fail(*_):
        raise RuntimeError("no kernel")

    monkeypatch.setattr(quantization, "_try_layer", fail)
    source = ModelSource.resolve(str(tiny_folder))
    with pytest.raises(ModelError, match=r"quantization 'nf4': .*no kernel.*Set quantization to"):
        source.load_model(PLACEMENT, "nf4")
    assert source.load_model(PLACEMENT).device.type == "cpu"
