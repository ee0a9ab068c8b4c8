"""Log-probabilities of given tokens. The one place that shifts logits against ids."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.algorithms.masked import accumulation_dtype, masked_sum


def token_logps(logits_BTV: Tensor, ids_BT: Tensor) -> Tensor:
    """log pi(id_t | ids before t) for every position but the first.

    Args:
        logits_BTV: the model's logits; position t predicts id t + 1.
        ids_BT: token ids.

    Returns:
        (B, T - 1) in at least float32: entry t belongs to id t + 1.
    """
    if logits_BTV.shape[:2] != ids_BT.shape:
        raise ValueError(f"logits {tuple(logits_BTV.shape)} do not fit ids {tuple(ids_BT.shape)}")
    predicting = logits_BTV[:, :-1].to(accumulation_dtype(logits_BTV))
    chosen = predicting.gather(-1, ids_BT[:, 1:, None]).squeeze(-1)
    return chosen - torch.logsumexp(predicting, dim=-1)


def seq_logps(token_logps_BR: Tensor, response_mask_BR: Tensor) -> Tensor:
    """log pi(y | x) of each response: the sum over its tokens, EOS included (B,)."""
    return masked_sum(token_logps_BR, response_mask_BR, dim=-1)
