"""What a teacher sends back: content in parts, reasoning, errors within status 200, usage."""

from __future__ import annotations

import gzip
import json
import os
import stat
import time
import traceback

import pytest

from alpaca_lib.errors import ReplyError, SettingsError, TeacherError
from alpaca_lib.generation import messages
from alpaca_lib.generation.budget import Price
from alpaca_lib.generation.filtering import ONLY_REASONING, parse_raw_reply
from alpaca_lib.generation.ledger import Ledger
from alpaca_lib.generation.messages import ErrorReply, RawReply, least_tokens, parse_completion
from alpaca_lib.generation.self_instruct import Limits, Settings, generate
from alpaca_lib.generation.teacher import open_teacher
from alpaca_lib.server_address import Redactor, parse_address

SETTINGS = Settings(tasks_wanted=3, seeds_per_prompt=3, tasks_per_request=3, seed=5)
HEADER = "Write {count} tasks."
TASKS = (
    " Name three uses of old rope.\n4. Input:\n<noinput>\n4. Output:\nNets.\n###\n"
    "5. Instruction: Explain how a kettle boils.\n5. Input:\n<noinput>\n5. Output:\nHeat.\n###\n"
    "6. Instruction: Compare two kinds of trees.\n6. Input:\n<noinput>\n6. Output:\nOak.\n"
)


