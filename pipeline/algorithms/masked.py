"""Sums, means and moments over the true positions of a mask; what the false ones hold never matters, NaN included."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

AGGREGATIONS = ("token_mean", "sequence_mean", "sequence_sum", "constant")


class Moments(NamedTuple):
    """What whitening needs to know of the true positions: scalars (), float64.

    Centred, since a sum of squares would cancel against a large mean. To share over ranks, stack and gather the
    three, then `combine_moments(Moments(*row) for row in gathered)`.
    """

    n: Tensor
    mean: Tensor
    squares: Tensor
    """Sum of squared deviations from the mean."""


def masked_sum(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Sum of `x` where `mask` is true, in at least float32.

    Args:
        x: any shape.
        mask: boolean, same shape.
        dim: axis to sum over; None for all.
    """
    of_true = keep(x, mask)
    return of_true.sum() if dim is None else of_true.sum(dim)


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


def masked_max(x: Tensor, mask: Tensor) -> Tensor:
    """Largest true position of an `x` that is never negative, in at least float32; 0 when there is none."""
    of_true = keep(x, mask)
    return of_true.amax() if of_true.numel() else of_true.new_zeros(())


def aggregate(
    losses_BR: Tensor, mask_BR: Tensor, mode: str = "token_mean", denominator: Tensor | float | None = None
) -> Tensor:
    """One loss from those of B responses' tokens, in at least float32; an empty row contributes 0.

    With l_i the sum over the tokens of response i and L_i their number:
    token_mean is sum_i l_i / sum_i L_i (DAPO, arXiv 2503.14476, section 3.3); sequence_mean is mean_i l_i / L_i (GRPO,
    arXiv 2402.03300, eq. 3); sequence_sum is mean_i l_i; constant is sum_i l_i / (B R) (Dr. GRPO, arXiv 2503.20783).

    Args:
        losses_BR: loss of each token.
        mask_BR: true on response tokens.
        mode: one of `AGGREGATIONS`.
        denominator: divides instead of this call's own count, so that parts of a batch add up to the whole: true tokens
            for token_mean, responses (empty ones too) for the two sequence modes, responses times R for constant,
            over all ranks and accumulation steps of an optimiser step.
    """
    require_token_shapes(mask_BR, losses_BR=losses_BR)
    B, R = mask_BR.shape
    match mode:
        case "token_mean":
            return masked_mean(losses_BR, mask_BR, denominator)
        case "sequence_mean":
            total = (masked_sum(losses_BR, mask_BR, dim=-1) / mask_BR.sum(-1).clamp(min=1)).sum()
            own = B
        case "sequence_sum":
            total, own = masked_sum(losses_BR, mask_BR), B
        case "constant":
            total, own = masked_sum(losses_BR, mask_BR), B * R
        case _:
            raise ValueError(f"unknown aggregation {mode!r}; expected one of {', '.join(AGGREGATIONS)}")
    return total / (max(own, 1) if denominator is None else denominator)


def masked_moments(x: Tensor, mask: Tensor) -> Moments:
    """Moments of the true positions, in two passes: a common offset costs no precision. All 0 for an empty mask."""
    of_true = keep(x, mask).double()
    n = mask.sum().double()
    mean = of_true.sum() / n.clamp(min=1)
    return Moments(n, mean, keep(of_true - mean, mask).square().sum())


def combine_moments(parts: Iterable[Moments]) -> Moments:
    """Moments of the union of several parts (Chan, Golub and LeVeque 1983); empty parts change nothing."""
    n, means, squares = (torch.stack(field) for field in zip(*parts, strict=True))
    mean = (n * means).sum() / n.sum().clamp(min=1)
    return Moments(n.sum(), mean, (squares + n * (means - mean).square()).sum())


def whiten(x: Tensor, mask: Tensor, eps_std: float = 1e-4, moments: Moments | None = None) -> Tensor:
    """(x - mean) / max(std, eps_std) on the true positions, exactly 0 on the others; population variance.

    Args:
        x: any shape.
        mask: boolean, same shape.
        eps_std: floor of the standard deviation: where all are equal but for rounding, they stay near 0 instead of
            being blown up to unit size.
        moments: of all ranks together; None takes those of `x` itself.

    Returns:
        The shape of `x`, in at least float32; statistics and arithmetic are float64.
    """
    of_true = keep(x, mask)
    n, mean, squares = masked_moments(x, mask) if moments is None else moments
    std = (squares / n.clamp(min=1)).clamp(min=eps_std**2).sqrt()
    return keep((of_true.double() - mean) / std, mask).to(of_true.dtype)


def keep(x: Tensor, mask: Tensor) -> Tensor:
    """`x` in at least float32 where `mask` is true and exactly 0 elsewhere, as is its gradient.

    Comes before any arithmetic: 0 * NaN is NaN, in the gradient too.
    """
    _require_mask(x, mask)
    return torch.where(mask, x, torch.zeros((), dtype=x.dtype, device=x.device)).to(accumulation_dtype(x))


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """Float32, or the input's own precision where that is higher."""
    return torch.promote_types(x.dtype, torch.float32)


def require_token_shapes(mask_BR: Tensor, **tensors: Tensor) -> None:
    """Refuse anything but a boolean mask (B, R) and tensors of exactly its shape; nothing is broadcast.

    Raises:
        TypeError: a mask that is not boolean.
        ValueError: another shape; the message names it.
    """
    if mask_BR.dtype != torch.bool:
        raise TypeError(f"mask must be boolean, found {mask_BR.dtype}")
    if mask_BR.dim() != 2:
        raise ValueError(f"expected a mask of shape (B, R), found {tuple(mask_BR.shape)}")
    wrong = [f"{name} {tuple(x.shape)}" for name, x in tensors.items() if x.shape != mask_BR.shape]
    if wrong:
        raise ValueError(f"expected the shape of mask_BR, {tuple(mask_BR.shape)}, found {', '.join(wrong)}")


def _require_mask(x: Tensor, mask: Tensor) -> None:
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be boolean, found {mask.dtype}")
    if x.shape != mask.shape:
        raise ValueError(f"x has shape {tuple(x.shape)} but its mask {tuple(mask.shape)}")
