"""Divergence estimators, by enumerating every outcome of a small vocabulary."""

from __future__ import annotations

import math

import pytest
import torch
from torch import tensor

from pipeline.algorithms.kl import k1, k3


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
    assert abs((logps.exp() * (logps - ref) ** 2 / 2).sum().item() - truth) > 1e-3
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
        for estimator in (k1, k3):
            assert estimator(x, x - 1).dtype == dtype
            assert estimator(x, x - 1).shape == (2, 3)
