"""A completion that came as a stream of events: put together, or refused if it is cut."""

from __future__ import annotations

import json

import pytest

from alpaca_lib.errors import ReplyError
from alpaca_lib.generation.messages import ErrorReply, parse_completion

USAGE = {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}


def events(*rows, end="data: [DONE]\n\n", line="\n", before="") -> bytes:
    """The bytes of a stream with these events."""
    text = before + "".join(f"data: {json.dumps(row)}{line}{line}" for row in rows) + end
    return text.encode("utf-8")


def delta(**fields) -> dict:
    return {"choices": [{"index": 0, "delta": fields}]}


STOP = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
WHOLE = (delta(role="assistant", content=""), delta(content="雪 "), delta(content="fine"), STOP)


@pytest.mark.parametrize("line", ["\n", "\r\n"])
@pytest.mark.parametrize("before", ["", ": a comment\n\n", "event: x\nid: 3\n", "\n\n"])
def test_deltas_make_one_reply(line, before):
    reply = parse_completion(
        events(*WHOLE, {"choices": [], "usage": USAGE}, line=line, before=before)
    )
    assert (reply.text, reply.finish_reason) == ("雪 fine", "stop")
    assert (reply.prompt_tokens, reply.completion_tokens) == (9, 5)


def test_reasoning_and_other_choices_are_not_the_answer():
    other = {"choices": [{"index": 1, "delta": {"content": "another"}}]}
    thought = delta(reasoning_content="hm "), delta(reasoning="not taken twice")
    reply = parse_completion(events(*thought, other, *WHOLE, {"choices": [], "usage": USAGE}))
    assert reply.text == "雪 fine" and not reply.only_reasoning
    assert 0 < reply.reasoning_tokens < 5


def test_reasoning_alone_is_named():
    assert parse_completion(events(delta(reasoning_content="hm"), STOP)).only_reasoning


def test_text_completions_stream_too():
    rows = [{"choices": [{"index": 0, "text": part}]} for part in ("fi", "ne")]
    assert parse_completion(events(*rows)).text == "fine"


@pytest.mark.parametrize(
    "content",
    [
        events(*WHOLE[:3], end=""),  # neither [DONE] nor a finish_reason: cut
        events(*WHOLE, end="")[:-30],  # cut in the middle of an event
        events(),
        events({"choices": []}),
        events(STOP),
        b"data: what?\n\n",
        b"data: [1]\n\n",
    ],
)
def test_a_stream_without_a_complete_answer_is_no_reply(content):
    with pytest.raises(ReplyError, match="no completion in its reply"):
        parse_completion(content)


def test_an_error_in_the_middle_is_the_servers():
    error = {"error": {"message": "out of memory", "code": 503}}
    with pytest.raises(ErrorReply, match="out of memory") as caught:
        parse_completion(events(*WHOLE[:2], error))
    assert caught.value.error.status == 503
