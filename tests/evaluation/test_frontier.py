"""Policies at equal KL: known frontiers, coverage over simulated experiments, and controls that must come out wrong."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.frontier import Spot, at_equal_kl, band, departs, interpolate
from evaluation.intervals import paired_bootstrap_ci


def spot(kl, value, prompts=50):
    """A policy without noise."""
    return Spot.of([kl] * prompts, [value] * prompts)


START = spot(0.0, 1.0)


def line(slope, *kls):
    """A path on which each unit of sqrt(KL) buys `slope`."""
    return [START, *(spot(kl, 1.0 + slope * kl**0.5) for kl in kls)]


def test_a_known_frontier_by_hand():
    """One path buys 2 per unit of sqrt(KL), the other 3; at 4 nats, where both have been, that is 5 and 7."""
    found = at_equal_kl(line(2, 4.0), line(3, 9.0))
    assert (found.kl, found.a, found.b) == pytest.approx((4.0, 5.0, 7.0))
    assert found.difference.estimate == pytest.approx(2.0)
    assert found.difference.bounds == pytest.approx([2.0, 2.0]) and found.difference.n == 50
    assert at_equal_kl(line(3, 9.0), line(2, 4.0)).difference.estimate == pytest.approx(-2.0)


def test_without_equal_kl_the_verdict_would_turn_round():
    """The negative control: the path that buys less per nat went further and has the higher value in the end."""
    near, far = line(3, 1.0), line(2, 9.0)
    assert far[1].value > near[1].value
    assert at_equal_kl(near, far).difference.estimate == pytest.approx(-1.0)


def test_a_path_of_several_policies_is_read_between_its_neighbours():
    """Policies at 1, 4 and 9 nats with values that rise and fall; at 6.25 nats x = 2.5, half-way from 4 to 9 nats."""
    curved = [START, spot(9.0, 2.0), spot(1.0, 3.0), spot(4.0, 6.0)]
    assert at_equal_kl(line(0, 6.25), curved).difference.estimate == pytest.approx(4.0 - 1.0)
    kl, value = np.array([[0.0, 1.0, 4.0]]), np.array([[1.0, 3.0, 6.0]])
    assert interpolate(kl, value, [0.0, 1.0, 2.25, 4.0])[0] == pytest.approx([1, 3, 4.5, 6])
    assert interpolate(kl, value, [9.0])[0] == pytest.approx([9.0]), "the last piece goes on"
    assert interpolate(np.array([[0.0, 0.0]]), np.array([[1.0, 2.0]]), [1.0])[0] == pytest.approx([1.5])


def test_in_kl_itself_rather_than_its_root_the_answer_would_be_another():
    half_way = at_equal_kl(line(0, 1.0), [START, spot(4.0, 3.0)])
    assert half_way.b == pytest.approx(2.0) and half_way.b != pytest.approx(1 + 2 / 4)


def test_a_policy_that_went_nowhere_is_not_compared():
    noise = np.random.default_rng(0).normal(0, 1, 50)
    still = Spot.of(noise - noise.mean() + 0.01, [1.0] * 50)
    assert not departs([START, still]) and at_equal_kl([START, still], line(1, 4.0)) is None
    assert departs(line(1, 4.0))


def test_what_was_not_measured_counts_nowhere():
    """KL was sampled on the first 20 of 50 prompts only, one value is NaN, one infinite."""
    kl = [4.0] * 20 + [np.nan] * 30
    value = [3.0] * 48 + [np.nan, np.inf]
    found = at_equal_kl([Spot.of([0.0] * 50, [1.0] * 50), Spot.of(kl, value)], line(0, 4.0))
    assert found.a == pytest.approx(3.0) and found.difference.n == 20
    assert found.difference.bounds == pytest.approx([-2.0, -2.0])


def test_vectors_of_two_lengths_are_refused():
    with pytest.raises(ValueError, match="one length"):
        Spot.of([1.0, 2.0], [1.0])


def experiment(generator, prompts=48, gain=0.3):
    """Two policies with noise in divergence and value, both correlated over prompts; the true paths are straight."""
    hard = generator.normal(0, 1, prompts)

    def policy(kl, slope):
        divergence = generator.gamma(2.0, kl / 2.0, prompts)
        value = hard + slope * np.sqrt(kl) + generator.normal(0, 0.6, prompts)
        return Spot.of(divergence, value)

    start = Spot.of(np.zeros(prompts), hard + generator.normal(0, 0.6, prompts))
    return [start, policy(2.0, 0.5)], [start, policy(5.0, 0.5 + gain)]


def share_covered(compare, trials=400):
    """How often an interval holds the true difference, over simulated experiments."""
    generator = np.random.default_rng(7)
    hits = []
    for _ in range(trials):
        a, b = experiment(generator)
        low, high, truth = compare(a, b)
        hits.append(low <= truth <= high)
    return float(np.mean(hits))


def test_the_interval_covers_as_often_as_it_says():
    """Slopes 0.5 and 0.8: 0.3 times the root of the KL at which they are compared is the truth."""

    def compare(a, b):
        found = at_equal_kl(a, b, resamples=400)
        return *found.difference.bounds, 0.3 * found.kl**0.5

    assert 0.93 <= share_covered(compare) <= 0.97


def test_intervals_that_leave_out_the_uncertainty_of_the_kl_cover_too_rarely():
    """The control: the plain paired interval at unequal KL holds the difference at equal KL hardly ever."""

    def compare(a, b):
        found = paired_bootstrap_ci(a[1].value_P, b[1].value_P, resamples=200)
        return *found.bounds, 0.3 * a[1].kl ** 0.5

    assert share_covered(compare, trials=150) < 0.5


def test_two_paths_on_one_frontier_are_told_apart_about_as_rarely_as_allowed():
    """Both buy the same per nat, at unequal distances: the interval lies off zero in about 5 % of experiments."""
    generator = np.random.default_rng(11)
    found = [at_equal_kl(*experiment(generator, gain=0.0), resamples=400).difference.bounds for _ in range(200)]
    assert np.mean([low > 0 or high < 0 for low, high in found]) <= 0.08


def test_a_band_is_narrow_at_its_start_and_holds_the_path():
    generator = np.random.default_rng(3)
    path, _ = experiment(generator)
    found = band(path, [0.0, 0.5, 2.0], resamples=500)
    assert [round(one.estimate, 6) for one in (found[0],)] == [round(path[0].value, 6)]
    assert all(one.low < one.estimate < one.high for one in found)
    again = band(path, [0.0, 0.5, 2.0], resamples=500)
    assert found == again, "the same numbers give the same band"


# Frontiers that bend, as Gao et al. 2023 found them, with d = sqrt(KL) ------------------------------------------------


A, B = 0.6, 0.2


def of_best_of_n(d):
    return d * (A - B * d)


def of_training(d):
    return np.where(d > 0, d * (A - B * np.log(np.maximum(d, 1e-300))), 0.0)


BENT = {
    of_best_of_n: lambda d, far: B * d * (far - d),
    of_training: lambda d, far: B * d * np.log(far / d),
}
"""Each curve with how far it lies above the line from its beginning to `far`."""


def on(curve, *ds):
    """Policies on a curve, without noise."""
    return [spot(0.0, 0.0), *(spot(d * d, float(curve(np.array(d)))) for d in ds)]


@pytest.mark.parametrize("curve", BENT)
@pytest.mark.parametrize(("near", "far"), [(1.0, 3.0), (1.5, 2.0), (0.5, 3.0)])
def test_on_one_bent_frontier_who_went_further_looks_worse_by_a_known_amount(curve, near, far):
    """Nobody is better; the line from the reference to the further policy lies below the curve by so much."""
    found = at_equal_kl(on(curve, near), on(curve, far))
    assert found.kl == pytest.approx(near**2)
    assert found.difference.estimate == pytest.approx(-BENT[curve](near, far)) and found.difference.estimate < 0
    assert (found.near_a, found.near_b) == pytest.approx((near**2, far**2)), "the line stands for a measurement here"
    there = at_equal_kl(on(curve, near), on(curve, near, far))
    assert there.difference.estimate == pytest.approx(0, abs=1e-12) and there.near_b == pytest.approx(near**2)


@pytest.mark.parametrize("policies", [1, 2, 4, 8])
def test_several_policies_on_the_way_bound_what_the_bend_can_do(policies):
    """Evenly spaced in sqrt(KL), h apart: at most B h^2 / 4, and B h / e from the reference on where log d bends."""
    ds = 3.0 * np.arange(1, policies + 1) / policies
    h, at = ds[0], np.linspace(0.01, 3.0, 2000)
    for curve, most in ((of_best_of_n, B * h**2 / 4), (of_training, B * h / np.e)):
        kl, value = np.array([[0.0, *ds**2]]), np.array([[0.0, *curve(ds)]])
        below = curve(at) - interpolate(kl, value, at**2)[0]
        assert below.min() > -1e-9 and 0.98 * most < below.max() < most * (1 + 1e-9)


def bent_experiment(generator, *ds, prompts=48):
    """A policy at 2 nats and a path to 9 nats, all on one bent frontier, with noise as in `experiment`: truly equal."""
    hard = generator.normal(0, 1, prompts)

    def policy(d):
        divergence = generator.gamma(2.0, d * d / 2.0, prompts)
        return Spot.of(divergence, hard + float(of_training(np.array(d))) + generator.normal(0, 0.6, prompts))

    start = Spot.of(np.zeros(prompts), hard + generator.normal(0, 0.6, prompts))
    return [start, policy(2.0**0.5)], [start, *(policy(d) for d in ds)]


def share_that_holds_zero(*ds, trials):
    generator = np.random.default_rng(5)
    found = [at_equal_kl(*bent_experiment(generator, *ds), resamples=400).difference.bounds for _ in range(trials)]
    return float(np.mean([low <= 0 <= high for low, high in found]))


def test_on_a_bent_frontier_intervals_cover_where_policies_stand_on_the_way():
    assert 0.92 <= share_that_holds_zero(0.75, 1.5, 2.25, 3.0, trials=200) <= 0.98


def test_on_a_bent_frontier_with_one_policy_far_away_they_do_not():
    """The control, and why a comparison says so: the bias of 0.2 is as large as the interval's arm."""
    assert share_that_holds_zero(3.0, trials=60) < 0.85
