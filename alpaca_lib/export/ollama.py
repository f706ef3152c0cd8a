"""An Ollama Modelfile for a GGUF file: the prompts of training in Ollama's template language.

Ollama renders prompts with Go's text/template. It does not read the Jinja template of the GGUF
file: it compares it with the templates that it has, and otherwise sends the bare text. So a
model without a TEMPLATE gets prompts that it was not trained on.

The template is read from the published one by rendering conversations of known texts:

    first   question   reply   answer   next   question   generation

A message that the published template refuses stops the Go template too. What these parts cannot
render alike is refused (``go_template``), never written approximately.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from alpaca_lib.chat_format import time_limit
from alpaca_lib.errors import SettingsError
from alpaca_lib.tokenization import PromptEncoder

Messages = Sequence[dict[str, str]]
CONTEXT = 4096  # tokens, at most: Ollama takes memory for all of num_ctx
SYSTEM, USER, ANSWER, AGAIN, INPUT = "Qzxs7", "Qzxu7", "Qzxa7", "Qzxg7", "Qzxi7"
ALTERNATIVE = (
    "llama.cpp's server, LM Studio and vLLM read the Jinja template itself; or train with a "
    "template of this project"
)
HOSTILE = 'He said "{{ .Role }}" {% x %}: """\n\n```{"a": 1}``` \\n \\" </s> 日本'


@dataclass(frozen=True)
class Heads:
    """What stands before a user message: at the beginning and later, with a system message
    (None: the published template refuses it) and without one."""

    first: str
    later: str
    system_first: tuple[str, str] | None  # before and after the system message's text
    system_later: tuple[str, str] | None


@dataclass(frozen=True)
class Parts:
    """A published chat template as parts. ``input``: texts before an input and after the last."""

    heads: Heads
    reply: str
    generation: str
    input_heads: Heads | None = None  # of a user message that an input follows
    input: tuple[str, str] | None = None
    strips: bool = False  # training's template removes white space around messages

    def render(self, messages: Messages) -> str | None:
        """Returns the prompt of a conversation; None where the Go template stops."""
        text, system, first = "", "", True
        roles = [message["role"] for message in messages]
        for place, (role, message) in enumerate(zip(roles, messages, strict=True)):
            content, last = message["content"], place == len(messages) - 1
            followed = self.input is not None and roles[place + 1 : place + 2] == ["input"]
            if role == "system":
                system = content
            elif role == "user":
                heads = self.input_heads if followed and self.input_heads else self.heads
                pair = heads.system_first if first else heads.system_later
                if system and pair is None:
                    return None
                plain = heads.first if first else heads.later
                text += (pair[0] + system + pair[1] if system and pair else plain) + content
                text += self.generation if last else ""
                system, first = "", False
            elif role == "assistant":
                text += self.reply + content
            elif role == "input" and self.input and roles[place - 1 : place] == ["user"]:
                text += self.input[0] + content + (self.input[1] if last else "")
            else:
                return None
        return None if system else text

    def to_go(self) -> str:
        """Returns the parts as a template of Go's text/template, without a newline of its own."""
        user = _go_heads(self.heads)
        more = ""
        if self.input_heads and self.input_heads != self.heads:
            with_input = _go_heads(self.input_heads)
            user = f'{{{{ if eq $next "input" }}}}{with_input}{{{{ else }}}}{user}{{{{ end }}}}'
        if self.input:
            more = (
                '{{ else if and (eq .Role "input") (eq $before "user") }}'
                f"{literal(self.input[0])}{{{{ .Content }}}}{_go_last(self.input[1])}"
            )
        return (
            '{{ $first := true }}{{ $system := "" }}{{ $before := "" }}'
            "{{ range $i, $_ := .Messages }}"
            "{{ $rest := slice $.Messages $i }}{{ $last := eq (len $rest) 1 }}"
            '{{ $next := "" }}{{ if not $last }}{{ $next = (index $rest 1).Role }}{{ end }}'
            '{{ if eq .Role "system" }}{{ $system = .Content }}'
            f'{{{{ else if eq .Role "user" }}}}{user}{{{{ .Content }}}}{_go_last(self.generation)}'
            '{{ $first = false }}{{ $system = "" }}'
            f'{{{{ else if eq .Role "assistant" }}}}{literal(self.reply)}{{{{ .Content }}}}'
            f"{more}{{{{ else }}}}{_go_stop('a message of this role has no place here')}"
            "{{ end }}"
            "{{ $before = .Role }}{{ end }}"
            f"{{{{ if $system }}}}{_go_stop('a system message needs a user message after it')}"
            "{{ end }}"
        )


