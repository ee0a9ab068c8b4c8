"""Advantages and returns: by hand, against the sum they stand for, and at the ends of lambda."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, tensor

from pipeline.algorithms.gae import gae


def slow_gae(
    rewards: list[list[float]], values: list[list[float]], mask: list[list[bool]], gamma: float, lam: float
) -> list[list[float]]:
    """A_t = sum over l >= 0 of (gamma lam)^l delta_(t+l), each response cut out of its padding."""
    found = []
    for reward_row, value_row, real in zip(rewards, values, mask, strict=True):
        r = [x for x, true in zip(reward_row, real, strict=True) if true]
        V = [x for x, true in zip(value_row, real, strict=True) if true] + [0.0]
        delta = [r[t] + gamma * V[t + 1] - V[t] for t in range(len(r))]
        cut = iter([sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, len(r))) for t in range(len(r))])
        found.append([next(cut) if true else 0.0 for true in real])
    return found


def random_case(seed: int = 0, B: int = 6, R: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards, values and a mask: rows that fill it, one empty, one of a single token, one that starts late."""
    generator = torch.Generator().manual_seed(seed)
    rewards, values = (torch.randn(B, R, generator=generator, dtype=torch.float64) for _ in range(2))
    starts = tensor([0, 0, 0, 3, 0, 2])[:, None]
    ends = tensor([R, 0, 1, R, 4, 5])[:, None]
    return rewards, values, (torch.arange(R) >= starts) & (torch.arange(R) < ends)


def test_by_hand():
    """KL rewards -.1, .05, -.02, score 1 on the last; V .3, .4, .2; gamma 1, lambda .95.

    delta = -.1 + .4 - .3 = 0; .05 + .2 - .4 = -.15; .98 - .2 = .78.
    A3 = .78; A2 = -.15 + .95 * .78 = .591; A1 = 0 + .95 * .591 = .56145. Returns: .86145, .991, .98.
    """
    rewards, values = (tensor([v], dtype=torch.float64) for v in ([-0.1, 0.05, 0.98], [0.3, 0.4, 0.2]))
    mask = torch.ones(1, 3, dtype=torch.bool)
    advantages, returns = gae(rewards, values, mask)
    assert advantages[0].tolist() == pytest.approx([0.56145, 0.591, 0.78], abs=1e-15)
    assert returns[0].tolist() == pytest.approx([0.86145, 0.991, 0.98], abs=1e-15)


def test_the_score_one_place_later_is_another_convention():
    """Control: on the first pad, with a learned V_end = .7 before it, the same case gives .5479, .5767, .7650."""
    rewards, values = (tensor([v], dtype=torch.float64) for v in ([-0.1, 0.05, -0.02, 1.0], [0.3, 0.4, 0.2, 0.7]))
    found = gae(rewards, values, torch.ones(1, 4, dtype=torch.bool)).advantages_BR
    assert found[0, :3].tolist() == pytest.approx([0.5479125, 0.57675, 0.765], abs=1e-12)


def test_by_hand_with_discount():
    """gamma .5, lambda .5: delta = 1 + .5 * 2 - 4 = -2 and 6 - 2 = 4; A = -2 + .25 * 4 = -1 and 4."""
    rewards, values = (tensor([v], dtype=torch.float64) for v in ([1.0, 6.0], [4.0, 2.0]))
    advantages, returns = gae(rewards, values, torch.ones(1, 2, dtype=torch.bool), gamma=0.5, lam=0.5)
    assert advantages.tolist() == [[-1.0, 4.0]]
    assert returns.tolist() == [[3.0, 6.0]]


