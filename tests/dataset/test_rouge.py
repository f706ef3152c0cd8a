"""ROUGE-L novelty against rouge_score: values to the last bit, decisions one by one."""

from __future__ import annotations

import random

import pytest

from alpaca_lib.dataset.rouge import (
    Decision,
    NoveltyIndex,
    filter_novel,
    rouge_l,
    tokenize,
)
from alpaca_lib.errors import DataError

tokenize_module = pytest.importorskip("rouge_score.tokenize")
scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"], use_stemmer=False)


def reference(a: str, b: str) -> float:
    """rouge_score's F-measure."""
    return scorer.score(a, b)["rougeL"].fmeasure


def pair(common: int, m: int, n: int) -> tuple[str, str]:
    """Two texts of m and n tokens whose longest common subsequence is ``common``."""
    shared = [f"c{k}" for k in range(common)]
    return (
        " ".join(shared + [f"a{k}" for k in range(m - common)]),
        " ".join([f"b{k}" for k in range(n - common)] + shared),
    )


BOUNDARY = [
    (common, m, 20 * common // 7 - m)
    for common in range(7, 50, 7)
    for m in range(common, 20 * common // 7 - common + 1)
]


def reference_tokens(text: str) -> list[str]:
    """The tokens of rouge_score itself."""
    return tokenize_module.tokenize(text, None)


@pytest.mark.parametrize(
    "common, m, n", [(7, 7, 13), (7, 8, 12), (7, 9, 11), (7, 10, 10), (14, 20, 20)]
)
def test_named_boundary_triples(common, m, n):
    """F is exactly 0.7 on paper; in floats it is what rouge_score computes."""
    a, b = pair(common, m, n)
    assert rouge_l(a, b) == reference(a, b)
    assert (rouge_l(a, b) > 0.7) == ((common, m, n) in [(7, 7, 13), (7, 8, 12), (7, 9, 11)])
    assert filter_novel([b], [a])[0].kept == (reference(a, b) <= 0.7)


def test_all_boundary_triples():
    """Each triple with 20 L = 7 (m + n), up to L = 49, is decided as by rouge_score."""
    assert len(BOUNDARY) > 150
    above = 0
    for triple in BOUNDARY:
        a, b = pair(*triple)
        expected = reference(a, b)
        assert rouge_l(a, b) == rouge_l(b, a) == expected, triple
        above += expected > 0.7
    assert 0 < above < len(BOUNDARY)  # the floats fall to both sides


def test_random_token_lists():
    """Random lists over small and large vocabularies: the same float, bit for bit."""
    draw = random.Random(1)
    for _ in range(1500):
        words = [f"w{k}" for k in range(draw.choice([1, 2, 4, 10, 300]))]
        a = " ".join(draw.choices(words, k=draw.randint(0, 30)))
        b = " ".join(draw.choices(words, k=draw.randint(0, 90)))
        assert rouge_l(a, b) == reference(a, b), (a, b)


ADVERSARIAL = [
    "", " ", "!!!", "a", "A", "a a a a", "Don't stop.", "don t stop", "café naïve", "caf na ve",
    "ﬁnd the ﬁle", "İstanbul ISTANBUL", "KELVIN K", "x1y2 3z", "under_score under score",
    "１２３ 123",    "tab\tnew\nline\x0bfeed",
    "a\u2028b", "你好 5", "5", "emoji 🦙 llama", "\ud800 lone",
    "e\u0301 é",    "the " * 200, " ".join(map(str, range(300))), "ß SS ss", "ⅷ viii", "x\x00y",
]  # fmt: skip


def test_adversarial_texts():
    """Empty, accented, mixed and very long texts: tokens and values are rouge_score's."""
    tokenizer = scorer._tokenizer
    for a in ADVERSARIAL:
        if "\ud800" not in a:
            assert tokenize(a) == tokenizer.tokenize(a), a
        for b in ADVERSARIAL:
            assert rouge_l(a, b) == reference(a, b), (a, b)


def test_vocabulary_above_the_surrogates():
    """More than 55,296 different words: code points jump over the surrogates."""
    index = NoveltyIndex(f"w{n}" for n in range(56_000))
    for n in (0, 55_294, 55_295, 55_296, 55_999):
        decision = index.check(f"w{n}")
        assert decision == Decision(False, 1.0, f"w{n}")


# --- decisions ----------------------------------------------------------------------


def plain_filter(texts, known, threshold):
    """The rule as a plain loop over rouge_score."""
    pool, kept, scores = list(known), [], []
    for text in texts:
        best = max((reference(other, text) for other in pool), default=0.0)
        scores.append(best)
        kept.append(best <= threshold)
        if kept[-1]:
            pool.append(text)
    return kept, scores


def some_texts(count: int, seed: int) -> list[str]:
    """Texts of which many nearly repeat one another."""
    draw, out = random.Random(seed), []
    text = "write a short poem about the sea and list three cold cities in a table for me"
    words = text.split(" ")
    for _ in range(count):
        if out and draw.random() < 0.6:
            text = draw.choice(out).split()
            text[draw.randrange(len(text))] = draw.choice(words)
            if draw.random() < 0.5:
                text.insert(draw.randrange(len(text)), draw.choice(words))
        else:
            text = draw.choices(words, k=draw.randint(3, 14))
        out.append(" ".join(text))
    return out


def streamed(texts, known, threshold, mode="rouge"):
    """The decisions of an index that is asked one text at a time."""
    index, decisions = NoveltyIndex(known, threshold, mode), []
    for text in texts:
        decisions.append(index.check(text))
        if decisions[-1].kept:
            index.add(text)
    return decisions


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.5, 0.7, 0.85, 0.99, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_decisions_are_those_of_a_plain_loop(threshold, seed):
    """In bulk, one by one and in full: kept or not, score and nearest of 150 texts in order."""
    texts, known = some_texts(150, seed), some_texts(10, seed + 50)
    kept, scores = plain_filter(texts, known, threshold)
    decisions = filter_novel(texts, known, threshold)
    assert [d.kept for d in decisions] == kept
    assert decisions == streamed(texts, known, threshold)
    full = filter_novel(texts, known, threshold, full=True)
    assert [d.kept for d in full] == kept and [d.score for d in full] == scores
    for text, decision, exact in zip(texts, decisions, full, strict=True):
        assert reference(exact.nearest, text) == exact.score
        if decision.kept:
            assert decision == Decision(True, 0.0, None)
        else:
            assert decision == exact


def adversarial_texts(seed):
    """Empty, one token, repeats of one token, over 64, 128 and 512 tokens, near-copies of each."""
    draw, out = random.Random(seed), ["", "!!", "a", "a a", "a a a a a a a", "b"]
    words = [chr(97 + n % 26) * (1 + n // 26) for n in range(60)]
    for length in (3, 9, 10, 20, 63, 64, 65, 100, 128, 129, 300, 511, 512, 513, 700):
        text = draw.choices(words, k=length)
        out.append(" ".join(text))
        for part in (0.05, 0.2, 0.35):
            near = [draw.choice(words) if draw.random() < part else word for word in text]
            out.append(" ".join(near))
        out += [" ".join(reversed(text)), " ".join(["a"] * length)]
    draw.shuffle(out)
    return out


@pytest.mark.parametrize("threshold", [0.4, 0.7, 0.9])
def test_adversarial_texts_are_decided_as_by_a_plain_loop(threshold):
    """Lengths at the borders of words of 64 bits and of the pruning, repeats, nothing at all."""
    texts = adversarial_texts(1)
    pool, kept = [], []
    for text in texts:  # LCSseq itself is tested against rouge_score above
        kept.append(all(rouge_l(other, text) <= threshold for other in pool))
        if kept[-1]:
            pool.append(text)
    assert [d.kept for d in filter_novel(texts, threshold=threshold)] == kept
    assert [d.kept for d in streamed(texts, [], threshold)] == kept
    assert 0 < sum(kept) < len(kept)


def test_boundary_triples_are_decided_as_by_the_reference():
    """Every (L, m, n) up to 64 with F = 0.7 exactly, or a unit in the last place beside it."""
    triples = [
        (common, m, n)
        for m in range(1, 65)
        for n in range(m, 65)
        for common in range(1, m + 1)
        if 20 * common == 7 * (m + n)
    ]
    assert len(triples) > 50
    rejected = 0
    for common, m, n in triples:
        a, b = pair(common, m, n)
        wanted = reference(a, b) <= 0.7
        rejected += not wanted
        assert filter_novel([b], [a])[0].kept is wanted, (common, m, n)
        assert filter_novel([a, b])[1].kept is wanted, (common, m, n)
    assert 0 < rejected < len(triples)


def test_unicode_texts_are_decided_as_by_a_plain_loop():
    """Chinese, Japanese, Korean, Cyrillic, Arabic and mixed text, near-copies among them."""
    base = [
        "请用三句话解释为什么天空是蓝色的，不要超过五十个字。",
        "日本の首都について短い文章を書いてください。",
        "한국어로 짧은 시를 한 편 써 주세요.",
        "Напиши короткое письмо другу о поездке в горы.",
        "اكتب رسالة قصيرة إلى صديق عن رحلة إلى الجبل",
        "用 Python 3 写一个 function 计算平均值",
    ]
    draw, texts = random.Random(3), []
    for text in base * 8:
        at = draw.randrange(len(text) - 3)
        texts.append(text[:at] + text[at + draw.randrange(4) :])
    pool, kept = [], []
    for text in texts:
        kept.append(all(rouge_l(other, text, "unicode") <= 0.7 for other in pool))
        if kept[-1]:
            pool.append(text)
    assert [d.kept for d in filter_novel(texts, mode="unicode")] == kept
    assert [d.kept for d in streamed(texts, [], 0.7, "unicode")] == kept
    assert sum(kept) >= 6


@pytest.mark.parametrize("cut", [0, 1, 40, 75, 149])
def test_batches_change_nothing(cut, tmp_path):
    """All at once, or in two parts with the index saved and loaded between them."""
    texts, known = some_texts(150, 8), some_texts(10, 9)
    index = NoveltyIndex(known)
    first = index.extend(texts[:cut])
    again = NoveltyIndex.load(index.save(tmp_path / "index.json"))
    assert first + again.extend(texts[cut:]) == filter_novel(texts, known)


def test_few_texts_against_many_known():
    """The way that extend() takes for a handful decides as the one for many."""
    known, texts = some_texts(400, 10), some_texts(12, 11)
    few = NoveltyIndex(known)
    assert few.extend(texts) == filter_novel(texts, known) == streamed(texts, known, 0.7)
    kept, _ = plain_filter(texts, known, 0.7)
    assert [d.kept for d in filter_novel(texts, known)] == kept


def test_workers_change_nothing():
    """One worker or two: the same decisions."""
    texts = some_texts(80, 4)
    assert filter_novel(texts, workers=1) == filter_novel(texts, workers=2)


def test_full_scores_can_be_asked_for():
    """As the contract says, full=True gives exact scores for kept texts too."""
    texts = some_texts(40, 5)
    _, scores = plain_filter(texts, [], 0.7)
    assert [d.score for d in filter_novel(texts, full=True)] == scores


def test_order_matters_and_rejected_texts_are_not_compared_with():
    """A chain a ~ b ~ c: b falls to a, and c is kept, since b is not known."""
    a = "one two three four five six seven eight"
    b = "one two three four five six seven nine ten"
    c = "three four five six nine ten eleven twelve"
    assert reference(a, b) > 0.7 and reference(b, c) > 0.6 and reference(a, c) <= 0.6
    assert [d.kept for d in filter_novel([a, b, c], threshold=0.6)] == [True, False, True]
    assert [d.kept for d in filter_novel([b, a, c], threshold=0.6)] == [True, False, False]


def test_first_text_and_empty_index():
    """With nothing known a text is novel; its nearest is nobody."""
    assert filter_novel(["a b c"]) == [Decision(True, 0.0, None)]
    assert filter_novel([]) == []


@pytest.mark.parametrize("threshold", [0.0, -0.1, 1.01, float("nan")])
def test_impossible_thresholds(threshold):
    """A threshold that decides nothing is refused."""
    with pytest.raises(ValueError, match="threshold"):
        filter_novel(["a"], threshold=threshold)


@pytest.mark.parametrize("bad", [None, 5, b"bytes", ["a"]])
def test_texts_must_be_text(bad):
    """Anything but text is refused with its type."""
    with pytest.raises(TypeError, match=type(bad).__name__):
        NoveltyIndex().add(bad)


@pytest.mark.parametrize("bad", [None, 5, float("nan")])
def test_one_bad_text_among_many_is_named_and_none_is_added(bad):
    """The place is in the error, whichever way extend() takes, and the index is as it was."""
    with pytest.raises(TypeError, match=f"text 2 is {type(bad).__name__}"):
        filter_novel(["a b", "c d", bad, "e f"])
    index = NoveltyIndex(["a b c"] * 200)
    with pytest.raises(TypeError, match="text 1"):
        index.extend(["x y z", bad])
    assert len(index) == 200


def test_texts_of_a_hundred_thousand_words():
    """A very long text, its copy and a part of it are decided like short ones."""
    draw = random.Random(4)
    long = [f"w{draw.randrange(5000)}" for _ in range(100_000)]
    changed = [word if place % 10 else "other" for place, word in enumerate(long)]
    texts = ["a b c", " ".join(long), " ".join(changed), " ".join(long[:40_000])]
    decisions = filter_novel(texts)
    assert [d.kept for d in decisions] == [True, True, False, True]
    same = sum(a == b for a, b in zip(long, changed, strict=True)) / 100_000
    assert decisions[2].score >= same and decisions[2].nearest == texts[1]


def test_check_does_not_add():
    """check() leaves the index as it was."""
    index = NoveltyIndex(["a b c"])
    assert index.check("d e f").kept and index.check("d e f").kept
    assert len(index) == 1 and index.texts == ["a b c"]


# --- save and load ------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["rouge", "unicode"])
def test_save_and_load(tmp_path, mode):
    """A loaded index decides as the saved one, and grows in the same order."""
    texts = [*some_texts(40, 6), "天空为什么是蓝色的", "lone \ud800", "line\u2028break"]
    index = NoveltyIndex(texts, threshold=0.55, mode=mode)
    again = NoveltyIndex.load(index.save(tmp_path / "index.json"))
    assert (again.texts, again.threshold, again.mode) == (texts, 0.55, mode)
    for text in [*some_texts(40, 7), "天空为什么是红色的"]:
        assert again.check(text) == index.check(text)
        again.add(text)
        index.add(text)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", "null", '{"texts": [1], "threshold": 0.7, "mode": "rouge"}',
     '{"texts": ["a"], "threshold": 7, "mode": "rouge"}',
     '{"texts": ["a"], "threshold": 0.7, "mode": "x"}',
     '{"texts": "abc", "threshold": 0.7, "mode": "rouge"}'],
)  # fmt: skip
def test_load_refuses_other_files(tmp_path, content):
    """Whatever is not a saved index is a DataError with the file's name."""
    (tmp_path / "index.json").write_text(content)
    with pytest.raises(DataError, match=r"index\.json"):
        NoveltyIndex.load(tmp_path / "index.json")
    with pytest.raises(DataError, match=r"none\.json"):
        NoveltyIndex.load(tmp_path / "none.json")


# --- other scripts ------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, tokens",
    [
        ("天空是蓝色", ["天", "空", "是", "蓝", "色"]),
        ("空はなぜ青い？", ["空", "は", "な", "ぜ", "青", "い"]),
        ("하늘은 왜", ["하", "늘", "은", "왜"]),
        ("Почему небо СИНЕЕ?", ["почему", "небо", "синее"]),
        ("GPT-4o 和 5 只猫", ["gpt", "4o", "和", "5", "只", "猫"]),
        ("ＡＢＣ １２", ["abc", "12"]),
        ("café_naïve", ["café", "naïve"]),
        ("𠮷野家", ["𠮷", "野", "家"]),
        ("", []),
        ("!?。、", []),
    ],
)
def test_unicode_tokens(text, tokens):
    """One token a CJK character, a run of letters elsewhere, full width as half."""
    assert tokenize(text, "unicode") == tokens


@pytest.mark.parametrize(
    "a, near, far",
    [
        ("请写一首关于大海的短诗", "请写一首关于大山的短诗", "列出三个寒冷国家的名字"),
        ("海についての短い詩を書いて", "山についての短い詩を書いて", "寒い国を三つ挙げなさい"),
        ("바다에 대한 짧은 시를 쓰세요", "산에 대한 짧은 시를 쓰세요", "추운 나라 이름 세 개"),
        ("Напиши короткое стихотворение о море для детей",
         "Напиши короткое стихотворение о горе для детей",
         "Назови три холодные страны"),
    ],
)  # fmt: skip
def test_unicode_mode_finds_near_copies(a, near, far):
    """Near copies are dropped and other texts kept, where "rouge" sees nothing."""
    assert [d.kept for d in filter_novel([a, near, far], mode="unicode")] == [True, False, True]
    assert [d.kept for d in filter_novel([a, near, far])] == [True, True, True]


def test_unicode_mode_is_rouge_on_plain_english():
    """On ASCII text without underscores both modes give the same value."""
    texts = some_texts(30, 8)
    for a in texts:
        for b in texts:
            assert rouge_l(a, b, "unicode") == rouge_l(a, b)


def test_auto_mode_follows_the_text():
    """English, with a name or a loanword in it, as rouge_score; other scripts by their letters."""
    for text in (
        "It's 20% of 1,000!",
        "Proofread the café notice, and list each change.",
        "x² + ½",
    ):
        assert tokenize(text, "auto") == tokenize(text) == reference_tokens(text)
    texts = [
        "把这句话翻译成英文。",
        "Translate 你好 into English.",
        "Назови три реки.",
        "강 세 개를 말해.",
    ]
    texts += ["ตั้งชื่อแม่น้ำสามสาย", "Hãy kể tên ba màu ấm.", "اذكر ثلاثة أنهار"]
    for text in texts:
        assert tokenize(text, "auto") == tokenize(text, "unicode") != tokenize(text)
        assert [d.kept for d in filter_novel([text, text], mode="auto")] == [True, False]
    assert rouge_l("Translate 你好 into English.", "Translate 再见 into English.", "auto") == 0.6


def test_unknown_mode():
    """A wrong mode is refused with the names, before any work."""
    for call in (
        lambda: tokenize("a", "x"),
        lambda: rouge_l("a", "b", "x"),
        lambda: NoveltyIndex(mode="x"),
    ):
        with pytest.raises(ValueError, match="rouge, unicode"):
            call()


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("वसंत पर कविता लिखिए", ["वसंत", "पर", "कविता", "लिखिए"]),
        ("น้ำ ปลา", ["น\u0e49\u0e4d\u0e32", "ปลา"]),
        ("كِتَابٌ", ["كِتَابٌ"]),
    ],
)
def test_signs_belong_to_their_word(text, tokens):
    """Without its vowel signs, another word of Hindi or Thai would be the same."""
    assert tokenize(text, "unicode") == tokens
