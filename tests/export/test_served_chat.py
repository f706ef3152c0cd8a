"""Turns and a system message through the served address: the answers are PyTorch's."""

from __future__ import annotations

import json
import shutil

import pytest

from alpaca_lib.conversations import Conversation, Turn
from alpaca_lib.export.parity import post
from alpaca_lib.export.serving import serve_model
from alpaca_lib.inference import turns
from alpaca_lib.inference.decoding import Decoding, answer
from alpaca_lib.tokenization import PromptEncoder

pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")


@pytest.mark.parametrize("template", ["chat", "alpaca"])
def test_two_turns_are_answered_as_in_pytorch(
    template, tiny_folder, make_tiny, tokenizer, tmp_path
):
    """The prompt's tokens and the greedy answer, turn by turn, with a system message."""
    folder = shutil.copytree(tiny_folder, tmp_path / "trained")
    (folder / "run.json").write_text(json.dumps({"settings": {"template": template}}))
    encoder, model = PromptEncoder(tokenizer, template), make_tiny()
    talk = Conversation((), "You answer\nin one sentence.")
    with serve_model(str(folder), kind="f16", slots=1) as address:
        for question in ("Name a river.", "And a stone?  Why?"):
            talk = turns.ask(talk, question)
            body = {"messages": talk.messages(), "max_tokens": 8, "temperature": 0}
            reply = post(f"{address}/chat/completions", body)
            (said,) = answer(model, tokenizer, [talk], Decoding(max_new_tokens=8), template)
            assert reply["usage"]["prompt_tokens"] == len(encoder.prompts([talk])[0])
            assert reply["choices"][0]["message"]["content"].strip() == said.text
            talk = turns.answered(talk, said.text)
    assert [turn.role for turn in talk.turns] == ["user", "assistant"] * 2
    assert isinstance(talk.turns[0], Turn)
