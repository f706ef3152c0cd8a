"""Bad data, tokenizers, models, checkpoints: what is survived, and what is refused in words."""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoTokenizer

from alpaca_lib import models
from alpaca_lib.errors import NotEnoughMemory, TrainingStopped
from alpaca_lib.launch import run as train
from alpaca_lib.planning import planner
from alpaca_lib.records import Example, load_examples, save_examples
from alpaca_lib.training import checkpoints
from alpaca_lib.training.__main__ import main
from alpaca_lib.training.examples import count_labels, encode, load_data
from alpaca_lib.training.settings import Settings


@pytest.fixture
def tokens(small_folder):
    """The small model's tokenizer, to be changed."""
    return AutoTokenizer.from_pretrained(small_folder)


@pytest.fixture
def settings(small_folder, data_file, tmp_path):
    """Four steps of six examples on the CPU in float32."""
    return Settings(
        data_path=str(data_file),
        output_dir=str(tmp_path / "run"),
        model=str(small_folder),
        max_steps=4,
        examples_per_step=6,
        max_length=96,
        row_length=192,
        learning_rate=1e-2,
        device="cpu",
        dtype="float32",
    )


@pytest.fixture
def refused(tmp_path, capsys):
    """A function: the one error line with which the command line refuses a run."""

    def run(settings):
        before = sorted(p.name for p in tmp_path.rglob("*"))
        file = settings.save(tmp_path / "settings.json")
        capsys.readouterr()
        assert main(["run", str(file)]) == 1  # any other exception would be a traceback
        file.unlink()
        error = capsys.readouterr().err
        assert error.startswith("error: ") and "Traceback" not in error
        assert sorted(p.name for p in tmp_path.rglob("*")) == before, "it wrote something"
        return error

    return run


@pytest.fixture
def model_with(make_tiny, small, tokens, tmp_path):
    """A function: the folder of a small model of so many words, with a tokenizer."""

    def make(name="model", tokens=tokens, **more):
        model = make_tiny(**{**small, "vocab_size": len(tokens), **more})
        model.save_pretrained(tmp_path / name)
        tokens.save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return make


def data_of(examples, tmp_path):
    """The path of a data file with these examples."""
    return str(save_examples(examples, tmp_path / "own.json"))


def metrics(folder):
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def weights(folder):
    """All saved tensors of a folder by name."""
    (file,) = Path(folder).glob("*.safetensors")
    return load_file(file)


# --- rows -----------------------------------------------------------------------------


def test_rows_longer_than_the_limit(settings, some_examples, tokens, tmp_path):
    """An answer that is too long is cut, without an end token; a prompt that is too long is
    left out, and both are counted; the others train."""
    long = [
        Example("Count as far as you can.", "", "one two three four " * 2000),
        Example("Sum up. " + "a word " * 2000, "", "Words."),
    ]
    settings = settings.replace(
        data_path=data_of([*some_examples, *long], tmp_path), max_length=128
    )
    data = load_data(settings, tokens)
    assert (len(data.rows), data.dropped, data.cut) == (13, 1, 1)
    assert max(len(row["input_ids"]) for row in data.rows) == 128
    assert [row["labels"][-1] == tokens.eos_token_id for row in data.rows] == [True] * 12 + [False]
    folder = train(settings)
    run = json.loads((folder / "run.json").read_text())
    assert (run["training_rows"], run["rows_without_label"], run["rows_cut"]) == (13, 1, 1)
    assert len(metrics(folder)) == 4


def test_empty_answers(settings, some_examples, tmp_path, refused):
    """They teach the end token alone; without an end token none has anything to teach."""
    rows = [Example(e.instruction, e.input, "") for e in some_examples]
    settings = settings.replace(data_path=data_of(rows, tmp_path))
    folder = train(settings)
    assert [line["label_tokens"] for line in metrics(folder)] == [6] * 4
    shutil.rmtree(folder)
    assert "own.json: no row has an answer" in refused(settings.replace(add_eos=False))


def test_a_validation_set_without_a_label(settings, tmp_path, refused):
    """It would validate nothing, and keep_best would keep any model: refused."""
    rows = [Example("Sum up. " + "a word " * 2000, "", "Words.")]
    settings = settings.replace(validation_path=data_of(rows, tmp_path), keep_best=True)
    assert "own.json" in refused(settings)


