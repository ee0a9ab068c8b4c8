"""The watch: it finds a planted turn, says nothing of honest runs, and says it in the report."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console
from synthetic_run import write, write_lines

from benchmarks.overoptimisation import simulate, trial
from evaluation.overoptimisation import LEAST, watch
from evaluation.report.load import load_run
from evaluation.report.page import render
from evaluation.report.terminal import print_summary
from evaluation.report.watched import watched


def test_it_fires_near_the_true_turn_and_is_quiet_in_honest_runs():
    """Ten seeds each: two exploitable rewards, a gold reward that rises throughout, one that levels off."""
    found = trial(10)
    assert all(hits >= 9 for hits in found["within_a_tenth"].values()), found["runs"]
    assert all(len(alarms) <= 1 for alarms in found["false_alarms"].values())


def clean(turn, n=30):
    """A parabola in sqrt(KL) with its top at step `turn`, and a reward that rises; hardly any noise."""
    noise = np.random.default_rng(0).normal(0, 1e-3, n)
    steps = np.arange(1.0, n + 1)
    gold = -((steps - turn) ** 2) / n**2 + noise
    return steps.tolist(), (0.1 * steps + noise).tolist(), gold.tolist(), ((steps / 10) ** 2).tolist()


@pytest.mark.parametrize("turn", [8, 15, 22])
def test_without_noise_the_step_is_exact(turn):
    steps, training, held_out, kl = clean(turn)
    found = watch(steps, training, held_out, kl)
    assert found.step == pytest.approx(turn, abs=0.3) and found.kl == pytest.approx((turn / 10) ** 2, rel=0.05)
    assert found.best > found.last
    assert watch(steps, training, held_out).step == pytest.approx(turn, abs=0.3), "and without the KL"


def test_a_turn_at_the_very_end_is_none_yet():
    steps, training, held_out, kl = clean(30)
    assert watch(steps, training, held_out, kl) is None


def test_where_the_training_reward_falls_too_it_is_no_overoptimisation():
    """The control: the same held-out series, with a reward that fell or stood still."""
    steps, training, held_out, kl = clean(15)
    assert watch(steps, training, held_out, kl) is not None
    assert watch(steps, training[::-1], held_out, kl) is None
    noise = np.random.default_rng(1).normal(0, 1, len(steps)).tolist()
    assert watch(steps, noise, held_out, kl) is None


def test_a_held_out_score_that_only_levels_off_has_not_turned():
    run = simulate(3, 0.0, levels_off=True)
    assert watch(run.steps, run.training, run.held_out, run.kl) is None


def test_gaps_are_left_out_and_too_little_shows_nothing():
    steps, training, held_out, kl = clean(15)
    held_out[3], training[7], kl[9] = None, float("nan"), None
    assert watch(steps, training, held_out, kl).step == pytest.approx(15, abs=0.3)
    few = LEAST - 1
    assert watch(steps[:few], training[:few], clean(3)[2][:few], kl[:few]) is None
    assert watch([], [], [], []) is None
    assert watch(steps, training, held_out, [0.0] * len(steps)) is None, "a policy that went nowhere"
    assert watch([1.0] * 30, training, held_out, kl) is None, "steps that do not rise"


def stage_of(tmp_path, turn, opinion="rule_accuracy", every=2, n=30):
    run = tmp_path / f"run-{turn}-{opinion}-{n}"
    steps, training, held_out, kl = clean(turn, n)
    write(run / "run.json", {"stages": [{"name": "ppo", "kind": "ppo", "key": "k", "status": "running"}]})
    (run / "ppo").mkdir()
    rows = [
        ("train", every * step - back, "objective/score", value)
        for step, value in zip(steps, training, strict=True) for back in (0, 1)
    ]  # fmt: skip
    for step, gold, far in zip(steps, held_out, kl, strict=True):
        rows += [("eval", every * step, opinion, gold), ("eval", every * step, "kl_seq", far)]
    lines = [{"stage": "ppo", "step": at, "split": split, "name": name, "value": v} for split, at, name, v in rows]
    write_lines(run / "ppo" / "metrics.jsonl", lines)
    return load_run(run)


def test_the_report_says_it_with_the_rollout(tmp_path):
    run = stage_of(tmp_path, 15)
    (stage,) = run.stages
    found = watched(stage)
    assert found.turned and "turned near rollout 30, at 2.2" in found.told
    assert "the training reward still rises, but the share of held-out prompts answered right turned" in found.told
    assert found.told in render(run)
    out = io.StringIO()
    print_summary(run.directory, Console(file=out, width=1000, highlight=False))
    assert f"ppo: {found.told}" in out.getvalue()


def test_the_report_says_when_nothing_is_shown_or_too_little_was_measured(tmp_path):
    quiet = watched(stage_of(tmp_path, 30).stages[0])
    assert not quiet.turned and quiet.told.startswith("No over-optimisation shown")
    few = watched(stage_of(tmp_path, 3, n=5).stages[0])
    assert not few.turned and "5 measurements" in few.told
    assert watched(stage_of(tmp_path, 15, opinion="score").stages[0]) is None, "its own reward is no second opinion"


def test_a_second_reward_model_counts_before_the_rules(tmp_path):
    assert "reward model that training does not use" in watched(stage_of(tmp_path, 15, "score_heldout").stages[0]).told
