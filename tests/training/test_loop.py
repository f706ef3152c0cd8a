"""The loop on a tiny random model: against plain torch, resumed, stopped, and on two ranks."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, get_scheduler

from alpaca_lib import models
from alpaca_lib.errors import DataError, TrainingStopped
from alpaca_lib.launch import launcher
from alpaca_lib.records import Example, load_examples, save_examples
from alpaca_lib.training import checkpoints
from alpaca_lib.training.build import build
from alpaca_lib.training.examples import count_labels, encode, split_examples
from alpaca_lib.training.loop import train
from alpaca_lib.training.settings import Settings
from alpaca_lib.training.sharding import Distributed

FIELDS = ["step", "loss", "lr", "grad_norm", "tokens", "tokens_per_second", "mfu"]
FIELDS += ["peak_memory_bytes"]


@pytest.fixture(scope="module")
def small_folder(make_tiny, tokenizer, tmp_path_factory):
    """The tiny model, narrower still, so that a step takes milliseconds."""
    folder = tmp_path_factory.mktemp("small")
    model = make_tiny(hidden_size=16, intermediate_size=32, num_attention_heads=2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def settings(small_folder, data_file, tmp_path):
    """Four steps of five examples on the CPU in float32."""
    return Settings(
        data_path=str(data_file),
        output_dir=str(tmp_path / "run"),
        model=str(small_folder),
        max_steps=4,
        examples_per_step=5,
        max_length=128,
        row_length=256,
        rows_per_micro_batch=1,
        learning_rate=1e-2,
        weight_decay=0.1,
        device="cpu",
        dtype="float32",
    )


def in_folder(settings, name, **changes):
    """The same run in a folder beside."""
    return settings.replace(output_dir=str(Path(settings.output_dir).parent / name), **changes)


def metrics(folder):
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def losses(folder):
    """The training losses in order of steps."""
    return [line["loss"] for line in metrics(folder) if "loss" in line]


def weights(folder):
    """All saved tensors of a folder by name."""
    from safetensors.torch import load_file

    (file,) = Path(folder).glob("*.safetensors")
    return load_file(file)


def same(a, b, tolerance=0.0):
    """Whether two sets of tensors agree: to the bit, or within a tolerance."""
    assert a and set(a) == set(b)
    return all((a[n].float() - b[n].float()).abs().max() <= tolerance for n in a)


def plain_training(settings):
    """The same run in plain torch: one example at a time, transformers' own loss."""
    torch.manual_seed(settings.seed)
    model = AutoModelForCausalLM.from_pretrained(settings.model, dtype=torch.float32).train()
    tokenizer = AutoTokenizer.from_pretrained(settings.model)
    rows = [
        encode(e, tokenizer, max_length=settings.max_length)
        for e in load_examples(settings.data_path)
    ]
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    schedule = get_scheduler(
        settings.schedule,
        optimizer,
        math.ceil(settings.warmup * settings.max_steps),
        settings.max_steps,
    )
    steps, out = math.ceil(len(rows) / settings.examples_per_step), []
    for step in range(settings.max_steps):
        epoch, place = divmod(step, steps)
        order = list(range(len(rows)))
        random.Random(f"{settings.seed}:{epoch}").shuffle(order)
        chosen = order[place * settings.examples_per_step :][: settings.examples_per_step]
        count, total = sum(count_labels(rows[i]) for i in chosen), 0.0
        for i in chosen:
            ids, labels = (torch.tensor([rows[i][k]]) for k in ("input_ids", "labels"))
            loss = model(input_ids=ids, labels=labels).loss * count_labels(rows[i]) / count
            loss.backward()
            total += float(loss)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        out.append({"loss": total, "lr": schedule.get_last_lr()[0], "grad_norm": float(norm)})
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model.state_dict(), out


