"""Presets of servers: the quirks of each over real HTTP, keys, models, servers that are down."""

from __future__ import annotations

import asyncio
import datetime
import json
import socket
import time
from dataclasses import replace

import pytest

from alpaca_lib.errors import DataError, SettingsError, TeacherError, UsageError
from alpaca_lib.generation import presets
from alpaca_lib.generation.failures import _refused_parameter
from alpaca_lib.generation.ledger import Ledger
from alpaca_lib.generation.messages import ServerError
from alpaca_lib.generation.presets import ANY_SERVER, find_preset, load_presets, preset_at
from alpaca_lib.generation.rate_limit import RateLimit
from alpaca_lib.generation.self_instruct import Limits, Settings, generate
from alpaca_lib.generation.teacher import open_teacher
from tests.generation.preset_server import server_of

NAMES = sorted(load_presets())
KEYS = ("OPENAI_API_KEY", "DEEPSEEK_API_KEY", "DASHSCOPE_API_KEY", "OPENROUTER_API_KEY")


def run(fake, seeds, folder, name, **settings):
    """(outcome, printed lines) of a run with a preset whose server is the fake one."""
    notes: list[str] = []
    chosen = {"tasks_wanted": 5, "tasks_per_request": 3, "seed": 5, **settings}
    with open_teacher(name, "fake-model") as teacher:
        teacher.say = notes.append
        done = generate(
            teacher,
            seeds,
            "Write {count} tasks.",
            Settings(**chosen),
            folder,
            Limits(concurrency=1),
        )
    return done, notes


# --- the file -----------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_an_entry_is_complete_and_dated(name):
    """Address, source and the day of the check; a server of the user's own needs no key."""
    preset = load_presets()[name]
    assert preset.base_url.startswith(("https://", "http://localhost:"))
    assert preset.is_local == preset.base_url.startswith("http://") == (not preset.key)
    assert datetime.date.fromisoformat(preset.checked) <= datetime.date.today()
    assert preset.source and preset.title
    assert preset.thinking("none") and preset.thinking("none") != preset.thinking("low")
    assert "EFFORT" not in str(preset.thinking("low")) and preset.thinking("") == {}


@pytest.mark.parametrize(
    "text, words",
    [
        ("teachers: 3", "no file of teachers"),
        ("other: {}", "no file of teachers"),
        ("teachers: {x: {title: X}}", "the teacher x cannot be read"),
        ("teachers: {x: 4}", "the teacher x cannot be read"),
    ],
)
def test_a_bad_file_is_named(tmp_path, text, words):
    path = tmp_path / "teachers.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=words) as caught:
        load_presets(path)
    assert str(path) in str(caught.value)


def test_a_wrong_fact_is_named(tmp_path):
    text = presets.TEACHERS.read_text(encoding="utf-8")
    path = tmp_path / "teachers.yaml"
    path.write_text(text.replace("flex: true", "flex: perhaps", 1), encoding="utf-8")
    with pytest.raises(DataError, match="the teacher openai cannot be read"):
        load_presets(path)


def test_an_unknown_name_lists_all_and_the_nearest():
    with pytest.raises(UsageError, match=r"there are local, replay, openai.*mean 'deepseek'\?"):
        find_preset("deepsek")


def test_a_providers_address_is_recognised_and_this_machine_is_not():
    """At 127.0.0.1:8000 may be vLLM, or a proxy to a service that costs money."""
    assert preset_at("https://api.deepseek.com/v1").name == "deepseek"
    assert preset_at("http://localhost:8000/v1") is ANY_SERVER
    assert preset_at("https://example.org/v1") is ANY_SERVER


# --- quirks -------------------------------------------------------------------------


@pytest.mark.parametrize("effort", ["none", "low"])
@pytest.mark.parametrize("name", NAMES)
def test_each_server_is_asked_as_it_wants(fake, seeds, tmp_path, name, effort):
    """The same tasks from each; reasoning is switched off or counted apart, and never data."""
    fake.respond = server_of(name)
    done, _ = run(fake, seeds, tmp_path, name, reasoning_effort=effort)
    plain, _ = run_plain(fake, seeds, tmp_path / "plain")
    assert [task.instruction for task in done.kept] == plain and done.ended == "enough"
    assert not [task for task in done.kept if "the model thinks" in task.output + task.instruction]
    if effort == "none":
        assert done.reasoning_tokens == 0
        assert done.completion_tokens == 100 * done.requests
    else:
        assert done.completion_tokens == 400 * done.requests
        least = 300 if name == "openai" else 30  # a share by bytes where no count is given
        assert done.reasoning_tokens >= least * done.requests
    assert not [body for body in fake.requests if "logit_bias" in body]


