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

from pipeline.algorithms.logps import TokenScores, placed
from pipeline.algorithms.masked import accumulation_dtype, require_token_shapes


def linear_token_scores(
    hidden_BRH: Tensor,
    weight_VH: Tensor,
    targets_BR: Tensor,
    temperature: float = 1.0,
    chunk: int = 512,
    *,
    factor: float = 1.0,
    entropy: bool = False,
    mask_BR: Tensor | None = None,
) -> TokenScores:
    """log softmax(factor * W h / temperature)[target] of each token (B, R), in at least float32.

    To the last bit what `chunked_token_logps` gives, so that one may score what the other trains.

    Args:
        hidden_BRH: last hidden states; `hidden[b, r]` predicts `targets[b, r]`.
        weight_VH: of the vocabulary head, which gets no gradient.
        targets_BR: token ids; anything where the mask is false.
        temperature: divides the logits.
        chunk: tokens whose logits are in memory at a time, >= 1.
        factor: multiplies the logits before that.
        entropy: of each distribution, in nats; without a gradient.
        mask_BR: true where wanted, None for everywhere. Other positions cost nothing and get exactly 0.

    Raises:
        ValueError: a head that is trained, or shapes that do not belong together.
    """
    if weight_VH.requires_grad and torch.is_grad_enabled():
        raise ValueError("the head is trained, which this formulation has no gradient for; use chunked_token_logps")
    if hidden_BRH.dim() != 3 or hidden_BRH.shape[:2] != targets_BR.shape or hidden_BRH.shape[2] != weight_VH.shape[1]:
        raise ValueError(
            f"hidden states {tuple(hidden_BRH.shape)}, a head of {tuple(weight_VH.shape)} and targets of "
            f"{tuple(targets_BR.shape)} do not fit"
        )
    if chunk < 1 or not temperature > 0:
        raise ValueError(f"chunk must be at least 1 and temperature above 0, found {chunk} and {temperature}")
    mask = torch.ones_like(targets_BR, dtype=torch.bool) if mask_BR is None else mask_BR
    require_token_shapes(mask, targets_BR=targets_BR)
    logps_N, entropies_N = _LinearLogps.apply(
        hidden_BRH[mask], weight_VH, targets_BR[mask], factor, temperature, chunk, entropy
    )
    return TokenScores(placed((logps_N,), mask), placed((entropies_N,), mask) if entropy else None)


class _LinearLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        targets_N: Tensor,
        factor: float,
        temperature: float,
        chunk: int,
        entropy: bool,
    ) -> tuple[Tensor, Tensor | None]:
        hidden = hidden_NH.to(weight_VH.dtype)
        dtype = accumulation_dtype(hidden)
        logps_N = hidden.new_empty(len(targets_N), dtype=dtype)
        entropies_N = torch.empty_like(logps_N) if entropy else None
        jacobian_NH = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(targets_N), chunk):
            at = slice(start, start + chunk)
            logits_CV = (hidden[at] @ weight_VH.T).to(dtype)
            if factor != 1.0:
                logits_CV *= factor
            if temperature != 1.0:
                logits_CV /= temperature
            chosen_C1 = logits_CV.gather(1, targets_N[at, None])
            normaliser_C1 = torch.logsumexp(logits_CV, dim=1, keepdim=True)
            logps_N[at] = (chosen_C1 - normaliser_C1)[:, 0]
            if entropies_N is not None:
                entropies_N[at] = _entropies(logits_CV - normaliser_C1)
            if jacobian_NH is not None:
                probabilities_CV = logits_CV.sub_(normaliser_C1).exp_()
                probabilities_CV.scatter_add_(1, targets_N[at, None], probabilities_CV.new_full(chosen_C1.shape, -1.0))
                jacobian_NH[at] = probabilities_CV.to(weight_VH.dtype) @ weight_VH
        if jacobian_NH is not None:
            ctx.save_for_backward(jacobian_NH)
            ctx.scale, ctx.dtype = factor / temperature, hidden_NH.dtype
        if entropies_N is not None:
            ctx.mark_non_differentiable(entropies_N)
        return logps_N, entropies_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_N: Tensor, _: Any) -> tuple[Tensor, None, None, None, None, None, None]:
        (jacobian_NH,) = ctx.saved_tensors
        return (gradient_N[:, None] * jacobian_NH * -ctx.scale).to(ctx.dtype), None, None, None, None, None, None


def _entropies(logps_CV: Tensor) -> Tensor:
    return -(logps_CV.exp() * logps_CV).sum(-1)
