"""llama.cpp behind its relay: what a page, a client and a neighbour on this machine can reach."""

from __future__ import annotations

import contextlib
import http.client
import json
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest

from alpaca_lib.export.gguf import export_gguf
from alpaca_lib.models import llama_server

pytest.importorskip("xllamacpp")
CHAT = {"messages": [{"role": "user", "content": "Say hi."}], "max_tokens": 4, "temperature": 0}


@pytest.fixture(scope="module")
def file(few_tokens_folder, tmp_path_factory):
    return export_gguf(str(few_tokens_folder), tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def address(file):
    """The address of a server for everybody on this machine."""
    with llama_server.serve(file, slots=2, context=256, private=False) as address:
        yield address


def ask(address, path, body=None, **heads):
    """(status, headers, text) of a request to the server at an address."""
    client = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    data = None if body is None else json.dumps(body)
    client.request("GET" if body is None else "POST", path, data, heads)
    reply = client.getresponse()
    found = reply.status, dict(reply.getheaders()), reply.read().decode()
    client.close()
    return found


def test_what_is_open(address, file):
    for path in ("/health", "/v1/models"):
        assert ask(address, path)[0] == 200
    for path, body in (
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", {"prompt": "A", "max_tokens": 2}),
        ("/completion", {"prompt": "A", "n_predict": 2}),
        ("/tokenize", {"content": "A"}),
    ):
        status, heads, text = ask(address, path, body)
        assert status == 200, text
        assert not [name for name in heads if name.lower().startswith("access-control")]
        assert str(file.parent) not in text
    assert (
        "tiny" in ask(address, "/v1/models")[2]
        and str(file.parent) not in ask(address, "/v1/models")[2]
    )


def test_what_is_closed(address):
    for path in ("/", "/props", "/slots", "/lora-adapters", "/metrics", "/models", "/v1/../props"):
        assert ask(address, path)[0] == 404
    for path in ("/props", "/lora-adapters", "/slots/0?action=save", "/infill", "/detokenize"):
        assert ask(address, path, {})[0] == 404


def test_pages_of_other_origins_and_names_are_refused(address):
    assert ask(address, "/v1/models", Host="evil.example")[0] == 403
    for origin in ("http://evil.example", "null", "http://localhost:3000"):
        assert ask(address, "/v1/chat/completions", CHAT, Origin=origin)[0] == 403
    own = f"http://{urlsplit(address).netloc}"
    assert ask(address, "/v1/chat/completions", CHAT, Origin=own)[0] == 200


def test_echo_is_refused_and_a_long_prompt_too(address):
    status, _, text = ask(
        address, "/v1/completions", {"prompt": "A b", "echo": True, "logprobs": 1}
    )
    assert status == 400 and "echo is not supported" in text
    prompt = [{"role": "user", "content": "a" * 1_000_000}]
    status, _, text = ask(address, "/v1/chat/completions", {"messages": prompt})
    assert status == 400 and "exceeds the available context" in text
    prompt[0]["content"] = "a" * 50_000_000
    assert ask(address, "/v1/chat/completions", {"messages": prompt})[0] == 413


@pytest.mark.parametrize("field", ["n_probs", "logprobs", "top_logprobs"])
def test_the_log_probabilities_of_a_vocabulary_are_refused(address, field):
    status, _, text = ask(address, "/v1/chat/completions", CHAT | {field: 20_000})
    assert status == 400 and "at most 1000 log-probabilities" in text


def test_fifty_requests_at_once(address):
    with ThreadPoolExecutor(50) as pool:
        found = list(pool.map(lambda _: ask(address, "/v1/chat/completions", CHAT), range(50)))
    texts = {json.loads(text)["choices"][0]["message"]["content"] for _, _, text in found}
    assert [status for status, _, _ in found] == [200] * 50 and len(texts) == 1


def test_a_stream_comes_in_pieces_and_one_that_is_left_frees_its_slot(address):
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=address, api_key="none", max_retries=0) as client:
        stream = client.chat.completions.create(model="any", stream=True, **CHAT)
        assert len(list(stream)) >= 4
        long = CHAT | {"max_tokens": 200}
        for _ in range(6):
            for _ in client.chat.completions.create(
                model="any", stream=True, extra_body={"ignore_eos": True}, **long
            ):
                break
    begin = time.monotonic()
    assert ask(address, "/v1/chat/completions", CHAT)[0] == 200
    assert time.monotonic() - begin < 30


def test_a_private_server_is_found_only_by_its_address(file):
    with llama_server.serve(file, slots=1, context=256) as address:
        path = urlsplit(address).path
        assert len(path) > 20 and path.endswith("/v1")
        assert ask(address, f"{path}/models")[0] == 200
        for guess in ("/v1/models", "/health", "/", "/x" + path[2:] + "/models"):
            assert ask(address, guess)[0] == 404
        assert ask(address, f"{path}/models", Host="evil.example")[0] == 403
    with contextlib.suppress(OSError), http_connection(address) as client:
        client.request("GET", "/health")
        pytest.fail("the port is still open")


@contextlib.contextmanager
def http_connection(address):
    client = http.client.HTTPConnection(urlsplit(address).netloc, timeout=5)
    try:
        yield client
    finally:
        client.close()
