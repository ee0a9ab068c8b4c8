"""One score from several reward models, cautious where they disagree (arXiv 2310.02743)."""

from __future__ import annotations

from torch import Tensor

from pipeline.algorithms.masked import accumulation_dtype

AGGREGATES = ("mean", "min", "mean_minus_variance")


def aggregate_scores(scores_KB: Tensor, how: str = "mean", variance_weight: float = 0.0) -> Tensor:
    """Scores (B,) in at least float32.

    Args:
        scores_KB: of K reward models for B responses, each centred and scaled on the same reference set.
        how: one of `AGGREGATES`: mean; min, the worst case; mean_minus_variance, mean - weight * population variance
            over the K.
        variance_weight: of the variance, >= 0; only mean_minus_variance reads it, and with 0 is the mean.
    """
    if scores_KB.dim() != 2 or scores_KB.shape[0] == 0:
        raise ValueError(f"expected scores of shape (K, B) with K > 0, found {tuple(scores_KB.shape)}")
    if variance_weight < 0:
        raise ValueError(f"variance_weight must not be negative, found {variance_weight}")
    scores = scores_KB.to(accumulation_dtype(scores_KB))
    match how:
        case "mean":
            return scores.mean(0)
        case "min":
            return scores.amin(0)
        case "mean_minus_variance":
            return scores.mean(0) - variance_weight * scores.var(0, correction=0)
    raise ValueError(f"unknown aggregate {how!r}; expected one of {', '.join(AGGREGATES)}")
