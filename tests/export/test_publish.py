"""Publishing, AlpacaEval's format, the command line."""

from __future__ import annotations

import json
from statistics import mean

import pytest
import yaml

from alpaca_lib.errors import DataError, ModelError
from alpaca_lib.evaluation.alpaca_eval import load_outputs, pair_outputs, save_outputs
from alpaca_lib.export.hub_folder import hub_id, model_card, publish
from alpaca_lib.inference.__main__ import main
from alpaca_lib.inference.decoding import Answer
from alpaca_lib.prompts import render_prompt
from alpaca_lib.records import Example, save_examples


@pytest.fixture
def trained(tiny_folder, tmp_path):
    """A model folder with the run.json of a training run."""
    import shutil

    folder = tmp_path / "trained"
    shutil.copytree(tiny_folder, folder)
    run = {
        "settings": {"model": "me/base", "template": "alpaca-lora", "method": "full",
                     "data_path": "/home/me/secret/alpaca.json", "learning_rate": 2e-5},
        "versions": {"torch": "2.13.0"},
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(run))
    return folder


def test_a_published_folder(trained, tokenizer, tmp_path):
    """It loads with transformers alone, speaks its prompt from messages, and has a card."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = publish(str(trained), tmp_path / "hub", licence="apache-2.0", scores={"loss": 1.5})
    AutoModelForCausalLM.from_pretrained(folder)
    loaded = AutoTokenizer.from_pretrained(folder)
    message = [{"role": "user", "content": "Say {x}."}]
    text = loaded.apply_chat_template(message, tokenize=False)
    assert text == render_prompt(Example("Say {x}."), "alpaca-lora")
    card = (folder / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header["license"] == "apache-2.0" and header["base_model"] == "me/base"
    assert "| `learning_rate` | 2e-05 |" in card and "| loss | 1.500 |" in card
    assert "alpaca.json" in card and "/home/me" not in card
    with pytest.raises(ModelError, match="is not empty"):
        publish(str(trained), folder)


@pytest.fixture
def adapter(tiny_folder, tokenizer, tmp_path):
    """Makes a folder with a LoRA adapter of the tiny model, whose config names some base."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    def make(base: str):
        model = AutoModelForCausalLM.from_pretrained(tiny_folder)
        config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"])
        adapted = peft.get_peft_model(model, config)
        torch.manual_seed(0)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
        adapted.peft_config["default"].base_model_name_or_path = base
        folder = tmp_path / "adapter"
        adapted.save_pretrained(folder, save_embedding_layers=False)
        tokenizer.save_pretrained(folder)
        settings = {"model": base, "template": "alpaca-lora", "method": "lora", "lora_rank": 2}
        settings |= {"data_path": "/home/me/secret/alpaca.json", "output_dir": "/home/me/out"}
        (folder / "run.json").write_text(json.dumps({"settings": settings, "versions": {}}))
        return folder

    return make


CACHED = "/home/me/.cache/huggingface/hub/models--me--base-7b.v1/snapshots/0123abc"


