"""The policies of a run, switched on one base: the base model itself and every stage's result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.artefact import Artefact
from pipeline.models import adapters
from pipeline.models.load import load_base
from pipeline.recipe.schema import ModelSettings

BASE = "base"


class Policies:
    """Gives any policy of a run as a model.

    With adapters all share one base in memory; fully fine-tuned ones are loaded when their turn comes.

    Args:
        artefacts: stage name to sealed policy, in order.
        base_folder: the base model's folder.
        settings: how to load it.
        precision: of the forward pass.
    """

    def __init__(self, artefacts: Mapping[str, Artefact], base_folder: Path, settings: ModelSettings, precision: str):
        self._artefacts = artefacts
        self._folder = base_folder
        self._settings = settings
        self._precision = precision
        self._shared: Any = None
        self._loaded: tuple[str, Any] | None = None

    @property
    def names(self) -> list[str]:
        """`base`, then the stages in order."""
        return [BASE, *self._artefacts]

    @contextmanager
    def use(self, name: str) -> Iterator[Any]:
        """The model of one policy, for the length of the block."""
        if name != BASE and self._artefacts[name].manifest.form == "model":
            yield self._full(name)
            return
        model = self._with_adapters()
        with adapters.active(model, None if name == BASE else _adapter_name(name)):
            yield model

    def _with_adapters(self) -> Any:
        if self._shared is None:
            model: Any = load_base(self._folder, self._settings, frozen=True, precision=self._precision)
            for name, found in self._artefacts.items():
                if found.manifest.form == "adapter":
                    model = adapters.attach_frozen(model, found.weights, _adapter_name(name))
            self._shared = model.eval()
        return self._shared

    def _full(self, name: str) -> Any:
        if self._loaded is None or self._loaded[0] != name:
            self._loaded = None
            weights = self._artefacts[name].weights
            model = load_base(self._folder, self._settings, frozen=True, precision=self._precision, weights=weights)
            self._loaded = (name, model.eval())
        return self._loaded[1]


def _adapter_name(stage: str) -> str:
    # A bare stage name could be an attribute of torch's module containers, which they refuse as a key.
    return f"stage_{stage}"
