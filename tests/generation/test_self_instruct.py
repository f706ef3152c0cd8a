"""The generation loop against a real HTTP server: counts, order, resume, errors."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time

import pytest

from alpaca_lib.errors import DataError, JournalError, TeacherError, UsageError
from alpaca_lib.generation.prompting import Prompter
from alpaca_lib.generation.self_instruct import Limits, Settings, generate
from alpaca_lib.generation.teacher import open_teacher
from alpaca_lib.records import Example, load_examples

SETTINGS = Settings(tasks_wanted=12, seeds_per_prompt=3, tasks_per_request=3, seed=5)
HEADER = "Write {count} tasks."
WORDS = [
    f"{a}{b}"
    for a in ["ba", "ke", "lo", "mu", "ni", "po", "ra", "su", "ti", "ve"]
    for b in ["dan", "fol", "gim", "ner", "tup"]
]
FAST = {"retry-after-ms": "1"}


def request_of(body) -> int:
    """The number of the request, which its seed carries."""
    return body["seed"] - SETTINGS.seed * 1_000_003


def task(number: int, words: list[str]) -> str:
    """An entry whose instruction is these words."""
    n, text = number, " ".join(words)
    return f"{n}. Instruction: Say {text}.\n{n}. Input:\n<noinput>\n{n}. Output:\n{words[0]}\n"


def good_reply(body) -> str:
    """Three tasks that depend on the request alone; the third repeats the first."""
    draw = random.Random(request_of(body))
    first, second = draw.sample(WORDS, 6), draw.sample(WORDS, 6)
    text = "###\n".join([task(4, first), task(5, second), task(6, first)])
    return text.removeprefix("4. Instruction:")


def run(folder, seeds, settings=SETTINGS, progress=lambda progress: None, **limits):
    """One generation run with the openai teacher."""
    with open_teacher("openai", "fake-model") as teacher:
        return generate(
            teacher, seeds, HEADER, settings, folder, Limits(**limits), progress=progress
        )


def asked(fake) -> list[int]:
    """The requests that the server has seen, in order."""
    return [request_of(body) for body in fake.requests]


def no_key_in(folder) -> bool:
    """Whether no file below a folder holds the key."""
    return all(b"secret-123" not in p.read_bytes() for p in folder.rglob("*") if p.is_file())


def test_chinese_repeats_are_dropped_by_default(fake, tmp_path):
    """With the default settings a Chinese run keeps a task that is repeated in a reply once."""
    seeds = [Example(f"写一首关于{word}的短诗。", "", "诗。") for word in "水火土木金"]
    names = (
        "春夏秋冬山河湖海风云雷电花鸟虫鱼琴棋书画米面油盐酱醋茶桌椅床柜灯窗门墙砖瓦石沙土泥江溪泉瀑"
    )

    def reply(body) -> str:
        word = "".join(random.Random(request_of(body)).sample(names, 9))
        blocks = (
            f"{n}. 指令：说说{word}有哪三种用途。\n{n}. 输入：\n无\n{n}. 输出：\n好。\n"
            for n in range(4, 9)
        )
        return "###\n".join(blocks)

    fake.respond = reply
    run(tmp_path, seeds, SETTINGS.replace(tasks_wanted=4, tasks_per_request=5))
    kept = [task.instruction for task in load_examples(tmp_path / "regen.json")]
    assert len(kept) == len(set(kept)) == 4
    configuration = json.loads((tmp_path / "journal.jsonl").read_text().split("\n")[0])
    # The name of the default in earlier journals, so that their runs resume.
    assert configuration["configuration"]["rouge_mode"] == "rouge"


# --- a good run ---------------------------------------------------------------------


def test_counts_and_files(fake, seeds, tmp_path):
    """Two of three tasks a reply are new; the books balance and regen.json loads."""
    fake.respond = good_reply
    outcome = run(tmp_path, seeds, concurrency=2)
    assert len(outcome.kept) == 12 and outcome.requests == 6
    assert outcome.kept_after_request == [2, 4, 6, 8, 10, 12]
    assert outcome.reasons() == {"ROUGE-L above 0.7 with a known instruction": 6}
    assert (outcome.prompt_tokens, outcome.completion_tokens) == (600, 300)
    kept = load_examples(tmp_path / "regen.json")
    assert kept == outcome.kept
    for number, example in enumerate(kept):
        similar = example.extra["most_similar_instructions"]
        assert len(similar) == min(10, len(seeds) + number)
        assert max(similar.values()) <= 0.7
    assert no_key_in(tmp_path)


def test_similarity_extras_are_rouge_scores(fake, seeds, tmp_path):
    """most_similar_instructions and avg_similarity_score are those of rouge_score."""
    rouge = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"])
    fake.respond = good_reply
    outcome = run(tmp_path, seeds)
    known = [seed.instruction for seed in seeds]
    for example in outcome.kept:
        scores = [rouge.score(text, example.instruction)["rougeL"].fmeasure for text in known]
        assert example.extra["avg_similarity_score"] == pytest.approx(sum(scores) / len(scores))
        nearest = example.extra["most_similar_instructions"]
        assert sorted(nearest.values(), reverse=True) == sorted(scores, reverse=True)[:10]
        assert all(nearest[t] == s for t, s in zip(known, scores, strict=True) if t in nearest)
        known.append(example.instruction)


def test_what_is_sent(fake, seeds, tmp_path):
    """One user message with the prompt; settings under today's names; the key as a header."""
    fake.respond = good_reply
    settings = Settings(tasks_wanted=2, seeds_per_prompt=3, tasks_per_request=3, seed=5,
                        temperature=0.5, top_p=0.9, max_tokens=77)  # fmt: skip
    run(tmp_path, seeds, settings, concurrency=1)
    body = fake.requests[0]
    assert body["messages"] == [
        {"role": "user", "content": Prompter(seeds, HEADER, settings).prompt(0).text}
    ]
    assert (body["temperature"], body["top_p"], body["max_completion_tokens"]) == (0.5, 0.9, 77)
    assert body["model"] == "fake-model" and "stop" not in body and "max_tokens" not in body
    assert fake.headers[0]["authorization"] == "Bearer secret-123"


