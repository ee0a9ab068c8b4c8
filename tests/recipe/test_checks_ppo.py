"""Reward and PPO stages of a recipe: what they stand on, and which settings contradict each other."""

from __future__ import annotations

import pytest

from pipeline.errors import RecipeError
from pipeline.recipe import (
    LoadedRecipe,
    check_batches,
    check_reward_function,
    loads_recipe,
    parents_of,
    policy_of,
    reference_of,
    reward_sources,
    used_data,
)
from pipeline.recipe.checks_ppo import KL_STEP

TEXT = """\
name: demo
model: {base: some/model}
data:
  sft: {sources: [{path: a}]}
  preference: {sources: [{path: p}]}
stages:
  sft: {epochs: 2}
  reward: {epochs: 1}
  ppo: {episodes: 640, rollout_batch_size: 64}
"""
RULES = "stages.ppo.rewards=[{from: rules}]"
TARGET = "stages.ppo.kl_target=6"
RLOO = ["stages.ppo.advantage_estimator=rloo", "stages.ppo.samples_per_prompt=4"]


def load(*overrides: str) -> LoadedRecipe:
    return loads_recipe(TEXT, "r.yaml", overrides)


def refused(*overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load(*overrides)
    return str(caught.value)


def rewards(*sources: str) -> str:
    return f"stages.ppo.rewards=[{', '.join(f'{{{source}}}' for source in sources)}]"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        # what it is rewarded by
        (["stages={ppo: null}"], "stages.ppo: has nothing to optimise: write a reward stage before it, or `rewards`"),
        (["stages.ppo.rewards=[]"], "stages.ppo.rewards=...: is empty; name a reward, such as [{from: rules}]"),
        (["stages.ppo.reward_model=rewad"], "reward_model=rewad: there is no stage 'rewad'; did you mean 'reward'?"),
        (["stages.ppo.reward_model=sft"], "reward_model=sft: stage 'sft' leaves no reward model (can be: reward)"),
        (["stages.ppo.reward_model=ppo"], "reward_model=ppo: a stage cannot reward itself (can be: reward)"),
        (
            ["stages.late={kind: reward}", "stages.ppo.reward_model=late"],
            "reward_model=late: stage 'late' runs later; move it up (can be: reward)",
        ),
        (["stages.ppo.reward_model=reward", RULES], "reward_model=reward: goes without `rewards`"),
        (["stages.ppo.policy=reward"], "policy=reward: stage 'reward' leaves no policy (can be: sft, base)"),
        (["stages.reward.init=reward"], "init=reward: a stage cannot start from itself (can be: sft, base)"),
        (
            [rewards("from: my_model")],
            "rewards.0.from: there is no stage 'my_model' (can be: reward, rules, function, ./FOLDER, OWNER/MODEL)",
        ),
        ([rewards("from: rules", "from: rules")], "rewards.1: 'rules' stands here twice; write it once, with the sum"),
        ([rewards("from: a/b", "from: reward", "from: a/b")], "rewards.2: 'a/b' stands here twice"),
        ([rewards("from: rules, revision: v1")], "rewards.0.revision: 'rules' has no revisions; this key is for hub"),
        ([rewards("from: rules, weight: 0")], "rewards.0.weight: a reward of weight 0 has no effect; remove"),
        ([RULES, "stages.ppo.value_init=reward"], "value_init=reward: there is no reward stage to start"),
        # what has no effect
        ([RULES, "stages.ppo.gate.min_accuracy=0.6"], "min_accuracy=0.6: has no effect without a reward stage among"),
        ([RULES, "stages.ppo.normalise_scores=false"], "normalise_scores=false: has no effect without a reward stage"),
        (["stages.ppo.kl_horizon=99"], "kl_horizon=99: has no effect without kl_target; set that, or remove it"),
        (["stages.ppo.overlong_penalty=2"], "overlong_penalty=2: has no effect without overlong_buffer"),
        (["stages.ppo.vllm.url=http://a"], "vllm.url=http://a: has no effect without rollout_engine: vllm_server"),
        (
            ["stages.ppo.vllm.gpu_memory_utilization=0.5", "stages.ppo.rollout_engine=vllm_server"],
            "gpu_memory_utilization=0.5: has no effect without rollout_engine: vllm_colocate",
        ),
        (
            ["stages.ppo.vllm.importance_cap=3"],
            "importance_cap=3: has no effect without rollout_engine: paged, or one of vLLM's",
        ),
        (["stages.reward.aggregate=min"], "aggregate=min: has no effect on one model; set ensemble: 3 or so"),
        (["stages.reward.variance_weight=1"], "variance_weight=1: aggregate mean ignores it; remove it"),
        (["stages.ppo.value_coef=0.5"], "value_coef=0.5: has no effect without value_trunk: policy"),
        (
            ["stages.ppo.value_trunk=policy", "stages.ppo.value_init=reward"],
            "value_init=reward: would have the policy's layers start as the reward model's; use zero, or value_trunk",
        ),
        (["stages.ppo.advantage_estimator=rloo"], "rloo compares an answer with others to its prompt, and samples_"),
        ([*RLOO, "stages.ppo.gae_lambda=1"], "gae_lambda=1: has no effect without advantage_estimator: gae; set that"),
        ([*RLOO, "stages.ppo.gamma=0.9"], "gamma=0.9: has no effect without advantage_estimator: gae"),
        ([*RLOO, "stages.ppo.value_trunk=policy"], "value_trunk=policy: has no effect without advantage_estimator"),
        ([*RLOO, "stages.ppo.value_coef=0.3"], "value_coef=0.3: has no effect without advantage_estimator: gae"),
        ([*RLOO, "stages.ppo.value_warmup=99"], "value_warmup=99: has no effect without advantage_estimator: gae"),
        ([*RLOO, "stages.ppo.value_init=reward"], "value_init=reward: has no effect without advantage_estimator"),
        (
            ["stages.ppo.advantage_estimator=rloo", "stages.ppo.samples_per_prompt=3"],
            "are not whole prompts of 3; it can be 2, 4, 8, 16, 32, 64",
        ),
        (
            [*RLOO, "stages.ppo.minibatches=64"],
            "1 answers (rollout_batch_size / minibatches) are not whole prompts of 4; lower minibatches, or raise",
        ),
        ([*RLOO, "stages.ppo.value_warmup=1"], "value_warmup=1: has no effect without advantage_estimator: gae"),
        # rollouts
        (
            ["stages.ppo.samples_per_prompt=3"],
            "a step's 64 answers (rollout_batch_size / minibatches) are not whole prompts of 3; it can be 1, 2, 4, 8,",
        ),
        (
            ["stages.ppo.samples_per_prompt=32", "stages.ppo.minibatches=4"],
            "16 answers (rollout_batch_size / minibatches) are not whole prompts of 32; it can be 1, 2, 4, 8, 16",
        ),
        (["stages.ppo.episodes=650"], "rollout_batch_size 64; write episodes: 640 or 704"),
        (["stages.ppo.episodes=63"], "63 is not a multiple of rollout_batch_size 64; write episodes: 64"),
        (
            ["stages.ppo.rollout_batch_size=48"],
            "r.yaml:9: stages.ppo.episodes: 640 is not a multiple of rollout_batch_size 48; write episodes: 624 or 672",
        ),
        (["stages.ppo.value_warmup=10"], "value_warmup=10: the policy would never train: there are 10 rollouts"),
        # divergence
        ([TARGET, "stages.ppo.kl_coef=0"], "kl_target=6: adapts kl_coef by factors, and 0 stays 0; write a kl_coef"),
        ([TARGET, "stages.ppo.kl_max=6"], "kl_target=6: is not below kl_max (6), above which training stops"),
        ([TARGET, "stages.ppo.kl_horizon=12"], "one rollout of 64 answers push kl_coef to 0; write 13"),
        # the rest
        (["stages.ppo.deepspeed=zero9"], "deepspeed=zero9: expected one of inherit, none"),
        (["stages.ppo.precision=fp16"], "precision=fp16: PPO computes in bf16 or fp32"),
        (["stages.ppo.overlong_buffer=129"], "overlong_buffer=129: is longer than max_new_tokens (128)"),
        (
            ["data={preference: {sources: [{path: p}]}}", "stages={reward: null, ppo: {ptx_coef: 1}}"],
            "ptx_coef: mixes in demonstrations, but data.sft is absent",
        ),
        (
            ["data.preference=null"],
            "stages.reward: a reward stage trains on data.preference, which is absent",
        ),
    ],
)  # fmt: skip
def test_a_contradiction_is_placed_and_explained(overrides, said):
    message = refused(*overrides)
    assert len(message.splitlines()) == 1, message
    assert said in message


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["stages.ppo.reward_model=reward"],
        [RULES],
        [rewards("from: reward", "from: rules, weight: 0.5", "from: ./folder, weight: -1", "from: owner/model")],
        [rewards("from: function")],
        ["stages.ppo.policy=base"],
        ["stages.ppo.value_init=reward"],
        [RULES, "stages.ppo.value_init=zero"],
        RLOO,
        [*RLOO, "stages.ppo.minibatches=16"],
        ["stages.ppo.samples_per_prompt=4"],
        ["stages.ppo.value_trunk=policy"],
        ["stages.ppo.value_trunk=policy", "stages.ppo.value_init=zero", "stages.ppo.value_coef=1"],
        ["stages.ppo.gate.min_accuracy=0"],
        [RULES, "stages.ppo.gate.min_accuracy=0"],
        [rewards("from: rules", "from: reward"), "stages.ppo.gate.min_accuracy=0.6"],
        [RULES, "stages.ppo.gate.min_accuracy=0.5", "stages.ppo.normalise_scores=true"],
        ["stages.ppo.normalise_scores=false"],
        [TARGET, "stages.ppo.kl_horizon=13", "stages.ppo.kl_max=6.1"],
        ["stages.ppo.kl_coef=0"],
        ["stages.ppo.overlong_buffer=128", "stages.ppo.overlong_penalty=2"],
        ["stages.ppo.rollout_engine=vllm_server", "stages.ppo.vllm={url: 'http://a', importance_cap: 3}"],
        ["stages.ppo.rollout_engine=vllm_colocate", "stages.ppo.vllm={gpu_memory_utilization: 0.5}"],
        ["stages.ppo.value_warmup=9"],
        ["stages.ppo.episodes=64", "stages.ppo.eval_every=100", "stages.ppo.save_every=100"],
        ["stages.ppo.deepspeed=none"],
        ["stages.ppo.deepspeed=zero2"],
        ["stages.ppo.ptx_coef=0.5"],
        ["stages.reward={ensemble: 3, aggregate: mean_minus_variance, variance_weight: 1.0}"],
        ["stages.reward={ensemble: 1, aggregate: mean, variance_weight: 0.1}"],
        ["stages.reward.trainer_args={adam_beta2: 0.95}"],
    ],
)
def test_what_is_next_to_a_contradiction_passes(overrides):
    load(*overrides)


