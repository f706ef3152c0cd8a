"""Counts before the training: drops, cuts, the schedule of what is left, the validation rows."""

from __future__ import annotations

import json
import random

import pytest

from alpaca_lib.errors import DataError, ModelError, SettingsError
from alpaca_lib.planning.planner import Work
from alpaca_lib.records import Example, load_examples, save_examples
from alpaca_lib.training.examples import encode, load_data, split_examples
from alpaca_lib.training.loop import train
from alpaca_lib.training.metrics import read_metrics
from alpaca_lib.training.packing import count_steps, count_warmup
from alpaca_lib.training.settings import Settings


@pytest.fixture
def settings(small_folder, data_file, tmp_path):
    """One epoch in steps of four examples."""
    return Settings(
        data_path=str(data_file), output_dir=str(tmp_path / "run"), model=str(small_folder),
        examples_per_step=4, max_length=96, row_length=192, device="cpu", dtype="float32",
        learning_rate=1e-3,
    )  # fmt: skip


def run_json(folder):
    """The record of a run."""
    return json.loads((folder / "run.json").read_text())


def test_the_schedule_counts_what_is_trained(settings, some_examples, tmp_path):
    """60 of 72 rows are dropped: said before the first step, loudly; three steps and their
    warm-up, of which the last reaches the full rate, as a planner counts them."""
    long = [Example(f"Sum up {n}. " + "a word " * 200, "", "Words.") for n in range(60)]
    rows = [*some_examples, *long]
    random.Random(0).shuffle(rows)
    settings = settings.replace(
        data_path=str(save_examples(rows, tmp_path / "rows.json")), schedule="constant_with_warmup",
        warmup=0.5,
    )  # fmt: skip
    said, seen = [], []

    def adapt(given, rows):
        seen.append(rows)
        assert not said  # before anything is printed
        return given.replace(warmup=0.3)

    folder = train(settings, adapt=adapt, say=said.append)
    assert seen == [12] and said[0].startswith("WARNING: 60 of 72 rows dropped: their prompt")
    assert said[-1] == "12 rows to train on: 3 steps of 4 rows"
    run = run_json(folder)
    assert (run["steps"], run["training_rows"], run["rows_without_label"]) == (3, 12, 60)
    assert run["settings"]["warmup"] == 0.3
    rates = [line["lr"] for line in read_metrics(folder)]
    assert rates[-1] == settings.learning_rate > rates[0]
    work = Work.of([{"input_ids": [1], "labels": [1]}] * 12)
    assert count_steps(work.rows, 4, 1.0) == 3


def test_cut_answers_are_counted_and_the_length_that_keeps_them(settings, some_examples, tmp_path):
    """The length that is named keeps all answers, and one less does not."""
    long = [Example(f"Count {n}.", "", "one two three " * (40 + n)) for n in range(3)]
    settings = settings.replace(
        data_path=str(save_examples([*some_examples, *long], tmp_path / "rows.json")), max_steps=1
    )
    said = []
    train(settings, say=said.append)
    assert said[0].startswith("WARNING: 3 of 15 answers are cut at max_length 96: raise it to ")
    enough = int(said[0].split("raise it to ")[1].split()[0])
    again = settings.replace(row_length=2 * enough, output_dir=str(tmp_path / "again"))
    said.clear()
    train(again.replace(max_length=enough), say=said.append)
    assert said == ["15 rows to train on: 1 step of 4 rows"]
    train(again.replace(max_length=enough - 1, output_dir=str(tmp_path / "less")), say=said.append)
    assert said[1].startswith("1 of 15 answers are cut") and f"to {enough} to keep" in said[1]


@pytest.mark.parametrize(
    "warmup, steps, expected",
    [(0, 5, 0), (0.03, 1, 0), (0.03, 40, 2), (0.5, 3, 2), (0.99, 10, 9), (4, 5, 4), (1, 2, 1)],
)
def test_warmup(warmup, steps, expected):
    """A fraction is rounded up, and leaves one step at least at the full rate."""
    assert count_warmup(warmup, steps) == expected < steps


@pytest.mark.parametrize("warmup", [3, 8, 100])
def test_a_warmup_as_long_as_the_run(settings, warmup):
    """The full rate would never be reached: refused, with both numbers."""
    with pytest.raises(SettingsError, match=f"warmup {warmup}: this run has 3 steps"):
        train(settings.replace(warmup=warmup))


def test_validation_rows_are_drawn_by_the_seed(settings, tokenizer, data_file):
    """Not the first rows: a sample of the seed, recorded, the same at every start."""
    examples = load_examples(data_file)
    held, rest, numbers = split_examples(examples, 4, seed=1)
    assert [examples[n - 1] for n in numbers] == held and numbers == sorted(set(numbers))
    assert len(rest) == 8 and not {e.instruction for e in held} & {e.instruction for e in rest}
    assert (held, rest, numbers) == split_examples(examples, 4, seed=1)
    draws = {tuple(split_examples(examples, 4, seed)[2]) for seed in range(20)}
    assert len(draws) > 15 and {n for draw in draws for n in draw} == set(range(1, 13))
    data = load_data(settings.replace(validation_rows=4, seed=1), tokenizer)
    assert data.held_out == [encode(e, tokenizer, max_length=96) for e in held]
    folder = train(settings.replace(validation_rows=4, seed=1, save_every=1))
    assert run_json(folder)["validation_row_numbers"] == numbers
    train(settings.replace(validation_rows=4, seed=1, save_every=1, epochs=2.0))
    assert run_json(folder)["validation_row_numbers"] == numbers
    with pytest.raises(DataError, match="12 rows, of which validation_rows takes 12"):
        load_data(settings.replace(validation_rows=12), tokenizer)


def test_more_tokens_than_positions(settings, small_folder, make_tiny, small, tmp_path):
    """An example longer than the model's positions is refused with the limit."""
    import shutil

    folder = shutil.copytree(small_folder, tmp_path / "short")
    make_tiny(vocab_size=461, max_position_embeddings=24, **small).save_pretrained(folder)
    with pytest.raises(ModelError, match="the model positions for 24; lower max_length to 24"):
        train(settings.replace(model=str(folder)))