def test_prompts_depend_on_seed_and_request_alone(seeds):
    """The same (seed, request) gives the same prompt, another one another."""
    prompts = [Prompter(seeds, HEADER, SETTINGS).prompt(n).text for n in range(20)]
    assert prompts == [Prompter(seeds, HEADER, SETTINGS).prompt(n).text for n in range(20)]
    assert len(set(prompts)) > 15
    assert prompts[0] != Prompter(seeds, HEADER, Settings(seed=6)).prompt(0).text
    assert all(
        p.startswith("Write 6 tasks.") and p.endswith("###\n4. Instruction:") for p in prompts
    )


@pytest.mark.parametrize("concurrency", [1, 3, 8])
def test_result_does_not_depend_on_latency(fake, seeds, tmp_path, concurrency):
    """Slow first, slow last, or random: the same bytes in regen.json."""
    fake.respond = good_reply
    run(tmp_path / "plain", seeds, concurrency=1)
    expected = (tmp_path / "plain" / "regen.json").read_bytes()
    draw = random.Random(concurrency)
    for name, delay in {
        "first slow": lambda body: 0.15 if request_of(body) % 3 == 0 else 0.0,
        "random": lambda body: draw.random() / 10,
    }.items():
        fake.delay = delay
        run(tmp_path / name, seeds, concurrency=concurrency)
        assert (tmp_path / name / "regen.json").read_bytes() == expected


def test_requests_go_out_together(fake, seeds, tmp_path):
    """With concurrency 4, four slow replies take the time of one."""
    fake.respond, fake.delay = good_reply, lambda body: 0.5
    settings = Settings(tasks_wanted=8, seeds_per_prompt=3, tasks_per_request=3, seed=5)
    start = time.perf_counter()
    run(tmp_path, seeds, settings, concurrency=4, max_requests=4)
    assert time.perf_counter() - start < 1.6
    assert sorted(asked(fake)) == [0, 1, 2, 3]


def test_bad_replies_are_counted_not_fatal(fake, seeds, tmp_path, make_chat):
    """Refusals, empty and cut replies give reasons, and the run goes on."""

    def respond(body):
        kind = request_of(body) % 4
        if kind == 0:
            return good_reply(body)
        if kind == 1:
            return 200, {}, make_chat(None)
        if kind == 2:
            return 200, {}, make_chat(good_reply(body), "length")
        return "I'm sorry, but I can't."

    fake.respond = respond
    outcome = run(tmp_path, seeds, max_requests=8, concurrency=2)
    reasons = outcome.reasons()
    assert outcome.requests == 8
    assert reasons["cut off by the length limit"] == 2
    assert len(outcome.kept) == 2 * 2 + 2 * 2
    assert reasons["not one Instruction, Input and Output with one number"] >= 2


