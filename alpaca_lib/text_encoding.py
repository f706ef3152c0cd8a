"""Texts -> token ids, where the text of data is text: it makes no special token.

Most texts are tokenised as they are. One whose ids have other special tokens than its template
writes is rendered again, with the control tokens' texts in the data hidden, and tokenised by a
twin of the tokenizer in which these tokens have names that no data contains.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from alpaca_lib.common_starts import encode_texts
from alpaca_lib.errors import DataError, ModelError
from alpaca_lib.token_names import any_of, rename_tokens, replace_texts

SURROGATE = re.compile("[\ud800-\udfff]")
MARKUP = re.compile(r"(?=.*\w)(?=.*[^\w\s])\S+", re.DOTALL)
# The texts of a record that come from data, by their names in errors.
Parts = Mapping[str, str]


class TextEncoder:
    """Encodes texts with one tokenizer; ``control``: token text -> id of those that no data may
    write."""

    def __init__(self, tokenizer: Any, source: str = "") -> None:
        """Finds the special tokens, and the markup tokens that a chat template's text contains."""
        self.tokenizer = tokenizer
        self.control = _find_control(tokenizer, source)
        self.control_ids = frozenset(self.control.values())

    def own_control(self, texts: list[str]) -> list[list[int]]:
        """Returns the control tokens of each text, in order."""
        return [[i for i in row if i in self.control_ids] for row in self.tokenize(texts)]

    def encode(
        self,
        texts: list[str],
        expected: Sequence[list[int]],
        mark: Callable[[int], tuple[str, list[str]]],
        parts: Callable[[int], Parts],
        numbers: Sequence[int] | None = None,
    ) -> list[list[int]]:
        """Returns the ids of texts, whose control tokens are the ``expected`` ones.

        ``mark`` returns a text by its index as ``TextEncoder.mark`` does, and ``parts`` what is
        of the data in it. ``numbers``: the texts' rows in the data, from 0 (by default their
        indices). Raises DataError for a text that cannot be encoded, with its row (from 1).
        """
        numbers = range(len(texts)) if numbers is None else numbers
        try:
            rows = self.tokenize(texts)
        except ModelError as error:
            raise self._explain(error, texts, parts, numbers) from None
        control, split = self.control_ids, getattr(self._backend, "encode_special_tokens", False)
        for row, (ids, own) in enumerate(zip(rows, expected, strict=True)):
            if not split and control.isdisjoint(ids) and not own:
                continue
            if split or [i for i in ids if i in control] != own:
                text, names = mark(row)
                rows[row] = self._encode_as_text(text, names, numbers[row], parts(row))
        return rows

    def hide(self, text: str) -> str:
        """Returns a text of the data without any control token's text; ``mark`` restores it."""
        return replace_texts(self._hidden, text)

    def mark(self, text: str) -> tuple[str, list[str]]:
        """Returns a rendered text in which the template's control tokens have the twin's names,
        with their texts in order; the hidden texts of the data are restored."""
        own = re.findall(any_of(self.control), text)
        shown = {value: key for key, value in self._hidden.items()}
        return replace_texts(shown, replace_texts(self._names, text)), own

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        """Returns the ids of texts, special tokens included. Raises ModelError."""
        backend = self._backend
        try:
            if backend is not None and backend.truncation is None and backend.padding is None:
                return encode_texts(backend, texts)
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

    def _encode_as_text(self, text: str, names: list[str], row: int, parts: Parts) -> list[int]:
        """Returns the ids of a text whose special tokens are those with ``names`` alone."""
        pattern = any_of(self.control)
        spelled = ", ".join(sorted(set(pattern.findall(" ".join(parts.values()))))) or "a name"
        fields = list(parts)
        if len(fields) > 2:
            fields = [name for name, data in parts.items() if pattern.search(data)] or fields
        where = f"row {row + 1}: its {' or '.join(fields)}"
        if self._backend is None:
            raise DataError(
                f"{where} spells {spelled}, a special token, and this tokenizer cannot encode it "
                "as text, as it has no tokenizer.json; take it out of the row"
            )
        ids: list[int] = self._twin.encode(text, add_special_tokens=False).ids
        if [i for i in ids if i in self.control_ids] != [self.control[name] for name in names]:
            raise DataError(
                f"{where} spells {spelled}, of which the tokenizer makes a special token also "
                "where it is text; take it out of the row"
            )
        return ids

    def _explain(
        self,
        error: ModelError,
        texts: list[str],
        parts: Callable[[int], Parts],
        numbers: Sequence[int],
    ) -> DataError | ModelError:
        """Returns the error of the first row that cannot be encoded."""
        for place, row in enumerate(numbers):
            for field, data in parts(place).items():
                if found := SURROGATE.search(data):
                    return DataError(
                        f"row {row + 1}: its {field} has a lone surrogate "
                        f"(\\u{ord(found[0]):04x}), half of a character that no tokenizer can "
                        "encode; replace it"
                    )
        for row, text in zip(numbers, texts, strict=True):
            try:
                self.tokenize([text])
            except ModelError as reason:
                return DataError(f"row {row + 1}: {reason}")
        return error

    @property
    def _backend(self) -> Any:
        return getattr(self.tokenizer, "backend_tokenizer", None)

    @cached_property
    def _nonce(self) -> str:
        """A text that no data contains, and that no normalizer changes."""
        return f"\U000f0000{secrets.token_hex(8)}"

    @cached_property
    def _hidden(self) -> dict[str, str]:
        """What stands for the control tokens' texts in data while a template renders it."""
        return {text: f"{self._nonce}h{place}h" for place, text in enumerate(self.control)}

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


def _find_control(tokenizer: Any, source: str) -> dict[str, int]:
    """Returns text -> id of special tokens, and of markup that the chat template writes."""
    found = {}
    for token, added in getattr(tokenizer, "added_tokens_decoder", {}).items():
        if added.special or (MARKUP.fullmatch(added.content) and added.content in source):
            found[added.content] = token
    for text, token in zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True):
        found.setdefault(str(text), token)
    return {text: token for text, token in found.items() if text and token is not None}


def prefix_tokens(tokenizer: Any) -> list[int]:
    """Returns the ids that a tokenizer puts before every text, as LLaMA's puts BOS."""
    bare = list(tokenizer("a b", add_special_tokens=False)["input_ids"])
    full = list(tokenizer("a b")["input_ids"])
    before = next((n for n in range(len(full)) if full[n : n + len(bare)] == bare), 0)
    return full[:before]
