"""What a rollout looked like, against arithmetic by hand; the same whatever rows lie where."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from evaluation.text_measures import repetition
from pipeline.algorithms.ppo import explained_variance
from pipeline.rollouts.answers import Answer
from pipeline.rollouts.rewards import Scores
from pipeline.stages.ppo_metrics import Times, _std_of_a_prompt, rollout_metrics
from tests.rollouts.ppo_parts import (
    ALONE,
    Parts,
    collected,
    lively_base,
    make_parts,
    some_episodes,
    some_scores,
    stir,
)

EPISODES, WHOLE = some_episodes(), some_scores()
USED = [score - 0.25 for score in WHOLE]
SCORES = Scores(WHOLE, USED, {"one": WHOLE, "two": [2.0 * score for score in WHOLE]})


@pytest.fixture(scope="module")
def parts(tiny_folder, tmp_path_factory) -> Parts:
    """A policy that has left its reference."""
    folder = tmp_path_factory.mktemp("parts")
    made = make_parts(folder, lively_base(folder / "base", tiny_folder), minibatches=2, per_device_batch_size=3)
    stir((item for item in made.policy.model.named_parameters() if ".default." in item[0]), seed=8)
    return made


def figures(parts: Parts, **changes: Any) -> dict[str, float]:
    minibatches = [[replace(m, **changes) for m in part] for part in collected(parts, EPISODES, USED)]
    return rollout_metrics(EPISODES, SCORES, minibatches, 0.05, ALONE)[0]


def test_scores_and_divergence(parts):
    minibatches = collected(parts, EPISODES, USED)
    found, divergences = rollout_metrics(EPISODES, SCORES, minibatches, 0.05, ALONE)
    micros = [micro for minibatch in minibatches for micro in minibatch]
    by_row, k3 = {}, {}
    for micro in micros:
        d = torch.where(micro.mask_BR, micro.old_logps_BR - micro.ref_logps_BR, 0.0).double()
        for place, row in enumerate(micro.rows):
            by_row[row], k3[row] = float(d[place].sum()), float((torch.exp(-d[place]) - 1 + d[place]).sum())
    assert divergences == pytest.approx([by_row[row] for row in range(12)], abs=1e-5)
    mean = sum(WHOLE) / 12
    kl, tokens = sum(divergences) / 12, sum(len(e.answer.ids) for e in EPISODES)
    entropies = sum(float(torch.where(m.mask_BR, m.entropies_BR, 0.0).sum()) for m in micros)
    expected = {
        "objective/score": mean, "objective/score_used": mean - 0.25, "objective/score_one": mean,
        "objective/score_two": 2 * mean,
        "objective/score_std": math.sqrt(sum((score - mean) ** 2 for score in WHOLE) / 12),
        "objective/kl_seq": kl, "objective/kl_token": 12 * kl / tokens, "objective/kl_reward": -0.05 * kl,
        "objective/kl_k3_seq": sum(k3.values()) / 12, "objective/rlhf_reward": mean - 0.25 - 0.05 * kl,
        "objective/sqrt_kl": math.sqrt(max(kl, 0)), "kl_ctl/beta": 0.05, "policy/entropy": entropies / tokens,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    assert abs(kl) > 0.1


def test_answers(parts):
    found = figures(parts)
    lengths = sorted(len(e.answer.ids) for e in EPISODES)
    assert found["response/len_mean"] == sum(lengths) / 12 and found["response/len_p95"] == lengths[10]
    assert found["response/repeat_ngram"] == repetition([episode.answer.ids for episode in EPISODES])
    assert found["response/eos_rate"] == 9 / 12 and found["response/truncated_rate"] == 3 / 12
    assert found["prompt/len_mean"] == sum(len(e.prompt_ids) for e in EPISODES) / 12


def test_values_and_returns(parts):
    found = figures(parts)
    micros = [micro for minibatch in collected(parts, EPISODES, USED) for micro in minibatch]
    values, returns = (
        torch.cat([getattr(micro, name)[micro.mask_BR] for micro in micros]).double()
        for name in ("values_BR", "returns_BR")
    )
    expected = {
        "value/mean": values.mean(), "returns/mean": returns.mean(), "returns/std": returns.std(correction=0),
        "adv/mean": (returns - values).mean(), "adv/std": (returns - values).std(correction=0),
        "value/explained_var": explained_variance(values[None], returns[None], torch.ones(1, len(values)).bool()),
    }  # fmt: skip
    for name, value in expected.items():
        assert found[name] == pytest.approx(float(value), abs=1e-5), name


def test_the_samplers_log_probabilities(parts):
    assert [figures(parts)[f"rollout/{name}"] for name in ("logp_diff_mean", "logp_diff_max", "ess")] == [0.0, 0.0, 1.0]
    minibatches = collected(parts, EPISODES, USED)
    away = [
        [
            replace(
                micro, sampler_logps_BR=micro.old_logps_BR + torch.where(micro.batch.response_ids_BR == 2, 0.5, -0.1),
                weights_BR=torch.where(micro.batch.response_ids_BR == 2, 2.0, 1.0),
            )
            for micro in minibatch
        ]
        for minibatch in minibatches
    ]  # fmt: skip
    found = rollout_metrics(EPISODES, SCORES, away, 0.05, ALONE)[0]
    tokens, ends = sum(len(e.answer.ids) for e in EPISODES), sum(e.answer.ids[-1] == 2 for e in EPISODES)
    assert found["rollout/logp_diff_mean"] == pytest.approx((0.5 * ends + 0.1 * (tokens - ends)) / tokens, abs=1e-5)
    assert found["rollout/logp_diff_max"] == pytest.approx(0.5, abs=1e-5)
    assert 0.5 < found["rollout/ess"] < 1.0


def test_rows_may_lie_anywhere(parts):
    """Micro-batches of another size and order: the same figures, to rounding."""
    other = Parts(
        parts.context, parts.settings.model_copy(update={"per_device_batch_size": 2}), parts.policy, parts.roles
    )
    assert figures(other) == pytest.approx(figures(parts), abs=1e-5)


def test_one_reward_is_not_listed_twice(parts):
    minibatches = collected(parts, EPISODES, USED)
    found = rollout_metrics(EPISODES, Scores(WHOLE, USED, {"one": WHOLE}), minibatches, 0.05, ALONE)[0]
    assert "objective/score_one" not in found


def test_answers_without_an_end_count_as_cut_off(parts):
    cut = [e._replace(answer=Answer(e.answer.ids, False)) for e in EPISODES]
    found = rollout_metrics(cut, SCORES, collected(parts, cut, USED), 0.05, ALONE)[0]
    assert found["response/repeat_ngram"] == repetition([episode.answer.ids for episode in EPISODES])
    assert found["response/eos_rate"] == 0.0 and found["response/truncated_rate"] == 1.0


def test_phases_are_timed(monkeypatch):
    clock = iter([1.0, 3.0, 10.0, 10.5])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    times = Times()
    with times("rollout"):
        pass
    with times("train"):
        pass
    assert times.total == 2.5
    assert {k: v for k, v in times.metrics().items() if "time" in k} == {"time/rollout": 2.0, "time/train": 0.5}


def test_the_deviation_among_a_prompts_answers_by_hand():
    """Variances 1 and 0: the root of a half, however far the prompts are apart."""
    assert _std_of_a_prompt([1.0, 3.0, 50.0, 50.0], 2) == pytest.approx(0.5**0.5)
    assert _std_of_a_prompt([1.0, 1.0, 9.0, 9.0], 2) == 0.0