def test_rows_that_hold_a_nan(settings, make_tiny, small, tokens, some_examples, tmp_path):
    """One row has a token whose embedding is not a number: the run goes on until the step of
    that row, names the step's rows, and leaves the checkpoint before it and no model."""
    word = "~"  # a token of its own, in no other row
    examples = [*some_examples[:11], Example("Say it.", "", f"It is {word} indeed.")]
    settings = settings.replace(
        data_path=data_of(examples, tmp_path),
        examples_per_step=3,
        save_every=1,
        model=str(tmp_path / "poisoned"),
    )
    model = make_tiny(tied=False, vocab_size=len(tokens), **small)
    model.model.embed_tokens.weight.data[tokens.convert_tokens_to_ids(word)] = float("nan")
    model.save_pretrained(settings.model)
    tokens.save_pretrained(settings.model)
    order = list(range(12))
    random.Random("0:0").shuffle(order)
    step = order.index(11) // 3
    assert step > 0  # else there is no checkpoint before it
    with pytest.raises(TrainingStopped) as caught:
        train(settings)
    rows = str(order[3 * step : 3 * step + 3])
    assert f"step {step + 1}: loss nan" in str(caught.value) and f"rows {rows}" in str(caught.value)
    folder = Path(settings.output_dir)
    assert checkpoints.find_newest(folder)[1] == step and not (folder / "config.json").exists()
    assert [line["step"] for line in metrics(folder)] == list(range(1, step + 1))


# --- tokenizers -----------------------------------------------------------------------


@pytest.mark.parametrize("batching", ["pack", "pad"])
@pytest.mark.parametrize("pad", [None, "eos", "far"])
def test_padding_tokens(settings, model_with, tokens, batching, pad):
    """No padding token, one that is the end token, one without a row in the embedding (as
    Alpaca's added [PAD] has): the losses are those of the tokenizer as it is, and the end
    token is a label all the same."""
    tokens.pad_token = tokens.eos_token if pad == "eos" else None
    words = len(tokens)
    if pad == "far":
        tokens.add_special_tokens({"pad_token": "[PAD]"})
        assert tokens.pad_token_id == words
    settings = settings.replace(batching=batching, max_steps=2, rows_per_micro_batch=3)
    expected = metrics(train(settings))
    settings = settings.replace(
        model=model_with(vocab_size=words), output_dir=settings.output_dir + "2"
    )
    lines = metrics(train(settings))
    for name in ("loss", "label_tokens", "tokens"):
        assert [x[name] for x in lines] == pytest.approx([x[name] for x in expected], rel=1e-5)
    row = encode(
        Example("Say nothing at all."), models.ModelSource.resolve(settings.model).load_tokenizer()
    )
    assert row["labels"][-1] == tokens.eos_token_id and count_labels(row) == 1


def test_a_tokenizer_without_an_end(settings, model_with, tokens, refused):
    """No answer would learn to end: refused with the cure, and the cure works."""
    tokens.eos_token = None
    settings = settings.replace(model=model_with(), max_steps=2)
    error = refused(settings)
    assert settings.model in error and "add_eos" in error
    assert len(metrics(train(settings.replace(add_eos=False)))) == 2


def test_a_tokenizer_without_a_chat_template(settings, model_with, tokens, refused):
    """template "chat" without one: refused in words."""
    tokens.chat_template = None
    assert "chat" in refused(settings.replace(model=model_with(), template="chat"))


def test_vocabulary_and_embedding(settings, model_with, tokens, refused):
    """More rows in the embedding than tokens (as Qwen has) is fine, and they stay as they
    were but for weight decay; fewer is refused, with the token and the number of rows."""
    large = model_with("large", vocab_size=len(tokens) + 100, tied=False)
    folder = train(settings.replace(model=large, batching="bucket"))
    name = "model.embed_tokens.weight"
    before, after = weights(large)[name], weights(folder)[name]
    assert before[len(tokens) :].equal(after[len(tokens) :]) and not before.equal(after)
    assert len(before) == len(tokens) + 100
    shutil.rmtree(folder)
    error = refused(settings.replace(model=model_with("less", vocab_size=300)))
    most = max(
        max(encode(e, tokens, max_length=96)["input_ids"])
        for e in load_examples(settings.data_path)
    )
    assert "less" in error and f"token {most}" in error and "300" in error


