"""Reads the flags of the scripts into the library's options, without a run."""

from __future__ import annotations

import importlib
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
# The lesson's two commands; what they name in <> is given by each test.
LESSON_TRAIN = """--bf16 True --num_train_epochs 3 --per_device_train_batch_size 4
    --per_device_eval_batch_size 4 --gradient_accumulation_steps 8 --evaluation_strategy "no"
    --save_strategy "steps" --save_steps 2000 --save_total_limit 1 --learning_rate 2e-5
    --weight_decay 0. --warmup_ratio 0.03 --lr_scheduler_type "cosine" --logging_steps 1
    --fsdp "full_shard auto_wrap" --fsdp_transformer_layer_cls_to_wrap 'LlamaDecoderLayer'
    --tf32 True"""
LESSON_FINETUNE = """--batch_size 128 --micro_batch_size 4 --num_epochs 3 --learning_rate 1e-4
    --cutoff_len 512 --val_set_size 2000 --lora_r 8 --lora_alpha 16 --lora_dropout 0.05
    --lora_target_modules '[q_proj,v_proj]' --train_on_inputs --group_by_length"""


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts' folder on the path, and an environment that asks for no tracker."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(SCRIPTS)])
    for name in ("RANK", "WORLD_SIZE", "WANDB_PROJECT", "WANDB_LOG_MODEL"):
        monkeypatch.delenv(name, raising=False)


def parsed(name: str, *words: str) -> tuple[Any, Any]:
    """Returns a script's module, and a command line read by it."""
    module, flags = importlib.import_module(name), importlib.import_module("flags")
    return module, flags.parse(module.SCRIPT, list(words))


def train(*words: str, processes: int = 4) -> Any:
    module, given = parsed("train", "--data_path", "d.json", "--output_dir", "out", *words)
    return module.to_settings(given, processes)


@pytest.fixture
def finetune(data_file: Path, tmp_path: Path) -> Any:
    """Returns a function from flags to the Settings of finetune.py on twelve rows."""

    def settings(*words: str) -> Any:
        out = str(tmp_path / "out")
        module, given = parsed(
            "finetune", "--data_path", str(data_file), "--output_dir", out, *words
        )
        return module.to_settings(given)

    return settings


def test_the_lessons_train_command() -> None:
    got = train(*shlex.split(LESSON_TRAIN))
    expected = {
        **{"method": "full", "epochs": 3.0, "examples_per_step": 128, "learning_rate": 2e-5},
        **{"save_every": 2000, "keep_checkpoints": 1, "warmup": 0.03, "schedule": "cosine"},
        **{"dtype": "bfloat16", "sharding": "full", "gather": "auto", "optimizer": "adamw"},
        **{"max_length": 512, "row_length": 512, "rows_per_micro_batch": 4, "log_every": 1},
        **{"batching": "pack", "compile": False, "trackers": "", "resume": "auto"},
        **{"mask_prompt": True, "template": "alpaca", "keep_best": False, "weight_decay": 0.0},
    }
    assert {name: getattr(got, name) for name in expected} == expected


def test_the_lessons_finetune_command(finetune: Any, capsys: pytest.CaptureFixture[str]) -> None:
    got = finetune(*shlex.split(LESSON_FINETUNE))
    expected = {
        **{"method": "lora", "epochs": 3.0, "examples_per_step": 128, "learning_rate": 1e-4},
        **{"max_length": 512, "validation_rows": 1, "keep_best": True, "eval_every": 200},
        **{"lora_rank": 8, "lora_alpha": 16, "lora_dropout": 0.05, "lora_targets": "q_proj,v_proj"},
        **{"lora_rs": False, "lora_dora": False, "adapter": "", "resume": "auto"},
        **{"mask_prompt": False, "batching": "pack", "quantization": "int8", "schedule": "linear"},
        **{"save_every": 200, "keep_checkpoints": 3, "trackers": "", "template": "alpaca-lora"},
    }
    assert {name: getattr(got, name) for name in expected} == expected
    assert "val_set_size 2000 -> 1, a tenth" in capsys.readouterr().out
    assert not finetune("--val_set_size", "0").keep_best


