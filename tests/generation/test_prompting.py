"""Prompts: what a request shows, and that it depends on nothing that could come late."""

from __future__ import annotations

import hashlib
import json
import random
import re
import time

import pytest

from alpaca_lib.errors import DataError, JournalError
from alpaca_lib.generation.documents import Passage
from alpaca_lib.generation.prompting import Prompter
from alpaca_lib.generation.self_instruct import Limits, Settings, generate
from alpaca_lib.generation.teacher import open_teacher
from alpaca_lib.records import Example, load_examples

HEADER = "Write {count} tasks."
PLAIN = Settings(seeds_per_prompt=3, tasks_per_request=4, seed=5)
MIXED = PLAIN.replace(machine_tasks=2, window=2)
TOPICS = ("glaciers", "bee keeping", "tax law", "chess")
SYLLABLES = [
    f"{a}{b}"
    for a in ["ba", "ke", "lo", "mu", "ni", "po", "ra", "su", "ti", "ve"]
    for b in ["dan", "fol", "gim", "ner", "tup"]
]
EACH = 3  # tasks kept from each reply in the tests without a server


def machine(reply: int, place: int, kind: str = "machine") -> Example:
    """A task that names the reply that it came from."""
    return Example(f"Ask about {kind} {reply}.{place} here.", "", f"{kind} answer")


def kept_from(replies: int, kind: str = "machine") -> tuple[list[Example], list[int]]:
    """(kept, kept_after) of so many replies."""
    kept = [machine(reply, place, kind) for reply in range(replies) for place in range(EACH)]
    return kept, [EACH * (reply + 1) for reply in range(replies)]


def shown_in(text: str) -> list[tuple[int, str]]:
    """(number, instruction) of every entry that a text prompt shows."""
    found = re.findall(r"^(\d+)\. Instruction: (.+)$", text, re.MULTILINE)
    return [(int(number), instruction) for number, instruction in found]


def rows_in(text: str) -> list[dict[str, str]]:
    """The tasks that a JSON prompt shows, by a decoder that knows nothing of prompts."""
    return json.JSONDecoder().raw_decode(text, text.index("{"))[0]["tasks"]


# --- seed and request alone ---------------------------------------------------------


@pytest.mark.parametrize("reply_format", ["text", "json"])
@pytest.mark.parametrize("topics", [(), TOPICS])
def test_without_machine_tasks_nothing_else_counts(seeds, topics, reply_format):
    """No machine tasks, no verbs: whatever was kept, (seed, request) gives the same prompt."""
    settings = PLAIN.replace(topics=topics, reply_format=reply_format)
    kept, after = kept_from(60)
    for request in (0, 1, 7, 59):
        alone = Prompter(seeds, HEADER, settings).prompt(request).text
        assert Prompter(seeds, HEADER, settings).prompt(request, kept, after).text == alone
        assert "machine" not in alone
    every = {Prompter(seeds, HEADER, settings).prompt(n).text for n in range(30)}
    assert len(every) > 20
    other = settings.replace(seed=6)
    assert every != {Prompter(seeds, HEADER, other).prompt(n).text for n in range(30)}


def test_order_of_asking_does_not_count(seeds):
    """One Prompter asked backwards and twice, and a fresh one each time, agree."""
    passages = [Passage("a.txt", n, n + 1, f"passage {n}") for n in range(9)]
    prompter = Prompter(seeds, HEADER, PLAIN.replace(topics=TOPICS), passages)
    backwards = {n: prompter.prompt(n) for n in reversed(range(20))}
    for n in range(20):
        assert prompter.prompt(n) == backwards[n]
        assert (
            Prompter(seeds, HEADER, PLAIN.replace(topics=TOPICS), passages).prompt(n)
            == (backwards[n])
        )


def test_seeds_shown_are_different_ones_of_all(seeds):
    """A prompt shows no seed twice, and over many requests each seed has its turn."""
    seen = set()
    for request in range(60):
        shown = [text for _, text in shown_in(Prompter(seeds, HEADER, PLAIN).prompt(request).text)]
        assert len(shown) == len(set(shown)) == 3
        seen |= set(shown)
    assert seen == {seed.instruction for seed in seeds}


