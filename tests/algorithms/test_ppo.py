"""PPO's losses and diagnostics: by hand, against plain loops, where gradients must vanish, and how batches split."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, tensor

from pipeline.algorithms.masked import AGGREGATIONS, aggregate
from pipeline.algorithms.ppo import (
    PolicyDiagnostics,
    effective_sample_size,
    explained_variance,
    importance_weights,
    policy_loss,
    value_loss,
)

RUBBISH = (math.nan, math.inf, -math.inf, 1e38)


def random_policy_case(seed: int = 0, spread: float = 0.4) -> dict[str, Tensor]:
    """Six responses of 8, 1, 5, 0, 8 and 2 tokens, double precision."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: torch.randn(6, 8, generator=generator, dtype=torch.float64)  # noqa: E731
    logps = -draw().abs()
    return {
        "logps_BR": logps,
        "old_logps_BR": logps + spread * draw(),
        "advantages_BR": draw(),
        "mask_BR": torch.arange(8) < tensor([8, 1, 5, 0, 8, 2])[:, None],
    }


def one_token(rho: float, A: float) -> dict[str, Tensor]:
    """A single token whose ratio is rho."""
    return {
        "logps_BR": tensor([[math.log(rho) - 2.0]], dtype=torch.float64, requires_grad=True),
        "old_logps_BR": tensor([[-2.0]], dtype=torch.float64),
        "advantages_BR": tensor([[A]], dtype=torch.float64),
        "mask_BR": tensor([[True]]),
    }


def slow_policy_loss(
    case: dict[str, Tensor], low: float, high: float, dual: float | None
) -> tuple[float, dict[str, float]]:
    """Sum over tokens divided by their number, and the diagnostics, one token at a time."""
    logps, old, advantages, mask = (x.tolist() for x in case.values())
    names = [name for name in PolicyDiagnostics._fields if name not in ("ratio_max", "ratio_maxdev")]
    total, sums, ratios = 0.0, dict.fromkeys(names, 0.0), [0.0]
    for b, r in ((b, r) for b, row in enumerate(mask) for r, true in enumerate(row) if true):
        d, A = logps[b][r] - old[b][r], advantages[b][r]
        rho = math.exp(d)
        loss = max(-A * rho, -A * min(max(rho, 1 - low), 1 + high))
        if dual is not None and A < 0:
            loss = min(loss, -dual * A)
        total += loss
        seen = {
            "tokens": 1, "ratio_mean": rho, "ratio_msd": (rho - 1) ** 2,
            "approx_kl_k2": d * d / 2, "approx_kl_k3": rho - 1 - d,
            "clipfrac_high": A > 0 and rho > 1 + high, "clipfrac_low": A < 0 and rho < 1 - low,
            "clipfrac_dual": dual is not None and A < 0 and rho > dual,
        }  # fmt: skip
        sums = {name: sums[name] + seen[name] for name in names}
        ratios.append(rho)
    n = max(sums["tokens"], 1)
    means = {name: value / n for name, value in sums.items()} | {"tokens": sums["tokens"]}
    extremes = {"ratio_max": max(ratios), "ratio_maxdev": max([abs(x - 1) for x in ratios[1:]], default=0.0)}
    return total / n, means | extremes


# Policy: value


def test_policy_loss_by_hand():
    """Ratios 2, 1/2 and 1 with A 1, -1 and 3, clip .2: max(-2, -1.2) = -1.2; max(.5, .8) = .8; -3.

    Mean -3.4 / 3 = -1.1333. One token of three clipped on each side; log-ratios ln 2, -ln 2, 0: k2 = .4804530 / 3 =
    .1601510, k3 = (2 - 1 - .6931472 + .5 - 1 + .6931472) / 3 = .1666667; ratios 3.5 / 3, (1 + .25) / 3
    squared from 1, at most 2, 1 from 1.
    """
    d = math.log(2)
    case = {
        "logps_BR": tensor([[d, -d], [0.0, 9.0]], dtype=torch.float64),
        "old_logps_BR": torch.zeros(2, 2, dtype=torch.float64),
        "advantages_BR": tensor([[1.0, -1.0], [3.0, 9.0]], dtype=torch.float64),
        "mask_BR": tensor([[True, True], [True, False]]),
    }
    loss, found = policy_loss(**case)
    assert loss.item() == pytest.approx(-3.4 / 3, abs=1e-12)
    expected = PolicyDiagnostics(3, 1 / 3, 1 / 3, 0, 0.4804530139 / 3, 0.5 / 3, 3.5 / 3, 1.25 / 3, 2.0, 1.0)  # type: ignore[arg-type]
    assert [x.item() for x in found] == pytest.approx(list(expected), abs=1e-7)
    assert policy_loss(**case, denominator=34.0)[0].item() == pytest.approx(-0.1, abs=1e-12)


