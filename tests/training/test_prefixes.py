"""Shared prefixes: found in the data, computed once, and the loss of every example its own."""

from __future__ import annotations

import json
import random
import shutil
from itertools import chain
from pathlib import Path

import pytest
import torch

from alpaca_lib import launch as launcher
from alpaca_lib.training import adapters, attention
from alpaca_lib.training.attention import MATMUL_LENGTH, Documents, attach, documents_attention
from alpaca_lib.training.loop import train
from alpaca_lib.training.loss import LabelLoss
from alpaca_lib.training.micro_batches import balance_micro_batches, plan_step
from alpaca_lib.training.packing import IGNORE, collate, count_labels, join, share_prefixes
from alpaca_lib.training.prefixes import (
    SHORTEST,
    attention_context,
    find_prefixes,
    list_segments,
)
from alpaca_lib.training.settings import Settings
from tests.training.test_attention import WORDS, close, gradients, make, own_loss

FAMILIES = ["Llama", "Qwen2", "GPTNeoX", "OPT"]


def random_examples(seed, count=12):
    """Examples that begin with nodes of a random tree of prefixes, some of them alike."""
    draw = random.Random(seed)

    def some(least, most):
        return [draw.randrange(3, WORDS) for _ in range(draw.randint(least, most))]

    prefixes = [[]]
    for _ in range(draw.randint(1, 6)):
        prefixes.append(draw.choice(prefixes) + some(1, 3 * SHORTEST))
    examples = []
    for _ in range(count):
        ids = draw.choice(prefixes) + some(1, 20)
        begin = draw.randint(1, len(ids) - 1) if len(ids) > 1 else 1
        examples.append({"input_ids": ids, "labels": [IGNORE] * begin + ids[begin:]})
        if draw.random() < 0.2:
            examples.append(examples[-1])
    return [row for row in examples if count_labels(row)]


def shared_batch(examples, prefixes, device="cpu", multiple=8):
    """All examples in one row that shares their prefixes, and its Documents."""
    row = join(examples, range(len(examples)), prefixes)
    batch = collate([row], 0, multiple)
    edges = [*row.boundaries[:-1], batch["input_ids"].shape[1]]
    return batch, Documents.of(edges, device, row.parents)


# --- finding them -------------------------------------------------------------------


def test_the_tree_of_the_docstring():
    """Two nodes; an example that has nothing in common stays alone; short ones are not made."""
    a, b = list(range(10, 10 + SHORTEST)), list(range(50, 50 + SHORTEST))
    found = find_prefixes([[*a, 1, 2], [*a, *b, 3], [*a, *b, 4], [1, *a], [1, 2]])
    assert (found.parents, found.ends) == ([-1, 0], [SHORTEST, 2 * SHORTEST])
    assert found.deepest == [0, 1, 1, -1, -1]
    assert find_prefixes([a[:-1], a]).ends == [] == find_prefixes([]).ends


@pytest.mark.parametrize("seed", range(60))
def test_segments_are_the_examples(seed):
    """Ancestors and own tokens of each segment are its example; labels only in own segments,
    each once; nothing is computed twice that SHORTEST tokens or more of two examples share."""
    examples = random_examples(seed)
    lengths = [len(row["input_ids"]) for row in examples]
    prefixes = share_prefixes(examples)
    draw = random.Random(seed)
    members = draw.sample(range(len(examples)), draw.randint(1, len(examples)))
    row = join(examples, members, prefixes)
    segments = list_segments(lengths, members, prefixes)
    assert row.members == members and row.parents == [s.parent for s in segments]
    seen: list[tuple[list[int], list[int]]] = []
    for n, (start, end) in enumerate(zip(row.boundaries, row.boundaries[1:], strict=False)):
        assert row.parents[n] < n and start < end
        before = seen[row.parents[n]] if row.parents[n] >= 0 else ([], [])
        ids, places = row.input_ids[start:end], row.position_ids[start:end]
        seen.append((before[0] + ids, before[1] + places))
        assert seen[-1][1] == list(range(len(seen[-1][1])))
    leaves = [n for n in range(len(segments)) if n not in row.parents]
    assert [seen[n][0] for n in leaves] == [examples[i]["input_ids"] for i in members]
    for n, i in zip(leaves, members, strict=True):
        start, end = row.boundaries[n : n + 2]
        labels = examples[i]["labels"]
        own = row.labels[start:end]
        assert own[0] == IGNORE and own[1:] == labels[-len(own) :][1:]
        assert len(own) - own.count(IGNORE) == count_labels(examples[i]) - (labels[0] != IGNORE)
    shared = [n for n in range(len(segments)) if n not in leaves]
    for n in shared:
        start, end = row.boundaries[n : n + 2]
        assert row.parents.count(n) > 1 and set(row.labels[start:end]) == {IGNORE}
    assert leaves[-1] == len(segments) - 1
    if row.parents != [-1] * len(members):
        assert sum(s.tokens for s in segments) <= sum(lengths[i] for i in members) - SHORTEST


