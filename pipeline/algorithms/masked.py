"""Sums and means over the true positions of a mask; what the false ones hold never matters, NaN included."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_sum(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Sum of `x` where `mask` is true, in at least float32.

    Args:
        x: any shape.
        mask: boolean, same shape.
        dim: axis to sum over; None for all.
    """
    _require_mask(x, mask)
    kept = torch.where(mask, x, torch.zeros((), dtype=x.dtype, device=x.device)).to(accumulation_dtype(x))
    return kept.sum() if dim is None else kept.sum(dim)


def masked_mean(x: Tensor, mask: Tensor, denominator: Tensor | float | None = None) -> Tensor:
    """Sum of `x` over true positions, divided by their number or by a given one.

    Args:
        x: any shape.
        mask: boolean, same shape.
        denominator: divide by this instead: the count over all ranks and accumulation steps of an optimiser step.

    Returns:
        A scalar; 0 when the mask is empty and no denominator is given.
    """
    total = masked_sum(x, mask)
    if denominator is None:
        return total / mask.sum().clamp(min=1)
    return total / denominator


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """Float32, or the input's own precision where that is higher."""
    return torch.promote_types(x.dtype, torch.float32)


def _require_mask(x: Tensor, mask: Tensor) -> None:
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be boolean, found {mask.dtype}")
    if x.shape != mask.shape:
        raise ValueError(f"x has shape {tuple(x.shape)} but its mask {tuple(mask.shape)}")
