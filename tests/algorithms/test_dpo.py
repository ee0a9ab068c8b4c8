"""DPO and its relatives: by hand, against a second implementation in plain floats, and by what defines them."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, tensor

from pipeline.algorithms.dpo import LOSS_TYPES, SMOOTHED, dpo_loss, preference_margins

LOG2 = math.log(2)
SMOOTHING = {"exo_pair": 1e-3}
"""The smallest setting under which a loss is defined, where that is not 0."""
SHIFT_INVARIANT = ("sigmoid", "robust", "hinge", "ipo", "exo_pair", "discopop")
NOT_SHIFT_INVARIANT = ("bco_pair", "nca_pair", "sppo_hard", "apo_zero", "apo_down")


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def sigmoid(x: float) -> float:
    return math.exp(log_sigmoid(x))


SLOW: dict[str, Callable[[float, float, float, float], float]] = {
    # u, v: log-ratios of chosen and rejected; b: beta; e: label smoothing. From the papers, one pair at a time.
    "sigmoid": lambda u, v, b, e: -(1 - e) * log_sigmoid(b * (u - v)) - e * log_sigmoid(-b * (u - v)),
    "robust": lambda u, v, b, e: (-(1 - e) * log_sigmoid(b * (u - v)) + e * log_sigmoid(b * (v - u))) / (1 - 2 * e),
    "hinge": lambda u, v, b, e: max(0.0, 1 - b * (u - v)),
    "ipo": lambda u, v, b, e: ((u - v) - 1 / (2 * b)) ** 2,
    "exo_pair": lambda u, v, b, e: (
        sigmoid(b * (u - v)) * math.log(sigmoid(b * (u - v)) / (1 - e))
        + sigmoid(b * (v - u)) * math.log(sigmoid(b * (v - u)) / e)
    ),
    "nca_pair": lambda u, v, b, e: -log_sigmoid(b * u) - 0.5 * log_sigmoid(-b * u) - 0.5 * log_sigmoid(-b * v),
    "bco_pair": lambda u, v, b, e: -log_sigmoid(b * u) - log_sigmoid(-b * v),
    "sppo_hard": lambda u, v, b, e: (u - 1 / (2 * b)) ** 2 + (v + 1 / (2 * b)) ** 2,
    "apo_zero": lambda u, v, b, e: (1 - sigmoid(b * u)) + sigmoid(b * v),
    "apo_down": lambda u, v, b, e: sigmoid(b * u) + (1 - sigmoid(b * (u - v))),
    "discopop": lambda u, v, b, e: (
        (1 - sigmoid(b * (u - v) / 0.05)) * -log_sigmoid(b * (u - v))
        + sigmoid(b * (u - v) / 0.05) * math.exp(-b * (u - v))
    ),
}  # fmt: skip


def four(B: int = 6, seed: int = 0, spread: float = 4.0) -> tuple[Tensor, ...]:
    """Policy chosen, policy rejected, reference chosen, reference rejected (B,), double precision."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(-30 + spread * torch.randn(B, generator=generator, dtype=torch.float64) for _ in range(4))


def at_reference(B: int = 4) -> tuple[Tensor, ...]:
    """A policy equal to its reference."""
    chosen, rejected, _, _ = four(B)
    return chosen, rejected, chosen.clone(), rejected.clone()


def one_pair(h: float) -> tuple[Tensor, ...]:
    """One pair whose log-ratio gap is h, all of it on the chosen answer."""
    return tuple(tensor([value], dtype=torch.float64) for value in (h, 0.0, 0.0, 0.0))


def losses(
    tensors: tuple[Tensor, ...], beta: float, loss_type: str = "sigmoid", smoothing: float | None = None
) -> Tensor:
    e = SMOOTHING.get(loss_type, 0.0) if smoothing is None else smoothing
    return dpo_loss(*tensors, beta, loss_type, e).losses_B


def gradients(
    tensors: tuple[Tensor, ...], beta: float, loss_type: str, smoothing: float | None = None
) -> tuple[Tensor, ...]:
    """d loss / d log pi(chosen) and d loss / d log pi(rejected), (B,) each."""
    chosen, rejected = (t.clone().requires_grad_() for t in tensors[:2])
    total = losses((chosen, rejected, *tensors[2:]), beta, loss_type, smoothing).sum()
    return torch.autograd.grad(total, (chosen, rejected))


