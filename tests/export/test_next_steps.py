"""What `alpaca export` writes beside a GGUF file, and the lines that it prints."""

from __future__ import annotations

import json
import shlex
import shutil

import pytest

from alpaca_lib import models
from alpaca_lib.cli import main
from alpaca_lib.export.next_steps import NextSteps

pytest.importorskip("gguf")


@pytest.fixture
def trained(build_tokenizer, make_tiny, tmp_path):
    """A folder with a tiny trained model, as training leaves it."""
    from alpaca_lib.tokenization import publish_prompts

    tokenizer = build_tokenizer("byte-level", "nobody", "<|im_end|>")
    folder = tmp_path / "My Run"
    make_tiny(vocab_size=len(tokenizer)).save_pretrained(folder)
    publish_prompts(tokenizer, "short")
    tokenizer.save_pretrained(folder)
    (folder / "run.json").write_text(json.dumps({"settings": {"template": "short"}}))
    return folder


@pytest.fixture
def adapter(trained, tmp_path):
    """A folder with an adapter of it."""
    import peft

    def make(**options):
        model = models.ModelSource.resolve(str(trained)).load_model()
        config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", **options)
        adapted = peft.get_peft_model(model, config)
        adapted.peft_config["default"].base_model_name_or_path = str(trained)
        adapted.save_pretrained(tmp_path / "adapter")
        shutil.copy(trained / "run.json", tmp_path / "adapter")
        return tmp_path / "adapter"

    return make


def test_a_model(trained, tmp_path, capsys):
    """A Modelfile with the template of training, and a line per server, quoted for a shell."""
    out = tmp_path / "out put"
    out.mkdir()
    file = out / "My Model.gguf"
    assert main(["export", str(trained), str(file), "--kind", "q5_0", "--system", "Be brief."]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sorted(one.name for one in out.iterdir()) == ["Modelfile", "My Model.gguf"]
    text = (out / "Modelfile").read_text(encoding="utf-8")
    assert text.startswith('FROM ./My Model.gguf\nSYSTEM """Be brief."""\nTEMPLATE """')
    assert "### Instruction:\n" in text and 'PARAMETER stop "<|im_end|>"' not in text
    assert 'PARAMETER stop "</s>"' in text and "num_ctx 2048" in text
    assert f"llama.cpp    llama-server -m '{file}' -c 2048" in lines
    create = f"ollama create my-model -f '{out / 'Modelfile'}' && ollama run my-model"
    assert f"Ollama       {create}" in lines
    assert f"LM Studio    lms import --copy '{file}'" in lines
    assert f"vLLM         vllm serve '{trained}' --served-model-name my-model" in lines


def test_a_second_file_in_the_folder(trained, tmp_path, capsys):
    """Another file's Modelfile is kept; the same file's is written again."""
    first, second = tmp_path / "one.gguf", tmp_path / "two.gguf"
    for file in (first, second, first):
        assert main(["export", str(trained), str(file)]) == 0
    assert (tmp_path / "Modelfile").read_text().startswith("FROM ./one.gguf\n")
    assert (tmp_path / "Modelfile-two").read_text().startswith("FROM ./two.gguf\n")
    assert "Modelfile-two && ollama run two" in capsys.readouterr().out


def test_another_template_than_the_folders(trained, tmp_path, capsys):
    """vLLM reads the folder's template: one that differs is written beside the file."""
    file = tmp_path / "m.gguf"
    assert main(["export", str(trained), str(file), "--template", "alpaca"]) == 0
    assert f"--chat-template {shlex.quote(str(tmp_path / 'm.jinja'))}" in capsys.readouterr().out
    assert "paired with an input" in (tmp_path / "m.jinja").read_text(encoding="utf-8")


def test_an_adapter(adapter, trained, tmp_path, capsys):
    """FROM the base's file and ADAPTER, which new releases of Ollama refuse, as both say."""
    folder, file = adapter(r=12), tmp_path / "lora.gguf"
    assert main(["export", str(folder), str(file), "--adapter"]) == 0
    out = capsys.readouterr().out
    text = (tmp_path / "Modelfile").read_text(encoding="utf-8")
    assert "\nFROM ./My Run.gguf\nADAPTER ./lora.gguf\n" in text
    assert text.startswith("# Ollama 0.34.1 and later refuse adapters") and "0.34.1" in out
    assert f"alpaca export '{trained}' '{tmp_path}/My Run.gguf' --template short" in out
    assert f"llama-server -m '{tmp_path}/My Run.gguf' -c 2048 --lora {file}" in out
    assert f"vllm serve '{trained}' --enable-lora --max-lora-rank 16" in out
    assert f"--lora-modules lora={folder}" in out


def test_an_adapter_that_vllm_does_not_load(adapter, tmp_path):
    """DoRA, and a rank above vLLM's: publish merges it."""
    for options in ({"use_dora": True}, {"r": 600}):
        folder = adapter(**options)
        steps = NextSteps(models.ModelSource.resolve(str(folder)), tmp_path / "m.gguf", "short")
        assert any("does not load this adapter: alpaca publish" in line for line in steps.write())


def test_a_template_that_ollama_cannot_have(trained, tmp_path, capsys):
    """The GGUF file is written, and no Modelfile: the line says why, and what reads it."""
    source = models.ModelSource.resolve(str(trained))
    tokenizer = source.load_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.replace('A', 'a') }}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer.save_pretrained(trained)
    file = tmp_path / "m.gguf"
    assert main(["export", str(trained), str(file), "--template", "chat"]) == 0
    out = capsys.readouterr().out
    assert "no Modelfile: the chat template decides by more" in out and "LM Studio" in out
    assert file.is_file() and not (tmp_path / "Modelfile").exists()
    file.unlink()
    words = ["export", str(trained), str(file), "--template", "chat", "--system", "Be kind."]
    assert main(words) == 1
    assert "decides by more" in capsys.readouterr().err and not file.exists()


def test_help_lists_the_tables(capsys):
    """Families and kinds of --help are those of the tables; it ends with two examples."""
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    out = capsys.readouterr().out
    assert "Gemma 3, text only; Phi-3, Phi-4" in out and "q5_1 (6 bits)" in out
    assert out.rstrip().splitlines()[-3] == "examples:"