def run_plain(fake, seeds, folder):
    """What is kept from a server without quirks."""
    from tests.generation.fault_server import good_reply

    sent, fake.requests = fake.requests, []
    fake.respond = good_reply
    done, notes = run(fake, seeds, folder, "openai")
    fake.requests = sent
    return [task.instruction for task in done.kept], notes


def test_known_servers_refuse_nothing(fake, seeds, tmp_path):
    """With reasoning switched off, every preset's first request is answered: no line, no retry."""
    for name in NAMES:
        if name != "openrouter":  # which fails once on purpose
            fake.respond, fake.requests = server_of(name), []
            done, notes = run(fake, seeds, tmp_path / name, name)
            assert len(fake.requests) == done.requests
            assert [note for note in notes if "OPENAI_BASE_URL replaces" not in note] == []


def test_an_effort_that_is_refused_is_said_once_with_the_servers_words(fake, seeds, tmp_path):
    """vLLM knows no `minimal`: sent once, dropped, and not sent in any later request."""
    fake.respond = server_of("vllm")
    done, notes = run(fake, seeds, tmp_path, "vllm", reasoning_effort="minimal")
    (note,) = [note for note in notes if "left out" in note]
    assert "`reasoning_effort`" in note and "Input should be 'low'" in note
    assert ["reasoning_effort" in body for body in fake.requests] == [True, False, False]
    assert done.ended == "enough"


@pytest.mark.parametrize(
    "words, refused",
    [
        ("Reasoning models do not support temperature.", "temperature"),
        ("`reasoning` is not supported with temperature", "reasoning"),
        ("reasoning is not supported by this provider", "reasoning"),
        ("Unknown field: top_p", "top_p"),
        ("seed and temperature are unsupported", "seed"),
        ("temperature must be one of 0 and 1", ""),  # a value of the user's own: not left out
        ("the model is unavailable", ""),
    ],
)
def test_the_parameter_that_a_message_is_about(words, refused):
    sent = ["model", "messages", "temperature", "top_p", "seed", "reasoning"]
    assert _refused_parameter(ServerError(400, "", words), sent) == refused


@pytest.mark.parametrize(
    "words, is_stream",
    [
        ("This model only support stream mode, please enable the stream parameter.", True),
        ("parameter.enable_thinking must be set to false for non-streaming calls", True),
        ("stream must be set to true", True),
        ("This model requires streaming", True),
        ("the upstream server is required", False),
        ("temperature is not supported", False),
    ],
)
def test_a_message_that_asks_for_a_stream(words, is_stream):
    found = _refused_parameter(ServerError(400, "", words), ["temperature"])
    assert (found == "stream") == is_stream


@pytest.mark.parametrize("name, kind", [("deepseek", "json_object"), ("openai", "json_schema")])
def test_json_is_asked_for_as_the_server_knows_it(fake, seeds, tmp_path, name, kind):
    fake.respond = lambda body: '{"tasks": []}'
    run(fake, seeds, tmp_path, name, reply_format="json", tasks_wanted=1)
    assert fake.requests[0]["response_format"]["type"] == kind
    assert "JSON" in fake.requests[0]["messages"][0]["content"]


def test_a_server_that_streams_alone_is_streamed_from(fake, seeds, tmp_path):
    """Its refusal switches to streaming, once; deltas, comments and usage make one reply."""
    fake.respond = server_of("qwen")
    done, notes = run(fake, seeds, tmp_path, "qwen", reasoning_effort="high")
    assert [bool(body.get("stream")) for body in fake.requests] == [False, True, True]
    assert len([note for note in notes if "streaming" in note]) == 1
    assert done.prompt_tokens == 200 * done.requests
    assert done.reasoning_tokens == 300 * done.requests


