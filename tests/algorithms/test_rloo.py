"""Leave-one-out baselines: by hand, against slow sums, as values of advantages, and the gradient that they leave."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import tensor

from pipeline.algorithms.gae import gae
from pipeline.algorithms.rloo import leave_one_out

LOGITS = tensor([0.3, -0.5, 1.1], dtype=torch.float64)
WORTH = tensor([1.0, 4.0, -2.0], dtype=torch.float64)
"""A policy over three answers, and what each is worth."""


def slow(returns: list[float], samples: int) -> list[float]:
    found = []
    for i in range(len(returns)):
        others = [returns[j] for j in range(len(returns)) if j // samples == i // samples and j != i]
        found.append(sum(others) / len(others))
    return found


def test_by_hand():
    """Of 1, 2, 6: (2 + 6) / 2, (1 + 6) / 2, (1 + 2) / 2; of 10, 10, 40 next to them 25, 25, 10."""
    found = leave_one_out(tensor([1.0, 2.0, 6.0, 10.0, 10.0, 40.0], dtype=torch.float64), 3)
    assert found.tolist() == [4.0, 3.5, 1.5, 25.0, 25.0, 10.0]


def test_of_two_each_is_the_others():
    assert leave_one_out(tensor([1.0, 5.0]), 2).tolist() == [5.0, 1.0]


@given(seed=st.integers(0, 1000), prompts=st.integers(1, 5), samples=st.integers(2, 6))
@settings(max_examples=40, deadline=None)
def test_against_the_slow_sums(seed, prompts, samples):
    """And what is left of a prompt's returns sums to 0, k / (k - 1) times what their mean leaves (1e-12)."""
    draw = torch.Generator().manual_seed(seed)
    returns = torch.randn(prompts * samples, generator=draw, dtype=torch.float64)
    found = leave_one_out(returns, samples)
    assert torch.allclose(found, tensor(slow(returns.tolist(), samples), dtype=torch.float64), atol=1e-12)
    left = (returns - found).reshape(prompts, samples)
    assert float(left.sum(1).abs().max()) < 1e-12
    grouped = returns.reshape(prompts, samples)
    assert torch.allclose(left, samples / (samples - 1) * (grouped - grouped.mean(1, keepdim=True)), atol=1e-12)


def test_as_values_they_leave_what_is_still_to_come_less_the_baseline():
    """Through `gae` with gamma = lam = 1; every row has padding, one behind a single token."""
    draw = torch.Generator().manual_seed(3)
    mask = torch.arange(6) < tensor([5, 1, 3, 4])[:, None]
    rewards = torch.where(mask, torch.randn(4, 6, generator=draw, dtype=torch.float64), 0.0)
    baselines = leave_one_out(rewards.sum(-1), 2)
    found = gae(rewards, baselines[:, None].expand_as(rewards), mask, gamma=1.0, lam=1.0)
    for row, length in enumerate((5, 1, 3, 4)):
        for t in range(length):
            still = float(rewards[row, t:].sum())
            assert float(found.advantages_BR[row, t]) == pytest.approx(still - float(baselines[row]), abs=1e-12)
            assert float(found.returns_BR[row, t]) == pytest.approx(still, abs=1e-12)
    assert not found.advantages_BR[~mask].any()


def expected_gradient(baseline: str, samples: int = 2) -> torch.Tensor:
    """Mean over all draws of `samples` answers of (R_i - b_i) grad log pi, counted out, by their probability."""
    logits = LOGITS.clone().requires_grad_()
    logps = torch.log_softmax(logits, -1)
    total = torch.zeros(())
    for drawn in itertools.product(range(3), repeat=samples):
        returns = WORTH[list(drawn)]
        left_out = {"others": leave_one_out(returns, samples), "all": returns.mean(), "none": torch.zeros(samples)}
        chance = logps[list(drawn)].sum().detach().exp()
        total = total + chance * ((returns - left_out[baseline]) * logps[list(drawn)]).mean()
    return torch.autograd.grad(total, logits)[0]


def test_the_gradient_expected_is_that_of_the_mean_return():
    """Exactly, for any number of answers. Control: a baseline that an answer is part of shrinks it to (k - 1) / k."""
    logits = LOGITS.clone().requires_grad_()
    (true,) = torch.autograd.grad((torch.softmax(logits, -1) * WORTH).sum(), logits)
    for samples in (2, 3, 4):
        assert torch.allclose(expected_gradient("others", samples), true, atol=1e-12)
        assert torch.allclose(expected_gradient("all", samples), (samples - 1) / samples * true, atol=1e-12)
    assert torch.allclose(expected_gradient("none"), true, atol=1e-12)


def test_no_gradient_and_no_lower_precision():
    returns = tensor([1.0, 2.0], dtype=torch.bfloat16, requires_grad=True)
    found = leave_one_out(returns, 2)
    assert not found.requires_grad and found.dtype == torch.float32


@pytest.mark.parametrize(("shape", "samples"), [((4,), 1), ((5,), 2), ((2, 2), 2), ((4,), 0)])
def test_what_is_not_whole_groups_is_refused(shape, samples):
    with pytest.raises(ValueError, match=f"expected whole groups of {samples} >= 2 returns, found shape"):
        leave_one_out(torch.zeros(shape), samples)
