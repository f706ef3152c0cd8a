"""Functions that lesson 05 writes by hand, on a vocabulary of real size."""

from __future__ import annotations

import pytest

from tests.notebooks.cells import code_cells, define

TOP_P = [cell for cell in code_cells("05_inference_comparison") if cell.id == "top-p"]


def test_top_p_reads_a_vocabulary_once():
    """Summing again for each token makes 49,152 tokens take seconds, and a slider useless."""
    added = []

    def counted(values):
        added.append(len(values))
        return sum(values)

    nucleus = define(TOP_P, sum=counted)["nucleus"]
    kept = nucleus([0.5, 0.3, 0.1, *[0.1 / 97] * 97], 0.75)
    assert kept[:2] == pytest.approx([0.625, 0.375]) and not any(kept[2:])
    assert sum(added) <= 2 * 100