def test_a_loss_on_the_prompt_shares_nothing():
    """Where every token has a label, none is shared; nor where a label begins in the header."""
    header = list(range(10, 40))
    examples = [{"input_ids": [*header, n, n], "labels": [*header, n, n]} for n in range(3)]
    assert share_prefixes(examples).ends == []
    for row in examples:
        row["labels"] = [IGNORE] * 12 + row["input_ids"][12:]
    assert share_prefixes(examples).ends == [11]  # token 11 predicts the label of token 12


def test_context_is_the_mean_of_keys():
    """Twice the keys per computed token: counted one by one, for a tree."""
    examples = random_examples(3)
    lengths = [len(row["input_ids"]) for row in examples]
    for prefixes in (None, share_prefixes(examples)):
        segments = list_segments(lengths, range(len(examples)), prefixes)
        keys = [place + 0.5 for s in segments for place in range(s.start, s.end)]
        assert attention_context(segments) == pytest.approx(2 * sum(keys) / len(keys))
    plain = list_segments(lengths, range(len(lengths)))
    assert attention_context(plain) == sum(n * n for n in lengths) / sum(lengths)


# --- micro-batches --------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("seed", range(10))
def test_micro_batches_with_prefixes(ranks, seed):
    """Every example once, no row above the limit, the same plan at every call, and at most the
    tokens of the plan without prefixes, in no more micro-batches."""
    examples = random_examples(seed, count=60)
    lengths, most = [len(row["input_ids"]) for row in examples], 200
    prefixes = share_prefixes(examples)
    batches = balance_micro_batches(lengths, most, ranks, prefixes)
    assert batches == balance_micro_batches(lengths, most, ranks, share_prefixes(examples))
    assert all(len(micro) == ranks for micro in batches)
    groups = [group for micro in batches for group in micro]
    assert sorted(chain.from_iterable(groups)) == list(range(len(examples)))
    tokens = [len(join(examples, group, prefixes).input_ids) for group in groups]
    assert max(tokens) <= most and sum(tokens) <= sum(lengths)
    plain = balance_micro_batches(lengths, most, ranks)
    assert len(batches) <= len(plain)
    blind = [len(join(examples, g, prefixes).input_ids) for micro in plain for g in micro]
    assert len(batches) < len(plain) or sum(tokens) <= sum(blind)


def test_examples_with_the_same_prefix_meet():
    """Two system prompts of 500 tokens, two micro-batches: each prompt is computed once."""
    draw = random.Random(0)
    system = [[draw.randrange(1000) for _ in range(500)] for _ in range(2)]
    examples = []
    for n in range(16):
        ids = system[n % 2] + [draw.randrange(1000) for _ in range(60 + n)]
        examples.append({"input_ids": ids, "labels": [IGNORE] * 510 + ids[510:]})
    settings = Settings(data_path="d", output_dir="o", max_length=700, row_length=1100)
    settings = settings.replace(rows_per_micro_batch=1)
    plan = plan_step(settings, examples, 2, True, share=True)
    own = sum(len(row["input_ids"]) - 500 for row in examples)
    assert len(plan.groups) == 1 and plan.computed_tokens == 2 * 500 + own
    assert {frozenset(i % 2 for i in group) for group in plan.groups[0]} == {
        frozenset([0]),
        frozenset([1]),
    }


