"""The web page: tasks and a chat, the controls of decoding, and the answer as it grows.

In the tab "Task" two models can answer side by side; "Chat" is in chat_tab. Gradio serves the
page on 127.0.0.1. What the reader types and what a model writes are shown as text, never as
HTML; so is an error. ``http_guard`` refuses web pages of other origins, uploads and files: the
page needs none of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from alpaca_lib import http_guard
from alpaca_lib.errors import ModelError
from alpaca_lib.inference.chat_tab import add_chat
from alpaca_lib.inference.decoding import Decoding
from alpaca_lib.inference.page_models import (
    BUSY,
    ENDED_AT_ONCE,
    PageModels,
    StreamFunction,
    add_controls,
    read_decoding,
)
from alpaca_lib.inference.safety import Policy
from alpaca_lib.optional import require
from alpaca_lib.records import Example

START = Decoding(temperature=0.1, top_p=0.75, top_k=40, max_new_tokens=128)  # Alpaca-LoRA's
NOBODY = "(none)"
MOST_WAITING = 128  # requests in the queue
# Gradio's routes for files, uploads, recordings, its run history and its code editor.
CLOSED = (
    r"/+gradio_api/+(upload|file|proxy|stream|process_recording|component_server|custom_component"
    r"|run-history|runs|vibe|undo-vibe|dev|deep_link).*|/+(monitoring|openapi\.json|svelte).*"
)


def build(
    models: Mapping[str, StreamFunction],
    title: str = "Alpaca",
    start: Decoding = START,
    stream_answers: bool = True,
    longest: int = 2048,
    policy: Policy | None = None,
) -> Any:
    """Returns a gradio.Blocks page that answers with one of the models, or with two in turn.

    ``start`` holds the initial values of the controls, ``longest`` the most tokens that an
    answer can have. ``policy`` checks each request and each answer. Raises ModelError if there
    is no model, MissingPackageError without gradio. A request of more characters than the
    context of ``longest`` tokens can hold is refused before it is tokenized.
    """
    if not models:
        raise ModelError("no model to talk to: name at least one")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    gradio = require("gradio")
    shown_names = {_shorten(name): model for name, model in models.items()}
    models = shown_names if len(shown_names) == len(models) else models
    names, title = list(models), _shorten(title)
    known = PageModels(models, longest, policy)

    def respond(  # gradio passes the values of the components in this order
        instruction: str,
        context: str,
        model: str,
        other: str,
        temperature: float,
        top_p: float,
        top_k: float,
        beams: float,
        tokens: float,
        streamed: bool,
    ) -> Iterator[tuple[Any, Any]]:
        if not instruction or not instruction.strip():
            yield "error: the instruction is empty; write one", ""
            return
        if error := known.refuse_length(instruction, context or ""):
            yield error, ""
            return
        for _ in known.wait():
            yield BUSY, ""
        # Stop takes effect at a yield only: yield with every piece.
        shown = ["", ""]
        try:
            yield "", ""
            decoding = read_decoding(temperature, top_p, top_k, beams, tokens)
            example = Example(instruction, context or "")
            asked = [model, other] if other in models and other != model else [model]
            for side, name in enumerate(asked):
                pieces = known.stream(name, example, decoding)
                try:
                    for shown[side] in pieces:
                        yield (shown[0], shown[1]) if streamed else (gradio.skip(), gradio.skip())
                finally:
                    pieces.close()
                shown[side] = shown[side] or ENDED_AT_ONCE
                yield shown[0], shown[1]
        except Exception as error:
            yield f"{shown[0]}\n\nerror: {error or type(error).__name__}".strip(), shown[1]
        finally:
            known.lock.release()

    with gradio.Blocks(title=title, analytics_enabled=False, fill_width=True) as page:
        gradio.Textbox(title, show_label=False, interactive=False, container=False)
        with gradio.Tab("Task"):
            with gradio.Row():
                with gradio.Column(min_width=300):
                    instruction = gradio.Textbox(label="Instruction", lines=3, autofocus=True)
                    context = gradio.Textbox(label="Input", lines=2, placeholder="none")
                    with gradio.Group(visible=len(names) > 1):
                        model = gradio.Dropdown(names, value=names[-1], label="Model")
                        other = gradio.Dropdown(
                            [NOBODY, *names], value=NOBODY, label="Compare with"
                        )
                    with gradio.Accordion("Decoding", open=False):
                        controls = add_controls(gradio, start, longest, stream_answers)
                    with gradio.Row():
                        ask = gradio.Button("Answer", variant="primary")
                        stop = gradio.Button("Stop", variant="stop")
                with gradio.Column(min_width=300):
                    first = gradio.Textbox(label="Answer", lines=15, buttons=["copy"])
                with gradio.Column(min_width=300, visible=False) as side:
                    second = gradio.Textbox(label="Answer of the other", lines=15, buttons=["copy"])
            other.change(
                lambda name: (gradio.update(visible=name != NOBODY), ""),
                other,
                [side, second],
                queue=False,
                api_visibility="private",
            )
            event = gradio.on(
                [ask.click, instruction.submit],
                respond,
                [instruction, context, model, other, *controls],
                [first, second],
                api_name="answer",
                concurrency_limit=1,
            )
            stop.click(None, None, None, cancels=[event], api_visibility="private")
        with gradio.Tab("Chat"):
            add_chat(gradio, known, start, stream_answers)
    page.queue(max_size=MOST_WAITING)
    page.most_bytes = (
        1 << 17
    ) + 4 * 3 * known.most  # of a request: JSON's \\uXXXX has 12 per character
    return page


def _shorten(name: str) -> str:
    """Returns a model's name for the page: of an absolute path, its last part."""
    return PurePath(name).name if PurePath(name).is_absolute() else name


def serve(page: Any, host: str = "127.0.0.1", port: int = 0, share: bool = False) -> None:
    """Serves a page until Ctrl-C. Port 0: the first free one from 7860.

    ``host`` 0.0.0.0 opens it to the network, ``share`` to everyone with the link.
    """
    start(page, host, port, share)
    page.block_thread()


def start(
    page: Any, host: str = "127.0.0.1", port: int = 0, share: bool = False, quiet: bool = False
) -> str:
    """Starts serving a page and returns its address; ``page.close()`` ends it. See ``serve``."""
    gradio = require("gradio")
    hosts = http_guard.Hosts(host)
    guard = require("starlette.middleware").Middleware(
        http_guard.Guard, hosts=hosts, most_bytes=page.most_bytes, closed=CLOSED
    )
    _, address, shared = page.launch(
        server_name=host,
        server_port=port or None,
        share=share,
        quiet=quiet,
        prevent_thread_lock=True,
        allowed_paths=[],
        max_file_size=0,
        app_kwargs={"middleware": [guard]},
        footer_links=[],
        # Local fonts: the default theme would fetch Google's.
        theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
    )
    hosts.trust(shared or "")
    # Gradio puts its CORS layer before ours, where it would answer preflights of any page.
    page.app.user_middleware.sort(key=lambda layer: layer.cls is not http_guard.Guard)
    page.app.middleware_stack = None  # it is built again with the next request
    return str(address)
