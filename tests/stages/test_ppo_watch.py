"""A second reward model beside PPO's own: what it scores, that it changes nothing, and what its turn does."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from evaluation.overoptimisation import Turn
from pipeline.errors import PreemptedError, TrivetError
from pipeline.recipe.stage_settings import PpoSettings
from pipeline.stages import ppo
from pipeline.stages.held_out_rows import HELD_OUT
from pipeline.stages.ppo_roles import _value_start, reward_models
from pipeline.stages.ppo_selection import Measurement, gains, is_better
from pipeline.stages.ppo_setup import require_gate
from pipeline.stages.ppo_watch import turn_so_far
from tests.evaluation.test_overoptimisation import clean
from tests.rollouts.ppo_parts import LORA, StopAfter, lively_base, sealed_tensors, stage_context, trained_reward

WATCHING: dict[str, Any] = {"watch": "judge", "gate": {"min_accuracy": 0}}


@pytest.fixture(scope="module")
def llama(tiny_folder, tmp_path_factory) -> Path:
    return lively_base(tmp_path_factory.mktemp("llama"), tiny_folder)


@pytest.fixture(scope="module")
def judge(llama, tmp_path_factory) -> Any:
    return trained_reward(tmp_path_factory.mktemp("judge"), llama, LORA)


@pytest.fixture
def start(tmp_path, llama, judge):
    def started(name: str, **settings: Any):
        chosen = {"parents": {"watched": judge}, **WATCHING, **settings}
        return stage_context(tmp_path / name / "ppo", llama, LORA, **chosen)

    return started


def rows(context) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (context.folder / HELD_OUT).read_text().splitlines()]


def test_it_is_measured_beside_the_reward_and_changes_nothing(start, tmp_path, llama):
    """Bit for bit the policy of a run that does not watch; means are those of the rows, prompt by prompt."""
    # A context seeds everything, so each is made just before its run.
    watching = start("watching")
    found = ppo.run(watching).metrics
    alone = stage_context(tmp_path / "alone" / "ppo", llama, LORA)
    plain = ppo.run(alone).metrics
    one, other = sealed_tensors(watching.folder), sealed_tensors(alone.folder)
    assert all(torch.equal(one[name], other[name]) for name in one) and one.keys() == other.keys()
    assert [row["rollout"] for row in found["measured"]] == [0, 2, 4]
    for row, without in zip(found["measured"], plain["measured"], strict=True):
        assert {name: row[name] for name in without} == without and set(row) - set(without) == {"score_heldout"}
        mine = [each for each in rows(watching) if each["rollout"] == row["rollout"]]
        assert [each["prompt_id"] for each in mine] == [0, 1, 2, 3]
        for figure, mean in (("score", "score"), ("kl", "kl_seq"), ("score_heldout", "score_heldout")):
            assert row[mean] == pytest.approx(sum(each[figure] for each in mine) / 4)
    assert found["score_heldout_before"] == found["measured"][0]["score_heldout"]
    assert found["score_heldout"] != found["score"], "another model than the reward"
    assert all(row["score_heldout"] is None for row in rows(alone)) and "score_heldout" not in plain


def test_an_interruption_leaves_the_same_rows(start):
    whole = start("whole")
    ppo.run(whole)
    with pytest.raises(PreemptedError):
        ppo.run(start("cut", stop=StopAfter(3)))
    again = start("cut")
    ppo.run(again)
    assert rows(again) == rows(whole)


def test_the_judge_is_no_part_of_the_reward(start):
    """The value model does not start from it, and the gate asks it for as much as a reward."""
    context = start("parts")
    (model,) = reward_models(context)
    assert model.watched and model.weight == 0 and model.members == ("watched_1",)
    assert _value_start([model], context.recipe.stages["ppo"]) is None
    asked: Any = SimpleNamespace(
        recipe=context.recipe, stage="ppo", parents={"watched": SimpleNamespace(manifest=SimpleNamespace(metrics={}))}
    )
    with pytest.raises(TrivetError, match="reward model judge was measured on no held-out pairs"):
        require_gate(asked, PpoSettings.model_validate({"watch": "judge"}))


@pytest.mark.parametrize("ends", [False, True])
def test_a_turn_is_said_and_ends_training_where_asked(start, monkeypatch, ends):
    turn = Turn(step=1.0, kl=0.5, best=1.25, last=0.5)
    monkeypatch.setattr(ppo, "turn_so_far", lambda measured, scores: turn if len(scores) >= 2 else None)
    context = start("turning", stop_at_turn=ends)
    metrics = ppo.run(context).metrics
    said = (context.folder.parent / "said.txt").read_text()
    assert "the score by judge turned near rollout 1 and fell from 1.25 to 0.50" in said
    assert said.count("turned near") == 1, "once is enough"
    assert metrics["turned"] == {"rollout": 1.0, "kl": 0.5, "best": 1.25, "last": 0.5}
    assert metrics["rollouts"] == (2 if ends else 4)
    assert bool(metrics["stopped"]) is ends and ("training ends" in said) is ends


def test_without_a_turn_nothing_is_said(start):
    context = start("quiet")
    metrics = ppo.run(context).metrics
    assert "turned" not in metrics and "turned" not in (context.folder.parent / "said.txt").read_text()


def series(turn: int):
    steps, training, held_out, kl = clean(turn)
    measured = [
        {"rollout": int(step), "score_heldout": score, "kl_seq": far}
        for step, score, far in zip(steps, held_out, kl, strict=True)
    ]
    return measured, training


def test_the_rule_is_the_reports_rule():
    """A planted turn is found as soon as it shows, near its place; a reward that falls shows none."""
    measured, scores = series(15)
    found = turn_so_far(measured, scores)
    assert found is not None and found.step == pytest.approx(15, abs=0.5)
    assert turn_so_far(measured[:12], scores[:12]) is None, "not turned yet"
    first = next(n for n in range(len(measured)) if turn_so_far(measured[:n], scores[:n]))
    assert 17 <= first <= 24, first
    assert turn_so_far(measured, scores[::-1]) is None
    assert turn_so_far([{"rollout": 0, "kl_seq": 0.0}], []) is None


def measurement(rollout: int, objective: float, held_out: float | None, kl: float = 1.0) -> Measurement:
    return Measurement(
        rollout=rollout, scores=[objective, objective], divergences=[kl, kl], objective=objective, eos_rate=1.0,
        response_tokens=2.0, scores_heldout=None if held_out is None else [held_out - 0.5, held_out + 0.5],
    )  # fmt: skip


def test_the_best_by_the_second_opinion_can_be_handed_on():
    """The reward rises on and on; the second model is best in the middle."""
    run = [measurement(0, 0.0, 0.0, kl=0.0), measurement(2, 1.0, 2.0), measurement(4, 3.0, 0.5, kl=4.0)]

    def chosen(**settings: Any) -> int:
        best = None
        for each in run:
            if is_better(each, best, PpoSettings.model_validate(settings)):
                best = each
        return best.rollout

    assert chosen() == 4 and chosen(select="heldout", watch="judge") == 2
    dear = {"select": "heldout", "watch": "judge", "kl_coef": 3.0}
    assert chosen(**dear) == 0, "less the price of the divergence, as the objective is"
    figures = gains(run[0], run[1])
    assert (figures["score_heldout_before"], figures["score_heldout"]) == (0.0, 2.0)
    assert figures["score_heldout_gain_ci95"] == [2.0, 2.0]
    assert "score_heldout" not in gains(measurement(0, 0.0, None), measurement(2, 1.0, None))
