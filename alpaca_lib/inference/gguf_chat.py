"""Answers conversations with a GGUF file, through llama.cpp and the file's own chat template.

What a message says is text here too: llama.cpp would make special tokens of their texts, so a
message that spells one is refused.
"""

from __future__ import annotations

import contextlib
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from alpaca_lib.errors import DataError, ModelError, SettingsError
from alpaca_lib.inference import turns
from alpaca_lib.inference.decoding import ContextError, Decoding, TextStream
from alpaca_lib.models.llama_server import serve
from alpaca_lib.records import Conversation


@contextlib.contextmanager
def open_gguf(
    file: Path, decoding: Decoding, context: int = 4096, adapters: Sequence[Path] = ()
) -> Iterator[Callable[[Conversation], TextStream]]:
    """Yields a function that streams the growing answer to a conversation.

    ``context``: tokens of a prompt and its answer. Raises SettingsError for options of decoding
    that llama.cpp gives another meaning.
    """
    if decoding.repetition_penalty != 1 or decoding.beams > 1:
        raise SettingsError(
            "repetition_penalty and beams: llama.cpp has no equal of them; use the model's folder"
        )
    with serve(file, slots=1, context=context, adapters=adapters) as address:
        yield _GgufModel(address, decoding, context).stream


class _GgufModel:
    """llama.cpp's server at an address (.../v1)."""

    def __init__(self, address: str, decoding: Decoding, context: int) -> None:
        self.root, self.decoding, self.context = address.removesuffix("/v1"), decoding, context

    def stream(self, conversation: Conversation) -> TextStream:
        """Yields the answer so far, each time it has grown. Raises ContextError."""
        self._check_texts(conversation)
        self._check_length(conversation)
        body: dict[str, Any] = {
            "messages": conversation.messages(),
            "stream": True,
            "max_tokens": self.decoding.max_new_tokens,
            "temperature": self.decoding.temperature,
            "top_p": self.decoding.top_p,
            "top_k": self.decoding.top_k,
            "min_p": 0,
        }
        if self.decoding.stop:
            body["stop"] = list(self.decoding.stop)
        if self.decoding.seed is not None:
            body["seed"] = self.decoding.seed
        text = ""
        with self._post("/v1/chat/completions", body) as reply:
            for line in reply:
                data = line.decode("utf-8").strip().removeprefix("data: ")
                if not data or data == "[DONE]":
                    continue
                event = json.loads(data)
                if "error" in event:
                    raise ModelError(f"llama.cpp: {event['error'].get('message', event['error'])}")
                for choice in event.get("choices", ()):
                    if piece := choice["delta"].get("content"):
                        text += piece
                        if text.strip():
                            yield text.strip()

    def _check_texts(self, conversation: Conversation) -> None:
        """Raises DataError for a message of which llama.cpp would make special tokens."""
        for message in conversation.messages():
            content = {"content": message["content"]}
            texts = [
                self._read("/tokenize", content | {"parse_special": parse})["tokens"]
                for parse in (True, False)
            ]
            if texts[0] != texts[1]:
                raise DataError(
                    f"a message of the {message['role']} spells a special token, and llama.cpp "
                    "would take it for one; take it out, or use the model's folder"
                )

    def _check_length(self, conversation: Conversation) -> None:
        def count(asked: Conversation) -> int:
            prompt = self._read("/apply-template", {"messages": asked.messages()})["prompt"]
            body = {"content": prompt, "parse_special": True}
            return len(self._read("/tokenize", body)["tokens"])

        most = self.context - self.decoding.max_new_tokens
        if (tokens := count(conversation)) <= most:
            return
        oldest = turns.oldest_to_drop(conversation, lambda asked: count(asked) <= most)
        raise ContextError.explain(tokens, self.decoding.max_new_tokens, self.context, oldest)

    def _read(self, path: str, body: dict[str, Any]) -> Any:
        with self._post(path, body) as reply:
            return json.loads(reply.read())

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        """Returns the open reply to a request. Raises ModelError with llama.cpp's text."""
        heads = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.root + path, json.dumps(body).encode(), heads)
        try:
            return urllib.request.urlopen(request, timeout=600)
        except urllib.error.HTTPError as error:
            said = error.read().decode("utf-8", "replace")
            with contextlib.suppress(ValueError, KeyError, TypeError):
                said = json.loads(said)["error"]["message"]
            raise ModelError(f"llama.cpp cannot answer ({said})") from None
        except OSError as error:
            raise ModelError(f"llama.cpp: no reply ({error})") from None