@given(
    seed=st.integers(0, 1000),
    bounds=st.sampled_from([(0.2, 0.2), (0.2, 0.28), (0.0, 0.0), (1.0, 3.0)]),
    dual=st.sampled_from([None, 1.5, 3.0]),
    spread=st.sampled_from([0.0, 0.4, 2.0]),
)
@settings(max_examples=60, deadline=None)
def test_policy_loss_against_a_loop(seed, bounds, dual, spread):
    """Loss (1e-12) and every diagnostic (shares are float32: 1e-6)."""
    case = random_policy_case(seed, spread)
    loss, found = policy_loss(**case, clip_low=bounds[0], clip_high=bounds[1], dual_clip=dual)
    expected, diagnostics = slow_policy_loss(case, *bounds, dual)
    assert loss.item() == pytest.approx(expected, abs=1e-12)
    assert {name: x.item() for name, x in found._asdict().items()} == pytest.approx(diagnostics, abs=1e-6)


# Policy: gradient


@pytest.mark.parametrize("A", [2.0, -2.0])
@pytest.mark.parametrize("dual", [None, 3.0])
@pytest.mark.parametrize(
    ("rho", "where"), [(0.5, "below"), (0.79, "below"), (0.81, "in"), (1.0, "in"), (1.27, "in"), (1.29, "above"),
                       (2.9, "above"), (3.1, "beyond")],
)  # fmt: skip
def test_clip_table(A, dual, rho, where):
    """clip .2 below, .28 above, dual 3: the gradient is -A rho, or exactly 0 where the clipped branch is active.

    That is above with A > 0, below with A < 0, and beyond the dual clip with A < 0; never on the other side.
    """
    case = one_token(rho, A)
    loss, found = policy_loss(**case, clip_low=0.2, clip_high=0.28, dual_clip=dual)
    (gradient,) = torch.autograd.grad(loss, case["logps_BR"])
    if A > 0 and where in ("above", "beyond"):
        value, flat, active = -A * 1.28, True, "clipfrac_high"
    elif A < 0 and where == "below":
        value, flat, active = -A * 0.8, True, "clipfrac_low"
    elif A < 0 and where == "beyond" and dual:
        value, flat, active = -A * 3.0, True, "clipfrac_dual"
    else:
        value, flat, active = -A * rho, False, None
    assert loss.item() == pytest.approx(value, rel=1e-12)
    if flat:
        assert gradient.item() == 0.0
    else:
        assert gradient.item() == pytest.approx(-A * rho, rel=1e-12)
    for name in ("clipfrac_high", "clipfrac_low", "clipfrac_dual"):
        assert getattr(found, name).item() == (1.0 if name == active else 0.0)


def test_each_bound_acts_on_its_own_side_only():
    case = random_policy_case(spread=1.0)
    positive, negative = ({**case, "advantages_BR": s * case["advantages_BR"].abs()} for s in (1, -1))
    loss = lambda given, **bounds: policy_loss(**given, **bounds)[0].item()  # noqa: E731
    assert loss(positive, clip_high=0.5) != loss(positive) == loss(positive, clip_low=0.5)
    assert loss(negative, clip_low=0.5) != loss(negative) == loss(negative, clip_high=0.5)
    assert loss(negative, dual_clip=1.3) < loss(negative)
    assert loss(positive, dual_clip=1.3) == loss(positive)


