"""Which of the policies measured is handed on, and by how much it is better than the one from before."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from evaluation.intervals import paired_bootstrap_ci
from pipeline.recipe.stage_settings import PpoSettings
from pipeline.rollouts.answers import Answer
from pipeline.rollouts.rewards import Episode, Scores
from pipeline.stages import ppo_selection
from pipeline.stages.ppo_selection import Examiner, Measurement, gains, is_better


def measured(rollout: int, objective: float, kl: float = 1.0, scores: Any = (1.0, 0.0)) -> Measurement:
    return Measurement(
        rollout=rollout, scores=list(scores), divergences=[kl] * len(scores), objective=objective, eos_rate=0.5,
        response_tokens=3.0,
    )  # fmt: skip


def settings(**values: Any) -> PpoSettings:
    return PpoSettings.model_validate(values)


def chosen(found: list[Measurement], asked: PpoSettings) -> int | None:
    """As the stage goes through them."""
    best = None
    for each in found:
        if is_better(each, best, asked):
            best = each
    return None if best is None else best.rollout


RUN = [measured(0, 0.5, kl=0.0), measured(2, 0.4, kl=0.5), measured(4, 0.9, kl=2.0), measured(6, 0.7, kl=4.0)]


def test_the_best_objective_wins_whenever_it_was():
    assert chosen(RUN, settings()) == 4
    assert chosen(RUN[:2], settings()) == 0, "the policy before the first step is one of them"
    assert chosen([*RUN, measured(8, 0.9)], settings()) == 4, "a tie goes to the earlier one"


def test_the_last_where_that_is_asked_for():
    assert chosen(RUN, settings(select="last")) == 6


def test_none_beyond_the_budget():
    assert chosen(RUN, settings(kl_max=1.0)) == 0
    assert chosen(RUN, settings(kl_max=1.0, select="last")) == 2
    assert chosen(RUN, settings(kl_max=2.0)) == 4
    assert chosen(RUN[2:], settings(kl_max=1.0)) is None


def test_gains_are_paired_by_prompt():
    """Prompts are of very different worth; the gain is the same on each of them, and certain."""
    before = measured(0, 0.0, kl=0.0, scores=[float(n) for n in range(20)])
    after = measured(4, 1.0, kl=3.0, scores=[n + 0.5 + 0.01 * (n % 3) for n in range(20)])
    found = gains(before, after)
    assert found["score_before"] == 9.5 and found["score"] == pytest.approx(10.0095)
    assert found["score_gain"] == pytest.approx(0.5095)
    assert found["score_gain_ci95"] == paired_bootstrap_ci(before.scores, after.scores).bounds
    low, high = found["score_gain_ci95"]
    assert 0.5 < low < 0.5095 < high < 0.52, "unpaired it would be some five times the gain"
    assert found["kl_to_reference"] == 3.0 and found["kl_ci95"] == [3.0, 3.0] and found["eval_n"] == 20
    assert found["eos_rate_before"] == found["eos_rate"] == 0.5


def test_no_measurement_no_gain():
    assert set(gains(None, None).values()) == {None}
    assert {"score_gain", "score_gain_ci95", "kl_to_reference", "eval_n"} <= set(gains(None, None))


def test_what_policies_are_compared_by(monkeypatch):
    """Mean score after penalties, less the recipe's kl_coef times the divergence; the score itself is the raw one."""
    prompts: list[Any] = [SimpleNamespace(check=check) for check in ({"max_chars": 3}, {"max_chars": 3}, None)]
    episodes = [
        Episode(prompts[0], [1], Answer([5, 2], True), "a"),
        Episode(prompts[1], [1], Answer([5, 5, 5], False), "far too long"),
    ]
    asked: list[Any] = []

    def answer(prompts: Any, seed: int, task: Any) -> list[Episode]:
        asked.append((prompts, seed))
        return episodes

    bench: Any = SimpleNamespace(
        context=SimpleNamespace(console=SimpleNamespace(progress=print), ranks=None), settings=settings(kl_coef=0.1),
        roles=None, pad_id=0, watched=None, answer=answer, judge=lambda _: Scores([2.0, 1.0], [2.0, -1.0], {}),
    )  # fmt: skip
    monkeypatch.setattr(ppo_selection, "sequence_divergences", lambda *_: [1.0, 4.0])
    found = Examiner(bench, ["p", "q"]).measure(7)
    assert found is not None
    assert found.objective == pytest.approx(0.5 - 0.1 * 2.5) and found.score == 1.5 and found.kl == 2.5
    assert (found.rollout, found.eos_rate, found.response_tokens) == (7, 0.5, 2.5)
    assert Measurement(**found.as_dict()) == found
    Examiner(bench, ["p", "q"]).measure(8)
    assert asked[0] == asked[1], "every policy answers the same prompts with the same noise"
    assert Examiner(bench, []).measure(0) is None
    assert found.rule_accuracy == 0.5, "one of two answers is short enough"
    episodes[:] = [Episode(prompts[2], [1], Answer([5, 2], True), "a")] * 2
    again = Examiner(bench, ["p", "q"]).measure(9)
    assert again is not None and again.rule_accuracy is None, "without a rule nothing is right or wrong"