def test_max_requests_is_a_limit(fake, seeds, tmp_path):
    """A teacher that gives nothing new is not asked for ever."""
    fake.respond = lambda body: "nothing"
    outcome = run(tmp_path, seeds, max_requests=5, concurrency=3)
    assert outcome.kept == [] and sorted(asked(fake)) == [0, 1, 2, 3, 4]
    assert outcome.requests == 5


def test_progress_says_how_far_it_is(fake, seeds, tmp_path):
    """After each reply: kept, wanted, dropped by reason, and how long it will still take."""
    fake.respond = good_reply
    told = []
    run(tmp_path, seeds, progress=told.append, concurrency=1)
    assert [p.kept for p in told] == [2, 4, 6, 8, 10, 12]
    assert [p.requests for p in told] == [1, 2, 3, 4, 5, 6] and not any(p.resumed for p in told)
    assert told[2].rejected == {"ROUGE-L above 0.7 with a known instruction": 3}
    for text in ("6 of 12 kept", "3 replies", "3 dropped", "per minute", "left", "price unknown"):
        assert text in str(told[2])
    assert "left" not in str(told[5])
    again = []
    run(tmp_path, seeds, progress=again.append)
    assert len(again) == 6 and all(p.resumed for p in again)


def test_too_few_seeds(fake, tmp_path):
    """Fewer seeds than a prompt shows: an error before any request."""
    with pytest.raises(DataError, match="seeds_per_prompt"):
        run(tmp_path, [Example("Only one seed task.")])
    assert fake.requests == []


# --- stop and resume ----------------------------------------------------------------


def outputs(folder):
    """The bytes of regen.json, and the journal's lines about replies."""
    lines = (folder / "journal.jsonl").read_text(encoding="utf-8").splitlines()
    about = [
        line for line in lines if json.loads(line).keys() & {"configuration", "reply", "judged"}
    ]
    return (folder / "regen.json").read_bytes(), about


@pytest.mark.parametrize("first", [1, 3, 5])
def test_stopped_run_goes_on(fake, seeds, tmp_path, first):
    """Stopped after some requests and resumed: none asked twice, the same bytes."""
    fake.respond = good_reply
    run(tmp_path / "whole", seeds, concurrency=1)
    whole = asked(fake)
    fake.requests.clear()
    run(tmp_path / "parts", seeds, concurrency=1, max_requests=first)
    outcome = run(tmp_path / "parts", seeds, concurrency=1)
    assert asked(fake) == whole
    assert outcome.resumed_requests == first
    assert outputs(tmp_path / "parts") == outputs(tmp_path / "whole")


def test_finished_run_asks_nothing_more(fake, seeds, tmp_path):
    """Called again on a finished folder it only reads the journal."""
    fake.respond = good_reply
    first = run(tmp_path, seeds, concurrency=1)
    count = len(fake.requests)
    second = run(tmp_path, seeds, concurrency=1)
    assert len(fake.requests) == count and second.kept == first.kept


