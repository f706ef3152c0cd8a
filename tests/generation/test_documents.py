"""Passages of the reader's documents: nothing lost, nothing twice, and traceable."""

from __future__ import annotations

import random
import re

import pytest

from alpaca_lib.errors import DataError, JournalError
from alpaca_lib.generation.documents import load_passages
from alpaca_lib.generation.self_instruct import Limits, Settings, generate
from alpaca_lib.generation.teacher import open_teacher
from alpaca_lib.records import load_examples
from tests.timing import timed

ENGLISH = (
    "Salt comes from the sea. It also comes from mines! Who would have thought? "
    "Version 2.5 of the e.g. list... goes on.\n"
)
CHINESE = "盐来自大海。也来自矿山！谁想得到呢？第２.５版的清单还在继续……\n"


def count_words(text: str) -> int:
    """Words as a reader counts them: an ideograph each, and the other pieces."""
    ideographs = re.findall(r"[\u4e00-\u9fff]", text)
    rest = re.sub(r"[\u4e00-\u9fff]", " ", text)
    return len(ideographs) + len(re.findall(r"\w\S*", rest))


def write(folder, texts: dict[str, str | bytes]):
    """Files below a folder, byte for byte."""
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return folder


def check_whole(folder, passages) -> None:
    """Spans point into their files, in order, apart, and miss nothing but white space."""
    by_file: dict[str, list] = {}
    for passage in passages:
        by_file.setdefault(passage.file, []).append(passage)
    for name, found in by_file.items():
        text = (folder / name).read_bytes().decode("utf-8-sig")
        end, left_out = 0, []
        for passage in found:
            assert text[passage.start : passage.end] == passage.text
            assert end <= passage.start < passage.end <= len(text)
            assert passage.text == passage.text.strip() != ""
            assert passage.source() == {
                "file": name,
                "start": passage.start,
                "end": passage.end,
            }
            left_out.append(text[end : passage.start])
            end = passage.end
        assert "".join([*left_out, text[end:]]).strip() == ""


def paragraphs(seed: int, count: int, sentence: str, gap: str) -> str:
    """Paragraphs of 1 to 12 sentences each."""
    draw = random.Random(seed)
    return gap.join((sentence.strip() + " ") * draw.randint(1, 12) for _ in range(count))


TEXTS = {
    "english": paragraphs(1, 30, ENGLISH, "\n\n"),
    "chinese": paragraphs(2, 30, CHINESE, "\n\n"),
    "chinese without spaces": (CHINESE.strip() * 9 + "\n\n") * 5,
    "mixed": paragraphs(3, 20, ENGLISH + CHINESE, "\n \t\n"),
    "windows": paragraphs(4, 20, ENGLISH, "\r\n\r\n"),
    "byte order mark": "\ufeff" + paragraphs(5, 5, ENGLISH, "\n\n"),
    "many blank lines": "\n\n\n  \n" + paragraphs(6, 9, ENGLISH, "\n\n\n\n \n") + "\n\n\t\n",
    "single lines": (ENGLISH * 40),
    "Markdown": "# Salt\n\n- sea. Yes.\n- mines\n\n```python\nprint('a.')\n\n\nprint(2)\n```\n",
    "one character": "x",
    "one Chinese character": "\n盐\n",
    "only stops": "... !!! 。。。 ? .",
    "odd white space": "a.\u2028b.\u00a0\u3000c.\x0bd.\x0c\n\x1c\n\u2029e.",
    "old Mac": ENGLISH.replace("\n", "\r") * 30,
    "no-break and zero width": "\u200b\n\n\u200b salt. \ufeff\n\nsea.",
    "emoji": "Salt 🧂. Sea 🌊! 👨‍👩‍👧‍👦\n\n" * 30,
}


@pytest.mark.parametrize("size", [1, 10, 60, 150])
@pytest.mark.parametrize("name", TEXTS)
def test_nothing_lost_nothing_twice(tmp_path, name, size):
    """Every character that is not white space is in exactly one passage."""
    passages = load_passages(write(tmp_path, {"a.txt": TEXTS[name]}), size)
    check_whole(tmp_path, passages)


