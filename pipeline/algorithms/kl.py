"""Divergence from a reference: its estimators from samples of the policy, and what it costs the policy.

Estimators after Schulman 2020, "Approximating KL". Of the three, only k1 in the reward has the KL-regularised optimum
as its fixed point (arXiv 2510.01555); k2 and k3 are for logging.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipeline.algorithms.masked import keep, require_token_shapes


def k1(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """log pi - log ref: unbiased for KL(pi || ref) on samples of pi, can be negative. Any shape, elementwise."""
    return logps - ref_logps


def k2(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """(log pi - log ref)^2 / 2: never negative, biased from the third order on, the same both ways. Elementwise."""
    return 0.5 * (logps - ref_logps).square()


def k3(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """exp(ref - pi) - 1 - (ref - pi): unbiased, never negative, lower variance near the reference. Elementwise.

    The difference is clamped to +-20 before the exponential, far beyond what a finite estimate survives.
    """
    d = (ref_logps - logps).clamp(-20.0, 20.0)
    return torch.expm1(d) - d


def penalised_rewards(
    scores_B: Tensor, logps_BR: Tensor, ref_logps_BR: Tensor, mask_BR: Tensor, kl_coef: float
) -> Tensor:
    """r_t = -kl_coef (log pi_t - log ref_t), plus the score at the last token (arXiv 1909.08593, eq. 2).

    Their sum over a response is S - kl_coef (log pi(y|x) - log ref(y|x)). Nothing carries a gradient.

    Args:
        scores_B: score of each response.
        logps_BR: log-probabilities under the policy that sampled, at the temperature it sampled with.
        ref_logps_BR: under the reference, at the same temperature.
        mask_BR: true on response tokens; the score lands on the last of them, and nowhere in a row without any.
        kl_coef: price of a nat, in units of the score.

    Returns:
        (B, R) in at least float32, exactly 0 where the mask is false.
    """
    require_token_shapes(mask_BR, logps_BR=logps_BR, ref_logps_BR=ref_logps_BR)
    if scores_B.shape != mask_BR.shape[:1]:
        raise ValueError(f"expected scores_B of shape ({mask_BR.shape[0]},), found {tuple(scores_B.shape)}")
    penalties_BR = -kl_coef * k1(keep(logps_BR.detach(), mask_BR), keep(ref_logps_BR.detach(), mask_BR))
    true_from_here_BR = mask_BR.flip(-1).cumsum(-1).flip(-1)
    last_BR = mask_BR & (true_from_here_BR == 1)
    return penalties_BR + keep(scores_B.detach()[:, None].expand_as(mask_BR), last_BR)


class AdaptiveKL:
    """Proportional controller of the KL coefficient (arXiv 1909.08593, section 2.2).

    e = clip(KL / target - 1, -0.2, 0.2); coef <- coef (1 + e n / horizon). Use `coef` for a rollout's rewards, then
    update. `coef` is all of the state: write it into a checkpoint, assign it to restore.

    Args:
        init: first coefficient, > 0.
        target: nats per response (sum over tokens, mean over responses), > 0.
        horizon: episodes over which a constant error of 0.2 changes the coefficient by about e^0.2.
    """

    LIMIT = 0.2

    def __init__(self, init: float, target: float, horizon: float):
        if not (init > 0 and target > 0 and horizon > 0):
            raise ValueError(f"init, target and horizon must be above 0, found {init}, {target}, {horizon}")
        self.coef = init
        self.target = target
        self.horizon = horizon

    def update(self, kl_per_sequence: float, episodes: int) -> float:
        """The next coefficient, after a rollout of `episodes` responses (all ranks) at `kl_per_sequence` nats.

        Raises:
            ValueError: a KL that is not finite, or so many episodes that the coefficient could reach 0.
        """
        if not math.isfinite(kl_per_sequence):
            raise ValueError(f"the KL per response is {kl_per_sequence}; the coefficient stays at {self.coef}")
        if not 0 <= self.LIMIT * episodes < self.horizon:
            raise ValueError(f"{episodes} episodes in one update need a horizon above {self.LIMIT * episodes:g}")
        error = min(max(kl_per_sequence / self.target - 1, -self.LIMIT), self.LIMIT)
        self.coef *= 1 + error * episodes / self.horizon
        return self.coef
