"""Ollama's Modelfile: its template makes the prompts of training, in Go and in an evaluator."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from alpaca_lib.errors import SettingsError
from alpaca_lib.export.ollama import literal, modelfile, read_parts
from alpaca_lib.prompts import CHAT, TEMPLATES
from alpaca_lib.tokenization import PromptEncoder, publish_prompts

GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set sys = messages[0].content %}"
    "{% set sys = sys + '\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set sys = '' %}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "<|im_start|>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ (sys if loop.first else '') + m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)
DEFAULT = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are \"kind\" {\\o}.<|im_end|>\n"
    "{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}</s>{% else %}"
    "{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)
OTHERS = (  # every other role is taken for the assistant's, as in many templates
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content | trim }}</s>{% endif %}{% endfor %}"
)
OWN = {
    "its own": None,
    "others-are-answers": OTHERS,
    "gemma-like": GEMMA,
    "default-system": DEFAULT,
    "mistral-like": MISTRAL,
}
WORDS = [
    "Name three colours.", "Red, \"green\", 'blue'.", "And {{ .Role }} {% if %}?", "No: \\n }} {{",
    'Say """\nhello\n""" twice', "日本 <|im_end|> [INST]", "The last `x` $y",
]  # fmt: skip
ROLES = (
    "user", "user assistant user", "user assistant user assistant user", "system user",
    "system user assistant user", "user assistant system user", "user input",
    "system user input assistant user", "user assistant user input", "user assistant",
    "tool user", "input user", "user system",
)  # fmt: skip


def conversations():
    """Conversations of many orders of roles, with hostile texts."""
    for start, roles in enumerate(ROLES):
        yield [
            {"role": role, "content": WORDS[(start + place) % len(WORDS)]}
            for place, role in enumerate(roles.split())
        ]


@pytest.fixture(scope="module")
def go(tmp_path_factory):
    """A function that renders a template with Go's own text/template, as Ollama calls it."""
    if not shutil.which("go"):
        pytest.skip("needs Go (apt-get install golang-go)")
    folder = tmp_path_factory.mktemp("go")
    (folder / "main.go").write_text(
        """package main

import (
	"encoding/json"
	"os"
	"text/template"
)

type message struct{ Role, Content string }

func main() {
	var job struct {
		Template string
		Talks    [][]*message
	}
	if err := json.NewDecoder(os.Stdin).Decode(&job); err != nil {
		panic(err)
	}
	parsed := template.Must(template.New("").Option("missingkey=zero").Parse(job.Template))
	var texts []*string
	for _, talk := range job.Talks {
		out := new(bytesBuffer)
		if err := parsed.Execute(out, map[string]any{"Messages": talk, "System": ""}); err != nil {
			texts = append(texts, nil)
		} else {
			text := string(*out)
			texts = append(texts, &text)
		}
	}
	json.NewEncoder(os.Stdout).Encode(texts)
}

type bytesBuffer []byte

func (b *bytesBuffer) Write(more []byte) (int, error) {
	*b = append(*b, more...)
	return len(more), nil
}
""",
        encoding="utf-8",
    )
    program = str(folder / "render")
    subprocess.run(["go", "build", "-o", program, "main.go"], cwd=folder, check=True)

    def render(template, talks):
        job = json.dumps({"Template": template, "Talks": talks})
        done = subprocess.run([program], input=job, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    return render


@pytest.fixture(params=[*TEMPLATES, *OWN])
def encoder(request, build_tokenizer):
    """An encoder for each template: of this project, and of a tokenizer."""
    tokenizer = build_tokenizer("byte-level", "post-processor", "<|im_end|>")
    if OWN.get(request.param):
        tokenizer.chat_template = OWN[request.param]
    return PromptEncoder(tokenizer, request.param if request.param in TEMPLATES else CHAT)


def published(encoder, messages):
    """The published template's prompt without BOS, which Ollama's server adds; None: refused."""
    tokenizer = encoder.tokenizer
    publish_prompts(tokenizer, None if encoder.template == CHAT else encoder.template)
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception:
        return None
    return text.removeprefix("<s>")


def check(encoder, render):
    """Compares all conversations; returns how many were equal, and how many refused."""
    template = template_of(modelfile("m.gguf", encoder, 4096))
    talks = list(conversations())
    equal = refused = 0
    for messages, text in zip(talks, render(template, talks), strict=True):
        if messages[-1]["role"] == "assistant":  # the answer is continued: its turn stays open
            assert text.endswith(messages[-1]["content"])
            continue
        if text is None:
            refused += 1
            continue
        assert text == published(encoder, messages), [m["role"] for m in messages]
        equal += 1
    return equal, refused


def template_of(text):
    """The template of a Modelfile, read as Ollama's parser reads it."""
    value = text.split("\nTEMPLATE ", 1)[1]
    assert value.startswith('"""')
    for place in range(3, len(value)):
        ended = value[: place + 1]
        if value[place + 1] in " \n" and len(ended) >= 6 and ended.endswith('"""'):
            break
    assert value[place + 1 :].startswith("\nPARAMETER "), "ended inside the template"
    return "".join(c for c in ended[3:-3] if c in "\n\t\r" or c.isprintable())


def test_the_prompts_of_training(encoder, evaluate):
    """Equal for all orders of roles that the published template has, or stopped; never other."""
    equal, refused = check(encoder, evaluate)
    assert equal >= 3 and refused >= 1 and equal + refused == len(ROLES) - 1
    if encoder.template != CHAT:
        assert (equal, refused) == (9, 3)  # system, input and turns; not tool, and a lone system


def test_the_same_in_go(encoder, go, evaluate):
    """Go's own text/template renders what the evaluator does."""
    assert check(encoder, go) == check(encoder, evaluate)


def test_texts_that_a_modelfile_would_lose(evaluate, request):
    """Braces, quotes, backslashes and spaces that Go does not print survive as literals."""
    text = 'a {{ b }} {%}" """ """"{"x": 1}\n\t\r\u3000\u00a0\\n \\" ▁｜\U000e0001 end"'
    written = literal(text)
    kept = "".join(c for c in written if c == "\n" or c.isprintable())
    assert kept == written and '"""' not in written
    assert evaluate(written, [[]]) == [text]
    assert request.getfixturevalue("go")(written, [[]]) == [text]


def test_the_modelfile(build_tokenizer):
    """File, system message, stop tokens and parameters, in Ollama's syntax."""
    tokenizer = build_tokenizer("byte-level", "nobody", "<|im_end|>")
    text = modelfile("my model.gguf", PromptEncoder(tokenizer, CHAT), 1000, 'Be "brief".\nAlways.')
    lines = text.splitlines()
    assert lines[0] == "FROM ./my model.gguf"
    assert '\nSYSTEM """Be "brief".\nAlways."""\nTEMPLATE """' in text
    assert lines[-5:] == [
        'PARAMETER stop "</s>"', 'PARAMETER stop "<|im_end|>"', "PARAMETER temperature 0",
        "PARAMETER repeat_penalty 1", "PARAMETER num_ctx 1000",
    ]  # fmt: skip
    bare = modelfile("base.gguf", None, 10**6, adapter="lora.gguf", remarks=["Note."])
    assert bare.startswith("# Note.\nFROM ./base.gguf\nADAPTER ./lora.gguf\n")
    assert 'TEMPLATE """{{ .Prompt }}"""' in bare and "num_ctx 4096" in bare


def test_white_space_that_only_training_removed(build_tokenizer):
    """A template that strips messages is written with a remark."""
    tokenizer = build_tokenizer("byte-level", "nobody", "<|im_end|>")
    assert not modelfile("m.gguf", PromptEncoder(tokenizer, CHAT), 9).startswith("#")
    tokenizer.chat_template = GEMMA
    text = modelfile("m.gguf", PromptEncoder(tokenizer, CHAT), 9)
    assert text.startswith("# Training removed white space around a message; Ollama keeps it.\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("{{ '<|im_start|>'", "{{ strftime_now('%d %B') + '<|im_start|>'"), "writes the date"),
        (("m['content'] }}", "m['content'] | upper }}"), "question, its answer"),
        (("m['content'] }}", "m['content'].split('.')[0] }}"), "more than the roles"),
        (
            ("m['content'] }}", "(m['content'] if not loop.first or loop.last else 'cut') }}"),
            "in t",
        ),
    ],
)
def test_templates_that_go_cannot_repeat(change, message, build_tokenizer):
    """A date, changed texts, a decision by the text: refused, with the alternative."""
    tokenizer = build_tokenizer("byte-level", "nobody", "<|im_end|>")
    tokenizer.chat_template = tokenizer.chat_template.replace(*change)
    try:
        encoder = PromptEncoder(tokenizer, CHAT)
    except SettingsError:
        return  # it cannot be trained with either
    with pytest.raises(SettingsError, match=rf"{message}.*read the Jinja template itself"):
        read_parts(encoder)


@pytest.mark.parametrize(
    ("system", "message"),
    [('Say """ often', '"""'), ("a\u00a0b", "a0"), ("Be kind.", "no system message")],
)
def test_system_messages_that_cannot_be(system, message, build_tokenizer):
    """Quotes that end it, a character that is lost, a template without a place for it."""
    tokenizer = build_tokenizer("byte-level", "nobody", "</s>")
    tokenizer.chat_template = MISTRAL
    with pytest.raises(SettingsError, match=message):
        modelfile("m.gguf", PromptEncoder(tokenizer, CHAT), 4096, system)