@pytest.mark.parametrize("seed", range(5))
def test_nothing_lost_in_random_texts(tmp_path, seed):
    """The same for texts of random letters, stops and white space."""
    draw = random.Random(seed)
    alphabet = [
        "a",
        "Zz",
        "盐",
        "海水",
        ".",
        "。",
        "!",
        "？",
        " ",
        "\n",
        "\n\n",
        "\r\n",
        "\t",
        "“",
        "”",
        "\u3000",
    ]
    texts = {
        f"{n}.md": "x" + "".join(draw.choices(alphabet, k=draw.randint(1, 400))) for n in range(15)
    }
    for size in (1, 7, 30):
        passages = load_passages(write(tmp_path, texts), size)
        assert {p.file for p in passages} == set(texts)
        check_whole(tmp_path, passages)


@pytest.mark.parametrize("size", [20, 60, 150])
@pytest.mark.parametrize("name", ["english", "chinese", "chinese without spaces", "mixed"])
def test_passages_have_about_the_size(tmp_path, name, size):
    """No passage of many sentences is longer, and few are much shorter."""
    passages = load_passages(write(tmp_path, {"a.txt": TEXTS[name]}), size)
    lengths = [count_words(p.text) for p in passages]
    assert max(lengths) <= size
    # Two neighbours together would have been too long, up to one paragraph's end.
    assert sum(lengths) / len(lengths) > size / 3


def test_paragraphs_stay_whole_where_they_fit(tmp_path):
    """Short paragraphs are put together, and a passage ends with one of them."""
    lines = [f"Paragraph {n} has just these seven words." for n in range(20)]
    passages = load_passages(write(tmp_path, {"a.txt": "\n\n".join(lines)}), 22)
    assert [p.text for p in passages] == ["\n\n".join(lines[n : n + 3]) for n in range(0, 20, 3)]


def test_long_paragraphs_end_with_sentences(tmp_path):
    """A paragraph that is too long is cut between sentences, not at 2.5 or e.g. or www.x.y."""
    sentences = [f"See www.salt.org/v{n}.{n} for more on this one." for n in range(12)]
    sentences[5] = "Is 3.14 really enough?!"
    passages = load_passages(write(tmp_path, {"a.txt": " ".join(sentences)}), 16)
    for passage in passages:
        assert passage.text.startswith(("See", "Is")) and passage.text[-1] in ".!"
    assert " ".join(p.text for p in passages) == " ".join(sentences)
    assert len(passages) == 6


def test_chinese_sentences(tmp_path):
    """Chinese stops end a sentence without a space after them."""
    sentences = [f"第{n}句话说的是海里的盐从哪里来。" for n in "一二三四五六七八"]
    passages = load_passages(write(tmp_path, {"a.md": "".join(sentences)}), 32)
    assert [p.text for p in passages] == ["".join(sentences[n : n + 2]) for n in (0, 2, 4, 6)]


@pytest.mark.parametrize("text", ["他说：“盐来自大海。”她笑了。", "He said “go on.” She did so."])
def test_quotations_are_closed_where_they_are_opened(tmp_path, text):
    """No passage begins with a closing quotation mark."""
    passages = load_passages(write(tmp_path, {"a.txt": text * 4}), 9)
    assert len(passages) > 2
    assert not any(p.text.startswith("”") for p in passages)


def test_giant_paragraph_without_stops(tmp_path):
    """100,000 words without a stop: one passage, whole, and soon."""
    text = "salt and sea " * 33_333
    with timed() as spent:
        (passage,) = load_passages(write(tmp_path, {"a.txt": text}))
    assert spent.seconds < 3
    assert passage.text == text.strip()


@pytest.mark.parametrize(
    "text",
    [
        "a.\n\n" * 8_000,
        "Sea. " * 8_000,
        "a" + " " * 50_000 + "b",
        "\n" * 50_000 + "b",
        "盐。" * 4_000,
    ],
)
def test_large_files_are_read_soon(tmp_path, text):
    """Time grows with the size of a file, not with its square."""
    with timed() as spent:
        passages = load_passages(write(tmp_path, {"a.txt": text}))
    assert spent.seconds < 3
    check_whole(tmp_path, passages)


# --- files --------------------------------------------------------------------------


def test_files_below_a_folder(tmp_path):
    """Text files at any depth, in order of names; others and blank ones are passed over."""
    write(
        *(tmp_path,),
        {
            "b.txt": "B.", "a/z.md": "Z.", "a/b/c.rst": "C.", "c.TXT": "T.", "盐.md": "盐。",
            "blank.txt": "", "white.md": " \n\t\r\n\u3000", "only_mark.txt": b"\xef\xbb\xbf",
            "photo.png": b"\xff\xfe\x00", "page.html": "<p>no</p>", "txt": "no", "a.txt.bak": "no",
        },
    )  # fmt: skip
    passages = load_passages(tmp_path)
    assert [(p.file, p.text) for p in passages] == [
        ("a/b/c.rst", "C."),
        ("a/z.md", "Z."),
        ("b.txt", "B."),
        ("c.TXT", "T."),
        ("盐.md", "盐。"),
    ]
    assert load_passages(tmp_path) == passages