def test_what_limits_the_reasoning_is_reserved_too(fake):
    """Qwen's max_tokens limits the answer alone, thinking_budget the reasoning."""
    from alpaca_lib.generation.teacher import Sampling

    asked = {"prompt": "p", "first_number": 4, "tasks": 3, "seed": 0}
    with open_teacher("qwen", "m") as teacher:
        high = Sampling(max_tokens=1000, reasoning_effort="high")
        assert teacher.request(**asked, sampling=high).most_tokens[1] == 2000
        assert teacher.request(**asked, sampling=Sampling(max_tokens=1000)).most_tokens[1] == 1000


@pytest.mark.parametrize("way", ["flex", "batch"])
def test_a_way_that_a_server_lacks_is_refused_before_any_request(fake, seeds, tmp_path, way):
    with (
        open_teacher("ollama", "m") as teacher,
        pytest.raises(SettingsError, match=f'way "{way}": Ollama does not offer it'),
    ):
        generate(teacher, seeds, "{count}", Settings(tasks_wanted=1), tmp_path, Limits(way=way))
    assert fake.requests == []


PRICES = """
dated: 2026-11-28
models: {fake-model: {input: 1.0, output: 10.0}}
"""


@pytest.mark.parametrize("name", ["openai", "deepseek", "qwen"])
def test_the_budget_holds_with_reasoning_and_after_a_resume(fake, seeds, tmp_path, name):
    """Hidden tokens are paid for, each request is reserved at its most, a resume adds up."""
    fake.respond = server_of(name)
    prices = tmp_path / "prices.yaml"
    prices.write_text(PRICES, encoding="utf-8")
    cost = (200 * 1.0 + 400 * 10.0) / 1e6  # one reply: 100 tokens of answer, 300 of reasoning
    most = 0.0
    for max_usd in (0.03, 0.06):
        limits = Limits(concurrency=2, max_usd=max_usd, prices_path=prices)
        with open_teacher(name, "fake-model") as teacher:
            settings = Settings(
                tasks_wanted=10_000, tasks_per_request=3, max_tokens=800, reasoning_effort="low"
            )
            done = generate(
                teacher, seeds, "{count}", settings, tmp_path / "run", limits, progress=print
            )
            request = teacher.request(
                "x" * 300, first_number=4, tasks=3, seed=0, sampling=settings.sampling()
            )
            most = (200 + request.most_tokens[1] * 10.0 + 2000) / 1e6
        assert done.ended == "budget" and done.lost_usd == 0
        assert done.usd == pytest.approx(done.requests * cost)
        assert max_usd - most < done.usd <= max_usd
    assert done.reasoning_tokens >= 290 * done.requests


def test_servers_of_your_own_have_ten_minutes_for_their_first_byte(fake):
    """A large model on a slow machine reads a prompt for minutes; the setting wins."""
    fake.models = [{"id": "m"}]
    for name in NAMES:
        with open_teacher(name, "m") as teacher:
            expected = 600 if teacher.preset.is_local else 90
            assert teacher.idle_timeout(Limits()) == expected
            assert teacher.idle_timeout(Limits(idle_timeout=7.0)) == 7


def test_a_reply_that_trickles_in_chunks_is_waited_for(fake, make_chat, monkeypatch):
    """DeepSeek sends blank lines while it is busy: each of them restarts the time limit."""

    def do_POST(self):
        fake.requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for part in (*[b"\n"] * 6, json.dumps(make_chat("fine")).encode()):
            time.sleep(0.2)
            self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    monkeypatch.setattr(fake.server.RequestHandlerClass, "do_POST", do_POST)
    with open_teacher("openai", "m") as teacher:
        request = teacher.request(
            "p", first_number=4, tasks=3, seed=0, sampling=Settings().sampling()
        )

        async def ask():
            limits = Limits(idle_timeout=0.8)
            async with teacher.connect(RateLimit(1), Ledger(), limits) as connection:
                return await connection.ask(request)

        assert asyncio.run(ask()).text == "fine"
    assert len(fake.requests) == 1


# --- keys and addresses -------------------------------------------------------------


