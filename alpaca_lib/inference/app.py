"""The page: instruction, input and decoding on one side, the answer as it grows.

Gradio serves it on 127.0.0.1. What the reader types and what the model writes are
shown as text, never as HTML; so is an error.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any

from alpaca_lib.embedded import need
from alpaca_lib.inference.decoding import Decoding, stream
from alpaca_lib.prompts import render_prompt
from alpaca_lib.records import Example

START = Decoding(temperature=0.1, top_p=0.75, top_k=40, max_new_tokens=128)  # Alpaca-LoRA's
BUSY = "(another answer is being written; this one is next)"


def build(
    model: Any,
    tokenizer: Any,
    title: str = "Alpaca",
    template: str = "alpaca",
    start: Decoding = START,
    stream_answers: bool = True,
) -> Any:
    """A gradio.Blocks page that answers with ``model``, one answer at a time.

    ``start`` is where its controls stand at first. Raises ModelError without gradio,
    ValueError for a template that the tokenizer cannot render.
    """
    render_prompt(Example("Hello"), template, tokenizer)
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    gradio = need("gradio")
    room = getattr(model.config, "max_position_embeddings", None) or 2048
    one_at_a_time = threading.Lock()

    def respond(
        instruction: str,
        context: str,
        temperature: float,
        top_p: float,
        top_k: float,
        beams: float,
        tokens: float,
        streamed: bool,
    ) -> Iterator[Any]:
        if not instruction or not instruction.strip():
            yield "error: the instruction is empty; write one"
            return
        while not one_at_a_time.acquire(timeout=0.2):
            yield BUSY
        # Between two yields there is no place to stop: yield with every piece.
        text = ""
        try:
            yield ""
            decoding = Decoding(
                temperature=float(temperature),
                top_p=float(top_p),
                top_k=int(top_k),
                beams=int(beams),
                max_new_tokens=int(tokens),
            )
            example = Example(instruction, context or "")
            pieces = stream(model, tokenizer, example, decoding, template)
            try:
                for text in pieces:
                    yield text if streamed else gradio.skip()
            finally:
                pieces.close()  # type: ignore[attr-defined]
            yield text or "(the model ended its answer at once)"
        except Exception as error:
            yield f"{text}\n\nerror: {error or type(error).__name__}".strip()
        finally:
            one_at_a_time.release()

    with gradio.Blocks(title=title, analytics_enabled=False) as page:
        gradio.Textbox(title, show_label=False, interactive=False, container=False)
        with gradio.Row():
            with gradio.Column():
                instruction = gradio.Textbox(label="Instruction", lines=3, autofocus=True)
                context = gradio.Textbox(label="Input", lines=2, placeholder="none")
                with gradio.Accordion("Decoding", open=False):
                    controls = [
                        gradio.Slider(
                            *(0, 2, start.temperature),
                            step=0.05,
                            label="Temperature",
                            info="0: always the likeliest token",
                        ),
                        gradio.Slider(0.05, 1, start.top_p, step=0.05, label="Top-p"),
                        gradio.Slider(0, 200, start.top_k, step=1, label="Top-k", info="0: all"),
                        gradio.Slider(
                            *(1, 8, start.beams),
                            step=1,
                            label="Beams",
                            info="above 1 there is no streaming, and Stop waits for the end",
                        ),
                        gradio.Slider(1, room, start.max_new_tokens, step=1, label="Max tokens"),
                        gradio.Checkbox(stream_answers, label="Show the answer as it grows"),
                    ]
                with gradio.Row():
                    ask = gradio.Button("Answer", variant="primary")
                    stop = gradio.Button("Stop", variant="stop")
            answer = gradio.Textbox(label="Answer", lines=12, buttons=["copy"])
        inputs = [instruction, context, *controls]
        event = gradio.on(
            [ask.click, instruction.submit],
            respond,
            inputs,
            answer,
            api_name="answer",
            concurrency_limit=1,
        )
        stop.click(None, None, None, cancels=[event], api_visibility="private")
    return page


def serve(page: Any, host: str = "127.0.0.1", port: int = 0, share: bool = False) -> None:
    """Serves a page until Ctrl-C. Port 0 is the first free one from 7860 on.

    ``host`` 0.0.0.0 opens it to the network, ``share`` to everyone with the link.
    """
    gradio = need("gradio")
    page.launch(
        server_name=host,
        server_port=port or None,
        share=share,
        footer_links=[],
        # Local fonts: the default theme would fetch Google's.
        theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
    )
