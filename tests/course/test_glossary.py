"""The glossary: one Chinese word per term, and a page that is up to date."""

from __future__ import annotations

import pytest
import yaml

from alpaca_lib.course import glossary
from alpaca_lib.errors import DataError


def test_the_page_is_up_to_date():
    """python -m alpaca_lib.course.glossary writes it."""
    assert glossary.PAGE.read_text(encoding="utf-8") == glossary.format_page(glossary.load_terms())


def test_each_term_has_a_sentence_in_both_languages():
    terms = glossary.load_terms()
    assert len(terms) >= 60
    for term in terms:
        assert term.sentence.endswith(".") and term.chinese_sentence.endswith("。"), term.term
        assert term.chinese not in term.unused
    assert len({term.anchor for term in terms}) == len(terms)


@pytest.mark.parametrize(
    ("second", "says"),
    [
        ({"term": "b", "zh": "甲"}, "a and b are both '甲'"),
        ({"term": "b", "zh": "乙", "not": ["甲"]}, "b excludes '甲', the word for a"),
    ],
)
def test_two_terms_do_not_share_a_word(second, says, tmp_path):
    rows = [{"term": "a", "zh": "甲", "en": "A.", "about": "甲。"}]
    rows.append({"en": "B.", "about": "乙。", **second})
    file = tmp_path / "glossary.yaml"
    file.write_text(yaml.safe_dump(rows, allow_unicode=True), encoding="utf-8")
    with pytest.raises(DataError, match=says):
        glossary.load_terms(file)


def test_another_translation_of_a_term_is_found():
    found = list(glossary.find_conflicts("用聊天模板渲染提示。", glossary.load_terms()))
    assert [(term.term, word) for term, word in found] == [("chat template", "聊天模板")]


@pytest.mark.parametrize(
    ("language", "text", "found"),
    [
        ("en", "Tokens of a micro-batch, no batch_size.", ["token", "micro-batch"]),
        ("en", "A low rank, a token's label, pre-packing.", ["token", "label"]),
        ("en", "Batches of a Slurm batch file; losses.", ["batch", "loss"]),
        ("zh", "这样会损失什么？提示", ["prompt"]),
        ("zh", "用LoRA训练一轮，损失以词元计。", ["LoRA", "loss", "token"]),
    ],
)
def test_terms_are_found_in_prose(language, text, found):
    parts = list(glossary.find_terms(text, glossary.load_terms(), language))
    assert "".join(words for words, _ in parts) == text
    assert [term.term for _, term in parts if term] == found