@pytest.mark.parametrize(
    ("base", "hub_name"),
    [
        ("smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("me/base", "me/base"),
        (CACHED, "me/base-7b.v1"),
        ("CACHE/smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct"),
    ],
)
def test_an_adapter_alone(base, hub_name, adapter, tiny_folder, tmp_path, monkeypatch):
    """PEFT loads it onto its base; nothing in it names this machine."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setenv("ALPACA_CACHE", str(tmp_path / "cache"))
    source = adapter(base.replace("CACHE", str(tmp_path / "cache")))
    folder = tmp_path / "hub"
    assert main(["publish", str(source), str(folder), "--adapter", "--licence", "mit"]) == 0
    assert not any(folder.glob("model*.safetensors"))
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == hub_name
    card = (folder / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header["base_model"] == hub_name and header["base_model_relation"] == "adapter"
    assert header["library_name"] == "peft" and header["license"] == "mit"
    assert f'from_pretrained("{hub_name}")' in card and "| `lora_rank` | 2 |" in card
    for file in folder.iterdir():
        if file.suffix in (".md", ".json", ".jinja"):
            text = file.read_text(encoding="utf-8")
            assert "/home/me" not in text and str(tmp_path) not in text, file.name

    ids = torch.arange(5, 45)[None]
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    plain = model(ids).logits
    ours, theirs = (
        peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_folder), one)
        for one in (source, folder)
    )
    assert torch.equal(ours(ids).logits, theirs(ids).logits)
    assert not torch.allclose(plain, theirs(ids).logits)
    message = [{"role": "user", "content": "Say {x}."}]
    text = AutoTokenizer.from_pretrained(folder).apply_chat_template(message, tokenize=False)
    assert text == render_prompt(Example("Say {x}."), "alpaca-lora")


def test_an_adapter_whose_base_others_do_not_have(adapter, tiny_folder, tmp_path, capsys):
    """It is refused with the option that names a base, before a folder is made."""
    source, folder = adapter(str(tiny_folder)), tmp_path / "hub"
    assert main(["publish", str(source), str(folder), "--adapter"]) == 1
    assert "--base OWNER/NAME" in capsys.readouterr().err and not folder.exists()
    words = ["publish", str(source), str(folder), "--adapter", "--base", "me/base"]
    assert main(words) == 0
    assert "base_model: me/base\n" in (folder / "README.md").read_text()
    assert main(["publish", str(tiny_folder), str(tmp_path / "b"), "--adapter"]) == 1
    assert "is no adapter; leave out --adapter" in capsys.readouterr().err


def test_a_merged_adapter_names_its_base_on_the_hub_too(adapter, tiny_folder, tmp_path):
    """Its card has no path of this machine."""
    folder = tmp_path / "hub"
    publish(str(adapter(str(tiny_folder))), folder)
    card = (folder / "README.md").read_text()
    assert "base_model" not in card and str(tmp_path) not in card
    assert f"- **Base:** {tiny_folder.name}\n" in card and (folder / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("name", "found"),
    [("runs/lora", ""), ("./base", ""), ("../base", ""), ("/a/b", ""), ("", ""), ("base", "")],
)
def test_a_name_that_is_no_hub_id(name, found):
    assert hub_id(name) == found


def test_a_card_says_what_it_does_not_know():
    """No run, no licence, no scores: each is said."""
    card = model_card("mine", "", {})
    assert card.count("not stated by whoever made this card") == 6


def test_outputs_and_back(tmp_path):
    """What is written is AlpacaEval's format, and reads back; pairs are by task."""
    examples = [Example("a", "", "ref"), Example("b", "in", "ref"), Example("c")]
    answers = [Answer("x", True, 1), Answer("y", True, 1), Answer("", False, 0)]
    file = save_outputs(tmp_path / "o.json", examples, answers, "mine")
    assert json.loads(file.read_text())[1] == {
        "instruction": "b\n\nin", "output": "y", "generator": "mine",
    }  # fmt: skip
    name, rows = load_outputs(file)
    assert name == "mine" and [row.output for row in rows] == ["x", "y", ""]
    other = [Example("c", "", "z"), Example("a", "", "w")]
    assert [(one.output, two.output) for one, two in pair_outputs(rows, other)] == [
        ("x", "w"), ("", "z"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON"),
        ("[]", "at least one"),
        ('[{"instruction": "a", "output": 3, "generator": "m"}]', "row 1 needs"),
        (
            '[{"instruction": "a", "output": "", "generator": "m"},'
            ' {"instruction": "b", "output": "", "generator": "n"}]',
            "several models: m, n",
        ),
    ],
)
def test_bad_outputs(text, message, tmp_path):
    """Each fault is one line that names the file."""
    file = tmp_path / "outputs.json"
    file.write_text(text)
    with pytest.raises(DataError, match=f"outputs.json.*{message}"):
        load_outputs(file)


def test_published_outputs(stanford_data, capsys):
    """text-davinci-003's and alpaca-7b's outputs of AlpacaEval, through what needs no judge."""
    folder = stanford_data / "alpaca_eval"
    if not folder.is_dir():
        pytest.skip("no outputs of AlpacaEval there")
    one, davinci = load_outputs(folder / "text_davinci_003.json")
    other, alpaca = load_outputs(folder / "alpaca-7b.json")
    assert (one, other) == ("text_davinci_003", "alpaca-7b")
    both = pair_outputs(davinci, alpaca)
    assert len(both) == 805
    files = [str(folder / name) for name in ("text_davinci_003.json", "alpaca-7b.json")]
    assert main(["outputs", *files]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("805 tasks; text_davinci_003 minus alpaca-7b")
    words = next(line.split() for line in lines if line.split()[0] == "words")
    assert float(words[1]) == pytest.approx(mean(len(a.output.split()) for a, _ in both), rel=0.03)


def test_compare_from_the_command_line(tiny_folder, some_examples, tmp_path, capsys):
    """Two models: a table, intervals, outputs that AlpacaEval can score."""
    tasks = save_examples(some_examples[:4], tmp_path / "tasks.json")
    words = ["compare", f"one={tiny_folder}", f"two={tiny_folder}", "--eval", str(tasks)]
    words += ["--max-new-tokens", "6", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "two minus one" in out and "0.000 [0.000, 0.000]" in out
    assert load_outputs(tmp_path / "out" / "two.json")[0] == "two"
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["one"]["loss"] > 0


def test_safety_from_the_command_line(capsys):
    """The counts of the shipped set."""
    assert main(["safety"]) == 0
    assert "of 100 harmful" in capsys.readouterr().out


def test_templates_of_what_is_compared(trained, some_examples, tmp_path, capsys):
    """They are asked as they were trained; two that were trained otherwise are not compared."""
    import shutil

    tasks = str(save_examples(some_examples[:2], tmp_path / "tasks.json"))
    words = ["--eval", tasks, "--max-new-tokens", "2"]
    assert main(["compare", str(trained), *words]) == 0
    assert "template alpaca-lora" in capsys.readouterr().err
    other = shutil.copytree(trained, tmp_path / "other")
    (other / "run.json").write_text('{"settings": {"template": "short"}}')
    assert main(["compare", str(trained), str(other), *words]) == 1
    assert "different templates" in capsys.readouterr().err
    assert main(["compare", f"a={trained}", f"a={other}", *words]) == 1
    assert "two models are called a" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"output": ""}, "has no reference answers"),
        ({"check": {"words_max": "20"}}, "a value of the wrong kind"),
        ({"check": None}, "check None: use"),
    ],
)
def test_tasks_that_cannot_be_scored(row, message, tiny_folder, tmp_path, capsys):
    """It is said before any model is asked."""
    file = tmp_path / "tasks.json"
    task = {"instruction": "Say it.", "input": "", "output": "It."}
    file.write_text(json.dumps([task | row]))
    assert main(["compare", str(tiny_folder), "--eval", str(file)]) == 1
    assert message in capsys.readouterr().err


