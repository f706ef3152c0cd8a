"""Checks the answers to the exercises of lesson 04: adapters, and a base in few bits."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alpaca_lib.course.checks.verdict import exercise, need, need_answer

# The shapes of exercise 1: LLaMA-3-8B, whose k_proj and v_proj are not square.
LAYERS, RANK, HIDDEN, VALUES = 32, 16, 4096, 1024
TRAINED = LAYERS * RANK * ((HIDDEN + HIDDEN) + (HIDDEN + VALUES))
# The weights of exercise 2: the linear layers of LLaMA-7B, without its embeddings.
WEIGHTS = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
BLOCK, SCALES_PER_BLOCK = 64, 256
NF4_BYTES = WEIGHTS // 2 + WEIGHTS // BLOCK + WEIGHTS // BLOCK // SCALES_PER_BLOCK * 4

WRITE_IT = "your function returns nothing: write it, and end with `return`"


def _need_known_number(answer: Any, right: float, hints: Mapping[float, str], other: str) -> None:
    """Raises Hint unless a number is right; ``hints`` are for numbers that a slip leads to."""
    need_answer(answer, (int, float))
    if answer != right:
        need(False, hints.get(answer, other))


def _need_function(answer: Any) -> None:
    """Raises Hint unless the answer is a function."""
    need_answer(answer)
    need(callable(answer), f"that is {type(answer).__name__}; a function is wanted")


@exercise
def parameters(answer: Any) -> str:
    """Decides about the number of trained parameters (exercise 1)."""
    hints: dict[float, str] = {
        TRAINED // LAYERS: "that is one layer's; the model has 32",
        LAYERS * RANK * 4 * HIDDEN: "v_proj is not square: look at its number of rows",
        LAYERS * RANK * (HIDDEN + HIDDEN): "that is q_proj alone",
        LAYERS * RANK * (HIDDEN + VALUES): "that is v_proj alone",
        LAYERS * (HIDDEN * HIDDEN + HIDDEN * VALUES): "those are the frozen matrices themselves",
        LAYERS * RANK * (HIDDEN * HIDDEN + HIDDEN * VALUES): "A has r rows and `in` columns: "
        "its numbers are r times `in`, and B's are added, not multiplied",
    }
    other = "count A (r x in) and B (out x r) of each matrix, then all matrices of all layers"
    _need_known_number(answer, TRAINED, hints, other)
    return (
        "r (in + out) for each matrix. Full training of the two matrices would train "
        f"{LAYERS * (HIDDEN * HIDDEN + HIDDEN * VALUES) / TRAINED:.0f} times as many."
    )


@exercise
def nf4_bytes(answer: Any) -> str:
    """Decides about the bytes of LLaMA-7B in NF4 with double quantisation (exercise 2)."""
    hints = {
        WEIGHTS / 2 + WEIGHTS / BLOCK * 4: "that is without double quantisation: the blocks' "
        "scales take one byte each here",
        WEIGHTS / 2: "those are the codes alone; the scales are missing",
        WEIGHTS / 2 + WEIGHTS / BLOCK: "one thing is missing: what the 8-bit scales are scaled by",
        WEIGHTS / 2 + WEIGHTS / BLOCK + WEIGHTS / SCALES_PER_BLOCK * 4: "the second scale is for "
        "256 scales, not for 256 weights",
        WEIGHTS: "a code has 4 bits, not 8",
        NF4_BYTES * 8: "those are bits",
    }
    other = "add three terms: codes, scales of the blocks, and scales of those scales"
    _need_known_number(answer, NF4_BYTES, hints, other)
    saved = (WEIGHTS // BLOCK * 4 + WEIGHTS // 2 - NF4_BYTES) / 1e9
    return (
        f"that is {NF4_BYTES * 8 / WEIGHTS:.3f} bits per weight; double quantisation saves "
        f"{saved:.1f} GB here, and a scale that is itself rounded costs little accuracy."
    )


def _merge(
    base: Mapping[str, Any], adapter: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the base with each product added: the oracle of exercise 3."""
    r = config["r"]
    scale = config["lora_alpha"] / (r**0.5 if config["use_rslora"] else r)
    merged = dict(base)
    for key in adapter:
        if ".lora_A." in key:
            name = key.removeprefix("base_model.model.").replace(".lora_A", "")
            product = adapter[key.replace("lora_A", "lora_B")].float() @ adapter[key].float()
            merged[name] = (base[name].float() + scale * product).to(base[name].dtype)
    return merged


