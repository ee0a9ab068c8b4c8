"""Generalised advantage estimation: between the rewards of `kl` and the losses of `ppo`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.algorithms.masked import keep, require_token_shapes


class Gae(NamedTuple):
    """Advantages (not yet whitened) and returns (B, R) of response tokens, exactly 0 elsewhere, no gradient."""

    advantages_BR: Tensor
    returns_BR: Tensor


def gae(rewards_BR: Tensor, values_BR: Tensor, mask_BR: Tensor, gamma: float = 1.0, lam: float = 0.95) -> Gae:
    """Advantages A and returns A + V, in at least float32 (arXiv 1506.02438, eq. 16).

    delta_t = r_t + gamma V_{t+1} - V_t and A_t = delta_t + gamma lam A_{t+1}, both 0 beyond the last token: EOS ends
    the episode, and so does the length limit. lam = 1 gives the discounted return minus V, lam = 0 delta itself.

    Args:
        rewards_BR: reward for token r, the score on the last one.
        values_BR: V(x, y_<r), of the state before token r, as they were when the response was sampled.
        mask_BR: true on response tokens, which lie next to one another: a gap would end the episode.
        gamma: discount; other than 1 it moves the optimum away from ref exp(S / kl_coef) and towards short responses.
        lam: trust in returns against values, in [0, 1].
    """
    require_token_shapes(mask_BR, rewards_BR=rewards_BR, values_BR=values_BR)
    if not (0 <= gamma <= 1 and 0 <= lam <= 1):
        raise ValueError(f"gamma and lam must be in [0, 1], found {gamma} and {lam}")
    rewards, values = keep(rewards_BR.detach(), mask_BR), keep(values_BR.detach(), mask_BR)
    dtype = torch.promote_types(rewards.dtype, values.dtype)
    next_value_B = next_advantage_B = torch.zeros(mask_BR.shape[0], dtype=dtype, device=mask_BR.device)
    advantages: list[Tensor] = []
    for r in reversed(range(mask_BR.shape[1])):
        delta_B = rewards[:, r] + gamma * next_value_B - values[:, r]
        # `where` per step: beyond the last token, and before the first, both are 0.
        next_advantage_B = keep(delta_B + gamma * lam * next_advantage_B, mask_BR[:, r])
        next_value_B = values[:, r]
        advantages.append(next_advantage_B)
    advantages_BR = torch.stack(advantages[::-1], dim=1) if advantages else rewards
    return Gae(advantages_BR, advantages_BR + values)
