"""Several models to talk to, in as little memory as they need: adapters share their base."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from alpaca_lib import models
from alpaca_lib.errors import ModelError
from alpaca_lib.inference.decoding import Decoding, Growing, stream
from alpaca_lib.records import Example


class Voices:
    """Models by name: hub ids, folders, adapter folders. One speaks at a time.

    A base that several adapters were trained on is loaded once; they are switched on and off.
    """

    def __init__(
        self,
        named: Mapping[str, str],
        placement: models.Placement | None = None,
        quantization: str = "none",
        base: str = "",
    ) -> None:
        """``base``: what adapters are laid over; without it, what each was trained on.

        Raises ModelError: nothing to load, or an adapter of another base.
        """
        if not named:
            raise ModelError("no model to talk to: name at least one")
        self.placement = placement or models.place()
        self._loaded: dict[str, Any] = {}
        self._of: dict[str, tuple[str, str | None]] = {}
        # No RLock: a page takes each piece of a stream in whatever thread is free.
        self._lock = threading.Lock()
        for place, (name, where) in enumerate(named.items()):
            folder = Path(models.ModelSource.resolve(where).path)
            adapter = (folder / "adapter_config.json").is_file()
            under = where
            if adapter:
                under = base or models.base_name(folder)
            if under not in self._loaded:
                self._loaded[under] = models.ModelSource.resolve(under).load_model(
                    self.placement, quantization
                )
            if adapter:
                self._loaded[under] = models.attach_adapter(
                    self._loaded[under], folder, f"adapter{place}"
                )
            self._of[name] = (under, f"adapter{place}" if adapter else None)
        self._tokenizers = {
            under: models.ModelSource.resolve(under).load_tokenizer() for under in self._loaded
        }
        first = self._loaded[next(iter(self._loaded))]
        self.room = getattr(first.config, "max_position_embeddings", None) or 2048
        self.device = str(first.device)

    @property
    def names(self) -> list[str]:
        """The names, in the order that they were given."""
        return list(self._of)

    def tokenizer(self, name: str) -> Any:
        """The tokenizer of the model of that name."""
        return self._tokenizers[self._base(name)]

    @contextlib.contextmanager
    def speaking(self, name: str) -> Iterator[Any]:
        """The model of that name; others wait until the block ends."""
        base, adapter = self._base(name), self._of[name][1]
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

    def _base(self, name: str) -> str:
        if name not in self._of:
            raise ModelError(f"no model {name!r} here; there are {', '.join(self._of)}")
        return self._of[name][0]

    def stream(
        self, name: str, example: Example, decoding: Decoding, template: str = "alpaca"
    ) -> Growing:
        """The growing answer of one of them. See decoding.stream."""
        with (
            self.speaking(name) as model,
            contextlib.closing(
                stream(model, self.tokenizer(name), example, decoding, template)
            ) as growing,
        ):
            yield from growing
