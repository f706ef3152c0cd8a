"""Answers instructions with a base model and LoRA weights, as Alpaca-LoRA's generate.py.

python generate.py --load_8bit --base_model MODEL --lora_weights FOLDER [--flag value ...]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import flags
from flags import Flag, Given, Script

from alpaca_lib.errors import ModelError
from alpaca_lib.models.embedded import DEFAULT_MODEL, EMBEDDED
from alpaca_lib.optional import require

if TYPE_CHECKING:
    from alpaca_lib.inference.decoding import Decoding, TextStream
    from alpaca_lib.inference.model_pool import ModelPool
    from alpaca_lib.inference.safety import Policy

SCRIPT = Script(
    name="generate.py",
    about="""
        Stage 05 of the Alpaca recipe: a page in the browser that answers instructions, with the
        model as it is or with LoRA weights on it. With --prompt it answers once, on the
        terminal, and needs no browser.

        Alpaca-LoRA opened the page to the whole network (0.0.0.0); here it is 127.0.0.1 until
        --server_name says otherwise. Whoever can open the page can use the model: there is no
        password, and no filter on what it writes unless --safety_rules names one.
    """,
    flags=(
        Flag("load_8bit", bool, False, "weights in 8 bits", lambda on: f"int8 weights: {on}"),
        Flag(
            *("base_model", str, "", "a folder, a hub id or the embedded model"),
            *("model {}",),
            unset=f"the one that the LoRA weights were trained on, else {DEFAULT_MODEL}",
        ),
        Flag(
            *("lora_weights", str, "", "a folder or hub id with an adapter"),
            lambda name: f"adapter {name or 'none'}",
        ),
        Flag(
            *("prompt_template", str, "", "the prompt's text, by upstream's name"),
            lambda name: f"template {flags.template(name) if name else 'as trained'}",
            unset="the one that the model was trained with, if its run.json says so",
        ),
        Flag("server_name", str, "127.0.0.1", "the address that the page listens on", "host {}"),
        Flag(
            *("server_port", int, 0, "its port"),
            lambda port: f"port {port or 'the first free one from 7860 on'}",
            least=0,
        ),
        Flag(
            *("share_gradio", bool, False, "a public link through Gradio's servers"),
            lambda on: "a link that anyone can use" if on else "no public link",
            aliases=("share",),
        ),
        Flag("prompt", str, None, "answer this on the terminal, and end", "one answer, no page"),
        Flag("input", str, "", "what the instruction is about, with --prompt", "input {}"),
        Flag("temperature", float, 0.1, "0: always the likeliest", "temperature {}", least=0),
        Flag("top_p", float, 0.75, "the likeliest tokens with this total", "top_p {}", least=0),
        Flag("top_k", int, 40, "so many of the likeliest tokens; 0: all", "top_k {}", least=0),
        Flag("num_beams", int, 1, "answers kept side by side (upstream: 4)", "beams {}", least=1),
        Flag("max_new_tokens", int, 128, "longest answer", "max_new_tokens {}", least=1),
        Flag("stream_output", bool, True, "show an answer as it grows", "streamed: {}"),
        Flag(
            *("safety_rules", str, "", "what may pass: a file of rules, or default"),
            lambda rules: f"rules {rules}" if rules else "no rules",
        ),
        Flag(
            *("seed", int, None, "for the same sampled answer again, with --prompt"),
            *("seed {}",),
            unset="another one each time",
        ),
    ),
    example="""
        python scripts/generate.py --load_8bit --base_model smollm2-135m \\
            --lora_weights runs/lora-alpaca
        python scripts/generate.py --prompt "Name three rivers." --lora_weights runs/lora-alpaca
    """,
)


def load(base: str, lora: str, load_8bit: bool) -> ModelPool:
    """The model, and beside it the one with LoRA weights, if there are any. Raises ModelError."""
    from alpaca_lib import models
    from alpaca_lib.inference.model_pool import ModelPool

    quantization = "int8" if load_8bit else "none"
    if not lora:
        name = base or DEFAULT_MODEL
        return ModelPool({name: name}, quantization=quantization)
    folder = adapter_folder(lora)
    under = base or models.base_name(folder)
    try:
        names = {under: under, f"{Path(under).name} + {folder.name}": str(folder)}
        return ModelPool(names, quantization=quantization, base=under)
    except ModelError as error:
        trained_on = models.base_name(folder)
        hint = f" (it was trained on {trained_on})" if trained_on != under else ""
        raise ModelError(f"{lora} does not go with the model {under}{hint}: {error}") from None


def adapter_folder(name: str) -> Path:
    """The folder of an adapter: ``name`` itself, in ALPACA_MODELS, or fetched from the hub."""
    from alpaca_lib.models import locate

    folder = Path(locate(name).path)
    if not folder.is_dir():
        hub = require("huggingface_hub")
        try:
            folder = Path(hub.snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
        except Exception as error:
            raise ModelError(f"{name}: cannot be fetched ({type(error).__name__})") from None
    if not (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{name}: is no LoRA adapter (no adapter_config.json); a whole model is --base_model"
        )
    return folder


def choose_template(asked: str, base: str, lora: str) -> tuple[str, str]:
    """(template, why): a model answers well only to the prompt that it was trained on."""
    if asked:
        return flags.template(asked), "as asked for"
    for name in filter(None, (lora, base)):
        try:
            run = json.loads((Path(name) / "run.json").read_text(encoding="utf-8"))
            return str(run["settings"]["template"]), f"{name}/run.json says so"
        except (OSError, ValueError, KeyError, TypeError):
            continue
    if not lora and (base or DEFAULT_MODEL) in EMBEDDED:
        return "chat", "this model was trained on its own chat format"
    return flags.template("alpaca"), "Alpaca-LoRA's; --prompt_template chooses another"


def decoding_of(given: Given) -> Decoding:
    """The flags as the library's Decoding, which checks them."""
    from alpaca_lib.inference.decoding import Decoding

    return Decoding(
        temperature=given["temperature"],
        top_p=given["top_p"],
        top_k=given["top_k"],
        beams=given["num_beams"],
        max_new_tokens=given["max_new_tokens"],
        seed=given["seed"],
    )


