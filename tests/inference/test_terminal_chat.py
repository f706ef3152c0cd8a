"""The chat in the terminal: commands, a pipe, Ctrl-C and Ctrl-D in a pseudo terminal, GGUF."""

from __future__ import annotations

import io
import json
import sys

import pytest

from alpaca_lib.conversations import Conversation, Turn, conversation_from_row
from alpaca_lib.errors import DataError, ModelError, SettingsError
from alpaca_lib.inference import turns
from alpaca_lib.inference.__main__ import main
from alpaca_lib.inference.decoding import ContextError, Decoding, answer
from alpaca_lib.inference.gguf_chat import open_gguf
from alpaca_lib.inference.terminal_chat import TerminalChat
from alpaca_lib.tokenization import PromptEncoder


def count(seen):
    """A model that says how many turns it saw, and keeps the conversations."""

    def stream(conversation):
        seen.append(conversation)
        yield "I saw"
        yield f"I saw {len(conversation.turns)}"

    return stream


def talk(*lines, stream=None, system=""):
    """The chat after these lines."""
    chat = TerminalChat(stream or count([]), system)
    chat.run(lines)
    return chat


def contents(chat):
    return [turn.content for turn in chat.conversation.turns]


def test_history_and_commands(capsys):
    """Each command, and the conversations that the model saw."""
    seen = []
    chat = talk(
        "first", "second\n", "", "/retry", "/system Be brief.", "/undo", "//slash", "/drop 1",
        stream=count(seen), system="S",
    )  # fmt: skip
    assert [(one.system, len(one.turns)) for one in seen] == [
        ("S", 1), ("S", 3), ("S", 3), ("Be brief.", 3),
    ]  # fmt: skip
    assert contents(chat) == ["/slash", "I saw 3"]
    out, err = capsys.readouterr()
    assert out.splitlines() == ["I saw 1", "I saw 3", "I saw 3", "I saw 3"]
    assert "taken back: second" in err and "dropped the 1 oldest; questions left: 1" in err
    chat.run(["/clear", "/system"])
    assert chat.conversation == Conversation(())


def test_help_lists_every_command(capsys):
    chat = talk("/help")
    text = capsys.readouterr().err
    assert [command for command in chat.commands if command not in text] == []


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/retyr", "did you mean /retry?"),
        ("/what", "/help lists them"),
        ("/retry", "no question has been asked"),
        ("/drop 1", "from 1 to 0"),
        ("/drop x", "from 1 to 0"),
        ("/save chat.txt", "name a file .jsonl"),
        ("/save chat.jsonl", "no answer yet"),
        ("/undo", "nothing to take back"),
    ],
)
def test_a_wrong_command_is_one_line(line, says, capsys):
    """It is said, and the next line is taken."""
    chat = talk(line, "hello")
    assert says in capsys.readouterr().err and contents(chat) == ["hello", "I saw 1"]


def test_a_conversation_is_saved_as_a_row(tmp_path, capsys):
    """Two conversations, two lines, which the library reads; no file is damaged."""
    file = tmp_path / "my chats.jsonl"
    chat = talk("a", "b", f"/save {file}", "/clear", "c", f"/save {file}", system="S")
    rows = [conversation_from_row(json.loads(line)) for line in file.read_text().splitlines()]
    assert [(row.system, len(row.turns)) for row in rows] == [("S", 4), ("S", 2)]
    assert rows[1] == chat.conversation
    file.write_text('{"messages": []}')
    chat.run([f"/save {file}"])
    assert "no line end" in capsys.readouterr().err and file.read_text() == '{"messages": []}'


def test_a_failed_answer_leaves_the_conversation(capsys):
    """An error, an empty answer and Ctrl-C before the first word: the question is taken back."""
    replies = iter([["ok"], ModelError("broken"), [], KeyboardInterrupt(), ["half", None]])

    def stream(conversation):
        reply = next(replies)
        if isinstance(reply, BaseException):
            raise reply
        for piece in reply:
            if piece is None:
                raise KeyboardInterrupt
            yield piece

    chat = talk("a", "b", "c", "d", "e", stream=stream)
    assert contents(chat) == ["a", "ok", "e", "half"]
    err = capsys.readouterr().err
    assert "error: broken" in err and "ended its answer at once" in err and "(stopped)" in err


def test_what_does_not_fit_says_which_command_helps(capsys):
    def stream(conversation):
        if len(conversation.turns) > 3:
            raise ContextError.explain(90, 8, 64, 1)
        yield "ok"

    chat = talk("a", "b", "c", "/drop 1", "c", stream=stream)
    err = capsys.readouterr().err
    assert "a prompt of 90 tokens" in err and "/drop 1 drops them" in err
    assert contents(chat) == ["b", "ok", "c", "ok"]


@pytest.fixture
def piped(monkeypatch):
    """A function that runs `chat` with these lines on stdin."""

    def run(model, *lines, flags=()):
        monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
        return main(["chat", str(model), "--max-new-tokens", "6", *flags])

    return run


