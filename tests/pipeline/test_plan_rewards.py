"""Which stages an edit of a chain with reward models and PPO runs again, and what enters their keys."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pipeline.errors import SourceUnreachableError
from pipeline.models.source import identify
from pipeline.plan import Node, make_nodes
from pipeline.recipe import PpoSettings, RewardSettings, load_recipe, loads_recipe
from pipeline.reward_function import RewardFunction, find
from pipeline.runtime import ROOT

TEXT = """\
name: plan-test
model: {base: "builtin:tiny-llama", adapter: {r: 4}}
data:
  sft:        {sources: [{path: DATA/sft.jsonl}]}
  preference: {sources: [{path: DATA/pairs.jsonl, limit: 8}]}
stages:
  sft: {epochs: 1}
  reward: {learning_rate: 3.0e-4}
  ppo: {episodes: 64, temperature: 0.7}
  dpo: {beta: 0.1}
evaluation: {prompts: 8}
"""
ALL = {"sft", "reward", "ppo", "dpo", "evaluation"}
PPO = {"ppo", "evaluation"}
REWARD = {"reward", "ppo", "evaluation"}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with data, a function and two folders that pass for reward models."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    rows = [{"instruction": f"say {n}", "output": f"{n}"} for n in range(20)]
    (tmp_path / "data" / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [{"prompt": f"say {n}", "chosen": f"{n}", "rejected": "no"} for n in range(20)]
    (tmp_path / "data" / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    (tmp_path / "mine.py").write_text("def f(prompts, answers):\n    return [0 for _ in answers]\n")
    for folder in ("judge", "other"):
        (tmp_path / folder).mkdir()
        for name in ("config.json", "tokenizer.json", "model.safetensors"):
            (tmp_path / folder / name).write_text(f'{{"is": "{folder}"}}')
    return tmp_path


def nodes(here, *overrides, text=TEXT, function: RewardFunction | None = None) -> dict[str, Node]:
    recipe = loads_recipe(text.replace("DATA", f"{here}/data"), overrides=overrides).recipe
    base = identify(recipe.model.base, recipe.model.revision)
    return {node.name: node for node in make_nodes(recipe, base, here / ".store", function)}


def keys(here, *overrides, text=TEXT, function: RewardFunction | None = None) -> dict[str, str]:
    return {name: node.key for name, node in nodes(here, *overrides, text=text, function=function).items()}


def changed(here, *overrides, before=()) -> set[str]:
    """The stages whose keys differ once the overrides are added."""
    old, new = keys(here, *before), keys(here, *before, *overrides)
    assert set(old) == set(new)
    return {name for name in old if old[name] != new[name]}


EDITS: dict[str, set[str]] = {
    "stages.ppo.kl_coef=0.1": PPO,
    "stages.ppo.learning_rate=1e-5": PPO,
    "stages.ppo.episodes=128": PPO,
    "stages.ppo.policy=base": PPO,
    "stages.ppo.normalise_scores=false": PPO,
    "stages.ppo.value_init=zero": PPO,
    "stages.ppo.value_trunk=policy": PPO,
    "stages.ppo.value_trunk=own": set(),
    "stages.ppo.samples_per_prompt=2": PPO,
    "stages.ppo.samples_per_prompt=1": set(),
    "stages.ppo.advantage_estimator=gae": set(),
    "stages.ppo.tokens_per_device=4096": PPO,
    "stages.ppo.tokens_per_device=null": set(),
    "stages.ppo.eval_every=3": PPO,
    "stages.ppo.rollout_engine=paged": PPO,
    "stages.ppo.rewards=[{from: rules}]": PPO,
    "stages.ppo.rewards=[{from: reward, weight: 2}]": PPO,
    "stages.ppo.rewards=[{from: reward}, {from: rules}]": PPO,
    "stages.ppo.rewards=[{from: ./judge}]": PPO,
    "data.prompts.from=sft": PPO,
    "data.prompts.max_prompt_length=99": PPO,
    "stages.reward.learning_rate=1e-5": REWARD,
    "stages.reward.ensemble=2": REWARD,
    "stages.reward.init=base": REWARD,
    "stages.reward.center_coefficient=0.01": REWARD,
    "stages.reward.trainer_args={adam_beta2: 0.9}": REWARD,
    "stages.dpo.beta=0.2": {"dpo", "evaluation"},
    "data.preference.max_length=99": {"reward", "ppo", "dpo", "evaluation"},
    "stages.sft.epochs=2": ALL,
    "evaluation.prompts=9": {"evaluation"},
    # What is the same said otherwise, or decides only whether and where a stage runs.
    "stages.ppo.reward_model=reward": set(),
    "stages.ppo.rewards=[{from: reward}]": set(),
    "stages.ppo.policy=sft": set(),
    "stages.ppo.gate.min_accuracy=0.7": set(),
    "stages.ppo.gate.min_accuracy=0": set(),
    "stages.ppo.kl_coef=5e-2": set(),
    "stages.reward.init=sft": set(),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_reruns_exactly_what_it_touches(here, edit):
    assert changed(here, edit) == EDITS[edit]


def test_the_gate_and_the_servers_address_are_in_no_key(here):
    server = ["stages.ppo.rollout_engine=vllm_server"]
    assert changed(here, "stages.ppo.vllm.url=http://elsewhere:1", before=server) == set()
    assert changed(here, "stages.ppo.vllm.importance_cap=3", before=server) == PPO
    text = json.dumps(nodes(here, *server)["ppo"].settings)
    assert "min_accuracy" not in text and "127.0.0.1" not in text


def test_every_other_setting_is_in_the_key(here):
    found = nodes(here)
    for kind, block in (("reward", RewardSettings), ("ppo", PpoSettings)):
        missing = set(block.model_fields) - set(found[kind].settings["stage"])
        # Stages' names, what only watches, and what came later and is left out where it says nothing.
        known = {
            "reward": {"init", "seed", "tokens_per_device"},
            "ppo": {
                "policy", "reward_model", "rewards", "gate", "watch", "stop_at_turn", "value_trunk", "value_coef",
                "tokens_per_device", "samples_per_prompt", "advantage_estimator",
            },
        }  # fmt: skip
        assert missing == known[kind]


def test_the_prompts_written_out_are_the_default_ones(here):
    """Evaluation's key knows what was written, PPO's which prompts that means."""
    assert changed(here, "data.prompts.from=preference") <= {"evaluation"}


def test_demonstrations_count_where_they_are_used(here):
    assert changed(here, "data.sft.max_length=99") == ALL, "the reward model's zero, and what PPO starts from"
    alone = ["stages={ppo: {episodes: 64, rewards: [{from: rules}]}}"]
    assert changed(here, "data.sft.max_length=99", before=alone) == {"evaluation"}
    mixed = ["stages={ppo: {episodes: 64, rewards: [{from: rules}], ptx_coef: 0.1}}"]
    assert changed(here, "data.sft.max_length=99", before=mixed) == PPO


def test_a_stage_under_another_name_is_the_same_stage(here):
    named = TEXT.replace("  reward: {", "  judge: {kind: reward, ").replace("  ppo: {", "  tuned: {kind: ppo, ")
    one, two = nodes(here), nodes(here, text=named)
    assert two["judge"].folder == one["reward"].folder
    assert two["tuned"].folder == one["ppo"].folder
    assert two["tuned"].parents == {"policy": "sft", "reward_1": "judge"}


def test_of_two_reward_stages_the_one_that_is_used_counts(here):
    text = TEXT.replace("  ppo: {", "  second: {kind: reward, ensemble: 2}\n  ppo: {reward_model: reward, ")
    one, two = nodes(here), nodes(here, text=text)
    assert two["ppo"].key == one["ppo"].key
    assert nodes(here, "stages.ppo.reward_model=null", text=text)["ppo"].parents["reward_1"] == "second"


def test_an_artefact_is_found_by_kind_and_key(here):
    assert {name: node.folder.name.split("-")[0] for name, node in nodes(here).items()} == {
        "sft": "sft", "reward": "reward", "ppo": "ppo", "dpo": "dpo", "evaluation": "evaluation",
    }  # fmt: skip


def test_rules_or_a_function_need_no_reward_stage(here):
    for source in ("rules", "function"):
        recipe = f"stages={{sft: null, ppo: {{episodes: 64, rewards: [{{from: {source}}}]}}}}"
        found = nodes(here, recipe, function=find("mine.py:f"))
        assert list(found) == ["sft", "ppo", "evaluation"]
        assert found["ppo"].parents == {"policy": "sft"}


# Shipped recipes -----------------------------------------------------------------------------------------------------


def shipped(name: str) -> dict[str, Node]:
    recipe = load_recipe(ROOT / "recipes" / f"{name}.yaml").recipe
    return {node.name: node for node in make_nodes(recipe, identify(recipe.model.base, None), ROOT / ".store")}


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        ("alpaca_dpo", "alpaca_ppo", {"sft"}),
        ("alpaca_ppo", "alpaca_ppo_vs_dpo", {"sft"}),
        ("tiny_dpo", "tiny_ppo", {"sft"}),
    ],
)
def test_shipped_recipes_share_what_they_say_they_share(one, other, shared):
    first, second = shipped(one), shipped(other)
    assert {name for name in set(first) & set(second) if first[name].key == second[name].key} == shared


# The function -------------------------------------------------------------------------------------------------------

FUNCTION = "stages.ppo.rewards=[{from: reward}, {from: function}]"


def test_editing_the_functions_file_reruns_ppo(here):
    before = keys(here, FUNCTION, function=find("mine.py:f"))
    (here / "mine.py").write_text((here / "mine.py").read_text() + "# edited\n")
    after = keys(here, FUNCTION, function=find("mine.py:f"))
    assert {name for name in before if before[name] != after[name]} == PPO


def test_moving_the_functions_file_reruns_nothing(here):
    before = keys(here, FUNCTION, function=find("mine.py:f"))
    (here / "mine.py").rename(here / "moved.py")
    assert keys(here, FUNCTION, function=find("moved.py:f")) == before


def test_another_function_of_the_same_file_reruns_ppo(here):
    """One file may hold several: its content says nothing of which is called."""
    (here / "mine.py").write_text("def f(prompts, answers):\n    return 1\n\ndef g(prompts, answers):\n    return 2\n")
    before = keys(here, FUNCTION, function=find("mine.py:f"))
    after = keys(here, FUNCTION, function=find("mine.py:g"))
    assert {name for name in before if before[name] != after[name]} == PPO


def test_a_function_counts_only_where_it_is_asked_for(here):
    assert keys(here, function=find("mine.py:f")) == keys(here)


# Other reward models -------------------------------------------------------------------------------------------------

JUDGE = "stages.ppo.rewards=[{from: ./judge}]"


def test_a_folder_counts_by_its_weights_not_its_name(here):
    before = keys(here, JUDGE)
    assert keys(here, "stages.ppo.rewards=[{from: ./other}]")["ppo"] != before["ppo"]
    (here / "judge").rename(here / "moved")
    assert keys(here, "stages.ppo.rewards=[{from: ./moved}]") == before
    (here / "moved" / "model.safetensors").write_text("{}")
    after = keys(here, "stages.ppo.rewards=[{from: ./moved}]")
    assert {name for name in before if before[name] != after[name]} == PPO


def test_a_hub_model_counts_by_its_commit(here, monkeypatch):
    from pipeline.models import source

    overrides = "stages.ppo.rewards=[{from: owner/judge}]"
    found = []
    for commit in ("aaaa", "aaaa", "bbbb"):
        monkeypatch.setattr(source, "_hub_commit", lambda base, revision, where, commit=commit: commit)
        found.append(keys(here, overrides))
    assert found[0] == found[1]
    assert {name for name in found[0] if found[0][name] != found[2][name]} == PPO


def test_a_folder_that_is_not_there_is_placed_in_the_recipe(here):
    with pytest.raises(SourceUnreachableError, match=r"^stages.ppo.rewards.0.from: folder ./jugde does not exist"):
        keys(here, "stages.ppo.rewards=[{from: ./jugde}]")


def test_the_order_of_rewards_and_their_weights_count(here):
    one = nodes(here, "stages.ppo.rewards=[{from: reward}, {from: rules, weight: 0.5}]")["ppo"]
    assert one.settings["rewards"] == [
        {"parent": "reward_1", "weight": 1.0}, {"rules": True, "weight": 0.5},
    ]  # fmt: skip
    other = nodes(here, "stages.ppo.rewards=[{from: rules, weight: 0.5}, {from: reward}]")["ppo"]
    assert other.parents == {"policy": "sft", "reward_2": "reward"} and other.key != one.key


def test_a_function_that_was_found_is_what_the_key_is_made_of(here):
    found = find("mine.py:f")
    assert keys(here, FUNCTION, function=replace(found, sha256="0")) != keys(here, FUNCTION, function=found)
