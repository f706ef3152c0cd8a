"""Comparison: reference losses against transformers, every check, the table's numbers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from alpaca_lib import command_line, models
from alpaca_lib.errors import DataError, SettingsError
from alpaca_lib.evaluation import commands
from alpaca_lib.evaluation.comparison import compare_models, reference_losses, score
from alpaca_lib.evaluation.constraint_checks import CHECKS, meets
from alpaca_lib.inference.decoding import Answer, Decoding
from alpaca_lib.inference.model_pool import ModelPool
from alpaca_lib.prompts import render_prompt
from alpaca_lib.records import Example, load_examples


@pytest.mark.parametrize("template", ["alpaca", "alpaca-lora", "chat"])
def test_reference_losses_are_transformers(make_tiny, tokenizer, some_examples, template):
    """Nats and tokens of each answer with its end token, as transformers' loss gives them."""
    model = make_tiny(seed=5)
    examples = [*some_examples[:4], Example("Say nothing at all.", "", "")]
    got = reference_losses(model, tokenizer, examples, template)
    for example, (nats, tokens) in zip(examples, got, strict=True):
        prompt = tokenizer(render_prompt(example, template, tokenizer))["input_ids"]
        reply = [*tokenizer(example.output)["input_ids"], tokenizer.eos_token_id]
        labels = torch.tensor([[-100] * len(prompt) + reply])
        with torch.no_grad():
            loss = model(input_ids=torch.tensor([prompt + reply]), labels=labels).loss
        assert tokens == len(reply)
        assert nats == pytest.approx(float(loss) * len(reply), rel=1e-5)


def test_reference_losses_are_the_training_loss(make_tiny, tokenizer, some_examples):
    """What training calls the loss and what the comparison reports are one number."""
    from alpaca_lib.training.examples import encode
    from alpaca_lib.training.loss import LabelLoss
    from alpaca_lib.training.packing import collate, pack

    model = make_tiny(seed=5)
    rows = pack([encode(example, tokenizer) for example in some_examples], 512)
    with torch.no_grad():
        total = float(LabelLoss(model)(**collate(rows, 2)))
    ours = reference_losses(model, tokenizer, some_examples)
    assert sum(nats for nats, _ in ours) == pytest.approx(total, rel=1e-5)


GOOD_AND_BAD = [
    ({"words_max": 3}, "one two three", "one two three four"),
    ({"words_min": 3}, "one two three", "one two"),
    ({"contains": ["Because", "however"]}, "HOWEVER, because.", "because"),
    ({"excludes": ["very", "good"]}, "fine", "fine, Very fine"),
    ({"lines": 2}, "a\n\n  \nb\n", "a\nb\nc"),
    ({"exact": "10080"}, " 10080\n", "10080 minutes"),
    ({"exact": "Trumpet"}, "Trumpet", "trumpet"),
    ({"starts": "Dear Ms Okafor,"}, "\nDear Ms Okafor,\nthanks", "Hi! Dear Ms Okafor,"),
    ({"words_max": 6}, "水在零度结冰。", "水在零度以下会结成冰。"),
    ({"words_min": 5}, "水在零度结冰", "水 结 冰 。"),
    ({"words_max": 4}, "用 Python 写。", "用 Python 写诗吧。"),
    ({"chars_max": 7}, "水在零度\n结冰。", "水在零度 会 结冰。"),
    ({"chars_min": 5}, "ab cde", "ab   cd"),
    ({"words_max": 5, "contains": ["sea"]}, "the sea", "the sea is very wide indeed"),
    ({"words_max": 5, "contains": ["sea"]}, "a sea", "a lake"),
    ({"ends": "Yours, Ida"}, "Hello.\nYours, Ida\n", "Yours, Ida!"),
    ({"bullets": 2}, "Take:\n- milk\n- rye bread", "- milk\n- rye\n- tea"),
    ({"json": ["a", "b"]}, '{"b": 1, "a": [2]}', '{"a": 1}'),
    ({"json": ["a"]}, '{"a": 1}', 'Here it is: {"a": 1}'),
    ({"json": ["a"]}, '{"a": 1}', '["a"]'),
    ({"json": ["a"]}, '{"a": 1}', '{"a":' + "[" * 20_000),
    ({"language": "fr"}, "Où est la gare, s'il vous plaît ?", "Where is the station, please?"),
    ({"language": "de"}, "Wo ist bitte der Bahnhof?", "Dov'è la stazione?"),
    ({"language": "es"}, "¿Dónde está el tren que va a Toledo?", "Où est le train de Tolède ?"),
    ({"language": "it"}, "Dov'è il treno per Siena?", "Donde esta el tren"),
    ({"language": "zh"}, "请问 7 号站台在哪儿？", "Which platform?"),
]


