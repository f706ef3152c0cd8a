"""The ids of a prompt: the same in training, PyTorch, llama.cpp and the published template."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import torch

from alpaca_lib import models
from alpaca_lib.chat_templates import CHAT_TEMPLATES
from alpaca_lib.errors import ModelError
from alpaca_lib.export.gguf import export_gguf
from alpaca_lib.export.parity import measure_parity, post
from alpaca_lib.inference.__main__ import main
from alpaca_lib.inference.decoding import Decoding, answer
from alpaca_lib.models.llama_server import serve
from alpaca_lib.prompts import CHAT, chat_messages
from alpaca_lib.records import Conversation, Example, Turn, save_examples
from alpaca_lib.tokenization import PromptEncoder, prompt_ids, publish_prompts
from alpaca_lib.training.examples import IGNORE, encode

pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")

EXAMPLES = (
    Example("Name three colours.", "", "Red, green, blue."),
    Example("Add the numbers.", "1, 2", "3"),
    Example("Was ist das?  Zwei Räume", "日本, é\n\n### x", "Ü"),
)
CONVERSATIONS = (
    Conversation((Turn("user", "Name three colours."),), "Be brief."),
    Conversation(
        (Turn("user", "日本?"), Turn("assistant", "Ja, é  \n\nx"), Turn("user", "Add 1, 2.")),
        "You are\n\na guide. ",
    ),
    Conversation(
        (
            *(Turn("user", "Hi."), Turn("assistant", "Hello!")),
            *(Turn("user", "Name one."), Turn("assistant", "(Red) or blue")),
            *(Turn("user", "### Response:"), Turn("assistant", "3")),
        )
    ),
)
SIX = [
    ("byte-level", "template", "</s>"),
    ("byte-level", "post-processor", "<|im_end|>"),
    ("byte-level", "nobody", "<|im_end|>"),
    ("byte-level", "both", "</s>"),
    ("metaspace", "template", "<|im_end|>"),
    ("metaspace", "post-processor", "</s>"),
    ("metaspace", "nobody", "</s>"),
]


@pytest.fixture
def save(tmp_path):
    """A function that saves a tokenizer and a tiny model for it, and returns the folder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    def save(tokenizer):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=1024,
            bos_token_id=1, eos_token_id=2, pad_token_id=2, initializer_range=0.1,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        return str(tmp_path / "model")

    return save


@contextlib.contextmanager
def served(folder, template, tmp_path):
    """The root address of a llama.cpp server for a folder's GGUF."""
    file = export_gguf(folder, tmp_path / "m.gguf", "f32", template)
    with serve(file, slots=1, context=1024) as address:
        yield address.removesuffix("/v1")


def chat_ids(root, messages):
    """The ids of llama.cpp's chat prompt: rendered and tokenised by the server."""
    text = post(f"{root}/apply-template", {"messages": messages})["prompt"]
    body = {"content": text, "add_special": True, "parse_special": True}
    return post(f"{root}/tokenize", body)["tokens"]


@pytest.mark.parametrize("template", [CHAT, "alpaca-lora", "alpaca"])
@pytest.mark.parametrize(("kind", "bos", "turn"), SIX)
def test_the_prompt_is_the_same_everywhere(
    kind, bos, turn, template, build_tokenizer, save, tmp_path
):
    """Training, PyTorch, llama.cpp's chat and completions, and the published template."""
    folder = save(build_tokenizer(kind, bos, turn))
    tokenizer = models.ModelSource.resolve(folder).load_tokenizer()
    published = models.ModelSource.resolve(folder).load_tokenizer()
    publish_prompts(published, template)
    with served(folder, template, tmp_path) as root:
        for example in EXAMPLES:
            row = encode(example, tokenizer, template)
            trained = row["input_ids"][: row["labels"].count(IGNORE)]
            assert trained == prompt_ids(example, tokenizer, template)
            assert trained.count(1) == (bos != "nobody" and (template == CHAT or bos != "template"))
            messages = chat_messages(example, template)
            ids = published.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=False
            )
            assert ids == trained
            assert chat_ids(root, messages) == trained
            body = {"messages": messages, "max_tokens": 1}
            usage = post(f"{root}/v1/chat/completions", body)["usage"]
            assert usage["prompt_tokens"] == len(trained)
        encoder = PromptEncoder(tokenizer, template)
        for conversation, ids in zip(CONVERSATIONS, encoder.prompts(CONVERSATIONS), strict=True):
            messages = conversation.question().messages()
            options = {"add_generation_prompt": True, "return_dict": False}
            assert ids == published.apply_chat_template(messages, **options)
            assert chat_ids(root, messages) == ids == prompt_ids(conversation, tokenizer, template)
            assert ids.count(1) == (bos != "nobody" and (template == CHAT or bos != "template"))
            said = len(conversation.question().turns) // 2
            assert ids.count(encoder.end[-1]) >= said


