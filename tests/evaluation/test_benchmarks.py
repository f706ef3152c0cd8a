"""alpaca evaluate: results, resume, refusals; log-likelihoods against a forward pass of our own."""

from __future__ import annotations

import json
import shutil
import socket
import sys
import time
from pathlib import Path

import pytest

from alpaca_lib import cli, hub_data
from alpaca_lib.errors import DataError, FileError
from alpaca_lib.evaluation import benchmark_model, ifeval_task
from alpaca_lib.evaluation.answers_file import AnswersFile
from alpaca_lib.evaluation.benchmark_model import fingerprint
from alpaca_lib.evaluation.benchmark_results import ResultsFile
from alpaca_lib.models import ModelSource, place
from alpaca_lib.records import Example
from alpaca_lib.tokenization import PromptEncoder

PROMPTS = [
    ("Write a long sentence about the sea, without commas.", "punctuation:no_comma", {}),
    ("Say yes in quotes.", "startend:quotation", {}),
    ("Name [a] placeholder.", "detectable_content:number_placeholders", {"num_placeholders": 1}),
    ("Write less than 99 words.", "length_constraints:number_words", None),
    ("Write a title.", "detectable_format:title", {}),
]


@pytest.fixture
def ifeval_file(tmp_path):
    """Five prompts with one instruction each."""
    rows = [
        {
            "key": key,
            "prompt": text,
            "instruction_id_list": [kind],
            "kwargs": [{"num_words": 99, "relation": "less than"} if args is None else args],
        }
        for key, (text, kind, args) in enumerate(PROMPTS)
    ]
    file = tmp_path / "ifeval.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture
def evaluate(tmp_path, ifeval_file):
    """A function that runs the command on IFEval's five prompts, two per batch."""

    def run(*words, tasks="ifeval"):
        out = ["--out", str(tmp_path / "out.json")]
        data = ["--ifeval-data", str(ifeval_file)] if tasks == "ifeval" else []
        options = ["--tasks", tasks, "--batch-size", "2", *data, *out]
        if "--max-new-tokens" not in words and tasks == "ifeval":
            options += ["--max-new-tokens", "6"]
        return cli.main(["evaluate", *map(str, words), *options])

    return run


def read_lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_ifeval_on_a_model(evaluate, tiny_folder, tmp_path, ifeval_file, capsys):
    """The table, the results and a row per answer; its settings say what was measured."""
    from alpaca_lib.files import sha256_file

    assert evaluate(f"tiny={tiny_folder}") == 0
    shown = capsys.readouterr().out
    assert "ifeval, 5 of 5 rows" in shown and "prompts, strict" in shown
    (result,) = json.loads((tmp_path / "out.json").read_text())["results"]
    assert result["settings"]["data"] == sha256_file(ifeval_file)
    assert result["settings"]["template"] == "chat"
    assert result["settings"]["decoding"] == {"temperature": 0.0, "max_new_tokens": 6}
    assert {"torch", "transformers", "python"} <= result["run"]["versions"].keys()
    header, *rows = read_lines(tmp_path / "out.tiny.ifeval.jsonl")
    assert header["settings"] == result["settings"]
    assert [row["key"] for row in rows] and {row["key"] for row in rows} == set("01234")
    strict = [all(row["strict"]) for row in rows]
    score = result["scores"]["prompt_level_strict_acc"]
    assert score["value"] == pytest.approx(sum(strict) / 5)
    # A random model writes no quotes and no title, and fewer than 99 words in 6 tokens.
    by_key = {row["key"]: row["strict"] for row in rows}
    assert by_key["1"] == [False] and by_key["3"] == [True] and by_key["4"] == [False]
    assert result["details"]["truncated"] == sum(not row["ended"] for row in rows)


