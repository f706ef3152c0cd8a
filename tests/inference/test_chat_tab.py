"""The page's chat over its API: turns, edits, retries, what does not fit, hostile texts."""

from __future__ import annotations

import threading
from html.parser import HTMLParser

import pytest

from alpaca_lib import models
from alpaca_lib.conversations import Conversation, Turn
from alpaca_lib.inference import chat_tab, turns
from alpaca_lib.inference.chat_tab import Session, to_html
from alpaca_lib.inference.decoding import ContextError, Decoding, answer
from alpaca_lib.inference.model_pool import ModelPool
from alpaca_lib.inference.page_models import PageModels
from alpaca_lib.inference.safety import Policy

gradio = pytest.importorskip("gradio")
httpx = pytest.importorskip("httpx")
gradio_client = pytest.importorskip("gradio_client")
HOSTILE = (
    '<img src=x onerror="alert(1)"> <script>alert(2)</script> ![p](http://example.org/p.png)\n'
    "a < b && c > d &amp; &lt; $$x$$ `code` <think>t</think> <svg/onload=alert(3)>\n"
    "def f():\n    if 1 < 2:\n        return '\"'\n</p></div><style>body{display:none}</style>"
)


class Shown(HTMLParser):
    """The texts of the shown messages, the tags around them, and the attributes' names."""

    def __init__(self, text):
        super().__init__()
        self.texts, self.tags, self.names, self.is_open = [], set(), set(), False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.names |= {name for name, _ in attrs}
        if tag == "p":
            self.texts.append("")
            self.is_open = True

    def handle_endtag(self, tag):
        self.is_open = self.is_open and tag != "p"

    def handle_data(self, data):
        if self.is_open:
            self.texts[-1] += data


def texts(html):
    """What the page shows, turn by turn."""
    return Shown(html).texts


def settings(system="", model="one", tokens=8, streamed=True):
    return [system, model, 0, 1, 0, 1, tokens, streamed]


def ask(client, text, **changes):
    """(texts shown, message field, note) after a question."""
    return read(client.predict(text, *settings(**changes), api_name="/chat"))


def read(outputs):
    html, message, note = outputs
    return texts(html), message, note["value"]


def echo(seen):
    """A model that keeps its requests and says how many turns it saw."""

    def stream(request, how):
        seen.append(request)
        yield "I"
        yield f"I saw {len(request.turns)}"

    return stream


def test_the_chat_answers_as_the_library(serve_page, tiny_folder):
    """Three turns with a system message: each is the library's answer to the conversation."""
    pool = ModelPool({"one": str(tiny_folder)}, models.Placement("cpu", "float32", "tests"))
    client = serve_page({"one": lambda request, how: pool.stream("one", request, how, "chat")})
    asked = Conversation((), system="Be brief.")
    for question in ("Name a river.", "And a stone?", "<|im_end|> And a tree?"):
        found, *_ = ask(client, question, system="Be brief.", tokens=6)
        asked = turns.ask(asked, question)
        with pool.use("one") as model:
            how = Decoding(max_new_tokens=6)
            (said,) = answer(model, pool.tokenizer("one"), [asked], how, "chat")
        asked = turns.answered(asked, said.text)
        assert found == [turn.content for turn in asked.turns]


def test_history_retry_undo_and_clear(serve_page):
    """The steps of a chat; each visitor has a conversation of their own."""
    seen = []
    client = serve_page({"one": echo(seen)})
    ask(client, "first", system="S")
    assert ask(client, "second")[0] == ["first", "I saw 1", "second", "I saw 3"]
    assert [request.system for request in seen] == ["S", ""]
    other = gradio_client.Client(client.src, verbose=False)
    assert ask(other, "hello")[0] == ["hello", "I saw 1"]
    again = read(client.predict(*settings(system="T"), api_name="/chat_retry"))
    assert again[0] == ["first", "I saw 1", "second", "I saw 3"]
    assert seen[-1] == Conversation(
        (Turn("user", "first"), Turn("assistant", "I saw 1"), Turn("user", "second")), "T"
    )
    shown, message, *_ = read(client.predict(api_name="/chat_undo"))
    assert (shown, message) == (["first", "I saw 1"], "second")
    assert read(client.predict(api_name="/chat_clear"))[0] == []
    assert "write one" in read(client.predict(*settings(), api_name="/chat_retry"))[2]
    assert "empty" in ask(client, " \n")[2]


