"""Direct preference optimisation and its relatives on sequence log-probabilities.

With h = (log pi(y_w|x) - log ref(y_w|x)) - (log pi(y_l|x) - log ref(y_l|x)), sums over answer tokens:
DPO (arXiv 2305.18290, eq. 7) is -log sigmoid(beta h). Where a variant is stated on per-token averages (IPO as its
authors run it, length-normalised DPO), pass averaged log-probabilities.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pipeline.algorithms.masked import accumulation_dtype


class PreferenceLoss(NamedTuple):
    """Per-pair losses (B,) and the implicit rewards beta * (log pi - log ref) of both answers (B,), detached."""

    losses_B: Tensor
    chosen_rewards_B: Tensor
    rejected_rewards_B: Tensor


def dpo_loss(
    policy_chosen_B: Tensor,
    policy_rejected_B: Tensor,
    ref_chosen_B: Tensor,
    ref_rejected_B: Tensor,
    beta: float,
    loss_type: str = "sigmoid",
    label_smoothing: float = 0.0,
) -> PreferenceLoss:
    """Loss of each pair, in at least float32.

    Args:
        policy_chosen_B: log pi(y_w|x) under the policy in training; likewise the other three, all of shape (B,).
        policy_rejected_B: log pi(y_l|x) under the policy.
        ref_chosen_B: log ref(y_w|x), no gradient needed.
        ref_rejected_B: log ref(y_l|x).
        beta: strength of the pull to the reference, > 0; as beta -> 0 the loss goes to log 2 whatever the policy.
        loss_type: one of `LOSS_TYPES`.
        label_smoothing: assumed share of swapped pairs, in [0, 0.5); used by sigmoid (conservative DPO, optimum at
            beta h = log((1 - e) / e)), robust, exo_pair (needs > 0) and the aot losses.

    Raises:
        ValueError: unknown loss type, shapes that differ, or label smoothing out of range or without effect.
    """
    tensors = (policy_chosen_B, policy_rejected_B, ref_chosen_B, ref_rejected_B)
    if len({tensor.shape for tensor in tensors}) != 1 or policy_chosen_B.dim() != 1:
        raise ValueError(f"expected four tensors of one shape (B,), found {[tuple(t.shape) for t in tensors]}")
    if loss_type not in LOSS_TYPES:
        raise ValueError(f"unknown loss_type {loss_type!r}; expected one of {', '.join(LOSS_TYPES)}")
    if not 0.0 <= label_smoothing < 0.5 or (label_smoothing > 0 and loss_type not in SMOOTHED):
        raise ValueError(f"label_smoothing {label_smoothing} is out of [0, 0.5) or unused by {loss_type!r}")
    policy_w, policy_l, ref_w, ref_l = (tensor.to(accumulation_dtype(tensor)) for tensor in tensors)
    logratio_w, logratio_l = policy_w - ref_w, policy_l - ref_l
    if loss_type == "aot":
        # Alignment via optimal transport (arXiv 2406.05882): pair the sorted gaps, not the rows.
        gap = torch.sort(policy_w - policy_l).values - torch.sort(ref_w - ref_l).values
        losses = _smoothed(beta * gap, label_smoothing)
    elif loss_type == "aot_unpaired":
        gap = torch.sort(logratio_w).values - torch.sort(logratio_l).values
        losses = _smoothed(beta * gap, label_smoothing)
    else:
        losses = _pairwise_loss(logratio_w, logratio_l, beta, loss_type, label_smoothing)
    return PreferenceLoss(losses, (beta * logratio_w).detach(), (beta * logratio_l).detach())


LOSS_TYPES = (
    "sigmoid", "robust", "hinge", "ipo", "exo_pair", "nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down",
    "discopop", "aot", "aot_unpaired",
)  # fmt: skip
SMOOTHED = ("sigmoid", "robust", "exo_pair", "aot", "aot_unpaired")
"""Loss types that label smoothing changes."""


def _smoothed(d: Tensor, e: float) -> Tensor:
    """Conservative DPO (Mitchell 2023, eq. 3): -(1 - e) log s(d) - e log s(-d)."""
    return -(1 - e) * logsigmoid(d) - e * logsigmoid(-d)


def _pairwise_loss(logratio_w: Tensor, logratio_l: Tensor, beta: float, loss_type: str, e: float) -> Tensor:
    """Losses that see one pair at a time; d = beta h, w and l the two implicit rewards."""
    h = logratio_w - logratio_l
    d, w, l = beta * h, beta * logratio_w, beta * logratio_l  # noqa: E741
    match loss_type:
        case "sigmoid":
            return _smoothed(d, e)
        case "robust":  # arXiv 2403.00409, eq. 12: unbiased for the clean loss under flip rate e
            return (-(1 - e) * logsigmoid(d) + e * logsigmoid(-d)) / (1 - 2 * e)
        case "hinge":  # SLiC, arXiv 2305.10425
            return torch.relu(1 - d)
        case "ipo":  # arXiv 2310.12036, eq. 17, tau = beta
            return (h - 1 / (2 * beta)) ** 2
        case "exo_pair":  # arXiv 2402.00856, eq. 16: KL(softmax(d, 0) || (1 - e, e))
            if e == 0:
                raise ValueError("exo_pair needs label_smoothing > 0, such as 1e-3")
            s = torch.sigmoid(d)
            return s * (logsigmoid(d) - math.log1p(-e)) + (1 - s) * (logsigmoid(-d) - math.log(e))
        case "nca_pair":  # arXiv 2402.05369
            return -logsigmoid(w) - 0.5 * logsigmoid(-w) - 0.5 * logsigmoid(-l)
        case "bco_pair":  # arXiv 2404.04656 without the running shift
            return -logsigmoid(w) - logsigmoid(-l)
        case "sppo_hard":  # arXiv 2405.00675, eq. 4.7 with P = 1 for the winner
            return (logratio_w - 0.5 / beta) ** 2 + (logratio_l + 0.5 / beta) ** 2
        case "apo_zero":  # arXiv 2408.06266, eq. 7
            return 1 - torch.sigmoid(w) + torch.sigmoid(l)
        case "apo_down":  # arXiv 2408.06266, eq. 8
            return torch.sigmoid(w) + 1 - torch.sigmoid(d)
        case "discopop":  # arXiv 2406.08414, eq. 5, temperature 0.05
            blend = torch.sigmoid(d / 0.05)
            return -logsigmoid(d) * (1 - blend) + torch.exp(-d) * blend
    raise ValueError(f"unknown loss_type {loss_type!r}")


def preference_margins(
    policy_chosen_B: Tensor, policy_rejected_B: Tensor, ref_chosen_B: Tensor, ref_rejected_B: Tensor, beta: float
) -> Tensor:
    """Implicit-reward margin beta * h of each pair (B,): above 0 the policy prefers the chosen answer more than ref."""
    return beta * ((policy_chosen_B - ref_chosen_B) - (policy_rejected_B - ref_rejected_B))
