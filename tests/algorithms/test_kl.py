"""Divergence estimators by enumerating a small vocabulary; rewards and the controller by hand and against loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, tensor

from pipeline.algorithms.kl import AdaptiveKL, k1, k2, k3, penalised_rewards


def distributions(V: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.log_softmax(torch.randn(V, generator=generator, dtype=torch.float64), -1) for _ in range(2))  # type: ignore[return-value]


def exact_kl(logps: torch.Tensor, ref: torch.Tensor) -> float:
    return sum(math.exp(p) * (p - q) for p, q in zip(logps.tolist(), ref.tolist(), strict=True))


def test_by_hand():
    """pi = 1/2, ref = 1/4: k1 = ln 2 = 0.6931, k3 = 1/2 - 1 + ln 2 = 0.1931. Turned: k1 = -ln 2, k3 = 2 - 1 - ln 2."""
    half, quarter = tensor(math.log(0.5), dtype=torch.float64), tensor(math.log(0.25), dtype=torch.float64)
    assert k1(half, quarter).item() == pytest.approx(math.log(2), abs=1e-15)
    assert k3(half, quarter).item() == pytest.approx(math.log(2) - 0.5, abs=1e-15)
    assert k1(quarter, half).item() == pytest.approx(-math.log(2), abs=1e-15)
    assert k3(quarter, half).item() == pytest.approx(1 - math.log(2), abs=1e-15)


@pytest.mark.parametrize("seed", range(5))
def test_both_are_unbiased(seed):
    """sum_y pi(y) k(y) = KL(pi || ref), exactly (1e-12). Control: k2 = (log ratio)^2 / 2 is biased."""
    logps, ref = distributions(seed=seed)
    truth = exact_kl(logps, ref)
    for estimator in (k1, k3):
        assert (logps.exp() * estimator(logps, ref)).sum().item() == pytest.approx(truth, abs=1e-12)
    assert abs((logps.exp() * k2(logps, ref)).sum().item() - truth) > 1e-3
    reverse = exact_kl(ref, logps)
    assert abs((logps.exp() * k3(ref, logps)).sum().item() - truth) > 1e-3, "control: arguments exchanged"
    assert truth > 0 and reverse > 0


def test_of_sequences_it_is_the_sum_over_tokens():
    """Two tokens, the second depending on the first: E[k1 summed] is the KL of the joint distribution."""
    V = 4
    generator = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.log_softmax(torch.randn(*shape, generator=generator, dtype=torch.float64), -1)  # noqa: E731
    first, second, ref_first, ref_second = draw(V), draw(V, V), draw(V), draw(V, V)
    joint, ref_joint = (first[:, None] + second).flatten(), (ref_first[:, None] + ref_second).flatten()
    per_token = k1(first, ref_first)[:, None] + k1(second, ref_second)
    assert (joint.exp() * per_token.flatten()).sum().item() == pytest.approx(exact_kl(joint, ref_joint), abs=1e-12)


def test_k3_is_never_negative_and_zero_only_at_equality():
    logps, ref = distributions(V=500)
    assert (k3(logps, ref) > 0).all()
    assert (k1(logps, ref) < 0).any(), "control: k1 is negative now and then"
    assert k1(logps, logps).abs().max() == k3(logps, logps).abs().max() == 0.0


@pytest.mark.parametrize("d", [1e-4, 1e-6])
def test_k3_near_equality_in_float32(d):
    """There k3 = d^2 / 2 (relative 1e-3); written with exp instead of expm1 float32 gives 0 or noise."""
    logps, ref = tensor(0.0), tensor(d)
    assert k3(logps, ref).item() == pytest.approx(d * d / 2, rel=1e-2 if d < 1e-5 else 1e-3, abs=1e-11)
    careless = (torch.exp(ref - logps) - 1 - (ref - logps)).item()
    assert abs(careless - d * d / 2) > 0.5 * d * d / 2


def test_k3_has_less_variance_near_the_reference():
    logps, _ = distributions(V=50)
    ref = torch.log_softmax(logps + 0.05 * torch.randn(50, generator=torch.Generator().manual_seed(1)).double(), -1)
    variance = lambda x: ((logps.exp() * x**2).sum() - (logps.exp() * x).sum() ** 2).item()  # noqa: E731
    assert variance(k3(logps, ref)) < 0.1 * variance(k1(logps, ref))


@pytest.mark.parametrize("far", [50.0, 1e4, math.inf])
def test_k3_stays_finite_far_away(far):
    """The log ratio is clamped to 20: at most e^20 - 21 = 4.85e8."""
    at_bound = math.exp(20) - 21
    assert k3(tensor(-far), tensor(0.0)).item() == pytest.approx(at_bound, rel=1e-6)
    assert k3(tensor(0.0), tensor(-far)).item() == pytest.approx(math.exp(-20) - 1 + 20, rel=1e-6)
    assert k3(tensor(-19.0), tensor(0.0)).item() == pytest.approx(math.exp(19) - 20, rel=1e-6)


def test_shape_and_precision_are_the_inputs():
    for dtype in (torch.float64, torch.float32):
        x = torch.zeros(2, 3, dtype=dtype)
        for estimator in (k1, k2, k3):
            assert estimator(x, x - 1).dtype == dtype
            assert estimator(x, x - 1).shape == (2, 3)


def test_k2_by_hand():
    """pi = 1/2, ref = 1/4: (ln 2)^2 / 2 = 0.2402265, and the same the other way round."""
    half, quarter = tensor(math.log(0.5), dtype=torch.float64), tensor(math.log(0.25), dtype=torch.float64)
    assert k2(half, quarter).item() == k2(quarter, half).item() == pytest.approx(0.2402265070, abs=1e-10)
    assert k2(half, half).item() == 0.0


def test_k2_agrees_near_the_reference():
    """Up to the third order in the difference: of 0.001 nats both k2 and k3 are 5.00e-7 (relative 1e-3)."""
    logps, ref = tensor(0.0, dtype=torch.float64), tensor(1e-3, dtype=torch.float64)
    assert k2(logps, ref).item() == pytest.approx(5e-7, rel=1e-12)
    assert k3(logps, ref).item() == pytest.approx(k2(logps, ref).item(), rel=1e-3)


# Rewards


def slow_rewards(
    scores: list[float], logps: list[list[float]], ref: list[list[float]], mask: list[list[bool]], kl_coef: float
) -> list[list[float]]:
    found = []
    for score, row, ref_row, real in zip(scores, logps, ref, mask, strict=True):
        line = [-kl_coef * (a - b) if true else 0.0 for a, b, true in zip(row, ref_row, real, strict=True)]
        for r in reversed(range(len(line))):
            if real[r]:
                line[r] += score
                break
        found.append(line)
    return found


def test_rewards_by_hand():
    """kl_coef 0.1; log-ratios 1, -0.5, 0.2, score 1 on the last true position.

    Row 1: -0.1, 0.05, -0.02 + 1 = 0.98. Row 2 ends after one token: -0.1 + 2 = 1.9. Rows 3 and 4 start late. Row 5 is
    empty.
    """
    logps = tensor([[-1.0, -2.0, -3.0]] * 5, dtype=torch.float64)
    ref = logps - tensor([1.0, -0.5, 0.2], dtype=torch.float64)
    mask = tensor([[True] * 3, [True, False, False], [False, True, True], [False, True, False], [False] * 3])
    found = penalised_rewards(tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=torch.float64), logps, ref, mask, 0.1)
    expected = [[-0.1, 0.05, 0.98], [1.9, 0.0, 0.0], [0.0, 0.05, 2.98], [0.0, 4.05, 0.0], [0.0, 0.0, 0.0]]
    assert torch.allclose(found, tensor(expected, dtype=torch.float64), rtol=0, atol=1e-15)


@given(seed=st.integers(0, 1000), kl_coef=st.sampled_from([0.0, 0.05, 2.0]), rubbish=st.sampled_from([0.0, math.nan]))
@settings(max_examples=40, deadline=None)
def test_rewards_against_a_loop(seed, kl_coef, rubbish):
    """Also: they add up to S - kl_coef (log pi(y|x) - log ref(y|x)) wherever there is a token (1e-12)."""
    scores, logps, ref, mask = random_rewards_case(seed)
    dirty = [x.masked_fill(~mask, rubbish) for x in (logps, ref)]
    found = penalised_rewards(scores, *dirty, mask, kl_coef)
    expected = slow_rewards(scores.tolist(), logps.tolist(), ref.tolist(), mask.tolist(), kl_coef)
    assert torch.allclose(found, tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)
    ratio_B = ((logps - ref) * mask).sum(-1)
    assert torch.allclose(found.sum(-1), (scores - kl_coef * ratio_B) * mask.any(-1), rtol=0, atol=1e-12)


def random_rewards_case(seed: int, B: int = 5, R: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logps, ref = (-torch.rand(B, R, generator=generator, dtype=torch.float64) for _ in range(2))
    lengths = torch.randint(0, R + 1, (B, 1), generator=generator)
    scores = torch.randn(B, generator=generator, dtype=torch.float64)
    return scores, logps, ref, torch.arange(R) < lengths


@pytest.mark.parametrize("rubbish", [math.nan, math.inf, -math.inf])
def test_rewards_ignore_pads_and_the_scores_of_empty_rows(rubbish):
    scores, logps, ref, mask = random_rewards_case(3)
    mask[0] = False
    clean = penalised_rewards(scores, logps, ref, mask, 0.1)
    scores[0] = rubbish
    found = penalised_rewards(scores, logps.masked_fill(~mask, rubbish), ref.masked_fill(~mask, -rubbish), mask, 0.1)
    assert torch.equal(found, clean)
    assert (found[~mask] == 0).all() and found[0].tolist() == [0.0] * 4
    assert penalised_rewards(scores, logps[:, :0], ref[:, :0], mask[:, :0], 0.1).shape == (5, 0)


def test_rewards_carry_no_gradient():
    """The penalty belongs to the reward: through it the policy would be pulled by k1's own gradient as well."""
    scores, logps, ref, mask = random_rewards_case(0)
    assert not penalised_rewards(scores.requires_grad_(), logps.requires_grad_(), ref, mask, 0.1).requires_grad