# --- one run ------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 8])
def test_training_is_plain_torch(settings, rows):
    """Losses, rates, norms and final weights are those of a plain loop without packing."""
    settings = settings.replace(rows_per_micro_batch=rows)
    state, lines = plain_training(settings)
    folder = train(settings)
    for ours, theirs in zip(metrics(folder), lines, strict=True):
        for name, value in theirs.items():
            assert ours[name] == pytest.approx(value, rel=1e-4), name
    saved = weights(folder)
    expected = {n: t for n, t in state.items() if n in saved}
    assert same(saved, expected, 2e-4)
    start = weights(settings.model)
    assert not same(saved, start, 1e-3)  # it did train


def test_output_folder(settings, small_folder, data_file):
    """What a run leaves: a model that loads, metrics with all fields, run.json."""
    seen = []
    folder = train(settings.replace(validation_rows=2), report=seen.append)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert same(
        {n: t for n, t in model.state_dict().items() if n in weights(folder)}, weights(folder)
    )
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    assert AutoTokenizer.from_pretrained(folder).eos_token == "<|im_end|>"
    lines = metrics(folder)
    assert lines == seen
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    for line in steps:
        assert set(FIELDS) <= set(line)
        assert all(math.isfinite(line[name]) and line[name] >= 0 for name in FIELDS)
        assert line["tokens_per_second"] > 0 and line["peak_memory_bytes"] > 10**7
    assert [line["step"] for line in lines if "validation_loss" in line] == [0, 4]
    run = json.loads((folder / "run.json").read_text())
    assert run["settings"] == settings.replace(validation_rows=2).to_dict()
    assert run["settings"]["seed"] == 0 and run["versions"]["torch"] == torch.__version__
    assert run["placement"]["dtype"] == "float32" and run["processes"] == 1
    assert (run["steps"], run["training_rows"], run["validation_rows"]) == (4, 10, 2)
    assert not [p.name for p in folder.iterdir() if "partial" in p.name]


def test_tokens_are_counted(settings, tokenizer):
    """tokens is the number of tokens of the step's examples, padding left out."""
    settings = settings.replace(examples_per_step=100, max_steps=1)
    rows = [encode(e, tokenizer, max_length=128) for e in load_examples(settings.data_path)]
    (line,) = metrics(train(settings))
    assert line["tokens"] == sum(len(row["input_ids"]) for row in rows)
    assert line["label_tokens"] == sum(count_labels(row) for row in rows)


def test_validation_loss_is_transformers(settings, tokenizer):
    """The first validation loss is that of the untrained model, as transformers sees it."""
    settings = settings.replace(validation_rows=4, max_steps=1)
    model = AutoModelForCausalLM.from_pretrained(settings.model, dtype=torch.float32)
    total = count = 0
    held, _, _ = split_examples(load_examples(settings.data_path), 4, settings.seed)
    for example in held:
        row = encode(example, tokenizer, max_length=128)
        ids, labels = (torch.tensor([row[k]]) for k in ("input_ids", "labels"))
        with torch.no_grad():
            total += float(model(input_ids=ids, labels=labels).loss) * count_labels(row)
        count += count_labels(row)
    assert metrics(train(settings))[0]["validation_loss"] == pytest.approx(total / count, rel=1e-5)


def test_same_seed_same_weights(settings):
    """Two runs are equal to the bit; another seed is another run."""
    a = weights(train(in_folder(settings, "a")))
    assert same(a, weights(train(in_folder(settings, "b"))))
    assert not same(a, weights(train(in_folder(settings, "c", seed=1))))


def test_activation_checkpointing_changes_nothing(settings):
    """Less memory, the same weights."""
    a = weights(train(in_folder(settings, "a")))
    assert same(a, weights(train(in_folder(settings, "b", activation_checkpointing=True))), 1e-6)


def test_masters_begin_as_exact_as_the_files(settings):
    """The float32 of the files, not what is left of it in the bfloat16 copies: rounded masters
    would hold back every copy's first step, and let them all go at once."""
    dist = Distributed(0, 1, 0)
    chosen = settings.replace(dtype="bfloat16")
    built = build(chosen, models.place("cpu", "bfloat16"), dist)
    files = load_file(Path(settings.model) / "model.safetensors")
    for name, parameter in built.model.named_parameters():
        assert parameter.dtype == torch.bfloat16
        assert torch.equal(parameter, files[name].bfloat16())
        assert torch.equal(built.weights.masters[f"model.{name}"], files[name])
    alone = build(chosen.replace(master_weights=False), models.place("cpu", "bfloat16"), dist)
    assert {m.dtype for m in alone.weights.masters.values()} == {torch.bfloat16}


