"""Continuous batching against transformers' generate(), one prompt at a time."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import transformers

from alpaca_lib import models
from alpaca_lib.inference import batching, slot_cache
from alpaca_lib.inference.decoding import Decoding, answer, end_tokens, generate_tokens
from alpaca_lib.inference.sampling import TokenChooser
from alpaca_lib.records import load_examples
from alpaca_lib.tokenization import PromptEncoder

WORDS, WINDOW, END = 300, 16, 7
HEADER = list(range(20, 50))
LENGTHS = (1, 40, 3, 90, 17, 16, 15, 60, 2, 33)  # of the prompts' own tokens


def build(family, **more):
    """A tiny random model of a family, whose every parameter counts."""
    values = {
        "vocab_size": WORDS, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
        "max_position_embeddings": 256, "initializer_range": 0.2, "intermediate_size": 96,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": END,
    }  # fmt: skip
    groups = {"num_key_value_heads": 2}
    own = {
        "Llama": groups,
        "Qwen2": groups,
        "GPTNeoX": {},
        "OPT": {"ffn_dim": 96, "word_embed_proj_dim": 32, "dropout": 0.0, "init_std": 0.2},
        "Mistral": {**groups, "sliding_window": WINDOW},
        "Gemma3Text": {
            **groups, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        "Gemma2": {
            **groups, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": WINDOW,
            "attn_logit_softcapping": 5.0,
        },
        "GptOss": {**groups, "head_dim": 16, "num_local_experts": 2, "num_experts_per_tok": 2},
        "Falcon": {"alibi": True},
        "Lfm2": {
            **groups, "layer_types": ["conv", "full_attention", "conv"], "block_multiple_of": 8,
        },
    }[family]  # fmt: skip
    config = getattr(transformers, f"{family}Config")(**{**values, **own, **more})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() < 2:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture(scope="module")
def prompts():
    """Prompts of very different lengths; two in three begin with HEADER."""
    draw = torch.Generator().manual_seed(1)
    rows = []
    for number, length in enumerate(LENGTHS):
        ids = torch.randint(8, WORDS, (length,), generator=draw).tolist()
        rows.append((HEADER if number % 3 else []) + ids)
    return rows


class OneByOne:
    """A tokenizer as far as generate() needs it."""

    pad_token_id = 0


def alone(model, prompts, how, ends):
    """transformers' own answers, one prompt at a time: (tokens before the end, ended)."""
    rows = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                **how.to_arguments(len(prompt), OneByOne, ends),
            )
        new = out[0, len(prompt) :].tolist()
        ended = new[-1] in ends
        rows.append((new[:-1] if ended else new, ended))
    return rows


