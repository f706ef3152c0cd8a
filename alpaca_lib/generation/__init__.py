"""Stage 01: ask a teacher for tasks, parse, filter, keep; no torch in here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alpaca_lib.lazy import attach

if TYPE_CHECKING:
    from alpaca_lib.generation.budget import estimate as estimate
    from alpaca_lib.generation.budget import load_prices as load_prices
    from alpaca_lib.generation.documents import load_passages as load_passages
    from alpaca_lib.generation.parsing import parse_reply as parse_reply
    from alpaca_lib.generation.parsing import rule_broken as rule_broken
    from alpaca_lib.generation.prompting import Prompter as Prompter
    from alpaca_lib.generation.self_instruct import generate as generate
    from alpaca_lib.generation.settings import Limits as Limits
    from alpaca_lib.generation.settings import Settings as Settings
    from alpaca_lib.generation.teacher import open_teacher as open_teacher

__getattr__, __dir__, __all__ = attach(__name__, __file__)