def test_rewards_are_at_least_float32():
    """A score of 8.0625 and a penalty of 0.001 survive together; bfloat16 has neither."""
    scores, logps, ref, mask = random_rewards_case(0)
    assert penalised_rewards(scores, logps, ref, mask, 0.1).dtype == torch.float64
    low = [x.bfloat16() for x in (scores, logps, ref)]
    found = penalised_rewards(*low, mask, 0.1)
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), penalised_rewards(*(x.double() for x in low), mask, 0.1), atol=1e-6)


def test_rewards_refuse_other_shapes():
    scores, logps, ref, mask = random_rewards_case(0)
    with pytest.raises(ValueError, match=r"\(5, 4\), found ref_logps_BR \(5, 1\)"):
        penalised_rewards(scores, logps, ref[:, :1], mask, 0.1)
    for wrong in (scores[:1], scores[:, None], scores.sum()):
        with pytest.raises(ValueError, match=r"expected scores_B of shape \(5,\), found"):
            penalised_rewards(wrong, logps, ref, mask, 0.1)
    with pytest.raises(TypeError, match="mask must be boolean"):
        penalised_rewards(scores, logps, ref, mask.long(), 0.1)


# The controller


@pytest.mark.parametrize(
    ("kl", "factor"),
    [(6.0, 1.0), (6.6, 1.01), (7.2, 1.02), (60.0, 1.02), (4.8, 0.98), (0.0, 0.98), (-1.0, 0.98), (5.4, 0.99)],
)
def test_controller_by_hand(kl, factor):
    """Target 6, horizon 10000, 1000 episodes: at most -+ 0.2 * 1000 / 10000 = 2 %, reached at -+20 % of the target."""
    controller = AdaptiveKL(init=0.2, target=6.0, horizon=10_000)
    assert controller.coef == 0.2
    assert controller.update(kl, 1000) == controller.coef == pytest.approx(0.2 * factor, rel=1e-12)