# --- machine tasks and the window ---------------------------------------------------


@pytest.mark.parametrize("window", [0, 1, 2, 5, 64])
@pytest.mark.parametrize("verbs", [(), ("ask", "weigh")])
def test_only_replies_before_the_window_count(seeds, window, verbs):
    """Request k: tasks from reply k - window on may be anything, or not there yet."""
    settings = MIXED.replace(window=window, verbs=verbs, topics=TOPICS)
    prompter = Prompter(seeds, HEADER, settings)
    kept, after = kept_from(12)
    strangers, _ = kept_from(12, "stranger")
    for request in range(12):
        known = max(request - window, 0)
        expected = prompter.prompt(request, kept, after).text
        changed = kept[: EACH * known] + strangers[EACH * known :]
        assert prompter.prompt(request, changed, after).text == expected
        cut = prompter.prompt(request, kept[: EACH * known], after[:known]).text
        assert cut == expected
        sources = [int(n) for n in re.findall(r"machine (\d+)\.", expected)]
        assert all(source < known for source in sources)
        assert len(sources) == (2 if known else 0)


def test_replies_before_the_window_do_count(seeds):
    """The newest reply that a prompt may know is among those that it draws from."""
    prompter = Prompter(seeds, HEADER, MIXED)
    newest = set()
    for request in range(3, 60):
        kept, after = kept_from(request + 1)
        text = prompter.prompt(request, kept, after).text
        newest |= {request - int(n) for n in re.findall(r"machine (\d+)\.", text)}
    assert min(newest) == MIXED.window + 1


def test_replies_that_gave_nothing_are_counted_all_the_same(seeds):
    """The window is in replies, not in tasks."""
    prompter = Prompter(seeds, HEADER, MIXED)
    kept = [machine(0, 0), machine(2, 0), machine(4, 0)]
    after = [1, 1, 2, 2, 3]
    for request, known in {2: 0, 3: 1, 4: 1, 5: 2, 6: 2, 7: 3}.items():
        text = prompter.prompt(request, kept, after).text
        assert text.count("machine answer") == min(known, 2)
        if known == 1:
            assert kept[0].instruction in text


@pytest.mark.parametrize("reply_format", ["text", "json"])
@pytest.mark.parametrize("available", range(5))
def test_seeds_fill_in(seeds, available, reply_format):
    """With 0, 1 or more machine tasks there are always five entries, the rest are seeds."""
    prompter = Prompter(seeds, HEADER, MIXED.replace(reply_format=reply_format))
    kept = [machine(0, place) for place in range(available)]
    for request in range(3, 20):
        prompt = prompter.prompt(request, kept, [available] * request)
        if reply_format == "json":
            shown = [row["instruction"] for row in rows_in(prompt.text)]
        else:
            numbers = [n for n, _ in shown_in(prompt.text)]
            assert numbers == [1, 2, 3, 4, 5]
            assert prompt.text.endswith("###\n6. Instruction:")
            shown = [text for _, text in shown_in(prompt.text)]
        assert prompt.first_number == 6
        assert len(shown) == len(set(shown)) == 5
        assert sum("machine" in text for text in shown) == min(available, 2)
        assert {t for t in shown if "machine" not in t} <= {s.instruction for s in seeds}
        assert "Write 9 tasks." in prompt.text  # 5 shown and 4 new, whatever they are


def test_machine_tasks_are_mixed_in(seeds):
    """The teacher's own tasks do not always stand in the same places."""
    prompter = Prompter(seeds, HEADER, MIXED)
    kept, after = kept_from(40)
    places = set()
    for request in range(3, 40):
        entries = shown_in(prompter.prompt(request, kept, after).text)
        places |= {number for number, text in entries if "machine" in text}
    assert places == {1, 2, 3, 4, 5}


