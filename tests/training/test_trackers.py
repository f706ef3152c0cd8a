"""Trackers: what they are told and in which order, and that their failure stops nothing."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from alpaca_lib.errors import TrackerError
from alpaca_lib.training.settings import Settings
from alpaca_lib.training.trackers import check, open_trackers

LINES = [
    {"step": 0, "validation_loss": 2.5},
    {"step": 1, "loss": 2.0, "lr": 1e-4, "tokens": 900, "note": "not a number"},
    {"step": 2, "loss": 1.5, "lr": 2e-4, "tokens": 800},
]
KEY = "a-key-that-must-not-show"


class Recorder(types.ModuleType):
    """A module, a run and an artifact at once: writes down every call made to it."""

    def __init__(self, name: str, breaks: tuple[str, ...] = ()) -> None:
        super().__init__(name)
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.breaks = breaks

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)

        def call(*words: Any, **options: Any) -> Any:
            self.calls.append((name, words, options))
            if name in self.breaks:
                raise ConnectionError(f"{KEY} was not taken\nand more")
            return self

        return call

    @property
    def names(self) -> list[str]:
        return [name for name, _, _ in self.calls]


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that puts a recorder in a package's place."""
    monkeypatch.delenv("WANDB_LOG_MODEL", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", KEY)

    def put(name: str, *breaks: str) -> Recorder:
        module = Recorder(name, breaks)
        monkeypatch.setitem(sys.modules, name, module)
        return module

    return put


def settings(folder: Path, names: str, **more: Any) -> Settings:
    return Settings(data_path="d.json", output_dir=str(folder), trackers=names, **more)


def test_nothing_by_default(tmp_path: Path) -> None:
    off = settings(tmp_path, "")
    check(off)
    none = open_trackers(off, tmp_path, {}, 0)
    none.log(LINES[0])
    none.close()
    assert not none and not list(tmp_path.iterdir())


def test_no_tracker_is_imported_with_the_module() -> None:
    code = (
        "import sys, alpaca_lib.training.trackers as t; "
        "print({'wandb', 'trackio', 'tensorboard', 'torch'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_wandb_is_told_in_order(record: Any, tmp_path: Path) -> None:
    wandb, folder = record("wandb"), tmp_path / "lora"
    folder.mkdir()
    opened = open_trackers(settings(folder, "wandb"), folder, {"seed": 1}, 0)
    for line in LINES:
        opened.log(line)
    opened.close()
    assert wandb.names == ["init", "define_metric", "log", "log", "log", "finish"]
    init = wandb.calls[0][2]
    assert init["project"] == "alpaca" and init["name"] == "lora" and init["config"] == {"seed": 1}
    assert init["resume"] == "allow" and init["dir"] == str(folder)
    assert wandb.calls[3][1] == ({"step": 1, "loss": 2.0, "lr": 1e-4, "tokens": 900},)
    assert wandb.calls[-1][2] == {"exit_code": 0}


def test_a_resumed_run_has_the_same_id(record: Any, tmp_path: Path) -> None:
    wandb, chosen = record("wandb"), settings(tmp_path, "wandb", run_name="first", project="p")
    for resumed_at in (0, 2, 0):
        open_trackers(chosen, tmp_path, {}, resumed_at).close(failed=resumed_at == 0)
    starts = [options for name, _, options in wandb.calls if name == "init"]
    first, again, anew = (start["id"] for start in starts)
    assert first == again != anew and len(first) == 8  # from step 0 it is another run
    assert {(start["name"], start["project"]) for start in starts} == {("first", "p")}
    ends = [options["exit_code"] for name, _, options in wandb.calls if name == "finish"]
    assert ends == [1, 0, 1]


@pytest.mark.parametrize(
    ("wanted", "failed", "sent"), [("true", False, 3), ("true", True, 0), ("false", False, 0)]
)
def test_the_model_as_an_artifact(
    record: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wanted: str,
    failed: bool,
    sent: int,
) -> None:
    wandb = record("wandb")
    monkeypatch.setenv("WANDB_LOG_MODEL", wanted)
    opened = open_trackers(settings(tmp_path, "wandb"), tmp_path, {}, 0)
    (tmp_path / "checkpoint-2").mkdir()
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (tmp_path / name).touch()
    opened.close(failed)
    files = [Path(words[0]).name for name, words, _ in wandb.calls if name == "add_file"]
    assert len(files) == sent and ("adapter_model.safetensors" in files) == bool(sent)
    assert wandb.names[-1] == "finish" and wandb.names.count("log_artifact") == (sent > 0)


def test_trackio_is_told_in_order(record: Any, tmp_path: Path) -> None:
    trackio = record("trackio")
    opened = open_trackers(settings(tmp_path, "trackio"), tmp_path, {"seed": 1}, 0)
    for line in LINES:
        opened.log(line)
    opened.close()
    open_trackers(settings(tmp_path, "trackio"), tmp_path, {}, 2)
    assert trackio.names == ["init", "log", "log", "log", "finish", "init"]
    (_, first, options), (_, again, resumed) = trackio.calls[0], trackio.calls[-1]
    assert first == again and first[0] == "alpaca" and first[1].startswith(f"{tmp_path.name}-")
    assert (options["resume"], resumed["resume"], options["embed"]) == ("never", "allow", False)
    assert trackio.calls[2][1:] == (({"loss": 2.0, "lr": 1e-4, "tokens": 900},), {"step": 1})


@pytest.mark.parametrize("breaks", ["log", "finish"])
def test_a_failure_in_the_middle_is_one_warning(
    record: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], breaks: str
) -> None:
    wandb, trackio = record("wandb", breaks), record("trackio")
    opened = open_trackers(settings(tmp_path, "wandb, trackio"), tmp_path, {}, 0)
    for line in LINES:
        opened.log(line)
    opened.close()
    [warning] = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: tracker wandb failed (ConnectionError: *** was not taken)")
    assert wandb.names.count(breaks) == 1
    assert trackio.names == ["init", "log", "log", "log", "finish"]


def test_a_failure_at_the_start(
    record: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trackio, wandb = record("trackio"), record("wandb", "init")
    chosen = settings(tmp_path, "trackio,wandb")
    with pytest.raises(TrackerError, match="WANDB_MODE=offline") as caught:
        open_trackers(chosen, tmp_path, {}, 0)
    assert KEY not in str(caught.value) and trackio.names == ["init", "finish"]
    # A run that a scheduler restarts does without it.
    resumed = open_trackers(chosen, tmp_path, {}, 2)
    assert list(resumed) == ["trackio"] and wandb.names == ["init", "init"]
    err = capsys.readouterr().err
    assert "continues without it" in err and KEY not in err


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_one_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    for find in (check, lambda chosen: open_trackers(chosen, tmp_path, {}, 5)):
        with pytest.raises(TrackerError, match=f"pip install {name}"):
            find(settings(tmp_path, name))
    assert not list(tmp_path.iterdir())


def test_real_tensorboard(tmp_path: Path) -> None:
    """What TensorBoard itself reads back, of a run that was stopped after step 4 and saved at 2."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for resumed_at, steps, loss in ((0, range(1, 5), 2.0), (2, range(3, 7), 1.0)):
        opened = open_trackers(settings(tmp_path, "tensorboard"), tmp_path, {}, resumed_at)
        for step in steps:
            opened.log({"step": step, "loss": loss})
        opened.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert found == [(1, 2.0), (2, 2.0), (3, 1.0), (4, 1.0), (5, 1.0), (6, 1.0)]
    assert events.Tags()["tensors"] == ["run/text_summary"]


def test_real_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", KEY.replace("-", "") * 2)
    opened = open_trackers(settings(tmp_path, "wandb"), tmp_path, {}, 0)
    for line in LINES:
        opened.log(line)
    assert list(opened) == ["wandb"]  # none of them failed
    opened.close()
    run_id = (tmp_path / "tracker_id").read_text("utf-8").strip()
    [run] = (tmp_path / "wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb")
    assert b"validation_loss" in run.read_bytes()
    for folder, _, names in os.walk(tmp_path):
        for name in names:
            assert KEY.replace("-", "").encode() not in Path(folder, name).read_bytes()


def test_real_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in Trackio's own database."""
    if "trackio" in sys.modules:
        pytest.skip("trackio reads where its database is when it is imported, and it is")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    opened = open_trackers(settings(tmp_path, "trackio"), tmp_path, {"seed": 1}, 0)
    for line in LINES:
        opened.log(line)
    opened.close()
    with sqlite3.connect(tmp_path / "trackio" / "alpaca.db") as base:
        rows = base.execute("select step, metrics, run_name from metrics order by step").fetchall()
    assert [(step, json.loads(found).get("loss")) for step, found, _ in rows] == [
        *((0, None), (1, 2.0), (2, 1.5))
    ]
    run_id = (tmp_path / "tracker_id").read_text("utf-8").strip()
    assert {name for _, _, name in rows} == {f"{tmp_path.name}-{run_id}"}
