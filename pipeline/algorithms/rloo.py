"""Leave-one-out baselines: what a prompt's other answers were worth, in a value model's place before `gae`."""

from __future__ import annotations

import torch
from torch import Tensor


def leave_one_out(returns_N: Tensor, samples: int) -> Tensor:
    """b_i = mean of R_j over the other answers j != i to the same prompt (RLOO, arXiv 2402.14740).

    b_i does not depend on answer i, so that R_i - b_i has the policy gradient that R_i has, with less variance. Of
    values that are b_i at every token, with gamma = lam = 1, `gae` makes what is still to come at a token, less b_i.

    Args:
        returns_N: R of each answer, the answers to one prompt next to one another; no gradient is taken.
        samples: answers to each prompt, at least 2; divides N.

    Returns:
        (N,) in at least float32.
    """
    if returns_N.ndim != 1 or samples < 2 or len(returns_N) % samples:
        raise ValueError(f"expected whole groups of {samples} >= 2 returns, found shape {tuple(returns_N.shape)}")
    returns_PS = returns_N.detach().reshape(-1, samples)
    returns_PS = returns_PS.to(torch.promote_types(returns_PS.dtype, torch.float32))
    others_PS = returns_PS.sum(dim=1, keepdim=True) - returns_PS
    return (others_PS / (samples - 1)).reshape(-1)