@given(seed=st.integers(0, 1000), gamma=st.sampled_from([0.0, 0.9, 1.0]), lam=st.sampled_from([0.0, 0.5, 0.95, 1.0]))
@settings(max_examples=40, deadline=None)
def test_against_the_sum(seed, gamma, lam):
    """The O(n^2) sum over each response by itself (1e-12)."""
    rewards, values, mask = random_case(seed)
    found = gae(rewards, values, mask, gamma, lam).advantages_BR
    expected = slow_gae(rewards.tolist(), values.tolist(), mask.tolist(), gamma, lam)
    assert torch.allclose(found, tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


def test_lambda_one_is_the_return_minus_the_value():
    rewards, values, mask = random_case()
    advantages, returns = gae(rewards, values, mask, lam=1.0)
    to_go = (rewards * mask).flip(-1).cumsum(-1).flip(-1) * mask
    assert torch.allclose(advantages, to_go - values * mask, rtol=0, atol=1e-12)
    assert torch.allclose(returns, to_go, rtol=0, atol=1e-12)


def test_lambda_zero_is_one_step():
    """r + V' - V, where V' beyond the last token is 0 and not what the padding holds."""
    rewards, values, mask = random_case()
    following = torch.nn.functional.pad((values * mask)[:, 1:], (0, 1))
    found = gae(rewards, values, mask, lam=0.0).advantages_BR
    assert torch.allclose(found, (rewards + following - values) * mask, rtol=0, atol=1e-15)
    leaking = torch.nn.functional.pad(values[:, 1:], (0, 1))
    assert (found - (rewards + leaking - values) * mask).abs().max() > 0.1


def test_returns_are_advantages_plus_values_exactly():
    rewards, values, mask = random_case()
    advantages, returns = gae(rewards, values, mask)
    assert torch.equal(returns, torch.where(mask, advantages + values, 0.0))


@pytest.mark.parametrize("rubbish", [math.nan, math.inf, -math.inf, 1e300])
def test_padding_never_matters(rubbish):
    """Exactly 0 there, and the same numbers elsewhere, with more of it on either side."""
    rewards, values, mask = random_case()
    clean = gae(rewards, values, mask)
    dirty = gae(rewards.masked_fill(~mask, rubbish), values.masked_fill(~mask, -rubbish), mask)
    for a, b in zip(clean, dirty, strict=True):
        assert torch.equal(a, b)
        assert (b[~mask] == 0).all()
    wide = [torch.nn.functional.pad(x, (3, 2), value=rubbish) for x in (rewards, values)]
    wider = gae(*wide, torch.nn.functional.pad(mask, (3, 2), value=False))
    for a, b in zip(clean, wider, strict=True):
        assert torch.equal(a, b[:, 3:-2])


def test_rows_do_not_see_one_another():
    rewards, values, mask = random_case()
    together = gae(rewards, values, mask)
    for i in range(len(mask)):
        alone = gae(rewards[i : i + 1], values[i : i + 1], mask[i : i + 1])
        assert torch.equal(alone.advantages_BR[0], together.advantages_BR[i])


def test_no_gradient_reaches_the_values():
    rewards, values, mask = random_case()
    found = gae(rewards.requires_grad_(), values.requires_grad_(), mask)
    assert not found.advantages_BR.requires_grad and not found.returns_BR.requires_grad


@pytest.mark.parametrize(
    ("given_dtype", "expected"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
)
def test_precision(given_dtype, expected):
    """400 rewards of 0.01 add to 4 (1e-4 once 0.01 is rounded); summed in bfloat16 they would stick at 2."""
    rewards = torch.full((1, 400), 0.01, dtype=given_dtype)
    mask = torch.ones(1, 400, dtype=torch.bool)
    found = gae(rewards, torch.zeros_like(rewards), mask, lam=1.0)
    assert found.advantages_BR.dtype == found.returns_BR.dtype == expected
    assert found.returns_BR[0, 0].item() == pytest.approx(400 * rewards[0, 0].item(), rel=1e-5)
    mixed = gae(rewards.double(), torch.zeros(1, 400), mask)
    assert mixed.advantages_BR.dtype == torch.float64


def test_nothing_gives_nothing():
    assert gae(torch.zeros(2, 0), torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.bool)).returns_BR.shape == (2, 0)
    assert gae(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.bool)).returns_BR.shape == (0, 3)


def test_refusals():
    rewards, values, mask = random_case()
    with pytest.raises(ValueError, match=r"\(6, 7\), found values_BR \(6, 1\)"):
        gae(rewards, values[:, :1], mask)
    with pytest.raises(ValueError, match=r"found rewards_BR \(7,\), values_BR \(7,\)"):
        gae(rewards[0], values[0], mask)
    with pytest.raises(TypeError, match=r"mask must be boolean, found torch\.float64"):
        gae(rewards, values, mask.double())
    for gamma, lam in [(1.1, 0.95), (1.0, -0.1), (math.nan, 0.95)]:
        with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
            gae(rewards, values, mask, gamma, lam)
