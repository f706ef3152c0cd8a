"""The prompts: Alpaca's templates for training and answering, and the 20-task request.

A model answers only to the prompt it was trained on, to the character; so the
templates stand here once, and every stage takes them from here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpaca_lib.errors import DataError
from alpaca_lib.files import dump_json
from alpaca_lib.records import FIELDS, Example


@dataclass(frozen=True)
class Template:
    """A prompt with and without input; ``response`` is the text that the answer follows."""

    name: str
    with_input: str
    without_input: str
    response: str
    source: str

    def render(self, example: Example) -> str:
        """The prompt for an example: everything before its answer."""
        # replace(), not format(): an instruction may hold braces.
        text = self.with_input if example.input else self.without_input
        if not example.input:
            return text.replace("{instruction}", example.instruction)
        before, after = text.split("{input}")
        return before.replace("{instruction}", example.instruction) + example.input + after


_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately "
    "completes the request.\n\n### Instruction:\n{instruction}\n\n### Response:"
)
_ZH_INPUT = (
    "下面是一条描述任务的指令，并附有提供更多背景的输入。请写出恰当完成该请求的回答。\n\n"
    "### 指令：\n{instruction}\n\n### 输入：\n{input}\n\n### 回答：\n"
)
_ZH_NO_INPUT = (
    "下面是一条描述任务的指令。请写出恰当完成该请求的回答。\n\n"
    "### 指令：\n{instruction}\n\n### 回答：\n"
)

TEMPLATES = {
    template.name: template
    for template in (
        Template("alpaca", _WITH_INPUT, _WITHOUT_INPUT, "### Response:", "Stanford Alpaca"),
        Template(
            "alpaca-lora",
            _WITH_INPUT + "\n",
            _WITHOUT_INPUT + "\n",
            "### Response:\n",
            "Alpaca-LoRA: as Stanford's, and a newline before the answer",
        ),
        Template(
            "short",
            "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
            "### Instruction:\n{instruction}\n\n### Response:\n",
            "### Response:\n",
            "Alpaca-LoRA's alpaca_short: fewer tokens a prompt",
        ),
        Template("chinese", _ZH_INPUT, _ZH_NO_INPUT, "### 回答：\n", "this course"),
    )
}
# Names that the lesson's commands use, and what they are called here.
ALIASES = {"alpaca_legacy": "alpaca", "alpaca_short": "short", "alpaca-short": "short"}
CHAT = "chat"


def get_template(name: str) -> Template:
    """The template of that name; ValueError with the names there are."""
    template = TEMPLATES.get(ALIASES.get(name, name))
    if template is None:
        known = ", ".join([*TEMPLATES, CHAT])
        raise ValueError(f"no prompt template {name!r}; there are {known}")
    return template


def render_prompt(example: Example, template: str = "alpaca", tokenizer: Any = None) -> str:
    """The prompt for an example; template "chat" is the model's own chat format.

    With "chat" the tokenizer is needed: its template turns one user message
    (instruction, blank line, input) into text up to where the answer begins.
    """
    if template != CHAT:
        return get_template(template).render(example)
    if getattr(tokenizer, "chat_template", None) is None:
        raise ValueError(
            f"template 'chat' needs a tokenizer with a chat template; this one has none. "
            f"Use one of {', '.join(TEMPLATES)}"
        )
    text = "\n\n".join(part for part in (example.instruction, example.input) if part)
    message = [{"role": "user", "content": text}]
    return str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))


def chat_template(name: str) -> str:
    """A template as Jinja, for whoever speaks to a model in messages: llama.cpp, transformers.

    A user's message is the instruction; what the model answered before, and its end token,
    stand between. A system message has no place in Alpaca's format and is left out.
    """
    before, after = get_template(name).without_input.split("{instruction}")
    head = json.dumps(before, ensure_ascii=False)
    tail = json.dumps(after, ensure_ascii=False)
    return (
        "{% for message in messages %}{% if message['role'] == 'user' %}"
        f"{{{{ {head} + message['content'] + {tail} }}}}"
        "{% elif message['role'] == 'assistant' %}"
        "{{ message['content'] + eos_token + '\\n\\n' }}{% endif %}{% endfor %}"
    )


# What a generation prompt may say besides its header, by the language of the header.
ADDITIONS = {
    "en": {
        "topic": "All of the tasks are about this subject: {topic}.",
        "verbs": "Begin the instructions with verbs that are seldom used, such as: {verbs}.",
        "passage": "Every task is about the following text. Instructions and inputs quote from it "
        "what they need, and outputs say only what follows from it.\n<text>\n{passage}\n</text>",
        "json": 'Answer with JSON and nothing else: {"tasks": [...]}, with {new} tasks like those '
        'above, each with "instruction", "input" ("" if there is none) and "output".',
    },
    "zh": {
        "topic": "所有任务都与这个主题有关：{topic}。",
        "verbs": "指令请用少见的动词，例如：{verbs}。",
        "passage": "每个任务都与下面的文字有关。指令和输入要引用所需的内容，"
        "输出只说由它得出的内容。\n<text>\n{passage}\n</text>",
        "json": '只用 JSON 回答，不要有其他内容：{"tasks": [...]}，'
        '其中有 {new} 个与上面类似的任务，每个任务有 "instruction"、'
        '"input"（没有则为 ""）和 "output"。',
    },
}


def generation_prompt(
    seeds: Sequence[Example],
    header: str,
    count: int = 20,
    no_input: str = "<noinput>",
    more: Sequence[str] = (),
) -> str:
    """The request for new tasks: the header, then the seeds as the list's first entries.

    The list runs to ``count``; the text ends with the heading of the entry that
    the teacher is to write first, number ``len(seeds) + 1``. ``{count}`` in the
    header becomes the number. more: paragraphs above the header.
    """
    if not seeds:
        raise ValueError("a generation prompt needs at least one seed task")
    parts = [f"{paragraph}\n\n" for paragraph in more]
    parts.append(header.replace("{count}", str(count)).rstrip() + "\n\n")
    for number, seed in enumerate(seeds, start=1):
        # As Stanford: inner blank runs and a trailing colon would look like a heading.
        instruction = " ".join(seed.instruction.split()).rstrip(":")
        parts.append(
            f"###\n{number}. Instruction: {instruction}\n{number}. Input:\n"
            f"{seed.input or no_input}\n{number}. Output:\n{seed.output}\n"
        )
    return "".join(parts) + f"###\n{len(seeds) + 1}. Instruction:"


def json_generation_prompt(
    seeds: Sequence[Example],
    header: str,
    count: int = 20,
    more: Sequence[str] = (),
    language: str = "en",
) -> str:
    """As generation_prompt(), for a reply in JSON; the seeds are shown as JSON too."""
    if not seeds:
        raise ValueError("a generation prompt needs at least one seed task")
    shown = [{name: getattr(seed, name) for name in FIELDS} for seed in seeds]
    last = ADDITIONS[language]["json"].replace("{new}", str(count - len(seeds)))
    head = header.replace("{count}", str(count)).rstrip()
    return "\n\n".join([*more, head, dump_json({"tasks": shown}, indent=1), last]) + "\n"


def load_header(path: str | os.PathLike[str]) -> str:
    """The text of a generation prompt's header; DataError if there is none."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: no readable prompt text ({error}); data/prompts has examples"
        ) from None
    if not text.strip():
        raise DataError(f"{path}: is empty; data/prompts has examples of a prompt's header")
    return text