def test_the_defaults_of_a_ppo_stage_agree_with_each_other():
    """Whole rollouts, whole batches; also where both numbers are left unsaid."""
    loaded = load("stages.ppo={}")
    assert check_batches(loaded.recipe, 1) == {"sft": 4, "reward": 4, "ppo": 16}


def test_a_resolved_recipe_loads_to_an_equal_one():
    """It writes every default, none of which may be refused for having no effect."""
    for overrides in (
        [],
        ["stages.ppo.reward_model=reward", "stages.reward.ensemble=3", "stages.ppo.ptx_coef=0.1"],
        [RULES],
        [rewards("from: reward, weight: 2", "from: rules", "from: function", "from: ./folder")],
        ["stages.ppo.rollout_engine=vllm_server", "stages.ppo.kl_target=3", "stages.ppo.value_learning_rate=1e-5"],
    ):
        first = load(*overrides)
        again = loads_recipe(first.resolved_yaml())
        assert again.recipe == first.recipe
        assert again.resolved_yaml() == first.resolved_yaml()


def test_lineage_defaults():
    more = ["stages.second={kind: reward, init: base}", "stages.best={kind: ppo}", "stages.last={kind: dpo}"]
    recipe = load(*more, "stages.other={kind: ppo, policy: ppo, reward_model: reward}").recipe
    starts = {name: policy_of(recipe, name) for name in recipe.stages}
    assert starts == {
        "sft": None, "reward": "sft", "ppo": "sft", "second": None, "best": "sft", "last": "sft", "other": "ppo",
    }  # fmt: skip
    assert reference_of(recipe, "other") == "ppo"
    assert parents_of(recipe, "reward") == {"init": "sft"}
    assert parents_of(recipe, "second") == {}
    assert parents_of(recipe, "ppo") == {"policy": "sft", "reward_1": "reward"}
    assert parents_of(recipe, "best") == {"policy": "sft", "reward_1": "second"}, "the last reward stage before it"
    assert parents_of(recipe, "other") == {"policy": "ppo", "reward_1": "reward"}
    assert parents_of(recipe, "last") == {"policy": "sft"}


