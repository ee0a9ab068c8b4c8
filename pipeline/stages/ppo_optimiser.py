"""AdamW as PPO uses it: its epsilon, its learning rate from rollout to rollout, gradients summed over the ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from pipeline.recipe.stage_settings import PpoSettings
from pipeline.runtime import sum_over_ranks

_SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "linear": lambda done: 1 - done,
    "constant": lambda done: 1.0,
}
"""Share of the peak learning rate when a share of the rollouts after warm-up is done."""
ADAM_EPS = 1e-5
"""Larger than usual, as in the implementations that PPO's known results come from (arXiv 2403.17031)."""


def adamw(parameters: Sequence[Parameter], rate: float, settings: PpoSettings) -> torch.optim.Optimizer:
    """Of one role's trainable parameters, at its peak learning rate."""
    return torch.optim.AdamW(parameters, lr=rate, eps=ADAM_EPS, weight_decay=settings.weight_decay)


def share_of_peak(settings: PpoSettings, rollout: int, rollouts: int) -> float:
    """How much of the peak learning rate a rollout learns with; nothing before the first.

    The library's warm-up begins at 0, which costs it one step; here it would be a whole rollout.
    """
    warmup = round(settings.warmup_ratio * rollouts)
    if rollout < 0:
        return 0.0
    if rollout < warmup:
        return (rollout + 1) / (warmup + 1)
    return _SCHEDULES[settings.schedule]((rollout - warmup) / max(rollouts - warmup, 1))


def sum_gradients(parameters: Sequence[Parameter]) -> None:
    """Every rank's gradient becomes the sum of all, in one message."""
    gradients = [
        parameter.grad if parameter.grad is not None else torch.zeros_like(parameter) for parameter in parameters
    ]
    flat: Tensor = sum_over_ranks(torch.cat([gradient.reshape(-1) for gradient in gradients]))
    start = 0
    for parameter in parameters:
        # Weights of a model in bfloat16 have gradients in it too; the value head beside them is float32.
        parameter.grad = flat[start : start + parameter.numel()].view_as(parameter).to(parameter.dtype)
        start += parameter.numel()