def frequent_end(model, prompts):
    """A token that ends some of the greedy answers early, and not others."""
    free = alone(model, prompts, Decoding(max_new_tokens=12), set())
    places = {}
    for tokens, _ in free:
        for token in set(tokens[2:]):
            places[token] = places.get(token, 0) + 1
    some = [token for token, count in places.items() if 1 <= count <= len(prompts) // 2]
    return max(some, key=places.__getitem__)


def no_warning(call):
    """The result of a call that must not fall back to generate()."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return call()


@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.3}], ids=["plain", "penalty"])
@pytest.mark.parametrize("family", ["Llama", "Qwen2", "GPTNeoX", "OPT", "Mistral", "Gemma3Text"])
def test_greedy_answers_are_generates(family, options, prompts):
    """Token by token, for any number of rows: they are refilled, and windows are narrow."""
    model = build(family)
    ends = {frequent_end(model, prompts)}
    how = Decoding(max_new_tokens=12, **options)
    want = alone(model, prompts, how, ends)
    assert {ended for _, ended in want} == {True, False}
    before = model.config._attn_implementation
    for rows in (1, 3, 0):
        got = no_warning(
            lambda rows=rows: generate_tokens(model, OneByOne, prompts, how, ends, rows)
        )
        assert got == want, rows
    assert model.config._attn_implementation == before


def test_one_token_and_none(prompts):
    """max_new_tokens 1; no prompt at all."""
    model, how = build("Llama"), Decoding(max_new_tokens=1)
    assert generate_tokens(model, OneByOne, prompts, how, {END}) == alone(
        model, prompts, how, {END}
    )
    assert generate_tokens(model, OneByOne, [], how, {END}) == []


@pytest.mark.parametrize("family", ["Gemma2", "GptOss", "Falcon", "Lfm2"])
def test_what_cannot_be_batched_here_is_generated(family, prompts):
    """Caps, sinks, ALiBi, convolutions: a warning says why, the answers are generate()'s."""
    model, how = build(family), Decoding(max_new_tokens=6)
    with pytest.warns(UserWarning, match=r"generate\(\) answers"):
        got = generate_tokens(model, OneByOne, prompts[:4], how, {END}, 1)
    assert got == alone(model, prompts[:4], how, {END})


def test_an_option_of_the_models_files_is_honoured(prompts):
    """min_new_tokens in generation_config: generate() knows it, and is asked."""
    model, how = build("Llama"), Decoding(max_new_tokens=6)
    model.generation_config.min_new_tokens = 4
    with pytest.warns(UserWarning, match="min_new_tokens"):
        got = generate_tokens(model, OneByOne, prompts[:3], how, {END}, 1)
    assert got == alone(model, prompts[:3], how, {END})


def test_an_adapter_and_its_base(prompts):
    """A LoRA adapter switched on, and off again: generate()'s answers for both."""
    import peft

    torch.manual_seed(3)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "up_proj"])
    model, how = peft.get_peft_model(build("Llama"), config).eval(), Decoding(max_new_tokens=8)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted = no_warning(lambda: generate_tokens(model, OneByOne, prompts, how, {END}, 4))
    assert adapted == alone(model, prompts, how, {END})
    with model.disable_adapter():
        base = generate_tokens(model, OneByOne, prompts, how, {END}, 4)
        assert base == alone(model, prompts, how, {END}) != adapted
    soft = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(build("Llama"), soft).eval()
    with pytest.warns(UserWarning, match="change the prompt"):
        generate_tokens(model, OneByOne, prompts[:1], how, {END}, 1)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_quantised_model(kind, tiny_folder, tokenizer, some_examples):
    """bitsandbytes' layers: the answers of generate(), one by one."""
    pytest.importorskip("bitsandbytes")
    place = models.Placement("cpu", "float32", "tests")
    model = models.ModelSource.resolve(str(tiny_folder)).load_model(place, kind)
    encoder = PromptEncoder(tokenizer, "alpaca")
    ids, ends = encoder.prompts(some_examples[:5]), end_tokens(model, encoder)
    how = Decoding(max_new_tokens=8)
    got = no_warning(lambda: generate_tokens(model, tokenizer, ids, how, ends, 3))
    assert got == alone(model, ids, how, ends)


def test_the_real_model(repository, tokenizer):
    """The embedded model on held-out tasks, in float32, with rows that are refilled."""
    place = models.Placement("cpu", "float32", "tests")
    model = models.ModelSource.resolve("smollm2-135m").load_model(place)
    encoder = PromptEncoder(tokenizer, "alpaca-lora")
    tasks = load_examples(repository / "data" / "eval_60.json")[::10]
    ids, ends = encoder.prompts(tasks), end_tokens(model, encoder)
    how = Decoding(max_new_tokens=16, repetition_penalty=1.1)
    assert generate_tokens(model, tokenizer, ids, how, ends, 4) == alone(model, ids, how, ends)


# --- sampling -----------------------------------------------------------------------


def test_sampled_answers_do_not_depend_on_the_batch(make_tiny, tokenizer, some_examples):
    """Example i draws from seed + i: the same for any batch size, and as generate() draws."""
    model = make_tiny(seed=3)
    how = Decoding(
        temperature=0.9, top_p=0.8, top_k=500, repetition_penalty=1.2, max_new_tokens=12, seed=5
    )
    want = answer(model, tokenizer, some_examples, how, batch_size=1)
    assert len({a.text for a in want}) == len(want)
    for size in (3, 0):
        assert answer(model, tokenizer, some_examples, how, batch_size=size) == want
    ids = PromptEncoder(tokenizer).prompts(some_examples)
    for number, prompt in enumerate(ids[:4]):
        torch.manual_seed(5 + number)
        (row,) = alone(model, [prompt], how, {tokenizer.eos_token_id})
        text = tokenizer.decode(row[0], skip_special_tokens=True).strip()
        assert text == want[number].text
    assert answer(model, tokenizer, some_examples, how.replace(seed=None)) != want


def test_draws_follow_the_probabilities():
    """2,000 draws of one distribution: each token's share is within 4 standard deviations."""
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    choose, count = TokenChooser(Decoding(temperature=2.0)), 2000
    generator = torch.Generator().manual_seed(0)
    drawn = choose(logits.repeat(count, 1), [[]] * count, [generator] * count)
    for token, p in enumerate((logits / 2).softmax(-1).tolist()):
        deviation = (p * (1 - p) / count) ** 0.5
        assert abs(drawn.count(token) / count - p) < 4 * deviation


# --- what is computed, and what is held ---------------------------------------------