def test_roles_count_all_rewards_and_only_stages_are_parents():
    recipe = load(rewards("from: rules", "from: reward, weight: 2", "from: function")).recipe
    assert [(source.from_, source.weight) for source in reward_sources(recipe, "ppo")] == [
        ("rules", 1.0), ("reward", 2.0), ("function", 1.0),
    ]  # fmt: skip
    assert parents_of(recipe, "ppo") == {"policy": "sft", "reward_2": "reward"}
    assert reward_sources(recipe, "sft") == ()


@pytest.mark.parametrize(
    ("overrides", "reward", "ppo"),
    [
        ([], ("preference", "sft"), ("preference",)),
        (["data.prompts.from=sft"], ("preference", "sft"), ("sft",)),
        (["stages.ppo.ptx_coef=1"], ("preference", "sft"), ("preference", "sft")),
        (["stages.ppo.ptx_coef=1", "data.prompts.from=sft"], ("preference", "sft"), ("sft",)),
    ],
)
def test_data_that_is_read(overrides, reward, ppo):
    """Demonstrations set the zero of a reward model's scores, and are mixed into PPO where that is asked for."""
    recipe = load(*overrides).recipe
    assert (used_data(recipe, "reward"), used_data(recipe, "ppo")) == (reward, ppo)


def test_a_reward_model_does_without_demonstrations():
    recipe = load("data.sft=null", "stages={reward: null, ppo: null}").recipe
    assert used_data(recipe, "reward") == ("preference",)
    assert parents_of(recipe, "ppo") == {"reward_1": "reward"}


