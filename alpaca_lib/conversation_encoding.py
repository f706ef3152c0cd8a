"""Conversations -> token ids and which of them are trained on.

The ids are those of the conversation's text as one. Where the tokenizer joins the end of a prompt
with the beginning of its answer into one token, inference would never see that token: such a
conversation is tokenised in pieces instead, cut there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

from alpaca_lib.chat_encoding import ChatRenderer, Rendered, TrainOn, by_row, map_texts, name_parts
from alpaca_lib.chat_format import SECONDS, ChatFormat, time_limit
from alpaca_lib.conversations import Conversation
from alpaca_lib.errors import SettingsError
from alpaca_lib.text_encoding import TextEncoder

_CHUNK = 1000  # conversations tokenised at once
_PLACES = 4  # of a conversation, tokenised at once: each with all that is before it
_Part = tuple[int, int, int]  # a conversation's index, its first piece, its last piece + 1


@dataclass(frozen=True)
class EncodedConversation:
    """Token ids of a conversation up to its last answer's end, here of two answers:

    ids      [ p0, p1, a0, a1, end, p2, p3, b0, end]
    trained  [  0,  0,  1,  1,   1,  0,  0,  1,   1]
    ends     [4, 8]   places of the answers' end tokens
    stops    [5, 9]   where the conversation may be cut: after each answer
    answers  2        answers to train on; more than ends where some lie beyond the limit
    length   9        tokens up to the end of the last of them
    """

    ids: list[int]
    trained: list[bool]
    ends: list[int]
    stops: list[int]
    answers: int
    length: int
    joined: bool  # tokenised in pieces: the tokenizer would join a prompt's end with an answer


class ConversationEncoder:
    """Encodes conversations with a template's renderer and a tokenizer's text encoder.

    ``prefix`` are the ids before every text, ``end`` those that end an answer. ``form``: None for
    a template of texts. ``strips_lead``: the tokenizer writes the format's lead itself.
    """

    def __init__(
        self,
        texts: TextEncoder,
        chat: ChatRenderer,
        prefix: list[int],
        end: list[int],
        form: ChatFormat | None,
        strips_lead: bool,
    ) -> None:
        self.texts, self.chat, self.prefix, self.end = texts, chat, prefix, end
        self.lead = form.lead if form is not None and strips_lead else ""
        after = None if form is None else form.after
        # A template without end tokens: the tokenizer's EOS stands instead of what it writes.
        is_closed = after is None or any(text in after for text in texts.control)
        self.cut = "" if is_closed or after is None else after
        self.is_closed = is_closed
        self._own: dict[object, list[list[int]]] = {}

    def encode(
        self,
        records: Sequence[Conversation],
        train_on: TrainOn,
        numbers: Sequence[int],
        limit: float,
    ) -> list[EncodedConversation]:
        """Returns each conversation's ids, see ``PromptEncoder.conversations``."""
        found: list[EncodedConversation] = []
        for at in range(0, len(records), _CHUNK):
            some = slice(at, at + _CHUNK)
            found += self._encode_some(records[some], train_on, numbers[some], limit)
        return found

    def _encode_some(
        self,
        records: Sequence[Conversation],
        train_on: TrainOn,
        numbers: Sequence[int],
        limit: float,
    ) -> list[EncodedConversation]:
        with time_limit(SECONDS + 0.01 * sum(len(one.turns) for one in records)):
            rendered = [
                self._render_row(one, train_on, row)
                for row, one in zip(numbers, records, strict=True)
            ]

        def encode(parts: list[_Part]) -> list[list[int]]:
            return self._encode_parts(parts, records, rendered, train_on, numbers)

        whole = [
            self.with_prefix(row)
            for row in encode([(i, 0, len(one.pieces)) for i, one in enumerate(rendered)])
        ]
        # The ids before each place are a beginning of the whole. A long conversation has many
        # places: they are looked at in rounds, up to the limit.
        before: list[list[int]] = [[] for _ in records]  # number of tokens before each place
        joined, open_ones, size = set[int](), list(range(len(records))), _PLACES
        while open_ones:
            parts = [
                (i, 0, n + 1)
                for i in open_ones
                for n in range(len(before[i]), len(rendered[i].places))[:size]
            ]
            for (i, _, _), row in zip(parts, encode(parts), strict=True):
                ids = self.with_prefix(row)
                before[i].append(len(ids))
                if ids != whole[i][: len(ids)]:
                    joined.add(i)
            size *= 2
            open_ones = [
                i
                for i in open_ones
                if i not in joined
                and len(before[i]) < len(rendered[i].places)
                and before[i][-1] < limit
            ]
        parts = [(i, n, n + 1) for i in sorted(joined) for n in range(len(rendered[i].pieces))]
        for (i, n, _), row in zip(parts, encode(parts), strict=True):
            if n == 0:
                whole[i], before[i] = self.with_prefix(row), []
            else:
                before[i].append(len(whole[i]))
                whole[i] = [*whole[i], *row]
        return [
            self._find_trained(one, whole[i], before[i], i in joined, numbers[i])
            for i, one in enumerate(rendered)
        ]

    def with_prefix(self, ids: list[int]) -> list[int]:
        """Returns ids that begin with the prefix, once."""
        return ids if ids[: len(self.prefix)] == self.prefix else [*self.prefix, *ids]

    def _render(self, conversation: Conversation, train_on: TrainOn) -> Rendered:
        found = self.chat.trained(conversation, train_on)
        return replace(found, text=found.text.removesuffix(self.cut)) if self.cut else found

    def _render_row(self, conversation: Conversation, train_on: TrainOn, row: int) -> Rendered:
        with by_row(row):
            found = self._render(conversation, train_on)
            if len(found.answers) > 1 and not self.is_closed:
                raise SettingsError(
                    "the chat template writes no end token after an answer; set train_on_turns "
                    "to 'last', or use another template, such as 'alpaca'"
                )
            if len(self._own_control(conversation, train_on)) != len(found.pieces):
                raise SettingsError(
                    "the chat template marks its answers in another way than those of other "
                    "conversations; use another template, such as 'chatml'"
                )
        return found

    def _own_control(self, conversation: Conversation, train_on: TrainOn) -> list[list[int]]:
        """Returns the control tokens that the template writes in each piece."""
        key = (train_on, len(conversation.turns), *self.chat.shape(conversation))
        if key not in self._own:
            known = self.chat.skeleton(conversation, train_on)
            self._own[key] = self.texts.own_control(known.pieces)
        return self._own[key]

    def _encode_parts(
        self,
        parts: list[_Part],
        records: Sequence[Conversation],
        rendered: list[Rendered],
        train_on: TrainOn,
        numbers: Sequence[int],
    ) -> list[list[int]]:
        def cut(one: Rendered, first: int, last: int) -> str:
            text = "".join(one.pieces[first:last])
            return text.removeprefix(self.lead) if first else text

        def mark(place: int) -> tuple[str, list[str]]:
            i, first, last = parts[place]
            with time_limit():
                hidden = self._render(map_texts(records[i], self.texts.hide), train_on)
            return self.texts.mark(cut(hidden, first, last))

        texts = [cut(rendered[i], first, last) for i, first, last in parts]
        own = [self._own_control(one, train_on) for one in records]
        expected = [list(chain(*own[i][first:last])) for i, first, last in parts]
        rows = [numbers[i] for i, _, _ in parts]
        return self.texts.encode(
            texts, expected, mark, lambda place: name_parts(records[parts[place][0]]), rows
        )

    def _find_trained(
        self, one: Rendered, ids: list[int], before: list[int], joined: bool, row: int
    ) -> EncodedConversation:
        """Returns what is trained in the ids; ``before``: the number of ids before each place."""
        index = dict(zip(one.places, before, strict=False))
        ids = ids if self.is_closed else [*ids, *self.end]
        trained = [False] * len(ids)
        ends, stops = [], []
        for answer, marks, after in zip(
            one.answers, one.marks, [*one.answers[1:], len(one.text)], strict=True
        ):
            if any(place not in index for place in (answer, *chain(*marks))):
                break  # beyond the limit
            start, last = index[answer], index.get(after, len(ids))
            found = (i for i in range(start, last) if self.end and ids[i] == self.end[-1])
            with by_row(row):
                if (end := next(found, None)) is None:
                    raise SettingsError(
                        "the chat template writes no end token after one of its answers; use "
                        "another template, such as 'alpaca'"
                    )
            spans = [(index[a], index[b]) for a, b in marks] or [(start, end + 1)]
            for a, b in [*spans, (end, end + 1)]:
                trained[a:b] = [True] * (b - a)
            ends.append(end)
            stops.append(max(end + 1, spans[-1][1]))
        if len(stops) == len(one.answers):
            length = stops[-1]
        else:
            length = len(ids) - ids[::-1].index(self.end[-1])
        size = stops[-1] if stops else len(ids)
        return EncodedConversation(
            ids=ids[:size],
            trained=trained[:size],
            ends=ends,
            stops=stops,
            answers=len(one.answers),
            length=length,
            joined=joined,
        )
