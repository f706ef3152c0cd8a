"""Learning rates: those of transformers.get_scheduler, to the last digit."""

from __future__ import annotations

import typing

import pytest
import torch
import transformers

from alpaca_lib.training.schedule import rate_factor
from alpaca_lib.training.settings import Settings

SCHEDULES = typing.get_args(typing.get_type_hints(Settings)["schedule"])


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (12, 0), (12, 1), (37, 5), (6, 5)])
@pytest.mark.filterwarnings("ignore:Detected call of")
def test_the_rates_of_transformers(schedule, steps, warmup):
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], 3e-4)
    oracle = transformers.get_scheduler(
        schedule, optimizer, num_warmup_steps=warmup, num_training_steps=steps
    )
    for step in range(steps):
        assert 3e-4 * rate_factor(schedule, step, steps, warmup) == oracle.get_last_lr()[0]
        oracle.step()
