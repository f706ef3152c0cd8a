"""Statistics on sets small enough to count by hand."""

from __future__ import annotations

import pytest

from alpaca_lib.dataset import statistics
from alpaca_lib.dataset.statistics import (
    Diversity,
    Lengths,
    Near,
    clusters,
    diversity,
    markdown_table,
    nearest,
    nearest_scores,
    overview,
    shared_sentences,
    vocabulary_growth,
    words,
)
from alpaca_lib.records import Example

SET = [
    Example("Name a colour.", "", "Blue."),
    Example("name two colours", "warm ones", "Red and orange"),
    Example("Name a colour.", "cold", ""),
    Example('"Why" is it so?', "one two three four", "a b c d e"),
    Example("Write", "", " \n"),
]


def test_overview_by_hand():
    """Counts and lengths of five rows, counted by hand."""
    view = overview(SET)
    assert (view.rows, view.with_input, view.distinct_instructions, view.empty_outputs) == (
        5,
        3,
        4,
        2,
    )
    # words: 3 3 3 4 1 | inputs 2 1 4 | outputs 1 3 5 (empty ones are left out)
    assert view.lengths["instruction"] == Lengths(5, 2.8, 3.0, pytest.approx(3.8), 4)
    assert view.lengths["input"] == Lengths(3, pytest.approx(7 / 3), 2.0, pytest.approx(3.8), 4)
    assert view.lengths["output"] == Lengths(3, 3.0, 3.0, pytest.approx(4.8), 5)
    assert view.first_words == [("name", 3), ("why", 1), ("write", 1)]


def test_overview_of_nothing():
    """No rows: zeros, no error."""
    view = overview([])
    assert view.rows == 0 and view.lengths["output"] == Lengths(0, 0.0, 0.0, 0.0, 0)


def test_first_words_are_limited_to_twenty():
    """The twenty most frequent, most frequent first."""
    rows = [Example(f"verb{n} it.") for n in range(30) for _ in range(30 - n)]
    assert overview(rows).first_words == [(f"verb{n}", 30 - n) for n in range(20)]


def test_overview_counts_the_shipped_data(repository):
    """Counts of a shipped set agree with a count of its JSON."""
    import json

    from alpaca_lib.records import load_examples

    file = repository / "data" / "alpaca_520.json"
    rows = json.loads(file.read_text(encoding="utf-8"))
    view = overview(load_examples(file))
    assert view.rows == len(rows)
    assert view.with_input == sum(row["input"] != "" for row in rows)
    assert view.lengths["output"].longest == max(len(row["output"].split()) for row in rows)


def test_nearest_scores_against_rouge_score():
    """The highest score against the known texts, as rouge_score gives it."""
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"])
    texts = ["name a warm colour", "nothing alike", "", "name a colour"]
    known = ["name a colour", "name two warm colours", "why"]
    expected = [max(scorer.score(k, t)["rougeL"].fmeasure for k in known) for t in texts]
    assert nearest_scores(texts, known).tolist() == expected
    assert nearest_scores([], known).shape == (0,)
    assert nearest_scores(texts, []).tolist() == [0.0] * 4


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("one two-three\nfour", 3),
        ("春眠不觉晓，处处闻啼鸟。", 10),
        ("用 Python 写 2 行", 5),
    ],
)
def test_words(text, count):
    """Pieces between white space; a Chinese character is a word, its punctuation is none."""
    assert words(text) == count


def test_nearest_within_and_to_others():
    """Never itself; -1 where there is no other."""
    texts = ["red apples fall", "green apples fall", "cats sleep here"]
    assert [n.place for n in nearest(texts)] == [1, 0, 0]
    assert nearest(texts)[0].score == pytest.approx(2 / 3)
    assert nearest(["one text"]) == [Near(-1, 0.0)]
    assert nearest(["one text"], []) == [Near(-1, 0.0)]
    assert nearest(["cats sleep"], texts) == [Near(2, pytest.approx(0.8))]


def test_diversity_by_hand():
    """Two rows: three first words' worth of counting, done by hand."""
    rows = [Example("Name a colour.", "", "Red and red."), Example("Name a bird.", "", "Wren.")]
    assert diversity(rows) == Diversity(1, 3, 2, pytest.approx(2 / 3), 2)


def test_a_large_set_is_measured_on_some_of_its_rows(monkeypatch):
    """Above SAMPLE rows the nearest are those of rows evenly spread, and the table says so."""
    rows = [Example(f"Name {n} of {n // 3} things") for n in range(90)]
    every = [near.score for near in nearest([row.instruction for row in rows], mode="unicode")]
    assert diversity(rows).nearest == pytest.approx(sum(every) / 90)
    monkeypatch.setattr(statistics, "SAMPLE", 30)
    some = diversity(rows)
    assert some.measured == 30 and some.nearest == pytest.approx(sum(every[::3]) / 30)
    assert "(of 30 rows)" in markdown_table({"x": rows})


def test_shared_sentences():
    """Long sentences that the others have, whatever their case; short ones do not count."""
    theirs = [Example("Say it.", "The old mill stands by the river. Yes.", "No.")]
    mine = [
        Example("Say it.", "", "Look: no. the OLD mill, stands by the river! No."),
        Example("Tell me.", "", "Yes. No."),
    ]
    assert shared_sentences(mine, theirs) == [["the old mill stands by the river"], []]


def test_markdown_table():
    """One column a set, with the numbers of overview and diversity."""
    lines = markdown_table({"a.json": SET, "b.json": SET[:1]}).splitlines()
    assert lines[0] == "|  | `a.json` | `b.json` |" and "| Rows | 5 | 1 |" in lines
    assert "| Longest output, words | 5 | 1 |" in lines


def test_clusters():
    """A chain joins a and c through b, although a and c are not near; loners are left out."""
    texts = [
        "one two three four five six seven eight",
        "quite another sentence about a dog",
        "one two three four five six seven nine ten",
        "three four five six seven nine ten eleven",
        "a dog, quite another sentence about",
        "nothing like the rest",
    ]
    assert clusters(texts, 0.6) == [[0, 2, 3], [1, 4]]
    assert clusters(texts, 0.99) == [] and clusters([], 0.5) == []


def test_vocabulary_growth():
    """Words read and words met for the first time, counted by hand."""
    read, different = vocabulary_growth(["a b a", "b c", "c c d"], points=3)
    assert read.tolist() == [3, 5, 8] and different.tolist() == [2, 3, 4]
    assert len(vocabulary_growth(["a"] * 500)[0]) == 50
    assert len(vocabulary_growth([])[0]) == 0