# --- the loss -------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("family", FAMILIES)
def test_shared_is_each_alone(family, seed):
    """Random trees of prefixes: loss and every gradient of the examples one by one through
    transformers, to 1e-5 in float32."""
    model = make(family)
    examples = random_examples(100 + seed)
    prefixes = share_prefixes(examples)
    assert prefixes.ends
    expected = own_loss(model, examples)
    theirs = gradients(model, expected)
    attach(model, "cpu", 200)
    batch, documents = shared_batch(examples, prefixes)
    assert documents.parents
    loss = LabelLoss(model)(**batch, documents=documents)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert close(gradients(model, loss), theirs)


@pytest.mark.parametrize("family, targets", [("Llama", "q_proj,v_proj"), ("GPTNeoX", "all-linear")])
def test_shared_lora_is_unshared(family, targets):
    """Adapters' gradients are those of the row that shares nothing, to 1e-5."""
    settings = Settings(data_path="d", output_dir="o", method="lora", lora_dropout=0.0)
    model = make(family)
    attach(model, "cpu", 200)
    model = adapters.add_lora(model, settings.replace(lora_targets=targets)).train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    examples = random_examples(7)
    found = []
    for prefixes in (None, share_prefixes(examples)):
        batch, documents = shared_batch(examples, prefixes)
        loss = LabelLoss(model)(**batch, documents=documents)
        found.append((loss.item(), gradients(model, loss), batch["input_ids"].shape[1]))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5) and found[1][2] < found[0][2]
    assert close(found[1][1], found[0][1]) and all("lora_" in name for name in found[0][1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_examples_do_not_see_one_another(dtype):
    """Other tokens in one example's own segment change no other example's loss, not by a bit;
    the gradient of one example's loss is 0 at every token of the others."""
    model = make("Llama").to(dtype)
    attach(model, "cpu", 200)
    examples = random_examples(11)
    prefixes = share_prefixes(examples)
    row = join(examples, range(len(examples)), prefixes)
    segment = max(n for n, parent in enumerate(row.parents) if parent > 0)
    assert segment not in row.parents
    a, b = row.boundaries[segment : segment + 2]
    ancestors, parent = [], row.parents[segment]
    while parent >= 0:
        ancestors += range(*row.boundaries[parent : parent + 2])
        parent = row.parents[parent]
    assert ancestors
    batch, documents = shared_batch(examples, prefixes)
    batch["labels"][:, :a] = batch["labels"][:, b:] = IGNORE
    seen = []
    handle = model.get_input_embeddings().register_forward_hook(
        lambda module, inputs, out: (out.retain_grad(), seen.append(out))[0]
    )
    loss = LabelLoss(model)(**batch, documents=documents)
    loss.backward()
    handle.remove()
    touched = set(seen[0].grad[0].any(1).nonzero().flatten().tolist())
    assert touched == {*ancestors, *range(a, b - 1)}
    others = [n for n in range(batch["input_ids"].shape[1]) if n not in {*ancestors, *range(a, b)}]
    batch["input_ids"][0, others] = 7
    assert LabelLoss(model)(**batch, documents=documents).item() == loss.item() > 0


@pytest.mark.parametrize("before, own", [(24, 60), (300, 5), (30, MATMUL_LENGTH), (4096, 9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_long_segments(dtype, before, own, monkeypatch):
    """By hand, with a mask and without one: outputs and gradients of unshared documents."""
    if before > 4000:
        monkeypatch.setattr(attention, "MASK_LENGTH", 64)
        before = 600
    torch.manual_seed(own)
    total = before + 2 * own
    q, k, v = (torch.randn(1, heads, total, 16) for heads in (4, 2, 2))
    grad = torch.randn(1, total, 4, 16)
    first, second = range(before + own), [*range(before), *range(before + own, total)]

    def run(inputs, documents, kind):
        leaves = [x.to(kind, copy=True).requires_grad_() for x in inputs]
        out, _ = documents_attention(None, *leaves[:3], None, 0.0, 0.25, documents=documents)
        return leaves, out

    leaves, out = run(
        (q, k, v), Documents.of([0, before, before + own, total], "cpu", [-1, 0, 0]), dtype
    )
    out.backward(grad.to(dtype))
    plain, parts = [x.clone().requires_grad_() for x in (q, k, v)], []
    for n, tokens in enumerate((first, second)):
        rows = [x[:, :, list(tokens)] for x in plain]
        part, _ = documents_attention(None, *rows, None, 0.0, 0.25)
        parts.append(part if n == 0 else part[:, before:])
    expected = torch.cat(parts, 1)
    expected.backward(grad)
    tolerance = 1e-5 if dtype == torch.float32 else 1 / 64
    pairs = [(out, expected), *((a.grad, b.grad) for a, b in zip(leaves, plain, strict=True))]
    for ours, theirs in pairs:
        assert float((ours.float() - theirs).norm()) <= tolerance * float(theirs.norm())


def emulated_varlen(q, k, v, cu_q, cu_k, longest_q, longest_k, scale, window_size):
    """What FlashAttention documents of its varlen kernel: the causal mask ends with the keys."""
    out, edges = (
        [],
        list(zip(cu_q.tolist(), cu_q[1:].tolist(), cu_k.tolist(), cu_k[1:].tolist(), strict=False)),
    )
    assert window_size == (-1, 0)
    assert longest_q == max(b - a for a, b, _, _ in edges)
    assert longest_k == max(d - c for _, _, c, d in edges)
    for a, b, c, d in edges:
        scores = torch.einsum("qhd,khd->hqk", q[a:b], k[c:d]) * scale
        late = torch.ones(b - a, d - c, dtype=torch.bool).triu(1 + (d - c) - (b - a))
        weights = scores.masked_fill(late, float("-inf")).softmax(-1)
        out.append(torch.einsum("hqk,khd->qhd", weights, v[c:d]))
    return torch.cat(out)


def test_keys_for_the_varlen_kernel(monkeypatch):
    """The keys that each segment reads, and their gradients: those of the CPU's computation,
    with a kernel that does what FlashAttention's documentation says."""
    monkeypatch.setattr(attention, "_varlen", lambda: emulated_varlen)
    model = make("Llama")
    attach(model, "cpu", 200)
    examples = random_examples(5)
    batch, documents = shared_batch(examples, share_prefixes(examples))
    loss = LabelLoss(model)(**batch, documents=documents)
    expected = gradients(model, loss)
    again = LabelLoss(model)(**batch, documents=documents.with_cu_seqlens("cpu"))
    assert again.item() == pytest.approx(loss.item(), rel=1e-6)
    assert close(gradients(model, again), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_varlen_kernel_of_this_gpu(dtype):
    """Its causal mask ends with the keys, gradients included."""
    assert attention.shares_keys("cuda", dtype)


def test_a_kernel_with_another_mask_is_found(monkeypatch):
    """A mask that begins with the keys (as torch's SDPA has it) must turn sharing off."""

    def aligned_left(q, k, v, cu_q, cu_k, *more, scale, window_size):
        out = []
        for a, b, c, d in zip(
            cu_q.tolist(), cu_q[1:].tolist(), cu_k.tolist(), cu_k[1:].tolist(), strict=False
        ):
            part = torch.nn.functional.scaled_dot_product_attention(
                *(x.transpose(0, 1) for x in (q[a:b], k[c:d], v[c:d])), is_causal=True, scale=scale
            )
            out.append(part.transpose(0, 1))
        return torch.cat(out)

    of = Documents.of
    for kernel, good in ((emulated_varlen, True), (aligned_left, False)):
        monkeypatch.setattr(attention, "_varlen", lambda kernel=kernel: kernel)

        def on_gpu(edges, device, parents=()):
            made = of(edges, "cpu", parents)
            return made.with_cu_seqlens("cpu") if device == "cuda:as-if" else made

        monkeypatch.setattr(Documents, "of", on_gpu)
        monkeypatch.setattr(torch.Tensor, "to", _to_cpu)
        assert attention.shares_keys.__wrapped__("cuda:as-if", torch.float32) is good


_to = torch.Tensor.to


def _to_cpu(tensor, *where):
    """Tensor.to, with a device that does not exist."""
    return _to(tensor, *("cpu" if place == "cuda:as-if" else place for place in where))


# --- whole runs -----------------------------------------------------------------------


@pytest.fixture
def settings(small_folder, data_file, tmp_path):
    """Four steps of six examples in two micro-batches, on the CPU in float32."""
    return Settings(
        data_path=str(data_file), output_dir=str(tmp_path / "shared"), model=str(small_folder),
        max_steps=4, examples_per_step=6, max_length=160, row_length=240, rows_per_micro_batch=1,
        learning_rate=1e-2, validation_rows=2, eval_every=2, device="cpu", dtype="float32",
        lora_dropout=0.0,
    )  # fmt: skip


def lines_of(folder):
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def tensors_of(folder):
    """All saved tensors of a folder by name."""
    from safetensors.torch import load_file

    (file,) = Path(folder).glob("*.safetensors")
    return load_file(file)


def agree(a, b, names, tolerance):
    """Whether two runs have the same values in their metrics."""
    for name in names:
        ours, theirs = ([line[name] for line in lines_of(f) if name in line] for f in (a, b))
        assert ours and ours == pytest.approx(theirs, rel=tolerance), name


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method": "lora", "lora_targets": "all-linear"},
        {"activation_checkpointing": True},
    ],
    ids=["full", "lora", "recomputed"],
)
def test_a_run_that_shares_is_the_run_that_does_not(settings, changes):
    """Losses, norms and validation losses to 1e-5; weights close; fewer tokens computed."""
    settings = settings.replace(**changes)
    shared = train(settings)
    off = train(settings.replace(share_prefix="off", output_dir=settings.output_dir + "-off"))
    agree(shared, off, ("loss", "grad_norm", "validation_loss"), 1e-5)
    agree(shared, off, ("tokens", "label_tokens", "lr"), 0)
    ours, theirs = tensors_of(shared), tensors_of(off)
    assert all((ours[n] - theirs[n]).abs().max() < 1e-4 for n in theirs)
    for line in lines_of(shared):
        assert line.get("computed_tokens", 0) < line.get("tokens", 1)
    assert all(x.get("computed_tokens") == x.get("tokens") for x in lines_of(off))
    said = [json.loads((f / "run.json").read_text())["shared_prefixes"] for f in (shared, off)]
    assert said == ["computed once per row", "off"]


@pytest.mark.parametrize("batching", ["pack", "bucket"])
def test_where_it_does_not_share(settings, batching):
    """Padded rows, and prompts with a loss: every token is computed; run.json says it."""
    folder = train(settings.replace(batching=batching, mask_prompt=batching == "bucket"))
    assert all(x.get("computed_tokens") == x.get("tokens") for x in lines_of(folder))
    said = json.loads((folder / "run.json").read_text())["shared_prefixes"]
    assert said.startswith("off") is (batching == "bucket")


def test_a_resumed_run_is_unbroken(settings):
    """From a checkpoint: weights to the bit, with dropout on what the examples share."""
    settings = settings.replace(save_every=2, keep_checkpoints=5, method="lora")
    settings = settings.replace(lora_dropout=0.2)
    whole = train(settings)
    broken = settings.replace(output_dir=settings.output_dir + "-broken")
    Path(broken.output_dir).mkdir()
    shutil.copytree(whole / "checkpoint-2", Path(broken.output_dir) / "checkpoint-2")
    train(broken)
    ours, theirs = tensors_of(broken.output_dir), tensors_of(whole)
    assert all(torch.equal(ours[n], theirs[n]) for n in theirs)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_two_processes_share(settings, method):
    """Two ranks (FSDP2) that share prefixes: losses and norms of one process that does not."""
    settings = settings.replace(method=method, validation_rows=0, eval_every=0)
    one = train(settings.replace(share_prefix="off", output_dir=settings.output_dir + "-one"))
    list(launcher.launch(settings, processes=2))
    agree(settings.output_dir, one, ("loss", "grad_norm"), 1e-5)
    assert all(x["computed_tokens"] < x["tokens"] for x in lines_of(settings.output_dir))