@pytest.mark.parametrize("mode", AGGREGATIONS)
def test_at_the_old_policy_it_is_the_policy_gradient(mode):
    """rho = 1: the loss is minus the aggregated advantages, the gradient that of -sum A log pi, as REINFORCE has it."""
    case = random_policy_case()
    logps = case["logps_BR"].clone().requires_grad_()
    given = {**case, "logps_BR": logps, "old_logps_BR": logps.detach()}
    loss, found = policy_loss(**given, aggregation=mode)
    reinforce = aggregate(-case["advantages_BR"] * logps, case["mask_BR"], mode)
    assert loss.item() == pytest.approx(aggregate(-case["advantages_BR"], case["mask_BR"], mode).item(), abs=1e-14)
    ours, theirs = (torch.autograd.grad(x, logps)[0] for x in (loss, reinforce))
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-15)
    assert found.ratio_maxdev.item() == found.approx_kl_k2.item() == found.approx_kl_k3.item() == 0.0
    assert found.ratio_max.item() == found.ratio_mean.item() == 1.0
    assert [found.clipfrac_high.item(), found.clipfrac_low.item(), found.clipfrac_dual.item()] == [0.0] * 3


def test_only_the_new_log_probabilities_get_a_gradient():
    case = random_policy_case()
    for name in ("logps_BR", "old_logps_BR", "advantages_BR"):
        case[name].requires_grad_()
    weights = torch.full((6, 8), 0.5, requires_grad=True)
    loss, found = policy_loss(**case, weights_BR=weights)
    loss.backward()
    assert case["logps_BR"].grad is not None and case["logps_BR"].grad.abs().max() > 0
    assert case["old_logps_BR"].grad is case["advantages_BR"].grad is weights.grad is None
    assert not any(x.requires_grad for x in found) and {x.shape for x in found} == {()}


# Policy: masks and reduction


@pytest.mark.parametrize("rubbish", RUBBISH)
@pytest.mark.parametrize("mode", AGGREGATIONS)
def test_pads_change_nothing(rubbish, mode):
    """Loss, diagnostics and gradients are the same to the bit, and exactly 0 on pads."""
    case, results = random_policy_case(), []
    weights = torch.rand(6, 8, generator=torch.Generator().manual_seed(0))
    for fill in (0.0, rubbish):
        given = {n: x.masked_fill(~case["mask_BR"], fill) for n, x in case.items() if n != "mask_BR"}
        logps = given["logps_BR"].requires_grad_()
        filled = weights.masked_fill(~case["mask_BR"], fill)
        loss, found = policy_loss(**given, mask_BR=case["mask_BR"], dual_clip=1.5, weights_BR=filled, aggregation=mode)
        results.append((loss, *found, *torch.autograd.grad(loss, logps)))
    for clean, dirty in zip(*results, strict=True):
        assert torch.equal(clean, dirty)
    assert (results[1][-1][~case["mask_BR"]] == 0).all() and torch.isfinite(results[1][-1]).all()


def test_an_empty_batch_is_zero():
    logps = torch.full((2, 3), math.nan, requires_grad=True)
    none = torch.zeros(2, 3, dtype=torch.bool)
    loss, found = policy_loss(logps, logps, logps, none)
    loss.backward()
    assert [loss.item(), *(x.item() for x in found)] == [0.0] * 11
    assert logps.grad is not None and logps.grad.tolist() == [[0.0] * 3] * 2
    values = torch.full((2, 3), math.nan, requires_grad=True)
    loss, record = value_loss(values, values, values, none, 0.2)
    loss.backward()
    assert [loss.item(), *(x.item() for x in record)] == [0.0] * 3
    assert values.grad is not None and values.grad.tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("split", [(3, 3), (1, 5), (1,) * 6])
@pytest.mark.parametrize("mode", AGGREGATIONS)
def test_micro_batches_add_up(mode, split):
    """Gradient of the sum over micro-batches under the whole's count is that of the whole (1e-15).

    Control: the mean of means over the same micro-batches differs by more than 1e-3 in the modes whose count is not
    the number of responses, and in all of them on uneven splits.
    """
    case = random_policy_case()
    B, R = case["mask_BR"].shape
    tokens = int(case["mask_BR"].sum())
    count = {"token_mean": tokens, "sequence_mean": B, "sequence_sum": B, "constant": B * R}[mode]

    def gradient(parts: tuple[int, ...], denominator: float | None) -> Tensor:
        leaf = case["logps_BR"].clone().requires_grad_()
        pieces = zip(*(x.split(parts) for x in ({**case, "logps_BR": leaf}).values()), strict=True)
        losses = [policy_loss(*piece, denominator=denominator, aggregation=mode)[0] for piece in pieces]
        total = sum(losses[1:], losses[0]) if denominator else torch.stack(losses).mean()
        return torch.autograd.grad(total, leaf)[0]

    whole = gradient((B,), None)
    assert torch.allclose(gradient(split, count), whole, rtol=0, atol=1e-15)
    if mode == "token_mean" or split == (1, 5):
        assert (gradient(split, None) - whole).abs().max() > 1e-3