def test_only_machine_tasks(seeds):
    """seeds_per_prompt may be 0: seeds stand in until there are tasks."""
    prompter = Prompter(seeds, HEADER, MIXED.replace(seeds_per_prompt=0, machine_tasks=4))
    kept, after = kept_from(4)
    first, later = prompter.prompt(0, kept, after), prompter.prompt(6, kept, [*after, 12, 12])
    assert first.first_number == later.first_number == 5
    assert "machine" not in first.text
    assert all("machine" in text for _, text in shown_in(later.text))


@pytest.mark.parametrize("window", [0, 1, 7])
def test_ready(seeds, window):
    """A request waits for reply request - window - 1, and only if a prompt needs replies."""
    for settings in (MIXED.replace(window=window), PLAIN.replace(window=window, verbs=("go",))):
        prompter = Prompter(seeds, HEADER, settings)
        assert not prompter.is_ready(10**6, 0)
        for request in range(20):
            for judged in range(20):
                every = all(reply < judged for reply in range(request - window))
                assert prompter.is_ready(request, judged) is every
    free = Prompter(seeds, HEADER, PLAIN.replace(window=window, topics=TOPICS))
    assert free.is_ready(10**6, 0)


# --- topics, verbs, passages --------------------------------------------------------


def test_topics(seeds):
    """One topic is said above the header, each has its turn, and Prompt.topic is that one."""
    prompter = Prompter(seeds, HEADER, PLAIN.replace(topics=TOPICS))
    drawn = set()
    for request in range(60):
        prompt = prompter.prompt(request)
        above = prompt.text.split("Write 7 tasks.")[0]
        assert [topic for topic in TOPICS if topic in above] == [prompt.topic]
        drawn.add(prompt.topic)
    assert drawn == set(TOPICS)
    assert Prompter(seeds, HEADER, PLAIN).prompt(0).topic == ""


def test_topic_and_passage_do_not_depend_on_kept_tasks(seeds):
    """Other replies before the window: the same topic and passage all the same."""
    passages = [Passage("a.txt", n, n + 1, f"passage {n}") for n in range(9)]
    prompter = Prompter(seeds, HEADER, MIXED.replace(topics=TOPICS), passages)
    for request in range(3, 30):
        drawn = set()
        for each in (0, 1, 2, 5, 40, 300):
            kept = [machine(0, place) for place in range(each)]
            prompt = prompter.prompt(request, kept, [each] * request)
            drawn.add((prompt.topic, prompt.passage.start))
        assert len(drawn) == 1


def named(text: str, verbs) -> set[str]:
    """The verbs that a prompt names above its header."""
    return set(re.findall(r"\w+", text.split(HEADER[:6])[0])) & set(verbs)


def test_rarest_verbs_are_named(seeds):
    """Of twelve verbs, eight that begin fewest instructions of seeds and kept tasks."""
    used = ["Explain", "Translate", "Compose", "Sort"]  # one seed begins with each
    unused = [f"verb{letter}" for letter in "abcdefgh"]
    settings = PLAIN.replace(window=0, verbs=tuple(v.lower() for v in used) + tuple(unused))
    for seed in range(5):
        prompter = Prompter(seeds, HEADER, settings.replace(seed=seed))
        assert named(prompter.prompt(0).text, settings.verbs) == set(unused)
    # Two kept tasks with each of four of them: now the seeds' verbs are rarer.
    kept = [Example(f"{v.capitalize()}: say more about {n}.") for v in unused[:4] for n in (1, 2)]
    prompter = Prompter(seeds, HEADER, settings)
    text = prompter.prompt(4, kept, [2, 4, 6, 8]).text
    assert named(text, settings.verbs) == {*unused[4:], *(v.lower() for v in used)}
    # What reply 1 and later gave is not yet known to request 1.
    assert named(prompter.prompt(1, kept, [2, 4, 6, 8]).text, settings.verbs) <= {
        *unused[1:],
        *(v.lower() for v in used),
    }


