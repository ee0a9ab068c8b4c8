"""The policy's weights as a sampler outside transformers wants them: under the base model's names, adapter merged in.

TRL's trainers merge all adapters into the base, send, and subtract them again (`VLLMGeneration._iter_named_params`,
TRL 1.16). Two things are wrong with that here. Subtracting what was added rounds, so the frozen base, which is the
reference and everybody else's trunk, would drift a little with every rollout; and vLLM packs what it is sent by
reference and copies when a pack is full or the tensors have ended, by which time they are subtracted again, so that
the last pack, up to a gigabyte, holds the base without the adapter. So layers are merged one at a time, by PEFT, into
a tensor of its own, and the base is never written to. Layer 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from pipeline.errors import TrivetError
from pipeline.models.forward import causal_model

Metadata = tuple[str, str, list[int]]
"""Name, type and shape of a tensor, as TRL's client announces it."""


@torch.no_grad()
def merged_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Every parameter of the language model by its own name, the adapter that is switched on merged in.

    The model is left bit for bit as it was. A merged tensor is a new one; others are the model's own.

    Args:
        model: a causal language model, or one under PEFT adapters.
    """
    for name, parameter, layer in _parameters(model):
        yield name, parameter.data if layer is None else _merged(layer)


def weight_metadata(model: Any) -> list[Metadata]:
    """What `merged_weights` will give, in its order."""
    return [
        (name, str(parameter.dtype).removeprefix("torch."), list(parameter.shape))
        for name, parameter, _ in _parameters(model)
    ]


def fingerprint(parameters: Iterable[Parameter]) -> tuple[int, ...]:
    """Changes whenever a parameter does, however it was written to."""
    return tuple(torch.stack([torch.hash_tensor(each.detach()).view(torch.int64) for each in parameters]).tolist())


def require_mergeable(model: Any) -> None:
    """Refuse an adapter that can be merged into no base of the same shape.

    Raises:
        TrivetError: it sits on an embedding that is also the output head.
    """
    inner = causal_model(model)
    layers = [inner.get_input_embeddings(), inner.get_output_embeddings()]
    bases = [layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer for layer in layers]
    if bases[0].weight is bases[1].weight and bases != layers:
        raise TrivetError(
            "model.adapter.target_modules: the embedding of this model is its output head as well, and an adapter on "
            "one of them cannot be merged for vLLM; leave both out, or use rollout_engine: generate"
        )


def _parameters(model: Any) -> Iterator[tuple[str, Parameter, Any]]:
    """Name in the base model, parameter, and the adapted layer whose weight it is, if any."""
    inner = causal_model(model)
    layers = {f"{path}.base_layer.weight": each for path, each in inner.named_modules() if hasattr(each, "base_layer")}
    prefix = getattr(model, "prefix", None)
    for name, parameter in inner.named_parameters():
        if prefix is None or prefix not in name:
            yield name.replace(".base_layer", ""), parameter, layers.get(name)


def _merged(layer: Any) -> Tensor:
    weight = layer.get_base_layer().weight
    untouched = weight.data
    try:
        # A safe merge puts a new tensor in place of the old one; it also refuses one that is not finite.
        layer.merge(safe_merge=True)
        merged: Tensor = weight.data
    finally:
        weight.data = untouched
        layer.merged_adapters.clear()
    return merged
