"""The decoder layers of a transformer, and which of them carry the adapter, as a recipe's `adapter.layers` says.

PEFT takes indices of layers together with names of modules, never with `all-linear`, which is spelt out here. Layer 2.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from pipeline.errors import RecipeError, TrivetError
from pipeline.models.forward import trunk_of
from pipeline.models.seeing import language_part, reads_images
from pipeline.recipe.schema import AdapterSettings


def decoder_layers(trunk: Any) -> tuple[str, nn.ModuleList]:
    """Path in the trunk, and the layers, the one nearest the embedding first.

    Raises:
        TrivetError: there is no list of as many layers as the configuration counts, or more than one.
    """
    count = trunk.config.get_text_config().num_hidden_layers
    lists = {
        path: module
        for path, module in trunk.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    }
    # A layer may hold a list that happens to be as long, of experts say.
    outer = [path for path in lists if not any(path.startswith(f"{other}.") for other in lists)]
    if len(outer) != 1:
        raise TrivetError(f"{type(trunk).__name__} has {len(outer)} lists of {count} decoder layers")
    return outer[0], lists[outer[0]]


def adapter_targets(model: Any, settings: AdapterSettings) -> dict[str, Any]:
    """PEFT's arguments for where an adapter goes.

    Args:
        model: the base, causal or classifying, without PEFT's wrapper.
        settings: `target_modules` and `layers`.

    Raises:
        RecipeError: the base has fewer layers, or none that can be told apart.
    """
    named = settings.target_modules
    if reads_images(model):
        return {"target_modules": _in_the_language_part(model, settings)}
    if settings.layers == "all":
        return {"target_modules": named if isinstance(named, str) else [*named]}
    try:
        path, layers = decoder_layers(trunk_of(model))
    except TrivetError as error:
        raise RecipeError(f"model.adapter.layers: {error}; leave it at all") from error
    return {
        "target_modules": _linear_names(layers) if isinstance(named, str) else [*named],
        "layers_to_transform": _indices(settings.layers, len(layers)),
        "layers_pattern": path.rpartition(".")[2],
    }


def _in_the_language_part(model: Any, settings: AdapterSettings) -> str:
    """A pattern of whole paths: a vision tower's layers and modules are often called what the language part's are."""
    path, part = language_part(model)
    try:
        inside, layers = decoder_layers(part)
    except TrivetError as error:
        raise RecipeError(f"model.base: {error}; name a text model") from error
    named = settings.target_modules
    names = "|".join(re.escape(name) for name in (_linear_names(layers) if isinstance(named, str) else named))
    if settings.layers == "all":
        return rf"{re.escape(path)}\.(?:.*\.)?(?:{names})"
    indices = "|".join(map(str, _indices(settings.layers, len(layers))))
    return rf"{re.escape(f'{path}.{inside}')}\.(?:{indices})\.(?:.*\.)?(?:{names})"


def _indices(wanted: str | tuple[int, ...], count: int) -> list[int]:
    """Indices of the layers that a recipe names, of so many."""
    if isinstance(wanted, str):
        top = int(wanted.removeprefix("top-"))
        if top > count:
            raise RecipeError(
                f"model.adapter.layers: {wanted}, but the base model has {count} decoder layers; write top-1 to "
                f"top-{count}, or all"
            )
        return list(range(count - top, count))
    if not wanted or max(wanted) >= count:
        found = f"layer {max(wanted)}" if wanted else "an empty list"
        raise RecipeError(
            f"model.adapter.layers: {found}, but the base model has {count} decoder layers; name some of 0 to "
            f"{count - 1}, or write all"
        )
    return sorted(set(wanted))


def _linear_names(layers: nn.ModuleList) -> list[str]:
    """Last names of the linear modules in decoder layers, as PEFT's `all-linear` finds them.

    Raises:
        RecipeError: some are kept as one parameter, as experts are, which PEFT adapts in all layers or in none.
    """
    from transformers.pytorch_utils import Conv1D

    if any(parameter.dim() == 3 for parameter in layers.parameters()):
        raise RecipeError(
            "model.adapter.layers: all-linear includes experts here, which PEFT adapts in all layers or none; name "
            "target_modules, such as [q_proj, k_proj, v_proj, o_proj], or, with a text model, leave layers at all"
        )
    found = {
        name.rpartition(".")[2]
        for layer in layers
        for name, module in layer.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
    }
    return sorted(found)
