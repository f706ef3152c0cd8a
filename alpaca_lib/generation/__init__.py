"""Generates instruction tasks: asks a teacher model, parses, filters and keeps (lesson 01).

    settings, limits = Settings(tasks_wanted=20, tasks_per_request=3), Limits(max_usd=1.0)
    with open_teacher("local") as teacher:
        outcome = generate(teacher, seeds, header, settings, Path("runs/my"), limits)

``generate`` writes regen.json and a journal from which it resumes. The steps one by one:
``Prompter`` composes a prompt, ``parse_reply`` finds the tasks in a reply, ``rule_broken``
filters one. ``load_prices`` and ``estimate`` compute the cost before a run, ``describe_plan``
says it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alpaca_lib.lazy import attach

if TYPE_CHECKING:
    from alpaca_lib.generation.budget import estimate, load_prices
    from alpaca_lib.generation.documents import load_passages
    from alpaca_lib.generation.filtering import Outcome, Progress
    from alpaca_lib.generation.parsing import parse_reply, rule_broken
    from alpaca_lib.generation.pipeline import run_generation
    from alpaca_lib.generation.plan import describe_plan
    from alpaca_lib.generation.prompting import Prompter
    from alpaca_lib.generation.self_instruct import generate
    from alpaca_lib.generation.settings import Limits, Sampling, Settings
    from alpaca_lib.generation.teacher import open_teacher

__getattr__, __dir__, __all__ = attach(__name__, __file__)