def test_verbs_that_are_equally_rare_take_turns(seeds):
    """Twenty unused verbs: each is named now and then, eight at a time, none twice."""
    verbs = tuple(f"v{number}" for number in range(20))
    prompter = Prompter(seeds, HEADER, PLAIN.replace(verbs=verbs + verbs))
    seen = set()
    for request in range(30):
        above = prompter.prompt(request).text.split(HEADER[:6])[0]
        names = re.findall(r"\bv\d+\b", above)
        assert len(names) == len(set(names)) == 8
        seen |= set(names)
    assert seen == set(verbs)


def test_few_verbs_are_all_named(seeds):
    """Fewer than eight verbs: all of them, rarest first."""
    prompter = Prompter(seeds, HEADER, PLAIN.replace(verbs=("sort", "weigh")))
    assert "weigh, sort" in prompter.prompt(0).text


def test_chinese_verbs_are_counted_inside_a_sentence():
    """Chinese has no spaces: a verb counts wherever it stands."""
    chinese = [
        Example("请把这段话翻译成英文。"),
        Example("帮我翻译并概括这篇文章。"),
        Example("把下面的句子改写得更礼貌。"),
        Example("请概括这个故事。"),
    ]
    settings = PLAIN.replace(
        language="zh", verbs=("翻译", "概括", "改写", "推测"), reply_format="json"
    )
    text = Prompter(chinese, "写{count}个", settings).prompt(0).text
    named_verbs = re.findall("翻译|概括|改写|推测", text.split("写7个")[0])
    assert named_verbs[:2] == ["推测", "改写"]
    assert set(named_verbs[2:]) == {"翻译", "概括"}
    kept = [Example(f"请推测第{n}个人的职业。") for n in range(3)]
    later = Prompter(chinese, "写{count}个", settings.replace(window=0)).prompt(1, kept, [3]).text
    assert re.findall("翻译|概括|改写|推测", later.split("写7个")[0])[-1] == "推测"


def test_chinese_verb_with_a_capital_letter():
    """ "P图" in three instructions is less rare than a verb in none."""
    chinese = [Example(f"请告诉我怎样P图，第{n}步是什么。") for n in range(3)]
    settings = PLAIN.replace(language="zh", verbs=("P图", "推测"))
    for request in range(6):
        assert "推测, P图" in Prompter(chinese, "写", settings).prompt(request).text


@pytest.mark.parametrize("reply_format", ["text", "json"])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_passages(seeds, language, reply_format):
    """The passage stands whole between marks above the header, and Prompt.passage is it."""
    texts = [
        "Rain {count} falls.\n\nIt is wet {verbs}.",
        "雨水{topic}落下。",
        'A "quote" \\ and ###',
    ]
    passages = [Passage("a.txt", n, n + 9, text) for n, text in enumerate(texts)]
    settings = PLAIN.replace(language=language, reply_format=reply_format, topics=("ice",))
    prompter = Prompter(seeds, HEADER, settings, passages)
    drawn = set()
    for request in range(30):
        prompt = prompter.prompt(request)
        assert f"<text>\n{prompt.passage.text}\n</text>" in prompt.text.split("Write 7 tasks.")[0]
        assert prompt.text.count("<text>") == 1
        drawn.add(prompt.passage.text)
    assert drawn == set(texts)
    assert Prompter(seeds, HEADER, settings).prompt(0).passage is None


# --- JSON and Chinese ---------------------------------------------------------------


@pytest.mark.parametrize("language", ["en", "zh"])
def test_json_prompts_show_valid_json(language):
    """Braces, quotes, line ends and half emojis in tasks: the JSON decodes to the tasks."""
    texts = ['Say "{x}" and \\n.', "a\nb ```json", "{count} {new}", "说“好”。", "half \ud83d"]
    odd = [Example(text, text if n % 2 else "", text) for n, text in enumerate(texts)]
    settings = PLAIN.replace(seeds_per_prompt=5, reply_format="json", language=language)
    for request in range(5):
        prompt = Prompter(odd, "Write {count}.", settings).prompt(request)
        assert prompt.text.startswith("Write 9.\n")
        rows = rows_in(prompt.text)
        assert sorted((r["instruction"], r["input"], r["output"]) for r in rows) == sorted(
            (e.instruction, e.input, e.output) for e in odd
        )
        assert all(set(row) == {"instruction", "input", "output"} for row in rows)
        assert "noinput" not in prompt.text and "Instruction:" not in prompt.text
        end = json.JSONDecoder().raw_decode(prompt.text, prompt.text.index("{"))[1]
        rest = prompt.text[end:]
        assert "4" in re.findall(r"\d+", rest) and '{"tasks": [...]}' in rest