def test_own_validation_file_and_steps_of_finetune(
    finetune: Any, data_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    got = finetune("--validation_path", str(data_file), "--eval_steps", "7", "--save_steps", "50")
    assert (got.validation_path, got.validation_rows) == (str(data_file), 0)
    assert (got.eval_every, got.save_every, got.keep_best) == (7, 50, True)
    error = importlib.import_module("alpaca_lib.errors").UsageError
    with pytest.raises(error, match="--validation_path and --val_set_size together"):
        finetune("--validation_path", str(data_file), "--val_set_size", "2")
    for words in (("--eval_steps", "0"), ("--eval_steps", "many"), ("--save_steps", "-1")):
        with pytest.raises(error, match=words[0]):
            finetune(*words)


@pytest.mark.parametrize(
    ("rows", "words", "warmup", "every"),
    [
        (1000, (), 2, 4),  # 24 steps
        (10, (), 0, 1),
        (52_000, (), 100, 200),
        (1000, ("--eval_steps", "9"), 2, 9),
        (1000, ("--val_set_size", "0"), 2, 0),
    ],
)
def test_a_short_run_is_evaluated_five_times(
    finetune: Any, data_file: Path, rows: int, words: tuple[str, ...], warmup: int, every: int
) -> None:
    module, given = parsed("finetune", "--data_path", str(data_file), *words)
    got = module.adapt(given, finetune(*words), rows)
    assert (got.warmup, got.eval_every) == (warmup, every)


def test_train_counts_an_epoch_and_evaluations_by_the_rows_that_train() -> None:
    error = importlib.import_module("alpaca_lib.errors").UsageError
    words = ("--data_path", "d.json", "--output_dir", "out", "--save_strategy", "epoch")
    words += ("--validation_path", "v.json", "--evaluation_strategy", "steps")
    module, given = parsed("train", *words)
    got = module.adapt(given, module.to_settings(given, 1), 100)
    assert (got.save_every, got.eval_every) == (4, 2)  # 100 rows in steps of 32, three epochs
    _, given = parsed("train", *words, "--eval_steps", "3")
    assert module.adapt(given, module.to_settings(given, 1), 100).eval_every == 3
    for wrong in (("--evaluation_strategy", "steps"), ("--eval_steps", "3")):
        with pytest.raises(error, match=wrong[0]):
            train(*wrong)


@pytest.mark.parametrize(
    ("words", "sharding", "gather"),
    [
        ((), "auto", "auto"),
        (("full_shard", "auto_wrap"), "full", "auto"),
        (("shard_grad_op auto_wrap",), "full", "step"),
        (("hybrid_shard auto_wrap",), "hybrid", "auto"),
        (("hybrid_shard_zero2,auto_wrap",), "hybrid", "step"),
    ],
)
def test_fsdp_strategies(words: tuple[str, ...], sharding: str, gather: str) -> None:
    got = train(*(("--fsdp", *words) if words else ()), "--max_steps", "1")
    assert (got.sharding, got.gather, got.max_steps) == (sharding, gather, 1)
    alone = train(*(("--fsdp", *words) if words else ()), processes=1)
    assert (alone.sharding, alone.gather) == ("auto", "auto")


@pytest.mark.parametrize(
    ("flag", "value", "name", "expected"),
    [
        *(("optim", name, "optimizer", "adamw") for name in ("adamw_torch", "adamw_torch_fused")),
        ("optim", "adamw_hf", "optimizer", "adamw"),
        *(("optim", name, "optimizer", "adamw8bit") for name in ("adamw_8bit", "adamw_bnb_8bit")),
        ("optim", "paged_adamw_8bit", "optimizer", "adamw8bit"),
        ("torch_compile", "True", "compile", True),
        ("gradient_checkpointing", "True", "activation_checkpointing", True),
        ("activation_checkpointing", "True", "activation_checkpointing", True),
        ("group_by_length", "True", "batching", "pack"),
        ("report_to", "wandb", "trackers", "wandb"),
        ("report_to", "tensorboard,trackio", "trackers", "tensorboard,trackio"),
        ("report_to", "wandb tensorboard wandb", "trackers", "wandb,tensorboard"),
        ("report_to", "none", "trackers", ""),
        ("project", "llamas", "project", "llamas"),
        ("run_name", "first", "run_name", "first"),
        ("resume_from_checkpoint", "False", "resume", "never"),
        ("resume_from_checkpoint", "True", "resume", "auto"),
        ("resume_from_checkpoint", ".", "resume", "."),
    ],
)
def test_flags_of_train(flag: str, value: str, name: str, expected: object) -> None:
    assert getattr(train(f"--{flag}", value), name) == expected


def test_names_as_separate_words_and_the_environments_project(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "from-the-shell")
    got = train("--report_to", "wandb", "tensorboard", "--tf32")
    assert (got.trackers, got.project) == ("wandb,tensorboard", "from-the-shell")
    assert train().trackers == ""  # train.py turns nothing on by itself


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--fsdp", "full_shard offload"], "'offload' is not supported"),
        (["--fsdp", "full_shard hybrid_shard"], "choose one of full_shard and hybrid_shard"),
        (["--optim", "adafactor"], "takes adamw_torch|adamw_torch_fused"),
        (["--report_to", "mlflow"], "takes none, or some of tensorboard, wandb, trackio"),
        (["--report_to", "none wandb"], "takes none, or some of tensorboard"),
        (["--report_to"], "--report_to: expected at least one argument"),
        (["--torch_compile", "max"], "takes true or false"),
        (["--resume_from_checkpoint", "no/such"], "'no/such': no such folder"),
    ],
)
def test_values_that_train_refuses(words: list[str], expected: str) -> None:
    error = importlib.import_module("alpaca_lib.errors").UsageError
    for processes in (1, 4):
        with pytest.raises(error) as caught:
            train(*words, processes=processes)
        assert expected in str(caught.value)