def test_rollouts_divide_into_minibatches_and_passes():
    loaded = load("stages.ppo.minibatches=4", "stages.ppo.per_device_batch_size=8")
    assert check_batches(loaded.recipe, 1)["ppo"] == 2
    assert check_batches(loaded.recipe, 2)["ppo"] == 1
    with pytest.raises(RecipeError, match=r"r.yaml:9: stages.ppo: .* minibatches 16 .* 8 x 4 proc.* one of 1, 2, 4"):
        check_batches(load("stages.ppo.minibatches=4", "stages.ppo.per_device_batch_size=8").recipe, 4, loaded.places)
    odd = load("stages.ppo.minibatches=5")
    with pytest.raises(RecipeError, match="rollout_batch_size 64 does not divide into 5 minibatches"):
        check_batches(odd.recipe, 1, odd.places)


@pytest.mark.parametrize("name", ["ppo", "tuned"])
def test_a_function_is_given_where_the_recipe_asks_for_one_and_only_there(name):
    stages = f"{{sft: null, reward: null, {name}: {{kind: ppo}}}}"
    ask = f"stages.{name}.rewards=[{{from: reward}}, {{from: function}}]"
    asking, silent = load(f"stages={stages}", ask), load(f"stages={stages}")
    check_reward_function(asking.recipe, "f.py:f", asking.places)
    check_reward_function(silent.recipe, None, silent.places)
    with pytest.raises(RecipeError) as caught:
        check_reward_function(asking.recipe, None, asking.places)
    assert str(caught.value).startswith(f"--set stages.{name}.rewards=...: stages.{name}.rewards: asks for a function")
    assert "add `--reward file.py:function`" in str(caught.value)
    with pytest.raises(RecipeError) as caught:
        check_reward_function(silent.recipe, "f.py:f", silent.places)
    cure = f"stages.{name}.rewards=[{{from: function}}]"
    assert str(caught.value).startswith("--reward f.py:f: no ppo stage of this recipe asks for a function; add --set ")
    assert str(caught.value).endswith(cure.replace("=", "='", 1) + "'")
    check_reward_function(load(f"stages={stages}", cure).recipe, "f.py:f")


def test_a_function_without_a_ppo_stage():
    with pytest.raises(RecipeError, match="it has no ppo stage at all"):
        check_reward_function(load("stages={sft: null}").recipe, "f.py:f")


def test_the_controllers_largest_step_is_the_one_that_is_checked():
    from pipeline.algorithms.kl import AdaptiveKL

    assert KL_STEP == AdaptiveKL.LIMIT
    horizon = int(KL_STEP * 64) + 1
    assert AdaptiveKL(0.1, 6.0, horizon).update(0.0, 64) > 0
    with pytest.raises(ValueError, match="horizon"):
        AdaptiveKL(0.1, 6.0, horizon - 1).update(0.0, 64)