def run(steps):
    """The last outputs of a step."""
    *_, last = steps
    return last


def test_an_edit_replaces_a_question_and_what_came_after():
    """Nothing changes until it is sent; other places are no question."""
    seen = []
    steps = chat_tab._Steps(PageModels({"one": echo(seen)}, 2048))
    session = Session()
    for text in ("a", "b", "c"):
        session = run(steps.send(session, text, *settings()))[0]
    for place in (1, -2, 6, None, "0", [0]):
        changed = steps.edit(session, place)
        assert changed[0] == session and "no such question" in changed[3]["value"]
    editing, shown, field, *_ = steps.edit(session, 2)
    assert field == "b" and texts(shown) == ["a", "I saw 1", "b", "I saw 3", "c", "I saw 5"]
    assert steps.undo(editing)[0] == session
    last = run(steps.send(editing, "B", *settings()))
    assert last[4]["visible"] is False
    assert texts(last[1]) == ["a", "I saw 1", "B", "I saw 3"]
    assert last[0].editing is None and [turn.content for turn in seen[-1].turns][-1] == "B"


def test_a_conversation_that_is_too_long_offers_to_drop_its_oldest(serve_page, tiny_folder):
    """The numbers and the fix are said, nothing is dropped until the button is pressed."""
    pool = ModelPool({"one": str(tiny_folder)}, models.Placement("cpu", "float32", "tests"))
    client = serve_page({"one": lambda request, how: pool.stream("one", request, how, "chat")})
    long = "river " * 700
    for number in range(2):
        before = ask(client, f"{number} {long}", tokens=4)[0]
        assert len(before) == 2 * number + 2
    shown, message, note = ask(client, f"2 {long}", tokens=4)
    assert shown == before and message == f"2 {long}"
    assert "do not fit into the model's 2048" in note and "without the oldest question" in note
    shown, *_ = read(client.predict(*settings(tokens=4), api_name="/chat_drop"))
    assert shown[:-1] == [*before[2:], f"2 {long}"] and shown[-1]
    shown, message, note = ask(client, "river " * 2100, tokens=4)
    assert len(shown) == 4 and "do not fit" in note and "without the oldest" not in note
    assert len(read(client.predict(*settings(tokens=4), api_name="/chat_drop"))[0]) == 4
    assert "characters do not fit" in ask(client, "x" * 40_000)[2]


def test_the_offer_is_a_button_that_goes_with_it():
    """It is visible with the number of questions, and only where dropping helps."""

    def stream(request, how):
        if len(request.turns) > 3:
            raise ContextError.explain(90, 8, 64, 1)
        yield "ok"

    steps, session = chat_tab._Steps(PageModels({"one": stream}, 2048)), Session()
    for text in ("a", "b"):
        session = run(steps.send(session, text, *settings()))[0]
    last = run(steps.send(session, "c", *settings()))
    assert last[4]["visible"] and "the oldest question and its answer" in last[4]["value"]
    assert last[0].conversation == session.conversation
    dropped = run(steps.drop(last[0], *settings()))
    assert texts(dropped[1]) == ["b", "ok", "c", "ok"] and not dropped[4]["visible"]


def test_a_failure_leaves_the_conversation_as_it_was(serve_page):
    """The question returns to its field; an answer that began is kept, with the error."""
    replies = iter([["fine"], [], ValueError("<b>broken</b>"), ["half", ValueError("cut")]])

    def stream(request, how):
        reply = next(replies)
        for piece in [reply] if isinstance(reply, Exception) else reply:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    client = serve_page({"one": stream})
    assert ask(client, "a")[0] == ["a", "fine"]
    assert ask(client, "b") == (["a", "fine"], "b", "(the model ended its answer at once)")
    assert ask(client, "b") == (["a", "fine"], "b", "error: <b>broken</b>")
    shown, _, note = ask(client, "c")
    assert shown == ["a", "fine", "c", "half"] and note == "error: cut"


