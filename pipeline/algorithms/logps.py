"""Log-probabilities of given tokens. The one place that shifts logits against ids."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pipeline.algorithms.masked import accumulation_dtype, masked_sum, require_token_shapes


class TokenScores(NamedTuple):
    """Log-probability of each token, and the entropy of the distribution it came from, where asked (B, R)."""

    logps_BR: Tensor
    entropies_BR: Tensor | None


def token_logps(logits_BTV: Tensor, ids_BT: Tensor, temperature: float = 1.0) -> Tensor:
    """log pi(id_t | ids before t) for every position but the first.

    Args:
        logits_BTV: the model's logits; position t predicts id t + 1.
        ids_BT: token ids.
        temperature: divides the logits: log-probabilities of the distribution that is sampled from.

    Returns:
        (B, T - 1) in at least float32: entry t belongs to id t + 1.
    """
    if logits_BTV.shape[:2] != ids_BT.shape:
        raise ValueError(f"logits {tuple(logits_BTV.shape)} do not fit ids {tuple(ids_BT.shape)}")
    predicting = _tempered(logits_BTV[:, :-1], temperature)
    return _chosen_logps(predicting, ids_BT[:, 1:])


def seq_logps(token_logps_BR: Tensor, response_mask_BR: Tensor) -> Tensor:
    """log pi(y | x) of each response: the sum over its tokens, EOS included (B,)."""
    return masked_sum(token_logps_BR, response_mask_BR, dim=-1)


def token_entropies(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """-sum_v p_v log p_v over the whole vocabulary, in nats and at least float32.

    Args:
        logits: (..., V); -inf for a forbidden token, which adds nothing.
        temperature: divides the logits.
    """
    logps = torch.log_softmax(_tempered(logits, temperature), dim=-1)
    finite = logps.where(logps > -torch.inf, torch.zeros_like(logps))
    return -(logps.exp() * finite).sum(-1)


def chunked_token_logps(
    hidden_BRH: Tensor,
    head: Callable[[Tensor], Tensor],
    targets_BR: Tensor,
    temperature: float = 1.0,
    chunk: int = 512,
    entropy: bool = False,
    mask_BR: Tensor | None = None,
) -> TokenScores:
    """Log-probabilities from hidden states, with the logits of at most `chunk` tokens in memory at a time.

    The whole (B, R, V) is the largest tensor of a language model's update. Here the backward pass computes every
    chunk's logits again. Nothing is shifted: `hidden[b, r]` predicts `targets[b, r]`.

    Args:
        hidden_BRH: last hidden states.
        head: hidden states (N, H) to logits (N, V); called once per chunk, and once more in the backward pass.
        targets_BR: token ids; anything where the mask is false.
        temperature: divides the logits.
        chunk: tokens at a time, >= 1.
        entropy: compute entropies too.
        mask_BR: true where wanted, None for everywhere. Other positions cost nothing and get exactly 0, and so do
            their gradients.
    """
    if hidden_BRH.dim() != 3 or hidden_BRH.shape[:2] != targets_BR.shape:
        raise ValueError(f"hidden states {tuple(hidden_BRH.shape)} do not fit targets {tuple(targets_BR.shape)}")
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, found {chunk}")
    mask = torch.ones_like(targets_BR, dtype=torch.bool) if mask_BR is None else mask_BR
    require_token_shapes(mask, targets_BR=targets_BR)

    def score(hidden_NH: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor | None]:
        logits_NV = _tempered(head(hidden_NH), temperature)
        return _chosen_logps(logits_NV, targets_N), token_entropies(logits_NV) if entropy else None

    chunks = []
    for hidden_NH, targets_N in zip(hidden_BRH[mask].split(chunk), targets_BR[mask].split(chunk), strict=True):
        if torch.is_grad_enabled():
            chunks.append(checkpoint(score, hidden_NH, targets_N, use_reentrant=False))
        else:
            chunks.append(score(hidden_NH, targets_N))
    logps, entropies = zip(*chunks, strict=True)
    return TokenScores(placed(logps, mask), placed(entropies, mask) if entropy else None)


def _tempered(logits: Tensor, temperature: float) -> Tensor:
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, found {temperature}")
    logits = logits.to(accumulation_dtype(logits))
    return logits if temperature == 1.0 else logits / temperature


def _chosen_logps(logits: Tensor, ids: Tensor) -> Tensor:
    """Entry `ids` of log softmax(logits), without storing the others."""
    chosen = logits.gather(-1, ids[..., None]).squeeze(-1)
    return chosen - torch.logsumexp(logits, dim=-1)


def placed(pieces: tuple[Tensor, ...], mask_BR: Tensor) -> Tensor:
    """Values of the true positions, in order, at their places; 0 elsewhere."""
    values_N = torch.cat(pieces)
    return values_N.new_zeros(mask_BR.shape).masked_scatter(mask_BR, values_N)