@pytest.mark.parametrize("turn", ["</s>", "<|im_end|>"])
def test_generation_ends_where_the_template_does(turn, build_tokenizer, save, tmp_path):
    """PyTorch, llama.cpp's chat and the published model stop at the token that was trained."""
    from transformers import AutoModelForCausalLM

    folder = save(build_tokenizer("byte-level", "nobody", turn))
    source = models.ModelSource.resolve(folder)
    tokenizer, model = source.load_tokenizer(), source.load_model()
    end = tokenizer.convert_tokens_to_ids(turn)
    ids = torch.tensor([prompt_ids(EXAMPLES[0], tokenizer, CHAT)])
    first = int(model(ids).logits[0, -1].argmax())
    head = model.lm_head.weight.data
    head[[end, first]] = head[[first, end]]  # it ends at once
    (found,) = answer(model, tokenizer, EXAMPLES[:1], Decoding(max_new_tokens=5), CHAT)
    assert (found.ended, found.tokens) == (True, 0)
    publish_prompts(tokenizer, CHAT, model)
    model.save_pretrained(folder)
    reloaded = AutoModelForCausalLM.from_pretrained(folder)
    assert reloaded.generate(ids, max_new_tokens=5, do_sample=False)[0, -1] == end
    with served(folder, CHAT, tmp_path) as root:
        body = {"messages": chat_messages(EXAMPLES[0], CHAT), "max_tokens": 5, "temperature": 0}
        reply = post(f"{root}/v1/chat/completions", body)
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert reply["choices"][0]["message"]["content"] in ("", None)


def test_system_and_turns_in_llama_cpp(build_tokenizer, save, tmp_path):
    """llama.cpp renders the published template as transformers does, system and input included."""
    folder = save(build_tokenizer("byte-level", "post-processor", "</s>"))
    published = models.ModelSource.resolve(folder).load_tokenizer()
    publish_prompts(published, "chinese")
    asked = {"role": "user", "content": "Name three."}
    conversations = [
        [{"role": "system", "content": "Be brief."}, asked],
        [asked, {"role": "assistant", "content": "Red."}, asked, {"role": "input", "content": "x"}],
    ]
    with served(folder, "chinese", tmp_path) as root:
        for messages in conversations:
            expected = published.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=False
            )
            assert chat_ids(root, messages) == expected
            assert "Be brief." in published.decode(expected) or len(messages) == 4
        with pytest.raises(ModelError, match="no reply"):
            post(f"{root}/v1/chat/completions", {"messages": [{"role": "tool", "content": "x"}]})


@pytest.mark.parametrize(
    ("template", "kind", "bos"),
    [
        ("chatml", "byte-level", "nobody"),
        ("qwen", "byte-level", "nobody"),
        ("llama-3", "byte-level", "post-processor"),
        ("gemma", "byte-level", "post-processor"),
        ("mistral", "metaspace", "post-processor"),
        ("mistral", "byte-level", "post-processor"),
    ],
)
def test_chat_formats_in_llama_cpp(template, kind, bos, build_tokenizer, save, tmp_path):
    """A model trained on a chat format by name: llama.cpp's ids are those of training."""
    tokenizer = build_tokenizer(kind, bos, "<|im_end|>")
    names = [name for name in CHAT_TEMPLATES[template].tokens if name not in ("bos", "eos")]
    tokenizer.add_special_tokens({"extra_special_tokens": names})
    folder = save(tokenizer)
    encoder = PromptEncoder(tokenizer, template)
    with served(folder, template, tmp_path) as root:
        for record in (*EXAMPLES, *CONVERSATIONS):
            (ids,) = encoder.prompts([record])
            assert chat_ids(root, chat_messages(record, template)) == ids
            assert ids.count(1) == (bos != "nobody")


def test_marks_of_what_is_generated_in_llama_cpp(build_tokenizer, save, tmp_path):
    """A template with {% generation %}, which llama.cpp's Jinja may not know."""
    tokenizer = build_tokenizer("byte-level", "nobody", "<|im_end|>")
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{{ '<|im_end|>\n' }}",
        "{% if m['role'] == 'assistant' %}{% generation %}{{ '<|im_end|>\n' }}{% endgeneration %}"
        "{% else %}{{ '<|im_end|>\n' }}{% endif %}",
    )
    assert "{% generation %}" in tokenizer.chat_template
    folder = save(tokenizer)
    encoder = PromptEncoder(tokenizer, CHAT)
    with served(folder, None, tmp_path) as root:
        for record in CONVERSATIONS:
            assert chat_ids(root, chat_messages(record, CHAT)) == encoder.prompts([record])[0]


