"""The checks of IFEval's 25 kinds of instructions (arXiv:2311.07911): text and arguments -> met.

They follow the published ones of Google (google-research/instruction_following_eval), as
lm-evaluation-harness has them, so that scores can be compared. Two differ on purpose, where the
published check draws a random number: a ``letter`` that is no letter (two prompts ask for ``#``
and ``!``) is counted as it is, and languages are detected with a fixed seed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from alpaca_lib.evaluation.text_tools import language_detector, sentence_splitter, word_splitter
from alpaca_lib.files import parse_json

RELATIONS = ("less than", "at least")
OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def _relates(number: int, relation: str, limit: int) -> bool:
    return number < limit if relation == RELATIONS[0] else number >= limit


def _has_keywords(text: str, keywords: Sequence[str]) -> bool:
    return all(re.search(word, text, re.IGNORECASE) for word in keywords)


def _repeats_keyword(text: str, keyword: str, frequency: int, relation: str) -> bool:
    found = re.findall(keyword.strip(), text, re.IGNORECASE)
    return _relates(len(found), relation, frequency)


def _avoids_words(text: str, forbidden_words: Sequence[str]) -> bool:
    return not any(re.search(rf"\b{word}\b", text, re.IGNORECASE) for word in forbidden_words)


def _repeats_letter(text: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _relates(text.lower().count(letter.strip().lower()), let_relation, let_frequency)


def _is_in_language(text: str, language: str) -> bool:
    # A text without a letter is in no language, and the published check accepts it.
    return language_detector()(text) in (language, None)


def _has_sentences(text: str, num_sentences: int, relation: str) -> bool:
    return _relates(len(sentence_splitter()(text)), relation, num_sentences)


def _has_paragraphs(text: str, num_paragraphs: int) -> bool:
    # [first, "", second]: an empty paragraph is allowed at the ends only.
    parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", text)]
    if not all(parts[1:-1]):
        return False
    ends = [parts[0], parts[-1]] if len(parts) > 1 else parts
    return len(parts) - ends.count("") == num_paragraphs


def _has_words(text: str, num_words: int, relation: str) -> bool:
    return _relates(len(re.findall(r"\w+", text)), relation, num_words)


def _starts_paragraph(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    parts = [part.strip() for part in text.split("\n\n")]
    count = len(parts) - parts.count("")
    if not 1 <= nth_paragraph <= count or not parts[nth_paragraph - 1]:
        return False
    word = parts[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"')
    found = re.split(r"[.,?!'\"]", word)[0].lower()
    return count == num_paragraphs and found == first_word.lower()


def _has_placeholders(text: str, num_placeholders: int) -> bool:
    return len(re.findall(r"\[.*?\]", text)) >= num_placeholders


def _has_postscript(text: str, postscript_marker: str) -> bool:
    marker = postscript_marker.strip()
    known = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    return bool(re.search(known.get(marker, marker.lower()), text.lower()))


def _has_bullets(text: str, num_bullets: int) -> bool:
    stars = re.findall(r"^\s*\*[^\*].*$", text, re.MULTILINE)
    dashes = re.findall(r"^\s*-.*$", text, re.MULTILINE)
    return len(stars) + len(dashes) == num_bullets


def _has_highlights(text: str, num_highlights: int) -> bool:
    # **bold** is found twice, as the published check does: once empty, once with its text.
    single = [found.strip("*") for found in re.findall(r"\*[^\n\*]*\*", text)]
    double = [found[2:-2] for found in re.findall(r"\*\*[^\n\*]*\*\*", text)]
    return sum(bool(found.strip()) for found in single + double) >= num_highlights


def _has_sections(text: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.split(rf"\s?{section_spliter.strip()}\s?\d+\s?", text)) - 1 >= num_sections


def _is_json(text: str) -> bool:
    text = text.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    try:
        parse_json(text.removesuffix("```").strip())
    except ValueError:
        return False
    return True


def _has_title(text: str) -> bool:
    return any(title.lstrip("<").rstrip(">").strip() for title in re.findall(r"<<[^\n]+>>", text))


def _has_two_responses(text: str) -> bool:
    parts = [part.strip() for part in text.split("******")]
    given = [part for part in parts if part]
    return all(parts[1:-1]) and len(given) == 2 and given[0] != given[1]


def _repeats_prompt(text: str, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _ends_with(text: str, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _has_capital_words(text: str, capital_frequency: int, capital_relation: str) -> bool:
    count = sum(word.isupper() for word in word_splitter()(text))
    return _relates(count, capital_relation, capital_frequency)


def _is_english_capitals(text: str) -> bool:
    return text.isupper() and _is_in_language(text, "en")


def _is_english_lowercase(text: str) -> bool:
    return text.islower() and _is_in_language(text, "en")


def _is_quoted(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


@dataclass(frozen=True)
class Kind:
    """A kind of instruction: its check, its arguments' types, and the tool that it needs."""

    check: Callable[..., bool]
    arguments: dict[str, Any]  # name -> type or choices; "pattern": a regular expression
    tool: Callable[[], Any] | None = None