def completion(content, usage=None, **message) -> dict:
    """A chat completion with this content."""
    message = {"role": "assistant", "content": content, **message}
    return {"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}


def run(folder, seeds, settings=SETTINGS, **limits):
    """One run with the openai teacher."""
    with open_teacher("openai", "fake-model") as teacher:
        return generate(teacher, seeds, HEADER, settings, folder, Limits(**limits))


def journaled(folder) -> list[dict]:
    """The replies of a journal."""
    lines = map(json.loads, (folder / "journal.jsonl").read_text().splitlines())
    return [line["reply"] for line in lines if "reply" in line]


# --- content ------------------------------------------------------------------------

PARTS = {
    "text": [{"type": "text", "text": "fine"}],
    "thinking first": [
        {"type": "thinking", "thinking": [{"type": "text", "text": "draft"}]},
        {"type": "text", "text": "fine"},
    ],
    "reasoning": [{"type": "reasoning", "text": "draft"}, {"type": "text", "text": "fine"}],
    "redacted": [{"type": "redacted_thinking", "data": "x"}, {"type": "text", "text": "fine"}],
    "two texts": [{"type": "text", "text": "fi"}, {"type": "output_text", "text": "ne"}],
    "plain": ["fi", {"text": "ne"}],
    "one part": {"type": "text", "text": "fine"},
}


@pytest.mark.parametrize("content", PARTS.values(), ids=PARTS)
def test_the_text_parts_are_the_text(content):
    """Parts with text are joined in order; thinking is no text."""
    assert parse_completion(completion(content)).text == "fine"
    assert parse_completion(json.dumps(completion(content)).encode()).text == "fine"


def test_a_refusal_may_be_a_part():
    """A part of type refusal is the reply's refusal."""
    reply = parse_completion(completion([{"type": "refusal", "refusal": "I won't"}]))
    assert (reply.text, reply.refusal) == ("", "I won't")


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
@pytest.mark.parametrize("content", [None, "", "\n", [], [{"type": "thinking", "thinking": "x"}]])
def test_reasoning_alone_is_named(name, content):
    """No answer, but reasoning: the reason names it, and it is never data."""
    reply = parse_completion(completion(content, **{name: "1. Instruction: a draft"}))
    parsed = parse_raw_reply(reply, 4, "text")
    assert parsed.tasks == [] and [one.reason for one in parsed.rejected] == [ONLY_REASONING]
    assert "reasoning" in ONLY_REASONING and "draft" not in reply.text


def test_hidden_reasoning_alone_is_named():
    """A server that hides its reasoning counts its tokens."""
    usage = {
        "prompt_tokens": 9,
        "completion_tokens": 50,
        "completion_tokens_details": {"reasoning_tokens": 50},
    }
    assert parse_completion(completion("", usage)).only_reasoning
    assert not parse_completion(completion("x", usage)).only_reasoning
    assert not parse_completion(completion("", None)).only_reasoning


@pytest.mark.parametrize("reason", [None, "", 5, ["stop"]])
def test_a_missing_finish_reason_is_not_taken_for_the_end(reason):
    """What is no text is "unknown", not "stop"."""
    body = completion("x")
    body["choices"][0]["finish_reason"] = reason
    assert parse_completion(body).finish_reason == "unknown"


def test_lone_surrogates_are_replaced(fake, seeds, tmp_path, make_chat):
    """JSON can hold half a character; files cannot: it is replaced, a complete pair stays."""
    body = json.dumps(make_chat(TASKS.replace("Nets.", "N\ud83dets \U0001f600."))).encode()
    fake.respond = lambda _: (200, {}, body)
    assert len(run(tmp_path, seeds, max_requests=1).kept) == 3
    assert "N\ufffdets \U0001f600" in (tmp_path / "regen.json").read_text(encoding="utf-8")
    assert "N\ufffdets \U0001f600" in (tmp_path / "journal.jsonl").read_text(encoding="utf-8")


# --- an error within status 200 -----------------------------------------------------

ERRORS = {
    "number": ({"error": {"message": "Hm", "code": 429}}, 429),
    "digits": ({"error": {"message": "Hm", "code": "402"}}, 402),
    "with choices null": ({"choices": None, "error": {"message": "Hm", "code": 400}}, 400),
    "with no choices": ({"choices": [], "error": {"message": "Hm", "code": 503}}, 503),
    "rate": ({"error": {"message": "Hm", "code": "rate_limit_exceeded"}}, 429),
    "type": ({"error": {"message": "Hm", "type": "authentication_error"}}, 401),
    "spaces": ({"error": {"message": "Hm", "code": "Too Many Requests"}}, 429),
    "google": ({"error": {"message": "Hm", "code": 404, "status": "NOT_FOUND"}}, 404),
    "list": ([{"error": {"message": "Hm", "code": 403}}], 403),
    "text": ({"error": "Too many requests, Hm"}, 429),
    "quota": ({"error": {"message": "Hm", "code": "insufficient_quota"}}, 402),
    "model": ({"error": {"message": "Hm", "code": "model_not_found"}}, 404),
    "vllm": ({"object": "error", "message": "Hm", "code": 400}, 400),
    "unknown": ({"error": {"message": "Hm", "code": "E17"}}, 500),
    "overloaded": ({"error": {"message": "Hm", "type": "overloaded_error"}}, 500),
    "no object": ({"message": "Hm"}, 500),
    "choice": ({"choices": [{"error": {"message": "Hm", "code": 502}, "message": {"content": ""}}]},
               502),
}  # fmt: skip


@pytest.mark.parametrize("body, status", ERRORS.values(), ids=ERRORS)
def test_an_error_object_has_a_status(body, status):
    """Its code, as a number or a word, says which one; the message is the server's."""
    with pytest.raises(ErrorReply, match="Hm") as caught:
        parse_completion(json.dumps(body).encode())
    assert caught.value.error.status == status


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404])
@pytest.mark.parametrize("as_http", [True, False])
def test_the_servers_words_come_at_once(fake, seeds, tmp_path, status, as_http):
    """What no retry can mend is asked once, and its message is shown."""
    body = {"error": {"message": "These are my words.", "code": status}}
    fake.respond = lambda _: (status if as_http else 200, {}, body)
    with pytest.raises(TeacherError, match=r"These are my words\."):
        run(tmp_path, seeds, concurrency=1)
    assert len(fake.requests) == 1


def test_a_rate_limit_within_200_backs_off(fake, seeds, tmp_path):
    """Two of them, then replies: the run ends well, and nothing counts as lost."""
    body = {"choices": None, "error": {"message": "Too Many Requests", "code": 429}}
    fake.respond = lambda _: (200, {}, body) if len(fake.requests) <= 2 else TASKS
    outcome = run(tmp_path, seeds, concurrency=1)
    assert len(outcome.kept) == 3 and len(fake.requests) == 3
    assert '"lost"' not in (tmp_path / "journal.jsonl").read_text()


