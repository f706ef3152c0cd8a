"""Stage 02: statistics, faults and near-duplicates of instruction data, without torch.

>>> examples = load_examples("my.json")
>>> print(markdown_table({"my.json": examples}))
>>> print(format_results(check(examples, apart={"seeds": seeds})))
>>> kept = filter_novel([example.instruction for example in examples])
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alpaca_lib.lazy import attach

if TYPE_CHECKING:
    from alpaca_lib.dataset.card import data_card as data_card
    from alpaca_lib.dataset.checks import CheckResult as CheckResult
    from alpaca_lib.dataset.checks import check as check
    from alpaca_lib.dataset.checks import format_results as format_results
    from alpaca_lib.dataset.detectors import DETECTORS as DETECTORS
    from alpaca_lib.dataset.faults import Fault as Fault
    from alpaca_lib.dataset.faults import count_faults as count_faults
    from alpaca_lib.dataset.faults import find_faults as find_faults
    from alpaca_lib.dataset.html_report import render_report as render_report
    from alpaca_lib.dataset.proofs import load_proofs as load_proofs
    from alpaca_lib.dataset.proofs import prove as prove
    from alpaca_lib.dataset.rouge import Decision as Decision
    from alpaca_lib.dataset.rouge import NoveltyIndex as NoveltyIndex
    from alpaca_lib.dataset.rouge import filter_novel as filter_novel
    from alpaca_lib.dataset.rouge import near_pairs as near_pairs
    from alpaca_lib.dataset.rouge import rouge_l as rouge_l
    from alpaca_lib.dataset.rouge import tokenize as tokenize
    from alpaca_lib.dataset.statistics import clusters as clusters
    from alpaca_lib.dataset.statistics import diversity as diversity
    from alpaca_lib.dataset.statistics import markdown_table as markdown_table
    from alpaca_lib.dataset.statistics import nearest as nearest
    from alpaca_lib.dataset.statistics import nearest_scores as nearest_scores
    from alpaca_lib.dataset.statistics import overview as overview
    from alpaca_lib.dataset.statistics import words as words
    from alpaca_lib.dataset.verbs import verb_objects as verb_objects

__getattr__, __dir__, __all__ = attach(__name__, __file__)