def test_diagnostics_of_micro_batches_weighted_by_tokens_are_those_of_the_whole():
    """Control: unweighted they are not."""
    case = random_policy_case()
    whole = policy_loss(**case)[1]
    pieces = list(zip(*(x.split(1) for x in case.values()), strict=True))
    parts = [policy_loss(*piece)[1] for piece in pieces]
    tokens = torch.stack([part.tokens for part in parts])
    assert tokens.tolist() == [8, 1, 5, 0, 8, 2]
    for name in ("clipfrac_high", "clipfrac_low", "approx_kl_k2", "approx_kl_k3", "ratio_mean", "ratio_msd"):
        values = torch.stack([getattr(part, name) for part in parts])
        assert (values * tokens).sum().item() / 24 == pytest.approx(getattr(whole, name).item(), abs=1e-6)
        assert abs(values.mean().item() - getattr(whole, name).item()) > 1e-3
    for name in ("ratio_max", "ratio_maxdev"):
        assert max(getattr(part, name).item() for part in parts) == getattr(whole, name).item()


def test_weights_multiply_each_token():
    """All ones change nothing; doubling doubles; a single zero removes that token from the sum, not from the count."""
    case = random_policy_case()
    plain = policy_loss(**case)[0].item()
    ones = torch.ones(6, 8, dtype=torch.float64)
    assert policy_loss(**case, weights_BR=ones)[0].item() == plain
    assert policy_loss(**case, weights_BR=2 * ones)[0].item() == pytest.approx(2 * plain, abs=1e-15)
    without = ones.clone()
    without[1, 0] = 0.0
    case["mask_BR"][1, 0] = False
    expected = policy_loss(**case)[0].item() * 23 / 24
    case["mask_BR"][1, 0] = True
    assert policy_loss(**case, weights_BR=without)[0].item() == pytest.approx(expected, abs=1e-15)


# Policy: numerics


def test_extreme_ratios_are_finite():
    """Log-ratios of +-1000 and an impossible token: clamped at 20, finite loss and gradient."""
    for d in (1000.0, -1000.0, -math.inf):
        for A in (1.0, -1.0):
            logps = tensor([[d]], requires_grad=True)
            loss, found = policy_loss(logps, torch.zeros(1, 1), tensor([[A]]), tensor([[True]]))
            loss.backward()
            assert math.isfinite(loss.item()) and logps.grad is not None and math.isfinite(logps.grad.item())
            assert found.ratio_max.item() == pytest.approx(math.exp(math.copysign(20, d)), rel=1e-5)


def test_a_true_nan_is_not_hidden():
    case = random_policy_case()
    case["logps_BR"][0, 0] = math.nan
    loss, found = policy_loss(**case)
    assert math.isnan(loss.item()) and math.isnan(found.ratio_maxdev.item()) and math.isnan(found.approx_kl_k3.item())


