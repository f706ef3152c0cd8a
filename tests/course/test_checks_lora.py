"""The checks of lesson 04's exercises: likely wrong answers get the hint that is meant for them."""

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file

from alpaca_lib.course.checks import lora as check


@pytest.fixture
def judge(capsys):
    def run(name, answer):
        getattr(check, name)(answer)
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (..., "no answer yet"),
        ("6.8M", "int or float is wanted"),
        (212_992, "one layer's"),
        (8_388_608, "not square"),
        (4_194_304, "q_proj alone"),
        (2_621_440, "v_proj alone"),
        (671_088_640, "frozen matrices"),
        (10_737_418_240, "added, not multiplied"),
        (1, "count A"),
    ],
)
def test_parameters(judge, answer, hint):
    said = judge("parameters", answer)
    assert said.startswith("Not yet: ") and hint in said
    assert "6815744" not in said.replace(",", "")
    assert judge("parameters", 6_815_744).startswith("Right: ")


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (3_642_753_024, "without double quantisation"),
        (3_238_002_688, "scales are missing"),
        (3_339_190_272, "one thing is missing"),
        (3_238_002_688 + 101_187_584 + 101_187_584, "not for 256 weights"),
        (6_476_005_376, "4 bits, not 8"),
        (8 * 3_340_771_328, "bits"),
        (3.3, "three terms"),
    ],
)
def test_nf4_bytes(judge, answer, hint):
    said = judge("nf4_bytes", answer)
    assert said.startswith("Not yet: ") and hint in said
    assert "3340771328" not in said.replace(",", "")
    assert judge("nf4_bytes", 3_340_771_328).startswith("Right: that is 4.127 bits")


def merge(base, adapter, config, scale=None, half=False, cast=True):
    """A right merge, with places to go wrong."""
    r = config["r"]
    scale = scale or config["lora_alpha"] / (r**0.5 if config["use_rslora"] else r)
    result = dict(base)
    for key, low in adapter.items():
        if ".lora_A." in key:
            high = adapter[key.replace("lora_A", "lora_B")]
            name = key.removeprefix("base_model.model.").replace(".lora_A", "")
            weight = base[name]
            if half:
                low, high = low.to(weight.dtype), high.to(weight.dtype)
                result[name] = weight + scale * (high @ low)
            else:
                total = weight.float() + scale * (high @ low)
                result[name] = total.to(weight.dtype) if cast else total
    return result


def merge_in_place(base, adapter, config):
    for name, tensor in merge(base, adapter, config).items():
        base[name].copy_(tensor)
    return base


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (3, "a function is wanted"),
        (lambda *_: None, "returns nothing"),
        (lambda *given: merge(*given, scale=1.0), "where alpha and r differ"),
        (lambda b, a, c: merge(b, a, c, scale=c["lora_alpha"] / c["r"]), "use_rslora"),
        (lambda *given: merge(*given, half=True), "round once"),
        (lambda *given: merge(*given, cast=False), "the base's is torch.bfloat16"),
        (merge_in_place, "add out of place"),
        (lambda b, a, c: {k: v for k, v in merge(b, a, c).items() if "norm" not in k}, "only in"),
        (lambda b, *_: dict(b), "is not W + B A"),
        (lambda base: base, "your answer raised TypeError"),
    ],
)
def test_merged(judge, answer, hint):
    said = judge("merged", answer)
    assert said.startswith("Not yet: ") and hint in said
    assert judge("merged", merge).startswith("Right: ")


@pytest.mark.parametrize(
    ("answer", "hint"),
    [(..., "no answer yet"), ("both", '"rank" or "alpha"'), ("rank", "differ in the rank alone")],
)
def test_rank_or_alpha(judge, answer, hint):
    said = judge("rank_or_alpha", answer)
    assert said.startswith("Not yet: ") and hint in said
    assert judge("rank_or_alpha", "alpha").startswith("Right: ")


def select(state):
    kept = [key for key in state if "lora_" in key and ".default" in key]
    return {key.replace(".default", ""): state[key] for key in kept}


def save_selected(model, folder):
    torch.save(select(model.state_dict()), folder / "adapter_model.bin")


def save_selected_twice(model, folder):
    """The exercise's own: no name is left for the second selection."""
    old = model.state_dict
    model.state_dict = lambda *_, **__: select(old())
    save_selected(model, folder)


def save_with_the_state_given(model, folder):
    """Another right answer: today's PEFT selects from the state that it gets."""
    state = model.state_dict()
    model.save_pretrained(folder, state_dict=state)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda model, folder: None, "holds no tensor"),
        (save_selected_twice, "how often"),
        (lambda m, f: torch.save(m.state_dict(), f / "adapter_model.bin"), "frozen base too"),
        (
            lambda m, f: torch.save(
                {k: v for k, v in m.state_dict().items() if "lora_" in k}, f / "adapter_model.bin"
            ),
            "would not find these names",
        ),
    ],
)
def test_saved(judge, answer, hint):
    said = judge("saved", answer)
    assert said.startswith("Not yet: ") and hint in said
    assert judge("saved", save_selected).startswith("Right: ")
    assert judge("saved", lambda m, f: m.save_pretrained(f)).startswith("Right: ")
    assert judge("saved", save_with_the_state_given).startswith("Right: ")


def load_without_values(base, folder):
    config = peft.PeftConfig.from_pretrained(folder)
    return peft.get_peft_model(base, config).merge_and_unload()


def load(base, folder):
    return peft.PeftModel.from_pretrained(base, folder)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda base, folder: None, "returns nothing"),
        (load_without_values, "computes what the base computes"),
        (load, "merge them"),
        (lambda b, f: torch.nn.Linear(6, 6), "differs from the trained"),
    ],
)
def test_loaded(judge, answer, hint):
    said = judge("loaded", answer)
    assert said.startswith("Not yet: ") and hint in said
    assert judge("loaded", lambda b, f: load(b, f).merge_and_unload()).startswith("Right: ")


def merge_head(model, low, high, scale, untie=True):
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach() + scale * high @ low)
    model.config.tie_word_embeddings = not untie
    return model


def merge_head_in_place(model, low, high, scale):
    model.get_output_embeddings().weight.data += scale * high @ low
    return model


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda *_: None, "returns nothing"),
        (merge_head_in_place, "share one tensor"),
        (lambda m, a, b, s: merge_head(m, a, b, 1.0), "not W + scale B A"),
        (lambda m, a, b, s: merge_head(m, a, b, s, untie=False), "saved and loaded"),
    ],
)
def test_head(judge, answer, hint):
    said = judge("head", answer)
    assert said.startswith("Not yet: ") and hint in said
    assert judge("head", merge_head).startswith("Right: ")


def resume(model, folder, step=None):
    peft.set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"))
    state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    return state["global_step"] if step is None else step


def resume_not_strictly(model, folder):
    model.load_state_dict(load_file(folder / "adapter_model.safetensors"), strict=False)
    return 37


def resume_or_print(model, folder: Path):
    if (folder / "adapter_model.safetensors").exists():
        return resume(model, folder)
    print("no checkpoint found")
    return 0


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda model, folder: 0, "as it was before"),
        (resume_not_strictly, "what load_state_dict returns"),
        (lambda m, f: resume(m, f, step=0), "trainer_state.json"),
        (resume_or_print, "only prints"),
    ],
)
def test_resumed(judge, answer, hint):
    said = judge("resumed", answer)
    assert "Not yet: " in said and hint in said and "Right" not in said
    assert judge("resumed", resume).startswith("Right: ")
