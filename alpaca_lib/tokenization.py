"""The token ids of prompts and answers: one place for training, inference and export.

A text from data is text: a special token that is spelled out in it, such as ``<|im_end|>``,
becomes ordinary tokens, while those that a template writes stay what they are.

>>> encoder = PromptEncoder(tokenizer, "chat")
>>> encoder.prompts([Example("Name a colour.")]), encoder.end
([[1, 4093, 198, 5345, 253, 3160, 30, 2, 198, 1, 520, 9531, 198]], [2])
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from alpaca_lib.chat_encoding import (
    ChatRenderer,
    Record,
    TrainOn,
    by_row,
    map_texts,
    name_parts,
)
from alpaca_lib.chat_format import (
    ANSWER,
    KEPT,
    QUESTION,
    SECONDS,
    read_format,
    render_asked,
    time_limit,
    write_published,
)
from alpaca_lib.conversation_encoding import ConversationEncoder, EncodedConversation
from alpaca_lib.conversations import Conversation
from alpaca_lib.prompts import CHAT, chat_messages, get_template, is_chat, template_source
from alpaca_lib.records import Example
from alpaca_lib.text_encoding import SURROGATE, TextEncoder, prefix_tokens

__all__ = [
    "PromptEncoder",
    "prefix_tokens",
    "prompt_ids",
    "publish_prompts",
    "without_surrogates",
]


class PromptEncoder:
    """Encodes prompts and answers of one template with one tokenizer.

    Fields: ``prefix`` (ids that the tokenizer puts before every text, mostly BOS or none),
    ``end`` (ids that end an answer; empty if there are none), ``control`` (token text -> id of
    those that no data may write).
    """

    def __init__(
        self,
        tokenizer: Any,
        template: str = "alpaca",
        now: datetime | None = None,
        keep_reasoning: bool = False,
    ) -> None:
        """Reads the template.

        ``now``: the time that a chat template sees. ``keep_reasoning``: answers begin with their
        reasoning, after the template's own generation prompt; by default a block of reasoning is
        closed there. Raises SettingsError for an unknown template, or one that cannot be used.
        """
        self.tokenizer, self.template, self.now = tokenizer, template, now
        self.source = template_source(template, tokenizer)
        self.keeps_reasoning = keep_reasoning or KEPT in self.source
        self.format = None
        if is_chat(template):
            form = read_format(tokenizer, now, None if template == CHAT else self.source)
            self.format = replace(form, tail=None) if self.keeps_reasoning else form
        self.prefix = prefix_tokens(tokenizer)
        self.texts = TextEncoder(tokenizer, self.source if self.format else "")
        self.control = self.texts.control
        tail = None if self.format is None else self.format.tail
        self.chat = ChatRenderer(tokenizer, self.source, tail, now, self.keeps_reasoning)
        self.end = self._find_end()
        self._lead = self._find_lead()
        self._own: dict[object, list[int]] = {}
        self._conversations = ConversationEncoder(
            self.texts,
            self.chat,
            prefix=self.prefix,
            end=self.end,
            form=self.format,
            strips_lead=not self._lead,
        )

    @property
    def stops(self) -> set[int]:
        """The ids at which generation stops: the answer's last, and the tokenizer's EOS."""
        eos = self.tokenizer.eos_token_id
        return {token for token in [*self.end[-1:], eos] if token is not None}

    @property
    def sees_time(self) -> bool:
        """Whether the template writes the date or the time."""
        return self.format is not None and "strftime_now" in self.source

    def render(self, record: Record) -> str:
        """Returns the text of a record's prompt, without the tokenizer's own prefix."""
        if isinstance(record, Conversation):
            return self.chat.prompt(record.question())
        if self.format is None:
            return get_template(self.template).render(record)
        messages = chat_messages(record, self.template)
        return render_asked(self.tokenizer, messages, self.format, self.now, self.source)

    def prompts(
        self, records: Sequence[Record], numbers: Sequence[int] | None = None
    ) -> list[list[int]]:
        """Returns the ids of each record's prompt: everything before its answer.

        That is the last answer of a conversation whose last turn is the assistant's, and else
        the answer to its last turn. BOS is there once, whether the template writes it or the
        tokenizer adds it. ``numbers``: the records' rows in their file, from 0, for errors.
        Raises DataError for a text that cannot be encoded, or for a conversation that the
        template cannot render, with its row (from 1).
        """
        numbers = range(len(records)) if numbers is None else numbers
        asked = [one.question() if isinstance(one, Conversation) else one for one in records]
        texts, expected = [], []
        with time_limit(SECONDS + 0.01 * len(asked)):
            for row, one in zip(numbers, asked, strict=True):
                if isinstance(one, Conversation):
                    with by_row(row):
                        texts.append(self.chat.checked_prompt(one))
                else:
                    texts.append(self.render(one))
                expected.append(self._own_control(one))

        def mark(place: int) -> tuple[str, list[str]]:
            with time_limit():
                return self.texts.mark(self.render(_map(asked[place], self.texts.hide)))

        def parts(place: int) -> dict[str, str]:
            return _parts(asked[place])

        found = self.texts.encode(texts, expected, mark, parts, numbers)
        return [self._conversations.with_prefix(ids) for ids in found]

    def conversations(
        self,
        records: Sequence[Conversation],
        train_on: TrainOn = "all",
        numbers: Sequence[int] | None = None,
        limit: float = math.inf,
    ) -> list[EncodedConversation]:
        """Returns the ids of each conversation, rendered once, and which of them are trained on.

        An answer begins after the ids of its prompt, so training sees what inference sees.
        ``train_on``: "all" answers, or the "last". ``limit``: answers that begin after that many
        tokens may be left out. ``numbers`` and errors: see ``prompts``.
        """
        numbers = range(len(records)) if numbers is None else numbers
        return self._conversations.encode(records, train_on, numbers, limit)

    def answers(
        self, records: Sequence[Record], numbers: Sequence[int] | None = None
    ) -> list[list[int]]:
        """Returns the ids of each record's output, or last answer, without the end.

        A conversation whose last turn is the user's has none. See ``prompts``.
        """
        outputs = [record.output for record in records]
        texts = outputs
        if self.format is not None and self.format.strips:
            texts = [text.strip() for text in texts]
        if self._lead:
            texts = [self._lead + text if text else text for text in texts]
        nothing: list[list[int]] = [[]] * len(texts)
        return self.texts.encode(
            texts,
            nothing,
            mark=lambda row: (texts[row], []),
            parts=lambda row: {"output": outputs[row]},
            numbers=numbers,
        )

    def published_template(self) -> str:
        """Returns the Jinja chat template that makes the same prompts from messages.

        It writes BOS itself where the tokenizer adds one, as chat templates are rendered to
        texts whose tokenization adds nothing.
        """
        if self.format is None:
            return write_published(self.source, None, self.prefix_text)
        own = self.texts.tokenize([self.render(Example(QUESTION))])[0]
        has_prefix = own[: len(self.prefix)] == self.prefix
        prefix = "" if has_prefix else self.prefix_text
        return write_published(self.source, self.format.tail, prefix, self.keeps_reasoning)

    @property
    def prefix_text(self) -> str:
        """The text of ``prefix``."""
        return "".join(self.tokenizer.convert_ids_to_tokens(self.prefix))

    def _find_end(self) -> list[int]:
        """Returns the ids from an answer's end to the first special token of the template."""
        eos = self.tokenizer.eos_token_id
        if self.format is not None:
            after = self.format.after
            joint, answer, ids = self.texts.tokenize([ANSWER + after, ANSWER, after])
            if joint[: len(answer)] == answer:  # SentencePiece puts a space before a text alone
                ids = joint[len(answer) :]
            control = self.texts.control_ids
            places = [place for place, token in enumerate(ids) if token in control]
            if places:
                return ids[: places[0] + 1]
        return [] if eos is None else [eos]

    def _find_lead(self) -> str:
        """Returns the white space to put before an answer; none if the tokenizer adds it."""
        if self.format is None or not self.format.lead:
            return ""
        text, lead = self.render(Example(QUESTION)), self.format.lead
        texts = [text + lead + ANSWER, text, ANSWER, lead + ANSWER]
        joint, prompt, bare, led = self.texts.tokenize(texts)
        return "" if joint == prompt + bare and joint != prompt + led else lead

    def _own_control(self, record: Record) -> list[int]:
        """Returns the control tokens of a record's prompt that the template writes, in order."""
        if isinstance(record, Conversation):
            key: object = self.chat.shape(record)
        else:
            key = bool(record.input) and self.format is None
        if key not in self._own:
            if isinstance(record, Conversation):
                text = self.chat.skeleton(record).text
            else:
                text = self.render(Example(QUESTION, ANSWER if key else ""))
            (self._own[key],) = self.texts.own_control([text])
        return self._own[key]