def test_a_lasting_rate_limit_shows_its_message(fake, seeds, tmp_path):
    """After the last try the server's words are in the error."""
    body = {"error": {"message": "Quiet hours until 6 am", "code": 429}}
    fake.respond = lambda _: (200, {}, body)
    with pytest.raises(TeacherError, match="Quiet hours until 6 am"):
        run(tmp_path, seeds, concurrency=1)
    assert len(fake.requests) == 10


@pytest.mark.parametrize(
    "body, words",
    [
        (b"", "an empty body"),
        (b'data: {"x": 1}\n\ndata: [DONE]', "a stream of events"),
        (b"<!doctype html><html><script>x()</script><h1>Gateway  down</h1></html>", "Gateway down"),
        (b'{"choices": [', "invalid or cut JSON"),
    ],
)
def test_what_came_instead_is_named(body, words):
    """A body that is no completion: the reason says what it is."""
    with pytest.raises(ReplyError, match=words):
        parse_completion(body)


# --- usage --------------------------------------------------------------------------

USAGES = [
    *("many", [], 5, None, True, {}, {"prompt_tokens": 5}, {"completion_tokens": 5}),
    *(
        {"prompt_tokens": value, "completion_tokens": 50}
        for value in (
            10**400,
            -5,
            float("inf"),
            float("nan"),
            None,
            "many",
            [],
            {},
            True,
            "9" * 400,
        )
    ),
    {"prompt_tokens": 100, "completion_tokens": -(10**9)},
]


@pytest.mark.parametrize("usage", USAGES, ids=lambda usage: str(usage)[:40])
def test_a_reply_is_kept_whatever_its_usage(fake, seeds, tmp_path, usage):
    """A usage that cannot be read never costs the reply: it is on disk, at its reserved price."""
    body = json.dumps(completion(TASKS, usage)).encode()
    fake.respond = lambda _: (200, {}, body)
    prices = tmp_path / "prices.yaml"
    prices.write_text("dated: 2026-01-01\nmodels: {fake-model: {input: 1.0, output: 2.0}}\n")
    outcome = run(tmp_path / "run", seeds, prices_path=prices, concurrency=1)
    assert len(outcome.kept) == 3 and len(fake.requests) == 1
    (reply,) = journaled(tmp_path / "run")
    assert reply["text"] == TASKS and outcome.usd > 2 * 3072 / 1e6


def test_an_integer_of_5000_digits_is_no_reason_to_lose_a_reply():
    """Python refuses to read such a number; the reply is not refused."""
    body = json.dumps(completion("fine", {"prompt_tokens": 1, "completion_tokens": 1}))
    body = body.replace('"prompt_tokens": 1', '"prompt_tokens": ' + "9" * 5000)
    assert parse_completion(body.encode()) == RawReply("fine", "stop", 0, 0)


@pytest.mark.parametrize(
    "value, tokens", [(12, 12), (12.0, 12), (12.2, 13), ("12", 12), ("1e3", 1000)]
)
def test_counts_in_other_forms_are_read(value, tokens):
    """Whole floats and digits in quotes are counts too; a part of a token counts as one."""
    reply = parse_completion(completion("x", {"prompt_tokens": value, "completion_tokens": 1}))
    assert (reply.prompt_tokens, reply.completion_tokens) == (tokens, 1)


PRICE = Price("m", 1.0, 2.0, 0.1, "")
LONG = "The kettle boils because its element heats the water. " * 20


@pytest.mark.parametrize(
    "prompt, completion_tokens, cached, costs",
    [
        (1000, 500, 0, 1000 + 2 * 500),
        (1000, 500, 10**9, 1000 + 2 * 500),  # more cached than sent: none
        (1000, 500, -5, 1000 + 2 * 500),
        (1000, 0, 0, 1000 + 2 * len(LONG)),  # a byte is a token at most
        (1000, 5, 0, 1000 + 2 * len(LONG)),
        (3, 500, 0, 1664 + 2 * 500),
        (0, 0, 0, 1664 + 2 * 3000),  # all that is reserved
        (0, 500, 0, 1664 + 2 * 3000),
    ],
)
def test_no_usage_makes_a_reply_free(prompt, completion_tokens, cached, costs):
    """Counts that the texts contradict are not believed; more cached than sent neither."""
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    reply = parse_completion(completion(LONG, usage))
    ledger = Ledger(PRICE, 10.0)
    request = messages.Request("/", {"max_tokens": 3000}, "Write one task! " * 100)
    ledger.reserve(0, *request.most_tokens)
    assert ledger.cost(0, reply, request) == pytest.approx(costs / 1e6)
    least = least_tokens(request.prompt) * PRICE.cached + least_tokens(LONG) * PRICE.output
    assert costs > least