def test_controller_settles_at_its_target():
    """On a policy whose KL is 3 / coef^2 the coefficient finds sqrt(3 / 6), from either side."""
    for start in (0.05, 5.0):
        controller = AdaptiveKL(start, target=6.0, horizon=1000)
        for _ in range(2000):
            controller.update(3 / controller.coef**2, 100)
        assert controller.coef == pytest.approx(math.sqrt(0.5), rel=1e-6)


def test_controller_restored_goes_on_as_if_never_stopped():
    first = AdaptiveKL(0.1, 6.0, 1000)
    history = [9.0, 5.9, 2.0, 7.0]
    for kl in history[:2]:
        first.update(kl, 64)
    second = AdaptiveKL(0.1, 6.0, 1000)
    second.coef = first.coef
    for kl in history[2:]:
        assert first.update(kl, 64) == second.update(kl, 64)


def test_controller_refuses_what_would_ruin_it():
    for wrong in ((0.0, 6.0, 100), (0.1, 0.0, 100), (0.1, 6.0, 0), (math.nan, 6.0, 100)):
        with pytest.raises(ValueError, match="must be above 0"):
            AdaptiveKL(*wrong)
    controller = AdaptiveKL(0.1, 6.0, 100)
    with pytest.raises(ValueError, match=r"the KL per response is nan; the coefficient stays at 0\.1"):
        controller.update(math.nan, 10)
    with pytest.raises(ValueError, match="500 episodes in one update need a horizon above 100"):
        controller.update(6.0, 500)
    assert controller.coef == 0.1
