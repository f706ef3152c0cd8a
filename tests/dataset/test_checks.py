"""The check of a data set: each requirement fails on data that violates it."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from alpaca_lib import command_line, dataset
from alpaca_lib.dataset.__main__ import main
from alpaca_lib.dataset.check_results import format_results
from alpaca_lib.dataset.checks import check
from alpaca_lib.dataset.commands import INSPECT
from alpaca_lib.dataset.proofs import load_proofs, prove
from alpaca_lib.errors import DataError
from alpaca_lib.records import Example, save_examples
from tests.timing import timed

CONSONANTS, VOWELS = "bdfghjklmnprstvw", "aeiou"


def word(draw):
    """A word that no language has."""
    return "".join(draw.choice(CONSONANTS) + draw.choice(VOWELS) for _ in range(4))


def good_set(count=40):
    """Rows that meet every requirement: random words, a fifth of the rows in each category."""
    draw = random.Random(1)
    return [
        Example(
            " ".join(word(draw) for _ in range(9)) + ".",
            " ".join(word(draw) for _ in range(9)) if n % 5 < 2 else "",
            " ".join(word(draw) for _ in range(60)) + ".",
            {"category": f"c{n % 20}"},
        )
        for n in range(count)
    ]


def failed(lines):
    """Returns the names of the requirements that are not met."""
    return [line.name for line in lines if line.passed is False]


def test_good_set_passes():
    """Nothing fails where nothing is wrong."""
    rows = good_set()
    lines = check(rows, apart={"seeds": good_set(80)[60:]}, foreign={"them": good_set(140)[60:]})
    # Random words are as varied here as there; "better than theirs" is not asked of them.
    assert set(failed(lines)) <= {
        "distinct first words", "distinct bigrams, instruction", "distinct bigrams, output",
        "ROUGE-L to the nearest, mean",
    }  # fmt: skip


OAK = "An oak can stand for a thousand years."
TOGETHER = "How much are 7 and 5 together?"
SPOIL = {
    "with an input": lambda e, n: replace(e, input=""),
    "words per output, mean": lambda e, n: replace(e, output="Yes."),
    "words, longest output": lambda e, n: replace(e, output="ba " * 251 + ".") if n == 3 else e,
    "outputs without a regular end": lambda e, n: replace(e, output=e.output[:-1] + " the"),
    "largest category": lambda e, n: replace(e, extra={"category": "c1" if n < 5 else f"{n}"}),
    "share their first 4 words": lambda e, n: (
        replace(e, instruction=f"One two three four {e.instruction}") if n < 5 else e
    ),
    "nearest within the set": lambda e, n: (
        replace(e, instruction="Why do swans sing in March?") if n in (3, 8) else e
    ),
    "rows repeated": lambda e, n: e if n % 4 else replace(e, instruction="Name a.", input=""),
    "near-duplicates": lambda e, n: (
        e if n % 4 else replace(e, instruction=f"Name the first of these five {n} kings.")
    ),
    "nearest in seeds": lambda e, n: (
        e if n else replace(e, instruction="Why do ants dance in rain?")
    ),
    "nearest in them": lambda e, n: (
        e if n else replace(e, instruction="How old is the oldest oak?")
    ),
    "sentences also in them": lambda e, n: e if n else replace(e, output=f"{e.output} {OAK}"),
    "faults found": lambda e, n: replace(e, input="none") if n == 3 else e,
    "answers recomputed": lambda e, n: (
        replace(e, instruction=TOGETHER, output=f"{e.output} 13.") if n == 3 else e
    ),
}


ERRORS = {
    "nearest in seeds", "nearest in them", "sentences also in them", "faults found",
    "answers recomputed", "rows repeated", "near-duplicates",
}  # fmt: skip


@pytest.mark.parametrize("name", SPOIL)
def test_each_requirement_can_fail(name):
    """Spoiled in one way, the set fails that requirement, and the row is named."""
    rows = [SPOIL[name](example, n) for n, example in enumerate(good_set())]
    seeds = [Example("Why do ants dance in rain?", "", "They do not.")]
    them = [
        Example("How old is the oldest oak?", "", OAK),
        *good_set(120)[60:],
    ]
    lines = check(
        rows,
        apart={"seeds": seeds},
        foreign={"them": them},
        proofs={TOGETHER: "assert numbers(output)[-1] == 7 + 5"},
    )
    assert name in failed(lines)
    line = next(line for line in lines if line.name == name and line.passed is False)
    mark = {"error": "FAIL", "style": "off "}[line.kind]
    assert f"{mark} {name}" in format_results(lines)
    assert (line.kind == "error") is (name in ERRORS)
    about_all = ("with an input", "words per output, mean", "largest category")
    assert name in about_all or line.rows


def test_comparison_with_another_set():
    """A set of one sentence with slots is less varied than random words, on all four lines."""
    rows = [
        Example(f"Name a thing of sort {n}.", "", f"The thing of sort {n} is this.")
        for n in range(30)
    ]
    lines = check(rows, foreign={"them": good_set(100)})
    assert {
        "distinct first words", "distinct bigrams, instruction", "distinct bigrams, output",
        "ROUGE-L to the nearest, mean",
    } <= set(failed(lines))  # fmt: skip


def test_allowed_hits():
    """A hit with a listed reason does not count; a reason for another row does not help."""
    rows = [SPOIL["faults found"](e, n) for n, e in enumerate(good_set())]
    entry = {"fault": "word for no input", "reason": "the task is about the word"}
    right = {**entry, "instruction": rows[3].instruction}
    wrong = {**entry, "instruction": rows[4].instruction}
    assert "faults found" not in failed(check(rows, allowed=[right]))
    assert "faults found" in failed(check(rows, allowed=[wrong]))


def test_prove():
    """A proof runs code and numbers of the answer; a wrong answer, or no code, is named."""
    answer = "Use this:\n```python\ndef double(n):\n    return 2 * n\n```\nSo 1,000 gives 2,000."
    example = Example("Double it in Python.", "", answer)
    assert prove(example, "assert code(output)['double'](21) == 42") is None
    assert prove(example, "assert numbers(output)[-2:] == [1000, 2000]") is None
    assert "AssertionError: no" in str(
        prove(example, "assert code(output)['double'](2) == 5, 'no'")
    )
    assert "no fenced block" in str(prove(example, "block(output, 'sql')"))


def test_load_proofs_names_the_line(tmp_path):
    """A broken line is named."""
    path = tmp_path / "proofs.jsonl"
    path.write_text('{"instruction": "a", "proof": "pass"}\n{"instruction": "b"}\n')
    with pytest.raises(DataError, match=r"proofs.jsonl, line 2"):
        load_proofs(path)


def test_command_line(tmp_path, capsys):
    """Exit 0 for good data, 1 with the rows for bad, 2 for a file that is not there."""
    good = save_examples(good_set(), tmp_path / "good.json")
    assert main(["check", str(good)]) == 0
    assert "requirements met" in capsys.readouterr().out
    bad = save_examples([*good_set(), good_set()[0]], tmp_path / "bad.jsonl")
    assert main(["check", str(bad)]) == 1
    out = capsys.readouterr().out
    assert "row 41 (line 41) repeats row 1 (line 1)" in out and "row 0" not in out
    assert main(["check", str(tmp_path / "none.json")]) == 2
    assert "no such file" in capsys.readouterr().err


def test_style_does_not_fail_the_check(tmp_path, capsys):
    """A sound set with short answers and no inputs: exit 0, and the figures are printed."""
    rows = [replace(e, input="", output="Yes.") for e in good_set()]
    assert main(["check", str(save_examples(rows, tmp_path / "short.json"))]) == 0
    out = capsys.readouterr().out
    errors, style = out.split("style, compared with Alpaca's 52,002 rows")
    assert "FAIL" not in errors
    assert "off  with an input" in style and "(Alpaca: 40%)" in style and "(Alpaca: 44.2)" in style


def test_hits_for_a_reader_do_not_fail_the_check(tmp_path, capsys):
    """An address is listed under review; the exit code is 0."""
    rows = good_set()
    rows[3] = replace(rows[3], output=rows[3].output + " See https://news.test/a.")
    assert main(["check", str(save_examples(rows, tmp_path / "a.json"))]) == 0
    out = capsys.readouterr().out
    assert "read to be read" in out and "row 4 (line 20), address in the output" in out


def opening(lines):
    """The line about shared first words."""
    return next(line for line in lines if line.name == "share their first 4 words")


def test_first_words_of_chinese_are_characters():
    """Five instructions that begin alike are found, in Chinese as in English."""
    rows = [Example(f"给出一个关于{w}的事实。", "", "水会结冰。") for w in "水火土木金风"]
    line = opening(check(rows))
    assert line.found.startswith("6 (") and line.passed is False
    assert line.rows == ["6 begin: '给出一个'"]
    mixed = [Example(f"用 Python 写出第{w}个程序。", "", "好。") for w in "一二三四五"]
    assert opening(check(mixed)).rows == ["5 begin: '用python 写出'"]


CHINESE = [
    ("无需输入", "好。"),
    ("＜noinput＞", "好。"),
    ("不适用", "好。"),
    ("", "很抱歉，我无法回答。"),
]


def test_chinese_faults_are_counted():
    """Words for no input, refusals and a cut answer."""
    subjects = ("春天的花", "火车站旁的书店", "数学老师", "一只白猫")
    rows = [
        Example(f"请谈谈{subject}。", given, answer)
        for subject, (given, answer) in zip(subjects, CHINESE, strict=True)
    ]
    rows.append(Example("谁发现了它？", "", "这是因为水很冷，"))
    text = format_results(check(rows))
    assert "3 word for no input" in text and "1 cut off" in text and "1 refusal" in text


FRENCH = (
    "Le chat de la voisine est sur le toit de la maison et il regarde les oiseaux dans le ciel."
)
FOREIGN = {
    "French": (FRENCH, "other"),
    "Russian": ("Кошка соседки сидит на крыше дома и смотрит на птиц в небе.", "other"),
    "Japanese": ("隣の家の猫が屋根の上に座って、空の鳥を見ています。", "ja"),
    "Thai": ("แมวของเพื่อนบ้านนั่งอยู่บนหลังคาบ้านและมองดูนกบนท้องฟ้า", "th"),
}


@pytest.mark.parametrize("language", FOREIGN)
def test_a_measure_that_does_not_know_a_language_says_so(language):
    """Not "ok": the detectors know English and Chinese only."""
    text, code = FOREIGN[language]
    lines = check([Example(f"{text} {n}", "", text) for n in range(6)])
    found = next(line for line in lines if line.name == "faults found")
    assert found.passed is None and found.found == f"not judged: 6 rows in {code}"
    if code == "th":
        assert opening(lines).passed is None and "without spaces" in opening(lines).found
    cat = "What is the name of the cat that sits on it?"
    english = check([*good_set(), Example(cat, "", "It is Ida, and she is of the old house.")])
    assert "not judged" not in format_results(english)


def test_the_rouge_tokenizer_does_not_judge_chinese():
    """It knows a-z only: no distance of 0.00 that looks fine."""
    rows = [Example(f"请谈谈{w}的历史。", "", "好。") for w in "水火土木金风"]
    lines = check(rows, apart={"seeds": rows}, mode="rouge")
    near = [line for line in lines if line.name in ("near-duplicates", "nearest in seeds")]
    assert len(near) == 2 and all(line.passed is None for line in near)
    assert all("take --mode unicode" in line.found for line in near)


def test_chinese_is_compared_with_foreign_sets_by_character():
    """By a-z alone a copy is 0.00 from its source, and two tasks that name JSON are one."""
    rows = [Example(f"请把{w}的历史写成JSON。", "", f"{w}的历史很长。") for w in "水火土木金风"]
    copied, apart = rows[2], Example("怎样用JSON记账？", "", "用数组。")
    for theirs, passed in (([copied], False), ([apart], True)):
        lines = check(rows, foreign={"them": theirs})
        near = next(line for line in lines if line.name == "nearest in them")
        assert near.passed is passed, near
    english = [Example(f"Tell me of {w} and its history.", "", w) for w in ("fire", "café", "ice")]
    lines = check(english, foreign={"them": [Example("Tell me of cafe and its history.", "", "C")]})
    near = next(line for line in lines if line.name == "nearest in them")
    assert near.found == "0.86"  # "caf" is not "cafe": a published figure stays what it was


def test_the_check_names_the_line_of_a_row(tmp_path, capsys):
    """As the loader does, also in an indented file."""
    rows = good_set()
    rows[6] = replace(rows[6], output="")
    path = save_examples(rows, tmp_path / "d.json")
    assert main(["check", str(path)]) == 1
    start = [n for n, text in enumerate(path.read_text().split("\n"), 1) if text == "    {"][6]
    assert f"row 7 (line {start}), empty output" in capsys.readouterr().out


def test_a_large_set_is_checked_in_seconds(tmp_path):
    """30,000 rows of random words: near-duplicates of all, distances of a sample."""
    draw = random.Random(4)
    rows = [
        Example(" ".join(word(draw) for _ in range(8)), "", " ".join(word(draw) for _ in range(9)))
        for _ in range(30_000)
    ]
    rows[29_000] = replace(rows[7], output="Other.", instruction=rows[7].instruction + " too")
    with timed() as spent:
        lines = check(rows)
    assert spent.seconds < 60
    near = next(line for line in lines if line.name == "near-duplicates")
    assert near.found.startswith("1 ") and near.rows[0].startswith("row 29001, 0.94 with row 8")
    assert any("(of 500 rows)" in line.found for line in lines)


def test_command_line_reads_the_reasons_next_to_the_file(tmp_path, capsys):
    """FILE.allowed.json is found without being named."""
    rows = [SPOIL["faults found"](e, n) for n, e in enumerate(good_set())]
    path = save_examples(rows, tmp_path / "mine.json")
    assert main(["check", str(path)]) == 1
    entry = {"fault": "word for no input", "instruction": rows[3].instruction, "reason": "so"}
    (tmp_path / "mine.allowed.json").write_text(json.dumps([entry]))
    assert main(["check", str(path)]) == 0
    assert "1 with a listed reason" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["{", "[1]", '[{"fault": "address"}]', "{}x"])
def test_a_broken_list_of_reasons_is_named(tmp_path, capsys, text):
    """No traceback: the file, what is wrong, exit code 2."""
    path = save_examples(good_set(), tmp_path / "mine.json")
    (tmp_path / "mine.allowed.json").write_text(text)
    assert main(["check", str(path)]) == 2
    assert "mine.allowed.json: is no list" in capsys.readouterr().err


def test_two_sets_of_one_name_are_both_compared(tmp_path, capsys):
    """Files of the same name in two folders: the near one is found, whichever comes last."""
    rows = good_set()
    mine = save_examples(rows, tmp_path / "mine.json")
    near = save_examples(rows[:1], tmp_path / "a" / "x.json")
    far = save_examples(good_set(80)[60:], tmp_path / "b" / "x.json")
    assert main(["check", str(mine), "--apart", str(near), str(far)]) == 1
    assert f"FAIL nearest in {near}" in capsys.readouterr().out


def test_inspect_describes_checks_and_writes(tmp_path, capsys):
    """``alpaca inspect`` prints statistics and requirements, and writes the page and the card."""
    path = save_examples(good_set(), tmp_path / "mine.json")
    words = ["inspect", str(path), "--report", "--card"]
    assert command_line.main("alpaca", "", [INSPECT], words) == 0
    out = capsys.readouterr().out
    assert "| Rows | 40 |" in out and "requirements met" in out
    assert "<img" in (tmp_path / "mine.html").read_text(encoding="utf-8")
    assert "`seed_tasks.jsonl`" in (tmp_path / "mine.card.md").read_text(encoding="utf-8")
    assert command_line.main("alpaca", "", [INSPECT], ["inspect", str(tmp_path / "none.json")]) == 2


def test_the_public_names_are_all_there():
    """Each name of the package can be imported, and none hides a module of the package."""
    modules = {path.stem for path in Path(dataset.__file__).parent.glob("*.py")}
    assert all(getattr(dataset, name) for name in dataset.__all__)
    assert not modules & set(dataset.__all__)
