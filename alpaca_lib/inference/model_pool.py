"""Several models in one memory: adapters share the base that they were trained on."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from alpaca_lib.errors import ModelError
from alpaca_lib.inference.decoding import Decoding, TextStream, stream
from alpaca_lib.models import ModelSource, Placement, attach_adapter, place
from alpaca_lib.models.adapters import warn_of_other_base
from alpaca_lib.tokenization import Record


class ModelPool:
    """Models by name: hub ids, folders, adapter folders. One of them computes at a time.

    A base of several adapters is loaded once; its adapters are switched on and off.

    >>> pool = ModelPool({"base": "smollm2-135m", "lora": "runs/lora-alpaca"})
    >>> with pool.use("lora") as model:
    ...     answers = answer(model, pool.tokenizer("lora"), examples)

    Fields: ``sources`` (name -> ModelSource), ``placement``, ``device`` and ``context_length``
    (tokens, prompt and answer) of the first model.
    """

    def __init__(
        self,
        models: Mapping[str, str | ModelSource],
        placement: Placement | None = None,
        quantization: str = "none",
        base: str = "",
    ) -> None:
        """Loads the models. ``base``: attaches adapters to it, not to what each was trained on.

        Raises ModelError if there is nothing to load, or an adapter belongs to another base.
        """
        if not models:
            raise ModelError("no model to talk to: name at least one")
        self.sources = {name: as_source(model) for name, model in models.items()}
        self.placement = placement or place()
        self._loaded: dict[str, Any] = {}  # by the base's path
        self._tokenizers: dict[str, Any] = {}
        self._parts: dict[str, tuple[str, str | None]] = {}  # (the base's path, adapter's name)
        # No RLock: a page takes each piece of a stream in whatever thread is free.
        self._lock = threading.Lock()
        other_base = ModelSource.resolve(base) if base else None
        for number, (name, source) in enumerate(self.sources.items()):
            below = (other_base or source.base) if source.is_adapter else source
            if below.path not in self._loaded:
                self._loaded[below.path] = below.load_model(self.placement, quantization)
                self._tokenizers[below.path] = below.load_tokenizer()
            adapter = f"adapter{number}" if source.is_adapter else None
            if adapter:
                warn_of_other_base(source.folder, below.folder, below.name)
                self._loaded[below.path] = attach_adapter(
                    self._loaded[below.path], source.folder, adapter
                )
            self._parts[name] = below.path, adapter
        first = next(iter(self._loaded.values()))
        self.context_length = getattr(first.config, "max_position_embeddings", None) or 2048
        self.device = str(first.device)

    @property
    def names(self) -> list[str]:
        """The models' names, in the order in which they were given."""
        return list(self.sources)

    def tokenizer(self, name: str) -> Any:
        """Returns a model's tokenizer. Raises ModelError for an unknown name."""
        return self._tokenizers[self._find(name)[0]]

    @contextlib.contextmanager
    def use(self, name: str) -> Iterator[Any]:
        """Yields a model by name; other threads wait until the block ends."""
        base, adapter = self._find(name)
        with self._lock:
            model = self._loaded[base]
            if adapter:
                model.set_adapter(adapter)
                yield model
            elif hasattr(model, "disable_adapter"):
                with model.disable_adapter():
                    yield model
            else:
                yield model

    def stream(
        self, name: str, example: Record, decoding: Decoding, template: str = "alpaca"
    ) -> TextStream:
        """Yields the growing answer of one of the models: see decoding.stream."""
        with (
            self.use(name) as model,
            contextlib.closing(
                stream(model, self.tokenizer(name), example, decoding, template)
            ) as pieces,
        ):
            yield from pieces

    def _find(self, name: str) -> tuple[str, str | None]:
        if name not in self._parts:
            raise ModelError(f"no model {name!r} here; there are {', '.join(self._parts)}")
        return self._parts[name]


def as_source(model: str | ModelSource) -> ModelSource:
    """Returns the ModelSource of a name; one that is already resolved is returned as it is."""
    return ModelSource.resolve(model) if isinstance(model, str) else model


def read_run(source: ModelSource) -> dict[str, Any]:
    """Returns the run.json that training wrote next to a model; empty if there is none."""
    try:
        run: dict[str, Any] = json.loads((source.folder / "run.json").read_text(encoding="utf-8"))
        return run if isinstance(run["settings"], dict) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def trained_template(source: ModelSource) -> str | None:
    """Returns the prompt template that a model was trained on, by its run.json; or None."""
    template = read_run(source).get("settings", {}).get("template")
    return str(template) if template else None


def common_template(sources: Iterable[ModelSource]) -> str:
    """Returns the template that all models were trained on; "alpaca" if no run.json says.

    Raises ModelError if they were trained on different ones.
    """
    known = {one.name: found for one in sources if (found := trained_template(one))}
    if len(set(known.values())) > 1:
        each = ", ".join(f"{name}: {template}" for name, template in known.items())
        raise ModelError(f"trained on different templates ({each}); --template chooses one")
    return next(iter(known.values()), "alpaca")
