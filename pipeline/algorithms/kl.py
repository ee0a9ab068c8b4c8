"""Estimators of the divergence from a reference, from samples of the policy (Schulman 2020, "Approximating KL")."""

from __future__ import annotations

import torch
from torch import Tensor


def k1(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """log pi - log ref: unbiased for KL(pi || ref) on samples of pi, can be negative. Any shape, elementwise."""
    return logps - ref_logps


def k3(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """exp(ref - pi) - 1 - (ref - pi): unbiased, never negative, lower variance near the reference. Elementwise.

    The difference is clamped to +-20 before the exponential, far beyond what a finite estimate survives.
    """
    d = (ref_logps - logps).clamp(-20.0, 20.0)
    return torch.expm1(d) - d
