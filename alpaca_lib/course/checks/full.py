"""Checks the exercises of lesson 03: memory, traffic, collectives, losses, packing, embeddings."""

from __future__ import annotations

from typing import Any

from alpaca_lib.course.checks.verdict import exercise, need, need_answer, need_number

PARAMETERS = 494_032_768  # of Qwen2.5-0.5B
IGNORE = -100


@exercise
def shards(each: Any, rows: Any) -> str:
    """Checks the bytes that one of four processes holds, and how ten rows are split."""
    need_answer(each, (int, float))
    need(each != 16 * PARAMETERS, "that is what all four processes hold together")
    need(each != 12 * PARAMETERS / 4, "Adam keeps two moments per parameter, not one")
    need(each != 2 * PARAMETERS, "count in float32: 4 bytes per number")
    need_number(each, 4 * PARAMETERS, "use the formula of section 1: 4 + 4 + 8 bytes, divided")
    need_answer(rows, (list, tuple))
    need(len(rows) == 4, "one number for each of the four processes")
    need(sum(rows) == 10, f"these are {sum(rows)} rows, and the matrix has 10")
    need(
        list(rows) != [3, 3, 2, 2],
        "torch.chunk does not balance: all parts have the same length, but for the last ones",
    )
    need(list(rows) == [3, 3, 3, 1], "torch.chunk: ceil(rows / processes) each, until none is left")
    return "the last process has less to do, and all wait for the first ones; so FSDP pads shards"


@exercise
def traffic(by_layer: Any, by_step: Any) -> str:
    """Checks the bytes that a process sends in a step, with both ways to gather."""
    share, size = 7 / 8, 1e9
    for name, answer in (("by_layer", by_layer), ("by_step", by_step)):
        need_answer(answer, (int, float))
        need(answer < 1e12, f"{name}: bytes, please, of one process and one step")
    right = share * size * 4 * (2 * 2 + 4)
    need(
        by_layer != share * size * 4 * (2 + 4),
        "by_layer: after the forward pass the layers are freed; what does the backward pass need?",
    )
    need(
        by_layer != share * size * (2 * 2 + 4),
        "by_layer: that is one micro-batch; the step has four",
    )
    need(
        by_layer != size * 4 * (2 * 2 + 4),
        "by_layer: nobody sends to itself the part that it holds",
    )
    need_number(by_layer, right, "by_layer: bytes per gather, how many gathers? Then gradients")
    need(
        by_step != share * size * (2 + 4 * 4),
        "by_step: the gradients are kept too, and reduced once",
    )
    need_number(by_step, share * size * (2 + 4), "by_step: each once per step", tolerance=1e-9)
    return (
        f"{by_layer / by_step:.1f} times less, for 6 bytes per parameter more on every process; "
        "neither depends on how many examples a micro-batch has"
    )


@exercise
def reduce_scatter(answer: Any) -> str:
    """Checks a reduce-scatter on lists, also with rows that do not divide."""
    _need_function(answer)
    import torch

    for rows, ranks in ((4, 2), (10, 4), (3, 4), (6, 3), (1, 1)):
        torch.manual_seed(rows)
        gradients = [torch.randint(-9, 9, (rows, 3)).float() for _ in range(ranks)]
        given = [g.clone() for g in gradients]
        got = answer(given)
        where = f"{ranks} processes, {rows} rows"
        need(got is not None, "your function returns None: end it with `return`")
        need(
            all(torch.equal(a, b) for a, b in zip(given, gradients, strict=True)),
            f"{where}: a gradient that you were given has changed; += on a tensor writes into it",
        )
        need(isinstance(got, list | tuple), "return a list: one tensor per process")
        total = torch.stack(gradients).sum(0)
        parts = list(total.chunk(ranks))
        parts += [total[:0]] * (ranks - len(parts))
        need(
            len(got) == ranks,
            f"{where}: you return {len(got)} parts; a process without rows gets an empty tensor",
        )
        shapes, wanted = [tuple(p.shape) for p in got], [tuple(p.shape) for p in parts]
        need(shapes == wanted, f"{where}: your parts have the shapes {shapes}; split by rows")
        means = [p / ranks for p in parts]
        is_mean = ranks > 1 and all(map(torch.equal, got, means))
        need(not is_mean, f"{where}: that is the mean of the gradients, not their sum")
        need(all(map(torch.equal, got, parts)), f"{where}: a part is not its rows of the sum")
    return (
        "FSDP2 itself returns the mean over processes; a loop that divides by the label tokens "
        "of the step must multiply by the number of processes"
    )


@exercise
def step_loss(answer: Any) -> str:
    """Checks the loss of a step of several micro-batches against one big batch."""
    _need_function(answer)
    import torch
    from torch.nn import functional as F

    torch.manual_seed(0)
    weight = torch.randn(7, 5, requires_grad=True)
    cases = {
        "equally many labels": [(4, 4), (4, 4)],
        "1 and 6 labels": [(5, 1), (6, 6)],
        "a micro-batch without a label": [(3, 0), (4, 2)],
    }
    for name, sizes in cases.items():
        batches = [_tokens(weight, tokens, labels) for tokens, labels in sizes]
        states, targets = (torch.cat(column) for column in zip(*batches, strict=True))
        whole = F.cross_entropy(states @ weight.T, targets, ignore_index=IGNORE)
        (wanted,) = torch.autograd.grad(whole, weight)
        got = answer(weight, batches)
        need(isinstance(got, torch.Tensor), "return the loss as a tensor, for backward()")
        need(not got.isnan(), f"{name}: the loss is nan: the mean of no label is 0 / 0")
        count = sum(labels for _, labels in sizes)
        need(
            not torch.isclose(got, whole * count) or count == 1,
            f"{name}: that is the sum of the losses; which number divides it?",
        )
        need(
            torch.isclose(got, whole, atol=1e-5),
            f"{name}: {got.item():.4f}, but one big batch has another loss; what is averaged, "
            "and over how many?",
        )
        (gradient,) = torch.autograd.grad(got, weight)
        need(
            torch.allclose(gradient, wanted, atol=1e-5),
            f"{name}: the loss is right, but not its gradient; is a part of it detached?",
        )
    return "so the labels of a step are counted before its first forward pass, on all processes"