def test_text_prompts_mark_what_has_no_input(seeds):
    """In the text format a task without input says <noinput>; one with input never does."""
    by_text = {seed.instruction: seed for seed in seeds}
    entries = Prompter(seeds, HEADER, PLAIN).prompt(0).text.split("###\n")[1:-1]
    assert len(entries) == 3
    for entry in entries:
        seed = by_text[shown_in(entry)[0][1]]
        assert ("<noinput>" in entry) == (seed.input == "")
        assert seed.input in entry and seed.output in entry


def test_shipped_seeds_and_header(repository):
    """Every one of the course's prompts is whole: numbers, marks and language."""
    for language, seed_file in (("en", "seed_tasks.jsonl"), ("zh", "seed_tasks_zh.jsonl")):
        shipped = load_examples(repository / "data" / seed_file)
        header = (repository / "data" / "prompts" / f"generate_{language}.txt").read_text("utf-8")
        for reply_format in ("text", "json"):
            settings = Settings(language=language, reply_format=reply_format)
            for request in range(6):
                text = Prompter(shipped, header, settings).prompt(request).text
                assert "{" not in text.split("\n")[0] and "23" in text
                if reply_format == "json":
                    assert all("noinput" not in row["input"] for row in rows_in(text))


@pytest.mark.parametrize("reply_format", ["text", "json"])
def test_chinese_additions_are_chinese(seeds, reply_format):
    """What the library adds in Chinese holds no English sentence, and the other way round."""
    passages = [Passage("a.txt", 0, 2, "〇〇")]
    for language in ("en", "zh"):
        settings = PLAIN.replace(
        language=language, reply_format=reply_format, topics=("〇",), verbs=("〇〇〇",),
        )  # fmt: skip
        text = Prompter(seeds, "=====", settings, passages).prompt(0).text
        said = text.split("=====")[0]
        if reply_format == "json":
            said += text[text.rindex("}\n\n") :]
        ideographs = len(re.findall(r"[\u4e00-\u9fff]", said))
        longest = max(len(run) for run in re.findall(r"[A-Za-z ,.]+", said))
        assert (ideographs > 25, longest > 25) == (language == "zh", language == "en")
        assert "〇" in said and "{" not in said.replace('{"tasks": [...]}', "")


def test_language_of_the_header(seeds):
    """No language set: the header's own, en or zh, to the character."""
    for header, language in ((HEADER, "en"), ("写{count}个任务。", "zh")):
        for reply_format in ("text", "json"):
            settings = PLAIN.replace(topics=TOPICS, reply_format=reply_format, language="")
            known = settings.replace(language=language)
            other = settings.replace(language={"en": "zh", "zh": "en"}[language])
            for request in range(3):
                text = Prompter(seeds, header, settings).prompt(request).text
                assert text == Prompter(seeds, header, known).prompt(request).text
                assert text != Prompter(seeds, header, other).prompt(request).text


def test_only_short_seeds_are_shown():
    """seed_words: a seed whose three texts have more words in all is never shown."""
    mixed = [Example(f"Say number {n}.", "a b", "x " * n) for n in range(1, 9)]  # n + 5 words
    settings = PLAIN.replace(seed_words=9)
    shown = {
        t for n in range(40) for _, t in shown_in(Prompter(mixed, HEADER, settings).prompt(n).text)
    }
    assert shown == {f"Say number {n}." for n in range(1, 5)}
    free = PLAIN.replace(seed_words=0)
    shown = {
        t for n in range(40) for _, t in shown_in(Prompter(mixed, HEADER, free).prompt(n).text)
    }
    assert len(shown) == 8
    with pytest.raises(DataError, match=r"^2 seed tasks of at most 7 words.*shows 3"):
        Prompter(mixed, HEADER, PLAIN.replace(seed_words=7))