@pytest.mark.parametrize("check, good, bad", GOOD_AND_BAD)
def test_checks(check, good, bad):
    """Each check takes what meets it and nothing else; all of several must be met."""
    assert meets(check, good) is True
    assert meets(check, bad) is False


def test_every_check_is_tested():
    """The list above names every check there is."""
    assert {name for check, _, _ in GOOD_AND_BAD for name in check} == set(CHECKS)


@pytest.mark.parametrize(
    "check", [{"words_max": 5}, {"excludes": ["x"]}, {"lines": 0}, {"exact": ""}, {"starts": ""}]
)
@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_answer_meets_nothing(check, text):
    """No answer is no success, whatever the check would say of it."""
    assert meets(check, text) is False


@pytest.mark.parametrize("check", [{}, {"word_max": 3}, {"words_max": 3, "colour": "red"}])
def test_unknown_checks(check):
    """A check that is not known is an error that lists those there are."""
    with pytest.raises(DataError, match="words_max"):
        meets(check, "text")


def test_reference_answers_meet_their_own_checks(repository):
    """In the shipped evaluation set every reference passes its check."""
    (file,) = (repository / "data").glob("eval_*.json")
    checked = [e for e in load_examples(file) if "check" in e.extra]
    assert len(checked) >= 10
    assert [e.instruction for e in checked if not meets(e.extra["check"], e.output)] == []


def test_score_by_hand():
    """Every column of three answers, computed by hand."""
    examples = [
        Example("a", "", "one two three four", {"check": {"words_max": 2}}),
        Example("b", "", "héé", {"check": {"contains": ["x"]}}),
        Example("c", "", "天空"),
    ]
    answers = [Answer("one two", True, 2), Answer("nothing", False, 9), Answer("天空", True, 1)]
    row = score("m", examples, answers, [(6.0, 3), (2.0, 1), (4.0, 4)])
    size = 18 + 5 + 6  # bytes in UTF-8
    assert row.model == "m"
    assert row.loss == pytest.approx(12 / 8)
    assert row.bits_per_byte == pytest.approx(12 / math.log(2) / size)
    assert row.ended == pytest.approx(2 / 3)
    assert row.checks_met == 0.5
    assert row.rouge_l == pytest.approx((2 * 1.0 * 0.5 / 1.5 + 0.0 + 1.0) / 3)
    assert row.words == pytest.approx((2 + 1 + 2) / 3)
    assert row.losses == [6.0, 2.0, 4.0]


def test_score_without_checks():
    """Where nothing can be checked the column is empty, not zero."""
    row = score("m", [Example("a", "", "b")], [Answer("b", True, 1)], [(1.0, 2)])
    assert row.checks_met is None and row.rouge_l == 1.0


def test_score_needs_one_answer_an_example():
    """Lists of different lengths are refused, not cut."""
    examples = [Example("a", "", "b"), Example("c", "", "d")]
    answers = [Answer("b", True, 1), Answer("d", True, 1)]
    with pytest.raises(ValueError):
        score("m", examples, answers[:1], [(1.0, 2), (1.0, 2)])
    with pytest.raises(ValueError):
        score("m", examples, answers, [(1.0, 2)])


@pytest.mark.parametrize(
    "name",
    [
        *("../../x", "a/b", "/x", "a\\b", "..", ".", "", " ", "a\0b", "a\nb", "c:x", "x" * 300),
        *("scores", "SCORES", "trailing.", ".hidden ", "a|b"),
    ],
)
def test_a_models_name_is_a_plain_file_name(name, tmp_path):
    """It becomes NAME.json in --out: nothing outside that folder, and not scores.json."""
    with pytest.raises(SettingsError, match="model name"):
        commands.check_name(name)


def test_compare_refuses_a_name_before_it_loads_a_model(tmp_path, capsys):
    for word, says in (
        ("../../x=smollm2-135m", "cannot be a file name"),
        ("scores=smollm2-135m", "is the file of the scores"),
    ):
        words = ["compare", word, "--out", str(tmp_path / "out")]
        assert command_line.main("alpaca", "", commands.COMMANDS, words) == 1
        assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", ["base", "my model", "smollm2-135m", "模型", "a.b_c-1", "lora (2)"]
)
def test_ordinary_names_are_fine(name):
    commands.check_name(name)


def test_progress_counts_the_answers_of_each_model(tiny_folder, some_examples):
    """Every answer is counted as soon as it is done, model by model."""
    exact = models.Placement("cpu", "float32", "tests")
    pool, seen = ModelPool({"one": str(tiny_folder), "two": str(tiny_folder)}, exact), []
    tasks = [replace(example, output="Yes.") for example in some_examples[:3]]
    how = Decoding(max_new_tokens=2)
    found = list(compare_models(pool, tasks, how, progress=lambda *pair: seen.append(pair)))
    assert seen == [(name, done) for name in ("one", "two") for done in (1, 2, 3)]
    assert found[0][1] == found[1][1] and len(found[0][1]) == 3
