"""The checks of lesson 05: a likely mistake gets its own hint, which gives nothing away."""

from __future__ import annotations

import math
import random

import pytest

from alpaca_lib.course.checks import comparison as check
from alpaca_lib.course.checks import verdict


def said(capsys, judge, *answers):
    judge(*answers)
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (34.36, "which heads have keys"),
        (4.29, "a key and a value"),
        (17.18, "bfloat16"),
        (0.537, "one conversation"),
        (0.268, "each layer"),
        (8.0, "a gigabyte is 1e9 bytes"),
        (8589934592, "in bytes"),
        (3, "multiply"),
        ("8.6", "that is str"),
        (..., "no answer yet"),
    ],
)
def test_hints_on_the_size_of_a_cache(capsys, answer, hint):
    text = said(capsys, check.cache_size, answer)
    assert text.startswith("Not yet: ") and hint in text and "8.5" not in text


def test_a_cache_may_be_rounded(capsys):
    assert said(capsys, check.cache_size, 8.6).startswith("Right: ")


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (8.0, "also the cache"),
        (15.83, "also all weights"),
        (5.53, "a scale for each block"),
        (3.35, "in bfloat16"),
        (0.94, "bits per weight"),
        (0.188, "seconds per token"),
        (2, "bandwidth divided by all bytes"),
    ],
)
def test_hints_on_the_limit_of_the_speed(capsys, answer, hint):
    text = said(capsys, check.speed_limit, answer)
    assert text.startswith("Not yet: ") and hint in text and "5.3" not in text


def step(
    logits, answer, penalty, temperature, top_p, *, divide=False, count=False, sharp=False,
    scale=True, cross=True, order=True, most=True,
):  # fmt: skip
    """One step of decoding, with a mistake for each argument that is changed."""
    z = list(logits)
    for i in answer if count else set(answer):
        z[i] = z[i] / penalty if z[i] > 0 or divide else z[i] * penalty
    temperature = 1 / temperature if sharp else temperature
    powers = [math.exp((x - (max(z) if most else 0)) / temperature) for x in z]
    p = [power / sum(powers) for power in powers]
    total, kept = 0.0, set()
    for i in sorted(range(len(p)), key=lambda i: -p[i]):
        over = total >= top_p if cross else total + p[i] >= top_p + 1e-12
        if over and (cross or kept):
            break
        total, kept = total + p[i], kept | {i}
    found = [p[i] / (total if scale else 1) if i in kept else 0.0 for i in range(len(p))]
    return found if order else sorted(found, reverse=True)


@pytest.mark.parametrize(
    ("mistake", "hint"),
    [
        ({"divide": True}, "a negative logit becomes likelier"),
        ({"count": True}, "penalised once"),
        ({"sharp": True}, "must sharpen"),
        ({"scale": False}, "sums to"),
        ({"cross": False}, "the token that reaches top_p is kept"),
        ({"order": False}, "their order is not"),
        ({"most": False}, "e to the power of a large logit"),
    ],
)
def test_hints_on_a_step_of_decoding(capsys, mistake, hint):
    text = said(capsys, check.next_token, lambda *given: step(*given, **mistake))
    assert text.startswith("Not yet: ") and hint in text


def test_a_step_without_mistakes_is_right_and_none_is_not(capsys):
    assert said(capsys, check.next_token, step).startswith("Right: ")
    assert "returns None" in said(capsys, check.next_token, lambda *given: None)
    unpenalised = said(capsys, check.next_token, lambda z, a, *rest: step(z, [], *rest))
    assert "are not penalised" in unpenalised
    every = said(capsys, check.next_token, lambda z, a, t, h, p: step(z, a, t, h, 1.0))
    assert "fewer of them reach top_p" in every


def bootstrap(one, other, draws, seed, *, tail=0.025, repeat=True, apart=False, single=False):
    draw, n = random.Random(seed), len(one)
    if apart:
        means = [
            (sum(draw.choices(one, k=n)) - sum(draw.choices(other, k=n))) / n for _ in range(draws)
        ]
    else:
        changes = [a - b for a, b in zip(one, other, strict=True)]
        pick = draw.choices if repeat else draw.sample
        size = 1 if single else n
        means = [sum(pick(changes, k=size)) / size for _ in range(draws)]
    means.sort()
    return means[int(tail * draws)], means[int((1 - tail) * draws) - 1]


@pytest.mark.parametrize(
    ("mistake", "hint"),
    [
        ({"apart": True}, "drawn together"),
        ({"single": True}, "single differences"),
        ({"repeat": False}, "with replacement"),
        ({"tail": 0.05}, "leave out 2.5 %"),
        ({"tail": 0.005}, "leave out 2.5 %"),
    ],
)
def test_hints_on_an_interval(capsys, mistake, hint):
    text = said(capsys, check.paired_interval, lambda *given: bootstrap(*given, **mistake))
    assert text.startswith("Not yet: ") and hint in text


@pytest.mark.parametrize("seed", range(5))
def test_an_interval_is_right_with_any_draws(capsys, seed):
    right = said(capsys, check.paired_interval, lambda a, b, n, s: bootstrap(a, b, n, s + seed))
    assert right.startswith("Right: ")


