"""Conversations for training: rendered once = by turns, labels, masks as transformers has them."""

from __future__ import annotations

import copy
import random

import pytest

from alpaca_lib.chat_templates import CHAT_TEMPLATES
from alpaca_lib.errors import DataError, SettingsError
from alpaca_lib.prompts import CHAT, TEMPLATES, template_names
from alpaca_lib.records import Conversation, Example, Turn
from alpaca_lib.tokenization import PromptEncoder, prompt_ids, publish_prompts
from alpaca_lib.training.examples import IGNORE, encode, encode_all

NAMES = [name for template in CHAT_TEMPLATES.values() for name in template.tokens if "<" in name]
NAMES = [*dict.fromkeys(NAMES), "[INST]", "[/INST]"]
PIECES = (
    "<|im_end|>", "<|im_start|>assistant\n", "</s>", "<s>", "<|eot_id|>", "[/INST]", "<|im_end",
    "<start_of_turn>model\n", "### Response:", " ", "\n", "a", "Paris.", "é", "日本", "\U0001f600",
    "<think>", "</think>", "\n\n", "  ", "(1)", "{{ eos_token }}", "Rot und blau",
)  # fmt: skip
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}"
    "{{ m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}"
    "<think>\n{{ (m.reasoning_content or '').strip() }}\n</think>\n\n{% endif %}{{ m.content }}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN3_ALL = QWEN3.replace(" and loop.last", "")
R1 = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content.split('</think>')[-1] }}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)


def talk(*texts, system="", reasoning=""):
    """A conversation of these texts, turn by turn; the reasoning is that of every answer."""
    roles = ("user", "assistant") * len(texts)
    turns = [
        Turn(role, text, reasoning if role == "assistant" else "")
        for role, text in zip(roles, texts, strict=False)
    ]
    return Conversation(tuple(turns), system)


THREE = talk("Hi.", "Hello!", "Name one.", "Red.", "Why?", "It is.", system="Be brief.")


@pytest.fixture(scope="module")
def complete(build_tokenizer):
    """A function that builds a tokenizer with the tokens of all chat formats."""
    built = {}

    def build(kind, bos, turn="<|im_end|>"):
        if (kind, bos, turn) not in built:
            tokenizer = build_tokenizer(kind, bos, turn)
            tokenizer.add_special_tokens({"extra_special_tokens": NAMES})
            built[kind, bos, turn] = tokenizer
        return copy.deepcopy(built[kind, bos, turn])

    return build


def with_template(tokenizer, source):
    """A copy of a tokenizer with another chat template."""
    other = copy.deepcopy(tokenizer)
    other.chat_template = source
    return other


def spans(labels):
    """Where runs of labels begin and end."""
    places = [i for i, label in enumerate(labels) if label != IGNORE]
    starts = [i for i in places if i - 1 not in places]
    ends = [i + 1 for i in places if i + 1 not in places]
    return list(zip(starts, ends, strict=True))


@pytest.mark.parametrize("kind", ["byte-level", "metaspace"])
@pytest.mark.parametrize("bos", ["template", "post-processor", "nobody"])
@pytest.mark.parametrize("template", template_names())
def test_random_conversations(kind, bos, template, complete):
    """Before each answer a row has the ids of the prompt that inference sees, the labels decode
    to the answers and their ends, and special tokens are those of the template."""
    tokenizer, chance = complete(kind, bos), random.Random(f"{kind} {bos} {template}")
    encoder = PromptEncoder(tokenizer, template)

    def text():
        return "".join(chance.choice(PIECES) for _ in range(chance.randint(1, 7))) or "x"

    talks = []
    while len(talks) < 15:
        texts = [text() for _ in range(2 * chance.randint(1, 4))]
        if all(one.strip() for one in texts):
            talks.append(talk(*texts, system=chance.choice(["", text()])))
    plain = [
        Conversation(tuple(Turn(t.role, "x") for t in one.turns), "x" if one.system else "")
        for one in talks
    ]
    joined = 0
    rows = encode_all(talks, tokenizer, template, 99_999)
    known = encode_all(plain, tokenizer, template, 99_999)
    for one, row, own, found in zip(talks, rows, known, encoder.conversations(talks), strict=True):
        ids, labels = row["input_ids"], row["labels"]
        assert ids == found.ids and len(ids) == len(labels)
        special = set(encoder.control.values())
        assert [i for i in ids if i in special] == [i for i in own["input_ids"] if i in special]
        trained = spans(labels)
        assert len(trained) == len(one.turns) // 2
        for number, (start, end) in enumerate(trained):
            said = one.turns[2 * number + 1].content
            before = Conversation(one.turns[: 2 * number + 1], one.system)
            if not found.joined:
                assert ids[:start] == encoder.prompts([before])[0]
            assert ids[end - 1] == encoder.end[-1]
            shown = tokenizer.decode(labels[start:end])
            expected = said + tokenizer.decode(encoder.end)
            if kind == "metaspace" or (encoder.format and encoder.format.strips):
                assert shown.replace(" ", "").strip() in (
                    expected.replace(" ", "").strip(),
                    (said.strip() + tokenizer.decode(encoder.end)).replace(" ", ""),
                )
            else:
                assert shown in (
                    expected,
                    (encoder.format.lead if encoder.format else "") + expected,
                )
        joined += found.joined
        last = encode(one, tokenizer, template, 99_999, train_on_turns="last")
        start, end = spans(last["labels"])[0]
        assert len(spans(last["labels"])) == 1 and end == len(last["input_ids"])
        assert last["input_ids"][:start] == encoder.prompts([one])[0]
    assert joined < len(talks)


