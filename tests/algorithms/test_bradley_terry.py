"""The reward model's loss: by hand, in plain floats, and by what defines it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, tensor

from pipeline.algorithms.bradley_terry import bradley_terry_loss

LOG2 = math.log(2)


def scores(seed: int = 0, B: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Chosen, rejected and margins (B,), double precision."""
    generator = torch.Generator().manual_seed(seed)
    chosen, rejected, margin = (2 * torch.randn(B, generator=generator, dtype=torch.float64) for _ in range(3))
    return chosen, rejected, margin.abs()


def test_by_hand():
    """Scores 1.5 and -.5: log(1 + e^-2) = .1269280; with margin 1, log(1 + e^-1) = .3132617; centred, + .01 * 1^2."""
    chosen, rejected = tensor([1.5], dtype=torch.float64), tensor([-0.5], dtype=torch.float64)
    one = torch.ones_like(chosen)
    assert bradley_terry_loss(chosen, rejected).item() == pytest.approx(0.1269280110, abs=1e-10)
    assert bradley_terry_loss(chosen, rejected, one).item() == pytest.approx(0.3132616875, abs=1e-10)
    assert bradley_terry_loss(chosen, rejected, one, 0.01).item() == pytest.approx(0.3232616875, abs=1e-10)


@given(seed=st.integers(0, 1000), c=st.sampled_from([0.0, 0.01, 1.0]))
@settings(max_examples=30, deadline=None)
def test_against_plain_floats(seed, c):
    """-log p with p = 1 / (1 + exp(-gap)), one pair at a time (relative 1e-9)."""
    chosen, rejected, margin = scores(seed)
    found = bradley_terry_loss(chosen, rejected, margin, c).tolist()
    for w, l, m, loss in zip(*(t.tolist() for t in (chosen, rejected, margin)), found, strict=True):  # noqa: E741
        assert loss == pytest.approx(-math.log(1 / (1 + math.exp(-(w - l - m)))) + c * (w + l) ** 2, rel=1e-9)


def test_at_equal_scores():
    """log 2, and gradients of -1/2 and +1/2 whatever the common score."""
    chosen, rejected = (tensor([0.0, -3.0, 7.0], requires_grad=True) for _ in range(2))
    losses = bradley_terry_loss(chosen, rejected)
    assert losses.tolist() == pytest.approx([LOG2] * 3, abs=1e-7)
    losses.sum().backward()
    assert chosen.grad is not None and chosen.grad.tolist() == [-0.5] * 3
    assert rejected.grad is not None and rejected.grad.tolist() == [0.5] * 3


def test_only_the_gap_counts_until_it_is_centred():
    """A prompt's own offset cancels; the centring term sees it, with gradient 2 c (r_w + r_l) on both."""
    chosen, rejected, margin = scores()
    for c, same in ((0.0, True), (0.1, False)):
        moved = bradley_terry_loss(chosen + 3, rejected + 3, margin, c)
        assert torch.allclose(moved, bradley_terry_loss(chosen, rejected, margin, c), rtol=0, atol=1e-12) is same
    leaves = [t.clone().requires_grad_() for t in (chosen, rejected)]
    gradients = {c: torch.autograd.grad(bradley_terry_loss(*leaves, None, c).sum(), leaves) for c in (0.0, 0.1)}
    for plain, centred in zip(gradients[0.0], gradients[0.1], strict=True):
        assert torch.allclose(centred - plain, 2 * 0.1 * (chosen + rejected), rtol=0, atol=1e-12)


def test_a_margin_shifts_the_gap():
    chosen, rejected, margin = scores()
    assert torch.equal(bradley_terry_loss(chosen, rejected, margin), bradley_terry_loss(chosen - rejected, margin))
    assert (bradley_terry_loss(chosen, rejected, margin) > bradley_terry_loss(chosen, rejected)).all()


@pytest.mark.parametrize("wins", [0.5, 0.8, 0.99])
def test_the_best_gap_is_the_log_odds_of_winning(wins):
    """Stationary at logit(wins) and lowest there, when that share of the pairs is won."""
    best = math.log(wins / (1 - wins))

    def expected_loss(gap: Tensor) -> Tensor:
        zero = torch.zeros_like(gap)
        return (wins * bradley_terry_loss(gap, zero) + (1 - wins) * bradley_terry_loss(zero, gap)).sum()

    gap = tensor([best], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.grad(expected_loss(gap), gap)[0].abs().item() < 1e-12
    assert all(expected_loss(gap + step) > expected_loss(gap) for step in (-0.1, 0.1))


def test_extreme_gaps_are_finite_with_the_right_gradient():
    """+-1000: 0 and 1000, gradients 0 and -1; exp would have overflowed. 1e30 apart without centring as well."""
    chosen = tensor([1e3, -1e3, -1e30], requires_grad=True)
    losses = bradley_terry_loss(chosen, torch.zeros(3))
    losses.sum().backward()
    assert losses.tolist() == [0.0, 1000.0, pytest.approx(1e30)]
    assert chosen.grad is not None and chosen.grad.tolist() == [0.0, -1.0, -1.0]


@pytest.mark.parametrize(
    ("given_dtype", "expected"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
)
def test_precision(given_dtype, expected):
    """bfloat16 scores near 8 lie 1/16 apart: subtracted in float32, not rounded again (1e-6)."""
    chosen, rejected, margin = (t.to(given_dtype) for t in scores(B=50))
    found = bradley_terry_loss(chosen + 8, rejected, margin, 0.01)
    exact = bradley_terry_loss((chosen + 8).double(), rejected.double(), margin.double(), 0.01)
    assert found.dtype == expected
    assert torch.allclose(found.double(), exact, rtol=1e-6, atol=1e-6)


def test_refusals():
    a = torch.zeros(3)
    for tensors in [(a, a[:2]), (a, a[:1]), (a, a, a[:1]), (a[:, None], a[:, None]), (a.sum(), a.sum())]:
        with pytest.raises(ValueError, match=r"expected tensors of one shape \(B,\), found"):
            bradley_terry_loss(*tensors)
    with pytest.raises(ValueError, match="center_coefficient must not be negative"):
        bradley_terry_loss(a, a, None, -0.1)
