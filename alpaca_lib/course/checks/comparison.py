"""Judges the exercises of lesson 05: the cost of a token, decoding, intervals and judges."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from alpaca_lib.course.checks.decoding_oracles import (
    OUTPUTS,
    Letters,
    generate_step,
    small_model,
)
from alpaca_lib.course.checks.verdict import Hint, exercise, need, need_answer, need_number

# Of LLaMA-3-8B: bytes of one token's keys and values in bfloat16.
PER_TOKEN = 2 * 32 * 8 * 128 * 2


def _need_near(answer: Any, right: float, wrong: Mapping[float, str], other: str) -> None:
    """Raises Hint unless a number is right within 1 %; ``wrong``: {likely wrong answer: hint}."""
    need_answer(answer, (int, float))
    for value, hint in wrong.items():
        need(not math.isclose(answer, value, rel_tol=0.01), hint)
    need_number(answer, right, other, tolerance=0.01)


@exercise
def cache_size(answer: Any) -> str:
    """Decides about the gigabytes of a KV cache: LLaMA-3-8B, 16 conversations of 4,096 tokens."""
    tokens = 16 * 4096
    right = PER_TOKEN * tokens / 1e9
    wrong = {
        right
        * 4: "that is a cache for all heads of the queries; which heads have keys and values?",
        right / 2: "each token leaves a key and a value",
        right * 2: "how many bytes does one number take in bfloat16?",
        right / 16: "that is one conversation",
        right / 32: "each layer has keys and values of its own",
        PER_TOKEN * tokens / 2**30: "a gigabyte is 1e9 bytes here",
        PER_TOKEN * tokens: "that is in bytes; gigabytes are asked for",
    }
    other = "multiply 2, layers, heads of keys and values, numbers per head, bytes, tokens"
    _need_near(answer, right, wrong, other)
    return "half as much as the weights of this model; with 32 conversations, as much as they"


@exercise
def speed_limit(answer: Any) -> str:
    """Decides about the tokens/s that 68 GB/s allow: LLaMA-3-8B in Q8_0, 32,768 tokens."""
    weights, cache, bandwidth = 8e9 * 8.5 / 8, PER_TOKEN * 32768, 68e9
    wrong = {
        bandwidth / weights: "a step reads the weights, and also the cache of the conversation",
        bandwidth / cache: "a step reads the cache, and also all weights",
        bandwidth / (8e9 + cache): "8 bits are not all: Q8_0 has a scale for each block",
        bandwidth / (16e9 + cache): "those are the weights in bfloat16; they are stored in Q8_0",
        bandwidth / (8e9 * 8.5 + cache): "Q8_0's figure is in bits per weight",
        (weights + cache) / bandwidth: "that is in seconds per token",
    }
    other = "bandwidth divided by all bytes that one step reads: the weights and the cache"
    _need_near(answer, bandwidth / (weights + cache), wrong, other)
    return "no program can be faster on this memory; a short conversation is, its cache is small"


def _need_function(answer: object) -> None:
    need_answer(answer)
    need(callable(answer), f"that is {type(answer).__name__}; a function is wanted")


def _need_result(result: object) -> None:
    need(result is not None, "your function returns None: write it, and end with `return`")


# (logits, tokens of the answer so far, penalty, temperature, top_p)
Step = tuple[list[float], list[int], float, float, float]
STEPS: tuple[Step, ...] = (
    ([2.0, 1.0, 0.0, -1.0], [], 1.0, 1.0, 1.0),
    ([2.0, 1.0, 0.0, -1.0], [], 1.0, 0.4, 1.0),
    ([3.0, 1.0, -2.0, 0.5], [0], 1.5, 1.0, 1.0),
    ([3.0, 1.0, -2.0, 0.5], [2, 0], 1.5, 1.0, 1.0),
    ([3.0, 1.0, -2.0, 0.5], [1, 2, 1, 1], 1.3, 1.0, 1.0),
    ([0.1, 1.9, 0.4, 1.2, -0.7], [], 1.0, 1.0, 0.75),
    ([0.1, 1.9, 0.4, 1.2, -0.7], [1, 4], 1.2, 0.7, 0.9),
    ([0.1, 1.9, 0.4, 1.2, -0.7], [1, 4], 1.2, 0.7, 0.05),
    ([900.0, 880.0, 870.0], [], 1.0, 0.5, 0.9),
)


def _close(one: Sequence[float], other: Sequence[float]) -> bool:
    return len(one) == len(other) and all(
        math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9) for a, b in zip(one, other, strict=True)
    )


def _call_step(function: Callable[..., Any], step: Step) -> list[float]:
    try:
        got = function(*step)
    except OverflowError:
        raise Hint(
            "e to the power of a large logit does not fit a float: what may be subtracted from all "
            "logits without a change?"
        ) from None
    _need_result(got)
    return [float(p) for p in got]


@exercise
def next_token(function: Any) -> str:
    """Decides about one step: (logits, answer, penalty, temperature, top_p) -> probabilities."""
    _need_function(function)
    for step in STEPS:
        logits, answer, penalty, temperature, top_p = step
        got, right = _call_step(function, step), generate_step(*step)
        if _close(got, right):
            continue
        shown = f"next_token({logits}, {answer}, {penalty}, {temperature}, {top_p})"
        need(len(got) == len(logits), f"{shown} has {len(got)} numbers: one per token is needed")
        need(not any(math.isnan(p) for p in got), f"{shown} gives nan: subtract the largest logit")
        always = [z / penalty if i in answer else z for i, z in enumerate(logits)]
        twice = [_penalise(z, penalty ** answer.count(i)) for i, z in enumerate(logits)]
        mistakes: tuple[tuple[Step, str], ...] = (  # what a likely one computes, and its hint
            ((always, [], 1.0, temperature, top_p), "divided, a negative logit becomes likelier"),
            ((twice, [], 1.0, temperature, top_p), "a token that occurs twice is penalised once"),
            ((logits, answer, penalty, 1 / temperature, top_p), "a low temperature must sharpen"),
            ((logits, [], 1.0, temperature, top_p), "the tokens of the answer are not penalised"),
        )
        for inputs, hint in mistakes:
            need(not _close(got, generate_step(*inputs)), hint)
        need(
            abs(sum(got) - 1) < 1e-6,
            f"{shown} sums to {sum(got):.3f}: scale what is left, so that it sums to 1",
        )
        need(
            not _close(sorted(got), sorted(right)),
            "the numbers are right, their order is not: number i belongs to token i",
        )
        kept, wanted = (sum(p > 0 for p in found) for found in (got, right))
        fewer = "the token that reaches top_p is kept, too, and at least one token"
        need(kept >= wanted, f"{shown} keeps {kept}: {fewer}")
        need(kept <= wanted, f"{shown} keeps {kept} tokens: fewer of them reach top_p already")
        raise Hint(
            f"{shown} gave {[round(p, 3) for p in got]}: first the penalty, then the "
            "temperature, then softmax, then top-p"
        )
    return "the same as transformers' processors, in the order of its generate()"


def _penalise(logit: float, penalty: float) -> float:
    return logit / penalty if logit > 0 else logit * penalty


@exercise
def paired_interval(function: Any) -> str:
    """Decides about a paired bootstrap: (one, other, draws, seed) -> (low, high)."""
    _need_function(function)
    draw = random.Random(3)
    hard = [draw.uniform(0, 9) for _ in range(120)]  # how hard each task is, for both models
    one = [h - 0.4 + draw.gauss(0, 1) for h in hard]
    got = function(one, hard, 4000, 1)
    _need_result(got)
    low, high = (float(end) for end in got)
    need(low <= high, "the lower end comes first")
    changes = [a - b for a, b in zip(one, hard, strict=True)]
    mean = sum(changes) / len(changes)
    error = math.sqrt(sum((d - mean) ** 2 for d in changes) / (len(changes) - 1) / len(changes))
    right = mean - 1.96 * error, mean + 1.96 * error
    width, wanted = high - low, right[1] - right[0]
    need(
        width > 0.01 * wanted,
        "all draws have the same mean: draw with replacement, some tasks twice and some not at all",
    )
    need(
        width < 8 * wanted,
        "that is where single differences lie; the interval is of their mean over all tasks",
    )
    need(
        width < 2 * wanted,
        "far too wide: a hard task is hard for both models, and cancels only if both answers of "
        "the same task are drawn together",
    )
    need(
        abs(low + right[1]) > 0.2 * wanted or abs(high + right[0]) > 0.2 * wanted,
        "the sign is the other way round: `one` minus `other`",
    )
    need(
        abs(low - right[0]) < 0.06 * wanted and abs(high - right[1]) < 0.06 * wanted,
        "95 % of the means do not lie between these ends: leave out 2.5 % on each side",
    )
    return "the difference is real, though the tasks differ far more than the two models do"


@exercise
def sampling(function: Any) -> str:
    """Decides about a function: temperature -> the arguments of generate()."""
    import torch

    _need_function(function)
    model = small_model()
    prompt = torch.tensor([[5, 9, 30, 12]])

    def answers(temperature: float, times: int = 8) -> set[tuple[int, ...]]:
        found = set()
        for seed in range(times):
            torch.manual_seed(seed)
            given = dict(function(temperature)) | {"max_new_tokens": 6, "eos_token_id": None}
            new = model.generate(prompt, attention_mask=torch.ones_like(prompt), **given)
            found.add(tuple(new[0].tolist()))
        return found

    need(isinstance(function(1.0), dict), "a dict of arguments is wanted")
    need(
        len(answers(1.5)) > 1,
        "at temperature 1.5 every seed gives the same answer: generate() still takes the likeliest",
    )
    need(len(answers(0.0)) == 1, "at temperature 0 different seeds gave different answers")
    need(
        len(answers(0.02)) == 1 < len(answers(3.0)),
        "the answers vary as much at temperature 0.02 as at 3: is the temperature passed on?",
    )
    need("top_p" in function(1.0), "top_p was a setting of the original: keep it")
    return "the answers differ from seed to seed now, and at temperature 0 they do not"


@exercise
def answer_of(function: Any) -> str:
    """Decides about the answer: (ids of generate(), prompt length, tokenizer) -> its text."""
    _need_function(function)
    tokenizer = Letters()
    for prompt, answer in OUTPUTS:
        head = [0, *tokenizer.encode(prompt)]
        for end in ([], [1], [1, 1, 1]):
            got = function([*head, *tokenizer.encode(answer), *end], len(head), tokenizer)
            _need_result(got)
            where = f"prompt {prompt!r}, answer {answer!r}: you returned {got!r}"
            need("</s>" not in got, f"{where}. The end token is no part of the answer")
            need(
                got.strip() == answer,
                f"{where}. A text may hold any marker; how many ids are the prompt's is known",
            )
    return "the prompt is cut off by its length in tokens, so no marker can mislead it"


@exercise
def padded(function: Any) -> str:
    """Decides about a batch: (model, prompts, pad) -> the likeliest next token of each prompt."""
    import torch

    _need_function(function)
    model = small_model(4)
    draw = random.Random(1)
    for pad, own in ((0, False), (2, False), (7, True)):
        sizes = (3, 12, 7, 12, 1, 9)
        prompts = [[draw.randrange(8, 48) for _ in range(size)] for size in sizes]
        if own:  # the pad token as a token of the prompts
            prompts = [[pad, *prompt, pad, prompt[0], pad] for prompt in prompts]
        with torch.inference_mode():
            alone = [int(model(torch.tensor([p])).logits[0, -1].argmax()) for p in prompts]
            got = function(model, [list(p) for p in prompts], pad)
        _need_result(got)
        wrong = [i for i, (a, b) in enumerate(zip(alone, got, strict=True)) if a != int(b)]
        if not wrong:
            continue
        need(
            not own,
            "prompts that hold the pad token themselves get other tokens than alone: the mask has "
            "to come from the lengths, not from the ids",
        )
        which = ", ".join(f"prompt {i + 1} ({sizes[i]} tokens)" for i in wrong[:3])
        raise Hint(
            f"{which} of 12 at most: another token than alone. Where is each prompt's last token, "
            "and what do the other tokens of its row see?"
        )
    return "a batch changes no answer; its padding is never read, nor seen by another token"


@exercise
def win_rate(function: Any) -> str:
    """Decides about a judge in both orders: (pairs, ask) -> the win rate of `one`."""
    _need_function(function)
    pairs = [(f"task {n}", "x" * (n % 5), "y" * (n % 3)) for n in range(15)]

    def longer(task: str, first: str, second: str) -> str:
        return "A" if len(first) > len(second) else "B" if len(second) > len(first) else "T"

    def biased(task: str, first: str, second: str) -> str:
        return "B" if len(second) > len(first) + 1 else "A"

    def unsure(task: str, first: str, second: str) -> str:
        return "T" if first.startswith("x") else longer(task, first, second)

    judges = {
        "prefers the first place": lambda task, first, second: "A",
        "prefers the second place": lambda task, first, second: "B",
        "prefers the longer answer": longer,
        "prefers the first place unless the second answer is much longer": biased,
        "calls a tie in one of the two orders": unsure,
    }
    for name, ask in judges.items():
        got = function(pairs, ask)
        _need_result(got)
        right = sum(_outcome(pair, ask) for pair in pairs) / len(pairs)
        if not math.isclose(float(got), right, abs_tol=1e-9):
            raise Hint(
                f"with a judge that {name} you get {float(got):.3f}. Ask in both orders; a verdict "
                "counts if both orders name the same answer; anything else is a tie, half a win"
            )
    return "a favourite place wins nothing any more, and a fair judge loses nothing"


def _outcome(pair: tuple[str, str, str], ask: Callable[[str, str, str], str]) -> float:
    """Returns the library's outcome of one pair that is shown in both orders."""
    from alpaca_lib.evaluation.llm_judge import VALUES, Verdict

    task, one, two = pair
    verdict = Verdict(VALUES[ask(task, one, two)], 1 - VALUES[ask(task, two, one)])
    return float(verdict.outcome or 0.0)