def test_bfloat16_is_saved_as_such(settings):
    """dtype bfloat16 computes and saves in bfloat16, near the float32 run."""
    a = train(in_folder(settings, "a"))
    b = train(in_folder(settings, "b", dtype="bfloat16"))
    assert {t.dtype for t in weights(b).values()} == {torch.bfloat16}
    assert json.loads((b / "config.json").read_text())["dtype"] == "bfloat16"
    assert losses(b) == pytest.approx(losses(a), rel=0.02)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "constant_with_warmup"])
def test_learning_rates(settings, schedule):
    """The rates in the log are those of transformers' scheduler."""
    settings = settings.replace(schedule=schedule, warmup=2, max_steps=5)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=settings.learning_rate)
    reference = get_scheduler(schedule, optimizer, 2, 5)
    rates = []
    for _ in range(5):
        rates.append(reference.get_last_lr()[0])
        optimizer.step()
        reference.step()
    assert [line["lr"] for line in metrics(train(settings))] == pytest.approx(rates)


def test_epochs_and_log_every(settings):
    """Two epochs of twelve in steps of five are six; each second one is logged."""
    folder = train(settings.replace(max_steps=0, epochs=2.0, log_every=4))
    assert [line["step"] for line in metrics(folder)] == [4, 6]


# --- LoRA ---------------------------------------------------------------------------


def test_lora_folder_loads_with_peft(settings):
    """An adapter folder names its base, loads on it, and changed what it gives."""
    peft = pytest.importorskip("peft")
    folder = train(settings.replace(method="lora"))
    base = AutoModelForCausalLM.from_pretrained(settings.model, dtype=torch.float32)
    ids = torch.arange(50, 90)[None]
    with torch.no_grad():
        before = base(ids).logits
        model = peft.PeftModel.from_pretrained(base, folder).eval()
        after = model(ids).logits
        ours = (
            models.ModelSource.resolve(str(folder))
            .load_model(models.place("cpu", "float32"))(ids)
            .logits
        )
    assert not torch.allclose(before, after, atol=1e-4) and torch.equal(after, ours)
    assert (
        json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
        == settings.model
    )
    assert not (folder / "model.safetensors").exists()


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_validation_leaves_a_quantized_base_trainable(settings, tiny_folder, quantization):
    """Gradients after a validation are those without one (bitsandbytes packs 4-bit weights
    anew in eval mode on some CPUs, and no gradient flows through those)."""
    pytest.importorskip("bitsandbytes")
    settings = settings.replace(model=str(tiny_folder), method="lora", quantization=quantization,
        lora_targets="all-linear", dtype="bfloat16",
    )  # fmt: skip
    plain = train(in_folder(settings, "plain"))
    validated = train(
        in_folder(settings, "validated", validation_path=settings.data_path, eval_every=1)
    )
    norms = [[m["grad_norm"] for m in metrics(f) if "loss" in m] for f in (plain, validated)]
    assert norms[0] == norms[1] and same(weights(plain), weights(validated))


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_lora_on_a_quantized_base(settings, tiny_folder, quantization):
    """QLoRA on the CPU: the loss falls, and the adapter is saved."""
    pytest.importorskip("bitsandbytes")
    settings = settings.replace(model=str(tiny_folder), method="lora", quantization=quantization,
        lora_targets="all-linear", examples_per_step=12, max_steps=3,
    )  # fmt: skip
    folder = train(settings)
    values = losses(folder)
    assert values[-1] < values[0]
    assert (folder / "adapter_model.safetensors").is_file()


def test_full_training_of_quantized_weights_is_refused(settings):
    """Full training needs whole weights, and says so."""
    with pytest.raises(ValueError, match="quantization"):
        train(settings.replace(quantization="nf4"))


