"""What a response loses for its ending: changes of the score, before `kl.penalised_rewards`."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.algorithms.masked import accumulation_dtype


def missing_eos(scores_B: Tensor, stopped_B: Tensor, penalty: float = 0.0, replacement: float | None = None) -> Tensor:
    """Scores (B,) in at least float32, lowered or replaced where a response ran into the length limit.

    Args:
        scores_B: score of each response.
        stopped_B: boolean, true where it ended by itself; an EOS as the last token that fits counts.
        penalty: subtracted, >= 0.
        replacement: the score instead, whatever the reward model said, so that text without end cannot earn its way
            back (arXiv 2403.17031, the "EOS trick"). Needs scores whose zero is known. Excludes a penalty.
    """
    if stopped_B.dtype != torch.bool:
        raise TypeError(f"stopped_B must be boolean, found {stopped_B.dtype}")
    if scores_B.dim() != 1 or scores_B.shape != stopped_B.shape:
        raise ValueError(f"expected one shape (B,), found {tuple(scores_B.shape)} and {tuple(stopped_B.shape)}")
    if penalty < 0 or (penalty > 0 and replacement is not None):
        raise ValueError(f"expected penalty >= 0, and 0 beside a replacement; found {penalty} and {replacement}")
    scores = scores_B.to(accumulation_dtype(scores_B))
    missing = scores - penalty if replacement is None else torch.full_like(scores, replacement)
    return torch.where(stopped_B, scores, missing)


def soft_overlong(lengths_B: Tensor, cap: int, buffer: int, factor: float) -> Tensor:
    """-factor clip((length - (cap - buffer)) / buffer, 0, 1), to be added to scores (arXiv 2503.14476, section 3.4).

    0 up to cap - buffer tokens, -factor from cap tokens on, linear between.

    Args:
        lengths_B: tokens of each response, EOS included.
        cap: length limit in tokens.
        buffer: how many tokens before the limit it starts, in [1, cap].
        factor: its size at the limit, in units of the score, >= 0.

    Returns:
        (B,) in at least float32, never above 0.
    """
    if lengths_B.dim() != 1:
        raise ValueError(f"expected lengths of shape (B,), found {tuple(lengths_B.shape)}")
    if not (1 <= buffer <= cap and factor >= 0):
        raise ValueError(f"expected 1 <= buffer <= cap and factor >= 0, found {buffer}, {cap} and {factor}")
    lengths = lengths_B.to(accumulation_dtype(lengths_B))
    return -factor * ((lengths - (cap - buffer)) / buffer).clamp(0, 1)