# --- errors -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "seed_count, machine_tasks, fits", [(8, 5, True), (8, 6, False), (2, 0, False)]
)
def test_too_few_seeds(seeds, seed_count, machine_tasks, fits):
    """Seeds must do for the first prompt, which shows no machine tasks yet."""
    settings = PLAIN.replace(machine_tasks=machine_tasks)
    if fits:
        assert Prompter(seeds[:seed_count], HEADER, settings).prompt(0).first_number == 9
        return
    with pytest.raises(DataError, match=rf"{seed_count} seed tasks.*seeds_per_prompt"):
        Prompter(seeds[:seed_count], HEADER, settings)


@pytest.mark.parametrize("language", [" ", "EN", "fr", "english"])
def test_unknown_language(seeds, language):
    """An unknown language is named, with those there are."""
    with pytest.raises(ValueError, match=rf"'{language}'.*en, zh"):
        Prompter(seeds, HEADER, PLAIN.replace(language=language))


# --- whole runs ---------------------------------------------------------------------

RUN = Settings(
    tasks_wanted=16, seeds_per_prompt=3, machine_tasks=2, window=2, tasks_per_request=3, seed=5,
    topics=TOPICS, verbs=("say", "weigh", "rank", *SYLLABLES[:9]),
)  # fmt: skip


def reply_to(body, tail: str = "") -> str:
    """Three tasks that depend on every letter of the prompt; the third repeats the first."""
    prompt = body["messages"][0]["content"]
    draw = random.Random(hashlib.sha256(prompt.encode("utf-8", "replace")).hexdigest())
    first, second = draw.sample(SYLLABLES, 6), draw.sample(SYLLABLES, 6)
    tasks = [("Say", first), ("Rank", second), ("Say", first)]
    texts = [f"{verb} {' '.join(words)}{tail}." for verb, words in tasks]
    if "response_format" in body:
        rows = [{"instruction": text, "input": None, "output": "x"} for text in texts]
        return json.dumps({"tasks": rows})
    return "###\n".join(
        f"{n}. Instruction: {text}\n{n}. Input:\n<noinput>\n{n}. Output:\nx\n"
        for n, text in enumerate(texts, 6)
    )


def run(folder, seeds, settings=RUN, **limits):
    """One generation run against the fake server."""
    with open_teacher("openai", "fake-model") as teacher:
        return generate(teacher, seeds, HEADER, settings, folder, Limits(**limits))


def prompts_of(fake, settings=RUN) -> dict[int, str]:
    """The prompt of each request that the server has seen; each was asked once."""
    first = settings.seed * 1_000_003
    found = {body["seed"] - first: body["messages"][0]["content"] for body in fake.requests}
    assert len(found) == len(fake.requests)
    return found


@pytest.mark.parametrize("reply_format, concurrencies", [("text", (1, 3, 8)), ("json", (8,))])
def test_runs_with_machine_tasks_do_not_depend_on_latency(
    fake, seeds, tmp_path, reply_format, concurrencies
):
    """Concurrency 1, 3 and 8 and random delays: the same prompts, the same regen.json."""
    fake.respond = reply_to
    settings = RUN.replace(reply_format=reply_format)
    outcome = run(tmp_path / "1", seeds, settings, concurrency=1)
    expected, prompts = (tmp_path / "1" / "regen.json").read_bytes(), prompts_of(fake)
    assert outcome.ended == "enough" and len(prompts) >= 6
    own = [task.instruction for task in outcome.kept]
    assert sum(text in prompts[n] for n in prompts for text in own) > len(prompts)
    for concurrency in concurrencies:
        draw = random.Random(concurrency)
        fake.requests.clear()
        fake.delay = lambda body, draw=draw: draw.random() / 30
        folder = tmp_path / f"slow {concurrency}"
        run(folder, seeds, settings, concurrency=concurrency)
        assert (folder / "regen.json").read_bytes() == expected
        asked = prompts_of(fake)
        assert {n: asked[n] for n in prompts} == prompts