@pytest.fixture
def no_keys(monkeypatch):
    """No key and no address in the environment."""
    for name in (*KEYS, "OPENAI_BASE_URL", "OPENAI_MODEL"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", [name for name in NAMES if load_presets()[name].key])
def test_a_missing_key_names_its_variable(no_keys, monkeypatch, name):
    """The key of OpenAI is not sent to another provider."""
    key = load_presets()[name].key
    if key != "OPENAI_API_KEY":
        monkeypatch.setenv("OPENAI_API_KEY", "sk-of-openai")
    with pytest.raises(TeacherError, match=f'teacher "{name}" needs a key: set {key} '):
        open_teacher(name, "m").__enter__()


def test_the_address_in_the_environment_wins_and_is_said(fake, monkeypatch, capsys):
    """The provider's own key goes there, or else the key that belongs to that address."""
    fake.respond = lambda body: (401, {}, {"error": {"message": "no"}})
    asked = {"first_number": 4, "tasks": 3, "seed": 0}
    for key, value in (("OPENAI_API_KEY", "secret-123"), ("DEEPSEEK_API_KEY", "sk-deep-1")):
        monkeypatch.setenv(key, value)
        with open_teacher("deepseek", "m") as teacher:
            assert teacher.address == fake.url
            with pytest.raises(TeacherError, match=f"the key in {key} is refused"):
                teacher.ask("p", **asked)
        assert fake.headers[-1]["authorization"] == f"Bearer {value}"
    assert "OPENAI_BASE_URL replaces https://api.deepseek.com" in capsys.readouterr().out


def test_a_server_of_your_own_costs_nothing_on_this_machine_alone(fake, monkeypatch):
    fake.models = [{"id": "m"}]
    with open_teacher("vllm", "m") as teacher:
        assert teacher.is_free
    with open_teacher("openai", "m") as teacher:
        assert not teacher.is_free
    monkeypatch.setenv("OPENAI_BASE_URL", "http://gpu.invalid:8000/v1")
    with pytest.raises(TeacherError, match="cannot be reached"):
        open_teacher("vllm", "m").__enter__()


# --- models, and servers that are down ----------------------------------------------


@pytest.mark.parametrize("name", [name for name in NAMES if load_presets()[name].is_local])
def test_a_server_that_is_down_says_how_to_start_it(no_keys, monkeypatch, name):
    with socket.socket() as one:  # a port that nobody listens to
        one.bind(("127.0.0.1", 0))
        preset = replace(find_preset(name), base_url=f"http://127.0.0.1:{one.getsockname()[1]}/v1")
    monkeypatch.setattr(presets, "load_presets", lambda: {name: preset})
    start = time.monotonic()
    for model in ("m", ""):
        with pytest.raises(TeacherError) as caught:
            open_teacher(name, model).__enter__()
        assert f"start the server with `{preset.start}`" in str(caught.value)
    assert time.monotonic() - start < 5


def test_the_only_model_is_taken(fake, capsys):
    fake.models = [{"id": "qwen3:8b"}, {"id": "old", "shutdown_date": "2024-01-04"}]
    with open_teacher("ollama") as teacher:
        assert teacher.model == "qwen3:8b"
    assert f"model qwen3:8b: the only one at {fake.url}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "rows, words",
    [
        ([{"id": "a"}, {"id": "b"}], "offers a, b"),
        ([{"id": f"m{n}"} for n in range(25)], "m19 and 5 more"),
        ([], "its server offers none"),
        (None, "has no list of models"),
        ([3], "has no list of models"),
    ],
)
def test_a_choice_of_models_is_listed(fake, rows, words):
    fake.models = rows
    with pytest.raises(TeacherError, match='teacher "openai" needs the name of a model') as caught:
        open_teacher("openai").__enter__()
    assert words in str(caught.value)


def test_a_login_page_ends_after_one_retry(fake, seeds, tmp_path):
    """What a proxy shows in place of the server reaches the user at once."""
    page = b"<!doctype html><html><body><h1>Log in to the company's proxy</h1></body></html>"
    fake.respond = lambda body: (200, {"Content-Type": "text/html"}, page)
    with pytest.raises(TeacherError, match="Log in to the company's proxy"):
        run(fake, seeds, tmp_path, "openai")
    assert len(fake.requests) == 2
