"""Adapters over one base, switched on and off; another base's adapter; stop texts; streams."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from alpaca_lib import models
from alpaca_lib.errors import ModelError
from alpaca_lib.inference.decoding import Decoding, answer, cut, stable_text, stream
from alpaca_lib.inference.model_pool import ModelPool

EXACT = models.Placement("cpu", "float32", "tests")


@pytest.fixture(scope="module")
def adapters(tiny_folder, tmp_path_factory):
    """Two folders with different LoRA adapters of the tiny model."""
    import peft

    folders = []
    for seed in (1, 2):
        model = models.ModelSource.resolve(str(tiny_folder)).load_model(EXACT)
        targets = ["q_proj", "v_proj", "up_proj"]
        config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=targets)
        torch.manual_seed(seed)
        adapted = peft.get_peft_model(model, config)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.2)
        adapted.peft_config["default"].base_model_name_or_path = str(tiny_folder)
        folders.append(tmp_path_factory.mktemp("adapter"))
        adapted.save_pretrained(folders[-1])
    return [str(folder) for folder in folders]


def said(model, tokenizer, examples):
    """The greedy answers' texts."""
    return [a.text for a in answer(model, tokenizer, examples, Decoding(max_new_tokens=10))]


def test_one_base_and_its_adapters(tiny_folder, adapters, tokenizer, some_examples):
    """Each model answers as if loaded alone, in any order; the base is loaded once."""
    named = {"base": str(tiny_folder), "one": adapters[0], "two": adapters[1]}
    pool = ModelPool(named, EXACT)
    alone = {
        name: said(
            models.ModelSource.resolve(where).load_model(EXACT), tokenizer, some_examples[:4]
        )
        for name, where in named.items()
    }
    assert len({tuple(texts) for texts in alone.values()}) == 3
    for name in ("two", "base", "one", "two", "base"):
        with pool.use(name) as model:
            assert said(model, tokenizer, some_examples[:4]) == alone[name]
    assert len(pool._loaded) == 1
    assert pool.names == ["base", "one", "two"]
    with pytest.raises(ModelError, match="there are base, one, two"), pool.use("three"):
        pass


def test_streams_of_a_pool(tiny_folder, adapters, tokenizer, some_examples):
    """A stream ends with the batch's answer, and closing it frees the pool."""
    pool = ModelPool({"base": str(tiny_folder), "one": adapters[0]}, EXACT)
    how = Decoding(max_new_tokens=10)
    with pool.use("one") as model:
        whole = said(model, tokenizer, some_examples[:1])[0]
    assert list(pool.stream("one", some_examples[0], how))[-1] == whole
    half = pool.stream("base", some_examples[0], how)
    next(half)
    half.close()
    assert list(pool.stream("one", some_examples[0], how))[-1] == whole


def test_another_bases_adapter(adapters, make_tiny, tokenizer, tmp_path):
    """An adapter of a model with other shapes: one line that names it."""
    other = tmp_path / "other"
    make_tiny(hidden_size=32, intermediate_size=64).save_pretrained(other)
    tokenizer.save_pretrained(other)
    with pytest.raises(ModelError, match="cannot be loaded"):
        ModelPool({"one": adapters[0]}, EXACT, base=str(other))
    deeper = tmp_path / "deeper"
    make_tiny(num_hidden_layers=3).save_pretrained(deeper)
    tokenizer.save_pretrained(deeper)
    for named in ({"one": adapters[0]}, {"two": adapters[1], "one": adapters[0]}):
        with pytest.raises(ModelError, match=r"does not have .*layers\.2"):
            ModelPool(named, EXACT, base=str(deeper))
    shallow = tmp_path / "shallow"
    make_tiny(num_hidden_layers=1).save_pretrained(shallow)
    tokenizer.save_pretrained(shallow)
    with pytest.raises(ModelError, match=r"layers\.1.* has no place here"):
        ModelPool({"one": adapters[0]}, EXACT, base=str(shallow))


def test_no_model():
    """Nothing to talk to, and a name that is nothing."""
    with pytest.raises(ModelError, match="name at least one"):
        ModelPool({})
    with pytest.raises(ModelError, match="no model 'nothing-here'"):
        ModelPool({"x": "nothing-here"})


def test_stop_texts_end_answers(tiny_folder, tokenizer, some_examples):
    """An answer ends before a stop text, in a batch and in a stream, and says that it ended."""
    model = models.ModelSource.resolve(str(tiny_folder)).load_model(EXACT)
    free = answer(model, tokenizer, some_examples, Decoding(max_new_tokens=24))
    words = [a.text.split() for a in free]
    stop = next(w[len(w) // 2] for w in words if len(w) > 3)
    how = Decoding(max_new_tokens=24, stop=(stop,))
    stopped = answer(model, tokenizer, some_examples, how, batch_size=5)
    for before, after, example in zip(free, stopped, some_examples, strict=True):
        assert after.text == cut(before.text, [stop])[0].strip()
        assert after.ended == (stop in before.text or before.ended)
        seen = list(stream(model, tokenizer, example, how))
        assert (seen[-1] if seen else "") == after.text
        assert not any(stop in one for one in seen)


def test_a_stream_holds_back_what_may_change():
    """Half a character, and what may become a stop text, are not shown yet."""
    assert stable_text("caf\ufffd", ()) == "caf"
    assert stable_text("Yes.\n\n###", ("### In",)) == "Yes.\n\n"
    assert stable_text("Yes.\n\n### Out", ("### In",)) == "Yes.\n\n### Out"
    assert stable_text("a#", ("#b", "a#c")) == ""
    assert cut("one two one", ["two", "one"]) == ("", True)


def test_streams_of_any_writing(tokenizer, tiny_folder):
    """Chinese, kana and emoji, token by token: nothing broken is shown, nothing is lost."""
    text = "你好，世界。こんにちは 👩‍🚀 สวัสดี"
    ids = tokenizer(text)["input_ids"]
    seen = [stable_text(tokenizer.decode(ids[:n]), ()) for n in range(1, len(ids) + 1)]
    assert seen[-1] == text and not any("\ufffd" in one for one in seen)
    assert all(text.startswith(one) for one in seen)
    assert len(set(seen)) > 15


def test_half_a_character_in_a_prompt(tokenizer, tiny_folder):
    """What is no text (a lone surrogate) is replaced, control characters are taken as they are."""
    from alpaca_lib.inference.decoding import prompt_ids
    from alpaca_lib.records import Example

    ids = prompt_ids(Example("a\ud800b\x00\x1b[31m <b>"), tokenizer)
    assert "a?b\x00\x1b[31m <b>" in tokenizer.decode(ids)


def test_a_changed_adapter_folder(adapters, tiny_folder, tmp_path):
    """Without weights, or without the name of its base: one line each."""
    folder = tmp_path / "a"
    shutil.copytree(adapters[0], folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no adapter_model\.safetensors"):
        ModelPool({"a": str(folder)}, EXACT)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": None})
    )
    with pytest.raises(ModelError, match="names no base model"):
        ModelPool({"a": str(folder)}, EXACT)