def test_a_bound_of_tokens_holds_for_real_replies():
    """The course's recorded replies took more tokens than the lower bound of their texts."""
    from alpaca_lib.generation.replay_teacher import load_replies
    from alpaca_lib.generation.teacher import REPLIES

    for reply in map(parse_completion, load_replies(REPLIES)):
        assert 0.2 * reply.completion_tokens < least_tokens(reply.text) < reply.completion_tokens


def test_a_bound_of_tokens_holds_for_every_kind_of_text():
    """Against tokenizers of the course: white space, code, Chinese and runs of one character."""
    tokenizers = pytest.importorskip("tokenizers")
    from alpaca_lib import models

    folder = models.ModelSource.resolve("smollm2-135m").folder
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = [
        LONG,
        "给出一个关于水的事实。" * 30,
        "=" * 500,
        " " * 500 + "x",
        "def f(x):\n    return x\n" * 30,
    ]
    for text in texts:
        assert least_tokens(text) <= len(tokenizer.encode(text).ids), text[:20]


# --- sizes and time -----------------------------------------------------------------


def test_a_small_gzip_of_a_huge_reply_is_refused(fake, seeds, tmp_path, make_chat):
    """300 kB that unpack to 300 MB never reach memory or the journal; the setting is named."""
    data = gzip.compress(json.dumps(make_chat("a" * 30_000_000)).encode())
    assert len(data) < 100_000
    fake.respond = lambda _: (200, {"Content-Encoding": "gzip"}, data)
    with open_teacher("openai", "fake-model") as teacher:
        teacher.tries = 2
        with pytest.raises(TeacherError, match="max_reply_bytes"):
            generate(teacher, seeds, HEADER, SETTINGS, tmp_path, Limits(concurrency=1))
    assert (tmp_path / "journal.jsonl").stat().st_size < 10_000 and len(fake.requests) == 2
    run(tmp_path, seeds, concurrency=1, max_reply_bytes=40_000_000, max_requests=1)
    assert len(journaled(tmp_path)) == 1


def test_gzip_is_read_and_other_encodings_are_refused(fake, seeds, tmp_path, make_chat):
    """Only what was requested: a gzip of ordinary size is a reply, brotli is not unpacked."""
    data = gzip.compress(json.dumps(make_chat(TASKS)).encode())
    fake.respond = lambda _: (200, {"Content-Encoding": "gzip"}, data)
    assert len(run(tmp_path / "gzip", seeds).kept) == 3
    assert all(h["accept-encoding"] == "gzip, deflate" for h in fake.headers)
    fake.respond = lambda _: (200, {"Content-Encoding": "br"}, data)
    with open_teacher("openai", "fake-model") as teacher:
        teacher.tries = 1
        with pytest.raises(TeacherError, match="'br'"):
            generate(teacher, seeds, HEADER, SETTINGS, tmp_path / "br", Limits(concurrency=1))


def test_a_request_that_hangs_is_not_in_the_way(fake, seeds, tmp_path, capsys):
    """The first request never answers at first: all later ones are kept meanwhile, a line says
    what is waited for, and it is asked again with twice the time."""
    settings = SETTINGS.replace(tasks_wanted=100)
    hung, arrived = [], {}

    def delay(body):
        number = body["seed"] - 5 * 1_000_003
        if number == 0 and len(hung) < 2:
            hung.append(time.monotonic())
            return 4.0
        arrived.setdefault(number, time.monotonic())
        return 0.0

    def respond(body):
        word = f"w{body['seed']}"
        return "###\n".join(
            f"{n}. Instruction: Say {word}a{n} {word}b{n} {word}c{n} {word}d{n}.\n{n}. Input:\n"
            f"<noinput>\n{n}. Output:\nsaid\n"
            for n in (4, 5, 6)
        ).removeprefix("4. Instruction:")

    fake.delay, fake.respond = delay, respond
    outcome = run(tmp_path / "hung", seeds, settings, concurrency=3, idle_timeout=0.6)
    assert outcome.ended == "enough" and len(hung) == 2
    before = [n for n, when in arrived.items() if n and when < arrived[0]]
    assert len(before) >= 30  # not held back by a window of 8 times the concurrency
    out = capsys.readouterr().out
    assert "waiting" in out and "request 0" in out and "no answer in time" in out
    assert 0.5 < hung[1] - hung[0] < 1.5 < arrived[0] - hung[0] < 4
    fake.delay = lambda body: 0.0
    run(tmp_path / "calm", seeds, settings, concurrency=3)
    hung, calm = ((tmp_path / name / "regen.json").read_bytes() for name in ("hung", "calm"))
    assert hung == calm


