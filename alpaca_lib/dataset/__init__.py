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
    from alpaca_lib.dataset.card import data_card
    from alpaca_lib.dataset.check_results import CheckResult, format_results
    from alpaca_lib.dataset.checks import check
    from alpaca_lib.dataset.detectors import DETECTORS
    from alpaca_lib.dataset.faults import Fault, count_faults, find_faults
    from alpaca_lib.dataset.html_report import render_report
    from alpaca_lib.dataset.proofs import load_proofs, prove
    from alpaca_lib.dataset.rouge import (
        Decision,
        NoveltyIndex,
        filter_novel,
        near_pairs,
        rouge_l,
        tokenize,
    )
    from alpaca_lib.dataset.statistics import (
        clusters,
        diversity,
        markdown_table,
        nearest,
        nearest_scores,
        overview,
        words,
    )
    from alpaca_lib.dataset.verbs import verb_objects

__getattr__, __dir__, __all__ = attach(__name__, __file__)