def test_an_interval_has_a_sign_and_an_order(capsys):
    turned = said(capsys, check.paired_interval, lambda a, b, n, s: bootstrap(b, a, n, s))
    assert "`one` minus `other`" in turned
    ends = said(capsys, check.paired_interval, lambda *given: bootstrap(*given)[::-1])
    assert "the lower end comes first" in ends


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        (lambda t: {"temperature": t, "top_p": 0.75}, "still takes the likeliest"),
        (lambda t: {"do_sample": True, "top_p": 0.75}, "at temperature 0"),
        (lambda t: {"do_sample": t > 0, "top_p": 0.75}, "is the temperature passed on"),
        (
            lambda t: {"do_sample": True, "temperature": t} if t else {"do_sample": False},
            "top_p was a setting",
        ),
        (lambda t: None, "a dict of arguments is wanted"),
    ],
)
def test_hints_on_sampling(capsys, settings, hint):
    text = said(capsys, check.sampling, settings)
    assert text.startswith("Not yet: ") and hint in text


@pytest.mark.parametrize(
    ("function", "hint"),
    [
        (lambda ids, n, t: t.decode(ids).split("### Response:")[-1].strip(), "The end token"),
        (
            lambda ids, n, t: t.decode(ids, True).split("### Response:")[-1].strip(),
            "A text may hold any marker",
        ),
        (lambda ids, n, t: t.decode(ids[n:]), "The end token is no part"),
        (lambda ids, n, t: t.decode(ids, True), "A text may hold any marker"),
        (lambda ids, n, t: None, "returns None"),
    ],
)
def test_hints_on_an_answer_with_its_prompt(capsys, function, hint):
    text = said(capsys, check.answer_of, function)
    assert text.startswith("Not yet: ") and hint in text


def batch(model, prompts, pad, *, left=True, mask="lengths"):
    import torch

    longest = max(map(len, prompts))
    fill = [[pad] * (longest - len(p)) for p in prompts]
    rows = [f + p if left else p + f for f, p in zip(fill, prompts, strict=True)]
    ids = torch.tensor(rows)
    lengths = [[0] * len(f) + [1] * len(p) for f, p in zip(fill, prompts, strict=True)]
    masks = {"none": None, "ids": (ids != pad).long(), "lengths": torch.tensor(lengths)}
    logits = model(input_ids=ids, attention_mask=masks[mask]).logits
    return logits[:, -1].argmax(-1).tolist()


@pytest.mark.parametrize(
    ("mistake", "hint"),
    [
        ({"left": False, "mask": "none"}, "another token than alone"),
        ({"mask": "none"}, "another token than alone"),
        ({"mask": "ids"}, "the mask has to come from the lengths"),
    ],
)
def test_hints_on_padding(capsys, mistake, hint):
    text = said(capsys, check.padded, lambda *given: batch(*given, **mistake))
    assert text.startswith("Not yet: ") and hint in text


def test_padding_on_the_right_is_fine_if_the_last_token_is_read(capsys):
    import torch

    def gathered(model, prompts, pad):
        longest = max(map(len, prompts))
        ids = torch.tensor([p + [pad] * (longest - len(p)) for p in prompts])
        last = torch.tensor([len(p) - 1 for p in prompts])
        return model(input_ids=ids).logits[range(len(prompts)), last].argmax(-1).tolist()

    assert said(capsys, check.padded, gathered).startswith("Right: ")


def rate(pairs, ask, *, both=True, turn=True, half=True):
    total = 0.0
    for task, one, two in pairs:
        first = {"A": 1.0, "B": 0.0, "T": 0.5}[ask(task, one, two)]
        second = {"A": 1.0, "B": 0.0, "T": 0.5}[ask(task, two, one)]
        second = 1 - second if turn else second
        if not both:
            total += first
        else:
            total += first if first == second else 0.5 if half else (first + second) / 2
    return total / len(pairs)


@pytest.mark.parametrize(
    ("mistake", "hint"),
    [
        ({"both": False}, "prefers the first place you get 1.000"),
        ({"turn": False}, "Ask in both orders"),
        ({"half": False}, "calls a tie in one of the two orders"),
    ],
)
def test_hints_on_a_judge(capsys, mistake, hint):
    text = said(capsys, check.win_rate, lambda *given: rate(*given, **mistake))
    assert text.startswith("Not yet: ") and hint in text


ROW = {"instruction": "Say how tall a giraffe is.", "output": "5 m", "check": {"exact": "5 m"}}


@pytest.mark.parametrize(
    ("rows", "hint"),
    [
        ([ROW], "write five tasks"),
        ([ROW, ROW, ROW, ROW, ROW], "task 2 is nearly"),
        ([{**ROW, "output": "6 m"}] * 5, "does not meet"),
        ([{**ROW, "check": {"words_max": 9}}] * 5, "meets its check, which says little"),
        ([{**ROW, "check": {}}] * 5, "has no 'check'"),
        ([{**ROW, "instruction": "What causes the seasons?"}] * 5, "known already"),
        ([{**ROW, "check": {"wrods": 9}}] * 5, "use words_max"),
        ([...] * 5, "is no dict"),
    ],
)
def test_hints_on_own_tasks(capsys, rows, hint):
    text = said(capsys, check.own_tasks, rows)
    assert text.startswith("Not yet: ") and hint in text


def test_every_check_of_the_lesson_was_seen_here():
    judges = {n for n in vars(check) if hasattr(vars(check)[n], "__wrapped__")}
    seen = {name.removeprefix("comparison.") for name in verdict.verdicts}
    assert judges <= seen