@exercise
def own_tasks(tasks: Any) -> str:
    """Decides about held-out tasks: a list of rows with instruction, output and check."""
    from alpaca_lib.course.notebooks import REPO
    from alpaca_lib.dataset import NoveltyIndex
    from alpaca_lib.evaluation import meets
    from alpaca_lib.records import load_examples

    need_answer(tasks, list)
    need(len(tasks) >= 5, f"that is {len(tasks)}: write five tasks at least")
    data = (REPO / "data" / name for name in ("alpaca_520.json", "eval_60.json"))
    index = NoveltyIndex([row.instruction for file in data for row in load_examples(file)])
    for number, row in enumerate(tasks, start=1):
        need(isinstance(row, dict), f"task {number} is no dict")
        for key in ("instruction", "output", "check"):
            need(row.get(key), f"task {number} has no {key!r}")
        met = meets(row["check"], row["output"])
        need(met, f"task {number}: its own reference answer does not meet {row['check']}")
        for empty in ("I do not know.", row["instruction"]):
            need(
                not meets(row["check"], empty),
                f"task {number}: the answer {empty!r} meets its check, which says little then",
            )
        found = index.check(row["instruction"])
        need(found.kept, f"task {number} is nearly {found.nearest!r}, which is known already")
        index.add(row["instruction"])
    return "each check can be met and can fail, and no task was trained on or measured before"