@pytest.mark.parametrize("kind", ["byte-level", "metaspace"])
@pytest.mark.parametrize("bos", ["template", "post-processor", "both", "nobody"])
@pytest.mark.parametrize("template", template_names())
def test_the_ids_are_those_of_the_published_template(kind, bos, template, complete):
    """transformers' ids of the whole conversation, BOS once, up to the last answer's end; and of
    the prompt before each answer."""
    tokenizer = complete(kind, bos)
    published = copy.deepcopy(tokenizer)
    publish_prompts(published, template)
    encoder = PromptEncoder(tokenizer, template)
    for one in (THREE, talk("日本?", "Ja,  é\n\nx", "Add 1, 2.", "3")):
        (found,) = encoder.conversations([one])
        theirs = published.apply_chat_template(one.messages(), return_dict=False)
        assert theirs[: len(found.ids)] == found.ids and not found.joined
        assert not tokenizer.decode(theirs[len(found.ids) :]).strip()
        writes = bos != "nobody" or template in ("llama-3", "mistral", "gemma")
        has_bos = writes and (template == CHAT or bos != "template" or template in CHAT_TEMPLATES)
        if template in ("chatml", "qwen", *TEMPLATES):  # BOS is the tokenizer's own, or none
            has_bos = bos in ("post-processor", "both")
        assert found.ids.count(1) == has_bos
        for number in range(1, len(one.turns), 2):
            before = Conversation(one.turns[:number], one.system)
            options = {"add_generation_prompt": True, "return_dict": False}
            ids = published.apply_chat_template(before.messages(), **options)
            assert ids == encoder.prompts([before])[0] == prompt_ids(before, tokenizer, template)
            assert found.ids[: len(ids)] == ids


@pytest.mark.parametrize("template", [CHAT, *CHAT_TEMPLATES])
def test_examples_in_chat_formats(template, complete):
    """An example is the conversation of its question and answer, in each chat format."""
    tokenizer = complete("byte-level", "post-processor")
    for example in (Example("Hi there.", "", "Yes."), Example("Add.", "1, 2", "3")):
        question = example.instruction + (f"\n\n{example.input}" if example.input else "")
        expected = encode(talk(question, example.output), tokenizer, template)
        assert encode(example, tokenizer, template) == expected


@pytest.mark.parametrize(("kind", "bos"), [("byte-level", "post-processor"), ("metaspace", "both")])
def test_masks_of_marks_are_those_of_transformers(kind, bos, build_tokenizer, tokenizer):
    """{% generation %}: the labels are at return_assistant_tokens_mask's tokens, all of them."""
    chance = random.Random(3)
    texts = ["Hi.", "日本, é", " two  spaces ", "x\n\ny", "\nbegins", "😀", "(1) a"]
    talks = [
        talk(
            *(chance.choice(texts) for _ in range(2 * chance.randint(1, 4))),
            system=chance.choice(["", "Be brief.", "a\nb"]),
        )
        for _ in range(40)
    ]
    compared = 0
    for base in (build_tokenizer(kind, bos, "<|im_end|>"), tokenizer):
        other = with_template(base, MARKED)
        published = copy.deepcopy(other)
        publish_prompts(published, CHAT)  # it writes BOS where the tokenizer does
        for one, row, found in zip(
            talks,
            encode_all(talks, other, CHAT, 99_999),
            PromptEncoder(other, CHAT).conversations(talks),
            strict=True,
        ):
            theirs = published.apply_chat_template(
                one.messages(), return_assistant_tokens_mask=True, return_dict=True
            )
            if found.joined:  # transformers trains a token that no prompt ends before
                assert "\nbegins" in [turn.content for turn in one.turns]
                continue
            ids, mask = theirs["input_ids"], theirs["assistant_masks"]
            size = len(found.ids)
            assert row["input_ids"] == ids[:size] and not any(mask[size:])
            assert [int(label != IGNORE) for label in row["labels"]] == mask[:size]
            compared += 1
    assert compared > 40