def _map(record: Record, change: Callable[[str], str]) -> Record:
    """Returns a record whose prompt's texts are changed."""
    if isinstance(record, Conversation):
        return map_texts(record, change)
    return Example(change(record.instruction), change(record.input))


def _parts(record: Record) -> dict[str, str]:
    if isinstance(record, Conversation):
        return name_parts(record)
    return {"instruction": record.instruction, "input": record.input}


def prompt_ids(
    record: Record, tokenizer: Any, template: str = "alpaca", now: datetime | None = None
) -> list[int]:
    """Returns the token ids of a record's prompt; lone surrogates are replaced by "?"."""
    return PromptEncoder(tokenizer, template, now).prompts([without_surrogates(record)])[0]


def without_surrogates(record: Record) -> Record:
    """Returns a record whose prompt's texts have "?" for each lone surrogate."""
    return _map(record, lambda text: SURROGATE.sub("?", text))


def publish_prompts(
    tokenizer: Any, template: str | None, model: Any = None, keep_reasoning: bool = False
) -> None:
    """Gives a tokenizer the chat template of the prompts that its model was trained on, and a
    model the tokens that end its answers.

    ``apply_chat_template`` then makes the ids of training, and ``generate`` ends where training
    did. Without a template (None) it is the tokenizer's own, if there is one. ``keep_reasoning``:
    see PromptEncoder.
    """
    if template is None and not tokenizer.chat_template:
        return
    encoder = PromptEncoder(tokenizer, template or CHAT, keep_reasoning=keep_reasoning)
    tokenizer.chat_template = encoder.published_template()
    config = getattr(model, "generation_config", None)
    if config is not None:
        named = config.eos_token_id if isinstance(config.eos_token_id, list) else []
        named = named or ([] if config.eos_token_id is None else [config.eos_token_id])
        if new := [token for token in sorted(encoder.stops) if token not in named]:
            config.eos_token_id = [*named, *new]