def answer_once(given: Given, voices: ModelPool, template: str, policy: Policy | None) -> None:
    """Prints one answer, as it grows unless --stream_output False."""
    from alpaca_lib.records import Example

    example = Example(given["prompt"], given["input"])

    def growing() -> TextStream:
        return voices.stream(voices.names[-1], example, decoding_of(given), template)

    shown = ""
    guarded = policy.guard(example.instruction, example.input, growing) if policy else growing()
    for text in guarded:
        if given["stream_output"]:
            print(text[len(shown) :], end="", flush=True)
        shown = text
    print("" if given["stream_output"] else shown)


def work(given: Given) -> None:
    """Loads the model, then answers once or serves the page."""
    once = given["prompt"] is not None
    if once and not given["prompt"].strip():
        raise flags.FlagError("--prompt: is empty; write an instruction")
    if given["input"] and not once:
        raise flags.FlagError("--input: goes with --prompt; the page has a field for it")
    notes = sys.stderr if once else sys.stdout  # with --prompt, stdout is the answer alone
    decoding = decoding_of(given)
    policy = policy_of(given["safety_rules"])
    given.tell(notes)
    template, why = choose_template(
        given["prompt_template"], given["base_model"], given["lora_weights"]
    )
    voices = load(given["base_model"], given["lora_weights"], given["load_8bit"])
    name = voices.names[-1]
    print(f"model {name} on {voices.device}; template {template} ({why})", file=notes, flush=True)
    if once:
        answer_once(given, voices, template, policy)
        return
    from alpaca_lib.inference import app
    from alpaca_lib.prompts import render_prompt
    from alpaca_lib.records import Example

    for voice in voices.names:  # what cannot be asked is told before anyone asks
        render_prompt(Example("Hello"), template, voices.tokenizer(voice))

    def speaker(voice: str) -> app.StreamFunction:
        return lambda example, how: voices.stream(voice, example, how, template)

    page = app.build(
        {voice: speaker(voice) for voice in voices.names},
        name, decoding, given["stream_output"], voices.context_length, policy,
    )  # fmt: skip
    if given["share_gradio"]:
        print("share: anyone with the link below can use this model, for a week")
    app.serve(page, given["server_name"], given["server_port"], given["share_gradio"])


def policy_of(rules: str) -> Policy | None:
    """The policy that requests and answers have to pass, or None."""
    if not rules:
        return None
    from alpaca_lib.inference.safety import Policy

    return Policy.load(None if rules == "default" else Path(rules))


def main(arguments: list[str]) -> int:
    """Runs the command line; returns the exit code."""
    return flags.run(lambda: work(flags.parse(SCRIPT, arguments)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