def read_parts(encoder: PromptEncoder) -> Parts:
    """Returns the parts of an encoder's published template. Raises SettingsError, with the
    alternative, for a template whose prompts they cannot render."""
    if encoder.sees_time:
        raise SettingsError(
            "the chat template writes the date, which Ollama's templates do not have; "
            + ALTERNATIVE
        )
    with time_limit():
        published = _Published(encoder)
        parts = published.read()
        if parts is None:
            raise SettingsError(
                "the chat template does not write a question, its answer and the next question "
                f"in turn, which is what a Modelfile's template can do; {ALTERNATIVE}"
            )
        if published.differs(parts, "A word", "two\nlines") or published.differs(parts, HOSTILE):
            raise SettingsError(
                "the chat template decides by more than the roles of the messages, which a "
                f"Modelfile's template cannot repeat; {ALTERNATIVE}"
            )
        return Parts(**{**vars(parts), "strips": published.differs(parts, " a word \n")})


def literal(text: str) -> str:
    """Returns a text for a Go template in a Modelfile.

    An opening brace begins an action, and three quotes the end of the Modelfile's value; of
    characters that Go does not call printable a Modelfile loses all but the newline.
    """
    chunks = [found[0] for found in re.finditer(r'"{2,}|.', text, re.DOTALL)]
    return "".join(
        "".join(run) if plain else f'{{{{ "{"".join(map(_escape, run))}" }}}}'
        for plain, run in itertools.groupby(chunks, _is_plain)
    )


def _is_plain(chunk: str) -> bool:
    return chunk == "\n" or (chunk.isprintable() and len(chunk) == 1 and chunk != "{")


def _escape(chunk: str) -> str:
    """Returns a character, or quotes, for a string of Go."""
    if not chunk.isprintable():
        return f"\\U{ord(chunk):08x}"
    return chunk.replace('"', '\\"')


def _go_heads(heads: Heads) -> str:
    first = _go_head(heads.first, heads.system_first)
    later = _go_head(heads.later, heads.system_later)
    return f"{{{{ if $first }}}}{first}{{{{ else }}}}{later}{{{{ end }}}}"


def _go_head(plain: str, pair: tuple[str, str] | None) -> str:
    if pair is None:
        stop = _go_stop("this model has no system message here")
        return f"{{{{ if $system }}}}{stop}{{{{ end }}}}{literal(plain)}"
    system = f"{{{{ $system }}}}{literal(pair[1])}"
    if pair[0] == plain:  # the system message begins the question
        return f"{literal(plain)}{{{{ if $system }}}}{system}{{{{ end }}}}"
    with_system = f"{{{{ if $system }}}}{literal(pair[0])}{system}"
    return f"{with_system}{{{{ else }}}}{literal(plain)}{{{{ end }}}}"


def _go_last(text: str) -> str:
    return f"{{{{ if $last }}}}{literal(text)}{{{{ end }}}}"


def _go_stop(why: str) -> str:
    """Returns an action that fails: no template has that name, and the error shows it."""
    return f'{{{{ template "{why}" . }}}}'


