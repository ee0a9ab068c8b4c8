"""The loss of a reward model on preference pairs, after Bradley and Terry 1952: P(w beats l) = sigmoid(r_w - r_l)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pipeline.algorithms.masked import accumulation_dtype


def bradley_terry_loss(
    chosen_B: Tensor, rejected_B: Tensor, margin_B: Tensor | None = None, center_coefficient: float = 0.0
) -> Tensor:
    """-log sigmoid(r_w - r_l - margin) + c (r_w + r_l)^2 of each pair (B,), in at least float32.

    At equal scores and no margin it is log 2, with gradient -1/2 on the chosen score and +1/2 on the rejected one.

    Args:
        chosen_B: score of the chosen response.
        rejected_B: score of the rejected response.
        margin_B: how much better the chosen one should be, such as a difference of ratings (arXiv 2307.09288, eq. 2).
        center_coefficient: c pulls the scores of a pair to sum to 0, which the first term leaves open (arXiv
            2312.09244, eq. 2).

    Raises:
        ValueError: shapes that differ from (B,), or a negative coefficient.
    """
    tensors = [chosen_B, rejected_B] + ([] if margin_B is None else [margin_B])
    if len({tensor.shape for tensor in tensors}) != 1 or chosen_B.dim() != 1:
        raise ValueError(f"expected tensors of one shape (B,), found {[tuple(t.shape) for t in tensors]}")
    if center_coefficient < 0:
        raise ValueError(f"center_coefficient must not be negative, found {center_coefficient}")
    chosen, rejected = (tensor.to(accumulation_dtype(tensor)) for tensor in (chosen_B, rejected_B))
    margin = torch.zeros_like(chosen) if margin_B is None else margin_B.to(accumulation_dtype(margin_B))
    losses = -logsigmoid(chosen - rejected - margin)
    return losses + center_coefficient * (chosen + rejected).square() if center_coefficient else losses
