"""python -m alpaca_lib.training: every command, what it does and what it refuses."""

from __future__ import annotations

import json

import pytest

from alpaca_lib.launch import launcher
from alpaca_lib.training.__main__ import main
from alpaca_lib.training.settings import Settings


@pytest.fixture
def settings_file(tmp_path):
    """A settings file whose output goes to an absolute folder."""
    settings = Settings(data_path="/data/rows.json", output_dir="/out/run")
    return settings.save(tmp_path / "settings.json")


def test_help_names_every_command(capsys):
    """--help explains all commands; each has a --help of its own."""
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0
    for command in ("run", "launch", "watch", "cluster", "plan", "merge"):
        assert f"  {command} " in text
        with pytest.raises(SystemExit) as stopped:
            main([command, "--help"])
        assert stopped.value.code == 0 and len(capsys.readouterr().out) > 100


def test_flags_go_over_the_settings_file(settings_file, monkeypatch, capsys):
    """run without a file: flags alone; with one: flags on top of it. Errors exit with 1."""
    seen = []
    monkeypatch.setattr(launcher, "run", lambda settings, report: seen.append(settings))
    flags = ["--data_path", "my.json", "--output_dir", "runs/my", "--method", "lora"]
    assert main(["run", *flags, "--no-mask-prompt"]) == 0
    assert main(["run", str(settings_file), "--epochs", "2", "--lora-rank=4"]) == 0
    assert seen[0].changed() == {
        "data_path": "my.json",
        "output_dir": "runs/my",
        "method": "lora",
        "mask_prompt": False,
    }
    assert seen[1] == Settings.load(settings_file).replace(epochs=2.0, lora_rank=4)
    assert main(["run", "--data_path", "my.json"]) == 1
    assert "output_dir is needed" in capsys.readouterr().err
    assert main(["run", str(settings_file), "--epochs", "-1"]) == 1
    assert "epochs -1.0" in capsys.readouterr().err


def test_plan_predicts_the_steps_of_a_run(small_folder, data_file, tmp_path, capsys):
    """The planner's steps, micro-batches and all, are those in run.json."""
    settings = Settings(
        data_path=str(data_file),
        output_dir=str(tmp_path / "out"),
        model=str(small_folder),
        examples_per_step=5,
        epochs=1.4,
        max_length=128,
    )
    file = settings.save(tmp_path / "settings.json")
    assert main(["plan", "--settings", str(file), "--data", str(data_file), "--only"]) == 0
    printed = capsys.readouterr().out
    assert main(["run", str(file), "--device=cpu"]) == 0
    steps = json.loads((tmp_path / "out" / "run.json").read_text())["steps"]
    assert steps == 4 and "12 rows x" in printed and "4 steps of 5" in printed


def test_cluster_file(settings_file, tmp_path, capsys):
    """The file is written, or printed; both end in the torchrun line of this run."""
    assert main(["cluster", "slurm", str(settings_file), "--nodes", "3"]) == 0
    printed = capsys.readouterr().out
    assert (
        printed.startswith("#!") and "--nodes=3" in printed and "torch.distributed.run" in printed
    )
    file = tmp_path / "job.yaml"
    assert (
        main(["cluster", "kubernetes", str(settings_file), "--image", "i:1", "-o", str(file)]) == 0
    )
    assert "TrainJob" in file.read_text() and str(file) in capsys.readouterr().out


def test_cluster_refuses(settings_file, tmp_path, capsys):
    """Bad machines and a missing settings file: one line, exit code 1."""
    assert main(["cluster", "slurm", str(settings_file), "--nodes", "0"]) == 1
    assert "nodes 0" in capsys.readouterr().err
    assert main(["cluster", "slurm", str(tmp_path / "none.json")]) == 1
    assert "none.json" in capsys.readouterr().err


def test_watch_a_finished_run(tmp_path, capsys):
    """All lines of a run that has ended, then the end."""
    lines = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.5}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "run.json").write_text('{"steps": 2}')
    (tmp_path / "config.json").write_text("{}")
    assert main(["watch", str(tmp_path)]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == lines


def test_watch_gives_up(tmp_path, capsys):
    """A run that says nothing for --timeout seconds is an error with the step."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 7, "loss": 1.0}\n')
    assert main(["watch", str(tmp_path), "--timeout", "0.3"]) == 1
    assert "after step 7" in capsys.readouterr().err


def test_merge_without_an_adapter(tmp_path, capsys):
    """A folder that holds no adapter: an error that names it."""
    assert main(["merge", str(tmp_path), str(tmp_path / "out")]) == 1
    assert "adapter_config.json" in capsys.readouterr().err and not (tmp_path / "out").exists()
