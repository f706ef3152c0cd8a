"""What the profiles say of memory: planned with the notebooks' own settings and parameters."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys

import pytest
import torch

from alpaca_lib.course import machine, runner
from alpaca_lib.course.notebooks import LESSONS, REPO
from alpaca_lib.models import ModelSource
from alpaca_lib.planning import Plan, layout, plan
from alpaca_lib.planning.layout import parse_machine
from alpaca_lib.planning.planner import Work
from alpaca_lib.planning.shapes import SHAPES, build_empty, list_weights, read_config
from alpaca_lib.training import Settings, load_data

FULL, LORA, ANSWERS = LESSONS[2:]
PATHS = {"data_path": "data.json", "output_dir": "out"}
NOT_OF_MEMORY = {*PATHS, "validation_path", "warmup", "save_every", "eval_every", "keep_best"}
WORST = Work(tokens=512.0, labels=1.0)  # rows that are full, with a loss on every token
GPU_PROFILES = ("gpu", "gpus")
CASES = [(name, model) for name in GPU_PROFILES for model in SHAPES if re.search("-[78]b$", model)]


def claims(profile: str) -> dict[str, str]:
    """Returns what a profile's comments say: machine, memory, models."""
    text = (runner.PROFILES / f"{profile}.toml").read_text(encoding="utf-8")
    keys = "machine|memory of the GPU|main memory|models|small model|its memory"
    return dict(re.findall(rf"^# ({keys}): (.*)$", text, re.MULTILINE))


def gigabytes(text: str) -> float:
    return float(text.split(" GB")[0]) * 1e9


def cells(lesson: str) -> list[dict]:
    file = REPO / "notebooks" / f"{lesson}.ipynb"
    return json.loads(file.read_text(encoding="utf-8"))["cells"]


def parameters(lesson: str, profile: str) -> dict:
    """Returns a notebook's parameters, as a profile sets them."""
    (cell,) = [c for c in cells(lesson) if "parameters" in c["metadata"].get("tags", ())]
    found: dict = {}
    exec("".join(cell["source"]), found)
    found |= runner.resolve_parameters([lesson], profile, [])[lesson]
    return {key: value for key, value in found.items() if not key.startswith("_")}


def settings(lesson: str, profile: str, **changes) -> Settings:
    """Returns the Settings that a notebook's own cell makes of its parameters."""
    given = parameters(lesson, profile)
    given["row_length"] = max(given["max_length"], 512)
    for cell in cells(lesson):
        source = "".join(cell["source"])
        if cell["cell_type"] != "code" or "settings = Settings(" not in source:
            continue
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Settings":
                values = {
                    word.arg: eval(ast.unparse(word.value), {"max": max}, given)
                    for word in node.keywords
                    if word.arg not in NOT_OF_MEMORY
                }
                return Settings(**{**PATHS, **values, **changes})
    raise AssertionError(f"{lesson} has no cell with its settings")


def planned(lesson: str, profile: str, model: str, work: Work) -> Plan:
    on = claims(profile)["machine"]
    if lesson == LORA:  # on one of them
        on = on.split("x")[-1]
    return plan(settings(lesson, profile, model=model), on, work)


def test_the_shapes_that_a_profile_names_are_all_of_7_and_8_billion():
    for profile in GPU_PROFILES:
        named = claims(profile)["models"].split(", ")
        assert {model for name, model in CASES if name == profile} == {*named}
    families = {SHAPES[model]["model_type"] for _, model in CASES}
    assert families >= {"llama", "mistral", "qwen2", "qwen3"}


@pytest.mark.parametrize("profile", GPU_PROFILES)
def test_a_profile_names_a_gpu_of_the_memory_that_it_states(profile):
    said = claims(profile)
    assert parse_machine(said["machine"]).memory == gigabytes(said["memory of the GPU"])


@pytest.mark.parametrize("work", [Work(), WORST], ids=["alpaca", "full rows"])
@pytest.mark.parametrize(("profile", "model"), CASES)
def test_lora_fits_the_gpu(profile, model, work):
    found = planned(LORA, profile, model, work)
    assert found.needed <= 0.9 * gigabytes(claims(profile)["memory of the GPU"]), found.needed
    assert found.fits


@pytest.mark.parametrize("model", [model for name, model in CASES if name == "gpus"])
def test_full_training_fits_the_gpus(model):
    context = 1e9  # of the notebook's own process, on the first GPU
    found = planned(FULL, "gpus", model, WORST)
    assert found.needed + context <= 0.9 * gigabytes(claims("gpus")["memory of the GPU"])


def test_full_training_of_7b_does_not_fit_one_gpu_of_24_gb_so_the_profile_has_another_model():
    assert not planned(FULL, "gpu", "llama-7b", WORST).fits
    given = parameters(FULL, "gpu")
    assert given["model"] == "smollm2-135m" and given["processes"] == 1
    assert planned(FULL, "gpu", given["model"], WORST).needed < 0.5 * 24e9


