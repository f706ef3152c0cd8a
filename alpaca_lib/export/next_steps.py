"""Where an exported model goes next: a Modelfile, and the lines for servers that others use."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from alpaca_lib.errors import SettingsError
from alpaca_lib.export.gguf_families import exact_context, get_family
from alpaca_lib.export.ollama import CONTEXT, modelfile
from alpaca_lib.files import write_text
from alpaca_lib.models import ModelSource, base_name
from alpaca_lib.models.adapters import read_adapter_config
from alpaca_lib.prompts import CHAT
from alpaca_lib.tokenization import PromptEncoder

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what --max-lora-rank may be
NOT_IN_VLLM = ("use_dora", "modules_to_save")  # settings of an adapter that vLLM does not load
NO_ADAPTERS = "Ollama 0.34.1 and later refuse adapters: export without --adapter for these"


@dataclass(frozen=True)
class NextSteps:
    """Writes a GGUF file's Modelfile, and returns the commands that serve it.

    ``template``: of training; None is the model's own. ``adapter``: the file is an adapter alone.
    """

    source: ModelSource
    file: Path
    template: str | None = None
    system: str = ""
    adapter: bool = False

    @property
    def base(self) -> Path:
        """The GGUF file of the model that answers: the file itself, or its adapter's base."""
        if not self.adapter:
            return self.file
        name = Path(base_name(self.source.folder)).name
        return self.file.with_name(f"{name}.gguf")

    @property
    def context(self) -> int:
        """The tokens up to which llama.cpp computes what PyTorch does."""
        return exact_context(self.source.base.config, get_family(self.source))

    def encoder(self) -> PromptEncoder | None:
        """Returns the encoder of the prompts of training; None if a prompt is sent as it is."""
        tokenizer = self.source.load_tokenizer()
        template = self.template or (CHAT if tokenizer.chat_template else None)
        return PromptEncoder(tokenizer, template) if template else None

    def modelfile(self) -> str:
        """Returns the Modelfile. Raises SettingsError if Ollama cannot render the prompts."""
        return modelfile(
            gguf=self.base.name,
            encoder=self.encoder(),
            context=self.context,
            system=self.system,
            adapter=self.file.name if self.adapter else "",
            remarks=[NO_ADAPTERS] if self.adapter else [],
        )

    def write(self) -> list[str]:
        """Writes the Modelfile, and a template for vLLM where its folder has another one.

        Returns lines for people: the files, and a command per server.
        """
        lines = []
        try:
            text, path = self.modelfile(), self._modelfile_path()
            write_text(path, text)
            place = shlex.quote(str(path))
            ollama = f"ollama create {self._slug} -f {place} && ollama run {self._slug}"
            lines.append(f"{path}: for Ollama")
        except SettingsError as error:
            if self.system:
                raise
            ollama = f"no Modelfile: {error}"
        if self.context < int(self.source.base.config.max_position_embeddings):
            lines.append(
                f"up to {self.context} tokens llama.cpp computes what PyTorch does; beyond, it "
                "has no such window or long rotary embedding"
            )
        size = min(self.context, CONTEXT)
        server = f"llama-server -m {shlex.quote(str(self.base))} -c {size}"
        studio = f"lms import --copy {shlex.quote(str(self.file))}"
        if self.adapter:
            server += f" --lora {shlex.quote(str(self.file))}"
            studio = "takes no adapter: export without --adapter"
            template = f" --template {self.template}" if self.template else ""
            base = shlex.quote(base_name(self.source.folder))
            lines.append(
                f"its base     alpaca export {base} {shlex.quote(str(self.base))}{template}"
            )
            ollama += f"   ({NO_ADAPTERS})" if not ollama.startswith("no ") else ""
        lines += [
            f"llama.cpp    {server}",
            f"Ollama       {ollama}",
            f"LM Studio    {studio}",
            f"vLLM         {self._vllm()}",
        ]
        return lines

    @property
    def _slug(self) -> str:
        """The file's name as a model's name for Ollama and vLLM."""
        return re.sub(r"[^a-z0-9._-]+", "-", self.file.stem.lower()).strip("-._") or "model"

    def _modelfile_path(self) -> Path:
        """Returns Modelfile, or Modelfile-NAME where there is one for another file."""
        path = self.file.with_name("Modelfile")
        mine = f"./{self.file.name}"
        if path.is_file() and mine not in re.findall(
            r"^(?:FROM|ADAPTER) (.*)$", path.read_text(encoding="utf-8", errors="replace"), re.M
        ):
            return self.file.with_name(f"Modelfile-{self.file.stem}")
        return path

    def _vllm(self) -> str:
        """Returns vLLM's line: for the model's folder, or its base's with the adapter."""
        source = self.source
        served = shlex.quote(source.path)
        line = f"vllm serve {served} --served-model-name {self._slug}"
        if source.is_adapter:
            adapter = read_adapter_config(source.folder)
            ranks = [rank for rank in VLLM_RANKS if rank >= int(adapter["r"])]
            if not ranks or any(adapter.get(setting) for setting in NOT_IN_VLLM):
                return (
                    f"does not load this adapter: alpaca publish {served} FOLDER && "
                    "vllm serve FOLDER"
                )
            base = shlex.quote(source.base.path)
            line = (
                f"vllm serve {base} --enable-lora --max-lora-rank {ranks[0]} "
                f"--lora-modules {self._slug}={served}"
            )
        encoder = self.encoder()
        published = encoder.published_template() if encoder else None
        if published and published != source.base.load_tokenizer().chat_template:
            path = self.file.with_name(f"{self.file.stem}.jinja")
            write_text(path, published)
            line += f" --chat-template {shlex.quote(str(path))}"
        return line