# By hand


def test_dpo_by_hand():
    """beta 0.5; chosen -2 against -3 (+1), rejected -7 against -4 (-3): h = 4, beta h = 2.

    -log sigmoid(2) = log(1 + e^-2) = log 1.1353353 = 0.1269280; rewards 0.5 and -1.5; margin 2.
    """
    tensors = tuple(tensor([value], dtype=torch.float64) for value in (-2.0, -7.0, -3.0, -4.0))
    found = dpo_loss(*tensors, 0.5)
    assert found.losses_B.item() == pytest.approx(0.1269280110, abs=1e-10)
    assert (found.chosen_rewards_B.item(), found.rejected_rewards_B.item()) == (0.5, -1.5)
    assert preference_margins(*tensors, 0.5).item() == 2.0


def test_relatives_by_hand():
    """The same pair: u = 1, v = -3, beta 0.5, so w = 0.5, l = -1.5, d = 2, s(2) = 0.8807971, s(-2) = 0.1192029.

    cDPO, e = 0.1: 0.9 * 0.1269280 + 0.1 * 2.1269280 = 0.3269280. robust: (0.1142352 - 0.2126928) / 0.8 = -0.1230720.
    hinge: max(0, 1 - 2) = 0. ipo: (4 - 1)^2 = 9. sppo: (1 - 1)^2 + (-3 + 1)^2 = 4.
    apo_zero: 1 - s(0.5) + s(-1.5) = 0.3775407 + 0.1824255 = 0.5599662. apo_down: 0.6224593 + 0.1192029 = 0.7416622.
    bco: log(1 + e^-0.5) + log(1 + e^-1.5) = 0.4740770 + 0.2014133 = 0.6754903.
    nca: 0.4740770 + 0.9740770 / 2 + 0.2014133 / 2 = 1.0618221.
    """
    tensors = tuple(tensor([value], dtype=torch.float64) for value in (-2.0, -7.0, -3.0, -4.0))
    expected = {
        "hinge": 0.0, "ipo": 9.0, "sppo_hard": 4.0, "apo_zero": 0.5599662, "apo_down": 0.7416622,
        "bco_pair": 0.6754903, "nca_pair": 1.0618221,
    }  # fmt: skip
    for name, value in expected.items():
        assert losses(tensors, 0.5, name).item() == pytest.approx(value, abs=2e-7), name
    assert losses(tensors, 0.5, "sigmoid", 0.1).item() == pytest.approx(0.3269280, abs=2e-7)
    assert losses(tensors, 0.5, "robust", 0.1).item() == pytest.approx(-0.1230720, abs=2e-7)


def test_aot_by_hand():
    """beta 1. Policy gaps 5 and 1, reference gaps 1 and 2: sorted 1, 5 against 1, 2 gives 0 and 3.

    log 2 and log(1 + e^-3) = 0.0485874. Unsorted, as DPO has it: gaps 4 and -1.
    """
    tensors = tuple(tensor(v, dtype=torch.float64) for v in ([0.0, 0.0], [-5.0, -1.0], [0.0, 0.0], [-1.0, -2.0]))
    assert losses(tensors, 1.0, "aot").tolist() == pytest.approx([LOG2, 0.0485873516], abs=1e-9)
    assert losses(tensors, 1.0).tolist() == pytest.approx(
        [math.log1p(math.exp(-4)), math.log1p(math.exp(1))], abs=1e-12
    )


def test_aot_unpaired_by_hand():
    """beta 1. Log-ratios of chosen 3 and 0, of rejected 1 and -1: sorted 0, 3 against -1, 1 gives 1 and 2."""
    tensors = tuple(tensor(v, dtype=torch.float64) for v in ([3.0, 0.0], [1.0, -1.0], [0.0, 0.0], [0.0, 0.0]))
    found = losses(tensors, 1.0, "aot_unpaired").tolist()
    assert found == pytest.approx([math.log1p(math.exp(-1)), math.log1p(math.exp(-2))], abs=1e-12)


