"""Runs the four scripts as a user does: real processes, the embedded model, real files."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alpaca_lib.launch.launcher import free_port

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"
NAMES = ("generate_instruction", "train", "finetune", "generate")
FUNCTION = "generate_instruction_following_data"
HEAVY = ("torch", "transformers", "gradio", "datasets", "openai", "peft", "numpy")


def run(
    script: str, *arguments: str, cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs one of the scripts with a command line and returns the finished process."""
    command = [sys.executable, str(SCRIPTS / f"{script}.py"), *arguments]
    return execute(command, cwd, environment)


def execute(
    command: list[str], cwd: Path, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("OPENAI_API_KEY", "RANK")}
    return subprocess.run(
        command,
        cwd=cwd,
        env={**kept, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=280,
    )


def good(done: subprocess.CompletedProcess[str]) -> str:
    """Returns what a run printed; fails unless its exit code is 0."""
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def one_error(done: subprocess.CompletedProcess[str], code: int) -> str:
    """Returns the only line on stderr of a run with an exit code."""
    assert done.returncode == code, done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    return lines[0]


def metrics(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Small data files, by their number of rows."""
    all_rows = json.loads((ROOT / "data" / "alpaca_520.json").read_text(encoding="utf-8"))
    folder = tmp_path_factory.mktemp("data")
    files = {}
    for count in (6, 12):
        files[count] = folder / f"rows_{count}.json"
        files[count].write_text(json.dumps(all_rows[:count]), encoding="utf-8")
    return files


@pytest.mark.parametrize("script", NAMES)
def test_help_explains_every_flag_and_imports_nothing_heavy(script: str) -> None:
    command = [sys.executable, "-X", "importtime", str(SCRIPTS / f"{script}.py"), "--help"]
    done = execute(command, ROOT)
    text = good(done)
    assert "Flags" in text and "->" in text and "(default: " in text and "\nexamples:\n" in text
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "difflib" in imported  # importtime was on
    assert imported.isdisjoint(HEAVY)


@pytest.mark.parametrize(
    ("script", "words", "expected"),
    [
        (
            "train",
            ["--learning-rat", "1"],
            "no flag --learning_rat; did you mean '--learning_rate'?",
        ),
        ("finetune", ["--lora_rank", "8"], "did you mean '--lora_r'?"),
        ("generate", ["--lora_weight=x"], "did you mean '--lora_weights'?"),
        ("generate_instruction", [FUNCTION, "--tempratur", "1"], "did you mean '--temperature'?"),
        ("generate_instruction", ["generate_instructions"], f"(choose from '{FUNCTION}')"),
        ("train", ["--bf16", "maybe"], "--bf16 'maybe': takes true or false"),
        ("train", ["--save_strategy=never"], "takes no|steps|epoch"),
        ("train", ["--logging_steps", "0"], "takes a whole number, at least 1"),
        ("finetune", ["--learning_rate", "nan"], "takes a number"),
        ("finetune", ["--data_path"], "--data_path: expected one argument"),
        ("finetune", ["lora-alpaca"], "'lora-alpaca' is not understood"),
        ("train", [], "--data_path is needed"),
        ("train", ["--data_path=d", "--output_dir=o", "--fsdp", "offload"], "takes full_shard"),
        ("generate", ["--prompt_template", "alpca"], "there are alpaca, alpaca_legacy"),
    ],
)
def test_usage_errors_exit_with_2(script: str, words: list[str], expected: str) -> None:
    assert expected in one_error(run(script, *words), code=2)


def test_openai_teacher_without_a_model_name(tmp_path: Path) -> None:
    done = run(
        *("generate_instruction", FUNCTION, "--output_dir", str(tmp_path)),
        OPENAI_API_KEY="a-key-that-must-not-show",
        OPENAI_MODEL="",
    )
    line = one_error(done, code=2)
    assert "--model_name" in line and "--teacher local" in line
    assert "must-not-show" not in done.stdout + done.stderr


def test_finetune_refuses_before_any_work(rows: dict[int, Path], tmp_path: Path) -> None:
    out = ("--output_dir", str(tmp_path / "out"))
    few = run("finetune", "--data_path", str(rows[6]), "--val_set_size", "6", *out)
    assert "6 rows, and --val_set_size takes 6" in one_error(few, code=1)
    missing = run("finetune", "--data_path", str(tmp_path / "none.json"), *out)
    assert "none.json: no such file" in one_error(missing, code=1)
    hub = run("finetune", "--data_path", "a/b", *out, HF_ENDPOINT="http://127.0.0.1:9")
    assert "the hub cannot be reached" in one_error(hub, code=1)
    empty = tmp_path / "empty"
    empty.mkdir()
    nothing = run("finetune", *out, "--resume_from_checkpoint", str(empty))
    assert "neither a checkpoint" in one_error(nothing, code=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_missing_data_for_training(tmp_path: Path) -> None:
    words = ("--data_path", str(tmp_path / "none.json"), "--output_dir", str(tmp_path / "out"))
    assert "none.json: no such file" in one_error(run("train", *words), code=1)


@pytest.mark.slow
def test_generate_instruction_with_the_local_teacher(tmp_path: Path) -> None:
    module = [sys.executable, "-m", "generate_instruction", FUNCTION]
    words = ["--output_dir", str(tmp_path), "--num-instructions-to-generate=2"]
    words += ["--request_batch_size", "1", "--tasks_per_request", "2", "--max_requests", "6"]
    out = good(execute([*module, *words], SCRIPTS))
    assert "--num-instructions-to-generate 2 -> tasks_wanted 2" in out
    assert "teacher: local, smollm2-135m (OPENAI_API_KEY is not set" in out
    assert "temperature 0.8, top_p 0.95" in out
    first = (tmp_path / "regen.json").read_bytes()
    kept = json.loads(first)
    assert len(kept) >= 2 and all(task["instruction"] and task["output"] for task in kept)
    assert f": {len(kept)} of 2 kept" in out
    requests = (tmp_path / "journal.jsonl").read_text("utf-8").count('"reply"')

    # Again, from the root: nothing is asked a second time.
    again = good(run("generate_instruction", FUNCTION, *words))
    assert f"in {requests} requests ({requests} from the journal)" in again
    assert (tmp_path / "regen.json").read_bytes() == first
    other = run("generate_instruction", FUNCTION, *words, "--seed", "1")
    assert "seed: 0 there, 1 now" in one_error(other, code=1)


def test_generate_instruction_with_the_replay_teacher(tmp_path: Path) -> None:
    """The course's replies, through the script: the course's first rows."""
    words = ["--output_dir", str(tmp_path), "--num_instructions_to_generate", "30"]
    good(run("generate_instruction", FUNCTION, *words, "--teacher", "replay"))
    kept = json.loads((tmp_path / "regen.json").read_text("utf-8"))
    shipped = json.loads((ROOT / "data" / "alpaca_520.json").read_text("utf-8"))
    assert 30 <= len(kept) < 60
    for mine, row in zip(kept, shipped, strict=False):
        assert all(mine[name] == row[name] for name in ("instruction", "input", "output"))


@pytest.mark.parametrize("reply_format", ["text", "json"])
def test_generate_instruction_foresees_the_cost(tmp_path: Path, reply_format: str) -> None:
    """A paid run says before it asks what it will cost; with no money it asks nothing."""
    words = ["--output_dir", str(tmp_path), "--model_name", "gpt-6-luna", "--max_usd", "0"]
    words += ["--num_instructions_to_generate", "52000", "--reply_format", reply_format]
    keys = {"OPENAI_API_KEY": "no-key", "OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}
    out = good(run("generate_instruction", FUNCTION, *words, **keys))
    assert re.search(r"cost: about \$\d\.\d\d \(\$\d\.\d\d to \$\d\.\d\d\)", out)
    assert "stopped by --max_usd" in out and "no-key" not in out


@pytest.mark.slow
def test_train_alone_and_with_the_lessons_torchrun_command(
    rows: dict[int, Path], tmp_path: Path, tiny_folder: Path
) -> None:
    """Two layers are enough here: notebook 03 starts two processes on the embedded model."""
    lesson = ["--model_name_or_path", str(tiny_folder), "--data_path", str(rows[6])]
    lesson += ["--bf16", "True"]
    lesson += ["--num_train_epochs", "3", "--per_device_train_batch_size", "4"]
    lesson += ["--per_device_eval_batch_size", "4", "--gradient_accumulation_steps", "8"]
    lesson += ["--evaluation_strategy", "no", "--save_total_limit", "1"]
    lesson += ["--save_steps", "2000", "--learning_rate", "2e-5", "--weight_decay", "0."]
    lesson += ["--lr_scheduler_type", "cosine", "--logging_steps", "1", "--tf32", "True"]
    lesson += ["--fsdp", "full_shard auto_wrap"]
    lesson += ["--fsdp_transformer_layer_cls_to_wrap", "LlamaDecoderLayer", "--max_steps", "1"]

    one = tmp_path / "one"
    ours = ["--output_dir", str(one), "--save_strategy", "no", "--warmup_ratio", "0"]
    out = good(run("train", *lesson, *ours))
    assert "--bf16 True -> dtype bfloat16" in out
    assert "= 4 x 8 x 1 process = 32; checkpoints never" in out
    [line] = metrics(one)
    assert f"step 1/1  loss {line['loss']:.4f}" in out and line["lr"] == 2e-5
    assert not list(one.glob("checkpoint-*")) and (one / "model.safetensors").is_file()

    two = tmp_path / "two"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    torchrun += [f"--master_port={free_port()}", "train.py", *lesson]
    torchrun += ["--output_dir", str(two), "--save_strategy", "steps", "--warmup_ratio", "0.03"]
    out = good(execute(torchrun, SCRIPTS))
    assert out.count("step 1/1") == out.count("--bf16 True ->") == 1  # rank 0 alone prints
    record = json.loads((two / "run.json").read_text("utf-8"))
    assert record["processes"] == 2 and record["settings"]["examples_per_step"] == 64
    assert record["settings"]["save_every"] == 2000 and (two / "config.json").is_file()
    # All six rows are in either's step, so two shards must see the loss that one process saw.
    assert metrics(two)[0]["loss"] == pytest.approx(line["loss"], rel=0.01)


@pytest.mark.slow
def test_finetune_then_generate(rows: dict[int, Path], tmp_path: Path) -> None:
    folder = tmp_path / "lora-alpaca"
    words = ["--data_path", str(rows[12]), "--output_dir", str(folder), "--quantization", "none"]
    words += ["--batch_size", "2", "--max_steps", "1", "--lora_target_modules", "[q_proj,v_proj]"]
    words += ["--val_set_size", "2000", "--train_on_inputs", "--group_by_length"]
    out = good(run("finetune", *words))
    assert "val_set_size 2000 -> 1, a tenth: there are only 12 rows" in out
    assert "--train_on_inputs True -> mask_prompt False" in out
    settings = json.loads((folder / "run.json").read_text("utf-8"))["settings"]
    assert settings["template"] == "alpaca-lora" and settings["lora_targets"] == "q_proj,v_proj"
    assert settings["add_eos"] and settings["validation_rows"] == 1

    question = "Name two rivers in <b>Europe</b>."
    asked = ["--prompt", question, "--temperature", "0", "--max_new_tokens", "12"]
    done = run("generate", *asked, "--lora_weights", str(folder))
    answer = good(done).strip()
    assert "template alpaca-lora" in done.stderr
    assert answer == plain_answer(folder, question, tokens=12)


@pytest.mark.slow
def test_the_lessons_8_bits(rows: dict[int, Path], tmp_path: Path) -> None:
    """Upstream's default: the base model in int8, checkpoints on, then --load_8bit."""
    folder = tmp_path / "lora-alpaca"
    words = ["--data_path", str(rows[12]), "--output_dir", str(folder)]
    good(run("finetune", *words, "--batch_size", "2", "--max_steps", "1"))
    record = json.loads((folder / "run.json").read_text("utf-8"))
    assert record["settings"]["quantization"] == "int8"
    asked = ("--prompt", "Name two rivers.", "--max_new_tokens", "8")
    assert good(run("generate", "--load_8bit", "--lora_weights", str(folder), *asked)).strip()


def plain_answer(folder: Path, question: str, tokens: int) -> str:
    """The same answer by transformers and peft alone, with upstream's prompt typed out."""
    import peft
    import torch
    import transformers

    from alpaca_lib import models

    base = models.ModelSource.resolve("smollm2-135m").path
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=models.place().dtype)
    model = peft.PeftModel.from_pretrained(model, str(folder)).eval()
    prompt = (
        "Below is an instruction that describes a task. Write a response that appropriately "
        f"completes the request.\n\n### Instruction:\n{question}\n\n### Response:\n"
    )
    ids = tokenizer(prompt, return_tensors="pt")
    with torch.inference_mode():
        out = model.generate(**ids, do_sample=False, max_new_tokens=tokens)
    new = out[0, ids["input_ids"].shape[1] :]
    return str(tokenizer.decode(new, skip_special_tokens=True)).strip()


@pytest.fixture
def page(tmp_path: Path) -> Iterator[str]:
    """The address of generate.py's page, served by a process of its own."""
    address = f"http://127.0.0.1:{(port := free_port())}/"
    log = open(tmp_path / "page.log", "w+", encoding="utf-8")  # noqa: SIM115
    command = [sys.executable, str(SCRIPTS / "generate.py"), "--server_port", str(port)]
    server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=tmp_path)
    try:
        end = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(address, timeout=5).close()
                break
            except (urllib.error.URLError, TimeoutError):
                alive = server.poll() is None and time.monotonic() < end
                assert alive, (tmp_path / "page.log").read_text("utf-8")
                time.sleep(0.3)
        yield address
    finally:
        server.terminate()
        server.wait(timeout=30)
        log.close()


