"""Someone with another program's PPO settings learns, for each word, what it is called here or why there is none."""

from __future__ import annotations

import re

import pytest

from pipeline.errors import RecipeError
from pipeline.recipe import PpoSettings, loads_recipe
from pipeline.recipe.foreign import ALIASES, DECIDED, OTHER_KINDS, RUN_KEYS, STAGE_KEYS
from pipeline.recipe.foreign_ppo import PPO_DECIDED, PPO_KEYS
from pipeline.recipe.source import REPOSITORY
from pipeline.recipe.vocabulary import keys_of, schema_keys

TEXT = """\
name: demo
data: {sft: {sources: [{path: a}]}, preference: {sources: [{path: p}]}}
stages: {sft: , reward: , ppo: , dpo: }
"""
OWN = set(keys_of(PpoSettings))
PATHS = {key.path for key in schema_keys()}
# Fields of the library's classes, without those of transformers' TrainingArguments.
TRL_0_11_PPO = """
    exp_name seed log_with task_name model_name query_dataset reward_model remove_unused_columns tracker_kwargs
    accelerator_kwargs project_kwargs tracker_project_name push_to_hub_if_best_kwargs steps learning_rate adap_kl_ctrl
    init_kl_coef kl_penalty target horizon gamma lam cliprange cliprange_value vf_coef batch_size forward_batch_size
    mini_batch_size gradient_accumulation_steps world_size ppo_epochs max_grad_norm optimize_cuda_cache
    optimize_device_cache early_stopping target_kl compare_steps ratio_threshold use_score_scaling use_score_norm
    score_clip whiten_rewards gradient_checkpointing is_encoder_decoder is_peft_model backward_batch_size
    global_backward_batch_size global_batch_size dataset_num_proc
"""
TRL_0_11_PPO_V2 = """
    run_name dataset_num_proc num_mini_batches total_episodes local_rollout_forward_batch_size num_sample_generations
    response_length stop_token stop_token_id temperature missing_eos_penalty sft_model_path world_size num_total_batches
    micro_batch_size local_batch_size batch_size local_mini_batch_size mini_batch_size exp_name reward_model_path
    num_ppo_epochs whiten_rewards kl_coef cliprange vf_coef cliprange_value gamma lam
"""
TRL_1_12 = """
    learning_rate dataset_num_proc num_mini_batches total_episodes local_rollout_forward_batch_size
    num_sample_generations response_length stop_token stop_token_id temperature missing_eos_penalty sft_model_path
    world_size num_total_batches micro_batch_size local_batch_size batch_size local_mini_batch_size mini_batch_size
    push_to_hub reward_model_path model_adapter_name ref_adapter_name num_ppo_epochs whiten_rewards kl_coef kl_estimator
    cliprange vf_coef cliprange_value gamma lam ds3_gather_for_generation
"""


def answer(key: str) -> str:
    """Return what is said of a key, without its place."""
    with pytest.raises(RecipeError) as caught:
        loads_recipe(TEXT, "r.yaml", [f"{key}=1"])
    (line,) = str(caught.value).splitlines()
    return line.partition("=1: ")[2]


@pytest.mark.parametrize("name", sorted({*f"{TRL_0_11_PPO} {TRL_0_11_PPO_V2} {TRL_1_12}".split()} - OWN))
def test_every_setting_that_trl_had_is_answered(name):
    tables = (PPO_KEYS, PPO_DECIDED, STAGE_KEYS, RUN_KEYS, DECIDED, ALIASES, OTHER_KINDS["ppo"])
    assert any(name in table for table in tables)
    said = answer(f"stages.ppo.{name}")
    assert said.startswith("unknown key") and "the keys here are" not in said


@pytest.mark.parametrize("name", PPO_KEYS)
def test_another_name_is_answered_by_ours(name):
    own = PPO_KEYS[name]
    assert own in OWN | PATHS or f"stages.ppo.{own}" in PATHS
    assert answer(f"stages.ppo.{name}").startswith(f"unknown key, did you mean '{own}'")


@pytest.mark.parametrize("name", PPO_DECIDED)
def test_what_there_is_no_key_for_is_answered_by_a_reason(name):
    reason = PPO_DECIDED[name]
    assert answer(f"stages.ppo.{name}") == f"unknown key; {reason}"
    for quoted in re.findall(r"`([^`]+)`", reason):
        (key,) = re.match(r"([\w.]+)", quoted).groups()
        assert key in OWN | PATHS, reason


def test_a_word_has_one_answer_and_no_key_of_ours_is_one():
    assert not set(PPO_KEYS) & set(PPO_DECIDED)
    assert not (set(PPO_KEYS) | set(PPO_DECIDED)) & OWN


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("stages.ppo.beta", "unknown key, did you mean 'kl_coef'?"),
        ("stages.ppo.init", "unknown key, did you mean 'policy'?"),
        ("stages.ppo.global_batch_size", "unknown key, did you mean 'rollout_batch_size'?"),
        ("stages.ppo.num_train_epochs", "unknown key; write `episodes`"),
        ("stages.dpo.kl_coef", "unknown key, did you mean 'beta'?"),
        ("stages.reward.policy", "unknown key, did you mean 'init'?"),
        ("stages.reward.center_rewards_coefficient", "unknown key, did you mean 'center_coefficient'?"),
        ("stages.reward.margin_loss_enable", "unknown key, did you mean 'use_margins'?"),
        ("stages.sft.batch_size", "unknown key, did you mean 'global_batch_size'?"),
        ("stages.sft.steps", "unknown key, did you mean 'max_steps'?"),
        ("stages.sft.cliprange", "unknown key here; in a ppo stage: `clip_range`"),
        ("stages.dpo.vf_coef", "unknown key here; in a ppo stage: policy and value have parameters"),
        ("stages.sft.rewards", "unknown key here; it belongs to a ppo stage"),
        ("stages.sft.url", "unknown key here; it belongs to `vllm` of a ppo stage"),
        ("model.from", "unknown key here; it belongs to `data.prompts` or `rewards[]` of a ppo stage"),
    ],
)
def test_a_words_meaning_depends_on_the_block(key, said):
    assert answer(key).startswith(said)


def test_the_documentation_shows_the_same_table():
    """docs/ppo.md translates; what it says of a word is what an unknown key is answered with."""
    page = (REPOSITORY / "docs" / "ppo.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", page.split("## Names elsewhere")[1], re.MULTILINE)
    assert rows == [
        *((name, f"`{own}`") for name, own in PPO_KEYS.items()),
        *PPO_DECIDED.items(),
    ]