def test_order_does_not_depend_on_when_files_were_made(tmp_path):
    """The same files, made in another order: the same passages."""
    names = [f"{letter}/{number}.txt" for letter in "cab" for number in (10, 9, 1)]
    one = write(tmp_path / "one", {name: f"Text {name}." for name in names})
    other = write(tmp_path / "two", {name: f"Text {name}." for name in reversed(names)})
    assert load_passages(one) == load_passages(other)
    assert len(load_passages(one)) == 9


def test_single_file(tmp_path):
    """One file may be given instead of a folder, of whatever name."""
    write(tmp_path, {"notes/a.txt": TEXTS["english"], "notes/b.txt": "Other."})
    passages = load_passages(tmp_path / "notes" / "a.txt")
    assert {p.file for p in passages} == {"a.txt"}
    check_whole(tmp_path / "notes", passages)
    write(tmp_path, {"README": "Read me."})
    assert [p.file for p in load_passages(tmp_path / "README")] == ["README"]


def test_passages_do_not_run_from_file_to_file(tmp_path):
    """Short files are not put together, and positions start anew in each."""
    passages = load_passages(write(tmp_path, {"a.txt": "\n Sea.", "b.txt": "Salt."}))
    assert [(p.file, p.start, p.end) for p in passages] == [("a.txt", 2, 6), ("b.txt", 0, 5)]


def test_byte_order_mark_is_no_character(tmp_path):
    """Positions count from after the mark, as in a file that is opened with utf-8-sig."""
    write(tmp_path, {"a.txt": b"\xef\xbb\xbfSea. Salt."})
    (passage,) = load_passages(tmp_path)
    assert (passage.start, passage.text) == (0, "Sea. Salt.")


@pytest.mark.parametrize(
    "data", [b"\xff\xfeS\x00e\x00a\x00", b"PK\x03\x04\x80\x81", "Müller".encode("latin-1")]
)
def test_what_is_no_text_is_named(tmp_path, data):
    """A file that is not UTF-8 is an error that names it, wherever it lies."""
    write(tmp_path, {"a.txt": "Good.", "deep/bad.md": data})
    with pytest.raises(DataError, match=r"bad\.md.*UTF-8"):
        load_passages(tmp_path)


@pytest.mark.parametrize("texts", [{}, {"a.pdf": "x"}, {"a.txt": " \n\u3000"}, {"b/a.md": ""}])
def test_nothing_to_read(tmp_path, texts):
    """Neither an empty folder nor one with blank or other files will do; the kinds are named."""
    with pytest.raises(DataError, match=r"\.txt.*\.md.*\.rst") as caught:
        load_passages(write(tmp_path, texts))
    assert str(tmp_path) in str(caught.value)


def test_blank_file_given_alone_is_named(tmp_path):
    """The error for one blank file names it."""
    write(tmp_path, {"notes.txt": " \n"})
    with pytest.raises(DataError, match=r"notes\.txt"):
        load_passages(tmp_path / "notes.txt")


@pytest.mark.parametrize("name", ["nowhere", "nowhere.pdf"])
def test_missing_folder(tmp_path, name):
    """A wrong path is called missing."""
    with pytest.raises(DataError, match=r"no such|not found|not exist"):
        load_passages(tmp_path / name)


def test_folder_with_the_name_of_a_file(tmp_path):
    """A folder called like a text file is a folder."""
    write(tmp_path, {"site.md/page.md": "Sea.", "b.txt": "Salt."})
    assert [p.text for p in load_passages(tmp_path)] == ["Salt.", "Sea."]


# --- in a run -----------------------------------------------------------------------

HEADER = "Write {count} tasks."
SETTINGS = Settings(tasks_wanted=12, seeds_per_prompt=3, tasks_per_request=2, seed=5)
SYLLABLES = [
    f"{a}{b}" for a in ("ba", "ke", "lo", "mu", "ni") for b in ("dan", "fol", "gim", "tup")
]