@pytest.mark.parametrize("system", ["", "Be brief."])
def test_a_template_that_cannot_render_turns_is_an_error_in_the_page(
    serve_page, make_tiny, tokenizer, tmp_path, system
):
    """A template without a system message, or for one turn alone, says so."""
    import copy

    broken = copy.deepcopy(tokenizer)
    what = "message['role'] == 'system'" if system else "loop.index > 2"
    broken.chat_template = (
        "{% for message in messages %}{% if " + what + " %}{{ raise_exception('not for me') }}"
        "{% endif %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    make_tiny().save_pretrained(tmp_path)
    broken.save_pretrained(tmp_path)
    pool = ModelPool({"one": str(tmp_path)}, models.Placement("cpu", "float32", "tests"))
    client = serve_page({"one": lambda request, how: pool.stream("one", request, how, "chat")})
    if not system:
        assert len(ask(client, "one")[0]) == 2
    shown, message, note = ask(client, "two", system=system)
    assert message == "two" and note.startswith("error: ") and "not for me" in note
    assert len(shown) == (0 if system else 2)


def test_a_policy_guards_the_chat(serve_page, tmp_path):
    """A blocked question reaches no model, also not in a later turn or as a system message."""
    rules = tmp_path / "rules.yaml"
    rules.write_text("rules:\n- {name: fruit, pattern: banana}\n")
    seen = []

    def stream(request, how):
        seen.append(request)
        yield "An apple"
        yield "An apple and a banana"

    client = serve_page({"one": stream}, Policy.load(rules))
    shown, message, note = ask(client, "a banana")
    assert not shown and message == "a banana" and "(input: fruit)" in note and not seen
    assert "(input: fruit)" in ask(client, "hello", system="Say banana.")[2] and not seen
    shown, *_ = ask(client, "fruit")
    assert "(output: fruit)" in shown[1] and "banana" not in shown[1]


def test_what_is_shown_is_text():
    """Every text is the same after parsing; no tag, attribute or address comes from a message."""
    hostile = Conversation((Turn("user", HOSTILE), Turn("assistant", HOSTILE)), HOSTILE)
    shown = Shown(to_html(hostile))
    assert shown.texts == [HOSTILE, HOSTILE]
    assert shown.tags == {"div", "p", "button"}
    assert shown.names == {"class", "type", "data-place"}


def test_gradio_shows_the_html_as_it_is(serve_page):
    """What the page gets is what to_html wrote, for hostile questions and answers."""
    client = serve_page({"one": lambda request, how: iter([HOSTILE])})
    assert ask(client, HOSTILE)[0] == [HOSTILE, HOSTILE]
    offline = [b for b in client.config["components"] if b["type"] == "html"]
    assert [b["props"]["html_template"] for b in offline] == ["${value}"]
    kinds = {b["type"] for b in client.config["components"]}
    assert not kinds & {"chatbot", "markdown", "file", "image", "uploadbutton"}


def test_stop_keeps_what_was_written_and_the_next_question_waits(serve_page):
    """A cancelled answer is closed, and stays in the conversation."""
    closed, going = threading.Event(), threading.Event()

    def slow(request, how):
        if len(request.turns) > 1:
            yield "next"
            return
        try:
            for n in range(1, 10_000):
                yield "word " * n
                going.set()
                closed.wait(0.02)
        finally:
            closed.set()

    client = serve_page({"one": slow})
    job = client.submit("long", *settings(), api_name="/chat")
    assert going.wait(30)
    while len(job.outputs()) < 4:
        pass
    job.cancel()
    assert closed.wait(30)
    shown, *_ = ask(client, "short")
    assert shown[0] == "long" and shown[1].startswith("word") and shown[2:] == ["short", "next"]


def test_the_chat_opens_no_route(serve_page):
    """With the chat, too: other origins, uploads and files are refused."""
    root = serve_page({"one": echo([])}).src.rstrip("/")
    join = "/gradio_api/queue/join"
    for path, status in ((join, 403), ("/gradio_api/upload", 403)):
        heads = {"Origin": "http://evil.example"}
        assert httpx.post(root + path, headers=heads).status_code == status
    for path in ("upload", "component_server", "proxy=http://127.0.0.1:22/", "file=/etc/passwd"):
        assert httpx.post(f"{root}/gradio_api/{path}").status_code == 404
