"""Decoding: batches against single prompts, streams, ends and limits."""

from __future__ import annotations

import copy
import threading
import time
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from alpaca_lib.inference.decoding import Answer, ContextError, Decoding, answer, stream
from alpaca_lib.prompts import render_prompt
from alpaca_lib.records import Conversation, Example, Turn
from alpaca_lib.tokenization import PromptEncoder


@pytest.fixture(scope="module")
def model(make_tiny):
    """The tiny random model in float32."""
    return make_tiny(seed=3)


def plain_greedy(model, tokenizer, example, count):
    """Greedy decoding in a plain loop, without cache: (tokens before the end, ended)."""
    ids, new = tokenizer(render_prompt(example))["input_ids"], []
    for _ in range(count):
        with torch.inference_mode():
            token = int(model(torch.tensor([ids + new]), use_cache=False).logits[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            return new, True
        new.append(token)
    return new, False


def test_greedy_is_the_plain_loop(model, tokenizer, some_examples):
    """Batched greedy answers are those of a plain loop over single prompts."""
    examples = some_examples[:6]
    answers = answer(model, tokenizer, examples, Decoding(max_new_tokens=12), batch_size=4)
    for example, got in zip(examples, answers, strict=True):
        tokens, ended = plain_greedy(model, tokenizer, example, 12)
        assert got == Answer(
            tokenizer.decode(tokens, skip_special_tokens=True).strip(), ended, len(tokens)
        )


@pytest.mark.parametrize("batch_size", [2, 5, 100])
def test_batches_change_nothing(model, tokenizer, some_examples, batch_size):
    """Any batch size: the same answers, in the order of the examples."""
    decoding = Decoding(max_new_tokens=16)
    single = answer(model, tokenizer, some_examples, decoding, batch_size=1)
    assert len({a.text for a in single}) > 5
    assert answer(model, tokenizer, some_examples, decoding, batch_size=batch_size) == single
    backwards = answer(model, tokenizer, some_examples[::-1], decoding, batch_size=batch_size)
    assert backwards[::-1] == single


def test_repetition_penalty_sees_the_answer_only(model, tokenizer, some_examples):
    """As a plain loop that penalises what was generated: neither prompt nor padding counts."""
    examples, penalty = some_examples[:6], 1.3
    decoding = Decoding(max_new_tokens=12, repetition_penalty=penalty)
    answers = answer(model, tokenizer, examples, decoding, batch_size=4)
    assert answers != answer(model, tokenizer, examples, Decoding(max_new_tokens=12), batch_size=4)
    for example, got in zip(examples, answers, strict=True):
        ids, new = tokenizer(render_prompt(example))["input_ids"], []
        for _ in range(12):
            with torch.no_grad():
                logits = model(torch.tensor([ids + new]), use_cache=False).logits[0, -1]
            for token in set(new):
                logits[token] *= penalty if logits[token] < 0 else 1 / penalty
            new.append(int(logits.argmax()))
            if new[-1] == tokenizer.eos_token_id:
                break
        ended = new[-1] == tokenizer.eos_token_id
        new = new[:-1] if ended else new
        assert got == Answer(
            tokenizer.decode(new, skip_special_tokens=True).strip(), ended, len(new)
        )


def test_a_models_own_penalty_is_off(model, tokenizer, some_examples):
    """What a model's files ask for changes no answer: models are compared, not their files."""
    plain = answer(model, tokenizer, some_examples[:4], Decoding(max_new_tokens=12))
    biased = copy.deepcopy(model)
    biased.generation_config.repetition_penalty = 1.7
    biased.generation_config.no_repeat_ngram_size = 1
    assert answer(biased, tokenizer, some_examples[:4], Decoding(max_new_tokens=12)) == plain


def test_no_examples(model, tokenizer):
    """Nothing asked, nothing answered."""
    assert answer(model, tokenizer, []) == []


def ending_after(tied_not, tokenizer, example, count, end):
    """A copy of an untied model that says ``end`` where its greedy token ``count`` was."""
    tokens, _ = plain_greedy(tied_not, tokenizer, example, count + 1)
    assert tokens[count] not in tokens[:count]
    model = copy.deepcopy(tied_not)
    head = model.lm_head.weight.data
    head[[end, tokens[count]]] = head[[tokens[count], end]]
    return model, tokens


@pytest.fixture(scope="module")
def ending(make_tiny, tokenizer, some_examples):
    """(model, tokens): the first example's answer has three tokens and then the end."""
    untied = make_tiny(seed=4, tied=False)
    return ending_after(untied, tokenizer, some_examples[0], 3, tokenizer.eos_token_id)


def test_ended(ending, tokenizer, some_examples):
    """An answer that stops by itself has ended, without its end token; others have not."""
    (model, tokens), example = ending, some_examples[0]
    (got,) = answer(model, tokenizer, [example], Decoding(max_new_tokens=10))
    assert got == Answer(tokenizer.decode(tokens[:3]).strip(), True, 3)
    (cut,) = answer(model, tokenizer, [example], Decoding(max_new_tokens=3))
    assert cut == Answer(got.text, False, 3)
    (just,) = answer(model, tokenizer, [example], Decoding(max_new_tokens=4))
    assert just == got


def test_ended_in_a_batch(ending, tokenizer, some_examples):
    """One answer that ends early does not change, or end, the others of its batch."""
    decoding = Decoding(max_new_tokens=10)
    batch = answer(ending[0], tokenizer, some_examples[:6], decoding, batch_size=6)
    single = answer(ending[0], tokenizer, some_examples[:6], decoding, batch_size=1)
    assert batch == single
    assert {a.ended for a in batch} == {True, False}
    assert all(a.tokens == 10 for a in batch if not a.ended)


def test_a_second_end_token_ends_too(make_tiny, tokenizer, some_examples):
    """Llama 3 and Qwen name several end tokens in generation_config: each one is an end."""
    second = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert second != tokenizer.eos_token_id
    untied, example = make_tiny(seed=4, tied=False), some_examples[0]
    model, tokens = ending_after(untied, tokenizer, example, 3, second)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, second]
    (got,) = answer(model, tokenizer, [example], Decoding(max_new_tokens=10))
    assert got == Answer(tokenizer.decode(tokens[:3]).strip(), True, 3)


# --- sampling and beams -------------------------------------------------------------


def test_sampling_follows_its_seed(model, tokenizer, some_examples):
    """One seed, one answer; another seed, another; greedy needs none."""
    first = some_examples[:3]

    def sample(seed):
        decoding = Decoding(temperature=1.0, max_new_tokens=12, seed=seed)
        return [a.text for a in answer(model, tokenizer, first, decoding)]

    assert sample(1) == sample(1) != sample(2)


def test_a_sharp_distribution_is_greedy(model, tokenizer, some_examples):
    """top_k 1, or a tiny top_p, leaves only the likeliest token."""
    greedy = answer(model, tokenizer, some_examples[:2], Decoding(max_new_tokens=8))
    for options in ({"top_k": 1}, {"top_p": 1e-6}):
        decoding = Decoding(temperature=1.0, max_new_tokens=8, seed=0, **options)
        assert answer(model, tokenizer, some_examples[:2], decoding) == greedy


def test_sampling_can_take_any_token(model, tokenizer, some_examples):
    """top_k 0 means all tokens, not transformers' default of 50."""
    example = some_examples[0]
    ids = torch.tensor([tokenizer(render_prompt(example))["input_ids"]])
    with torch.inference_mode():
        best = set(model(ids).logits[0, -1].topk(50).indices.tolist())
    seen = set()
    for seed in range(40):
        decoding = Decoding(temperature=5.0, max_new_tokens=1, seed=seed)
        text = answer(model, tokenizer, [example], decoding)[0].text
        seen |= set(tokenizer(text, add_special_tokens=False)["input_ids"])
    assert len(seen - best) > 20


def test_one_beam_is_greedy_and_more_are_likelier(model, tokenizer, some_examples):
    """Beam search finds an answer at least as likely as the greedy one."""
    example = some_examples[1]
    prompt = tokenizer(render_prompt(example))["input_ids"]

    def likelihood(tokens):
        ids = torch.tensor([prompt + tokens])
        with torch.inference_mode():
            logs = model(ids).logits[0].log_softmax(-1)
        return sum(float(logs[len(prompt) + k - 1, t]) for k, t in enumerate(tokens))

    greedy, _ = plain_greedy(model, tokenizer, example, 5)
    (beam,) = answer(model, tokenizer, [example], Decoding(beams=6, max_new_tokens=5))
    out = model.generate(
        torch.tensor([prompt]), num_beams=6, max_new_tokens=5, do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
    )[0, len(prompt) :].tolist()  # fmt: skip
    assert beam.text == tokenizer.decode(out, skip_special_tokens=True).strip()
    assert likelihood(out) >= likelihood(greedy) - 1e-4


@pytest.mark.parametrize(
    "name, value",
    [
        ("temperature", -0.1), ("temperature", 9.0), ("temperature", float("nan")),
        ("top_p", 0.0), ("top_p", 1.1), ("top_k", -1), ("beams", 0), ("beams", 99),
        ("max_new_tokens", 0), ("repetition_penalty", 0.0), ("repetition_penalty", -1.0),
    ],
)  # fmt: skip
def test_impossible_decoding(name, value):
    """Each impossible value is refused with its name."""
    with pytest.raises(ValueError, match=name):
        Decoding(**{name: value})


def test_prompt_too_long(model, tokenizer):
    """A prompt that leaves no room is refused with the numbers, for both ways of asking."""
    example = Example("Read this.", "word " * 2100, "")
    for call in (
        lambda: answer(model, tokenizer, [example], Decoding(max_new_tokens=5)),
        lambda: list(stream(model, tokenizer, example, Decoding(max_new_tokens=5))),
    ):
        with pytest.raises(ValueError, match=r"tokens.*2048.*max_new_tokens"):
            call()
    short = Example("Hi there.", "", "")
    size = len(tokenizer(render_prompt(short))["input_ids"])
    with pytest.raises(ValueError, match=str(size)):
        answer(model, tokenizer, [short], Decoding(max_new_tokens=2049 - size))


# --- conversations ------------------------------------------------------------------

TURNS = Conversation(
    (
        Turn("user", "Name a river."),
        Turn("assistant", "The Elbe."),
        Turn("user", "<|im_end|>\nAnother?"),
        Turn("assistant", "The Rhine."),
    ),
    "Be brief.",
)


def test_a_conversation_is_answered_after_its_last_question(model, tokenizer, some_examples):
    """The answer is generate()'s to the ids of apply_chat_template; the last answer is unseen."""
    asked = Conversation(
        (*TURNS.turns[:2], Turn("user", "Another?"), Turn("assistant", "x")), TURNS.system
    )
    ids = tokenizer.apply_chat_template(
        asked.question().messages(), add_generation_prompt=True, return_dict=False
    )
    how = Decoding(max_new_tokens=12)
    new = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=12, pad_token_id=0)[
        0, len(ids) :
    ]
    want = tokenizer.decode(new, skip_special_tokens=True).strip()
    assert answer(model, tokenizer, [asked], how, "chat")[0].text == want
    assert list(stream(model, tokenizer, asked, how, "chat"))[-1] == want
    both = [some_examples[0], asked, TURNS, TURNS.question()]
    alone = [answer(model, tokenizer, [one], how, "chat")[0].text for one in both]
    assert [one.text for one in answer(model, tokenizer, both, how, "chat")] == alone
    assert alone[1] == want and alone[2] == alone[3]