def reply_about(body) -> str:
    """Two tasks: one names the first word of the passage, both are of the request's own words."""
    prompt = body["messages"][0]["content"]
    word = re.search(r"<text>\n(\w+)", prompt)[1]
    draw = random.Random(body["seed"])
    texts = [f"{word} {' '.join(draw.sample(SYLLABLES, 6))}." for _ in range(2)]
    return "###\n".join(
        f"{n}. Instruction: {text}\n{n}. Input:\n<noinput>\n{n}. Output:\nx\n"
        for n, text in enumerate(texts, 4)
    )


@pytest.fixture
def documents(tmp_path):
    """Three files, whose passages begin with words of their own."""
    words = ["Salt", "Sea", "Mine"]
    return write(
        tmp_path / "documents",
        {
            f"{word}.txt": "\n\n".join(f"{word}{n} " + "is in here. " * 45 for n in range(3))
            for word in words
        },
    )


def run(folder, seeds, passages, settings=SETTINGS, **limits):
    """One grounded run."""
    with open_teacher("openai", "fake-model") as teacher:
        return generate(teacher, seeds, HEADER, settings, folder, Limits(**limits), passages)


@pytest.mark.parametrize("concurrency", [1, 6])
def test_each_task_says_where_its_text_stands(fake, seeds, tmp_path, documents, concurrency):
    """source in regen.json leads to the passage that the task's prompt showed."""
    fake.respond = reply_about
    passages = load_passages(documents)
    assert len(passages) == 9
    outcome = run(tmp_path / "run", seeds, passages, concurrency=concurrency)
    kept = load_examples(tmp_path / "run" / "regen.json")
    assert len(kept) >= 12 and outcome.ended == "enough"
    used = set()
    for task in kept:
        source = task.extra["source"]
        assert set(source) == {"file", "start", "end"}
        text = (documents / source["file"]).read_text("utf-8")[source["start"] : source["end"]]
        assert text.split()[0] == task.instruction.split()[0]
        assert any(text in body["messages"][0]["content"] for body in fake.requests)
        used.add(text)
    assert len(used) > 2


def test_grounded_run_can_be_stopped(fake, seeds, tmp_path, documents):
    """Stopped and resumed with the same documents: the bytes of a run in one go."""
    fake.respond = reply_about
    run(tmp_path / "whole", seeds, load_passages(documents), concurrency=1)
    for most in (2, None):
        run(tmp_path / "parts", seeds, load_passages(documents), concurrency=3, max_requests=most)
    whole, parts = (tmp_path / name / "regen.json" for name in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes()


def test_resume_with_other_documents_is_refused(fake, seeds, tmp_path, documents):
    """Whatever changes in the documents, the journal's replies are about other text."""
    fake.respond = reply_about
    passages = load_passages(documents)
    run(tmp_path / "run", seeds, passages, max_requests=2, concurrency=1)
    path = documents / "Sea.txt"
    text = path.read_text("utf-8")
    path.write_text(text.replace("Sea1", "Sea9"), "utf-8")
    changed = {"a word": load_passages(documents)}
    path.write_text("\n" + text, "utf-8")
    changed["a line"] = load_passages(documents)
    path.write_text(text, "utf-8")
    assert load_passages(documents) == passages
    changed["a file more"] = load_passages(write(documents, {"new.md": "New."}))
    (documents / "new.md").unlink()
    path.rename(documents / "See.txt")
    changed["a name"] = load_passages(documents)
    (documents / "See.txt").unlink()
    changed["a file less"] = load_passages(documents)
    changed["the order"] = passages[::-1]
    changed["none left"] = []
    for found in changed.values():
        with pytest.raises(JournalError, match="another configuration"):
            run(tmp_path / "run", seeds, found)
    assert len(fake.requests) == 2
    assert run(tmp_path / "run", seeds, passages, max_requests=3).resumed_requests == 2


def test_journal_of_a_run_without_documents_refuses_them(fake, seeds, tmp_path, documents):
    """A plain run's folder is no place for a grounded one; without any it goes on."""
    fake.respond = lambda body: reply_about({**body, "messages": [{"content": "<text>\nSay"}]})
    run(tmp_path / "run", seeds, [], max_requests=1)
    with pytest.raises(JournalError):
        run(tmp_path / "run", seeds, load_passages(documents))
    outcome = run(tmp_path / "run", seeds, [], SETTINGS.replace(tasks_wanted=4))
    assert outcome.resumed_requests == 1
    assert all("source" not in task.extra for task in outcome.kept)
