"""The losses of proximal policy optimisation on response tokens, and what to watch while they fall.

Before: `kl` (rewards), `gae` (advantages, whitened by `masked`). Every mean here is over this call's true tokens;
`tokens` beside it lets a caller weight micro-batches and ranks.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.algorithms.kl import k2, k3
from pipeline.algorithms.masked import (
    aggregate,
    keep,
    masked_max,
    masked_mean,
    masked_moments,
    masked_sum,
    require_token_shapes,
)

LOG_RATIO_LIMIT = 20.0
"""Log-ratios are clamped to +- this before the exponential."""


class PolicyDiagnostics(NamedTuple):
    """Scalars (), detached; all 0 when no token is true."""

    tokens: Tensor
    """Number of true tokens."""
    clipfrac_high: Tensor
    """Share of tokens with A > 0 and a ratio above 1 + clip_high: they have no gradient."""
    clipfrac_low: Tensor
    """Share with A < 0 and a ratio below 1 - clip_low: none either."""
    clipfrac_dual: Tensor
    """Share with A < 0 and a ratio above dual_clip: none either."""
    approx_kl_k2: Tensor
    """KL(old || new) per token by k2, and below by k3."""
    approx_kl_k3: Tensor
    ratio_mean: Tensor
    ratio_msd: Tensor
    """Mean of (ratio - 1)^2: less (ratio_mean - 1)^2 it is the variance, also of several calls together."""
    ratio_max: Tensor
    ratio_maxdev: Tensor
    """Largest |ratio - 1|: 0 before the first step of a rollout, or old and new log-probabilities are not alike."""


class ValueDiagnostics(NamedTuple):
    """Scalars (), detached; 0 when no token is true."""

    tokens: Tensor
    clipfrac: Tensor
    """Share of tokens whose clipped error is the larger one: they have no gradient."""


def policy_loss(
    logps_BR: Tensor,
    old_logps_BR: Tensor,
    advantages_BR: Tensor,
    mask_BR: Tensor,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    denominator: Tensor | float | None = None,
    *,
    weights_BR: Tensor | None = None,
    aggregation: str = "token_mean",
) -> tuple[Tensor, PolicyDiagnostics]:
    """Clipped surrogate max(-A rho, -A clip(rho, 1 - low, 1 + high)), rho = pi / pi_old (arXiv 1707.06347, eq. 7).

    At rho = 1 it is -A with gradient -A per log-probability: the policy gradient.

    Args:
        logps_BR: log-probabilities under the policy in training; the only argument with a gradient.
        old_logps_BR: under the policy of the rollout, from the same forward function.
        advantages_BR: usually whitened over the whole rollout.
        mask_BR: true on response tokens.
        clip_low: how far below 1 a ratio still counts where A < 0.
        clip_high: how far above 1 where A > 0; larger than clip_low is clip-higher (arXiv 2503.14476, section 3.1).
        dual_clip: c > 1 bounds the loss at -c A where A < 0 (arXiv 1912.09729, eq. 5); None does not.
        denominator: what the sum is divided by, see `masked.aggregate`.
        weights_BR: factor of each token's loss, such as `importance_weights`.
        aggregation: one of `masked.AGGREGATIONS`.
    """
    require_token_shapes(mask_BR, logps_BR=logps_BR, old_logps_BR=old_logps_BR, advantages_BR=advantages_BR)
    if not (0 <= clip_low <= 1 and clip_high >= 0):
        raise ValueError(f"expected clip_low in [0, 1] and clip_high >= 0, found {clip_low} and {clip_high}")
    if dual_clip is not None and dual_clip <= 1:
        raise ValueError(f"dual_clip must be above 1, found {dual_clip}")
    logps, old_logps = keep(logps_BR, mask_BR), keep(old_logps_BR.detach(), mask_BR)
    A = keep(advantages_BR.detach(), mask_BR)
    rho = _bounded_ratio(logps, old_logps)
    losses = torch.maximum(-A * rho, -A * rho.clamp(1 - clip_low, 1 + clip_high))
    above_dual = (A < 0) & (rho > (math.inf if dual_clip is None else dual_clip))
    if dual_clip is not None:
        losses = torch.where(above_dual, -dual_clip * A, losses)
    if weights_BR is not None:
        require_token_shapes(mask_BR, weights_BR=weights_BR)
        losses = losses * keep(weights_BR.detach(), mask_BR)

    logps, rho = logps.detach(), rho.detach()
    diagnostics = PolicyDiagnostics(
        tokens=mask_BR.sum(),
        clipfrac_high=masked_mean((A > 0) & (rho > 1 + clip_high), mask_BR),
        clipfrac_low=masked_mean((A < 0) & (rho < 1 - clip_low), mask_BR),
        clipfrac_dual=masked_mean(above_dual, mask_BR),
        approx_kl_k2=masked_mean(k2(old_logps, logps), mask_BR),
        approx_kl_k3=masked_mean(k3(old_logps, logps), mask_BR),
        ratio_mean=masked_mean(rho, mask_BR),
        ratio_msd=masked_mean((rho - 1).square(), mask_BR),
        ratio_max=masked_max(rho, mask_BR),
        ratio_maxdev=masked_max((rho - 1).abs(), mask_BR),
    )
    return aggregate(losses, mask_BR, aggregation, denominator), diagnostics


def value_loss(
    values_BR: Tensor,
    old_values_BR: Tensor,
    returns_BR: Tensor,
    mask_BR: Tensor,
    clip_range: float | None = None,
    denominator: Tensor | float | None = None,
) -> tuple[Tensor, ValueDiagnostics]:
    """Mean over tokens of (V - Ret)^2 / 2, or of the larger of that and the one with V held near V_old.

    Args:
        values_BR: under the value model in training; the only argument with a gradient.
        old_values_BR: at the time of the rollout.
        returns_BR: what to regress on, from `gae`.
        mask_BR: true on response tokens.
        clip_range: V counts as clip(V, V_old +- clip_range) in the second error, in units of the score; None
            leaves that error out.
        denominator: divide by this instead of the number of true tokens, see `masked.masked_mean`.
    """
    require_token_shapes(mask_BR, values_BR=values_BR, old_values_BR=old_values_BR, returns_BR=returns_BR)
    if clip_range is not None and clip_range <= 0:
        raise ValueError(f"clip_range must be above 0 or None, found {clip_range}")
    V, returns = keep(values_BR, mask_BR), keep(returns_BR.detach(), mask_BR)
    losses = 0.5 * (V - returns).square()
    active = torch.zeros_like(mask_BR)
    if clip_range is not None:
        old = keep(old_values_BR.detach(), mask_BR)
        clipped = 0.5 * (V.clamp(old - clip_range, old + clip_range) - returns).square()
        active = clipped > losses
        losses = torch.where(active, clipped, losses)
    return masked_mean(losses, mask_BR, denominator), ValueDiagnostics(mask_BR.sum(), masked_mean(active, mask_BR))


def importance_weights(old_logps_BR: Tensor, sampler_logps_BR: Tensor, mask_BR: Tensor, cap: float) -> Tensor:
    """min(pi_old / mu, cap) per token, where the sampler mu is not quite the policy (arXiv 1802.01561, section 4.1).

    Returns:
        (B, R) in at least float32, without gradient, 0 where the mask is false.
    """
    require_token_shapes(mask_BR, old_logps_BR=old_logps_BR, sampler_logps_BR=sampler_logps_BR)
    if cap <= 0:
        raise ValueError(f"cap must be above 0, found {cap}")
    old, sampler = keep(old_logps_BR.detach(), mask_BR), keep(sampler_logps_BR.detach(), mask_BR)
    return keep(_bounded_ratio(old, sampler).clamp(max=cap), mask_BR)


def effective_sample_size(weights_BR: Tensor, mask_BR: Tensor) -> Tensor:
    """(sum w)^2 / (n sum w^2) over the n true tokens: 1 when all weigh alike, 1 / n when one does all; 0 for none."""
    squares = masked_sum(keep(weights_BR, mask_BR).square(), mask_BR) * mask_BR.sum()
    return masked_sum(weights_BR, mask_BR).square() / squares.where(squares > 0, torch.ones_like(squares))


def explained_variance(values_BR: Tensor, returns_BR: Tensor, mask_BR: Tensor) -> Tensor:
    """1 - Var(Ret - V) / Var(Ret) over true tokens: 1 for a perfect critic, 0 for a constant, less for a harmful one.

    Where the returns are equal but for rounding (10 units in the last place of the largest) there is nothing to
    explain and the ratio would be noise: 0, as for an empty mask. A constant offset of the values does not show.
    """
    require_token_shapes(mask_BR, values_BR=values_BR, returns_BR=returns_BR)
    values, returns = keep(values_BR.detach(), mask_BR), keep(returns_BR.detach(), mask_BR)
    n, _, squares = masked_moments(returns, mask_BR)
    residual = masked_moments(returns.double() - values, mask_BR).squares
    rounding = n * (10 * torch.finfo(returns.dtype).eps * masked_max(returns.abs(), mask_BR).double()).square()
    varied = ~(squares <= rounding)
    return torch.where(varied, 1 - residual / squares, torch.zeros_like(squares)).to(returns.dtype)


def _bounded_ratio(logps: Tensor, other_logps: Tensor) -> Tensor:
    return (logps - other_logps).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