@pytest.mark.parametrize(
    ("given_dtype", "expected"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
)
def test_precision(given_dtype, expected):
    case = {n: x.to(given_dtype) if x.is_floating_point() else x for n, x in random_policy_case().items()}
    exact = {n: x.double() if x.is_floating_point() else x for n, x in case.items()}
    loss, found = policy_loss(**case)
    assert loss.dtype == found.ratio_mean.dtype == expected
    assert loss.item() == pytest.approx(policy_loss(**exact)[0].item(), abs=1e-6)
    loss, _ = value_loss(case["logps_BR"], case["old_logps_BR"], case["advantages_BR"], case["mask_BR"], 0.2)
    twin, _ = value_loss(exact["logps_BR"], exact["old_logps_BR"], exact["advantages_BR"], exact["mask_BR"], 0.2)
    assert loss.dtype == expected and loss.item() == pytest.approx(twin.item(), abs=1e-6)


def test_policy_refusals():
    case = random_policy_case()
    for name in ("old_logps_BR", "advantages_BR"):
        with pytest.raises(ValueError, match=rf"expected the shape of mask_BR, \(6, 8\), found {name} \(6, 1\)"):
            policy_loss(**{**case, name: case[name][:, :1]})
    with pytest.raises(ValueError, match=r"found weights_BR \(8,\)"):
        policy_loss(**case, weights_BR=torch.ones(8))
    with pytest.raises(TypeError, match=r"mask must be boolean, found torch\.float32"):
        policy_loss(**{**case, "mask_BR": case["mask_BR"].float()})
    with pytest.raises(ValueError, match=r"expected a mask of shape \(B, R\), found \(8,\)"):
        policy_loss(*(x[0] for x in case.values()))
    for bounds in ({"clip_low": -0.1}, {"clip_low": 1.1}, {"clip_high": -0.1}):
        with pytest.raises(ValueError, match=r"expected clip_low in \[0, 1\] and clip_high >= 0"):
            policy_loss(**case, **bounds)
    with pytest.raises(ValueError, match="dual_clip must be above 1, found 1"):
        policy_loss(**case, dual_clip=1.0)
    with pytest.raises(ValueError, match="unknown aggregation"):
        policy_loss(**case, aggregation="mean")


# Value


def test_value_loss_by_hand():
    """V 1, 2 against returns 3, 2.5: (4 + .25) / 2 / 2 = 1.0625.

    V_old 0, 2 and range .5: the first V counts as .5, (2.5)^2 = 6.25 > 4 is active; the second is inside: (6.25 + .25)
    / 4 = 1.625, half of the tokens clipped.
    """
    V, old, returns = (tensor([x], dtype=torch.float64) for x in ([1.0, 2.0, 9.0], [0.0, 2.0, 9.0], [3.0, 2.5, -9.0]))
    mask = tensor([[True, True, False]])
    loss, found = value_loss(V, old, returns, mask)
    assert (loss.item(), found.clipfrac.item(), found.tokens.item()) == (1.0625, 0.0, 2)
    loss, found = value_loss(V, old, returns, mask, clip_range=0.5)
    assert (loss.item(), found.clipfrac.item()) == (1.625, 0.5)
    assert value_loss(V, old, returns, mask, 0.5, denominator=13.0)[0].item() == pytest.approx(0.25, abs=1e-15)


@given(seed=st.integers(0, 1000), clip_range=st.sampled_from([None, 0.05, 0.5, 100.0]))
@settings(max_examples=40, deadline=None)
def test_value_loss_against_a_loop(seed, clip_range):
    V, old, returns, mask = random_policy_case(seed).values()
    total, clipped, tokens = 0.0, 0, 0
    for v, o, g, true in zip(*(x.flatten().tolist() for x in (V, old, returns, mask)), strict=True):
        if true:
            near = v if clip_range is None else min(max(v, o - clip_range), o + clip_range)
            total += 0.5 * max((v - g) ** 2, (near - g) ** 2)
            clipped += (near - g) ** 2 > (v - g) ** 2
            tokens += 1
    loss, found = value_loss(V, old, returns, mask, clip_range)
    assert loss.item() == pytest.approx(total / tokens, abs=1e-12)
    assert found.clipfrac.item() == pytest.approx(clipped / tokens, abs=1e-6)


@pytest.mark.parametrize(
    ("V", "returns", "gradient"),
    [(1.0, 3.0, 0.0), (0.4, 3.0, -2.6), (-1.0, 3.0, -4.0), (1.0, -3.0, 4.0), (0.0, 0.0, 0.0)],
)
def test_value_gradients(V, returns, gradient):
    """V_old 0, range .5: V - Ret, or exactly 0 where V left the range towards the return, as far as it may go."""
    values = tensor([[V]], dtype=torch.float64, requires_grad=True)
    loss, found = value_loss(values, torch.zeros(1, 1), tensor([[returns]], dtype=torch.float64), tensor([[True]]), 0.5)
    assert torch.autograd.grad(loss, values)[0].item() == pytest.approx(gradient, abs=1e-15)
    assert found.clipfrac.item() == (1.0 if (V, returns) == (1.0, 3.0) else 0.0)


def test_value_clipping_only_ever_raises_the_loss():
    V, old, returns, mask = random_policy_case(spread=1.0).values()
    plain = value_loss(V, old, returns, mask)[0].item()
    assert value_loss(V, old, returns, mask, 0.1)[0].item() > plain
    wide = value_loss(V, old, returns, mask, (V - old).abs().max().item() * 1.001)
    assert wide[0].item() == plain and wide[1].clipfrac.item() == 0.0


@pytest.mark.parametrize("rubbish", RUBBISH)
@pytest.mark.parametrize("clip_range", [None, 0.2])
def test_pads_change_no_value_loss(rubbish, clip_range):
    V, old, returns, mask = random_policy_case().values()
    results = []
    for fill in (0.0, rubbish):
        leaf = V.masked_fill(~mask, fill).requires_grad_()
        rest = (old.masked_fill(~mask, -fill), returns.masked_fill(~mask, fill))
        loss, found = value_loss(leaf, *rest, mask, clip_range)
        results.append((loss, *found, *torch.autograd.grad(loss, leaf)))
    for clean, dirty in zip(*results, strict=True):
        assert torch.equal(clean, dirty)
    assert (results[1][-1][~mask] == 0).all()


def test_value_micro_batches_add_up():
    V, old, returns, mask = random_policy_case().values()
    pieces = list(zip(*(x.split((1, 5)) for x in (V, old, returns, mask)), strict=True))
    whole = value_loss(V, old, returns, mask, 0.2)[0].item()
    assert sum(value_loss(*p, 0.2, denominator=24)[0].item() for p in pieces) == pytest.approx(whole, abs=1e-14)
    assert abs(sum(value_loss(*p, 0.2)[0].item() for p in pieces) / 2 - whole) > 1e-3, "control: mean of means"


def test_only_the_new_values_get_a_gradient():
    V, old, returns, mask = random_policy_case().values()
    leaves = [x.clone().requires_grad_() for x in (V, old, returns)]
    value_loss(*leaves, mask, 0.2)[0].backward()
    assert leaves[0].grad is not None and leaves[1].grad is leaves[2].grad is None


def test_value_refusals():
    V, old, returns, mask = random_policy_case().values()
    with pytest.raises(ValueError, match=r"\(6, 8\), found old_values_BR \(6, 1\)"):
        value_loss(V, old[:, :1], returns, mask)
    with pytest.raises(TypeError, match="mask must be boolean"):
        value_loss(V, old, returns, mask.long())
    for wrong in (0.0, -0.2):
        with pytest.raises(ValueError, match="clip_range must be above 0 or None"):
            value_loss(V, old, returns, mask, wrong)


# Importance weights


def test_importance_weights_by_hand():
    """pi / mu of 1/2, 1, 4 and e^1000 under a cap of 2: .5, 1, 2, 2; the pad 0. ESS = 5.5^2 / (4 * 9.25) = .8175676."""
    old = tensor([[math.log(0.5), 0.0, math.log(4), 1000.0, math.nan]], dtype=torch.float64, requires_grad=True)
    mask = tensor([[True, True, True, True, False]])
    weights = importance_weights(old, torch.zeros_like(old), mask, cap=2.0)
    assert weights[0].tolist() == pytest.approx([0.5, 1.0, 2.0, 2.0, 0.0], abs=1e-12)
    assert not weights.requires_grad
    assert effective_sample_size(weights, mask).item() == pytest.approx(5.5**2 / (4 * 9.25), abs=1e-12)


def test_importance_weights_correct_for_the_sampler():
    """sum_y mu(y) w(y) f(y) = E_pi[f] under a cap that never binds (1e-12); without weights, or capped, it is not."""
    draw = lambda seed: torch.log_softmax(torch.randn(1, 5, generator=torch.Generator().manual_seed(seed)).double(), -1)  # noqa: E731
    pi, mu, f = draw(0), draw(1), draw(2)
    mask = torch.ones(1, 5, dtype=torch.bool)
    truth = (pi.exp() * f).sum().item()
    assert (mu.exp() * importance_weights(pi, mu, mask, 1e6) * f).sum().item() == pytest.approx(truth, abs=1e-12)
    assert abs((mu.exp() * f).sum().item() - truth) > 0.01
    assert abs((mu.exp() * importance_weights(pi, mu, mask, 1.0) * f).sum().item() - truth) > 0.01


def test_effective_sample_size_at_its_ends():
    """All alike 1, whatever their size; one alone 1 / n; none 0; a sum over true tokens only."""
    mask = tensor([[True] * 4 + [False]])
    assert effective_sample_size(tensor([[0.3] * 4 + [math.nan]]), mask).item() == pytest.approx(1.0, abs=1e-6)
    assert effective_sample_size(tensor([[2.0, 0.0, 0.0, 0.0, 7.0]]), mask).item() == 0.25
    assert effective_sample_size(torch.ones(1, 5), torch.zeros_like(mask)).item() == 0.0
    assert effective_sample_size(torch.zeros(1, 5), mask).item() == 0.0


def test_importance_weights_refusals():
    x, mask = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"found sampler_logps_BR \(2, 1\)"):
        importance_weights(x, x[:, :1], mask, 2.0)
    with pytest.raises(ValueError, match="cap must be above 0"):
        importance_weights(x, x, mask, 0.0)