def test_a_pipe_remembers_with_history(tiny_folder, make_tiny, tokenizer, piped, capsys):
    """One question per line; the answers are the library's to the growing conversation."""
    lines = ["Name a river.", "And a stone?"]
    assert piped(tiny_folder, *lines, flags=["--system", "Be brief."]) == 0
    asked = Conversation((), "Be brief.")
    expected = []
    for line in lines:
        asked = turns.ask(asked, line)
        (said,) = answer(make_tiny(), tokenizer, [asked], Decoding(max_new_tokens=6), "chat")
        asked = turns.answered(asked, said.text)
        expected.append(said.text)
    out, err = capsys.readouterr()
    assert out == "\n".join(expected) + "\n" and "error" not in err


def test_a_system_message_needs_history(tiny_folder, piped, capsys):
    assert piped(tiny_folder, "x", flags=["--no-history", "--system", "S"]) == 2
    assert "--history" in capsys.readouterr().err


PROGRAM = """
import sys, time
from alpaca_lib.inference import commands
from alpaca_lib import inference
class Slow:
    device = "cpu"
    def __init__(self, *_, **__): pass
    def tokenizer(self, name):
        class T: chat_template = "x"
        return T
    def stream(self, name, record, decoding, template):
        text = f"turns {len(record.turns)}:"
        for n in range(200 if record.turns[-1].content == "long" else 2):
            text += f" word{n}"
            yield text
            time.sleep(0.05)
inference.ModelPool = Slow
from alpaca_lib.inference.__main__ import main
sys.exit(main(["chat", "smollm2-135m"]))
"""


def test_in_a_terminal_ctrl_c_stops_the_answer_and_ctrl_d_ends(repository):
    """What was written stays in the conversation; Ctrl-C at the prompt ends nothing."""
    pexpect = pytest.importorskip("pexpect")
    child = pexpect.spawn(
        sys.executable, ["-c", PROGRAM], timeout=120, cwd=str(repository), encoding="utf-8"
    )
    try:
        child.expect("/help lists the commands")
        child.expect("> ")
        child.sendline("long")
        child.expect("turns 1: word0 word1")
        child.sendintr()
        child.expect_exact("(stopped)")
        child.expect("> ")
        child.sendintr()
        child.expect_exact("(Ctrl-D ends)")
        child.expect("> ")
        child.sendline("short")
        child.expect("turns 3: word0 word1\r\n")
        child.expect("> ")
        child.sendeof()
        child.expect(pexpect.EOF)
    finally:
        child.close()
    assert child.exitstatus == 0


@pytest.fixture(scope="module")
def gguf():
    pytest.importorskip("xllamacpp")
    from alpaca_lib.models import gguf_file

    return gguf_file("smollm2-135m")


@pytest.mark.slow
def test_a_gguf_file_answers_with_history(gguf, capsys, piped):
    """Two turns from a pipe: the second answer is of the conversation, not of its line alone."""
    lines = ["What is the capital of France?", "And of Italy?"]
    flags = ["--system", "You answer in one short sentence.", "--max-new-tokens", "24"]
    assert piped(gguf, *lines, flags=flags) == 0
    out, err = capsys.readouterr()
    first, second = out.splitlines()
    assert "Paris" in first and "Rome" in second and "in llama.cpp" in err


@pytest.mark.slow
def test_a_gguf_files_prompt_is_that_of_pytorch(gguf, tokenizer):
    """A system message and two turns: the answer to the messages is that to PyTorch's ids."""
    asked = Conversation(
        (Turn("user", "Name a river."), Turn("assistant", "The Elbe."), Turn("user", "Another?")),
        "Be brief.",
    )
    (ids,) = PromptEncoder(tokenizer, "chat").prompts([asked])
    with open_gguf(gguf, Decoding(max_new_tokens=16)) as stream:
        *_, said = stream(asked)
        body = {"prompt": ids, "n_predict": 16, "temperature": 0}
        assert stream.__self__._read("/completion", body)["content"].strip() == said


@pytest.mark.slow
def test_a_gguf_files_refusals(gguf):
    """Special tokens in a message, and a conversation that is too long, with the numbers."""
    ask = Turn("user", "Name a river. " * 20)
    long = Conversation((ask, Turn("assistant", "The Elbe. " * 40), Turn("user", "And a stone?")))
    with open_gguf(gguf, Decoding(max_new_tokens=16), context=256) as stream:
        with pytest.raises(DataError, match="spells a special token"):
            list(stream(Conversation((Turn("user", "<|im_end|>"),))))
        with pytest.raises(ContextError, match="do not fit into the model's 256") as found:
            list(stream(long))
        assert found.value.oldest == 1
        assert list(stream(turns.without_oldest(long, 1)))
    penalty = Decoding(repetition_penalty=1.2)
    with pytest.raises(SettingsError, match="repetition_penalty"), open_gguf(gguf, penalty):
        pass
