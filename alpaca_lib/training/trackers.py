"""Experiment trackers: TensorBoard, Weights & Biases, Trackio.

None is used unless ``Settings.trackers`` names it. They receive the lines of metrics.jsonl, and no
gradient histograms: a failure of wandb.watch in the backward pass would stop the training.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from alpaca_lib.errors import MissingPackageError, TrackerError
from alpaca_lib.files import dump_json, write_text
from alpaca_lib.optional import require
from alpaca_lib.training.settings import Settings

Config = dict[str, Any]


class Tracker(NamedTuple):
    """An open tracker, as two functions."""

    log: Callable[[int, dict[str, float]], object]  # (step, numbers by name)
    close: Callable[[bool], object]  # (whether the run failed)


class Trackers(dict[str, Tracker]):
    """The open trackers of rank 0, by name. One that fails is dropped; the training continues.

    >>> trackers = open_trackers(settings, folder, config, resumed_at=0)
    >>> trackers.log({"step": 1, "loss": 2.5})
    """

    def log(self, line: dict[str, Any]) -> None:
        """Sends the numbers of a line of metrics.jsonl, under their own names."""
        numbers = {k: v for k, v in line.items() if k != "step" and isinstance(v, int | float)}
        self._each(lambda tracker: tracker.log(line["step"], numbers))

    def close(self, failed: bool = False) -> None:
        """Ends the run in every tracker. Call it after saving: it may wait for a network."""
        self._each(lambda tracker: tracker.close(failed))
        self.clear()

    def _each(self, call: Callable[[Tracker], object]) -> None:
        for name, tracker in list(self.items()):
            try:
                call(tracker)
            except Exception as error:
                del self[name]
                _warn(name, error)


def check(settings: Settings) -> None:
    """Raises TrackerError, with the install line, if a named tracker is not installed."""
    for name in settings.tracker_names:
        try:
            require(name)
        except MissingPackageError:
            raise TrackerError(
                f"{name} is not installed; run `pip install {name}`, or take it out of trackers"
            ) from None


def open_trackers(settings: Settings, folder: Path, config: Config, resumed_at: int) -> Trackers:
    """Opens the trackers that the settings name; ``config`` is shown with the curves.

    A run resumed at a step above 0 continues in each tracker by the id in folder/tracker_id.
    Raises TrackerError if a new run's tracker cannot be opened; a resumed run does without.
    """
    check(settings)
    trackers, file = Trackers(), folder / "tracker_id"
    known = file.read_text(encoding="utf-8").strip() if resumed_at and file.is_file() else ""
    run_id = known or secrets.token_hex(4)
    for name in dict.fromkeys(settings.tracker_names):
        write_text(file, run_id + "\n")
        try:
            trackers[name] = _OPENERS[name](settings, folder, config, resumed_at, run_id)
        except Exception as error:
            if not resumed_at:
                trackers.close(failed=True)
                fix = "take it out of trackers"
                if name == "wandb":
                    fix = f"set WANDB_API_KEY, or WANDB_MODE=offline, or {fix}"
                raise TrackerError(f"{name}: {_reason(error)}; {fix}") from None
            _warn(name, error)
    return trackers


def _tensorboard(settings: Settings, folder: Path, config: Config, at: int, _: str) -> Tracker:
    from torch.utils.tensorboard import SummaryWriter

    # Hides what was logged for steps that are repeated; at step 0, for an earlier run.
    writer = SummaryWriter(str(folder / "tensorboard"), purge_step=at + 1 if at else 0)
    if not at:
        writer.add_text("run", f"```json\n{dump_json(config, indent=1)}\n```", 0)

    def log(step: int, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)
        writer.flush()  # otherwise a kill loses up to two minutes

    return Tracker(log, lambda failed: writer.close())


def _wandb(settings: Settings, folder: Path, config: Config, at: int, run_id: str) -> Tracker:
    wandb: Any = require("wandb")
    options = {"id": run_id, "resume": "allow", "config": config, "allow_val_change": True}
    name = settings.run_name or folder.name
    run = wandb.init(project=settings.project, name=name, dir=str(folder), **options)
    # wandb's own step only increases: it would drop the steps that are repeated.
    run.define_metric("*", step_metric="step")

    def close(failed: bool) -> None:
        if not failed and os.environ.get("WANDB_LOG_MODEL", "").lower() in ("true", "end", "1"):
            artifact = wandb.Artifact(f"model-{run_id}", type="model")
            for file in sorted(path for path in folder.iterdir() if path.is_file()):
                artifact.add_file(str(file), policy="immutable")  # without copying it first
            run.log_artifact(artifact)
        run.finish(exit_code=int(failed))

    return Tracker(lambda step, numbers: run.log({"step": step, **numbers}), close)


def _trackio(settings: Settings, folder: Path, config: Config, at: int, run_id: str) -> Tracker:
    trackio: Any = require("trackio")
    # Trackio finds a run by its name, and many folders have the same one.
    name = settings.run_name or f"{folder.name}-{run_id}"
    resume = "allow" if at else "never"
    # embed: in a notebook it would start a server.
    run = trackio.init(settings.project, name, config=config, resume=resume, embed=False)
    return Tracker(lambda step, numbers: run.log(numbers, step=step), lambda _: trackio.finish())


_OPENERS = {"tensorboard": _tensorboard, "wandb": _wandb, "trackio": _trackio}


def _warn(name: str, error: Exception) -> None:
    text = f"warning: tracker {name} failed ({_reason(error)}); training continues without it"
    print(text, file=sys.stderr, flush=True)


def _reason(error: Exception) -> str:
    """Returns an error's first line, without any key that is in the environment."""
    text = f"{type(error).__name__}: {error}".splitlines()[0]
    for name, value in os.environ.items():
        if name.endswith(("_KEY", "_TOKEN")) and len(value) > 7:
            text = text.replace(value, "***")
    return text