def test_models_that_are_none(settings, small_folder, tmp_path, refused):
    """A folder without weights, with torn ones, with an unknown kind of model: each named."""
    for name, spoil in {
        "empty": lambda folder: (folder / "model.safetensors").unlink(),
        "torn": lambda folder: (folder / "model.safetensors").write_bytes(b"\x08\x00"),
        "odd": lambda folder: (folder / "config.json").write_text('{"model_type": "none-such"}'),
        "bad": lambda folder: (folder / "config.json").write_text("{"),
    }.items():
        folder = shutil.copytree(small_folder, tmp_path / name)
        spoil(folder)
        assert name in refused(settings.replace(model=str(folder)))


# --- checkpoints ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(small_folder, data_file, tmp_path_factory):
    """(settings, folder) of a run with all its checkpoints."""
    settings = Settings(
        data_path=str(data_file),
        output_dir=str(tmp_path_factory.mktemp("finished") / "run"),
        model=str(small_folder),
        max_steps=3,
        examples_per_step=6,
        max_length=96,
        row_length=192,
        learning_rate=1e-2,
        device="cpu",
        dtype="float32",
        save_every=1,
        keep_checkpoints=9,
    )
    return settings, train(settings)


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda path: shutil.rmtree(path), "manifest"),
        (lambda path: shutil.rmtree(path / "state"), "missing"),
        (lambda path: (path / "state" / ".metadata").write_bytes(b"x"), "bytes, not"),
        (lambda path: (path / "manifest.json").write_text("{"), "manifest"),
        (lambda path: (path / "manifest.json").write_text("[]"), "manifest"),
        (
            lambda path: (path / "manifest.json").write_text(
                (path / "manifest.json").read_text().replace('"step"', '"stop"')
            ),
            "manifest",
        ),
    ],
    ids=["gone", "no state", "torn", "torn manifest", "a list", "no step"],
)
def test_a_damaged_checkpoint_that_was_asked_for(
    finished, settings, tmp_path, refused, spoil, words
):
    """Named, with what is wrong; nothing is written."""
    copy = shutil.copytree(finished[1] / "checkpoint-2", tmp_path / "mine" / "checkpoint-2")
    spoil(copy)
    error = refused(settings.replace(resume=str(copy)))
    assert str(copy) in error and words in error


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"learning_rate": 1e-3}, "learning_rate was 0.01, is 0.001"),
        ({"seed": 5}, "seed was 0, is 5"),
        ({"method": "lora"}, "method was 'full', is 'lora'"),
        ({"max_length": 80}, "training rows"),
        ({"model": "wider"}, "model was"),
        ({"data_path": "other.json"}, "training rows of"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_checkpoint_of_another_run(
    finished, some_examples, model_with, tmp_path, refused, changes, words
):
    """Asked for, or found in the folder: what differs is said with both values."""
    if "model" in changes:
        changes = {"model": model_with("wider", hidden_size=32)}
    if "data_path" in changes:
        rows = [*some_examples[1:], some_examples[0]]
        changes = {"data_path": data_of(rows, tmp_path)}
    settings, folder = finished
    asked = settings.replace(output_dir=str(tmp_path / "run"), **changes)
    error = refused(asked.replace(resume=str(folder / "checkpoint-2")))
    assert "checkpoint-2 is of another run" in error and words in error
    shutil.copytree(folder / "checkpoint-2", tmp_path / "run" / "checkpoint-2")
    assert words in refused(asked)


@pytest.mark.parametrize(
    "more", [{"num_hidden_layers": 1}, {"num_hidden_layers": 3}, {"hidden_size": 32}],
    ids=["fewer layers", "more layers", "wider"],
)  # fmt: skip
def test_a_checkpoint_of_a_model_that_was_exchanged(settings, model_with, tmp_path, refused, more):
    """The model's folder has another model now: the checkpoint does not fit, in words."""
    settings = settings.replace(model=model_with("mine"), save_every=2, max_steps=2)
    folder = train(settings)
    (folder / "metrics.jsonl").unlink()
    shutil.rmtree(tmp_path / "mine")
    model_with("mine", **more)
    assert "checkpoint-2" in refused(settings.replace(max_steps=3))


def test_a_checkpoint_under_a_wrong_name_is_passed_over(finished, settings, tmp_path, capsys):
    """checkpoint-1 copied as checkpoint-9 is not taken for step 9."""
    copy = tmp_path / "run"
    for name, number in (("checkpoint-2", 2), ("checkpoint-1", 9)):
        shutil.copytree(finished[1] / name, copy / f"checkpoint-{number}")
    train(finished[0].replace(output_dir=str(copy)))
    said = capsys.readouterr().out
    assert "checkpoint-9 is skipped: it is of step 1" in said
    assert "resuming from checkpoint-2" in said
    assert all(t.equal(weights(finished[1])[n]) for n, t in weights(copy).items())


def test_an_output_folder_that_cannot_be_one(settings, tmp_path):
    """A file where the folder should be: an error that names it."""
    (tmp_path / "run").write_text("")
    with pytest.raises((OSError, ValueError), match="run"):
        train(settings)


# --- the best model -------------------------------------------------------------------


def test_keep_best_keeps_the_lowest(settings, some_examples, tmp_path):
    """Validation falls, then rises: the weights at the end are those of the lowest, as an
    unbroken run that ends there has them; through a stop and a resume just the same."""
    settings = settings.replace(
        validation_path=data_of(some_examples[:2], tmp_path),
        keep_best=True,
        schedule="constant",
        warmup=0,
        learning_rate=0.1,
        eval_every=1,
        save_every=1,
        max_steps=8,
        output_dir=str(tmp_path / "whole"),
        examples_per_step=3,
        data_path=str(save_examples(some_examples[2:], tmp_path / "rest.json")),
    )
    folder = train(settings)
    found = {m["step"]: m["validation_loss"] for m in metrics(folder) if "validation_loss" in m}
    assert list(found) == list(range(9))
    best = min(list(found)[1:], key=found.__getitem__)
    assert 1 < best < 6 and found[8] > found[best] + 0.01, found
    kept = weights(folder)
    until = train(settings.replace(max_steps=best, output_dir=str(tmp_path / "until")))
    assert all(kept[n].equal(t) for n, t in weights(until).items())
    last = train(settings.replace(keep_best=False, output_dir=str(tmp_path / "last")))
    assert not all(kept[n].equal(t) for n, t in weights(last).items())
    # No more than one best on either side of the newest checkpoint.
    assert [p.name for p in folder.glob("best-*")] == [f"best-{best}"]

    class Killed(BaseException):
        pass

    for at in (best, best + 2):
        broken = settings.replace(output_dir=str(tmp_path / f"broken-{at}"))

        def kill(line, at=at):
            if line["step"] == at and "loss" in line:
                raise Killed

        with pytest.raises(Killed):
            train(broken, report=kill)
        folder = train(broken)
        assert all(kept[n].equal(t) for n, t in weights(folder).items()), at
        assert len(list(folder.glob("best-*"))) == 1


def test_the_best_is_read_when_it_is_written(settings, monkeypatch):
    """Saved in the background, as on a GPU, and slowly: the run waits for it at its end."""

    class InBackground(checkpoints.Saver):
        def __init__(self, folder, dist, background=False):
            super().__init__(folder, dist, background=True)

    commit = checkpoints._commit

    def commit_slowly(*arguments):
        time.sleep(1.0)
        commit(*arguments)

    settings = settings.replace(
        validation_rows=3,
        keep_best=True,
        eval_every=1,
        max_steps=2,
        warmup=0,
        schedule="constant",
        learning_rate=1.0,
    )
    monkeypatch.setattr(checkpoints, "Saver", InBackground)
    monkeypatch.setattr(checkpoints, "_commit", commit_slowly)
    folder = train(settings)
    found = [m["validation_loss"] for m in metrics(folder) if "validation_loss" in m]
    assert found[1] < found[2] and (folder / "best-1").is_dir()


def test_keep_best_where_the_last_is_best(settings, tmp_path):
    """Nothing is loaded back, and nothing but the last model is kept."""
    settings = settings.replace(validation_rows=3, keep_best=True, eval_every=1, max_steps=3)
    kept = train(settings.replace(learning_rate=1e-4))
    plain = train(
        settings.replace(learning_rate=1e-4, keep_best=False, output_dir=str(tmp_path / "p"))
    )
    losses = [m["validation_loss"] for m in metrics(kept) if "validation_loss" in m]
    assert losses[-1] == min(losses)
    assert all(t.equal(weights(plain)[n]) for n, t in weights(kept).items())


def test_too_little_memory(settings, tiny_folder, monkeypatch):
    """Less free memory than the run needs: refused before any step, with what would fit; tried
    all the same if memory_check is off."""
    monkeypatch.setattr(planner, "free_memory", lambda device: 10**6)
    with pytest.raises(NotEnoughMemory, match=r"GB are needed.*\n.*activation_checkpointing"):
        train(settings)
    assert not Path(settings.output_dir).exists()
    assert train(settings.replace(memory_check=False, max_steps=1)).is_dir()