# Explained variance


def test_explained_variance_by_hand():
    """Returns 1, 2, 3, 6 (variance 3.5), residuals 0, 1, 0, 1 (variance .25): 1 - 1/14 = .9285714."""
    returns = tensor([[1.0, 2.0], [3.0, 6.0]], dtype=torch.float64)
    values = tensor([[1.0, 1.0], [3.0, 5.0]], dtype=torch.float64)
    mask = torch.ones(2, 2, dtype=torch.bool)
    assert explained_variance(values, returns, mask).item() == pytest.approx(13 / 14, abs=1e-12)


def test_explained_variance_at_its_landmarks():
    """1 if perfect, also but for an offset; 0 for a constant; -3 for the opposite, twice as wide as the returns."""
    _, _, returns, mask = random_policy_case().values()
    assert explained_variance(returns, returns, mask).item() == 1.0
    assert explained_variance(returns + 7, returns, mask).item() == pytest.approx(1.0, abs=1e-12)
    assert explained_variance(torch.full_like(returns, 2.0), returns, mask).item() == pytest.approx(0.0, abs=1e-12)
    assert explained_variance(-returns, returns, mask).item() == pytest.approx(-3.0, abs=1e-12)


def test_explained_variance_against_torch():
    _, values, returns, mask = random_policy_case(3).values()
    expected = 1 - (returns - values)[mask].var() / returns[mask].var()
    assert explained_variance(values, returns, mask).item() == pytest.approx(expected.item(), abs=1e-12)
    for rubbish in RUBBISH:
        dirty = explained_variance(values.masked_fill(~mask, rubbish), returns.masked_fill(~mask, rubbish), mask)
        assert dirty.item() == explained_variance(values, returns, mask).item()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_explained_variance_of_equal_returns_is_zero(dtype):
    """0, whatever the values say, also where rounding keeps them from being equal; control: the plain ratio is noise.

    A true spread of a thousandth still counts.
    """
    eps = torch.finfo(dtype).eps
    returns = 0.3 * (1 + 3 * eps * tensor([[1.0, -1.0, 1.0, 0.0]], dtype=dtype))
    values = tensor([[0.0, 1.0, 2.0, 3.0]], dtype=dtype)
    mask = torch.ones(1, 4, dtype=torch.bool)
    assert returns.unique().numel() > 1
    for critic in (values, returns, torch.zeros_like(returns)):
        assert explained_variance(critic, returns, mask).item() == 0.0
        assert explained_variance(critic, torch.full_like(returns, 0.3), mask).item() == 0.0
        assert explained_variance(critic, torch.zeros_like(returns), mask).item() == 0.0
    assert (1 - (returns - values).double().var() / returns.double().var()).item() < -1e9
    assert explained_variance(values, torch.zeros_like(mask).to(dtype), torch.zeros_like(mask)).item() == 0.0
    spread = 0.3 + 1e-3 * values
    assert explained_variance(spread, spread, mask).item() == 1.0


def test_explained_variance_shows_a_critic_of_nan():
    _, values, returns, mask = random_policy_case().values()
    assert math.isnan(explained_variance(values.masked_fill(mask, math.nan), returns, mask).item())
    assert math.isnan(explained_variance(values, returns.masked_fill(mask, math.nan), mask).item())