def test_marks_without_the_end_token(tokenizer):
    """Where the marks leave the end token out, it is trained all the same: answers have to end."""
    source = MARKED.replace("m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}",
                            "m.content }}{% endgeneration %}{{ '<|im_end|>\n' }}")  # fmt: skip
    assert source != MARKED
    rows = [encode(THREE, with_template(tokenizer, text), CHAT) for text in (MARKED, source)]
    assert rows[0] == rows[1]
    rows = [encode(THREE, with_template(tokenizer, text), CHAT, add_eos=False) for text in
            (MARKED, source)]  # fmt: skip
    assert rows[0] == rows[1] and rows[0]["input_ids"][-1] != 2
    assert sum(label == 2 for label in rows[0]["labels"]) == 0


def test_marks_that_leave_an_answer_out(tokenizer):
    last = MARKED.replace("m.role == 'assistant'", "m.role == 'assistant' and loop.last")
    other = with_template(tokenizer, last)
    with pytest.raises(DataError, match=r"row 2: .*marks leave an answer out; set train_on_turns"):
        encode_all([Example("a", "", "b"), THREE], other, CHAT)
    row = encode(THREE, other, CHAT, train_on_turns="last")
    assert tokenizer.decode([i for i in row["labels"] if i != IGNORE]) == "It is.<|im_end|>"


def test_the_next_turn_follows_the_end_that_was_trained(tokenizer):
    """The ids of the first turns and the next question's are the prompt of the next turn."""
    for template in (CHAT, "chatml", "alpaca", "short", "chinese"):
        encoder = PromptEncoder(tokenizer, template)
        first, both = (Conversation(THREE.turns[:n], "Be brief.") for n in (2, 3))
        said = encode(first, tokenizer, template)["input_ids"]
        (prompt,) = encoder.prompts([both])
        assert prompt[: len(said)] == said and said[-1] == encoder.end[-1]


# --- reasoning ----------------------------------------------------------------------


def test_reasoning_is_closed_or_kept(tokenizer):
    """By default an answer follows a closed block, in training and inference; with
    keep_reasoning its own reasoning is trained, after the template's own generation prompt."""
    other = with_template(tokenizer, QWEN3)
    one = talk("Hi.", "Hello!", reasoning="They greet.")
    head = "<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n"
    row = encode(one, other, CHAT)
    (start, end), *_ = spans(row["labels"])
    assert tokenizer.decode(row["input_ids"][:start]) == head + "<think>\n\n</think>\n\n"
    assert tokenizer.decode(row["input_ids"][start:end]) == "Hello!<|im_end|>"
    kept = encode(one, other, CHAT, keep_reasoning=True)
    (start, end), *_ = spans(kept["labels"])
    assert tokenizer.decode(kept["input_ids"][:start]) == head
    expected = "<think>\nThey greet.\n</think>\n\nHello!<|im_end|>"
    assert tokenizer.decode(kept["input_ids"][start:end]) == expected
    publish_prompts(other, CHAT, keep_reasoning=True)
    question = one.question()
    ids = other.apply_chat_template(
        question.messages(), add_generation_prompt=True, return_dict=False
    )
    assert ids == kept["input_ids"][:start] == prompt_ids(question, other, CHAT)
    again = with_template(tokenizer, other.chat_template)
    publish_prompts(again, CHAT)  # a trained folder that is exported: its reasoning stays
    assert again.chat_template == other.chat_template