def _tokens(weight: Any, tokens: int, labels: int) -> tuple[Any, Any]:
    """Returns random states and targets, of which the first ``labels`` count."""
    import torch

    targets = torch.randint(0, len(weight), (tokens,))
    targets[labels:] = IGNORE
    return torch.randn(tokens, weight.shape[1]), targets


@exercise
def packed_inputs(answer: Any) -> str:
    """Checks that the examples of a packed row do not see one another in a real LLaMA."""
    _need_function(answer)
    import torch

    model = _tiny_llama()
    first, other, last = [5, 6, 7, 8], [40, 41, 42, 43], [9, 10, 11]
    need_answer(answer([first, last]), dict)
    with torch.no_grad():
        alone = model(torch.tensor([last]), use_cache=False).logits[0, -1]
        one, two = (model(**answer([n, last])).logits[0, -1] for n in (first, other))
        pair = model(**answer([first])).logits[0, -1]
        single = model(torch.tensor([first]), use_cache=False).logits[0, -1]
    if not torch.allclose(one, two, atol=1e-4):
        given = answer([first, last])
        mask, cache = given.get("attention_mask"), given.get("use_cache", True)
        need(mask is None or mask.dim() == 4, "the neighbour is seen: see the trap of section 3")
        need(not cache, "without the mask the neighbour is still seen: what does the cache change?")
        need(False, "the neighbour is seen: do the positions restart?")
    need(
        torch.allclose(one, alone, atol=1e-4),
        "the neighbour is not seen, but the logits are not those of the example alone",
    )
    need(torch.allclose(pair, single, atol=1e-4), "one example alone has other logits now")
    return "two inputs of different neighbours and one comparison: that is the test to keep"


def _tiny_llama() -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval()


@exercise
def pad_labels(answer: Any) -> str:
    """Checks the labels of padded rows where the pad token is the end token."""
    _need_function(answer)
    cases: list[tuple[list[list[int]], int]] = [
        ([[5, 6, 2], [7, 2]], 2),
        ([[5, 6, 2], [7, 2]], 0),
        ([[2, 9, 2], [4, 2, 5, 8, 2], [2]], 2),
    ]
    for rows, pad in cases:
        got = answer([list(row) for row in rows], pad)
        need(isinstance(got, tuple) and len(got) == 2, "return the pair ids, labels")
        ids, labels = (part.tolist() for part in got)
        longest = max(map(len, rows))
        where = f"rows {rows}, pad {pad}"
        padded = [row + [pad] * (longest - len(row)) for row in rows]
        need(ids == padded, f"{where}: the ids should be the rows, padded on the right")
        for row, given in zip(rows, labels, strict=True):
            need(len(given) == longest, f"{where}: the labels are not as long as the ids")
            need(
                all(label == IGNORE for label in given[len(row) :]),
                f"{where}: padding has a label; the model would learn to write it",
            )
            need(
                given[: len(row)] == row,
                f"{where}: a token of a row has lost its label; which of its tokens equals pad?",
            )
    return "lengths say what is padding; the value of a token does not"


@exercise
def resize(answer: Any) -> str:
    """Checks that an embedding keeps its rows, and that only new tokens get the mean."""
    _need_function(answer)
    import torch

    for rows, tokens, new in ((6, 8, 2), (12, 10, 1), (10, 12, 3), (8, 8, 0), (9, 7, 0)):
        torch.manual_seed(rows)
        weight = torch.randn(rows, 4)
        given = weight.clone()
        got = answer(given, tokens, new)
        where = f"{rows} rows, {tokens} tokens of which {new} are new"
        need(isinstance(got, torch.Tensor), "return the new matrix, a tensor")
        need(torch.equal(given, weight), f"{where}: the old matrix has changed; work on a copy")
        need(len(got) >= rows, f"{where}: rows of the model are gone ({len(got)} are left)")
        need(len(got) == max(rows, tokens), f"{where}: {len(got)} rows are not what is needed")
        need(not got.isnan().any(), f"{where}: there is a nan; the mean of which rows?")
        old = tokens - new
        need(torch.equal(got[:old], weight[:old]), f"{where}: the row of an old token has changed")
        need(
            torch.equal(got[tokens:], weight[tokens:]),
            f"{where}: a row that belongs to no token has changed; which row is a new token's?",
        )
        mean = weight[:old].mean(0).expand(new, -1)
        need(
            torch.allclose(got[old:tokens], mean),
            f"{where}: a new token's row is not the mean of the rows of the old tokens",
        )
    return "a model may have more rows than its tokenizer has tokens: only ever add"


def _need_function(answer: Any) -> None:
    need_answer(answer)
    need(callable(answer), f"that is {type(answer).__name__}; a function is wanted")
