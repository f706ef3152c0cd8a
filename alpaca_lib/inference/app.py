"""The page: instruction, input and decoding on one side, the answer as it grows; or two answers
of two models, one beside the other.

Gradio serves it on 127.0.0.1. What the reader types and what the model writes are
shown as text, never as HTML; so is an error.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from alpaca_lib.errors import ModelError
from alpaca_lib.inference.decoding import Decoding, Growing
from alpaca_lib.inference.safety import Policy
from alpaca_lib.optional import require
from alpaca_lib.records import Example

START = Decoding(temperature=0.1, top_p=0.75, top_k=40, max_new_tokens=128)  # Alpaca-LoRA's
BUSY = "(another answer is being written; this one is next)"
NOBODY = "(none)"
# A model's growing answer to a task: Voices.stream with its name and template filled in.
Speaker = Callable[[Example, Decoding], Growing]


def build(
    speakers: Mapping[str, Speaker],
    title: str = "Alpaca",
    start: Decoding = START,
    stream_answers: bool = True,
    room: int = 2048,
    policy: Policy | None = None,
) -> Any:
    """A gradio.Blocks page that answers with one of ``speakers``, or with two, one after the
    other.

    ``start`` is where its controls stand at first, ``room`` the longest answer. With ``policy``
    no request and no answer passes that it blocks. Raises ModelError without gradio.
    """
    if not speakers:
        raise ModelError("no model to talk to: name at least one")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    gradio = require("gradio")
    one_at_a_time = threading.Lock()
    names = list(speakers)

    def respond(
        instruction: str,
        context: str,
        who: str,
        beside: str,
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
        while not one_at_a_time.acquire(timeout=0.2):
            yield BUSY, ""
        # Between two yields there is no place to stop: yield with every piece.
        shown = ["", ""]
        try:
            yield "", ""
            decoding = Decoding(
                temperature=float(temperature),
                top_p=float(top_p),
                top_k=int(top_k),
                beams=int(beams),
                max_new_tokens=int(tokens),
            )
            example = Example(instruction, context or "")
            asked = [who, beside] if beside in speakers and beside != who else [who]
            for side, name in enumerate(asked):
                pieces = growing(speakers[name], example, decoding)
                try:
                    for shown[side] in pieces:
                        yield (shown[0], shown[1]) if streamed else (gradio.skip(), gradio.skip())
                finally:
                    pieces.close()
                shown[side] = shown[side] or "(the model ended its answer at once)"
                yield shown[0], shown[1]
        except Exception as error:
            yield f"{shown[0]}\n\nerror: {error or type(error).__name__}".strip(), shown[1]
        finally:
            one_at_a_time.release()

    def growing(speaker: Speaker, example: Example, decoding: Decoding) -> Growing:
        if policy is None:
            return speaker(example, decoding)
        return policy.guarded(
            example.instruction, example.input, lambda: speaker(example, decoding)
        )

    with gradio.Blocks(title=title, analytics_enabled=False, fill_width=True) as page:
        gradio.Textbox(title, show_label=False, interactive=False, container=False)
        with gradio.Row():
            with gradio.Column(min_width=300):
                instruction = gradio.Textbox(label="Instruction", lines=3, autofocus=True)
                context = gradio.Textbox(label="Input", lines=2, placeholder="none")
                with gradio.Group(visible=len(names) > 1):
                    who = gradio.Dropdown(names, value=names[-1], label="Model")
                    beside = gradio.Dropdown(
                        [NOBODY, *names], value=NOBODY, label="Beside it, to compare"
                    )
                with gradio.Accordion("Decoding", open=False):
                    controls = _controls(gradio, start, room, stream_answers)
                with gradio.Row():
                    ask = gradio.Button("Answer", variant="primary")
                    stop = gradio.Button("Stop", variant="stop")
            with gradio.Column(min_width=300):
                answer = gradio.Textbox(label="Answer", lines=15, buttons=["copy"])
            with gradio.Column(min_width=300, visible=False) as side:
                second = gradio.Textbox(label="Answer of the other", lines=15, buttons=["copy"])
        beside.change(
            lambda other: (gradio.update(visible=other != NOBODY), ""), beside, [side, second],
            queue=False, api_visibility="private",
        )  # fmt: skip
        event = gradio.on(
            [ask.click, instruction.submit],
            respond,
            [instruction, context, who, beside, *controls],
            [answer, second],
            api_name="answer",
            concurrency_limit=1,
        )
        stop.click(None, None, None, cancels=[event], api_visibility="private")
    return page


def _controls(gradio: Any, start: Decoding, room: int, stream_answers: bool) -> list[Any]:
    """The controls of decoding, in the order that respond() takes them."""
    return [
        gradio.Slider(
            *(0, max(2, start.temperature), start.temperature),
            step=0.05,
            label="Temperature",
            info="0: always the likeliest token",
        ),
        gradio.Slider(min(0.05, start.top_p), 1, start.top_p, step=0.05, label="Top-p"),
        gradio.Slider(0, max(200, start.top_k), start.top_k, step=1, label="Top-k", info="0: all"),
        gradio.Slider(
            *(1, max(8, start.beams), start.beams),
            step=1,
            label="Beams",
            info="above 1 there is no streaming, and Stop waits for the end",
        ),
        gradio.Slider(1, room, min(start.max_new_tokens, room), step=1, label="Max tokens"),
        gradio.Checkbox(stream_answers, label="Show the answer as it grows"),
    ]


def serve(page: Any, host: str = "127.0.0.1", port: int = 0, share: bool = False) -> None:
    """Serves a page until Ctrl-C. Port 0 is the first free one from 7860 on.

    ``host`` 0.0.0.0 opens it to the network, ``share`` to everyone with the link.
    """
    gradio = require("gradio")
    page.launch(
        server_name=host,
        server_port=port or None,
        share=share,
        footer_links=[],
        # Local fonts: the default theme would fetch Google's.
        theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
    )
