"""Examples and conversations -> token ids and labels, one by one or a file at once.

A label is the token's own id where the loss counts and IGNORE (-100) where it does not.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

from alpaca_lib.chat_encoding import TrainOn
from alpaca_lib.conversation_encoding import EncodedConversation
from alpaca_lib.errors import DataError, SettingsError
from alpaca_lib.examples import chat_content
from alpaca_lib.memory import collector_paused
from alpaca_lib.records import Conversation, Example, Turn, load_records
from alpaca_lib.tokenization import PromptEncoder
from alpaca_lib.training.packing import IGNORE, Encoded, Row, count_labels, pack
from alpaca_lib.training.settings import Settings

_Item = TypeVar("_Item")
__all__ = [
    "IGNORE",
    "Data",
    "Row",
    "count_labels",
    "encode",
    "encode_all",
    "load_data",
    "pack",
    "split_examples",
]


@dataclass(frozen=True)
class Data:
    """The encoded rows of a run: examples and conversations.

    >>> data = load_data(settings, tokenizer)
    >>> share_cut = data.cut / len(data.rows)
    """

    rows: list[Encoded]  # to train on
    held_out: list[Encoded]  # to validate on; empty if the settings name none
    dropped: int  # training rows of which no answer, or no token of one, fits into max_length
    cut: int  # training rows with an answer, or a turn, that was cut at max_length
    prompt_time: str = ""  # the time that the chat template has seen; empty if it shows none
    drawn: list[int] = field(default_factory=list)  # rows of data_path that validate, from 1
    longest: int = 0  # tokens of the longest training row, uncut
    conversations: int = 0  # of the training rows
    conversations_dropped: int = 0  # of those dropped
    conversations_cut: int = 0  # of those cut: at a turn, after the last answer that fits
    turns: int = 0  # answers of the conversations that are trained on
    turns_left_out: int = 0  # answers of cut conversations that are not
    reasoning_left_out: int = 0  # answers whose reasoning is not trained on
    joined: int = 0  # conversations in which a prompt and an answer would share a token


def encode(
    record: Example | Conversation,
    tokenizer: Any,
    template: str = "alpaca",
    max_length: int = 512,
    mask_prompt: bool = True,
    add_eos: bool = True,
    train_on_turns: TrainOn = "all",
    keep_reasoning: bool = False,
) -> Encoded:
    """Returns {"input_ids", "labels"} of prompt, answer and the answer's end, equally long:

        input_ids  [  p0,   p1,   p2, a0, a1, end]
        labels     [-100, -100, -100, a0, a1, end]   with mask_prompt
        labels     [-100,   p1,   p2, a0, a1, end]   without: nothing predicts the first token

    Prompt and answer are tokenised separately, so no token spans both. The end is the token that
    the chat template writes after an answer with "chat", and the end-of-sequence token
    otherwise. An answer that is too long is cut, and has no end; a prompt that fills max_length
    leaves no answer.

    A conversation is rendered once; the labels are those of every answer and its end (or of the
    last, with train_on_turns "last"):

        input_ids  [  p0,   p1, a0, end,   p2,   p3, b0, end]
        labels     [-100, -100, a0, end, -100, -100, b0, end]

    One that is too long is cut after the last answer that fits; if none does, no token has a
    label. ``keep_reasoning``: an answer's reasoning is a part of it.

    Raises SettingsError if max_length is below 2, DataError for a text that cannot be encoded,
    and for a conversation that the template cannot render.
    """
    rows = encode_all(
        [record],
        tokenizer,
        template,
        max_length,
        mask_prompt,
        add_eos,
        train_on_turns,
        keep_reasoning,
    )
    return rows[0]


def encode_all(
    records: Sequence[Example | Conversation],
    tokenizer: Any,
    template: str = "alpaca",
    max_length: int = 512,
    mask_prompt: bool = True,
    add_eos: bool = True,
    train_on_turns: TrainOn = "all",
    keep_reasoning: bool = False,
) -> list[Encoded]:
    """Encodes each record as ``encode`` does; all texts are tokenised together, on all cores.

    An error names the row, counted from 1.
    """
    encoder = PromptEncoder(tokenizer, template, keep_reasoning=keep_reasoning)
    found = _encode(records, encoder, max_length, mask_prompt, add_eos, train_on_turns)
    return [one.row for one in found]


class _Fitted(NamedTuple):
    """An encoded row, and how much of its answers is in it."""

    row: Encoded
    kept: int  # tokens of answers and ends
    cut: bool  # an answer's last token or its end, or a turn, has no room
    length: int  # tokens, uncut
    turns: int = 0  # answers of a conversation that are trained on; 0 for an example
    turns_left_out: int = 0
    reasoning_left_out: int = 0
    is_conversation: bool = False
    joined: bool = False


@collector_paused()
def _encode(
    records: Sequence[Example | Conversation],
    encoder: PromptEncoder,
    max_length: int,
    mask_prompt: bool,
    add_eos: bool,
    train_on: TrainOn,
) -> list[_Fitted]:
    if max_length < 2:
        raise SettingsError(f"max_length {max_length}: at least 2, a token and the end token")
    found: dict[int, _Fitted] = {}
    examples, conversations = dict[int, Example](), dict[int, Conversation]()
    for number, record in enumerate(records):
        if isinstance(record, Conversation):
            if not record.is_answered:
                raise DataError(f"row {number + 1}: its last turn has no answer to train on")
            conversations[number] = record
        elif encoder.format is not None and encoder.keeps_reasoning:
            # Its prompt may open a block of reasoning, which the whole conversation closes.
            said = (Turn("user", chat_content(record)), Turn("assistant", record.output))
            conversations[number] = Conversation(said)
        else:
            examples[number] = record
    if examples:
        rows, numbers = list(examples.values()), list(examples)
        prompts, answers = encoder.prompts(rows, numbers), encoder.answers(rows, numbers)
        end = encoder.end if add_eos else []
        for number, prompt, answer in zip(numbers, prompts, answers, strict=True):
            prompt_ids = prompt[:max_length]
            complete = answer + end
            answer_ids = complete[: max_length - len(prompt_ids)]
            labels = ([IGNORE] * len(prompt_ids) if mask_prompt else list(prompt_ids)) + answer_ids
            labels[0] = IGNORE
            found[number] = _Fitted(
                row={"input_ids": prompt_ids + answer_ids, "labels": labels},
                kept=len(answer_ids),
                cut=len(answer_ids) < len(complete),
                length=len(prompt) + len(complete),
            )
    if conversations:
        talks = list(conversations.values())
        for number, talk, encoded in zip(
            conversations,
            talks,
            encoder.conversations(talks, train_on, list(conversations), max_length),
            strict=True,
        ):
            fitted = _fit_conversation(encoded, max_length, mask_prompt, add_eos)
            thoughts = sum(bool(turn.reasoning) for turn in talk.turns)
            found[number] = fitted._replace(
                is_conversation=isinstance(records[number], Conversation),
                reasoning_left_out=0 if encoder.keeps_reasoning else thoughts,
            )
    return [found[number] for number in range(len(records))]


def _fit_conversation(
    encoded: EncodedConversation, max_length: int, mask_prompt: bool, add_eos: bool
) -> _Fitted:
    """Returns a conversation, cut after the last answer that fits into ``max_length``."""
    stops = encoded.stops if add_eos else encoded.ends
    fits = [stop for stop in stops if stop <= max_length]
    size = fits[-1] if fits else 0
    ids = encoded.ids[:size] if fits else encoded.ids[:max_length]
    labels = [IGNORE] * len(ids)
    if fits:
        ends = set() if add_eos else set(encoded.ends)
        labels = [
            token if (trained or not mask_prompt) and place not in ends else IGNORE
            for place, (token, trained) in enumerate(zip(ids, encoded.trained, strict=False))
        ]
        labels[0] = IGNORE
    return _Fitted(
        row={"input_ids": ids, "labels": labels},
        kept=sum(encoded.trained[:size]),
        cut=len(fits) < encoded.answers,
        length=encoded.length if add_eos else encoded.length - 1,
        turns=len(fits),
        turns_left_out=encoded.answers - len(fits),
        joined=encoded.joined,
    )


def load_data(settings: Settings, tokenizer: Any, now: datetime | None = None) -> Data:
    """Loads and encodes the training and validation rows; those without an answer's token
    are dropped.

    ``now`` is the time that a chat template sees, by default the present one. Raises DataError
    if a file cannot be read, or if nothing is left to train or validate on.
    """
    records = load_records(settings.data_path)
    held = load_records(settings.validation_path) if settings.validation_path else []
    drawn: list[int] = []
    if settings.validation_rows >= len(records):
        raise DataError(
            f"{settings.data_path}: {len(records)} rows, of which validation_rows takes "
            f"{settings.validation_rows}; leave some to train on"
        )
    now = now or datetime.now()
    encoder = PromptEncoder(tokenizer, settings.template, now, settings.keep_reasoning)
    if settings.add_eos and not encoder.end:
        raise DataError(
            f"{settings.model}: its tokenizer has no end token, so no answer would learn to end; "
            "set its eos_token, or add_eos to false"
        )

    def encode_file(path: str, records: list[Example | Conversation]) -> list[_Fitted]:
        try:
            return _encode(
                records,
                encoder,
                settings.max_length,
                settings.mask_prompt,
                settings.add_eos,
                settings.train_on_turns,
            )
        except DataError as error:
            raise DataError(f"{path}, {error}") from None

    rows = encode_file(settings.data_path, records)
    validation = encode_file(settings.validation_path, held)
    if settings.validation_rows:
        validation, rows, drawn = split_examples(rows, settings.validation_rows, settings.seed)
    kept = [one for one in rows if one.kept and count_labels(one.row)]
    if not kept:
        raise DataError(
            f"{settings.data_path}: no row has an answer within max_length {settings.max_length}"
        )
    held_out = [one.row for one in validation if one.kept and count_labels(one.row)]
    if validation and not held_out:
        raise DataError(
            f"{settings.validation_path or settings.data_path}: no row to validate on has an "
            f"answer within max_length {settings.max_length}"
        )
    talks = [one for one in kept if one.is_conversation]
    return Data(
        rows=[one.row for one in kept],
        held_out=held_out,
        dropped=len(rows) - len(kept),
        cut=sum(one.cut for one in kept),
        prompt_time=now.isoformat() if encoder.sees_time else "",
        drawn=drawn,
        longest=max(one.length for one in rows),
        conversations=len(talks),
        conversations_dropped=sum(one.is_conversation for one in rows) - len(talks),
        conversations_cut=sum(one.cut for one in talks),
        turns=sum(one.turns for one in talks),
        turns_left_out=sum(one.turns_left_out for one in talks),
        reasoning_left_out=sum(one.reasoning_left_out for one in kept),
        joined=sum(one.joined for one in kept),
    )


def split_examples(
    examples: Sequence[_Item], held_out: int, seed: int
) -> tuple[list[_Item], list[_Item], list[int]]:
    """Returns (validation examples, training examples, row numbers of the first, from 1).

    The validation examples are drawn at random by the seed: the same at every start of a run.
    """
    drawn = sorted(random.Random(f"validation:{seed}").sample(range(len(examples)), held_out))
    chosen = set(drawn)
    rest = [example for i, example in enumerate(examples) if i not in chosen]
    return [examples[i] for i in drawn], rest, [i + 1 for i in drawn]