def count_tokens(model, call):
    """(tokens of each forward pass, the call's result)."""
    seen = []

    def note(module, args, kwargs):
        seen.append(kwargs["input_ids"].shape[1])

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        return seen, call()
    finally:
        handle.remove()


def test_a_common_beginning_is_computed_once(prompts):
    """Every prompt with HEADER but one computes its own tokens alone, refilled rows included."""
    model, how = build("Llama"), Decoding(max_new_tokens=5)
    want = alone(model, prompts, how, set())
    for rows in (0, 3):
        seen, got = count_tokens(
            model,
            lambda rows=rows: generate_tokens(model, OneByOne, prompts, how, set(), rows),
        )
        headers = sum(number % 3 != 0 for number in range(len(prompts)))
        # The first answer's token comes with the prompt; each one after it is one token.
        decoded = len(prompts) * (how.max_new_tokens - 1)
        assert got == want
        computed = sum(map(len, prompts)) - (headers - 1) * len(HEADER) + decoded
        assert sum(seen) == computed if rows == 0 else computed <= sum(seen)
    assert batching.longest_prefix([1, 2, 3], [[1, 2, 3]]) == (0, 0)
    some = list(range(40))
    assert batching.longest_prefix(some, [[], some[:20], some, some[:30]]) == (2, 39)
    assert batching.longest_prefix(some, [[9, *some[1:]]]) == (0, 0)


def test_rows_fit_the_memory(prompts, monkeypatch):
    """The cache has as many rows as its budget holds, more once the long prompts are done."""
    model, how = build("Llama"), Decoding(max_new_tokens=8)
    want = alone(model, prompts, how, set())
    each = batching.bytes_per_token(model.config, torch.float32)
    longest = max(map(len, prompts)) + how.max_new_tokens
    widths, begin = [], slot_cache.SlotCache.begin

    def note(self, lengths, prefills):
        widths.append(len(lengths) + len(prefills))
        begin(self, lengths, prefills)

    monkeypatch.setattr(slot_cache.SlotCache, "begin", note)
    monkeypatch.setattr(batching, "budget", lambda device: 2 * longest * each)
    assert generate_tokens(model, OneByOne, prompts, how, set()) == want
    assert widths[0] == 2 and 2 < max(widths) < len(prompts)
    monkeypatch.setattr(batching, "budget", lambda device: 0)
    assert generate_tokens(model, OneByOne, prompts[:3], how, set()) == want[:3]
    monkeypatch.undo()
    monkeypatch.setattr(batching, "PROMPT_TOKENS", 50)
    assert generate_tokens(model, OneByOne, prompts, how, set()) == want


def test_bytes_of_a_token(prompts, monkeypatch):
    """The estimate is what the tensors hold: keys and values of all layers."""
    model, caches = build("Llama"), []
    monkeypatch.setattr(
        batching, "SlotCache", lambda: caches.append(slot_cache.SlotCache()) or caches[-1]
    )
    generate_tokens(model, OneByOne, prompts[:2], Decoding(max_new_tokens=2), set())
    (cache,) = caches
    held = sum(t.nbytes for pair in cache.layers.values() for t in pair)
    rows, columns = cache.shape
    assert held == rows * columns * batching.bytes_per_token(model.config, torch.float32)


def test_a_long_prompt_in_pieces(prompts, monkeypatch):
    """Queries whose mask would be large are masked piece by piece: the same answers."""
    model, how = build("Mistral"), Decoding(max_new_tokens=6)
    want = alone(model, prompts, how, set())
    monkeypatch.setattr(slot_cache, "MASK_QUERIES", 7)
    assert generate_tokens(model, OneByOne, prompts, how, set()) == want


# --- progress and failures ----------------------------------------------------------


def test_progress_gets_each_answer_once(make_tiny, tokenizer, some_examples):
    """As soon as it is done, with its example's index."""
    model, seen = make_tiny(seed=3), {}

    def note(index, one):
        assert index not in seen
        seen[index] = one

    for how in (Decoding(max_new_tokens=6), Decoding(max_new_tokens=3, beams=2)):
        seen.clear()
        got = answer(model, tokenizer, some_examples, how, batch_size=4, progress=note)
        assert [seen[index] for index in range(len(got))] == got
    with pytest.raises(ValueError, match="batch size -1"):
        answer(model, tokenizer, some_examples, batch_size=-1)


def test_the_attention_comes_back_after_an_error(make_tiny, tokenizer, some_examples):
    """An interrupted run leaves the model as it was."""
    model = copy.deepcopy(make_tiny(seed=3))
    before = model.config._attn_implementation

    def stop(index, one):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        answer(model, tokenizer, some_examples, Decoding(max_new_tokens=3), progress=stop)
    assert model.config._attn_implementation == before != slot_cache.NAME
