"""The learning rate of each optimizer step, as transformers.get_scheduler computes it.

Its module also imports peft and bitsandbytes, for every process of a run.
"""

from __future__ import annotations

import math


def rate_factor(schedule: str, step: int, steps: int, warmup: int) -> float:
    """Returns what the highest learning rate is multiplied with in optimizer step ``step``.

    ``schedule``: of Settings. ``step``: from 0. ``steps``: of the run. ``warmup``: steps in which
    the factor rises linearly from 0; "constant" has none.

    >>> [rate_factor("linear", step, steps=4, warmup=2) for step in range(4)]
    [0.0, 0.5, 1.0, 0.5]
    """
    if schedule == "constant":
        return 1.0
    if step < warmup:
        return step / warmup
    if schedule == "constant_with_warmup":
        return 1.0
    rest = max(steps - warmup, 1)
    if schedule == "linear":
        return max((steps - step) / rest, 0.0)
    return max(0.5 * (1.0 + math.cos(math.pi * ((step - warmup) / rest))), 0.0)
