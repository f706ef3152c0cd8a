"""The replay teacher through the real client: which reply, when it stops, what is refused."""

from __future__ import annotations

import json

import openai
import pytest

from alpaca_lib.errors import DataError, TeacherError
from alpaca_lib.generation import replay_teacher
from alpaca_lib.generation.teacher import open_teacher


def completion(text, finish_reason="stop"):
    """A chat completion as the API sends it."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "recorded",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": finish_reason,
            }
        ],
        "usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12},
    }


@pytest.fixture
def recorded(tmp_path):
    """A file of two replies."""
    path = tmp_path / "replies.jsonl"
    replies = [completion("first, in 20. So"), completion("second", "length")]
    path.write_text("\n".join(json.dumps(reply) for reply in replies) + "\n")
    return path


def test_reply_by_seed(recorded):
    """Request k gets reply k, with its finish reason and usage, every time."""
    with open_teacher("replay", str(recorded)) as teacher:
        ask = {"first_number": 4, "tasks": 20}
        for _ in range(2):
            second = teacher.ask("a prompt", seed=1, **ask)
            assert (second.text, second.finish_reason) == ("second", "length")
            assert (second.prompt_tokens, second.completion_tokens) == (7, 5)
        assert teacher.ask("a prompt", seed=0, **ask).text == "first, in 20. So"
        with pytest.raises(TeacherError, match="2 replies are recorded"):
            teacher.ask("a prompt", seed=2, **ask)


def test_stop_cuts_as_a_live_server(recorded):
    """What Stanford's stop sequences did: the text ends before "20." with reason stop."""
    with (
        open_teacher("replay", str(recorded)) as teacher,
        openai.OpenAI(base_url=teacher.address, api_key="any") as client,
    ):
        done = client.chat.completions.create(
            model="any", messages=[], seed=0, stop=["\n20", "20."]
        )
    assert done.choices[0].message.content == "first, in "
    assert done.choices[0].finish_reason == "stop"


def test_binds_to_loopback_only(recorded):
    """The server is on 127.0.0.1 and gone afterwards."""
    with replay_teacher.serve(replay_teacher.load_replies(recorded)) as address:
        assert address.startswith("http://127.0.0.1:")
    import urllib.request

    with pytest.raises(OSError):
        urllib.request.urlopen(f"{address}/models", timeout=2)


@pytest.mark.parametrize("line", ["{", '{"choices": []}', '{"choices": [{"message": {}}]}', "[]"])
def test_bad_file_names_the_line(tmp_path, line):
    """A line that is no reply is named."""
    path = tmp_path / "replies.jsonl"
    path.write_text(json.dumps(completion("x")) + "\n" + line + "\n")
    with pytest.raises(DataError, match="line 2"):
        replay_teacher.load_replies(path)
    with pytest.raises(DataError, match="no readable file"):
        replay_teacher.load_replies(tmp_path / "none.jsonl")
