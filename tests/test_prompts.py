"""Prompts: the published templates to the character, and the request for new tasks."""

from __future__ import annotations

import pytest

from alpaca_lib.chat_templates import CHAT_TEMPLATES
from alpaca_lib.errors import DataError
from alpaca_lib.prompts import (
    ALIASES,
    TEMPLATES,
    describe_templates,
    generation_prompt,
    get_template,
    load_header,
    render_prompt,
)
from alpaca_lib.records import Example

WITH = Example("Add the numbers.", "1, 2", "3")
WITHOUT = Example("Name a colour.", "", "Blue.")

# Written out from stanford_alpaca's train.py and alpaca-lora's templates/*.json.
STANFORD_WITH = """\
Below is an instruction that describes a task, paired with an input that provides further \
context. Write a response that appropriately completes the request.

### Instruction:
Add the numbers.

### Input:
1, 2

### Response:"""
STANFORD_WITHOUT = """\
Below is an instruction that describes a task. Write a response that appropriately completes \
the request.

### Instruction:
Name a colour.

### Response:"""
SHORT_WITH = """\
### Instruction:
Add the numbers.

### Input:
1, 2

### Response:
"""
SHORT_WITHOUT = """\
### Instruction:
Name a colour.

### Response:
"""


@pytest.mark.parametrize(
    "name, with_input, without_input",
    [
        ("alpaca", STANFORD_WITH, STANFORD_WITHOUT),
        ("alpaca-lora", STANFORD_WITH + "\n", STANFORD_WITHOUT + "\n"),
        ("short", SHORT_WITH, SHORT_WITHOUT),
        ("alpaca_short", SHORT_WITH, SHORT_WITHOUT),
        # Alpaca-LoRA: "Legacy template, used by Original Alpaca repository."
        ("alpaca_legacy", STANFORD_WITH, STANFORD_WITHOUT),
    ],
)
def test_published_templates_to_the_character(name, with_input, without_input):
    """Each published template renders as in its own repository."""
    assert render_prompt(WITH, name) == with_input
    assert render_prompt(WITHOUT, name) == without_input


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_prompt_ends_where_the_answer_begins(name):
    """Every template ends with its response mark, and the mark occurs once."""
    template = get_template(name)
    for example in (WITH, WITHOUT):
        prompt = template.render(example)
        assert prompt.endswith(template.response)
        assert prompt.count(template.response.strip()) == 1
        assert example.instruction in prompt and example.output not in prompt


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize(
    "instruction, text",
    [
        ("Format {0} and {name} with {input}.", "{instruction} {input} {} {{x}}"),
        ("{instruction}", "{input}"),
        ("{input}", "x{input}y{input}z"),
        ("Use \\1 and %s and $x.", "\\g<0>"),
    ],
)
def test_braces_are_only_text(name, instruction, text):
    """Braces in a row are neither filled in nor an error."""
    template = get_template(name)
    marker_a, marker_b = "QQQinstructionQQQ", "ZZZinputZZZ"
    shape = template.render(Example(marker_a, marker_b))
    before, rest = shape.split(marker_a)
    middle, after = rest.split(marker_b)
    assert (
        template.render(Example(instruction, text)) == before + instruction + middle + text + after
    )
    shape = template.render(Example(marker_a, ""))
    before, after = shape.split(marker_a)
    assert template.render(Example(instruction, "")) == before + instruction + after


def test_unknown_template_lists_the_names():
    """A wrong name is answered with the names there are."""
    with pytest.raises(ValueError, match=r"'alpacca'.*alpaca.*chinese.*chat"):
        render_prompt(WITH, "alpacca")


def test_every_template_and_every_other_name_is_listed_with_its_publisher():
    lines = describe_templates()
    assert [line.split()[0] for line in lines] == [*TEMPLATES, *CHAT_TEMPLATES, "chat"]
    for name, meant in ALIASES.items():
        assert get_template(name) is TEMPLATES[meant]
    assert lines[0] == "alpaca      Stanford Alpaca's (also alpaca_legacy, stanford)"
    assert "instruction-tuned" in lines[-1]
    assert max(map(len, lines)) <= 98
    assert describe_templates({"alpaca": "stanford"})[0].startswith("stanford    Stanford")


def test_chat_template_is_the_models_own(tokenizer):
    """ "chat" is what transformers' apply_chat_template gives for one user message."""
    for example, content in ((WITH, "Add the numbers.\n\n1, 2"), (WITHOUT, "Name a colour.")):
        expected = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        got = render_prompt(example, "chat", tokenizer)
        assert got == expected
        assert got.endswith("<|im_start|>assistant\n")


def test_chat_needs_a_tokenizer_with_a_template():
    """Without a chat template the error names the other templates."""

    class Plain:
        chat_template = None

    for tokenizer in (None, Plain()):
        with pytest.raises(ValueError, match=r"chat template.*alpaca"):
            render_prompt(WITH, "chat", tokenizer)


# --- the request for new tasks ------------------------------------------------------


def test_generation_prompt_written_out():
    """The whole text, with numbering, <noinput>, and the heading to go on from."""
    text = generation_prompt([WITH, WITHOUT], "Write {count} tasks.\n\n", count=20)
    assert text == (
        "Write 20 tasks.\n\n"
        "###\n1. Instruction: Add the numbers.\n1. Input:\n1, 2\n1. Output:\n3\n"
        "###\n2. Instruction: Name a colour.\n2. Input:\n<noinput>\n2. Output:\nBlue.\n"
        "###\n3. Instruction:"
    )


@pytest.mark.parametrize("count", [1, 3, 8])
def test_generation_prompt_numbers_run_on(count):
    """Numbers run from 1, and the open heading is the next one."""
    seeds = [Example(f"Do thing {n}.", "", "done") for n in range(count)]
    text = generation_prompt(seeds, "List:")
    headings = [line for line in text.split("\n") if "Instruction:" in line]
    assert [int(line.split(".")[0]) for line in headings] == list(range(1, count + 2))
    assert text.endswith(f"###\n{count + 1}. Instruction:")


def test_generation_prompt_cleans_instructions_as_stanford_does():
    """Inner blank runs become one space, and a colon at the end goes."""
    text = generation_prompt([Example(" Sort\n  these\twords: ", "b a", "a b")], "H")
    assert "1. Instruction: Sort these words\n1. Input:\nb a\n" in text


def test_generation_prompt_in_another_language():
    """The mark for no input can be another one; braces in seeds stay."""
    text = generation_prompt([Example("写 {count} 首诗", "", "好")], "写{count}个", 5, "<无输入>")
    assert text.startswith("写5个\n\n###\n1. Instruction: 写 {count} 首诗\n1. Input:\n<无输入>\n")


def test_generation_prompt_needs_a_seed():
    """No seeds: an error, not a list that begins at 1."""
    with pytest.raises(ValueError, match="seed"):
        generation_prompt([], "H")


def test_load_header(tmp_path, repository):
    """The shipped headers load; a missing, empty or undecodable one is named."""
    for name in ("generate_en.txt", "generate_zh.txt"):
        assert "{count}" in load_header(repository / "data" / "prompts" / name)
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\x00")
    for name in ("missing.txt", "empty.txt", "bad.txt"):
        with pytest.raises(DataError, match=name):
            load_header(tmp_path / name)
