"""The page's tab "Chat": a conversation with a system message, streamed, edited and retried.

The conversation is kept on the server, per visitor, and the page gets it to show. It is shown as
text: gradio's Chatbot would render what a message has of Markdown and HTML, also with
``render_markdown=False``, so the messages are escaped here and shown by gradio.HTML. Nothing is
left out of a prompt silently: a conversation that does not fit is refused, and dropping its
oldest questions is offered.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from alpaca_lib.inference import turns
from alpaca_lib.inference.decoding import ContextError, Decoding
from alpaca_lib.inference.page_models import (
    BUSY,
    ENDED_AT_ONCE,
    PageModels,
    add_controls,
    read_decoding,
)
from alpaca_lib.optional import require
from alpaca_lib.records import Conversation

REPLACED = "the question before had no answer; this one replaced it"
NOTHING_TO_RETRY = "error: no question has been asked yet; write one"
EDITING = "Send replaces the question and all that came after it; Undo leaves it as it is"
STYLE = """
overflow-y: auto; height: 52vh; min-height: 240px; padding: 22px 12px 12px;
.turn { display: flex; flex-direction: column; margin: 0 0 14px; max-width: 85%;
  width: fit-content; }
.turn p { margin: 0; padding: 8px 12px; white-space: pre-wrap; overflow-wrap: anywhere;
  color: var(--body-text-color); border: 1px solid var(--border-color-primary);
  border-radius: var(--radius-md); background: var(--background-fill-secondary); }
.user { margin-left: auto; align-items: flex-end; }
.user p { background: var(--color-accent-soft); border-color: var(--border-color-accent-subdued); }
.editing p { outline: 2px solid var(--color-accent); }
.turn button { font-size: var(--text-xs); color: var(--body-text-color-subdued); padding: 4px 6px;
  background: none; border: none; cursor: pointer; }
.turn button:hover, .turn button:focus { text-decoration: underline; }
.none { color: var(--body-text-color-subdued); }
"""
ON_LOAD = """
let isAtEnd = true;
element.addEventListener('scroll', () => {
  isAtEnd = element.scrollHeight - element.scrollTop - element.clientHeight < 60;
});
watch('value', () => { if (isAtEnd) element.scrollTop = element.scrollHeight; });
element.addEventListener('click', event => {
  const button = event.target.closest('button[data-place]');
  if (button) trigger('edit', {place: Number(button.dataset.place)});
});
"""


@dataclass(frozen=True)
class Session:
    """What the server keeps for a visitor: the conversation that is shown, and an offer.

    ``offer``: a conversation that was too long, without its oldest questions. ``editing``: the
    place, among the turns, of the question that the next message replaces.
    """

    conversation: Conversation = turns.NOTHING
    offer: Conversation | None = None
    editing: int | None = None


Shown = tuple[Session, Any, Any, Any, Any]  # the outputs of every event, see ``_show``


def add_chat(gradio: Any, known: PageModels, start: Decoding, stream_answers: bool) -> None:
    """Adds the tab's components and events to the page that is being built."""
    names = list(known.streams)
    session = gradio.State(Session())
    with gradio.Row():
        with gradio.Column(scale=3, min_width=320):
            chat = gradio.HTML(
                to_html(turns.NOTHING),
                css_template=STYLE,
                js_on_load=ON_LOAD,
                apply_default_css=False,
                label="Conversation",
                show_label=True,
                container=True,
            )
            note = gradio.Textbox(label="Note", visible=False, interactive=False)
            drop = gradio.Button(visible=False)
            message = gradio.Textbox(
                label="Message",
                lines=1,
                max_lines=8,
                placeholder="Enter sends, Shift+Enter begins a line",
            )
            with gradio.Row():
                send = gradio.Button("Send", variant="primary", min_width=80)
                stop = gradio.Button("Stop", variant="stop", min_width=80)
                retry = gradio.Button("Retry", min_width=80)
                undo = gradio.Button("Undo", min_width=80)
                clear = gradio.Button("Clear", min_width=80)
        with gradio.Column(scale=1, min_width=260):
            system = gradio.Textbox(label="System message", lines=3, placeholder="none")
            with gradio.Group(visible=len(names) > 1):
                model = gradio.Dropdown(names, value=names[-1], label="Model")
            with gradio.Accordion("Decoding", open=False):
                controls = add_controls(gradio, start, known.longest, stream_answers)

    steps = _Steps(known)
    settings = [system, model, *controls]
    shown = [session, chat, message, note, drop]
    queued: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "chat"}
    answers = [
        gradio.on(
            [send.click, message.submit],
            steps.send,
            [session, message, *settings],
            shown,
            api_name="chat",
            **queued,
        ),
        retry.click(steps.retry, [session, *settings], shown, api_name="chat_retry", **queued),
        drop.click(steps.drop, [session, *settings], shown, api_name="chat_drop", **queued),
    ]
    stop.click(None, None, None, cancels=answers, api_visibility="private")
    # After the answer that they cancel: its last piece would be shown instead.
    cancelled = {"cancels": answers, "api_visibility": "private"}
    undo.click(None, None, None, **cancelled).then(
        steps.undo, session, shown, api_name="chat_undo", **queued
    )
    clear.click(None, None, None, **cancelled).then(
        steps.clear, None, shown, api_name="chat_clear", **queued
    )
    chat.edit(_take_event(gradio, steps), session, shown, api_visibility="private", **queued)


