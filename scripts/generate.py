"""Answers instructions with a base model and LoRA weights, as Alpaca-LoRA's generate.py.

python generate.py --load_8bit --base_model MODEL --lora_weights FOLDER [--flag value ...]
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import conversions
import flags
from flags import Flag, Given, Script
from pydantic import NonNegativeInt

from alpaca_lib.errors import ModelError, UsageError
from alpaca_lib.inference.decoding import Decoding
from alpaca_lib.models import DEFAULT_MODEL, EMBEDDED, ModelSource, base_name
from alpaca_lib.optional import require

if TYPE_CHECKING:
    from alpaca_lib.inference import ModelPool, Policy, TextStream


def _explain_template(name: str) -> str:
    return conversions.explain_template(name) if name else "template as trained"


def _explain_share(share: bool) -> str:
    return "a link that anyone can use" if share else "no public link"


SCRIPT = Script(
    name="generate.py",
    about=f"""
Stage 05 of the Alpaca recipe: serves a web page that answers instructions, with a base model or
with LoRA weights added to it. With --prompt it prints one answer and needs no browser.

Alpaca-LoRA opened the page to the whole network (0.0.0.0); this script listens on 127.0.0.1
unless --server_name is given. Whoever can open the page can use the model: there is no password,
and no filter on what it writes unless --safety_rules names one.

