"""The page over its API, with tiny models: two of them, two visitors, a burst, a policy."""

from __future__ import annotations

import threading

import pytest

from alpaca_lib import models
from alpaca_lib.errors import ModelError
from alpaca_lib.inference import app
from alpaca_lib.inference.decoding import Decoding, answer
from alpaca_lib.inference.model_pool import ModelPool
from alpaca_lib.inference.safety import Policy

gradio = pytest.importorskip("gradio")
httpx = pytest.importorskip("httpx")
gradio_client = pytest.importorskip("gradio_client")
EXACT = models.Placement("cpu", "float32", "tests")


@pytest.fixture(scope="module")
def pool(tiny_folder, make_tiny, tokenizer, tmp_path_factory):
    """Two tiny models that answer differently."""
    other = tmp_path_factory.mktemp("other")
    make_tiny(seed=7).save_pretrained(other)
    tokenizer.save_pretrained(other)
    return ModelPool({"one": str(tiny_folder), "two": str(other)}, EXACT)


@pytest.fixture
def opened(pool, serve_page):
    """A function that serves a page of this pool, and returns a client of it."""

    def open_page(streams=None, policy=None):
        def stream_of(name):
            return lambda example, how: pool.stream(name, example, how)

        streams = streams or {name: stream_of(name) for name in pool.names}
        return serve_page(streams, policy, pool.context_length)

    return open_page


def ask(client, text, who="one", other="(none)", tokens=8, top_p=1, start=None):
    """The two answers."""
    call = client.submit if start else client.predict
    return call(text, "", who, other, 0, top_p, 0, 1, tokens, True, api_name="/answer")


def expected(pool, name, example, tokens=8):
    """Returns what a model answers without the page."""
    with pool.use(name) as model:
        how = Decoding(max_new_tokens=tokens)
        return answer(model, pool.tokenizer(name), [example], how)[0].text


def test_one_or_two_answers(opened, pool, some_examples):
    """One model, and two side by side, answer as the library does."""
    client, example = opened(), some_examples[2]
    assert not example.input
    one, two = (expected(pool, name, example) for name in ("one", "two"))
    assert one != two
    assert ask(client, example.instruction) == (one, "")
    assert ask(client, example.instruction, "two") == (two, "")
    assert ask(client, example.instruction, "two", "one") == (two, one)
    assert ask(client, example.instruction, "one", "one") == (one, "")


def test_a_burst_of_two_visitors(opened, pool, some_examples):
    """Twenty requests at once from two visitors: each gets its own answer."""
    plain = [e for e in some_examples if not e.input][:5]
    wanted = {e.instruction: expected(pool, "one", e) for e in plain}
    assert len(set(wanted.values())) >= 3
    client = opened()
    clients = [client, gradio_client.Client(client.src, verbose=False)]
    jobs = [
        (plain[n % 5].instruction, ask(clients[n % 2], plain[n % 5].instruction, start=True))
        for n in range(20)
    ]
    for text, job in jobs:
        assert job.result(timeout=120)[0] == wanted[text]


def test_errors_and_html_are_text(opened):
    """An empty request, one that does not fit, a speaker that fails: each is said, as text."""

    def failing(example, how):
        yield "<b>half</b>"
        raise RuntimeError("<script>broken</script>")

    client = opened({"one": failing})
    assert ask(client, "  ")[0] == "error: the instruction is empty; write one"
    assert ask(client, "x")[0] == "<b>half</b>\n\nerror: <script>broken</script>"
    assert "do not fit" in ask(opened(), "x " * 2000, tokens=2000)[0]


def test_a_policy_stands_before_and_after(opened, tmp_path):
    """What the rules name reaches neither the model nor the reader."""
    rules = tmp_path / "rules.yaml"
    rules.write_text("rules:\n- {name: fruit, pattern: banana}\n")
    asked = []

    def speaker(example, how):
        asked.append(example.instruction)
        yield "An apple"
        yield "An apple and a banana"

    client = opened({"one": speaker}, Policy.load(rules))
    assert "(input: fruit)" in ask(client, "a banana")[0] and not asked
    assert "banana" not in ask(client, "fruit")[0] and asked


