"""The token ids of prompts and answers: one place for training, inference and export.

A text from data is text: a special token that is spelled out in it, such as ``<|im_end|>``,
becomes ordinary tokens, while those that a template writes stay what they are.

>>> encoder = PromptEncoder(tokenizer, "chat")
>>> encoder.prompts([Example("Name a colour.")]), encoder.end
([[1, 4093, 198, 5345, 253, 3160, 30, 2, 198, 1, 520, 9531, 198]], [2])
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

from alpaca_lib.chat_format import (
    ANSWER,
    QUESTION,
    SECONDS,
    read_format,
    render_turn,
    time_limit,
    write_published,
)
from alpaca_lib.errors import DataError, ModelError
from alpaca_lib.prompts import CHAT, chat_content, chat_template, check_chat, get_template
from alpaca_lib.records import Example
from alpaca_lib.token_names import any_of, rename_tokens, replace_texts

SURROGATE = re.compile("[\ud800-\udfff]")
MARKUP = re.compile(r"(?=.*\w)(?=.*[^\w\s])\S+", re.DOTALL)


class PromptEncoder:
    """Encodes prompts and answers of one template with one tokenizer.

    Fields: ``prefix`` (ids that the tokenizer puts before every text, mostly BOS or none),
    ``end`` (ids that end an answer; empty if there are none), ``control`` (token text -> id of
    those that no data may write).
    """

    def __init__(
        self, tokenizer: Any, template: str = "alpaca", now: datetime | None = None
    ) -> None:
        """Reads the template. ``now``: the time that a chat template sees.

        Raises SettingsError for an unknown template, or one that cannot be used.
        """
        self.tokenizer, self.template, self.now = tokenizer, template, now
        self.format = None
        if template == CHAT:
            check_chat(tokenizer)
            self.format = read_format(tokenizer, now)
        else:
            get_template(template)
        self.prefix = prefix_tokens(tokenizer)
        self.control = self._find_control()
        self._control_ids = frozenset(self.control.values())
        self.end = self._find_end()
        self._lead = self._find_lead()

    @property
    def stops(self) -> set[int]:
        """The ids at which generation stops: the answer's last, and the tokenizer's EOS."""
        eos = self.tokenizer.eos_token_id
        return {token for token in [*self.end[-1:], eos] if token is not None}

    @property
    def sees_time(self) -> bool:
        """Whether the template writes the date or the time."""
        return self.format is not None and "strftime_now" in json.dumps(self._source)

    @property
    def _source(self) -> str:
        """The chat template's own text: of several, the one called default."""
        source = self.tokenizer.chat_template
        return str(source["default"] if isinstance(source, dict) else source)

    def render(self, example: Example) -> str:
        """Returns the text of an example's prompt, without the tokenizer's own prefix."""
        if self.format is None:
            return get_template(self.template).render(example)
        return render_turn(self.tokenizer, chat_content(example), self.format, self.now)

    def prompts(self, examples: Sequence[Example]) -> list[list[int]]:
        """Returns the ids of each example's prompt: everything before its answer.

        BOS is there once, whether the template writes it or the tokenizer adds it. Raises
        DataError for a text that cannot be encoded, with its row (from 1).
        """
        with time_limit(SECONDS + 0.01 * len(examples)):
            texts = [self.render(example) for example in examples]
        expected = [self._own_control(bool(example.input)) for example in examples]

        def mark(row: int) -> tuple[str, list[str]]:
            example = examples[row]
            hidden, restore = self._hide(example)
            with time_limit():
                return self._mark(self.render(hidden), restore)

        found = self._encode(texts, expected, mark, examples, ("instruction", "input"))
        size = len(self.prefix)
        return [ids if ids[:size] == self.prefix else [*self.prefix, *ids] for ids in found]

    def answers(self, examples: Sequence[Example]) -> list[list[int]]:
        """Returns the ids of each example's output, without the end. Raises DataError."""
        texts = [example.output for example in examples]
        if self.format is not None and self.format.strips:
            texts = [text.strip() for text in texts]
        if self._lead:
            texts = [self._lead + text if text else text for text in texts]
        nothing: list[list[int]] = [[]] * len(texts)
        return self._encode(texts, nothing, lambda row: (texts[row], []), examples, ("output",))

    def published_template(self) -> str:
        """Returns the Jinja chat template that makes the same prompts from messages.

        It writes BOS itself where the tokenizer adds one, as chat templates are rendered to
        texts whose tokenization adds nothing.
        """
        if self.format is None:
            return write_published(chat_template(self.template), None, self.prefix_text)
        own = self._tokenize([self.render(Example(QUESTION))])[0]
        has_prefix = own[: len(self.prefix)] == self.prefix
        return write_published(
            self._source, self.format.tail, "" if has_prefix else self.prefix_text
        )

    @property
    def prefix_text(self) -> str:
        """The text of ``prefix``."""
        return "".join(self.tokenizer.convert_ids_to_tokens(self.prefix))

    def _find_control(self) -> dict[str, int]:
        """Returns text -> id of special tokens, and of markup that the chat template writes."""
        tokenizer = self.tokenizer
        source = self._source if self.format else ""
        found = {}
        for token, added in getattr(tokenizer, "added_tokens_decoder", {}).items():
            if added.special or (MARKUP.fullmatch(added.content) and added.content in source):
                found[added.content] = token
        for text, token in zip(
            tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True
        ):
            found.setdefault(str(text), token)
        return {text: token for text, token in found.items() if text and token is not None}

    def _find_end(self) -> list[int]:
        """Returns the ids from an answer's end to the first special token of the template."""
        eos = self.tokenizer.eos_token_id
        if self.format is not None:
            after = self.format.after
            joint, answer, ids = self._tokenize([ANSWER + after, ANSWER, after])
            if joint[: len(answer)] == answer:  # SentencePiece puts a space before a text alone
                ids = joint[len(answer) :]
            places = [place for place, token in enumerate(ids) if token in self._control_ids]
            if places:
                return ids[: places[0] + 1]
        return [] if eos is None else [eos]

    def _find_lead(self) -> str:
        """Returns the white space to put before an answer; none if the tokenizer adds it."""
        if self.format is None or not self.format.lead:
            return ""
        text, lead = self.render(Example(QUESTION)), self.format.lead
        texts = [text + lead + ANSWER, text, ANSWER, lead + ANSWER]
        joint, prompt, bare, led = self._tokenize(texts)
        return "" if joint == prompt + bare and joint != prompt + led else lead

    def _own_control(self, has_input: bool) -> list[int]:
        return self._own[has_input and self.format is None]

    @cached_property
    def _own(self) -> tuple[list[int], list[int]]:
        """The control tokens of a prompt without and with input, in order."""
        examples = (Example(QUESTION), Example(QUESTION, ANSWER))
        ids = self._tokenize([self.render(example) for example in examples])
        plain, with_input = ([i for i in row if i in self._control_ids] for row in ids)
        return plain, with_input

    def _encode(
        self,
        texts: list[str],
        expected: list[list[int]],
        mark: Callable[[int], tuple[str, list[str]]],
        examples: Sequence[Example],
        fields: tuple[str, ...],
    ) -> list[list[int]]:
        """Returns the ids of texts; those whose data spells a special token are encoded again."""
        try:
            rows = self._tokenize(texts)
        except ModelError as error:
            raise _explain(error, self._tokenize, texts, examples, fields) from None
        control, split = self._control_ids, getattr(self._backend, "encode_special_tokens", False)
        for row, (ids, own) in enumerate(zip(rows, expected, strict=True)):
            if not split and control.isdisjoint(ids) and not own:
                continue
            if split or [i for i in ids if i in control] != own:
                text, names = mark(row)
                data = " ".join(getattr(examples[row], field) for field in fields)
                spelled = ", ".join(sorted(set(any_of(self.control).findall(data)))) or "a name"
                where = f"row {row + 1}: its {' or '.join(fields)}"
                rows[row] = self._encode_as_text(text, names, where, spelled)
        return rows

    def _encode_as_text(self, text: str, names: list[str], where: str, spelled: str) -> list[int]:
        """Returns the ids of a text whose special tokens are those with ``names`` alone."""
        if self._backend is None:
            raise DataError(
                f"{where} spells {spelled}, a special token, and this tokenizer cannot encode it "
                "as text, as it has no tokenizer.json; take it out of the row"
            )
        ids: list[int] = self._twin.encode(text, add_special_tokens=False).ids
        if [i for i in ids if i in self._control_ids] != [self.control[name] for name in names]:
            raise DataError(
                f"{where} spells {spelled}, of which the tokenizer makes a special token also "
                "where it is text; take it out of the row"
            )
        return ids

    def _hide(self, example: Example) -> tuple[Example, dict[str, str]]:
        """Returns an example without any control token's text, and what restores the text."""
        names = {text: f"{self._nonce}h{place}h" for place, text in enumerate(self.control)}
        shown = {value: key for key, value in names.items()}
        instruction = replace_texts(names, example.instruction)
        return Example(instruction, replace_texts(names, example.input)), shown

    def _mark(self, text: str, restore: dict[str, str]) -> tuple[str, list[str]]:
        """Returns a rendered text in which the template's control tokens have the twin's names,
        with their texts in order; the hidden texts of the data are restored."""
        own = re.findall(any_of(self.control), text)
        return replace_texts(restore, replace_texts(self._names, text)), own

    @property
    def _backend(self) -> Any:
        return getattr(self.tokenizer, "backend_tokenizer", None)

    @cached_property
    def _nonce(self) -> str:
        """A text that no data contains, and that no normalizer changes."""
        return f"\U000f0000{secrets.token_hex(8)}"

    @cached_property
    def _names(self) -> dict[str, str]:
        """The names of the control tokens in the twin."""
        return {text: f"{self._nonce}t{place}t" for place, text in enumerate(self.control)}

    @cached_property
    def _twin(self) -> Any:
        """The tokenizer with other names for its control tokens: their texts are only text.

        Everything else is the same, so what it does with the texts around them is too.
        """
        names = self._names
        twin = rename_tokens(self._backend, names)
        wrong = [
            text for text, name in names.items() if twin.token_to_id(name) != self.control[text]
        ]
        if wrong:
            raise ModelError(
                f"the tokenizer has a special token {wrong[0]!r} that is in a text of the data, "
                "and it cannot be encoded as text; take it out of the data"
            )
        return twin

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        """Returns the ids of texts, special tokens included. Raises ModelError."""
        backend = self._backend
        try:
            if backend is not None and backend.truncation is None and backend.padding is None:
                # tokenizer(texts) calls this too, and then builds a dictionary per text.
                return [e.ids for e in backend.encode_batch_fast(texts, add_special_tokens=False)]
            ids: list[list[int]] = self.tokenizer(
                texts, add_special_tokens=False, return_attention_mask=False, verbose=False
            )["input_ids"]
            return ids
        except BaseException as error:
            # A panic of the tokenizers library (a pattern that backtracks for ever) is no
            # Exception.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise ModelError(f"the tokenizer cannot encode a text ({error})") from None


