"""Bases whose linear layers bitsandbytes holds in 4 or 8 bits, on a GPU or on the CPU.

On a CPU the library computes a layer in one of two ways, by the mode that the layer is in and by what the machine can
do: from weights that are dequantised, or with the input rounded as well, to eight bits or bfloat16. What the two give
differs, and one of them loses gradients without a word. Here all passes go the first way. Layer 2.
"""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from typing import Any

import torch

from pipeline.errors import RecipeError

SLOW_ON_A_CPU = (
    "the base is quantised on a CPU, which saves memory and costs time: SmolLM2-135M took less than half the memory, "
    "and two to three times as long to sample; `--set model.quantization=none` is faster"
)
"""Said once in every stage."""


def is_slow() -> bool:
    """Whether a quantised base computes on the CPU here."""
    return not torch.cuda.is_available()


def quantization_config(kind: str, compute: torch.dtype, device: torch.device) -> Any:
    """What transformers is told to load a base with.

    Args:
        kind: `int8` or `nf4`.
        compute: type of the model's other weights.
        device: that the base will be on.

    Raises:
        RecipeError: bitsandbytes is not installed.
    """
    if find_spec("bitsandbytes") is None:
        raise RecipeError(
            f"model.quantization: {kind} needs bitsandbytes, which is not installed here (it has wheels for Linux on "
            "x86-64); install it, or use `--set model.quantization=none`"
        )
    from transformers import BitsAndBytesConfig

    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    if device.type == "cuda" and compute == torch.float32:
        compute = torch.bfloat16
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )


def compute_one_way(model: Any) -> None:
    """Let every pass on a CPU compute from dequantised weights, in training and evaluation mode alike.

    Args:
        model: as transformers loaded it; changed in place.
    """
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    for layer in model.modules():
        if isinstance(layer, Linear4bit):
            # Else its first pass in evaluation mode packs the weights for a product without a gradient, for good.
            layer.support_avx512bf16_for_cpu = False
        elif isinstance(layer, Linear8bitLt):
            # In evaluation mode it would round its input to eight bits, by the largest values of the whole batch.
            layer.train(True)
            vars(layer)["train"] = partial(_stay, layer)


def _stay(layer: Any, mode: bool = True) -> Any:
    return layer
