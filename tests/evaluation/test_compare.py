"""Which policies are held against which, and the differences between them by hand."""

from __future__ import annotations

import pytest

from evaluation.compare import differences, judge, pairs, reference_policy
from pipeline.recipe.schema import Recipe

SOURCES = {"sources": [{"path": "x"}]}


def recipe(**stages):
    stages = {name: {"kind": name, **stage} for name, stage in stages.items()}
    return Recipe.model_validate({"name": "x", "data": {"sft": SOURCES, "preference": SOURCES}, "stages": stages})


RULES = {"rewards": [{"from": "rules"}]}
WHOLE = recipe(sft={}, reward={}, dpo={}, ppo={})


def test_every_policy_behind_its_start_then_ppo_behind_dpo():
    assert pairs(WHOLE) == [("base", "sft"), ("sft", "dpo"), ("sft", "ppo"), ("dpo", "ppo")]
    assert pairs(recipe(sft={}, ppo={}, dpo={}, reward={}))[-1] == ("dpo", "ppo"), "whichever comes first in the recipe"


def test_only_siblings_are_held_against_each_other():
    """PPO that continues DPO is compared with it once, as its start; two DPO stages never with each other."""
    assert pairs(recipe(sft={}, dpo={}, ppo={"policy": "dpo"})) == [("base", "sft"), ("sft", "dpo"), ("dpo", "ppo")]
    several = recipe(
        sft={}, dpo_a={"kind": "dpo"}, dpo_b={"kind": "dpo"}, dpo_c={"kind": "dpo", "policy": "base"},
        ppo={"kind": "ppo", **RULES},
    )  # fmt: skip
    assert pairs(several)[-2:] == [("dpo_a", "ppo"), ("dpo_b", "ppo")]
    assert ("dpo_c", "ppo") not in pairs(several) and len(pairs(several)) == 7


def test_a_reward_model_is_no_policy():
    assert pairs(recipe(sft={}, reward={})) == [("base", "sft")]
    assert pairs(recipe(reward={})) == []


def test_the_last_reward_stage_judges():
    assert judge(WHOLE) == "reward"
    assert judge(recipe(first={"kind": "reward"}, second={"kind": "reward"})) == "second"
    assert judge(recipe(sft={}, dpo={})) is None


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        ({"sft": {}, "dpo": {}}, "sft"),
        ({"sft": {}, "reward": {}, "ppo": {}}, "sft"),
        ({"reward": {}, "ppo": {}}, "base"),
        ({"sft": {}, "other": {"kind": "sft"}, "ppo": {"policy": "sft", **RULES}, "dpo": {}}, "sft"),
        ({"sft": {}, "reward": {}}, "base"),
    ],
)
def test_the_reference_is_what_preference_training_starts_from(stages, expected):
    assert reference_policy(recipe(**stages)) == expected


def test_differences_are_paired_over_what_both_were_judged_on():
    """By hand: (1-0, 1-1, 0-0, 1-0) with the second prompt unjudged for one and left out: (1 + 0 + 1) / 3."""
    values = {"sft": [0.0, None, 0.0, 0.0], "ppo": [1.0, 1.0, 0.0, 1.0], "dpo": [None, 1.0, None, None]}
    (row,) = differences("score", [("sft", "ppo"), ("sft", "dpo"), ("base", "sft")][:2], values)
    assert (row["metric"], row["from"], row["to"], row["n"]) == ("score", "sft", "ppo", 3)
    assert row["difference"] == pytest.approx(2 / 3)
    assert row["ci95"][0] >= 0 and row["ci95"][1] <= 1


def test_without_answers_nothing_is_compared():
    assert differences("score", pairs(WHOLE), {}) == []
