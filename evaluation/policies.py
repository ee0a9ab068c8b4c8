"""The models of a run, switched on one base: the base model itself, every stage's policy, and its reward models."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evaluation.scores import Member, attach_members, load_members
from pipeline.artefact import Artefact
from pipeline.models import adapters
from pipeline.models.load import load_base
from pipeline.recipe.schema import ModelSettings

BASE = "base"


class Policies:
    """Gives any policy of a run as a model, and any reward model as something to score with.

    With adapters all share one base in memory; fully fine-tuned ones are loaded when their turn comes, one at a time.

    Args:
        artefacts: stage name to sealed artefact, in order.
        base_folder: the base model's folder.
        settings: how to load it.
        precision: of the forward pass.
        only: the policies to be named, base among them or not; all unless given.
    """

    def __init__(
        self,
        artefacts: Mapping[str, Artefact],
        base_folder: Path,
        settings: ModelSettings,
        precision: str,
        only: Collection[str] | None = None,
    ):
        self._artefacts = artefacts
        self._only = only
        self._folder = base_folder
        self._settings = settings
        self._precision = precision
        self._shared: Any = None
        self._members: dict[str, tuple[Member, ...]] = {}
        self._loaded: tuple[str, Any] | None = None

    @property
    def names(self) -> list[str]:
        """`base`, then the stages that left a policy, in order; of them those that were asked for."""
        every = [BASE, *(name for name, found in self._artefacts.items() if found.manifest.kind == "policy")]
        return every if self._only is None else [name for name in every if name in self._only]

    @contextmanager
    def use(self, name: str) -> Iterator[Any]:
        """The model of one policy, for the length of the block."""
        if name != BASE and self._artefacts[name].manifest.form == "model":
            yield self._alone(name, self._full)
            return
        model = self._with_adapters()
        with adapters.active(model, None if name == BASE else _adapter_name(name)):
            yield model

    def members(self, name: str) -> tuple[Member, ...]:
        """The members of a stage's reward model, to score with outside of any `use`."""
        found = self._artefacts[name]
        if found.manifest.form == "model":
            members: tuple[Member, ...] = self._alone(name, self._full_members)
            return members
        if name not in self._members:
            model, self._members[name] = attach_members(self._with_adapters(), found, _adapter_name(name))
            self._shared = model.eval()
        return self._members[name]

    def _with_adapters(self) -> Any:
        if self._shared is None:
            model: Any = load_base(self._folder, self._settings, frozen=True, precision=self._precision)
            for name, found in self._artefacts.items():
                if found.manifest.kind == "policy" and found.manifest.form == "adapter":
                    model = adapters.attach_frozen(model, found.weights, _adapter_name(name))
            self._shared = model.eval()
        return self._shared

    def _alone(self, name: str, load: Callable[[Artefact], Any]) -> Any:
        """What a stage stored as full weights; the one loaded before it is let go first."""
        if self._loaded is None or self._loaded[0] != name:
            self._loaded = None
            self._loaded = (name, load(self._artefacts[name]))
        return self._loaded[1]

    def _full(self, found: Artefact) -> Any:
        model: Any = load_base(
            self._folder, self._settings, frozen=True, precision=self._precision, weights=found.weights
        )
        return model.eval()

    def _full_members(self, found: Artefact) -> tuple[Member, ...]:
        return load_members(found, self._settings, self._precision)


def _adapter_name(stage: str) -> str:
    # A bare stage name could be an attribute of torch's module containers, which they refuse as a key.
    return f"stage_{stage}"