class _Published:
    """A published chat template: rendered, and read for its parts."""

    def __init__(self, encoder: PromptEncoder) -> None:
        self.encoder = encoder
        self.source = encoder.published_template()

    def render(self, *messages: tuple[str, str]) -> str | None:
        """Returns the prompt of messages (role, text), without the tokenizer's own prefix; None
        if the template refuses them."""
        rows = [{"role": role, "content": text} for role, text in messages]
        try:
            text = self.encoder.tokenizer.apply_chat_template(
                rows, chat_template=self.source, tokenize=False, add_generation_prompt=True
            )
        except Exception:  # a template raises what it likes, mostly jinja2's TemplateError
            return None
        # Ollama's server tokenizes the prompt as a text, and adds what the tokenizer adds.
        return str(text).removeprefix(self.encoder.prefix_text)

    def split(self, *messages: tuple[str, str]) -> list[str] | None:
        """Returns what stands around the texts of messages; None if they are not in order."""
        text, parts = self.render(*messages), []
        for _, content in messages:
            if text is None or text.count(content) != 1:
                return None
            before, text = text.split(content)
            parts.append(before)
        return None if text is None else [*parts, text]

    def read(self) -> Parts | None:
        """Returns the parts; None if the template does not have them."""
        user, answer, again = ("user", USER), ("assistant", ANSWER), ("user", AGAIN)
        turns = self.split(user, answer, again)
        heads = self.heads()
        if turns is None or heads is None:
            return None
        extra = ("input", INPUT)
        with_input = self.split(user, extra)
        continued = self.split(user, extra, answer, again)
        # A template may take every other role for the assistant's: that is no input.
        is_input = with_input is not None and continued is not None and continued[2:] == turns[1:]
        input_heads = self.heads(extra) if is_input else None
        return Parts(
            heads=heads,
            reply=turns[1],
            generation=turns[-1],
            input_heads=input_heads,
            input=(with_input[1], with_input[2]) if with_input and input_heads else None,
        )

    def heads(self, *more: tuple[str, str]) -> Heads | None:
        """Returns what stands before a user message; ``more`` follows it."""
        system, user, answer = ("system", SYSTEM), ("user", USER), ("assistant", ANSWER)
        again = ("user", AGAIN)
        plain, turns = self.split(user, *more), self.split(user, answer, again, *more)
        if plain is None or turns is None:
            return None
        first = self.split(system, user, *more)
        later = self.split(user, answer, system, again, *more)
        return Heads(
            first=plain[0],
            later=turns[2],
            system_first=(first[0], first[1]) if first else None,
            system_later=(later[2], later[3]) if later else None,
        )

    def differs(self, parts: Parts, *texts: str) -> bool:
        """Returns whether a conversation has another prompt by the parts than by the template.

        Where the parts stop and the template does not, nothing wrong is rendered.
        """
        words = itertools.cycle(texts)
        for roles in CONVERSATIONS:
            pairs = [(role, next(words)) for role in roles.split()]
            ours = parts.render([{"role": role, "content": text} for role, text in pairs])
            if ours is not None and ours != self.render(*pairs):
                return True
        return False


CONVERSATIONS = (  # roles, of which the parts and the published template make the same prompt
    "user",
    "user assistant user",
    "user assistant user assistant user",
    "system user",
    "system user assistant user assistant user",
    "user assistant system user",
    "user input",
    "system user input",
    "user input assistant user input",
    "user assistant user input assistant user",
)


def modelfile(
    gguf: str,
    encoder: PromptEncoder | None,
    context: int,
    system: str = "",
    adapter: str = "",
    remarks: Sequence[str] = (),
) -> str:
    """Returns a Modelfile for a GGUF file and, if given, a GGUF adapter (names in its folder).

    ``encoder``: of the prompts of training; None sends a prompt as it is. Raises SettingsError
    for a template or a system message that a Modelfile cannot hold.
    """
    lines = [*(f"# {remark}" for remark in remarks), f"FROM ./{gguf}"]
    lines += [f"ADAPTER ./{adapter}"] if adapter else []
    stops: list[str] = []
    template = "{{ .Prompt }}"
    if encoder is not None:
        parts = read_parts(encoder)
        template = parts.to_go()
        stops = encoder.tokenizer.convert_ids_to_tokens(sorted(encoder.stops))
        if parts.strips:
            lines.insert(0, "# Training removed white space around a message; Ollama keeps it.")
    if system:
        _check_system(system, encoder)
        lines.append(f'SYSTEM """{system}"""')
    lines.append(f'TEMPLATE """{template}"""')
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]
    lines += ["PARAMETER temperature 0", "PARAMETER repeat_penalty 1"]
    lines.append(f"PARAMETER num_ctx {min(context, CONTEXT)}")
    return "\n".join(lines) + "\n"


def _check_system(system: str, encoder: PromptEncoder | None) -> None:
    """Raises SettingsError for a system message that the Modelfile or the template cannot hold."""
    lost = [one for one in system if not (one.isprintable() or one in "\n\t")]
    if '"""' in system or lost:
        what = '"""' if '"""' in system else repr(lost[0])
        raise SettingsError(f"--system has {what}, which a Modelfile cannot hold; take it out")
    if encoder is None or read_parts(encoder).heads.system_first is None:
        raise SettingsError(
            "--system: the template of this model has no system message; leave it out"
        )
