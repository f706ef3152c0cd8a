"""Stage 05: a trained model -> answers, and an honest comparison of several."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alpaca_lib.lazy import attach

if TYPE_CHECKING:
    from alpaca_lib.inference.decoding import Decoding as Decoding
    from alpaca_lib.inference.decoding import answer as answer
    from alpaca_lib.inference.decoding import prompt_ids as prompt_ids
    from alpaca_lib.inference.model_pool import Voices as Voices
    from alpaca_lib.inference.safety import Policy as Policy
    from alpaca_lib.inference.safety import load_labelled as load_labelled
    from alpaca_lib.inference.safety import measure as measure

__getattr__, __dir__, __all__ = attach(__name__, __file__)