def test_scores_of_a_card(trained, tmp_path, capsys):
    """compare's own file, one model of it; and what holds no numbers is said first."""
    file = tmp_path / "scores.json"
    file.write_text(json.dumps({"mine": {"model": "mine", "loss": 1.25, "losses": [1, 2]}}))
    words = ["publish", str(trained), str(tmp_path / "hub"), "--scores", str(file)]
    assert main(words) == 1
    assert "names and numbers are needed" in capsys.readouterr().err
    assert main([*words, "--of", "mine"]) == 0
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "| loss | 1.250 |" in card and "losses" not in card
    assert "/home/me" not in (tmp_path / "hub" / "run.json").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["serve", "smollm2-135m", "--port", "70000"], "port 70000: from 1 to 65535"),
        (["compare", "nothing-here"], "no model 'nothing-here'"),
        (["export", "nothing-here", "x.gguf"], "no model 'nothing-here'"),
        (["serve", "nothing.gguf"], "nothing.gguf"),
        (["safety", "--set", "nothing.jsonl"], "nothing.jsonl"),
        (["judge", "a.json", "b.json", "--judge", "m"], "a.json"),
    ],
)
def test_errors_are_one_line(words, message, capsys):
    """What, where, and no traceback."""
    assert main(words) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


@pytest.mark.parametrize("path", ["/home/me/alpaca.json", r"C:\Users\me\alpaca.json"])
def test_a_path_of_any_system_is_shortened(path):
    """Trained on one, published on another."""
    from alpaca_lib.export import hub_folder

    run = {"settings": {"data_path": path, "model": "me/base", "seeds": [path]}, "steps": 3}
    assert hub_folder._without_paths(run) == {
        "settings": {"data_path": "alpaca.json", "model": "me/base", "seeds": ["alpaca.json"]},
        "steps": 3,
    }