@pytest.mark.slow
def test_the_page_answers_stops_and_shows_errors_as_text(page: str) -> None:
    gradio_client = pytest.importorskip("gradio_client")
    html = urllib.request.urlopen(page, timeout=20).read().decode("utf-8")
    assert "smollm2-135m" in html and '"analytics_enabled":false' in html
    client = gradio_client.Client(page, verbose=False)

    def words(tokens: float, instruction: str = "Say <b>hi</b>.", top_p: float = 1) -> list[Any]:
        return [instruction, "", "smollm2-135m", "(none)", 0, top_p, 0, 1, tokens, True]

    def ask(*given: Any) -> str:
        return str(client.predict(*words(*given), api_name="/answer")[0])

    answer = ask(6)
    assert answer and not answer.startswith("error")
    assert ask(6, " ").startswith("error: the instruction")
    assert "do not fit" in ask(8190)
    with pytest.raises(gradio_client.exceptions.AppError, match="greater than maximum"):
        ask(6, "Say it.", 7)

    # A long answer that is stopped leaves the model to the next one, at once.
    long = client.submit(*words(1500, "Count from 1 to 2000, every number."), api_name="/answer")
    end = time.monotonic() + 60
    while len(long.outputs()) < 3 and time.monotonic() < end:
        time.sleep(0.1)
    assert len(long.outputs()) >= 3 and not long.done()
    long.cancel()
    since = time.monotonic()
    assert ask(6) == answer
    assert time.monotonic() - since < 20
