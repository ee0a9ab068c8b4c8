"""The watch: it finds a planted turn, says nothing of honest runs, and says it in the report."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from recompute_watch import turned
from rich.console import Console
from synthetic_run import write, write_lines

from benchmarks.overoptimisation import HONEST, first_told, simulate, trial
from evaluation import overoptimisation
from evaluation.overoptimisation import LEAST, watch
from evaluation.report.curves import curves
from evaluation.report.load import load_run
from evaluation.report.page import render
from evaluation.report.ppo_section import ppo_sections
from evaluation.report.terminal import print_summary
from evaluation.report.watched import watched
from pipeline.recipe import load_recipe


def test_it_fires_near_the_true_turn_and_is_quiet_in_honest_runs():
    """Ten seeds each, asked at every measurement: two exploitable rewards, and gold ones that rise, level off, stay."""
    found = trial(10)
    for by_harm in found["within_a_tenth"].values():
        assert len(by_harm) == 2 and all(hits >= 9 for hits in by_harm.values()), found["runs"]
    assert set(found["false_alarms"]) == set(HONEST)
    assert all(len(alarms) <= 1 for alarms in found["false_alarms"].values()), found["false_alarms"]


@pytest.mark.parametrize("harm", [0.0, 0.35, 0.5])
def test_another_implementation_says_the_same(harm):
    """With the fits and quantiles of numpy, scipy and scikit-learn; over runs that end early and late."""
    said = []
    for seed in range(4):
        run = simulate(seed, harm)
        for seen in (12, 20, 25, 30, 35, 40):
            series = [one[:seen] for one in (run.steps, run.training, run.held_out, run.kl)]
            mine, other = watch(*series), turned(*series)
            said.append(mine is not None)
            assert (mine is None) == (other is None), (seed, seen)
            if mine is not None:
                assert (mine.step, mine.kl, mine.best, mine.last) == pytest.approx(other, rel=5e-3)
    assert any(said) == bool(harm)


def test_asking_again_and_again_is_what_makes_false_alarms(monkeypatch):
    """The control: a rule that believes what it sees once, with the normal quantile for few measurements too."""
    runs = [simulate(seed, 0.0, honest="stays level") for seed in range(40)]
    assert sum(first_told(run) is not None for run in runs) <= 1
    monkeypatch.setattr(overoptimisation, "_IN_A_ROW", 1)
    monkeypatch.setattr(overoptimisation, "student", lambda z, freedom: z)
    once = [watch(run.steps, run.training, run.held_out, run.kl) for run in runs]
    assert sum(turn is not None for turn in once) <= 1, "asked once, at the end, it would pass"
    assert sum(first_told(run) is not None for run in runs) >= 3


def test_a_turn_must_show_twice_in_a_row():
    """A measurement that seems to show it is not believed alone."""
    steps, training, held_out, kl = clean(15)
    rows = np.array([*zip(steps, training, held_out, kl, strict=True)])
    told = [watch(*(one[:n] for one in (steps, training, held_out, kl))) is not None for n in range(LEAST, 31)]
    alone = [overoptimisation._turn(rows[:n], kl_known=True) is not None for n in range(LEAST, 31)]
    first = told.index(True)
    assert alone[first - 2 : first + 1] == [False, True, True] and all(told[first:])


def test_shipped_recipes_that_watch_measure_often_enough_to_be_told():
    watching = []
    for path in sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.yaml")):
        for name, stage in load_recipe(path).recipe.stages.items():
            if getattr(stage, "watch", None):
                ppo = hasattr(stage, "rollout_batch_size")
                last = stage.episodes // stage.rollout_batch_size if ppo else stage.max_steps
                measured = {*range(0, last + 1, stage.eval_every), last}
                watching.append((path.stem, name))
                assert len(measured) >= LEAST, (path.name, name, len(measured))
    assert watching == [("alpaca_ppo_vs_dpo", "dpo"), ("alpaca_ppo_vs_dpo", "ppo")]


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
    run = simulate(3, 0.0, honest="levels off")
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


def drawn(tmp_path, turn):
    """A run that turned, or did not, whose PPO stage also left what it measured: its chart, frontier and page."""
    run = stage_of(tmp_path, turn, "score_heldout")
    logged = {}
    for point in run.stages[0].points:
        if point.split == "eval":
            logged.setdefault(point.step, {"rollout": point.step, "score": 0.1 * point.step})[point.name] = point.value
    measured = {"selected_rollout": 58, "measured": list(logged.values())}
    results = {"stages": {"ppo": {"status": "running", "metrics": measured}}, "evaluation": {}}
    write(run.directory / "results.json", results)
    run = load_run(run.directory)
    found = curves(run.stages)
    (chart,) = (each.svg for each in found[0].main if "watched" in each.title)
    (section,) = ppo_sections(run, found)
    page = render(run)
    whole = page[page.index('<section id="frontier"') : page.index('<section id="worse"')]
    return str(chart), str(section.frontier), whole, logged


def ring_of(svg, words):
    """Where the ring stands that has these words."""
    found = re.findall(r'<circle class="ring" cx="([\d.]+)" cy="([\d.]+)" r="5.5"/><text[^>]*>([^<]*)<', svg)
    ((x, y),) = [(x, y) for x, y, told in found if told.startswith(words)]
    return x, y


def test_the_turn_is_marked_on_the_curve_and_on_both_frontiers(tmp_path):
    """The ring is on the dot of the measurement nearest to the turn, of the line that turned."""
    chart, frontier, whole, logged = drawn(tmp_path, 15)
    at = sorted(logged).index(30)
    for svg, words, style in (
        (chart, "turned here", "eval"), (frontier, "turned here, rollout 30", "other"), (whole, "turned here", "way"),
    ):  # fmt: skip
        dots = re.findall(rf'class="dot [^"]*{style}" cx="([\d.]+)" cy="([\d.]+)"', svg)
        assert len(dots) in (0, len(logged)), "more points than are drawn as dots leave the line alone"
        x, y = ring_of(svg, words)
        line = re.search(rf'class="line [^"]*{style}" points="([^"]+)"', svg)
        assert line.group(1).split()[at] == f"{x},{y}"


def test_without_a_turn_nothing_is_marked(tmp_path):
    chart, frontier, whole, _ = drawn(tmp_path, 30)
    assert "turned here" not in chart + frontier + whole
    assert "kept, rollout 58" in frontier, "the policy that was handed on still is"