def test_own_flags_of_finetune(finetune: Any) -> None:
    got = finetune("--use_rslora", "--use_dora", "--activation_checkpointing")
    assert got.lora_rs and got.lora_dora and got.activation_checkpointing
    assert finetune("--gradient_checkpointing", "True").activation_checkpointing


def test_a_wandb_project_turns_wandb_on(
    finetune: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    got = finetune("--wandb_project", "llamas", "--wandb_run_name", "first")
    assert (got.trackers, got.project, got.run_name) == ("wandb", "llamas", "first")
    both = finetune("--wandb_project", "llamas", "--report_to", "tensorboard")
    assert both.trackers == "tensorboard,wandb"
    monkeypatch.setenv("WANDB_PROJECT", "from-the-shell")
    got = finetune()
    assert (got.trackers, got.project) == ("wandb", "from-the-shell")
    assert "WANDB_PROJECT from-the-shell -> trackers wandb" in capsys.readouterr().out
    assert finetune("--wandb_project", "named").project == "named"
    assert finetune("--report_to", "none").trackers == ""


def test_wandb_flags_say_what_they_become(
    finetune: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--wandb_watch", "gradients", "--wandb_log_model", "true")
    module, given = parsed("finetune", *words)
    given.print_changes()
    out = capsys.readouterr().out
    assert "--wandb_watch gradients -> no histograms" in out and "grad_norm" in out
    assert "--wandb_log_model true -> WANDB_LOG_MODEL true" in out

    began = []
    monkeypatch.setenv("WANDB_LOG_MODEL", "")
    monkeypatch.setattr(module, "to_settings", lambda given: "settings")
    script = importlib.import_module("train")
    monkeypatch.setattr(script, "train", lambda given, **_: began.append(given))
    module.work(given)
    assert began == ["settings"] and os.environ["WANDB_LOG_MODEL"] == "true"


def test_resuming_from_a_checkpoint_or_from_an_adapter(
    finetune: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full, alone, upstream = (tmp_path / name for name in ("full", "alone", "upstream"))
    for folder, names in (
        (full, ["manifest.json"]),
        (alone, ["adapter_model.safetensors", "adapter_config.json"]),
        (upstream, ["adapter_model.bin", "optimizer.pt"]),  # as Hugging Face's trainer leaves it
    ):
        folder.mkdir()
        for name in names:
            (folder / name).touch()

    def begun(path: Path) -> tuple[str, str]:
        got = finetune("--resume_from_checkpoint", str(path))
        return got.resume, got.adapter

    assert begun(full) == (str(full), "")
    assert begun(alone) == ("auto", str(alone))
    assert begun(upstream) == ("auto", str(upstream))
    _, given = parsed("finetune", "--resume_from_checkpoint", str(alone))
    given.print_changes()
    assert f"-> adapter {alone}: its weights, from step 0" in capsys.readouterr().out


def test_values_that_finetune_refuses(finetune: Any, tmp_path: Path) -> None:
    error = importlib.import_module("alpaca_lib.errors").UsageError
    with pytest.raises(error, match="choose one"):
        finetune("--wandb_project", "p", "--report_to", "none")
    with pytest.raises(error, match=r"takes ''\|false\|gradients\|parameters\|all"):
        finetune("--wandb_watch", "weights")
    from alpaca_lib.errors import AdapterError

    empty, out = tmp_path / "empty", tmp_path / "out"
    for folder in (empty, out):
        folder.mkdir()
    (out / "adapter_model.safetensors").touch()
    with pytest.raises(AdapterError, match="neither a checkpoint"):
        finetune("--resume_from_checkpoint", str(empty))
    with pytest.raises(AdapterError, match="another --output_dir"):
        finetune("--resume_from_checkpoint", str(out))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *(("alpaca", "alpaca-lora"), ("alpaca_legacy", "alpaca"), ("alpaca_short", "short")),
        *(("stanford", "alpaca"), ("short", "short"), ("alpaca_lora", "alpaca-lora")),
        *(("alpaca-lora", "alpaca-lora"), ("chinese", "chinese"), ("chat", "chat")),
        *(("chatml", "chatml"), ("llama-3", "llama-3")),
    ],
)
def test_template_names(name: str, expected: str) -> None:
    """Upstream's templates/alpaca.json is not Stanford's text; alpaca_legacy.json is."""
    conversions = importlib.import_module("conversions")
    assert conversions.template(name) == expected
    assert expected in conversions.explain_template(name)


def test_the_template_that_a_name_means_is_said_and_every_one_is_listed(capsys) -> None:
    conversions, finetune_script = map(importlib.import_module, ("conversions", "finetune"))
    assert conversions.explain_template("alpaca").startswith(
        "template alpaca of Alpaca-LoRA = alpaca-lora here"
    )
    for script, flag in (("finetune", "prompt_template_name"), ("generate", "prompt_template")):
        about = importlib.import_module(script).SCRIPT.about
        assert f"--{flag} (alpaca means alpaca-lora here)" in about
        for name in ("stanford", "alpaca-lora", "short", "chinese", "chat"):
            assert f"\n  {name} " in about
    given = finetune_script.flags.parse(finetune_script.SCRIPT, ["--prompt_template_name=alpaca"])
    given.print_changes()
    assert "of Alpaca-LoRA = alpaca-lora here" in capsys.readouterr().out


# Every flag of Stanford's and Alpaca-LoRA's scripts that the course's commands name.
UPSTREAM = {
    "generate_instruction": """--output_dir o --seed_tasks_path s --num_instructions_to_generate 2
        --model_name m --num_prompt_instructions 3 --request_batch_size 5 --temperature 1.0
        --top_p 1.0 --num_cpus 16""",
    "train": f"--model_name_or_path m --data_path d --output_dir o --model_max_length 256 "
    f"--cache_dir c --optim adamw_torch {LESSON_TRAIN}",
    "finetune": f"""--base_model m --data_path d --output_dir o --add_eos_token False
        --wandb_project p --wandb_run_name r --wandb_watch all --wandb_log_model true
        --resume_from_checkpoint . --prompt_template_name alpaca {LESSON_FINETUNE}""",
    "generate": """--load_8bit --base_model m --lora_weights l --prompt_template alpaca
        --server_name 0.0.0.0 --share_gradio False""",
}


@pytest.mark.parametrize("name", UPSTREAM)
@pytest.mark.parametrize("style", ["separate", "hyphens", "equals"])
def test_every_upstream_flag_is_read_and_explained(
    name: str, style: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(UPSTREAM[name])
    checkpoint = tmp_path / "checkpoint-1"
    checkpoint.mkdir()
    (checkpoint / "manifest.json").touch()
    words = [str(checkpoint) if word == "." else word for word in words]
    given = [word for word in words if word.startswith("--")]
    if style == "hyphens":
        words = [w.replace("_", "-") if w.startswith("--") else w for w in words]
    elif style == "equals":
        words = [w if w.startswith("--") else f"={w}" for w in words]
        words = " \0".join(words).replace(" \0=", "=").split(" \0")
    _, found = parsed(name, *words)
    found.print_changes()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(given) == len(found.given)
    assert all(" -> " in line for line in lines)
    flags = {line.split()[0].replace("-", "_") for line in lines}
    assert flags == {flag.replace("-", "_") for flag in given}


@pytest.mark.parametrize("name", UPSTREAM)
def test_the_two_examples_of_the_help_are_complete_command_lines(name: str) -> None:
    module = importlib.import_module(name)
    for example in module.SCRIPT.examples:
        words = shlex.split(example.replace("\\\n", " "))
        start = next(i for i, word in enumerate(words) if name in word)
        _, given = parsed(name, *words[start + 1 :])
        assert len(given.given) >= 2


def test_values_may_be_negative_and_bools_have_six_spellings() -> None:
    _, given = parsed("train", "--data_path=d", "--output_dir=o", "--max_steps", "-1")
    assert given["max_steps"] == -1 and given.options["max_steps"] == 0
    for words, expected in {
        ("--tf32",): True,
        ("--tf32", "True"): True,
        ("--tf32", "yes"): True,
        ("--tf32=1",): True,
        ("--tf32", "False"): False,
        ("--tf32", "no"): False,
        ("--tf32=0",): False,
    }.items():
        _, given = parsed("train", "--data_path=d", "--output_dir=o", *words)
        assert given["tf32"] is expected, words


def test_a_flag_has_the_type_and_range_of_the_option_that_it_sets() -> None:
    from alpaca_lib.training import Settings

    for name in ("train", "finetune"):
        script = importlib.import_module(name).SCRIPT
        for flag in script.flags:
            assert not flag.sets or flag.sets in Settings.model_fields
            if flag.sets and flag.kind is None:
                option = Settings.model_fields[flag.sets]
                assert script.declaration(flag).annotation == option.annotation
    usage_error = importlib.import_module("alpaca_lib.errors").UsageError
    with pytest.raises(usage_error, match=r"--lora_r '0': takes a whole number, at least 1"):
        parsed("finetune", "--lora_r", "0")


def test_exit_codes_and_what_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """2 and one line for a usage error, 1 for the library's errors, 130 for Ctrl-C."""
    from alpaca_lib.errors import DataError

    module = importlib.import_module("train")
    words = ["--data_path", "d.json", "--output_dir", "out"]

    def fail(error: BaseException) -> Any:
        def work(given: Any) -> None:
            raise error

        return work

    assert module.main([*words, "--learning-rat", "1"]) == 2
    error = capsys.readouterr().err
    assert error == "error: no flag --learning_rat; did you mean '--learning_rate'?\n"
    monkeypatch.setattr(module, "work", fail(DataError("d.json: no such file")))
    assert module.main(words) == 1
    assert capsys.readouterr().err == "error: d.json: no such file\n"
    monkeypatch.setenv("RANK", "3")
    assert module.main(words) == 1
    assert capsys.readouterr().err == "error: (process 3) d.json: no such file\n"
    monkeypatch.setattr(module, "work", fail(KeyboardInterrupt()))
    assert module.main(words) == 130
    # Faults of the program keep their traceback, whatever their type.
    for fault in (RuntimeError("a fault"), ValueError("a fault"), OSError("a fault")):
        monkeypatch.setattr(module, "work", fail(fault))
        with pytest.raises(type(fault), match="a fault"):
            module.main(words)


def test_a_fault_of_the_program_shows_its_traceback() -> None:
    code = (
        "import train, sys\n"
        "def work(given): raise RuntimeError('a fault')\n"
        "train.work = work\n"
        "sys.exit(train.main(['--data_path', 'd', '--output_dir', 'o']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=SCRIPTS, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr and done.stderr.endswith("RuntimeError: a fault\n")