def test_time_limits_of_the_teachers():
    """Tens of seconds for a server; a local model on a slow machine has its ten minutes."""
    from alpaca_lib.generation.teacher import Teacher

    paid, local = (Teacher(kind, "m", "http://x/v1", "k") for kind in ("openai", "local"))
    assert Limits().connect_timeout == 20 and paid.idle_timeout(Limits()) == 90
    assert paid.idle_timeout(Limits(way="flex")) == local.idle_timeout(Limits()) == 600
    assert local.idle_timeout(Limits(idle_timeout=7.0)) == 7


# --- secrets ------------------------------------------------------------------------

KEYS = ["sk-proj/4+7=1~x", "q\"u\\o'te-9", "a b  c-12", "<k&y>%41-5", "plainkey4711", "x" * 40]


@pytest.mark.parametrize("key", KEYS)
def test_the_key_is_in_no_file_and_no_output(fake, seeds, tmp_path, monkeypatch, capfd, key):
    """A server that repeats the key in replies and errors, as it is and escaped in other ways."""
    import html
    from urllib.parse import quote

    monkeypatch.setenv("OPENAI_API_KEY", key)
    forms = [key, quote(key), quote(key, safe=""), html.escape(key), json.dumps(key)[1:-1]]
    forms.append(repr(key)[1:-1])
    sent = iter(range(100))

    def respond(body):
        number = next(sent)
        form = forms[number % len(forms)]
        if number % 2:
            return 503, {}, {"error": {"message": f"bad key {form}", "code": form}}
        text = TASKS.replace("Nets.", f"Nets of {form} and {key}.").replace(
            "kettle", f"kettle {number}"
        )
        return 200, {}, completion(text, {"prompt_tokens": 100, "completion_tokens": 100})

    fake.respond = respond
    outcome = run(tmp_path, seeds, SETTINGS.replace(tasks_wanted=9), max_requests=6)
    assert "(the key)" in (tmp_path / "regen.json").read_text() and len(outcome.kept) >= 3
    texts = [path.read_bytes().decode() for path in tmp_path.rglob("*") if path.is_file()]
    for content in ({"error": {"message": "x" * 400 + key}}, f"<html>{key * 50}".encode()):
        fake.respond = lambda body, content=content: (401, {}, content)
        with pytest.raises(TeacherError, match="OPENAI_API_KEY") as caught:
            run(tmp_path, seeds, SETTINGS.replace(tasks_wanted=99))
        texts += traceback.format_exception(caught.value)
    texts += capfd.readouterr()
    for form in forms:
        assert not [text for text in texts if form in text], form
    assert all(head["authorization"] == f"Bearer {key}" for head in fake.headers)


@pytest.mark.parametrize("word", ["EMPTY", "ollama", "none", "test"])
def test_a_word_in_place_of_a_key_is_left_in_the_data(word):
    """Servers without keys get any word; replies may contain it, error texts need not."""
    redact = Redactor([word])
    assert redact.redact_data(f"an {word} cup") == f"an {word} cup"
    assert word not in redact(f"bad key {word}")