def test_full_run_after_a_lora_run_in_the_same_folder(settings):
    """resume="never": what the folder then holds is the new model, not the old adapter."""
    train(settings.replace(method="lora"))
    folder = train(settings.replace(method="full", resume="never"))
    model = models.ModelSource.resolve(str(folder)).load_model(models.place("cpu", "float32"))
    assert type(model).__name__ == "LlamaForCausalLM"
    state = model.state_dict()
    from safetensors.torch import load_file

    saved = load_file(folder / "model.safetensors")
    assert same(saved, {n: state[n] for n in saved})


# --- resume -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method": "lora", "lora_dropout": 0.3, "lora_targets": "all-linear"},
        {"schedule": "linear", "validation_rows": 2, "eval_every": 1, "warmup": 2},
    ],
    ids=["full", "lora with dropout", "validation and warm-up"],
)
def test_resumed_is_unbroken(settings, changes):
    """Resumed from a checkpoint: weights to the bit, and the same lines of metrics."""
    settings = settings.replace(save_every=1, keep_checkpoints=10, **changes)
    whole = train(in_folder(settings, "whole"))
    lines = (whole / "metrics.jsonl").read_text().splitlines(keepends=True)

    def timeless(folder):
        moving = ("tokens_per_second", "mfu", "gemm_share", "peak_memory_bytes", "seconds_left")
        return [{k: v for k, v in line.items() if k not in moving} for line in metrics(folder)]

    for at in (1, 3):
        broken = Path(in_folder(settings, f"broken-{at}").output_dir)
        broken.mkdir()
        shutil.copytree(whole / f"checkpoint-{at}", broken / f"checkpoint-{at}")
        cut = [n for n, line in enumerate(lines) if json.loads(line)["step"] <= at][-1]
        torn = "".join(lines[: cut + 2]) + '{"step": 3, "lo'  # a step further, and a torn line
        (broken / "metrics.jsonl").write_text(torn)
        train(in_folder(settings, f"broken-{at}"))
        assert same(weights(whole), weights(broken))
        assert timeless(broken) == timeless(whole)


