"""What lesson 03 computes by hand equals the library's, torch's and the planner's."""

from __future__ import annotations

import pytest
import torch

from alpaca_lib.planning.layout import ShardingLayout
from alpaca_lib.training import join, share_prefixes
from alpaca_lib.training.attention import Documents
from tests.notebooks.cells import code_cells, define


@pytest.fixture(scope="module")
def hand():
    """The functions that the notebook defines, by name."""
    return define(code_cells("03_full_finetune_fsdp"), torch=torch)


def test_adamw_and_clipping_are_torchs(hand):
    torch.manual_seed(0)
    weights = torch.randn(20, requires_grad=True)
    optimizer = torch.optim.AdamW([weights], lr=0.1, weight_decay=0.0)
    mine, m, v = weights.detach().clone(), 0.0, 0.0
    for k in range(1, 6):
        gradient = torch.randn(20) * 10.0 ** (k - 3)
        mine, m, v = hand["adamw"](mine, hand["clip"](gradient, 0.5), m, v, k)
        weights.grad = gradient.clone()
        torch.nn.utils.clip_grad_norm_([weights], 0.5)
        optimizer.step()
    assert torch.allclose(mine, weights.detach(), atol=1e-5)


def test_the_mask_of_shared_prefixes_is_what_the_librarys_attention_reads(hand):
    header, long_header = list(range(100, 140)), list(range(100, 180))
    examples = [
        {"input_ids": [*begin, 10 + n, 20 + n, 9], "labels": [-100] * (len(begin) + 2) + [9]}
        for n, begin in enumerate((header, long_header, long_header, header))
    ]
    row = join(examples, range(4), share_prefixes(examples))
    assert max(row.parents) >= 1, "a prefix that continues a prefix"
    sees = hand["may_see"](row)
    documents = Documents.of(row.boundaries, "cpu", row.parents).with_cu_seqlens("cpu")
    for k, (start, end) in enumerate(zip(row.boundaries, row.boundaries[1:], strict=False)):
        first, last = documents.cu_seqlens_k[k : k + 2].tolist()
        keys = documents.key_tokens[first:last].tolist()
        for token in range(start, end):
            causal = [key for key in keys if key < start or key <= token]
            assert sees[token].nonzero().flatten().tolist() == sorted(causal)


@pytest.mark.parametrize("gather", ["layer", "step"])
def test_the_traffic_is_the_planners(hand, gather):
    layout = ShardingLayout(ranks=4, shard=4, gather_once=gather == "step")
    planned = layout.received_bytes("full", 10**9, 8) * 3 / 4 / 1e9  # which counts its own part
    assert hand["gb_sent"](10**9, 0, 4, 8, gather) == pytest.approx(planned)


def test_all_gather_undoes_the_split_and_reduce_scatter_splits_the_sum(hand):
    torch.manual_seed(0)
    gradients = [torch.randn(6, 2) for _ in range(3)]
    parts = hand["reduce_scatter"](gradients)
    for full in hand["all_gather"](parts):
        assert torch.allclose(full, torch.stack(gradients).sum(0))
    assert [len(part) for part in parts] == [2, 2, 2]


def test_the_formula_of_memory_is_four_float32_numbers_per_parameter(hand):
    assert hand["training_gb"](7e9, 1) == 112.0
    assert hand["training_gb"](7e9, 4) == 28.0