_COUNT = {"relation": RELATIONS}
KINDS = {
    "keywords:existence": Kind(_has_keywords, {"keywords": "patterns"}),
    "keywords:frequency": Kind(
        _repeats_keyword, {"keyword": "pattern", "frequency": int, **_COUNT}
    ),
    "keywords:forbidden_words": Kind(_avoids_words, {"forbidden_words": "patterns"}),
    "keywords:letter_frequency": Kind(
        _repeats_letter, {"letter": "letter", "let_frequency": int, "let_relation": RELATIONS}
    ),
    "language:response_language": Kind(_is_in_language, {"language": str}, language_detector),
    "length_constraints:number_sentences": Kind(
        _has_sentences, {"num_sentences": int, **_COUNT}, sentence_splitter
    ),
    "length_constraints:number_paragraphs": Kind(_has_paragraphs, {"num_paragraphs": int}),
    "length_constraints:number_words": Kind(_has_words, {"num_words": int, **_COUNT}),
    "length_constraints:nth_paragraph_first_word": Kind(
        _starts_paragraph, {"num_paragraphs": int, "nth_paragraph": int, "first_word": str}
    ),
    "detectable_content:number_placeholders": Kind(_has_placeholders, {"num_placeholders": int}),
    "detectable_content:postscript": Kind(_has_postscript, {"postscript_marker": "pattern"}),
    "detectable_format:number_bullet_lists": Kind(_has_bullets, {"num_bullets": int}),
    "detectable_format:constrained_response": Kind(
        lambda text: any(option in text for option in OPTIONS), {}
    ),
    "detectable_format:number_highlighted_sections": Kind(_has_highlights, {"num_highlights": int}),
    "detectable_format:multiple_sections": Kind(
        _has_sections, {"section_spliter": "pattern", "num_sections": int}
    ),
    "detectable_format:json_format": Kind(_is_json, {}),
    "detectable_format:title": Kind(_has_title, {}),
    "combination:two_responses": Kind(_has_two_responses, {}),
    "combination:repeat_prompt": Kind(_repeats_prompt, {"prompt_to_repeat": str}),
    "startend:end_checker": Kind(_ends_with, {"end_phrase": str}),
    "change_case:capital_word_frequency": Kind(
        _has_capital_words,
        {"capital_frequency": int, "capital_relation": RELATIONS},
        word_splitter,
    ),
    "change_case:english_capital": Kind(_is_english_capitals, {}, language_detector),
    "change_case:english_lowercase": Kind(_is_english_lowercase, {}, language_detector),
    "punctuation:no_comma": Kind(lambda text: "," not in text, {}),
    "startend:quotation": Kind(_is_quoted, {}),
}
