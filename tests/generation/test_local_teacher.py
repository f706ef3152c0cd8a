"""The local teacher: what its grammar allows parses, on paper and for real."""

from __future__ import annotations

import random
import re
import socket
from urllib.parse import urlsplit

import pytest

from alpaca_lib.errors import ModelError
from alpaca_lib.generation.local_teacher import task_grammar
from alpaca_lib.generation.parsing import parse_reply
from alpaca_lib.models.llama_server import serve

FORMAT = "not one Instruction, Input and Output with one number"


def grammar_as_regex(grammar: str) -> re.Pattern[str]:
    """The regular expression of a GBNF grammar without recursion."""
    rules = dict(line.split(" ::= ", 1) for line in grammar.splitlines() if line.strip())

    def expand(body: str) -> str:
        out = []
        token = re.compile(
            r'"((?:[^"\\]|\\.)*)"|(\[(?:[^\]\\]|\\.)*\])|([a-z][a-z0-9-]*)|(\S|\{[\d,]+\})'
        )
        for text, group, name, sign in token.findall(
            re.sub(r"\s+(?=[^\"]*(?:\"[^\"]*\"[^\"]*)*$)", " ", body)
        ):
            if group:
                out.append(group)
            elif name:
                out.append(f"(?:{expand(rules[name])})")
            elif sign:
                out.append(sign)
            else:
                out.append(re.escape(text.encode().decode("unicode_escape")))
        return "".join(out)

    return re.compile(expand(rules["root"]))


def entry(n: int, instruction: str, given: str, output: str, first: bool) -> str:
    """One entry as the grammar spells it."""
    heading = "" if first else f"{n}. Instruction:"
    return f"{heading} {instruction}\n{n}. Input:\n{given}\n{n}. Output:\n{output}\n"


def test_regex_of_the_grammar_knows_good_from_bad():
    """The test's own reading of the grammar takes good replies and no others."""
    regex = grammar_as_regex(task_grammar(4, 2))
    good = entry(4, "Name a red fruit.", "<noinput>", "An apple.\n- or a cherry", True)
    good += "###\n" + entry(5, "Add them up.", "1 and 2", "It is 3.", False)
    assert regex.fullmatch(good)
    for bad in (
        good + "###\n",
        good.replace("###", "##"),
        good.replace("5. Input", "6. Input"),
        " ",
    ):
        assert not regex.fullmatch(bad)


LINES = [
    "4. Output: x", "5. Instruction: y", "4) input: z", "4. Input:", "  a", "- 4. Output: b",
    "Answer: 5. Output: c", "7", "12. Instruction:", "noinput", "-",
    "a\t4. Output:", "ä", "4.Output:",
    "It is 4. Output: c.", "- 5. Input: b!", "Is it so? Yes. 5. Output: no.", "Ä is a letter.",
    "7 apples", "One. Two. Three.", "4 Output: x",
]  # fmt: skip


def test_everything_the_grammar_allows_parses():
    """No line that the grammar lets a model write looks like a heading to the parser."""
    regex = grammar_as_regex(task_grammar(4, 2))
    draw = random.Random(0)
    allowed, failed = 0, []
    for _ in range(20_000):
        output = "\n".join(draw.sample(LINES, draw.randint(1, 3)))
        text = entry(4, "Name a red fruit now.", draw.choice(LINES), output, True) + "###\n"
        text += entry(5, "Add them all up.", draw.choice(LINES), draw.choice(LINES), False)
        if regex.fullmatch(text):
            allowed += 1
            reply = parse_reply(text, "stop", 4)
            if any(r.reason == FORMAT for r in reply.rejected):
                failed.append(text)
    assert allowed > 50
    assert not failed, f"{len(failed)} of {allowed} allowed replies do not parse, e.g.\n{failed[0]}"


def test_grammar_numbers_its_tasks():
    """There is one rule a task, from the first number on."""
    grammar = task_grammar(7, 3)
    assert re.findall(r"^task-(\d+) ::=", grammar, re.M) == ["7", "8", "9"]
    assert '"8. Instruction:"' in grammar and '"7. Instruction:"' not in grammar


def test_missing_gguf(tmp_path):
    """A path of nothing is a ModelError with the path."""
    pytest.importorskip("xllamacpp")
    with pytest.raises(ModelError, match=r"none\.gguf"), serve(tmp_path / "none.gguf"):
        pass


@pytest.mark.slow
def test_damaged_gguf(tmp_path):
    """A file that is no GGUF is a ModelError, not a crash."""
    pytest.importorskip("xllamacpp")
    (tmp_path / "bad.gguf").write_bytes(b"not a model" * 100)
    with pytest.raises(ModelError, match=r"bad\.gguf"), serve(tmp_path / "bad.gguf"):
        pass


@pytest.mark.slow
def test_local_teacher_for_real(repository):
    """Real replies of the embedded model: each parses, and the server goes away."""
    pytest.importorskip("xllamacpp")
    from concurrent.futures import ThreadPoolExecutor

    from alpaca_lib.generation.prompting import Prompter
    from alpaca_lib.generation.self_instruct import Settings
    from alpaca_lib.generation.teacher import Sampling, open_teacher
    from alpaca_lib.records import load_examples

    seeds = load_examples(repository / "data" / "seed_tasks.jsonl")
    settings = Settings(seeds_per_prompt=2, tasks_per_request=2)
    with open_teacher("local", slots=2) as teacher:
        assert teacher.address.startswith("http://127.0.0.1:")

        def ask(n):
            prompt = Prompter(seeds, "A list of {count} tasks:", settings).prompt(n).text
            sampling = Sampling(max_tokens=160)
            return teacher.ask(prompt, first_number=3, tasks=2, seed=n, sampling=sampling)

        with ThreadPoolExecutor(2) as pool:
            replies = list(pool.map(ask, range(3)))
        port = urlsplit(teacher.address).port
    for reply in replies:
        parsed = parse_reply(reply.text, reply.finish_reason, 3)
        count = len(parsed.tasks) + len(parsed.rejected)
        assert count == 2 if reply.finish_reason == "stop" else count >= 1, reply.text
        assert FORMAT not in [r.reason for r in parsed.rejected], reply.text
        assert reply.completion_tokens > 10 and reply.prompt_tokens > 50
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
