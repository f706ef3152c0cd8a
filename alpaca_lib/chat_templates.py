"""Chat templates by name: public conversation formats, for bases that have their tokens.

Each is written from the format's public definition. It is used as a model's own chat template
is, and published with the trained model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from alpaca_lib.errors import SettingsError


@dataclass(frozen=True)
class ChatTemplate:
    """A conversation format: its Jinja text, the tokens it needs, and who published it."""

    name: str
    tokens: tuple[str, ...]  # that end or begin a turn; "bos" and "eos" stand for the tokenizer's
    source: str
    text: str


# https://github.com/openai/openai-python/blob/v0.28.1/chatml.md, without a default system message
_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# tokenizer_config.json of Qwen/Qwen2.5-7B-Instruct, without its tools
_QWEN = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. "
    "You are a helpful assistant.<|im_end|>\n' }}"
    "{% endif %}" + _CHATML
)
# https://www.llama.com/docs/model-cards-and-prompt-formats/meta-llama-3/
_LLAMA_3 = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{ message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{% endif %}"
)
# https://github.com/mistralai/cookbook: concept-deep-dive/tokenization/chat_templates.md, v3 (the
# Tekken tokenizers of Nemo have no spaces in it). The text of a system message stands before the
# first question, as in v1: v3 moves it to the last one, so that the conversation before would
# change with each turn.
_MISTRAL = (
    "{{ bos_token }}{% set ns = namespace(system='') %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{% set ns.system = message['content'] + '\n\n' %}"
    "{% elif message['role'] == 'user' %}"
    "{{ '[INST] ' + ns.system + message['content'] + '[/INST]' }}{% set ns.system = '' %}"
    "{% else %}{{ ' ' + message['content'] | trim + eos_token }}{% endif %}"
    "{% endfor %}"
)
# https://ai.google.dev/gemma/docs/core/prompt-structure; a system message as in Gemma 3's
# chat_template: before the first question
_GEMMA = (
    "{{ bos_token }}{% set ns = namespace(system='') %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{% set ns.system = message['content'] + '\n\n' %}"
    "{% else %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\n' }}"
    "{{ ns.system + message['content'] | trim + '<end_of_turn>\n' }}{% set ns.system = '' %}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
_IM = ("<|im_start|>", "<|im_end|>")
_HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")

CHAT_TEMPLATES = {
    template.name: template
    for template in (
        ChatTemplate("chatml", _IM, "OpenAI's ChatML, without a default system message", _CHATML),
        ChatTemplate("llama-3", ("bos", *_HEADERS), "Meta's, of Llama 3", _LLAMA_3),
        ChatTemplate("qwen", _IM, "Qwen 2.5's: ChatML with a default system message", _QWEN),
        ChatTemplate(
            "mistral",
            ("bos", "eos", "[INST]", "[/INST]"),
            "Mistral AI's, of tokenizers v3; a system message before the first question",
            _MISTRAL,
        ),
        ChatTemplate(
            "gemma",
            ("bos", "<start_of_turn>", "<end_of_turn>"),
            "Google's, of Gemma 2 and 3; a system message before the first question",
            _GEMMA,
        ),
    )
}


def check_tokens(template: ChatTemplate, tokenizer: Any) -> None:
    """Raises SettingsError, with the names, if a tokenizer lacks tokens of a template."""
    has = {added.content for added in tokenizer.added_tokens_decoder.values()}
    has |= {name for name in ("bos", "eos") if getattr(tokenizer, f"{name}_token")}
    missing = [
        f"a {name.upper()} token" if name in ("bos", "eos") else name
        for name in template.tokens
        if name not in has
    ]
    if missing:
        usable = [one.name for one in CHAT_TEMPLATES.values() if has.issuperset(one.tokens)]
        raise SettingsError(
            f"template {template.name!r} needs {', '.join(missing)}, which this tokenizer does not "
            f"have; use {', '.join([*usable, 'alpaca'])}, or a model with this chat format"
        )