class _Steps:
    """What the events do; each takes the visitor's Session and yields or returns the outputs.

    ``settings``: the system message, the model's name, and the controls of decoding.
    """

    def __init__(self, known: PageModels) -> None:
        self.known = known

    def send(self, session: Session, message: str, *settings: Any) -> Iterator[Shown]:
        """Answers a new question."""
        if not message or not message.strip():
            yield _show(session, note="error: the message is empty; write one")
            return
        before = session.conversation
        if session.editing is not None:
            asked, note = turns.edit(before, session.editing, message), ""
        else:
            asked, note = turns.ask(before, message), REPLACED if turns.is_open(before) else ""
        yield from self._answer(session, asked, settings, message, note)

    def retry(self, session: Session, *settings: Any) -> Iterator[Shown]:
        """Answers the last question again."""
        if not session.conversation.turns:
            yield _show(session, note=NOTHING_TO_RETRY)
            return
        yield from self._answer(session, session.conversation.question(), settings)

    def edit(self, session: Session, place: object) -> Shown:
        """Puts an earlier question into the message field; the next message replaces it."""
        said = session.conversation.turns
        known = isinstance(place, int) and 0 <= place < len(said) and said[place].role == "user"
        if not isinstance(place, int) or not known:
            return _show(session, note="error: there is no such question")
        return _show(replace(session, editing=place), said[place].content, EDITING)

    def drop(self, session: Session, *settings: Any) -> Iterator[Shown]:
        """Answers the offered conversation, which lacks its oldest questions."""
        if session.offer is None:
            yield _show(session)
            return
        yield from self._answer(session, session.offer, settings, "")

    def undo(self, session: Session) -> Shown:
        """Takes the last question back into the message field, or ends an edit."""
        if session.editing is not None:
            return _show(replace(session, editing=None), "")
        conversation, text = turns.take_back(session.conversation)
        return _show(Session(conversation), text or None)

    def clear(self) -> Shown:
        """Starts a new conversation."""
        return _show(Session())

    def _answer(
        self,
        before: Session,
        asked: Conversation,
        settings: Sequence[Any],
        message: str | None = None,
        note: str = "",
    ) -> Iterator[Shown]:
        """Yields the outputs while a conversation is answered.

        Without an answer the conversation stays as it was ``before``, and ``message`` returns to
        its field; None leaves the field alone.
        """
        known, (system, model, *controls, streamed) = self.known, settings
        asked = replace(asked, system=system if system and system.strip() else "")
        if too_long := known.refuse_length(asked.turns[-1].content, asked.system):
            yield _show(before, note=too_long)
            return
        cleared = None if message is None else ""
        for _ in known.wait():
            yield _show(Session(asked), cleared, BUSY)
        # Stop takes effect at a yield only: yield with every piece.
        text = ""
        try:
            yield _show(Session(asked), cleared, note)
            if refusal := known.refuse_request(asked):
                yield _show(before, message, refusal)
                return
            pieces = known.stream_answer(model, asked, read_decoding(*controls))
            try:
                for text in pieces:
                    shown = turns.answered(asked, text) if text and streamed else asked
                    yield _show(Session(shown), note=note)
            finally:
                pieces.close()
            if text:
                yield _show(Session(turns.answered(asked, text)), note=note)
            else:
                yield _show(before, message, ENDED_AT_ONCE)
        except ContextError as error:
            offer = turns.without_oldest(asked, error.oldest) if error.oldest else None
            kept = replace(before, offer=offer)
            yield _show(kept, message, f"error: {error}", error.oldest)
        except Exception as error:
            said = f"error: {error or type(error).__name__}"
            if text:
                yield _show(Session(turns.answered(asked, text)), note=said)
            else:
                yield _show(before, message, said)
        finally:
            known.lock.release()


def _take_event(gradio: Any, steps: _Steps) -> Any:
    """Returns the function of the edit event; gradio knows its data by the annotation."""

    def edit(session: Session, data: Any) -> Shown:
        return steps.edit(session, getattr(data, "place", None))

    edit.__annotations__["data"] = gradio.EventData
    return edit


def to_html(conversation: Conversation, editing: int | None = None) -> str:
    """Returns a conversation's turns as HTML, in which every text is escaped."""
    if not conversation.turns:
        return '<div class="none">No question yet.</div>'
    shown = []
    for place, turn in enumerate(conversation.turns):
        marked = " editing" if place == editing else ""
        text = f'<div class="turn {turn.role}{marked}"><p>{html.escape(turn.content)}</p>'
        if turn.role == "user":
            text += f'<button type="button" data-place="{place}">Edit</button>'
        shown.append(text + "</div>")
    return "".join(shown)


def _show(session: Session, message: Any = None, note: str = "", offered: int = 0) -> Shown:
    """Returns the outputs: the conversation, the message field (None: as it is), the note, and
    the button that drops the ``offered`` oldest questions."""
    gradio = require("gradio")
    one = "oldest question and its answer"
    many = f"{offered} oldest questions and their answers"
    return (
        session,
        to_html(session.conversation, session.editing),
        gradio.skip() if message is None else message,
        gradio.update(value=note, visible=bool(note)),
        gradio.update(
            value=f"Drop the {many if offered > 1 else one}, and ask again",
            visible=bool(offered),
        ),
    )