# A second implementation


@given(
    loss_type=st.sampled_from(sorted(SLOW)),
    beta=st.sampled_from([0.01, 0.1, 0.5, 2.0]),
    smoothing=st.sampled_from([0.0, 1e-3, 0.2, 0.49]),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=120, deadline=None)
def test_against_plain_floats(loss_type, beta, smoothing, seed):
    """Every pairwise loss, one pair at a time from its formula (relative 1e-9)."""
    e = smoothing if loss_type in SMOOTHED else 0.0
    e = 1e-3 if loss_type == "exo_pair" and e == 0 else e
    tensors = four(seed=seed)
    found = losses(tensors, beta, loss_type, e).tolist()
    for row, value in zip(zip(*(t.tolist() for t in tensors), strict=True), found, strict=True):
        chosen, rejected, ref_chosen, ref_rejected = row
        assert value == pytest.approx(
            SLOW[loss_type](chosen - ref_chosen, rejected - ref_rejected, beta, e), rel=1e-9, abs=1e-9
        )


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_aot_against_plain_floats(smoothing):
    tensors = four(B=9, seed=5)
    w, l, rw, rl = (t.tolist() for t in tensors)  # noqa: E741
    gap = lambda a, b: sorted(x - y for x, y in zip(a, b, strict=True))  # noqa: E731
    for name, first, second in (("aot", gap(w, l), gap(rw, rl)), ("aot_unpaired", gap(w, rw), gap(l, rl))):
        expected = [SLOW["sigmoid"](x, y, 0.3, smoothing) for x, y in zip(first, second, strict=True)]
        assert losses(tensors, 0.3, name, smoothing).tolist() == pytest.approx(expected, rel=1e-9)


def test_every_loss_has_a_second_implementation():
    assert set(SLOW) | {"aot", "aot_unpaired"} == set(LOSS_TYPES)


# At the reference


@pytest.mark.parametrize("beta", [0.1, 1.0])
@pytest.mark.parametrize(
    ("loss_type", "value"),
    [
        ("sigmoid", lambda b: LOG2),
        ("robust", lambda b: LOG2),
        ("hinge", lambda b: 1.0),
        ("ipo", lambda b: 1 / (4 * b * b)),
        ("exo_pair", lambda b: -LOG2 - 0.5 * math.log(1e-3 * (1 - 1e-3))),
        ("nca_pair", lambda b: 2 * LOG2),
        ("bco_pair", lambda b: 2 * LOG2),
        ("sppo_hard", lambda b: 1 / (2 * b * b)),
        ("apo_zero", lambda b: 1.0),
        ("apo_down", lambda b: 1.0),
        ("discopop", lambda b: 0.5 * LOG2 + 0.5),
        ("aot", lambda b: LOG2),
        ("aot_unpaired", None),
    ],
)
def test_value_of_a_policy_equal_to_its_reference(loss_type, value, beta):
    """The table of the algorithm notes: log 2 for DPO, whatever beta."""
    expected = LOG2 if value is None else value(beta)
    found = losses(at_reference(), beta, loss_type)
    assert found.tolist() == pytest.approx([expected] * 4, rel=1e-12)


@pytest.mark.parametrize("e", [0.05, 0.3])
@pytest.mark.parametrize("loss_type", ["sigmoid", "robust", "aot", "aot_unpaired"])
def test_smoothed_losses_start_at_log_two(loss_type, e):
    assert losses(at_reference(), 0.1, loss_type, e).tolist() == pytest.approx([LOG2] * 4, rel=1e-12)


def test_gradient_at_the_reference_is_half_beta():
    """-beta / 2 on the chosen answer's log-probability, +beta / 2 on the rejected one's; a mean over B divides by B."""
    beta = 0.3
    on_chosen, on_rejected = gradients(at_reference(), beta, "sigmoid")
    assert on_chosen.tolist() == pytest.approx([-beta / 2] * 4, abs=1e-15)
    assert on_rejected.tolist() == pytest.approx([beta / 2] * 4, abs=1e-15)
    chosen, rejected, *reference = at_reference()
    chosen.requires_grad_()
    losses((chosen, rejected, *reference), beta).mean().backward()
    assert chosen.grad is not None and chosen.grad.tolist() == pytest.approx([-beta / 2 / 4] * 4, abs=1e-15)


