"""Stage 02: know the data. ROUGE-L novelty and statistics; no torch in here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alpaca_lib.lazy import attach

if TYPE_CHECKING:
    from alpaca_lib.dataset.card import data_card as data_card
    from alpaca_lib.dataset.detectors import DETECTORS as DETECTORS
    from alpaca_lib.dataset.faults import find_faults as find_faults
    from alpaca_lib.dataset.html_report import report as report
    from alpaca_lib.dataset.rouge import NoveltyIndex as NoveltyIndex
    from alpaca_lib.dataset.rouge import filter_novel as filter_novel
    from alpaca_lib.dataset.rouge import near_pairs as near_pairs
    from alpaca_lib.dataset.rouge import rouge_l as rouge_l
    from alpaca_lib.dataset.rouge import tokenize as tokenize
    from alpaca_lib.dataset.statistics import clusters as clusters
    from alpaca_lib.dataset.statistics import nearest as nearest
    from alpaca_lib.dataset.statistics import nearest_scores as nearest_scores
    from alpaca_lib.dataset.statistics import overview as overview
    from alpaca_lib.dataset.verbs import verb_objects as verb_objects

__getattr__, __dir__, __all__ = attach(__name__, __file__)