def test_a_stopped_run_keeps_its_answers(evaluate, tiny_folder, tmp_path, monkeypatch, capsys):
    """Ctrl-C after two answers: the rest alone is generated, and the answers are the same."""
    assert evaluate(f"whole={tiny_folder}") == 0
    expected = {row["key"]: row["response"] for row in read_lines(_rows(tmp_path, "whole"))[1:]}
    real, calls, seen = ifeval_task.answer, [], []

    def stop(model, tokenizer, examples, decoding, template, size, keep):
        calls.append(len(examples))

        def keep_two(index, one):
            if calls == [5] and len(seen) == 2:
                raise KeyboardInterrupt
            seen.append(index)
            keep(index, one)

        return real(model, tokenizer, examples, decoding, template, size, keep_two)

    monkeypatch.setattr(ifeval_task, "answer", stop)
    assert evaluate(f"cut={tiny_folder}") == 130
    said = capsys.readouterr().err
    assert "2 answers are in" in said and "resumes" in said
    file = _rows(tmp_path, "cut")
    with open(file, "a", encoding="utf-8") as stream:
        stream.write('{"key": "9", "respo')  # a kill while a line was written
    assert evaluate(f"cut={tiny_folder}") == 0
    assert calls == [5, 3]
    assert {row["key"]: row["response"] for row in read_lines(file)[1:]} == expected
    calls.clear()
    assert evaluate(f"cut={tiny_folder}", "--limit", 3) == 0, "answers of more rows are kept"
    assert not calls and len(read_lines(file)) == 6


def _rows(folder: Path, name: str) -> Path:
    return folder / f"out.{name}.ifeval.jsonl"


def test_other_settings_and_another_model_are_refused(evaluate, tiny_folder, tmp_path, capsys):
    """Answers of two settings, or of a model that was trained on, are never mixed."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    assert evaluate(f"m={folder}") == 0
    assert evaluate(f"m={folder}", "--max-new-tokens", "7") == 1
    said = capsys.readouterr().err
    assert 'decoding {"temperature": 0.0, "max_new_tokens": 6}' in said and "--out" in said
    assert evaluate(f"m={folder}", "--template", "alpaca") == 1
    assert 'template "chat"' in capsys.readouterr().err
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    save_file({k: v + 0.01 for k, v in weights.items()}, folder / "model.safetensors")
    assert evaluate(f"m={folder}") == 1
    assert "holds results with model" in capsys.readouterr().err


def test_a_copy_of_a_model_is_the_same_model(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "copy")
    one, copy = (ModelSource.resolve(str(p)) for p in (tiny_folder, tmp_path / "copy"))
    assert fingerprint(one) == fingerprint(copy)


def test_two_models_side_by_side(evaluate, tiny_folder, capsys):
    """One table with a column per model, each with its own template's line."""
    assert evaluate(f"a={tiny_folder}", f"b={tiny_folder}") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["a", "b"]
    row = next(line for line in lines if "instructions, loose" in line)
    assert row.count("[") == 2


def test_a_gguf_file_is_refused_with_the_reason(evaluate, tmp_path, capsys):
    (tmp_path / "gguf").mkdir()
    file = tmp_path / "gguf" / "model.gguf"
    file.write_bytes(b"GGUF")
    for model in (file, file.parent):
        assert evaluate(model) == 1
        assert "log-likelihood" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, says",
    [
        (["--template", "none"], "ifeval asks a model, which needs a template"),
        (["--template", "alpacca"], "no prompt template 'alpacca'"),
        (["--limit", "0"], "limit 0: a whole number, at least 1"),
        (["--max-new-tokens", "4096"], "do not fit into the model's 2048"),
    ],
)
def test_wrong_options_are_named_and_leave_nothing(
    evaluate, tiny_folder, tmp_path, words, says, capsys
):
    assert evaluate(f"m={tiny_folder}", *words) == 1
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("tasks", ["", "ifeval,", "ifeval,ifeval"])
def test_tasks_are_names_with_commas_between(evaluate, tiny_folder, tasks, capsys):
    assert evaluate(tiny_folder, tasks=tasks) == 1
    assert "commas between" in capsys.readouterr().err


@pytest.fixture
def no_hub(monkeypatch):
    """A hub at a port where nothing listens, and an empty cache."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    hub_data.find_failure.cache_clear()
    yield
    hub_data.find_failure.cache_clear()


def test_data_that_are_unreachable_are_named_within_seconds(no_hub, tiny_folder, capsys):
    """The data set, the address and the fix; `datasets` alone retries for half a minute."""
    start = time.monotonic()
    assert cli.main(["evaluate", str(tiny_folder), "--tasks", "ifeval"]) == 1
    assert time.monotonic() - start < 15
    said = capsys.readouterr().err
    for words in ("google/IFEval", "http://127.0.0.1:9 is unreachable", "--ifeval-data"):
        assert words in said


def test_a_hub_that_does_not_answer_is_unreachable(monkeypatch):
    """A server that takes the connection and says nothing: no more than SECONDS are lost."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(hub_data, "SECONDS", 0.5)
        hub_data.find_failure.cache_clear()
        start = time.monotonic()
        assert "unreachable" in hub_data.find_failure()
        assert time.monotonic() - start < 10
    hub_data.find_failure.cache_clear()