def _merge_case(r: int, alpha: int, use_rslora: bool, dtype: str) -> tuple[Any, Any, Any]:
    """Returns (base, adapter, config) with two adapted matrices and one tensor without."""
    import torch

    torch.manual_seed(r)
    base, adapter = {"model.norm.weight": torch.randn(12)}, {}
    for name, (out, size) in {"layers.0.q_proj": (12, 12), "layers.1.up_proj": (20, 12)}.items():
        base[f"model.{name}.weight"] = torch.randn(out, size).to(getattr(torch, dtype))
        key = f"base_model.model.model.{name}.lora_"
        adapter[f"{key}A.weight"] = torch.randn(r, size)
        adapter[f"{key}B.weight"] = torch.randn(out, r) / 10
    return base, adapter, {"r": r, "lora_alpha": alpha, "use_rslora": use_rslora}


@exercise
def merged(answer: Any) -> str:
    """Decides about a function that merges an adapter's tensors into a base's (exercise 3)."""
    import torch

    _need_function(answer)
    for r, alpha, use_rslora, dtype, hint in (
        (4, 4, False, "float32", "with alpha equal to r the sum is not W + B A"),
        (4, 16, False, "float32", "the product's factor is wrong where alpha and r differ"),
        (4, 16, True, "float32", "the factor is wrong where config['use_rslora'] is true"),
        (4, 16, False, "bfloat16", "compute in float32 and round once, at the end"),
    ):
        base, adapter, config = _merge_case(r, alpha, use_rslora, dtype)
        before = {name: tensor.clone() for name, tensor in base.items()}
        wanted, got = _merge(base, adapter, config), answer(base, adapter, config)
        need(got is not None, WRITE_IT)
        kept = all(torch.equal(base[name], before[name]) for name in before)
        need(kept, "the base's own tensors have changed: add out of place")
        lost = sorted(set(wanted) ^ set(got))
        need(not lost, f"{lost[0] if lost else ''}: is only in one of the base and your result")
        for name, tensor in wanted.items():
            same = got[name].dtype == tensor.dtype
            need(same, f"{name} has dtype {got[name].dtype}; the base's is {tensor.dtype}")
            close = torch.allclose(got[name].float(), tensor.float(), rtol=1e-6, atol=1e-6)
            need(close, f"{name}: {hint}")
    return "these are the tensors that `alpaca merge` writes; they need no PEFT any more."


@exercise
def rank_or_alpha(answer: Any) -> str:
    """Decides about what the error follows, rank or alpha, in exercise 4."""
    need_answer(answer, str)
    need(answer.strip().lower() in ("rank", "alpha"), 'answer "rank" or "alpha"')
    hint = "compare two runs that differ in the rank alone, then two that differ in alpha alone"
    need(answer.strip().lower() == "alpha", hint)
    return (
        "alpha / r scales the product, so a larger rank with the same alpha is not a longer step. "
        "What a larger rank can do more shows at the end of training, not in 20 steps."
    )


def _small_model() -> Any:
    """Returns two linear layers, as a model for PEFT."""
    import torch

    torch.manual_seed(3)
    layers = {"up": torch.nn.Linear(6, 10), "act": torch.nn.ReLU(), "down": torch.nn.Linear(10, 6)}
    model = torch.nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    return model