def prompt_ids(
    example: Example, tokenizer: Any, template: str = "alpaca", now: datetime | None = None
) -> list[int]:
    """Returns the token ids of an example's prompt; lone surrogates are replaced by "?"."""
    return PromptEncoder(tokenizer, template, now).prompts([without_surrogates(example)])[0]


def without_surrogates(example: Example) -> Example:
    """Returns an example whose instruction and input have "?" for each lone surrogate."""
    return Example(SURROGATE.sub("?", example.instruction), SURROGATE.sub("?", example.input))


def prefix_tokens(tokenizer: Any) -> list[int]:
    """Returns the ids that a tokenizer puts before every text, as LLaMA's puts BOS."""
    bare = list(tokenizer("a b", add_special_tokens=False)["input_ids"])
    full = list(tokenizer("a b")["input_ids"])
    before = next((n for n in range(len(full)) if full[n : n + len(bare)] == bare), 0)
    return full[:before]


def publish_prompts(tokenizer: Any, template: str | None, model: Any = None) -> None:
    """Gives a tokenizer the chat template of the prompts that its model was trained on, and a
    model the tokens that end its answers.

    ``apply_chat_template`` then makes the ids of training, and ``generate`` ends where training
    did. Without a template (None) it is the tokenizer's own, if there is one.
    """
    if template is None and not tokenizer.chat_template:
        return
    encoder = PromptEncoder(tokenizer, template or CHAT)
    tokenizer.chat_template = encoder.published_template()
    config = getattr(model, "generation_config", None)
    if config is not None:
        named = config.eos_token_id if isinstance(config.eos_token_id, list) else []
        named = named or ([] if config.eos_token_id is None else [config.eos_token_id])
        if new := [token for token in sorted(encoder.stops) if token not in named]:
            config.eos_token_id = [*named, *new]


def _explain(
    error: ModelError,
    tokenize: Callable[[list[str]], Any],
    texts: list[str],
    examples: Sequence[Example],
    fields: tuple[str, ...],
) -> DataError | ModelError:
    """Returns the error of the first row that cannot be encoded."""
    for row, example in enumerate(examples, start=1):
        for field in fields:
            if found := SURROGATE.search(getattr(example, field)):
                return DataError(
                    f"row {row}: its {field} has a lone surrogate (\\u{ord(found[0]):04x}), half "
                    "of a character that no tokenizer can encode; replace it"
                )
    for row, text in enumerate(texts, start=1):
        try:
            tokenize([text])
        except ModelError as reason:
            return DataError(f"row {row}: {reason}")
    return error