def test_gradient_is_minus_beta_times_the_doubt():
    """-beta (1 - sigmoid(beta h)), equal and opposite (arXiv 2305.18290, section 4)."""
    tensors, beta = four(seed=2), 0.2
    doubt = 1 - torch.sigmoid(preference_margins(*tensors, beta))
    on_chosen, on_rejected = gradients(tensors, beta, "sigmoid")
    assert torch.allclose(on_chosen, -beta * doubt, rtol=0, atol=1e-14)
    assert torch.equal(on_chosen, -on_rejected)


@pytest.mark.parametrize(
    ("loss_type", "signs"),
    [("apo_zero", (-1, 1)), ("apo_down", (1, 1)), ("nca_pair", (-1, 1)), ("bco_pair", (-1, 1)), ("sppo_hard", (-1, 1))],
)
def test_direction_at_the_reference(loss_type, signs):
    """A negative gradient raises the answer: APO-zero lifts chosen and lowers rejected, APO-down lowers both."""
    on_chosen, on_rejected = gradients(at_reference(), 0.3, loss_type)
    found = (torch.sign(on_chosen).unique().tolist(), torch.sign(on_rejected).unique().tolist())
    if loss_type == "apo_down":
        # s(w) and s(w - l) cancel on the chosen side where w = l = 0: beta/4 - beta/4.
        assert on_chosen.abs().max() < 1e-15
        assert found[1] == [signs[1]]
        ahead = tuple(tensor([v], dtype=torch.float64) for v in (-29.0, -35.0, -30.0, -30.0))
        on_chosen, on_rejected = gradients(ahead, 0.3, loss_type)
        assert on_chosen.item() > 0 and on_rejected.item() > 0
    else:
        assert found == ([signs[0]], [signs[1]])


# Optima


@pytest.mark.parametrize("e", [0.01, 0.1, 0.3])
@pytest.mark.parametrize("loss_type", ["sigmoid", "exo_pair"])
def test_smoothed_losses_rest_at_the_log_odds(loss_type, e):
    """cDPO and EXO are stationary at beta h = log((1 - e) / e) and lowest there; plain DPO still pushes on."""
    beta, best = 0.5, math.log((1 - e) / e)
    at = lambda d: one_pair(d / beta)  # noqa: E731
    assert gradients(at(best), beta, loss_type, e)[0].abs().item() < 1e-12
    lowest = losses(at(best), beta, loss_type, e).item()
    for step in (-0.1, 0.1):
        assert losses(at(best + step), beta, loss_type, e).item() > lowest
    assert gradients(at(best), beta, "sigmoid", 0.0)[0].item() < -1e-3


@pytest.mark.parametrize("tau", [0.1, 0.5])
def test_ipo_rests_at_half_the_inverse_of_tau(tau):
    h = 1 / (2 * tau)
    tensors = one_pair(h)
    assert losses(tensors, tau, "ipo").item() == 0.0
    assert gradients(tensors, tau, "ipo")[0].item() == 0.0
    assert gradients((tensors[0] + 1, *tensors[1:]), tau, "ipo")[0].item() == pytest.approx(2.0, abs=1e-12)


def test_robust_is_unbiased_for_the_clean_loss():
    """Flipped with chance e it averages to plain DPO: (1 - e) robust(d) + e robust(-d) = sigmoid(d)."""
    e, tensors = 0.2, four(seed=4)
    swapped = (tensors[1], tensors[0], tensors[3], tensors[2])
    noisy = (1 - e) * losses(tensors, 0.2, "robust", e) + e * losses(swapped, 0.2, "robust", e)
    assert torch.allclose(noisy, losses(tensors, 0.2), rtol=0, atol=1e-12)
    assert not torch.allclose(losses(tensors, 0.2, "robust", e), losses(tensors, 0.2), atol=1e-2)