def test_reasoning_in_a_template_that_only_writes_contents(tokenizer):
    """ChatML writes what it is given: a block of reasoning before the answer."""
    row = encode(talk("Hi.", "Hello!", reasoning="They <|im_end|> greet."), tokenizer, "chatml",
                 keep_reasoning=True)  # fmt: skip
    shown = tokenizer.decode([i for i in row["labels"] if i != IGNORE])
    assert shown == "<think>\nThey <|im_end|> greet.\n</think>\n\nHello!<|im_end|>"
    assert row["input_ids"].count(2) == 2


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (QWEN3, {}, r"row 1: before turn 2 the chat template writes .*<think>.* for an answer, but"
         r" .*training would not see what inference sees; set train_on_turns to 'last'"),
        (QWEN3, {"keep_reasoning": True}, "row 1: .* does not write the reasoning of turn 2; set"),
        (R1, {"keep_reasoning": True}, "row 1: .* does not write the reasoning of turn 2; set"),
        (QWEN3_ALL, {}, ""),
        (QWEN3_ALL, {"keep_reasoning": True}, ""),
        (QWEN3, {"train_on_turns": "last"}, ""),
        (QWEN3, {"train_on_turns": "last", "keep_reasoning": True}, ""),
        (R1, {}, ""),
    ],
)  # fmt: skip
def test_reasoning_in_earlier_turns(source, options, message, tokenizer):
    """A template that strips the reasoning of earlier turns, or of all, cannot train it."""
    other = with_template(tokenizer, source)
    one = talk("Hi.", "Hello!", "Why?", "It is.", reasoning="So I think.")
    if message:
        with pytest.raises(DataError, match=message):
            encode(one, other, CHAT, **options)
        return
    row = encode(one, other, CHAT, **options)
    trained = 1 if options.get("train_on_turns") else 2
    assert len(spans(row["labels"])) == trained
    shown = tokenizer.decode([i for i in row["labels"] if i != IGNORE])
    assert shown.count("So I think.") == (trained if options.get("keep_reasoning") else 0)


# --- refusals -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "message"),
    [
        # The system message moves to the last question, as in Mistral's v3.
        ("{% for m in messages if m.role != 'system' %}{% if m.role == 'user' %}<|im_start|>user\n"
         "{% if loop.last or (loop.revindex == 2 and messages[-1].role == 'assistant') %}"
         "{{ messages[0].content }}{% endif %}{{ m.content }}<|im_end|>\n<|im_start|>assistant\n"
         "{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}",
         "before turn 2 the chat template writes .*Be brief.* in the whole conversation"),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
         "{% if add_generation_prompt %}assistant: {% endif %}",
         "writes no end token after an answer; set train_on_turns to 'last'"),
        ("{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}"
         "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
         "does not write the system message; use a template"),
    ],
)  # fmt: skip
def test_templates_that_cannot_train_every_turn(source, message, tokenizer):
    other = with_template(tokenizer, source)
    with pytest.raises(DataError, match=f"row 2: .*{message}"):
        encode_all([Example("a", "", "b"), THREE], other, CHAT)
    if "train_on_turns" in message:  # its last answer ends as an example's does
        row = encode(THREE, other, CHAT, train_on_turns="last")
        assert tokenizer.decode([i for i in row["labels"] if i != IGNORE]) == "It is.<|im_end|>"
        assert tokenizer.decode(row["input_ids"]).endswith("assistant: It is.<|im_end|>")


@pytest.mark.parametrize("template", ["llama-3", "mistral", "gemma"])
def test_tokens_that_a_tokenizer_lacks(template, tokenizer):
    """Each missing token is named, and what can be used instead."""
    with pytest.raises(SettingsError) as error:
        PromptEncoder(tokenizer, template)
    for name in CHAT_TEMPLATES[template].tokens:
        assert name in str(error.value) or name in ("bos", "eos")
    assert "use chatml, qwen, alpaca" in str(error.value)


def test_a_conversation_without_an_answer(tokenizer):
    asked = Conversation(THREE.turns[:3])
    with pytest.raises(DataError, match="row 2: its last turn has no answer"):
        encode_all([THREE, asked], tokenizer, CHAT)


def test_rows_of_a_mixed_list_keep_their_numbers(tokenizer):
    """Examples and conversations are encoded apart, and named by their place in the list."""
    rows = [
        talk("Hi.", "Hello!"),
        Example("a", "", "b"),
        talk("Hi.", "x \udc00"),
        Example("c", "", "d"),
    ]
    with pytest.raises(DataError, match="row 3: its turn 2 has a lone surrogate"):
        encode_all(rows, tokenizer, CHAT)
    rows[2], rows[3] = rows[1], Example("x \udc00", "", "y")
    with pytest.raises(DataError, match="row 4: its instruction has a lone surrogate"):
        encode_all(rows, tokenizer, CHAT)