def test_prompts_that_nothing_can_judge_are_refused_first(
    evaluate, tiny_folder, tmp_path, monkeypatch, capsys
):
    """No answer is generated if none can be judged."""
    reason = "langdetect is not installed; run `pip install langdetect`"
    kinds = dict.fromkeys((kind for _, kind, _ in PROMPTS), reason)
    monkeypatch.setattr(ifeval_task, "find_unjudged", lambda prompts: kinds)
    assert evaluate(f"m={tiny_folder}") == 1
    assert "none of the prompts can be judged" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


def test_without_lm_eval_the_install_line(monkeypatch, tiny_folder, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert cli.main(["evaluate", str(tiny_folder), "--tasks", "arc_easy"]) == 1
    assert 'pip install "lm_eval>=0.4.13,<0.5"' in capsys.readouterr().err


def test_a_foreign_file_is_not_replaced(evaluate, tiny_folder, tmp_path, capsys):
    for text in ("[1, 2]", '{"results": 3}', "text", '{"results": [{"model": "m"}]}'):
        (tmp_path / "out.json").write_text(text)
        assert evaluate(f"m={tiny_folder}") == 1
        assert "is no file of `alpaca evaluate`" in capsys.readouterr().err
        assert (tmp_path / "out.json").read_text() == text


def test_answers_of_one_run_at_a_time(tmp_path):
    """A second run on the same file is refused; so is a file that holds something else."""
    file = tmp_path / "a.jsonl"
    with AnswersFile(file, {"model": "x"}) as answers:
        answers.add({"key": "1", "response": "one"})
        with pytest.raises(FileError, match="another run"):
            AnswersFile(file, {"model": "x"})
    with AnswersFile(file, {"model": "x"}) as answers:
        assert answers.rows["1"]["response"] == "one"
    with pytest.raises(DataError, match='model "x", and this run has "y"'):
        AnswersFile(file, {"model": "y"})
    file.write_text('{"instruction": "x"}\n')
    with pytest.raises(DataError, match="is no file of answers"):
        AnswersFile(file, {"model": "x"})
    file.write_text('{"settings": {"model": "x"}}\n[]\n')
    with pytest.raises(DataError, match="line 2: is damaged"):
        AnswersFile(file, {"model": "x"})


# With lm-evaluation-harness: its HF backend on our model.

ROWS = [
    ("The capital of France is", ["Paris", "a river", "blue"], 0),
    ("Two and two are", ["five", "four", "a door"], 1),
    ("Snow is", ["hot", "white"], 1),
    ("A dog is an", ["animal", "number"], 0),
]
YAML = """task: tiny_choice
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: label
doc_to_choice: choices
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
"""


@pytest.fixture
def choice_task(tmp_path, monkeypatch):
    """A folder with a multiple-choice task of four local rows; models compute in float32."""
    pytest.importorskip("lm_eval")
    monkeypatch.setattr(benchmark_model, "place", lambda: place("cpu", "float32"))
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [{"question": q, "choices": c, "label": n} for q, c, n in ROWS]
    file = folder / "rows.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    (folder / "tiny_choice.yaml").write_text(YAML.format(file=file), encoding="utf-8")
    return folder


@pytest.mark.parametrize("template", ["none", "chat", "alpaca"])
def test_log_likelihoods_are_those_of_a_forward_pass(
    evaluate, choice_task, tiny_folder, tmp_path, template
):
    """Each log-likelihood, accuracy from it, and the prompt's ids as in training."""
    import torch

    words = ["--include-path", choice_task, "--template", template]
    assert evaluate(f"m={tiny_folder}", *words, tasks="tiny_choice") == 0
    (result,) = ResultsFile(tmp_path / "out.json").results
    assert result.rows == result.of == 4
    source = ModelSource.resolve(str(tiny_folder))
    model, tokenizer = source.load_model(place("cpu", "float32")), source.load_tokenizer()
    right = 0
    for row in read_lines(tmp_path / "out.m.tiny_choice.jsonl"):
        sums = []
        for (context, continuation), ((found, _),) in zip(
            row["arguments"], row["resps"], strict=True
        ):
            prompt = tokenizer(context)["input_ids"]
            if template != "none":
                encoder = PromptEncoder(tokenizer, template)
                assert prompt == encoder.prompts([Example(row["doc"]["question"])])[0]
            ids = tokenizer(context + continuation)["input_ids"]
            with torch.inference_mode():
                logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            # White space at the prompt's end is part of the answer for the harness.
            start = len(tokenizer(context.rstrip())["input_ids"])
            expected = sum(float(logits[n - 1, ids[n]]) for n in range(start, len(ids)))
            assert float(found) == pytest.approx(expected, abs=1e-4)
            sums.append(expected)
        right += sums.index(max(sums)) == row["doc"]["label"]
    assert result.scores["acc"].value == pytest.approx(right / 4)


def test_an_adapter_is_measured_with_its_base(
    evaluate, choice_task, tiny_folder, tmp_path, make_tiny
):
    """LoRA weights that are not zero change the log-likelihoods, as merged weights do."""
    import torch
    from peft import LoraConfig, get_peft_model

    base = ModelSource.resolve(str(tiny_folder)).load_model(place("cpu", "float32"))
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    torch.manual_seed(0)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    adapted.peft_config["default"].base_model_name_or_path = str(tiny_folder)
    adapted.save_pretrained(tmp_path / "lora")
    merged, _ = ModelSource.resolve(str(tmp_path / "lora")).load_merged()
    merged.save_pretrained(tmp_path / "merged")
    ModelSource.resolve(str(tiny_folder)).load_tokenizer().save_pretrained(tmp_path / "merged")
    names = [f"base={tiny_folder}", f"lora={tmp_path / 'lora'}", f"merged={tmp_path / 'merged'}"]
    words = ["--include-path", choice_task, "--template", "alpaca"]
    assert evaluate(*names, *words, tasks="tiny_choice") == 0
    found = {
        name: [
            float(response[0][0])
            for row in read_lines(tmp_path / f"out.{name}.tiny_choice.jsonl")
            for response in row["resps"]
        ]
        for name in ("base", "lora", "merged")
    }
    assert found["lora"] == pytest.approx(found["merged"], abs=1e-3)
    assert max(abs(a - b) for a, b in zip(found["base"], found["lora"], strict=True)) > 0.1


def test_results_of_the_harness_are_kept(evaluate, choice_task, tiny_folder, monkeypatch, capsys):
    """The same command measures nothing again; another limit is refused."""
    from alpaca_lib.evaluation.harness import Harness

    words = [f"m={tiny_folder}", "--include-path", choice_task]
    assert evaluate(*words, "--limit", "2", tasks="tiny_choice") == 0
    first = capsys.readouterr().out
    assert "tiny_choice, 2 of 4 rows" in first
    monkeypatch.setattr(Harness, "measure", None)
    assert evaluate(*words, "--limit", "2", tasks="tiny_choice") == 0
    assert capsys.readouterr().out == first
    assert evaluate(*words, "--limit", "3", tasks="tiny_choice") == 1
    assert "holds results with limit 2" in capsys.readouterr().err


def test_a_task_whose_data_are_unreachable_is_named(no_hub, tiny_folder, capsys):
    pytest.importorskip("lm_eval")
    start = time.monotonic()
    assert cli.main(["evaluate", str(tiny_folder), "--tasks", "arc_easy"]) == 1
    assert time.monotonic() - start < 60, "most of it is reading the index of all tasks"
    said = capsys.readouterr().err
    for words in ("task arc_easy", "allenai/ai2_arc", "HF_ENDPOINT", "HF_DATASETS_CACHE"):
        assert words in said


def test_an_unknown_task_is_named_with_the_nearest(tiny_folder, capsys):
    pytest.importorskip("lm_eval")
    assert cli.main(["evaluate", str(tiny_folder), "--tasks", "arc_eazy"]) == 1
    assert "no task 'arc_eazy'" in capsys.readouterr().err
    assert cli.main(["evaluate", str(tiny_folder), "--tasks", "humaneval"]) == 1