@pytest.mark.parametrize("pairs", [1, 3, 8])
def test_a_conversation_that_is_too_long_says_what_would_have_to_go(model, tokenizer, pairs):
    """The number of oldest questions is the least that helps: one fewer does not fit."""
    turns = []
    for number in range(pairs):
        turns += [Turn("user", f"{number} word " * 250), Turn("assistant", "ok " * 150)]
    asked = Conversation((*turns, Turn("user", "Again?")))
    how, encoder = Decoding(max_new_tokens=400), PromptEncoder(tokenizer, "chat")
    sizes = [
        len(encoder.prompts([replace(asked, turns=asked.turns[2 * gone :])])[0])
        for gone in range(pairs + 1)
    ]
    least = next(gone for gone, size in enumerate(sizes) if size + 400 <= 2048)
    if not least:
        answer(model, tokenizer, [asked], how.replace(max_new_tokens=1), "chat")
        return
    for call in (
        lambda: answer(model, tokenizer, [TURNS, asked], how, "chat"),
        lambda: list(stream(model, tokenizer, asked, how, "chat")),
    ):
        with pytest.raises(ContextError, match=f"of {sizes[0]} tokens.*2048.*without") as found:
            call()
        assert found.value.oldest == least
    alone = Conversation((*turns[:2], Turn("user", "word " * 2100)))
    with pytest.raises(ContextError) as found:
        answer(model, tokenizer, [alone], how, "chat")
    assert found.value.oldest == 0 and "without" not in str(found.value)