def test_a_password_in_the_address(fake, seeds, tmp_path, monkeypatch, capfd):
    """user:password@ is sent as basic auth, a query with every request; neither is shown."""
    monkeypatch.setenv(
        "OPENAI_BASE_URL", fake.url.replace("//", "//me:pa%40ss-1@") + "?api_key=qq-77"
    )
    paths = []
    handler = fake.server.RequestHandlerClass
    post = handler.do_POST
    monkeypatch.setattr(handler, "do_POST", lambda self: (paths.append(self.path), post(self)))
    fake.respond = lambda _: TASKS.replace("Nets.", "pa@ss-1 qq-77")
    with open_teacher("openai", "fake-model") as teacher:
        assert teacher.address == fake.url
        generate(teacher, seeds, HEADER, SETTINGS, tmp_path, Limits(concurrency=1))
        shown = repr(teacher)
    assert fake.headers[0]["authorization"] == "Basic bWU6cGFAc3MtMQ=="
    assert paths == ["/v1/chat/completions?api_key=qq-77"]
    fake.respond = lambda _: (403, {}, {"error": {"message": "no pa@ss-1, no qq-77"}})
    with pytest.raises(TeacherError) as caught:
        run(tmp_path, seeds, SETTINGS.replace(tasks_wanted=50))
    texts = [shown, *capfd.readouterr(), *traceback.format_exception(caught.value)]
    texts += [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    for secret in ("pa@ss-1", "pa%40ss-1", "qq-77", "bWU6cGFAc3MtMQ"):
        assert not [text for text in texts if secret in text]


@pytest.mark.parametrize(
    "text",
    ["localhost:8000/v1", "me:pw-12345@host/v1", "http://", "ftp://h/v1", "http://h:x/v1", "http://[::1/v1",
     "http://h/a b-12345", "http://h:99999/v1", "ht tp://h"],
)  # fmt: skip
def test_no_address(monkeypatch, text):
    """What is no address is refused by the name of the variable, without repeating it."""
    monkeypatch.setenv("OPENAI_BASE_URL", text)
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    with (
        pytest.raises(SettingsError, match="OPENAI_BASE_URL") as caught,
        open_teacher("openai", "m"),
    ):
        pass
    assert "12345" not in str(caught.value)


def test_addresses_that_are_right():
    """The usual ones stay as they are, without a slash at the end."""
    for text in ("https://api.openai.com/v1", "http://127.0.0.1:8000/v1/", "http://[::1]:80/v1"):
        assert parse_address(text).url == text.rstrip("/")
    azure = parse_address("https://x.azure.com/openai?api-version=2024-06-01")
    assert azure.query == {"api-version": "2024-06-01"} and azure.secrets == ()


# --- permissions --------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="needs a umask")
def test_files_are_as_private_as_the_umask_wants(fake, seeds, tmp_path):
    """Under umask 077 nobody else reads a run's files; a file that is there keeps its mode."""
    fake.respond = lambda _: TASKS
    old = os.umask(0o077)
    try:
        run(tmp_path / "run", seeds)
    finally:
        os.umask(old)
    for path in (tmp_path / "run").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    (tmp_path / "run" / "regen.json").chmod(0o640)
    run(tmp_path / "run", seeds, SETTINGS.replace(tasks_wanted=4), max_requests=2)
    assert stat.S_IMODE((tmp_path / "run" / "regen.json").stat().st_mode) == 0o640


def test_a_count_above_what_was_allowed_is_reported(fake, seeds, tmp_path, capsys):
    """A server that counts more than max_tokens is believed, and a line says so, once."""
    usage = {"prompt_tokens": 90_000, "completion_tokens": 100}
    fake.respond = lambda _: (200, {}, completion(TASKS, usage))
    prices = tmp_path / "prices.yaml"
    prices.write_text("dated: 2026-01-01\nmodels: {fake-model: {input: 1.0, output: 2.0}}\n")
    limits = {"prices_path": prices, "max_usd": 0.1, "concurrency": 1}
    outcome = run(tmp_path / "run", seeds, SETTINGS.replace(tasks_wanted=9), **limits)
    assert outcome.ended == "budget" and outcome.usd == pytest.approx(2 * 0.0902)
    assert capsys.readouterr().out.count("counts 90000 prompt") == 1


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"code": 429, "msg": "slow down"}, 429, "slow down"),
        ({"status": "error", "error_msg": "no such model"}, 500, "no such model"),
        ({"base_resp": {}, "error_message": "quota is used up", "code": "quota"}, 402, "quota"),
    ],
)
def test_errors_whose_message_has_another_name(body, status, words):
    """The server's words are shown, whatever it calls them."""
    with pytest.raises(ErrorReply, match=words) as caught:
        parse_completion(body)
    assert caught.value.error.status == status
