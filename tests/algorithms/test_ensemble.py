"""One score from several: by hand, and in the limits where the ways agree."""

from __future__ import annotations

import statistics

import pytest
import torch
from torch import tensor

from pipeline.algorithms.ensemble import AGGREGATES, aggregate_scores


def test_by_hand():
    """Three members score 1, 2, 6: mean 3, least 1, variance (4 + 1 + 9) / 3 = 14/3; a second response has all 5."""
    scores = tensor([[1.0, 5.0], [2.0, 5.0], [6.0, 5.0]], dtype=torch.float64)
    assert aggregate_scores(scores, "mean").tolist() == [3.0, 5.0]
    assert aggregate_scores(scores, "min").tolist() == [1.0, 5.0]
    found = aggregate_scores(scores, "mean_minus_variance", 0.5)
    assert found.tolist() == pytest.approx([3 - 7 / 3, 5.0], abs=1e-12)


def test_against_the_standard_library():
    """Population variance (1e-12); the sample variance differs."""
    scores = torch.randn(4, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for column, mean, least, careful in zip(
        scores.T.tolist(), *(aggregate_scores(scores, how, 0.7).tolist() for how in AGGREGATES), strict=True
    ):
        assert mean == pytest.approx(statistics.fmean(column), abs=1e-12)
        assert least == min(column)
        assert careful == pytest.approx(mean - 0.7 * statistics.pvariance(column), abs=1e-12)
        assert abs(careful - (mean - 0.7 * statistics.variance(column))) > 1e-3


@pytest.mark.parametrize("how", AGGREGATES)
def test_one_member_and_members_that_agree(how):
    """Nothing to be careful about: the score itself, not NaN."""
    scores = tensor([[0.5, -2.0]])
    for K in (1, 4):
        assert aggregate_scores(scores.expand(K, 2), how, 3.0).tolist() == [0.5, -2.0]


@pytest.mark.parametrize("how", AGGREGATES)
def test_precision_and_order_of_the_members(how):
    scores = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(aggregate_scores(scores.flip(0), how, 0.3), aggregate_scores(scores, how, 0.3), atol=1e-6)
    assert aggregate_scores(scores.bfloat16(), how, 0.3).dtype == torch.float32
    assert aggregate_scores(scores.double(), how, 0.3).dtype == torch.float64
    assert torch.isfinite(aggregate_scores(scores + 1e4, how, 0.3)).all()


def test_refusals():
    scores = torch.zeros(2, 3)
    for wrong in (scores[0], scores[None], scores[:0]):
        with pytest.raises(ValueError, match=r"expected scores of shape \(K, B\) with K > 0"):
            aggregate_scores(wrong, "mean")
    with pytest.raises(ValueError, match="unknown aggregate 'median'; expected one of mean, min"):
        aggregate_scores(scores, "median")
    with pytest.raises(ValueError, match="variance_weight must not be negative"):
        aggregate_scores(scores, "mean_minus_variance", -1.0)
