"""Penalties for how a response ends, at and around their boundaries."""

from __future__ import annotations

import pytest
import torch
from torch import tensor

from pipeline.algorithms.penalties import missing_eos, soft_overlong


def test_missing_eos_by_hand():
    """Scores 1, -2, 3, of which the second and third ran out: less 0.5 each, or -1 instead."""
    scores, stopped = tensor([1.0, -2.0, 3.0]), tensor([True, False, False])
    assert missing_eos(scores, stopped, 0.5).tolist() == [1.0, -2.5, 2.5]
    assert missing_eos(scores, stopped, 0.0, replacement=-1.0).tolist() == [1.0, -1.0, -1.0]
    assert missing_eos(scores, stopped, replacement=0.0).tolist() == [1.0, 0.0, 0.0]
    assert missing_eos(scores, stopped, 0.0).tolist() == [1.0, -2.0, 3.0]
    assert missing_eos(scores, torch.ones(3, dtype=torch.bool), 5.0).tolist() == [1.0, -2.0, 3.0]


def test_a_replacement_hides_whatever_the_score_was():
    scores, stopped = tensor([1.0, float("nan"), float("inf")]), tensor([True, False, False])
    assert missing_eos(scores, stopped, replacement=-1.0).tolist() == [1.0, -1.0, -1.0]


def test_missing_eos_keeps_precision():
    """8 - 0.01 is 8 again in bfloat16."""
    scores, stopped = tensor([8.0], dtype=torch.bfloat16), tensor([False])
    assert missing_eos(scores, stopped, 0.01).dtype == torch.float32
    assert missing_eos(scores, stopped, 0.01).item() == pytest.approx(7.99, abs=1e-6)
    assert missing_eos(scores.double(), stopped, 1e-12).item() < 8.0


def test_missing_eos_refusals():
    scores, stopped = torch.zeros(3), torch.zeros(3, dtype=torch.bool)
    with pytest.raises(TypeError, match=r"stopped_B must be boolean, found torch\.int64"):
        missing_eos(scores, stopped.long(), 1.0)
    for wrong in (stopped[:1], stopped[:, None]):
        with pytest.raises(ValueError, match=r"expected one shape \(B,\), found \(3,\) and"):
            missing_eos(scores, wrong, 1.0)
    for penalty, replacement in ((-1.0, None), (1.0, -1.0)):
        with pytest.raises(ValueError, match="expected penalty >= 0, and 0 beside a replacement"):
            missing_eos(scores, stopped, penalty, replacement)


def test_soft_overlong_at_its_boundaries():
    """Cap 10, buffer 4, factor 2: 0 up to 6 tokens, then -.5 a token, -2 at 10 and beyond."""
    lengths = tensor([0, 1, 6, 7, 8, 9, 10, 11, 1000])
    assert soft_overlong(lengths, cap=10, buffer=4, factor=2.0).tolist() == [0, 0, 0, -0.5, -1, -1.5, -2, -2, -2]


@pytest.mark.parametrize(("cap", "buffer"), [(512, 64), (7, 7), (5, 1)])
def test_soft_overlong_against_the_formula(cap, buffer):
    """Piecewise as the paper has it: 0; ((cap - buffer) - length) / buffer; -1."""
    for length in range(cap + 3):
        if length <= cap - buffer:
            expected = 0.0
        elif length <= cap:
            expected = ((cap - buffer) - length) / buffer
        else:
            expected = -1.0
        found = soft_overlong(tensor([length]), cap, buffer, 3.0)
        assert found.item() == pytest.approx(3.0 * expected, abs=1e-6)
        assert found.item() <= 0.0


def test_soft_overlong_refusals():
    lengths = tensor([1, 2])
    assert soft_overlong(lengths, 2, 1, 1.0).dtype == torch.float32
    for cap, buffer, factor in [(10, 0, 1.0), (10, 11, 1.0), (10, 4, -1.0)]:
        with pytest.raises(ValueError, match="expected 1 <= buffer <= cap and factor >= 0"):
            soft_overlong(lengths, cap, buffer, factor)
    with pytest.raises(ValueError, match=r"expected lengths of shape \(B,\), found \(1, 2\)"):
        soft_overlong(lengths[None], 10, 4, 1.0)
