"""Prompts: Alpaca's templates for training and inference, and the request for new tasks.

A fine-tuned model expects the exact prompt it was trained on, so each template is defined once,
here, and every stage imports it.

>>> render_prompt(Example("Name a colour."), "short")
'### Instruction:\\nName a colour.\\n\\n### Response:\\n'
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alpaca_lib.chat_format import own_source, read_format, render_asked, time_limit
from alpaca_lib.chat_templates import CHAT_TEMPLATES, check_tokens
from alpaca_lib.errors import DataError, SettingsError
from alpaca_lib.examples import chat_content
from alpaca_lib.files import dump_json
from alpaca_lib.records import FIELDS, Conversation, Example, read_text


@dataclass(frozen=True)
class Template:
    """A prompt template: one text with input, one without.

    Both end with ``response``, after which the answer begins; ``source`` names who published it.
    """

    name: str
    with_input: str
    without_input: str
    response: str
    source: str

    def render(self, example: Example) -> str:
        """Returns the prompt of an example: everything before its answer."""
        # str.replace, not str.format: an instruction may contain braces.
        if not example.input:
            return self.without_input.replace("{instruction}", example.instruction)
        before, after = self.with_input.split("{input}")
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
        Template("alpaca", _WITH_INPUT, _WITHOUT_INPUT, "### Response:", "Stanford Alpaca's"),
        Template(
            "alpaca-lora",
            _WITH_INPUT + "\n",
            _WITHOUT_INPUT + "\n",
            "### Response:\n",
            "Alpaca-LoRA's alpaca: Stanford's, plus a newline before the answer",
        ),
        Template(
            "short",
            "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
            "### Instruction:\n{instruction}\n\n### Response:\n",
            "### Response:\n",
            "Alpaca-LoRA's alpaca_short: fewer tokens per prompt",
        ),
        Template("chinese", _ZH_INPUT, _ZH_NO_INPUT, "### 回答：\n", "this course's, in Chinese"),
    )
}
# Other spellings of template names: Alpaca-LoRA's file names, and the publisher's. In its
# scripts Alpaca-LoRA's own file "alpaca" is "alpaca-lora" here, see scripts/conversions.py.
ALIASES = {
    "alpaca_legacy": "alpaca",
    "stanford": "alpaca",
    "alpaca_lora": "alpaca-lora",
    "alpaca_short": "short",
    "alpaca-short": "short",
}
CHAT = "chat"
CHAT_SOURCE = "the model's own chat template: for a base that is instruction-tuned already"


def get_template(name: str) -> Template:
    """Returns a template by name. Raises SettingsError, with the known names, for another one."""
    template = TEMPLATES.get(ALIASES.get(name, name))
    if template is None:
        raise SettingsError(f"no prompt template {name!r}; there are {', '.join(template_names())}")
    return template


def template_names() -> list[str]:
    """Returns the names of all templates: Alpaca's, chat formats, and the model's own."""
    return [*TEMPLATES, *CHAT_TEMPLATES, CHAT]


def is_chat(name: str) -> bool:
    """Returns whether a template is a chat format, whose prompt begins from messages."""
    return name == CHAT or name in CHAT_TEMPLATES


def template_source(name: str, tokenizer: Any) -> str:
    """Returns a template as the text of a Jinja chat template.

    Raises SettingsError for an unknown name, for "chat" if the tokenizer has no chat template,
    and for a chat format whose tokens it lacks.
    """
    if name == CHAT:
        check_chat(tokenizer)
        return own_source(tokenizer)
    if named := CHAT_TEMPLATES.get(name):
        check_tokens(named, tokenizer)
        return named.text
    return chat_template(name)


def describe_templates(shown: Mapping[str, str] | None = None) -> list[str]:
    """Returns a line for each template: its name, who published it, and its other names.

    ``shown``: names to be listed instead of the library's.
    """
    sources = {one.name: one.source for one in TEMPLATES.values()}
    sources |= {one.name: one.source for one in CHAT_TEMPLATES.values()}
    sources[CHAT] = CHAT_SOURCE
    lines = []
    for name, source in sources.items():
        listed = (shown or {}).get(name, name)
        others = [o for o, meant in ALIASES.items() if meant == name and "-" not in o]
        also = ", ".join(other for other in others if other != listed)
        lines.append(f"{listed:12}{source}" + (f" (also {also})" if also else ""))
    return lines


def render_prompt(example: Example, template: str = "alpaca", tokenizer: Any = None) -> str:
    """Returns the prompt of an example; template "chat" is the model's own chat format.

    "chat" and the named chat formats need the tokenizer: the chat template renders one user
    message (instruction, blank line, input) up to where the answer begins. Raises SettingsError
    for an unknown template, or for one that cannot be used with the tokenizer.
    """
    if not is_chat(template):
        return get_template(template).render(example)
    source = template_source(template, tokenizer)
    form = read_format(tokenizer, source=None if template == CHAT else source)
    with time_limit():
        return render_asked(tokenizer, chat_messages(example, template), form, source=source)


def chat_messages(example: Example | Conversation, template: str) -> list[dict[str, str]]:
    """Returns the messages from which a published template makes a record's prompt: without the
    last answer."""
    if isinstance(example, Conversation):
        return example.question().messages()
    if is_chat(template):
        return [{"role": "user", "content": chat_content(example)}]
    asked = [{"role": "user", "content": example.instruction}]
    return [*asked, {"role": "input", "content": example.input}] if example.input else asked


def check_chat(tokenizer: Any) -> None:
    """Raises SettingsError if a tokenizer has no chat template."""
    if getattr(tokenizer, "chat_template", None) is None:
        raise SettingsError(
            f"template 'chat' needs a tokenizer with a chat template; this one has none. "
            f"Use one of {', '.join(TEMPLATES)}"
        )


def chat_template(name: str) -> str:
    """Returns a template as a Jinja chat template, which llama.cpp and transformers apply.

    Each user message is an instruction. A message of the role "input" after it is its input. The
    text of a system message stands before the next instruction, with a blank line between them:
    Alpaca's format has no place of its own for it. Each assistant message is followed by the
    end-of-sequence token. Other roles, and messages in another order, raise an exception.
    """
    template = get_template(name)
    start, end = map(_literal, template.without_input.split("{instruction}"))
    head, rest = template.with_input.split("{instruction}")
    middle, tail = map(_literal, rest.split("{input}"))
    head = _literal(head)
    return (
        "{% set ns = namespace(system='', expects_input=false) %}"
        "{% for message in messages %}"
        "{% set role, content = message['role'], message['content'] %}"
        "{% if ns.expects_input %}"
        f"{{{{ {middle} + content + {tail} }}}}{{% set ns.expects_input = false %}}"
        "{% elif role == 'system' %}"
        "{% set ns.system = ns.system + content + '\n\n' %}"
        "{% elif role == 'user' %}"
        "{% set text = ns.system + content %}{% set ns.system = '' %}"
        "{% if not loop.last and messages[loop.index]['role'] == 'input' %}"
        f"{{{{ {head} + text }}}}{{% set ns.expects_input = true %}}"
        f"{{% else %}}{{{{ {start} + text + {end} }}}}{{% endif %}}"
        "{% elif role == 'assistant' and not ns.system %}"
        "{{ content + eos_token + '\n\n' }}"
        "{% else %}{{ raise_exception('roles are: user, input after user, assistant, and system "
        "before user; not ' + role + ' here') }}{% endif %}{% endfor %}"
        "{% if ns.system %}{{ raise_exception('a system message needs a user message after it') }}"
        "{% endif %}"
    )


def _literal(text: str) -> str:
    """Returns a text as a Jinja literal."""
    return json.dumps(text, ensure_ascii=False)


# Optional parts of a generation prompt after its header, by the language of the header.
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


_TASK_FORMAT = re.compile(
    r"^(?P<indent>[ \t]*)(?P<escape>\\*)(?=#{3}[ \t]*$|(?:#{1,4}[ \t]+|>[ \t]*|[-*_]{1,3}[ \t]*)?"
    r"\(?\d{1,6}[ \t]?[.)．、）:：-][*_ \t]{0,4}"
    r"(?:Instruction|Input|Output|指令|输入|输出|輸入|輸出)[*_ \t]{0,4}(?:[:：]|$))",
    re.MULTILINE | re.IGNORECASE,
)


def escape_task_text(text: str) -> str:
    """Returns a text with a backslash before each line that the task format gives a meaning.

    Such a line is ### alone, or begins as a heading does ("4. Output:"). A line that is already
    escaped gets one backslash more, so that ``unescape_task_text`` restores any text.
    """
    return _TASK_FORMAT.sub(r"\g<indent>\\\g<escape>", text)


def unescape_task_text(text: str) -> str:
    """Returns the text that ``escape_task_text`` was given."""
    return _TASK_FORMAT.sub(lambda found: found["indent"] + found["escape"][1:], text)


def generation_prompt(
    seeds: Sequence[Example],
    header: str,
    count: int = 20,
    no_input: str = "<noinput>",
    more: Sequence[str] = (),
) -> str:
    """Returns Self-Instruct's request for new tasks, in Stanford Alpaca's format.

    The paragraphs of ``more`` come first, then the header, in which ``{count}`` is replaced, then
    the seeds as entries 1 to ``len(seeds)`` of a list of ``count`` tasks. The text ends with the
    heading of entry ``len(seeds) + 1``, which the teacher continues. A seed's line that would be
    a separator or a heading of the list is escaped with a backslash, which parsing removes.
    """
    if not seeds:
        raise ValueError("a generation prompt needs at least one seed task")
    parts = [f"{paragraph}\n\n" for paragraph in more]
    parts.append(header.replace("{count}", str(count)).rstrip() + "\n\n")
    for number, seed in enumerate(seeds, start=1):
        # As Stanford does: line breaks or a trailing colon would look like a heading.
        instruction = " ".join(seed.instruction.split()).rstrip(":")
        parts.append(
            f"###\n{number}. Instruction: {instruction}\n{number}. Input:\n"
            f"{escape_task_text(seed.input) or no_input}\n"
            f"{number}. Output:\n{escape_task_text(seed.output)}\n"
        )
    return "".join(parts) + f"###\n{len(seeds) + 1}. Instruction:"


def json_generation_prompt(
    seeds: Sequence[Example],
    header: str,
    count: int = 20,
    more: Sequence[str] = (),
    language: str = "en",
) -> str:
    """Returns the same request with the seeds as JSON, for a reply in JSON.

    ``language`` ("en" or "zh") is that of the last paragraph, which states the reply's format.
    """
    if not seeds:
        raise ValueError("a generation prompt needs at least one seed task")
    shown = [{name: getattr(seed, name) for name in FIELDS} for seed in seeds]
    last = ADDITIONS[language]["json"].replace("{new}", str(count - len(seeds)))
    head = header.replace("{count}", str(count)).rstrip()
    return "\n\n".join([*more, head, dump_json({"tasks": shown}, indent=1), last]) + "\n"


def load_header(path: str | os.PathLike[str]) -> str:
    """Returns the header of a generation prompt. Raises DataError if there is no such text."""
    try:
        return read_text(path)
    except DataError as error:
        raise DataError(f"{error} (data/prompts has examples of a prompt's header)") from None