def _adapted_model() -> Any:
    """Returns a PEFT model whose B matrices are not zero, as after training."""
    import peft
    import torch

    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["up", "down"])
    model = peft.get_peft_model(_small_model(), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return model


def _adapter_folder(folder: str) -> tuple[Path, Any]:
    """Saves an adapter as PEFT does; returns (its folder, the model)."""
    model, path = _adapted_model(), Path(folder)
    model.save_pretrained(path)
    return path, model


def _read_saved(folder: Path) -> dict[str, Any]:
    """Returns the tensors of an adapter's file; {} if there is none."""
    import torch
    from safetensors.torch import load_file

    if (file := folder / "adapter_model.safetensors").is_file():
        return load_file(file)
    if (file := folder / "adapter_model.bin").is_file():
        return dict(torch.load(file, weights_only=True))
    return {}


@exercise
def saved(answer: Any) -> str:
    """Decides about a function that saves an adapter (exercise 5)."""
    import torch

    _need_function(answer)
    model = _adapted_model()
    wanted = {k.replace(".default", ""): v for k, v in model.state_dict().items() if "lora_" in k}
    with tempfile.TemporaryDirectory() as folder:
        answer(model, Path(folder))
        tensors = _read_saved(Path(folder))
    need(tensors, "the file still holds no tensor: how often are the adapter's tensors selected?")
    need(
        len(tensors) <= len(wanted),
        "the file holds tensors of the frozen base too: an adapter is A and B alone",
    )
    need(set(tensors) == set(wanted), "PEFT would not find these names: they hold no '.default'")
    same = all(torch.equal(tensors[name], wanted[name]) for name in wanted)
    need(same, "the tensors differ from the model's")
    return (
        "PEFT selects the tensors itself. Had the script looked into its file once, nobody would "
        "have trained for a night and saved nothing."
    )


def _probe(model: Any) -> Any:
    """Returns what a small model computes for fixed inputs."""
    import torch

    torch.manual_seed(5)
    with torch.no_grad():
        return model(torch.randn(7, 6))


@exercise
def loaded(answer: Any) -> str:
    """Decides about a function that loads an adapter and merges it (exercise 6)."""
    import torch

    _need_function(answer)
    with tempfile.TemporaryDirectory() as folder:
        path, model = _adapter_folder(folder)
        got = answer(_small_model(), path)
    need(got is not None, WRITE_IT)
    names = [name for name, _ in got.named_modules()]
    base, result = _probe(_small_model()), _probe(got)
    hint = "it computes what the base computes: what are the values of B in your model?"
    need(not torch.allclose(result, base), hint)
    need(torch.allclose(result, _probe(model), atol=1e-5), "it differs from the trained model")
    need(not any("lora" in name for name in names), "it still has LoRA layers: merge them")
    return "a configuration describes an adapter; only `from_pretrained` reads its weights."


def _tied_model() -> Any:
    """Returns a very small LLaMA whose head is its embedding, as SmolLM2's is."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(7)
    sizes = {"vocab_size": 24, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, tie_word_embeddings=True)).eval()


@exercise
def head(answer: Any) -> str:
    """Decides about a function that merges an adapter of a tied output layer (exercise 7)."""
    import torch

    _need_function(answer)
    model, ids = _tied_model(), torch.arange(1, 9)[None]
    added = torch.randn(24, 2, generator=torch.Generator().manual_seed(1)), torch.randn(2, 8)
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight.clone()
        states = model.model(ids).last_hidden_state
        wanted = states @ (embedding + 2.0 * added[0] @ added[1]).T
        got = answer(model, added[1], added[0], 2.0)
        need(got is not None, WRITE_IT)
        kept = torch.equal(got.get_input_embeddings().weight, embedding)
        need(kept, "the input embedding has changed too: do both layers still share one tensor?")
        logits = got(ids).logits
        need(torch.allclose(logits, wanted, atol=1e-4), "the head is not W + scale B A")
    hint = (
        "right in memory, but not once it is saved and loaded: what does the configuration still "
        "say about the two layers?"
    )
    need(not got.config.tie_word_embeddings, hint)
    return (
        "a small model often ties the two layers, so an adapter of `lm_head` costs a second large "
        "matrix. This library refuses such a target; `all-linear` leaves the head out."
    )


def _checkpoint(folder: str, step: int) -> tuple[Path, Any]:
    """Writes a checkpoint of an adapter; returns (its folder, the model at that step)."""
    path, model = _adapter_folder(folder)
    state = json.dumps({"global_step": step})
    (path / "trainer_state.json").write_text(state, encoding="utf-8")
    return path, model


@exercise
def resumed(answer: Any) -> str:
    """Decides about a function that resumes an adapter from a checkpoint (exercise 8)."""
    import torch

    _need_function(answer)
    with tempfile.TemporaryDirectory() as folder:
        path, model = _checkpoint(folder, step=37)
        torch.manual_seed(11)
        fresh = _adapted_model()  # with other values than the checkpoint's
        for name, parameter in fresh.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter)
        before, wanted = _probe(fresh), _probe(model)
        with contextlib.redirect_stdout(io.StringIO()):
            step = answer(fresh, path)
        after = _probe(fresh)
    hint = "the model is as it was before: print what load_state_dict returns, and the file's names"
    need(not torch.allclose(after, before), hint)
    need(torch.allclose(after, wanted, atol=1e-6), "the model differs from the checkpoint's")
    need(step is not None, WRITE_IT)
    need(step == 37, "the weights are right; the steps already taken are in trainer_state.json")
    with tempfile.TemporaryDirectory() as empty:
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                answer(_adapted_model(), Path(empty))
        except Exception:
            return (
                "a resume that finds nothing must stop: one that goes ahead trains from step 0 "
                "and overwrites what it should have loaded."
            )
    need(False, "in a folder without a checkpoint your function only prints, and training restarts")
    return ""