{conversions.list_templates("prompt_template")}
""",
    options=Decoding.model_fields,
    flags=(
        Flag(
            "load_8bit",
            default=False,
            kind=bool,
            help="weights in 8 bits",
            becomes="int8 weights: {}",
        ),
        Flag(
            "base_model",
            default="",
            help="a folder, the embedded model or a hub id",
            becomes="model {}",
            unset=f"the one that the LoRA weights were trained on, else {DEFAULT_MODEL}",
        ),
        Flag(
            "lora_weights",
            default="",
            help="a folder or hub id with an adapter",
            becomes="adapter {}",
        ),
        Flag(
            "prompt_template",
            default="",
            help="prompt template, by Alpaca-LoRA's or this project's name",
            becomes=_explain_template,
            unset="the one that the model was trained with, if its run.json says so",
        ),
        Flag(
            "server_name",
            default="127.0.0.1",
            help="address on which the page listens",
            becomes="host {}",
        ),
        Flag(
            "server_port",
            default=0,
            kind=NonNegativeInt,
            help="its port; 0: the first free one from 7860",
            becomes="port {}",
        ),
        Flag(
            "share_gradio",
            default=False,
            kind=bool,
            help="a public link through Gradio's servers",
            becomes=_explain_share,
            aliases=("share",),
        ),
        Flag(
            "prompt",
            default=None,
            help="print the answer to this instruction and exit",
            becomes="one answer, no page",
        ),
        Flag(
            "input",
            default="",
            help="what the instruction is about, with --prompt",
            becomes="input {}",
        ),
        Flag("temperature", sets="temperature", default=0.1),
        Flag("top_p", sets="top_p", default=0.75),
        Flag("top_k", sets="top_k", default=40),
        Flag("num_beams", sets="beams", default=1),
        Flag("max_new_tokens", sets="max_new_tokens", default=128),
        Flag(
            "stream_output",
            default=True,
            kind=bool,
            help="show an answer as it grows",
            becomes="streamed: {}",
        ),
        Flag(
            "safety_rules",
            default="",
            help="which requests and answers are blocked: a file of rules, or default",
            becomes="rules {}",
        ),
        Flag("seed", sets="seed", default=None, unset="another answer each time"),
    ),
    examples=(
        """\
  python scripts/generate.py --load_8bit --base_model smollm2-135m \\
      --lora_weights runs/lora-alpaca""",
        """\
  python scripts/generate.py --prompt "Name three rivers." --lora_weights runs/lora-alpaca""",
    ),
)


def load(base: str, lora: str, load_8bit: bool) -> ModelPool:
    """Loads the base model, and the one with LoRA weights if there are any. Raises ModelError."""
    from alpaca_lib.inference import ModelPool

    quantization = "int8" if load_8bit else "none"
    if not lora:
        name = base or DEFAULT_MODEL
        return ModelPool({name: name}, quantization=quantization)
    adapter = find_adapter(lora)
    trained_on = base_name(adapter.folder)
    name = base or trained_on
    try:
        return ModelPool(
            {name: name, f"{Path(name).name} + {adapter.folder.name}": adapter},
            quantization=quantization,
            base=name,
        )
    except ModelError as error:
        hint = f" (it was trained on {trained_on})" if trained_on != name else ""
        raise ModelError(f"{lora} does not fit the model {name}{hint}: {error}") from None


def find_adapter(name: str) -> ModelSource:
    """Returns the source of an adapter, downloaded if it is on the hub. Raises ModelError."""
    source = ModelSource.resolve(name)
    if not source.folder.is_dir():
        hub = require("huggingface_hub")
        try:
            path = hub.snapshot_download(name, allow_patterns=["*.json", "*.safetensors"])
        except Exception as error:
            raise ModelError(f"{name}: cannot be fetched ({type(error).__name__})") from None
        source = replace(source, path=path)
    if not source.is_adapter:
        raise ModelError(
            f"{name}: is not a LoRA adapter (no adapter_config.json); give a full model as "
            "--base_model"
        )
    return source


def choose_template(asked: str, pool: ModelPool) -> tuple[str, str]:
    """Returns (template, reason): the requested one, else the one used in training."""
    from alpaca_lib.inference import trained_template

    if asked:
        return conversions.template(asked), "--prompt_template"
    sources = list(pool.sources.values())
    for source in reversed(sources):  # the adapter comes last
        if template := trained_template(source):
            return template, f"from {source.name}/run.json"
    if [source.name for source in sources if source.name in EMBEDDED] == pool.names:
        return "chat", "the format of the model's own training"
    return conversions.template("alpaca"), "Alpaca-LoRA's; --prompt_template sets another"


def print_answer(
    given: Given,
    pool: ModelPool,
    decoding: Decoding,
    template: str,
    policy: Policy | None,
) -> None:
    """Prints the answer to --prompt, as it grows unless --stream_output is False."""
    from alpaca_lib.records import Example

    example = Example(given["prompt"], given["input"])

    def stream() -> TextStream:
        return pool.stream(pool.names[-1], example, decoding, template)

    shown = ""
    texts = policy.guard(example.instruction, example.input, stream) if policy else stream()
    for text in texts:
        if given["stream_output"]:
            print(text[len(shown) :], end="", flush=True)
        shown = text
    print("" if given["stream_output"] else shown)


def work(given: Given) -> None:
    """Loads the model, then prints one answer or serves the page."""
    once = given["prompt"] is not None
    if once and not given["prompt"].strip():
        raise UsageError("--prompt is empty; write an instruction")
    if given["input"] and not once:
        raise UsageError("--input: only with --prompt; the page has a field for it")
    notes = sys.stderr if once else sys.stdout  # with --prompt, stdout is the answer alone
    decoding = Decoding(**given.options)
    policy = load_policy(given["safety_rules"])
    given.print_changes(notes)
    pool = load(given["base_model"], given["lora_weights"], given["load_8bit"])
    template, why = choose_template(given["prompt_template"], pool)
    name = pool.names[-1]
    print(f"model {name} on {pool.device}; template {template} ({why})", file=notes, flush=True)
    if once:
        print_answer(given, pool, decoding, template, policy)
        return
    from alpaca_lib.inference import app
    from alpaca_lib.prompts import render_prompt
    from alpaca_lib.records import Example

    for model in pool.names:  # a template that a model lacks is an error before the page opens
        render_prompt(Example("Hello"), template, pool.tokenizer(model))

    def stream_of(model: str) -> app.StreamFunction:
        return lambda example, how: pool.stream(model, example, how, template)

    page = app.build(
        {model: stream_of(model) for model in pool.names},
        title=name,
        start=decoding,
        stream_answers=given["stream_output"],
        longest=pool.context_length,
        policy=policy,
    )
    if given["share_gradio"]:
        print("share: anyone with the link below can use this model, for a week")
    app.serve(page, given["server_name"], given["server_port"], given["share_gradio"])


def load_policy(rules: str) -> Policy | None:
    """Loads the policy that checks requests and answers; None without rules."""
    if not rules:
        return None
    from alpaca_lib.inference import Policy

    return Policy.load(None if rules == "default" else Path(rules))


def main(arguments: list[str]) -> int:
    """Runs the command line and returns the exit code."""
    return flags.run(lambda: work(flags.parse(SCRIPT, arguments)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