def test_resume_passes_over_a_damaged_checkpoint(settings, capsys):
    """The newest is damaged: the one before is taken, said, and the end is the same."""
    settings = settings.replace(save_every=1, keep_checkpoints=10)
    whole = train(in_folder(settings, "whole"))
    broken = Path(in_folder(settings, "broken").output_dir)
    for step in (2, 3):
        shutil.copytree(whole / f"checkpoint-{step}", broken / f"checkpoint-{step}")
    file = max((broken / "checkpoint-3" / "state").iterdir(), key=lambda p: p.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    capsys.readouterr()
    train(in_folder(settings, "broken"))
    said = capsys.readouterr().out
    assert "checkpoint-3 is skipped" in said and "checkpoint-2: step 2 of 4" in said
    assert same(weights(whole), weights(broken))


def test_resume_never_starts_at_step_0(settings, capsys):
    """resume="never" looks at no checkpoint and writes new metrics."""
    folder = train(settings.replace(save_every=2))
    train(settings.replace(save_every=2, resume="never"))
    assert "resuming" not in capsys.readouterr().out
    assert [line["step"] for line in metrics(folder)] == [1, 2, 3, 4]


def test_finished_run_started_again(settings):
    """A finished run that is started again changes neither weights nor metrics."""
    settings = settings.replace(save_every=2, validation_rows=2)
    folder = train(settings)
    before, state = metrics(folder), weights(folder)
    train(settings)
    assert same(state, weights(folder))
    assert metrics(folder) == before


def test_a_template_with_the_time_resumes(settings, tokenizer, tmp_path):
    """The time that the prompts show is the run's first one, also when it is resumed later."""
    import copy

    folder = tmp_path / "clock"
    shutil.copytree(settings.model, folder)
    clock = copy.deepcopy(tokenizer)
    clock.chat_template = "{{ strftime_now('%H:%M:%S.%f') }}\n" + clock.chat_template
    clock.save_pretrained(folder)
    settings = settings.replace(model=str(folder), template="chat", save_every=2, max_length=160)
    settings = settings.replace(schedule="constant", warmup=0)
    train(settings.replace(max_steps=2))
    first = json.loads((Path(settings.output_dir) / "run.json").read_text())["prompt_time"]
    output = train(settings)
    assert [line["step"] for line in metrics(output)] == [1, 2, 3, 4]
    assert json.loads((output / "run.json").read_text())["prompt_time"] == first != ""
    train(settings.replace(resume="never"))
    assert json.loads((output / "run.json").read_text())["prompt_time"] > first


def test_a_trained_folder_publishes_its_prompt(settings):
    """The tokenizer that is saved with a model renders the prompt that the model was trained on."""
    from alpaca_lib.prompts import render_prompt

    folder = train(settings.replace(template="alpaca-lora", max_steps=1))
    saved = AutoTokenizer.from_pretrained(folder)
    message = [{"role": "user", "content": "Say {x}."}]
    text = saved.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    assert text == render_prompt(Example("Say {x}."), "alpaca-lora")


def test_a_longer_run_resumes(settings):
    """With a constant rate, two steps and then two more are four steps at once."""
    settings = settings.replace(save_every=1, schedule="constant")
    whole = train(in_folder(settings, "whole"))
    train(in_folder(settings, "parts", max_steps=2))
    parts = train(in_folder(settings, "parts"))
    assert same(weights(whole), weights(parts))


def test_resume_with_other_settings_is_refused(settings):
    """Another learning rate is another run: named with both values."""
    settings = settings.replace(save_every=2)
    train(settings)
    with pytest.raises(checkpoints.CheckpointError, match=r"learning_rate was 0\.01, is 0\.02"):
        train(settings.replace(learning_rate=0.02))


def test_resume_with_other_data_is_refused(settings, tmp_path, some_examples):
    """The data file has changed since the checkpoint: its steps would be other ones."""
    file = save_examples(some_examples, tmp_path / "mine.json")
    settings = settings.replace(data_path=str(file), save_every=1, keep_checkpoints=10)
    folder = train(settings)
    for step in (3, 4):
        shutil.rmtree(folder / f"checkpoint-{step}")
    save_examples([Example("Other words.", "", "Other answer."), *some_examples[1:]], file)
    with pytest.raises((checkpoints.CheckpointError, DataError), match=r"mine\.json"):
        train(settings)


def test_named_checkpoint(settings):
    """resume=FOLDER takes that one; a damaged or missing one is refused."""
    settings = settings.replace(save_every=1, keep_checkpoints=10)
    whole = train(in_folder(settings, "whole"))
    other = train(in_folder(settings, "other", resume=str(whole / "checkpoint-2")))
    assert same(weights(whole), weights(other))
    with pytest.raises(checkpoints.CheckpointError, match="checkpoint-77"):
        train(in_folder(settings, "third", resume=str(whole / "checkpoint-77")))


def test_keep_checkpoints(settings):
    """Only that many of the newest stay."""
    folder = train(settings.replace(save_every=1, keep_checkpoints=2))
    assert sorted(p.name for p in folder.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]


# --- stops --------------------------------------------------------------------------


def test_nan_stops_with_the_rows(settings, small_folder, tmp_path):
    """A poisoned weight: the run stops at once, names rows, and saves no model."""
    bad = tmp_path / "poisoned"
    shutil.copytree(small_folder, bad)
    model = AutoModelForCausalLM.from_pretrained(bad)
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = float("nan")
    model.save_pretrained(bad)
    with pytest.raises(TrainingStopped) as caught:
        train(settings.replace(model=str(bad)))
    order = list(range(12))
    random.Random("0:0").shuffle(order)
    assert "step 1:" in str(caught.value) and str(order[:5]) in str(caught.value)
    assert "nan" in str(caught.value)
    assert not (Path(settings.output_dir) / "config.json").exists()


def test_exploding_rate_stops(settings):
    """A rate that makes weights infinite stops the run; no broken model is left."""
    with pytest.raises(TrainingStopped, match="learning_rate"):
        train(settings.replace(learning_rate=1e38, warmup=0, schedule="constant", weight_decay=0.0))
    assert not list(Path(settings.output_dir).glob("*.safetensors"))


def test_data_errors_come_before_work(settings, tmp_path):
    """Missing data, no rows left, answers out of reach: DataErrors, no output."""
    with pytest.raises(DataError, match=r"none\.json"):
        train(settings.replace(data_path=str(tmp_path / "none.json")))
    with pytest.raises(DataError, match="validation_rows"):
        train(settings.replace(validation_rows=12))
    with pytest.raises(DataError, match="max_length 4"):
        train(settings.replace(max_length=4))
    assert not Path(settings.output_dir).exists()


@pytest.mark.slow
def test_sigterm_saves_and_a_new_start_goes_on(settings, tmp_path):
    """SIGTERM: the step is finished and saved; the next start ends as an unbroken run."""
    settings = settings.replace(max_steps=400, validation_rows=0)
    file = settings.save(tmp_path / "settings.json")
    process = subprocess.Popen(
        [sys.executable, "-m", "alpaca_lib.training", "run", str(file)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ),
    )  # fmt: skip
    folder, deadline = Path(settings.output_dir), time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        if (folder / "metrics.jsonl").exists() and len(metrics(folder)) >= 2:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "error: stop requested: step" in errors
    _, step = checkpoints.find_newest(folder)
    assert 2 <= step < 400 and losses(folder)[-1] and len(losses(folder)) == step
    assert f"step {step} of 400" in errors


# --- many processes -----------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_are_one(settings):
    """Two ranks with FSDP2: losses, norms and weights of one process, and a checkpoint
    of two that one process goes on from."""
    settings = settings.replace(
        save_every=2, keep_checkpoints=10, validation_rows=2, examples_per_step=6
    )
    one = train(in_folder(settings, "one"))
    two = in_folder(settings, "two")
    lines = list(launcher.launch(two, processes=2))
    folder = Path(two.output_dir)
    assert lines == metrics(folder)
    assert losses(folder) == pytest.approx(losses(one), rel=1e-4)
    for name in ("grad_norm", "lr", "tokens", "label_tokens", "validation_loss"):
        a, b = ([line[name] for line in metrics(f) if name in line] for f in (folder, one))
        assert a == pytest.approx(b, rel=1e-4), name
    assert same(weights(folder), weights(one), 1e-4)
    assert json.loads((folder / "run.json").read_text())["processes"] == 2
    shutil.rmtree(folder / "checkpoint-4")
    assert same(weights(train(two)), weights(one), 1e-4)


@pytest.mark.slow
def test_closing_the_launch_saves_and_stops(settings):
    """Closing the iterator early leaves a whole checkpoint and no process."""
    settings = settings.replace(max_steps=2000)
    lines = launcher.launch(settings, processes=1)
    assert next(lines)["step"] == 1
    lines.close()
    path, step = checkpoints.find_newest(Path(settings.output_dir))
    assert 1 <= step < 2000 and checkpoints.find_damage(path) is None
    assert "stop requested" in (Path(settings.output_dir) / "train.log").read_text()


@pytest.mark.slow
def test_launch_error_is_the_runs_own(settings, tmp_path):
    """A missing data file: the launched run's own words, with the file and the log."""
    settings = settings.replace(data_path=str(tmp_path / "no-such.json"))
    save_examples([Example("a b c d")], tmp_path / "here.json")
    with pytest.raises(launcher.LaunchError) as caught:
        list(launcher.launch(settings, processes=1))
    text = str(caught.value)
    assert "no-such.json: no such file" in text and "here.json" in text and "train.log" in text
    assert "Traceback" not in text


def test_command_line_refuses_bad_settings(tmp_path):
    """python -m alpaca_lib.training: usage with code 2, an error line with code 1."""

    def call(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "alpaca_lib.training", *arguments],
            capture_output=True,
            text=True,
        )

    assert call("walk").returncode == 2
    (tmp_path / "bad.json").write_text('{"data_path": "x", "output_dir": "y", "learningrate": 1}')
    done = call("run", str(tmp_path / "bad.json"))
    assert done.returncode == 1 and "did you mean 'learning_rate'" in done.stderr
    assert "Traceback" not in done.stderr