def test_no_request_goes_out_before_its_window(fake, seeds, tmp_path):
    """While reply 0 is held back, requests 1 and 2 are sent, and none past the window."""
    seen_while_held: list[int] = []

    def delay(body):
        if body["seed"] == RUN.seed * 1_000_003:
            deadline = time.monotonic() + 20
            while len(fake.requests) < 3 and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.3)  # time enough for a request that may not come
            seen_while_held.extend(prompts_of(fake))
        return 0.0

    fake.respond, fake.delay = reply_to, delay
    run(tmp_path, seeds, RUN.replace(tasks_wanted=12), concurrency=8)
    assert sorted(seen_while_held) == [0, 1, 2]


def test_stopped_run_with_machine_tasks_goes_on(fake, seeds, tmp_path):
    """Stopped and resumed: the same prompts as in one go, none asked twice, the same bytes."""
    fake.respond = reply_to
    run(tmp_path / "whole", seeds, concurrency=1)
    whole = prompts_of(fake)
    fake.requests.clear()
    for most in (1, 4):
        run(tmp_path / "parts", seeds, concurrency=1, max_requests=most)
        assert sorted(prompts_of(fake)) == list(range(most))
    run(tmp_path / "parts", seeds, concurrency=1)
    assert prompts_of(fake) == whole
    name = "regen.json"
    assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_topic_is_recorded_with_each_task(fake, seeds, tmp_path):
    """extra["topic"] is the topic of the prompt that the task came from."""
    fake.respond = reply_to
    outcome = run(tmp_path, seeds, concurrency=3)
    prompts, start = prompts_of(fake), 0
    for number, end in enumerate(outcome.kept_after_request):
        for task in load_examples(tmp_path / "regen.json")[start:end]:
            assert task.extra["topic"] in prompts[number].split("Write")[0]
        start = end


def test_what_changes_a_prompt_refuses_a_resume(fake, seeds, tmp_path):
    """Other prompts than the journal's replies were asked with: JournalError."""
    fake.respond = reply_to
    run(tmp_path, seeds, concurrency=1, max_requests=1)
    for change in (
        {"machine_tasks": 1},
        {"window": 3},
        {"topics": ()},
        {"topics": TOPICS[:2]},
        {"verbs": ("go",)},
        {"language": "zh"},
        {"reply_format": "json"},
        {"tasks_per_request": 4},
    ):
        with pytest.raises(JournalError, match="another configuration"):
            run(tmp_path, seeds, RUN.replace(**change), concurrency=1)
    assert len(fake.requests) == 1


def test_topics_are_not_verbs(fake, seeds, tmp_path):
    """The same words as verbs instead of topics are another run."""
    fake.respond = reply_to
    words = ("rank", "weigh")
    settings = RUN.replace(topics=words, verbs=())
    run(tmp_path, seeds, settings, concurrency=1, max_requests=1)
    with pytest.raises(JournalError):
        run(tmp_path, seeds, settings.replace(topics=(), verbs=words), max_requests=1)


def test_half_an_emoji_in_a_machine_task(fake, seeds, tmp_path):
    """A reply with half an emoji does not end the run when its task is shown again."""
    fake.respond = lambda body: reply_to(body, " \ud83d")
    assert run(tmp_path, seeds, concurrency=1).ended == "enough"


def test_half_an_emoji_in_json(fake, seeds, tmp_path):
    """In JSON prompts the same half emoji is escaped, and the run ends well."""
    settings = RUN.replace(reply_format="json")
    fake.respond = lambda body: reply_to(body, " \ud83d")
    assert run(tmp_path, seeds, settings, concurrency=1).ended == "enough"
