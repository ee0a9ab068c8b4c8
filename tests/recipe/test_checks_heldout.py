"""The reward stage that is kept for judging: refused where it would be no second opinion, and what it changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluation.compare import judges
from pipeline.errors import RecipeError
from pipeline.models.source import BaseIdentity
from pipeline.plan import make_nodes
from pipeline.recipe import loads_recipe
from pipeline.recipe.lineage import WATCHED, heldout_reward, parents_of, reward_sources

RECIPE = """
name: x
data:
  sft: {sources: [{path: builtin:alpaca_sample}]}
  preference: {sources: [{path: builtin:preference_sample}]}
stages:
  sft: {}
  reward: {}
  judge: {kind: reward, seed: 18}
  ppo: {episodes: 64, rollout_batch_size: 32}
"""
JUDGED = "evaluation.heldout_reward=judge"
WATCHING = "stages.ppo.watch=judge"


def recipe(*changes):
    return loads_recipe(RECIPE, overrides=list(changes)).recipe


def keys(*changes):
    base = BaseIdentity("b", None, "f")
    return {node.name: node.key for node in make_nodes(recipe(*changes), base, Path("store"))}


def test_what_is_kept_for_judging_rewards_nobody():
    """Without the key, the last reward stage would reward PPO and score everyone."""
    plain, judged = recipe(), recipe(JUDGED)
    assert [one.from_ for one in reward_sources(plain, "ppo")] == ["judge"] and judges(plain) == {"score": "judge"}
    assert [one.from_ for one in reward_sources(judged, "ppo")] == ["reward"]
    assert judges(judged) == {"score": "reward", "score_heldout": "judge"}
    assert WATCHED not in parents_of(judged, "ppo"), "evaluation alone asks for it"


def test_what_ppo_watches_judges_the_evaluation_too():
    watching = recipe(WATCHING)
    assert heldout_reward(watching) == "judge" and judges(watching)["score_heldout"] == "judge"
    assert parents_of(watching, "ppo") == {"policy": "sft", "reward_1": "reward", WATCHED: "judge"}


def test_the_only_reward_model_may_be_held_out():
    """With DPO nothing is trained against it."""
    text = RECIPE.replace("  reward: {}\n", "").replace("ppo: {episodes: 64, rollout_batch_size: 32}", "dpo: {}")
    assert judges(loads_recipe(text).recipe) == {"score": "judge"}
    assert judges(loads_recipe(text, overrides=[JUDGED]).recipe) == {"score_heldout": "judge"}


def test_keys_change_only_where_results_do():
    """Evaluation's second opinion retrains nothing but what it takes a reward model from; PPO's watch is PPO's."""
    named = ("stages.ppo.reward_model=reward",)
    before, judged, watching = keys(*named), keys(*named, JUDGED), keys(*named, WATCHING)
    assert {name for name in before if before[name] != judged[name]} == {"evaluation"}
    assert {name for name in before if before[name] != watching[name]} == {"ppo", "evaluation"}
    assert keys(*named, "stages.judge.seed=19")["judge"] != before["judge"]
    stopping = keys(*named, WATCHING, "stages.ppo.stop_at_turn=true")
    assert {name for name in watching if watching[name] != stopping[name]} == {"ppo", "evaluation"}


def test_two_reward_stages_with_seeds_of_their_own_are_two_models():
    assert keys()["reward"] != keys()["judge"]
    assert keys("stages.judge={kind: reward}")["reward"] == keys("stages.judge={kind: reward}")["judge"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["evaluation.heldout_reward=judg"], "'judg' is no reward stage of this recipe; did you mean 'judge'?"),
        (["evaluation.heldout_reward=sft"], "'sft' is no reward stage of this recipe"),
        ([JUDGED, "stages.ppo.reward_model=judge"], "ppo is trained against judge, so it is no second opinion"),
        ([JUDGED, "evaluation.tasks=[kl]"], "has no effect without score in evaluation.tasks"),
        ([JUDGED, "stages.judge={kind: reward}"], "judge is trained just like reward, so it would be the same model"),
        ([JUDGED, "stages.judge={kind: reward, seed: 17}"], "give it a seed of its own"),
        ([WATCHING, "stages.judge={kind: reward}"], "stages.ppo.watch=judge: judge is trained just like reward"),
        (["stages.ppo.watch=later", "stages.later={kind: reward, seed: 3}"], "stage 'later' runs later; move it up"),
        (["stages.ppo.watch=sft"], "stage 'sft' leaves no reward model"),
        ([WATCHING, "stages.ppo.reward_model=judge"], "judge is what this stage is trained against"),
        (["stages.ppo.stop_at_turn=true"], "has no effect without watch"),
        (["stages.ppo.select=heldout"], "heldout goes by the score of `watch`"),
        (
            [JUDGED, "stages.third={kind: reward, seed: 3}", "stages.p={kind: ppo, watch: third}"],
            "evaluation judges by judge; watch the same one",
        ),
    ],
)  # fmt: skip
def test_what_would_be_no_second_opinion_is_refused(changes, said):
    with pytest.raises(RecipeError) as refused:
        recipe(*changes)
    assert said in str(refused.value), refused.value


def test_a_part_of_the_pairs_makes_another_model_too():
    recipe(JUDGED, "stages.judge={kind: reward}", "data.split={reward: 0.5, judge: 0.5}")