def test_parity_of_conversations(build_tokenizer, save, tmp_path):
    """Conversations are compared by their last answer; one whose ids differ is named."""
    tokenizer = build_tokenizer("byte-level", "post-processor", "</s>")
    folder = save(tokenizer)
    model = models.ModelSource.resolve(folder).load_model()
    rows = [*CONVERSATIONS, Conversation((Turn("user", "Say </s> twice."),))]
    for template in (CHAT, "alpaca"):
        file = export_gguf(folder, tmp_path / f"{template}.gguf", "f32", template)
        found = measure_parity(model, tokenizer, file, rows, template, tokens=4)
        assert (found.text_rows, found.chat_rows) == ((4,), (4,)) and found.kl < 1e-4


def test_a_conversation_without_reasoning_in_llama_cpp(build_tokenizer, save, tmp_path):
    """A generation prompt that opens a block of reasoning is replaced in the GGUF file too."""
    tokenizer = build_tokenizer("byte-level", "post-processor", "<|im_end|>")
    head = "<|im_start|>assistant\n"
    tokenizer.chat_template = tokenizer.chat_template.replace(head, f"{head}<think>\n")
    assert "<think>" in tokenizer.chat_template
    folder = save(tokenizer)
    ids = prompt_ids(EXAMPLES[0], tokenizer, CHAT)
    assert "<think>" not in tokenizer.decode(ids)
    with served(folder, None, tmp_path) as root:
        assert chat_ids(root, chat_messages(EXAMPLES[0], CHAT)) == ids


def test_a_token_that_strips_is_refused(build_tokenizer, save, tmp_path):
    """Phi-3's tokens take the newline after them away, and llama.cpp does not."""
    folder = save(build_tokenizer("byte-level", "nobody", "<|im_end|>"))
    file = Path(folder) / "tokenizer.json"
    rules = json.loads(file.read_text(encoding="utf-8"))
    for token in rules["added_tokens"]:
        token["rstrip"] = token["content"] == "<|im_start|>"
    file.write_text(json.dumps(rules), encoding="utf-8")
    with pytest.raises(ModelError, match=r"im_start.*removes white space"):
        export_gguf(folder, tmp_path / "m.gguf", "f32", CHAT)
    assert export_gguf(folder, tmp_path / "m.gguf", "f32", "alpaca").stat().st_size


def test_parity_says_which_prompts_differ(build_tokenizer, save, tmp_path, capsys):
    """A file whose chat writes no BOS where the tokenizer does, and data with special tokens."""
    tokenizer = build_tokenizer("byte-level", "post-processor", "</s>")
    folder = save(tokenizer)
    rows = [*EXAMPLES, Example("Say </s> twice.", "", "No.")]
    model = models.ModelSource.resolve(folder).load_model()
    good = export_gguf(folder, tmp_path / "good.gguf", "f32", CHAT)
    found = measure_parity(model, tokenizer, good, rows, CHAT, tokens=2, contexts=1)
    assert (found.text_rows, found.chat_rows) == ((4,), (4,)) and found.tokenized_alike == 3
    tokenizer.backend_tokenizer.post_processor = None
    found = measure_parity(model, tokenizer, good, rows, CHAT, tokens=2, contexts=1)
    assert found.chat_rows == (1, 2, 3, 4) and found.tokenized_alike == 0
    tasks = save_examples(rows, tmp_path / "tasks.json")
    words = ["check", folder, str(good), "--eval", str(tasks), "--template", CHAT]
    assert main(words) == 1
    out = capsys.readouterr().out
    assert "tokenized alike    3 of 4 texts" in out and "/v1/chat/completions: rows 4 of" in out, (
        out
    )


def test_parity_where_a_token_is_half_a_character(build_tokenizer, save, tmp_path):
    """The likeliest token is a part of a character: its probabilities are compared all the same."""
    tokenizer = build_tokenizer("byte-level", "nobody", "</s>")
    folder = save(tokenizer)
    source = models.ModelSource.resolve(folder)
    model, half = source.load_model(), tokenizer("日", add_special_tokens=False)["input_ids"][0]
    ids = torch.tensor([prompt_ids(EXAMPLES[0], tokenizer, "short")])
    first = int(model(ids).logits[0, -1].argmax())
    head = model.lm_head.weight.data
    head[[half, first]] = head[[first, half]]
    assert tokenizer.decode([half]) == "\ufffd"
    model.save_pretrained(folder)
    file = export_gguf(folder, tmp_path / "m.gguf", "f32", "short")
    found = measure_parity(model, tokenizer, file, EXAMPLES, "short", tokens=4)
    assert found.kl < 1e-4 and found.contexts == 3 and found.text_rows == found.chat_rows == ()