def test_exact_dpo_finds_the_tilted_reference():
    """Four answers, labels from Bradley-Terry on known rewards, every pair in its exact share: the minimum is
    softmax(log ref + r / beta) (total variation 1e-6). Control: beta twice as large is elsewhere.
    """
    generator = torch.Generator().manual_seed(0)
    ref = torch.log_softmax(torch.randn(4, generator=generator, dtype=torch.float64), -1)
    reward = torch.randn(4, generator=generator, dtype=torch.float64)
    beta = 0.5
    i, j = (index.flatten() for index in torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij"))
    share = torch.sigmoid(reward[i] - reward[j])
    logits = ref.clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [logits], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        logps = torch.log_softmax(logits, -1)
        loss = (share * losses((logps[i], logps[j], ref[i], ref[j]), beta)).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    found = torch.softmax(logits.detach(), -1)
    tilted = lambda b: torch.softmax(ref + reward / b, -1)  # noqa: E731
    assert 0.5 * (found - tilted(beta)).abs().sum() < 1e-6
    assert 0.5 * (found - tilted(2 * beta)).abs().sum() > 0.05


# Symmetries


@pytest.mark.parametrize("loss_type", ["sigmoid", "robust", "hinge", "ipo", "discopop"])
def test_exchanging_the_answers_turns_the_margin(loss_type):
    """loss(d) becomes loss(-d), by formula; the margin changes its sign exactly."""
    tensors = four(seed=1)
    swapped = (tensors[1], tensors[0], tensors[3], tensors[2])
    assert torch.equal(preference_margins(*swapped, 0.3), -preference_margins(*tensors, 0.3))
    h = ((tensors[0] - tensors[2]) - (tensors[1] - tensors[3])).tolist()
    expected = [SLOW[loss_type](-x, 0.0, 0.3, 0.0) for x in h]
    assert losses(swapped, 0.3, loss_type).tolist() == pytest.approx(expected, rel=1e-9)
    assert not torch.allclose(losses(swapped, 0.3, loss_type), losses(tensors, 0.3, loss_type))


@pytest.mark.parametrize("loss_type", SHIFT_INVARIANT)
def test_a_shift_of_both_log_ratios_changes_nothing(loss_type):
    """A prompt's own log-probability would enter both sides alike and must cancel (1e-9)."""
    tensors = four(seed=3)
    shift = tensor([-7.0, 3.0, 0.5, 11.0, -2.0, 1.0], dtype=torch.float64)
    moved = (tensors[0] + shift, tensors[1] + shift, *tensors[2:])
    assert torch.allclose(losses(moved, 0.3, loss_type), losses(tensors, 0.3, loss_type), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("loss_type", NOT_SHIFT_INVARIANT)
def test_losses_on_each_answer_feel_a_shift(loss_type):
    tensors = four(seed=3)
    moved = (tensors[0] + 2.0, tensors[1] + 2.0, *tensors[2:])
    assert not torch.allclose(losses(moved, 0.3, loss_type), losses(tensors, 0.3, loss_type), atol=1e-3)


def test_the_two_lists_of_shift_cover_every_loss():
    assert {*SHIFT_INVARIANT, *NOT_SHIFT_INVARIANT, "aot", "aot_unpaired"} == set(LOSS_TYPES)


@pytest.mark.parametrize("loss_type", [name for name in LOSS_TYPES if not name.startswith("aot")])
def test_pairs_do_not_see_one_another(loss_type):
    """Row by row, in another order, or among others: the same numbers. The sorted losses are the exception."""
    tensors = four(seed=6)
    together = losses(tensors, 0.2, loss_type)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(losses(tuple(t[order] for t in tensors), 0.2, loss_type), together[order])
    assert torch.allclose(
        torch.cat([losses(tuple(t[i : i + 1] for t in tensors), 0.2, loss_type) for i in range(6)]),
        together,
        rtol=1e-14,
    )


def test_sorted_losses_do():
    tensors = four(seed=6)
    alone = torch.cat([losses(tuple(t[i : i + 1] for t in tensors), 0.2, "aot") for i in range(6)])
    assert not torch.allclose(alone.sort().values, losses(tensors, 0.2, "aot").sort().values)


# Numerics


def test_extreme_margins_are_finite_with_the_right_gradient():
    """beta h = +-1000: the loss is 0 and 1000, the gradient 0 and -beta; exp would have overflowed."""
    tensors = (tensor([1e3, -1e3]), torch.zeros(2), torch.zeros(2), torch.zeros(2))
    assert losses(tensors, 1.0).tolist() == [0.0, 1000.0]
    assert gradients(tensors, 1.0, "sigmoid")[0].tolist() == [0.0, -1.0]
    for name in ("sigmoid", "robust", "nca_pair", "bco_pair", "apo_zero", "apo_down", "exo_pair"):
        assert torch.isfinite(losses(tensors, 1.0, name)).all(), name
        assert all(torch.isfinite(g).all() for g in gradients(tensors, 1.0, name)), name


@pytest.mark.parametrize(
    ("given_dtype", "expected"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_precision_of_the_result(loss_type, given_dtype, expected):
    """At least float32: bfloat16 inputs are subtracted in float32, where -30.25 + 30 is -0.25 and not rounded anew."""
    tensors = tuple(t.to(given_dtype) for t in four(seed=8))
    found = dpo_loss(*tensors, 0.1, loss_type, SMOOTHING.get(loss_type, 0.0))
    assert {t.dtype for t in found} == {expected}
    exact = losses(tuple(t.double() for t in tensors), 0.1, loss_type)
    assert torch.allclose(found.losses_B.double(), exact, rtol=1e-5, atol=1e-5)


def test_float64_is_not_rounded_through_float32():
    tensors = one_pair(-1e-12)
    assert losses(tensors, 1.0).item() - LOG2 == pytest.approx(5e-13, rel=1e-3)


def test_rewards_carry_no_gradient_and_the_reference_none_needed():
    chosen, rejected, *reference = four()
    found = dpo_loss(chosen.requires_grad_(), rejected.requires_grad_(), *reference, 0.1)
    assert found.losses_B.requires_grad
    assert not found.chosen_rewards_B.requires_grad and not found.rejected_rewards_B.requires_grad
    assert torch.equal(found.chosen_rewards_B, 0.1 * (chosen - reference[0]).detach())
    assert torch.equal(found.rejected_rewards_B, 0.1 * (rejected - reference[1]).detach())


@given(scale=st.sampled_from([1e-3, 1e-6]), seed=st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_as_beta_vanishes_so_does_the_policy(scale, seed):
    """|loss - log 2| <= beta |h| / 2 + O(beta^2 h^2)."""
    tensors = four(seed=seed)
    h = preference_margins(*tensors, 1.0).abs()
    assert ((losses(tensors, scale) - LOG2).abs() <= scale * h / 2 * 1.01 + 1e-15).all()


# Refusals


def test_shapes_must_agree():
    a, b = torch.zeros(3), torch.zeros(2)
    for tensors in [(a, b, a, a), (a, a, b, a), (a, a, a, b), (torch.zeros(3, 1),) * 4, (torch.zeros(()),) * 4]:
        with pytest.raises(ValueError, match=r"expected four tensors of one shape \(B,\)"):
            dpo_loss(*tensors, 0.1)


def test_settings_must_mean_something():
    tensors = at_reference()
    with pytest.raises(ValueError, match="unknown loss_type 'sigmoyd'; expected one of sigmoid"):
        dpo_loss(*tensors, 0.1, "sigmoyd")
    for e in (-0.1, 0.5, 0.7):
        with pytest.raises(ValueError, match="label_smoothing"):
            dpo_loss(*tensors, 0.1, "sigmoid", e)
    for name in set(LOSS_TYPES) - set(SMOOTHED):
        with pytest.raises(ValueError, match=f"unused by '{name}'"):
            dpo_loss(*tensors, 0.1, name, 0.1)
    with pytest.raises(ValueError, match="exo_pair needs label_smoothing > 0"):
        dpo_loss(*tensors, 0.1, "exo_pair")


@pytest.mark.parametrize("loss_type", SMOOTHED)
def test_smoothing_changes_every_loss_that_takes_it(loss_type):
    tensors = four(seed=7)
    assert not torch.allclose(losses(tensors, 0.2, loss_type, 0.1), losses(tensors, 0.2, loss_type, 0.3), atol=1e-3)
