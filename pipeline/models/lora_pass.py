"""A LoRA layer's pass without its detours: the same numbers to the bit, forward and backward, in less time and memory.

Under autocast PEFT casts a layer's input to its factors' float32, and autocast casts that back before it multiplies, a
copy of the input for every layer, kept until the backward pass; around it come four calls of modules where three matrix
products do the work. Here the products are taken directly. Whatever is not plain LoRA on a plain linear layer goes the
library's own way. Layer 2.
"""

from __future__ import annotations

import math
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from pipeline.models.shards import is_spread

Model = TypeVar("Model", bound=nn.Module)


def with_direct_passes(model: Model) -> Model:
    """Let a model's LoRA layers compute directly, those of adapters that come later on the same layers too.

    Args:
        model: in PEFT's wrapper; returned, changed in place.
    """
    from peft.tuners.lora import Linear

    for layer in model.modules():
        if type(layer) is Linear and type(layer.get_base_layer()) is nn.Linear:
            vars(layer)["forward"] = MethodType(_forward, layer)
    return model


def _forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    base = self.get_base_layer()
    if args or kwargs or self.merged or is_spread(base.weight):
        return type(self).forward(self, x, *args, **kwargs)
    names = [] if self.disable_adapters else [name for name in self.active_adapters if name in self.lora_A]
    if not all(_is_plain(self, name, x) for name in names):
        return type(self).forward(self, x)
    found = linear(x, base.weight, base.bias)
    for name in names:
        first, second, factor = self.lora_A[name], self.lora_B[name], self.scaling[name]
        inner = linear(x, first.weight)
        if second.bias is None and math.frexp(factor)[0] == 0.5:
            # A power of two rounds nothing, wherever it is multiplied: best where there is least.
            found = found + linear(inner * factor, second.weight)
        else:
            found = found + linear(inner, second.weight, second.bias) * factor
    return found


def _is_plain(layer: Any, name: str, x: Tensor) -> bool:
    """Whether an adapter is two matrices and a factor, and its input needs no cast but autocast's."""
    weight = layer.lora_A[name].weight
    drops = layer.training and not isinstance(layer.lora_dropout[name], nn.Identity)
    fits = x.dtype == weight.dtype or torch.is_autocast_enabled(x.device.type)
    return fits and not drops and name not in layer.lora_variant and not is_spread(weight)