def test_stopping_frees_the_model(opened):
    """A cancelled answer is closed, and the next one comes."""
    closed, going = threading.Event(), threading.Event()

    def slow(example, how):
        try:
            for n in range(10_000):
                going.set()
                yield "word " * n if example.instruction == "long" else "done"
                if example.instruction != "long":
                    return
                closed.wait(0.02)
        finally:
            if example.instruction == "long":
                closed.set()

    client = opened({"one": slow})
    job = ask(client, "long", start=True)
    assert going.wait(30)
    while len(job.outputs()) < 3:
        pass
    job.cancel()
    assert closed.wait(30)
    assert ask(client, "short")[0] == "done"


def test_it_accepts_what_it_starts_with(pool):
    """Flags beyond the controls' usual ends: the page takes its own values."""
    start = Decoding(temperature=3, top_p=0.01, top_k=500, beams=10, max_new_tokens=9999)
    page = app.build({"one": lambda e, d: iter(())}, start=start, longest=100)
    sliders = [b for b in page.blocks.values() if isinstance(b, gradio.Slider)]
    assert len(sliders) == 10  # of two tabs
    for slider in sliders:
        assert slider.minimum <= slider.value <= slider.maximum


def test_a_long_request_is_refused_before_anybody_waits(opened):
    """By its characters: nothing is tokenized, and the model stays free."""
    asked = []

    def speaker(example, how):
        asked.append(example)
        yield "hi"

    page = app.build({"one": speaker}, longest=100)
    client = gradio_client.Client(app.start(page, quiet=True), verbose=False)
    try:
        says = "error: 1,601 characters do not fit into 100 tokens of context; write at most 1,600"
        assert ask(client, "x" * 1601)[0] == says and not asked
        assert ask(client, "é" * 1600)[0] == "hi"
        with pytest.raises(Exception, match="413"):
            ask(client, "x" * 50_000_000)
    finally:
        page.close()


def test_the_page_answers_its_own_origin_and_gives_out_no_file(opened, repository):
    """Other hosts and origins, uploads and files of this machine are refused."""
    root = opened({"one": lambda e, d: iter(["hi"])}).src.rstrip("/")

    def status(path, method="GET", **heads):
        return httpx.request(method, root + path, headers=heads).status_code

    assert status("/config") == status("/config", Origin=root) == 200
    assert status("/config", Host="evil.example") == 403
    for origin in ("http://evil.example", "null", "http://localhost:3000"):
        assert status("/config", Origin=origin) == 403
        assert status("/gradio_api/queue/join", "POST", Origin=origin) == 403
        preflight = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        assert status("/gradio_api/queue/join", "OPTIONS", **preflight) == 403
    for file in (repository / "README.md", "README.md", "/etc/passwd", "..%2f..%2fREADME.md"):
        for way in ("/gradio_api/file=", "/gradio_api/file/", "/static/", "/assets/", "/svelte/"):
            assert status(f"{way}{file}") >= 400, way
    assert status("/gradio_api/proxy=http://127.0.0.1:22/") == 404
    for path in (
        "upload",
        "component_server",
        "process_recording",
        "vibe-edit",
        "upload?upload_id=1",
    ):
        assert status(f"/gradio_api/{path}", "POST") == 404


def test_the_page_shows_no_absolute_path(tmp_path):
    """Of a model's folder it has the name alone."""
    folder = tmp_path / "mine"
    page = app.build({str(folder): lambda e, d: iter(())}, title=str(folder))
    assert page.title == "mine" and "'mine'" in str(page.config)
    assert str(tmp_path) not in str(page.config)
    both = {str(tmp_path / name / "same"): lambda e, d: iter(()) for name in "ab"}
    assert len([b for b in app.build(both).blocks.values() if isinstance(b, gradio.Dropdown)]) == 3


def test_no_speaker():
    """A page needs someone to talk to."""
    with pytest.raises(ModelError, match="name at least one"):
        app.build({})
