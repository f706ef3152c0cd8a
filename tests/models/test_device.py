"""The device and dtype that a machine is given, and why: Apple GPUs above all."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from alpaca_lib.errors import ModelError, SettingsError
from alpaca_lib.models import device, place
from alpaca_lib.training import attention
from alpaca_lib.training.precision import create_optimizer


@pytest.fixture
def apple(monkeypatch):
    """A torch that sees an Apple GPU and no CUDA GPU; what is tried on it fails, as here."""
    monkeypatch.delenv("ALPACA_DEVICE", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    device.find_mps_fault.cache_clear()
    yield
    device.find_mps_fault.cache_clear()


@pytest.mark.usefixtures("apple")
def test_an_apple_gpu_that_works_is_chosen(monkeypatch):
    """With float32, and both reasons."""
    monkeypatch.setattr(device, "_attention_sample", lambda where: torch.ones(3))
    found = place()
    assert (found.device, found.dtype) == ("mps", "float32")
    assert "an Apple GPU is there" in found.reason and "half precision" in found.reason


@pytest.mark.linux  # on a Mac it may work
@pytest.mark.usefixtures("apple")
def test_an_apple_gpu_that_cannot_compute_is_not_chosen():
    """As on virtual machines, GitHub's among them: nothing can be allocated there."""
    found = place()
    assert found.device == "cpu"
    assert "the Apple GPU that is there is not used: it fails (" in found.reason


@pytest.mark.usefixtures("apple")
def test_an_apple_gpu_whose_attention_is_wrong_is_not_chosen(monkeypatch):
    samples = {"cpu": torch.ones(1000), "mps": torch.ones(1000).index_fill(0, torch.tensor(5), 2.0)}
    monkeypatch.setattr(device, "_attention_sample", samples.__getitem__)
    found = place()
    assert found.device == "cpu" and "its attention differs from the CPU's" in found.reason


def test_the_sample_has_outputs_and_gradients():
    """Twice the output, and the gradients of queries, keys and values: none is zero."""
    sample = device._attention_sample("cpu")
    sizes = [40 * 4 * 64] * 3 + [40 * 2 * 64] * 2
    assert all(bool(part.any()) for part in sample.split(sizes))
    assert sample.equal(device._attention_sample("cpu"))


@pytest.mark.usefixtures("apple")
def test_several_processes_compute_on_the_cpu(monkeypatch):
    """There is no backend for collectives between Apple GPUs."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    found = place()
    assert found.device == "cpu" and "torch.distributed has no backend" in found.reason


@pytest.mark.usefixtures("apple")
def test_the_environment_names_a_device(monkeypatch):
    """It counts where the settings say auto; one that is not there is an error."""
    monkeypatch.setenv("ALPACA_DEVICE", "cpu")
    found = place()
    assert found.device == "cpu" and found.reason.startswith("ALPACA_DEVICE names it")
    assert place("mps").device == "mps"
    for wrong, words in (("cuda", "no CUDA GPUs"), ("tpu", 'device "tpu"')):
        monkeypatch.setenv("ALPACA_DEVICE", wrong)
        with pytest.raises(ModelError, match=words):
            place()
    monkeypatch.setenv("ALPACA_DEVICE", "auto")
    assert place().device == "cpu"  # what is tried fails here


def test_8_bit_moments_are_refused_on_an_apple_gpu():
    """With the way out, before any step."""
    master = SimpleNamespace(numel=lambda: 1, device=SimpleNamespace(type="mps"))
    weights = SimpleNamespace(masters={"weight": master})
    with pytest.raises(SettingsError, match=r'set optimizer to "adamw", or device to "cpu"'):
        create_optimizer(weights, "adamw8bit", lr=1e-3, weight_decay=0.0)


@pytest.mark.linux
def test_shared_prefixes_are_tried_on_every_gpu():
    """On one that cannot compute, examples do not share."""
    attention.shares_keys.cache_clear()
    assert attention.shares_keys("cpu", torch.float32)
    assert not attention.shares_keys("mps", torch.float32)
