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

_CHUNK = 1000  # conversations tokenised at once: each is there once per turn
_Part = tuple[int, int, int]  # a conversation's index, its first piece, its last piece + 1


@dataclass(frozen=True)
class EncodedConversation:
    """Token ids of a conversation up to its last answer's end, here of two answers:

    ids      [ p0, p1, a0, a1, end, p2, p3, b0, end]
    trained  [  0,  0,  1,  1,   1,  0,  0,  1,   1]
    ends     [4, 8]   places of the answers' end tokens
    stops    [5, 9]   where the conversation may be cut: after each answer
    """

    ids: list[int]
    trained: list[bool]
    ends: list[int]
    stops: list[int]
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
        self, records: Sequence[Conversation], train_on: TrainOn, numbers: Sequence[int]
    ) -> list[EncodedConversation]:
        """Returns each conversation's ids, see ``PromptEncoder.conversations``."""
        found: list[EncodedConversation] = []
        for at in range(0, len(records), _CHUNK):
            some = slice(at, at + _CHUNK)
            found += self._encode_some(records[some], train_on, numbers[some])
        return found

    def _encode_some(
        self, records: Sequence[Conversation], train_on: TrainOn, numbers: Sequence[int]
    ) -> list[EncodedConversation]:
        with time_limit(SECONDS + 0.01 * sum(len(one.turns) for one in records)):
            rendered = [
                self._render_row(one, train_on, row)
                for row, one in zip(numbers, records, strict=True)
            ]

        def encode(parts: list[_Part]) -> list[list[int]]:
            return self._encode_parts(parts, records, rendered, train_on, numbers)

        # The ids before each place, and of the whole: those before it are their beginning.
        parts = [(i, 0, n + 1) for i, one in enumerate(rendered) for n in range(len(one.pieces))]
        ids: list[list[list[int]]] = [[] for _ in records]
        for (i, _, _), row in zip(parts, encode(parts), strict=True):
            ids[i].append(self.with_prefix(row))
        joined = {i for i, rows in enumerate(ids) if any(r != rows[-1][: len(r)] for r in rows)}
        parts = [(i, n, n + 1) for i in sorted(joined) for n in range(len(rendered[i].pieces))]
        for i in joined:
            ids[i] = []
        for (i, n, _), row in zip(parts, encode(parts), strict=True):
            ids[i].append([*ids[i][-1], *row] if n else self.with_prefix(row))
        return [
            self._find_trained(rendered[i], rows, i in joined, numbers[i])
            for i, rows in enumerate(ids)
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
        self, one: Rendered, rows: list[list[int]], joined: bool, row: int
    ) -> EncodedConversation:
        """Returns what is trained in the ids; ``rows`` are the ids before each place, and all."""
        ids, places = list(rows[-1]), [len(before) for before in rows[:-1]]
        index = dict(zip(one.places, places, strict=True))
        if not self.is_closed:
            ids += self.end
        trained = [False] * len(ids)
        starts = [index[place] for place in one.answers]
        ends, stops = [], []
        for start, limit, marks in zip(starts, [*starts[1:], len(ids)], one.marks, strict=True):
            found = (i for i in range(start, limit) if self.end and ids[i] == self.end[-1])
            with by_row(row):
                if (end := next(found, None)) is None:
                    raise SettingsError(
                        "the chat template writes no end token after one of its answers; use "
                        "another template, such as 'alpaca'"
                    )
            ends.append(end)
            spans = [(index[a], index[b]) for a, b in marks] or [(start, end + 1)]
            for a, b in [*spans, (end, end + 1)]:
                trained[a:b] = [True] * (b - a)
            stops.append(max(end + 1, spans[-1][1]))
        return EncodedConversation(
            ids=ids[: stops[-1]],
            trained=trained[: stops[-1]],
            ends=ends,
            stops=stops,
            joined=joined,
        )