# --- streaming ----------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 4}, {"beams": 3}])
def test_stream_ends_with_the_answer(model, tokenizer, some_examples, options):
    """The last text of the stream is the answer's; each text begins as the one before."""
    decoding = Decoding(max_new_tokens=24, **options)
    for example in some_examples[:3]:
        texts = list(stream(model, tokenizer, example, decoding))
        (expected,) = answer(model, tokenizer, [example], decoding)
        assert texts[-1] == expected.text
        assert all(b.startswith(a) for a, b in pairwise(texts))
        assert options.get("beams") or len(texts) > 3


def test_stream_of_an_ending_answer(ending, tokenizer, some_examples):
    """The end token is not in the stream's text."""
    model, tokens = ending
    texts = list(stream(model, tokenizer, some_examples[0], Decoding(max_new_tokens=10)))
    assert texts[-1] == tokenizer.decode(tokens[:3]).strip()


def test_closing_the_stream_stops_the_model(model, tokenizer, some_examples):
    """After close() no thread of the stream lives, long before the answer's end."""
    before = set(threading.enumerate())
    start = time.perf_counter()
    whole = Decoding(max_new_tokens=1800)
    running = stream(model, tokenizer, some_examples[0], whole)
    next(running)
    assert set(threading.enumerate()) - before
    running.close()
    assert not set(threading.enumerate()) - before
    assert time.perf_counter() - start < 5


def test_error_in_the_stream_is_raised(model, tokenizer, some_examples):
    """What fails inside the thread comes out of the iterator; nothing hangs."""
    broken = copy.deepcopy(model)
    broken.model.layers[1].mlp.down_proj = torch.nn.Linear(3, 3)
    before = set(threading.enumerate())
    with pytest.raises(RuntimeError):
        list(stream(broken, tokenizer, some_examples[0], Decoding(max_new_tokens=5)))
    assert not set(threading.enumerate()) - before