@pytest.mark.parametrize(("profile", "model"), CASES)
def test_base_and_trained_models_answer_in_the_same_memory(profile, model):
    config = read_config(model).get_text_config()
    weights = list_weights(build_empty(read_config(model), torch.bfloat16))
    given = parameters(ANSWERS, profile)
    base = sum(weight.bytes(2, given["quantization"]) for weight in weights)
    fully_trained = base if parameters(FULL, profile)["model"] == given["model"] else 0.0
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * head * 2
    tokens = 512 + given["max_new_tokens"]
    cache = given["batch_size"] * tokens * per_token
    logits = 4 * 4 * max(tokens, given["batch_size"]) * config.vocab_size  # float32, some copies
    prefill = given["batch_size"] * 512 * 3 * config.intermediate_size * 2
    needed = base + fully_trained + cache + logits + prefill
    said = gigabytes(claims(profile)["memory of the GPU"])
    assert parse_machine(claims(profile)["machine"]).needed(needed) <= said
    # Merged in float32, and saved in 2 bytes per parameter.
    numbers = sum(weight.numel for weight in weights)
    assert 4 * numbers + 2e9 <= gigabytes(claims(profile)["main memory"])


@pytest.fixture(scope="module")
def fresh() -> int:
    """Returns the bytes that a process has once the libraries of a run are loaded."""
    code = (
        "from alpaca_lib.planning import layout; from alpaca_lib.training import Settings;"
        "print(layout.library_bytes(Settings(data_path='d', output_dir='o', method='lora')))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True
    )
    return int(float(run.stdout))


def rows_of(profile: str) -> Work:
    """Returns the rows of a profile's training file, in the embedded model's tokens."""
    path = REPO / parameters(FULL, profile)["data_path"]
    run = settings(FULL, profile).replace(data_path=str(path))
    return Work.of(load_data(run, ModelSource.resolve(run.model).load_tokenizer()).rows)


KERNEL = 1.2e9  # the notebook's own process, once its model is deleted


@pytest.mark.parametrize("profile", ["laptop", "epoch", "quick", "chinese"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_laptop_has_the_memory(profile, dtype, fresh, monkeypatch):
    monkeypatch.setattr(layout, "resident", lambda: fresh)  # not what earlier tests left here
    work = rows_of(profile)
    processes = parameters(FULL, profile)["processes"]
    run = settings(FULL, profile, dtype=dtype)
    full = processes * plan(run, f"{processes}xcpu", work).peak + KERNEL
    lora = plan(settings(LORA, profile, dtype=dtype), "cpu", work).peak
    assert max(full, lora) <= gigabytes(claims(profile)["main memory"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_small_chinese_model_has_the_memory_that_its_profile_states(dtype, fresh, monkeypatch):
    """With the parameters that the profile names; the embedded tokenizer makes more tokens."""
    monkeypatch.setattr(layout, "resident", lambda: fresh)
    said = claims("chinese")
    model = said["small model"].split("/")[-1].lower()
    text = (runner.PROFILES / "chinese.toml").read_text(encoding="utf-8")
    assert f"-p model={said['small model']} -p processes=1 -p rows_per_micro_batch=1" in text
    work = rows_of("chinese")
    run = settings(FULL, "chinese", dtype=dtype, model=model, rows_per_micro_batch=1)
    alone = plan(run, "cpu", work).peak + KERNEL
    both = 2 * plan(run, "2xcpu", work).peak + KERNEL
    lora = settings(LORA, "chinese", dtype=dtype, model=model, rows_per_micro_batch=1)
    assert max(alone, plan(lora, "cpu", work).peak) <= gigabytes(said["its memory"])
    assert both <= gigabytes(said["its memory"].split("in two: ")[1])


@pytest.mark.parametrize("profile", ["gpu", "gpus", "epoch", "quick"])
def test_nothing_is_killed_in_a_run_of_a_profile(profile):
    assert parameters(FULL, profile)["kill_after"] == 0


@pytest.mark.parametrize("profile", ["laptop", *GPU_PROFILES])
def test_the_readme_states_the_same_memory(profile):
    readme = (REPO / "README.md").read_text(encoding="utf-8")
    (row,) = [line for line in readme.splitlines() if line.startswith(f"| `{profile}`")]
    said = claims(profile)
    for key in said.keys() & {"memory of the GPU", "main memory"}:
        assert said[key].split(" (")[0] in row, key
    if profile == "laptop":
        assert f"and {said['main memory']} of memory" in readme
        assert f"{machine.NEEDED:g} of it free" in readme


@pytest.mark.parametrize(("profile", "model"), CASES)
def test_lesson_04_loads_the_unquantised_base_into_the_gpu(profile, model):
    """To look at its weights, and to answer with the adapter: one copy at a time."""
    weights = list_weights(build_empty(read_config(model), torch.bfloat16))
    machine = parse_machine(claims(profile)["machine"].split("x")[-1])
    assert machine.needed(sum(2 * weight.numel for weight in weights) + 1e9) <= machine.memory


def test_more_steps_never_need_less_memory(fresh, monkeypatch):
    """With a large vocabulary the labels decide, not the tokens, which micro-batch needs most."""
    monkeypatch.setattr(layout, "resident", lambda: fresh)
    work = rows_of("chinese")
    run = settings(FULL, "chinese", dtype="float32", model="qwen2.5-0.5b", rows_per_micro_batch=1)
    peaks = [plan(run.replace(max_steps=steps), "2xcpu", work).peak for steps in (4, 8, 10, 15)]
    assert peaks == sorted(peaks)