def test_killed_process_goes_on(fake, seeds, tmp_path):
    """SIGKILL in the middle: replies that had arrived are not asked for again."""
    fake.respond = good_reply
    run(tmp_path / "whole", seeds, concurrency=1)
    whole = asked(fake)
    fake.requests.clear()
    hold = threading.Event()
    fake.delay = lambda body: hold.wait(30) * 0.0 if request_of(body) == 3 else 0.0
    (tmp_path / "seeds.json").write_text(json.dumps([s.to_dict() for s in seeds]))
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from alpaca_lib.generation.self_instruct import Limits, Settings, generate\n"
        "from alpaca_lib.generation.teacher import open_teacher\n"
        "from alpaca_lib.records import load_examples\n"
        "settings = Settings(tasks_wanted=12, seeds_per_prompt=3, tasks_per_request=3, seed=5)\n"
        "with open_teacher('openai', 'fake-model') as teacher:\n"
        "    generate(teacher, load_examples(sys.argv[1]), 'Write {count} tasks.', settings,\n"
        "             Path(sys.argv[2]), Limits(concurrency=1))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "seeds.json"), str(tmp_path / "killed")]
    process = subprocess.Popen(command, env=dict(os.environ), stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 60
        while 3 not in asked(fake) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
        hold.set()
    assert asked(fake) == [0, 1, 2, 3]
    run(tmp_path / "killed", seeds, concurrency=1)
    assert asked(fake) == [0, 1, 2, 3, *whole[3:]]
    assert outputs(tmp_path / "killed") == outputs(tmp_path / "whole")


def test_replies_are_journaled_as_they_arrive(fake, seeds, tmp_path):
    """A reply that has arrived is on disk, even while an earlier one is still awaited."""
    hold = threading.Event()
    fake.respond = good_reply
    fake.delay = lambda body: hold.wait(20) * 0.0 if request_of(body) == 0 else 0.0
    worker = threading.Thread(target=run, args=(tmp_path, seeds), kwargs={"concurrency": 4})
    worker.start()
    journal, found = tmp_path / "journal.jsonl", []
    deadline = time.monotonic() + 3
    while len(found) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
        lines = journal.read_text().splitlines()[1:] if journal.exists() else []
        found = [json.loads(line)["request"] for line in lines if '"reply"' in line]
    hold.set()
    worker.join()
    assert sorted(found) == [1, 2, 3]


def test_failure_keeps_what_was_paid_for(fake, seeds, tmp_path):
    """One request fails for good: replies around it are kept, and a resume asks only it."""

    def respond(body):
        if request_of(body) == 2 and not respond.healed:
            return 404, {}, {"error": {"message": "no such model", "code": "model_not_found"}}
        return good_reply(body)

    respond.healed = False
    fake.respond = respond
    fake.delay = lambda body: 0.2 if request_of(body) == 2 else 0.0
    with pytest.raises(TeacherError):
        run(tmp_path, seeds, concurrency=4)
    respond.healed = True
    before = asked(fake)
    run(tmp_path, seeds, concurrency=4)
    again = asked(fake)[len(before) :]
    assert set(again) & set(before) == {2}
    fake.requests.clear()
    run(tmp_path / "whole", seeds, concurrency=1)
    assert (tmp_path / "whole" / "regen.json").read_bytes() == (
        tmp_path / "regen.json"
    ).read_bytes()


def test_resume_with_other_settings_is_refused(fake, seeds, tmp_path):
    """Another temperature is another run; the setting is named."""
    fake.respond = good_reply
    run(tmp_path, seeds, max_requests=1)
    other = Settings(
        tasks_wanted=12, seeds_per_prompt=3, tasks_per_request=3, seed=5, temperature=0.2
    )
    with pytest.raises(JournalError, match="temperature"):
        run(tmp_path, seeds, other)


@pytest.mark.parametrize("what", ["seeds", "header"])
def test_resume_with_other_prompts_is_refused(fake, seeds, tmp_path, what):
    """Other seeds or another header make other prompts: the old replies do not belong."""
    fake.respond = good_reply
    run(tmp_path, seeds, max_requests=1)
    with open_teacher("openai", "fake-model") as teacher, pytest.raises(JournalError):
        if what == "seeds":
            other = [Example(f"Another seed number {n} here.", "", "x") for n in range(8)]
            generate(teacher, other, HEADER, SETTINGS, tmp_path)
        else:
            generate(teacher, seeds, "Écris {count} devoirs.", SETTINGS, tmp_path)


# --- errors -------------------------------------------------------------------------

ERRORS = [
    (401, "invalid_api_key", "OPENAI_API_KEY"),
    (403, "forbidden", "OPENAI_API_KEY"),
    (404, "model_not_found", "fake-model"),
    (429, "insufficient_quota", "credit"),
]


@pytest.mark.parametrize("status, code, fix", ERRORS)
def test_hopeless_errors_stop_at_once(fake, seeds, tmp_path, status, code, fix):
    """Errors that no retry mends: one request, the fix, and no key in the text."""
    error = {"message": "Incorrect API key provided: secret-123", "type": "x", "code": code}
    fake.respond = lambda body: (status, FAST, {"error": error})
    with pytest.raises(TeacherError) as caught:
        run(tmp_path, seeds, concurrency=1)
    assert fix in str(caught.value) and "127.0.0.1" in str(caught.value)
    assert "secret-123" not in str(caught.value)
    assert len(fake.requests) == 1
    assert no_key_in(tmp_path)


@pytest.mark.parametrize("status", [400, 409, 418, 422, 500, 503])
def test_key_is_in_no_message(fake, seeds, tmp_path, status):
    """A server that repeats the key in its error does not get it into ours."""
    error = {"message": "bad request from Bearer secret-123", "type": "x", "code": "y"}
    fake.respond = lambda body: (status, FAST, {"error": error})
    with pytest.raises(TeacherError) as caught:
        run(tmp_path, seeds, concurrency=1)
    assert "secret-123" not in str(caught.value)
    assert no_key_in(tmp_path)


def test_key_is_not_in_the_teachers_repr(fake):
    """Printing a teacher shows its address and no key."""
    with open_teacher("openai", "fake-model") as teacher:
        assert "secret" not in repr(teacher) and fake.url in repr(teacher)


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_passing_errors_are_tried_again(fake, seeds, tmp_path, status):
    """Overload passes: the request is repeated and the run ends well."""

    def respond(body):
        if len(fake.requests) <= 2:
            return status, FAST, {"error": {"message": "busy", "code": "rate_limit_exceeded"}}
        return good_reply(body)

    fake.respond = respond
    outcome = run(tmp_path, seeds, concurrency=1)
    assert len(outcome.kept) == 12
    assert asked(fake)[:3] == [0, 0, 0]


def test_lasting_rate_limit(fake, seeds, tmp_path):
    """A limit that lasts is a TeacherError that says to lower concurrency."""
    fake.respond = lambda body: (429, FAST, {"error": {"message": "slow", "code": "rate_limit"}})
    with pytest.raises(TeacherError, match="concurrency"):
        run(tmp_path, seeds, concurrency=1)
    assert 3 <= len(fake.requests) <= 10


def test_nobody_listens(seeds, tmp_path, monkeypatch):
    """A wrong address is named with the variable that holds it."""
    from alpaca_lib.launch.launcher import free_port

    address = f"http://127.0.0.1:{free_port()}/v1"
    monkeypatch.setenv("OPENAI_BASE_URL", address)
    monkeypatch.setenv("OPENAI_API_KEY", "secret-123")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with open_teacher("openai", "m") as teacher:
        teacher.tries = 1
        with pytest.raises(TeacherError, match="OPENAI_BASE_URL") as caught:
            generate(teacher, seeds, HEADER, SETTINGS, tmp_path)
    assert address in str(caught.value)


@pytest.mark.parametrize(
    "headers, content",
    [
        ({"Content-Type": "text/html"}, b"<html>Welcome</html>"),
        ({}, {"id": "x", "object": "chat.completion", "choices": []}),
        ({}, {"id": "x", "object": "chat.completion", "choices": None}),
        ({}, {"detail": "ok"}),
    ],
)
def test_reply_that_is_none(fake, seeds, tmp_path, headers, content):
    """A 200 without a completion (a web page, no choices) is a TeacherError with the address."""
    fake.respond = lambda body: (200, headers, content)
    with pytest.raises(TeacherError, match=r"127\.0\.0\.1"):
        run(tmp_path, seeds, concurrency=1, max_requests=2)


def test_usage_may_be_missing(fake, seeds, tmp_path, make_chat):
    """Servers that count no tokens are served all the same."""

    def respond(body):
        answer = make_chat(good_reply(body))
        del answer["usage"]
        return 200, {}, answer

    fake.respond = respond
    outcome = run(tmp_path, seeds, concurrency=1)
    assert len(outcome.kept) == 12 and outcome.prompt_tokens == 0


def test_teacher_needs_key_model_and_kind(monkeypatch):
    """A key and a kind that are missing are named before any connection, a model after one."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(TeacherError, match="OPENAI_API_KEY"), open_teacher("openai", "m"):
        pass
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    with pytest.raises(TeacherError, match="needs the name of a model"), open_teacher("openai"):
        pass
    with pytest.raises(UsageError, match=r"'oracle'.*replay, openai"), open_teacher("oracle"):
        pass


def test_generation_loads_no_torch():
    """import alpaca_lib, .generation and .dataset load neither torch nor transformers."""
    code = (
        "import sys, alpaca_lib, alpaca_lib.generation, alpaca_lib.dataset\n"
        "import alpaca_lib.generation.self_instruct, alpaca_lib.dataset.statistics\n"
        "print([m for m in ('torch', 'transformers') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
