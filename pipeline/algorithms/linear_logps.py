"""Log-probabilities straight from hidden states through a frozen linear head, its logits computed once.

With z = c W h and p = softmax(z), log p_y has the gradient d log p_y / d h = c W^T (onehot_y - p): one vector of h's
size for each token. It is taken while the chunk's logits are there, so that the backward pass needs neither them nor
the head again. Softmax and log-sum-exp are those of float32 (or of the logits' precision where that is higher).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.algorithms.masked import accumulation_dtype


def linear_token_logps(
    hidden_MH: Tensor, weight_VH: Tensor, targets_M: Tensor, scale: float = 1.0, chunk: int = 512
) -> Tensor:
    """log softmax(scale * W h)[target] of each token (M,), in at least float32.

    Args:
        hidden_MH: last hidden states; `hidden[m]` predicts `targets[m]`.
        weight_VH: of the vocabulary head, which gets no gradient.
        targets_M: token ids.
        scale: of the logits, such as 1 / temperature.
        chunk: tokens whose logits are in memory at a time, >= 1.

    Raises:
        ValueError: a head that is trained, or shapes that do not belong together.
    """
    if weight_VH.requires_grad and torch.is_grad_enabled():
        raise ValueError("the head is trained, which this formulation has no gradient for; use chunked_token_logps")
    if hidden_MH.dim() != 2 or hidden_MH.shape[:1] != targets_M.shape or hidden_MH.shape[1] != weight_VH.shape[1]:
        raise ValueError(
            f"hidden states {tuple(hidden_MH.shape)}, a head of {tuple(weight_VH.shape)} and targets of "
            f"{tuple(targets_M.shape)} do not fit"
        )
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, found {chunk}")
    found: Tensor = _LinearLogps.apply(hidden_MH, weight_VH, targets_M, scale, chunk)
    return found


class _LinearLogps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_MH: Tensor, weight_VH: Tensor, targets_M: Tensor, scale: float, chunk: int) -> Tensor:
        # Autocast does not reach into here: the head computes in its weights' precision, as autocast would have it.
        hidden = hidden_MH.to(weight_VH.dtype)
        dtype = accumulation_dtype(hidden)
        logps_M = hidden.new_empty(len(targets_M), dtype=dtype)
        jacobian_MH = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(targets_M), chunk):
            at = slice(start, start + chunk)
            logits_CV = (hidden[at] @ weight_VH.T).to(dtype)
            if scale != 1.0:
                logits_CV *= scale
            chosen_C1 = logits_CV.gather(1, targets_M[at, None])
            normaliser_C1 = torch.logsumexp(logits_CV, dim=1, keepdim=True)
            logps_M[at] = (chosen_C1 - normaliser_C1)[:, 0]
            if jacobian_MH is not None:
                probabilities_CV = logits_CV.sub_(normaliser_C1).exp_()
                probabilities_CV.scatter_add_(1, targets_M[at, None], probabilities_CV.new_full(chosen_C1.shape, -1.0))
                jacobian_MH[at] = probabilities_CV.to(weight_VH.dtype) @ weight_VH
        if jacobian_MH is not None:
            ctx.save_for_backward(jacobian_MH)
            ctx.scale, ctx.dtype = scale, hidden_MH.dtype
        return logps_M

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_M: Tensor) -> tuple[Tensor, None, None, None, None]:
        (jacobian_MH,) = ctx.saved_tensors
        return (gradient_M[:, None] * jacobian_MH * -ctx.scale).to(ctx.dtype), None, None, None, None
