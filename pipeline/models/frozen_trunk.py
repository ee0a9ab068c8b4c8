"""The frozen trunk: the layers below the first that carries an adapter, computed once for all who stand on them.

What they give for a token depends on the base alone. So policy, reference, value and reward models on one base share
it, and so do all passes over the same rows; it needs no gradient. A trunk that starts from it skips those layers, and
comes to the same numbers to the last bit. Whether a model can be split so is tried, not listed. Layer 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.errors import TrivetError
from pipeline.models.decoder import decoder_layers
from pipeline.models.forward import attends_in_streams, causal_model, evaluating, stream_hidden_states, trunk_of
from pipeline.streams import Packed, Stream, pack

_TRIED = ([*range(3, 21)], [*range(3, 15), *range(30, 36)], [40, 41, 42])
"""Sequences that the split is tried on: two share a beginning."""
_AGREEMENT = {torch.float32: 1e-4, torch.float64: 1e-4}
_ROUGH_AGREEMENT = 1e-2
"""Two parts may differ from the whole by this share of what wrong states change: it is 0, but for layers that sum in
an order of chance, as experts may on a GPU."""


@dataclass(frozen=True, slots=True)
class FrozenTrunk:
    """The lower layers of a trunk, which nothing that is trained changes."""

    trunk: Any
    """The whole transformer below the head, of which they are part."""
    frozen: tuple[nn.Module, ...]
    """The one nearest the embedding first."""
    above: tuple[nn.Module, ...]

    def states(self, stream: Stream | Packed) -> Tensor:
        """What the frozen layers give for a stream (N, H), without gradient, on the trunk's device."""
        kept: list[Tensor] = []

        def keep(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            kept.append(hidden_states)
            return hidden_states

        first, *rest = self.above
        # Scoring may run in inference mode, whose tensors could not be used in training.
        with torch.inference_mode(False), torch.no_grad(), _instead({first: keep, **dict.fromkeys(rest, _pass_on)}):
            stream_hidden_states(self.trunk, stream)
        return kept[0][0]

    def below(self, stream: Stream | Packed) -> Below:
        """The same, ready to stand in for the frozen layers."""
        return Below(self, self.states(stream))


@dataclass(frozen=True, slots=True)
class Below:
    """What a frozen trunk gave for a stream."""

    by: FrozenTrunk
    states_NH: Tensor

    @contextmanager
    def standing_in(self) -> Iterator[None]:
        """Within the block, a pass of the trunk over that stream starts from here."""
        given_1NH = self.states_NH[None]
        if torch.is_grad_enabled() and any(getattr(layer, "gradient_checkpointing", False) for layer in self.by.above):
            # A checkpoint of the older kind drops all gradients where no input of it has one.
            given_1NH = given_1NH.detach().requires_grad_()
        *lower, last = self.by.frozen
        with _instead({**dict.fromkeys(lower, _pass_on), last: lambda *args, **kwargs: given_1NH}):
            yield


class Split(NamedTuple):
    """Whether a model has a frozen trunk."""

    trunk: FrozenTrunk | None
    why_not: str | None = None
    """None without a trunk: the lowest layer carries an adapter, or is trained itself."""


def split_trunk(model: Any) -> Split:
    """Find a model's frozen trunk, and try it.

    Args:
        model: with all its adapters; attends in streams.
    """
    inner = causal_model(model)
    trunk = trunk_of(inner)
    try:
        _, layers = decoder_layers(trunk)
    except TrivetError as error:
        return Split(None, str(error))
    first = _first_changed(trunk, layers)
    if first == 0:
        return Split(None)
    found = FrozenTrunk(trunk, tuple(layers[:first]), tuple(layers[first:]))
    if not attends_in_streams(inner):
        return Split(None, "rows are padded")
    if dropping := _dropout_below(found):
        return Split(None, f"{dropping} drops activations out below the adapter")
    try:
        off = _disagreement(found, inner)
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError) as error:
        return Split(None, f"{type(inner).__name__} cannot be split ({type(error).__name__}: {error})")
    if off > _AGREEMENT.get(next(trunk.parameters()).dtype, _ROUGH_AGREEMENT):
        return Split(None, f"{type(inner).__name__} gives other numbers in two parts (off by {off:.2g})")
    return Split(found)


def _first_changed(trunk: Any, layers: nn.ModuleList) -> int:
    """Index of the lowest layer that an adapter, or training, changes; 0 where something beside the layers is."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    def is_changed(module: nn.Module) -> bool:
        own = any(parameter.requires_grad for parameter in module.parameters(recurse=False))
        return own or isinstance(module, BaseTunerLayer)

    inside = {id(module) for module in layers.modules()}
    if any(is_changed(module) for module in trunk.modules() if id(module) not in inside):
        return 0
    changed = (index for index, layer in enumerate(layers) if any(map(is_changed, layer.modules())))
    return next(changed, 0)


def _dropout_below(found: FrozenTrunk) -> str | None:
    """Kind of a module under the adapter whose output chance would change while training."""
    above = {id(module) for layer in found.above for module in layer.modules()}
    for module in found.trunk.modules():
        if id(module) in above:
            continue
        share = module.p if isinstance(module, nn.Dropout) else getattr(module, "attention_dropout", 0.0)
        if isinstance(share, float) and share > 0.0:
            return type(module).__name__
    return None


@torch.no_grad()
def _disagreement(found: FrozenTrunk, inner: Any) -> float:
    """How far two parts are from the whole, as a share of what wrong states change; infinite if those do nothing."""
    vocabulary = inner.config.get_text_config().vocab_size
    packed = pack([[token % vocabulary for token in ids] for ids in _TRIED])
    with evaluating(inner):
        whole = stream_hidden_states(found.trunk, packed).float()
        below = found.below(packed)
        parts, control = (
            stream_hidden_states(found.trunk, packed, each).float()
            for each in (below, Below(found, below.states_NH.flip(0)))
        )
    changed = float((whole - control).abs().max())
    return float((whole - parts).abs().max()) / changed if changed else float("inf")


def _pass_on(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A layer that does nothing."""
    return hidden_states


@contextmanager
def _instead(stand_ins: Mapping[nn.Module, Callable[..., Tensor]]) -> Iterator[None]:
    """Let modules do something else within the block; their hooks, and all that models ask of them, stay."""
    own = [(module, module.__dict__.get("forward")) for module in stand_ins]
    try:
        for module, forward in stand_ins.items():
            module.forward = forward
        yield
    finally:
        for module, before in own:
            if before is None:
                module.__dict__.pop("forward", None)
            else:
                module.forward = before
