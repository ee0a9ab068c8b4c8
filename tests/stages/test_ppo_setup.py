"""What a PPO stage makes of its recipe before it trains: the gate, prompts, demonstrations, rewards, roles."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from data_prep.chat import ChatFormatter
from pipeline.errors import DataError, RecipeError, TrivetError
from pipeline.models.reward_model import combine, normalise, read_spec
from pipeline.models.roles import POLICY, VALUE
from pipeline.rollouts.rewards import FunctionReward, RuleReward, StageReward
from pipeline.runtime import Ranks
from pipeline.stages.ppo_roles import adapter_parameters, make_roles, reward_models
from pipeline.stages.ppo_setup import demonstrations_to_mix, make_prompts, make_rewards, require_gate
from tests.rollouts.ppo_parts import LORA, lively_base, make_parts, stage_context, trained_reward


@pytest.fixture(scope="module")
def llama(tiny_folder, tmp_path_factory) -> Path:
    return lively_base(tmp_path_factory.mktemp("llama"), tiny_folder)


# The gate


def judge(**metrics: Any) -> Any:
    return SimpleNamespace(manifest=SimpleNamespace(metrics=metrics))


def asked(tmp_path: Path, parent: Any, **ppo: Any) -> None:
    context: Any = stage_context(tmp_path / "ppo", tmp_path, parents={"reward_1": parent}, rewards=None, **ppo)
    require_gate(context, context.recipe.stages["ppo"])


def test_a_reward_model_that_can_tell_passes(tmp_path):
    asked(tmp_path, judge(eval_accuracy=0.7, eval_accuracy_ci95=[0.51, 0.83], eval_n=40))


@pytest.mark.parametrize("low", [0.31, 0.5])
def test_one_that_cannot_is_refused_with_its_figures(tmp_path, low):
    """The interval's lower end counts, and must be above what is asked."""
    parent = judge(eval_accuracy=0.62, eval_accuracy_ci95=[low, 0.8], eval_n=40)
    with pytest.raises(TrivetError) as refused:
        asked(tmp_path, parent)
    said = str(refused.value)
    assert f"reward model reward prefers the better answer in 62% of 40 held-out pairs [{low:.2f}, 0.80]" in said
    assert "--set stages.ppo.gate.min_accuracy=0" in said and refused.value.exit_code == 1
    asked(tmp_path, parent, gate={"min_accuracy": 0})
    asked(tmp_path, parent, gate={"min_accuracy": 0.3})


def test_one_that_was_not_measured_is_refused(tmp_path):
    with pytest.raises(TrivetError, match=r"measured on no held-out pairs.*eval_fraction.*min_accuracy=0"):
        asked(tmp_path, judge(eval_accuracy=None, eval_accuracy_ci95=None))
    asked(tmp_path, judge(), gate={"min_accuracy": 0})


# Prompts


def prompt_set(tmp_path: Path, base: Path, tokenizer: Any, seen: Any = (), **settings: Any) -> Any:
    context: Any = stage_context(tmp_path / "ppo", base, **settings)
    stage = context.recipe.stages["ppo"]
    return make_prompts(context, stage, ChatFormatter(tokenizer), frozenset(seen), 4096)


def test_prompts_are_divided_and_encoded(tmp_path, llama, tiny_tokenizer):
    found = prompt_set(tmp_path, llama, tiny_tokenizer)
    assert len(found.train) == 8 and len(found.held_out) == 4
    formatter = ChatFormatter(tiny_tokenizer)
    for prompt, ids in [*found.train, *found.held_out]:
        assert ids == formatter.prompt_ids(prompt.messages)
    words = {prompt.messages[-1].content for prompt, _ in found.train}
    assert not words & {prompt.messages[-1].content for prompt, _ in found.held_out}
    assert len(prompt_set(tmp_path, llama, tiny_tokenizer, eval_prompts=2).held_out) == 2


def test_held_out_prompts_that_an_ancestor_saw_are_left_out(tmp_path, llama, tiny_tokenizer):
    from data_prep.build import prompt_hashes

    everything = prompt_set(tmp_path, llama, tiny_tokenizer)
    seen = prompt_hashes([everything.held_out[0][0], everything.train[0][0]])
    found = prompt_set(tmp_path, llama, tiny_tokenizer, seen=seen)
    assert len(found.held_out) == 3 and len(found.train) == 8


def test_with_rules_only_prompts_that_have_one(tmp_path, llama, tiny_tokenizer):
    prompt_set(tmp_path, llama, tiny_tokenizer)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    for row in rows[:2]:
        del row["check"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = prompt_set(tmp_path, llama, tiny_tokenizer, rewards=[{"from": "rules"}])
    assert len(found.train) == 6 and found.report["dropped"]["no_rule"] == 2
    assert len(prompt_set(tmp_path, llama, tiny_tokenizer).train) == 8


def test_nothing_to_train_on_is_a_sentence(tmp_path, llama, tiny_tokenizer):
    rows = [{"instruction": f"Say {n}", "output": "x", "split": "eval"} for n in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match="stage ppo: no prompt is left to train on") as raised:
        prompt_set(tmp_path, llama, tiny_tokenizer)
    assert raised.value.exit_code == 65


def test_answers_must_fit_behind_the_prompts(tmp_path, llama, tiny_tokenizer):
    with pytest.raises(RecipeError, match=r"max_new_tokens 4090 that is more than the model's context of 4096"):
        prompt_set(tmp_path, llama, tiny_tokenizer, max_new_tokens=4090)


# Demonstrations


def test_as_many_demonstrations_as_a_step_has_answers(tmp_path, llama, tiny_tokenizer):
    """Drawn by the step's number alone, and dealt round over the ranks."""
    context: Any = stage_context(tmp_path / "ppo", llama, ptx_coef=0.1)
    stage, formatter = context.recipe.stages["ppo"], ChatFormatter(tiny_tokenizer)

    def drawn(step: int, rank: int = 0, world: int = 1) -> list[Any]:
        draw = demonstrations_to_mix(context.recipe, stage, formatter, Ranks(rank, rank, world))
        assert draw is not None
        return list(draw(step))

    assert len(drawn(0)) == 4 == stage.rollout_batch_size // stage.minibatches
    assert drawn(3) == drawn(3) and any(drawn(3) != drawn(step) for step in (0, 1, 2))
    assert [row for pair in zip(drawn(1, 0, 2), drawn(1, 1, 2), strict=True) for row in pair] == drawn(1)
    assert all(any(mask) and not mask[0] for _, mask in drawn(0))
    stage = stage.model_copy(update={"ptx_coef": 0.0})
    assert demonstrations_to_mix(context.recipe, stage, formatter, Ranks(0, 0, 1)) is None


# Rewards and roles


def test_rewards_are_made_in_the_recipes_order(tmp_path, llama):
    reward = trained_reward(tmp_path / "reward", llama, LORA, members=2)
    sources = [{"from": "rules", "weight": 0.5}, {"from": "reward", "weight": -1.0}, {"from": "function"}]
    context: Any = stage_context(tmp_path / "ppo", llama, parents={"reward_2": reward}, rewards=sources)
    settings = context.recipe.stages["ppo"]
    _, roles = make_roles(context, settings, "fp32")
    found = make_rewards(context, settings, roles, 0)
    assert [type(each) for each, _ in found] == [RuleReward, StageReward, FunctionReward]
    assert [weight for _, weight in found] == [0.5, -1.0, 1.0]
    judged: Any = found[1][0]
    assert judged.members == ("reward_2_1", "reward_2_2") and judged.spec == reward_models(context)[0].spec
    assert judged.name == "reward" and judged.normalised


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("normalised", [True, False])
def test_the_value_model_starts_from_its_rewards_part_of_the_score(tmp_path, llama, normalised, members):
    """Its weight times what the reward gives where all members agree with the first."""
    reward = trained_reward(tmp_path / "reward", llama, LORA, members)
    sources = [{"from": "reward", "weight": 3.0}]
    context: Any = stage_context(
        tmp_path / "ppo", llama, parents={"reward_1": reward}, rewards=sources, normalise_scores=normalised
    )
    _, roles = make_roles(context, context.recipe.stages["ppo"], "fp32")
    hidden, spec = torch.randn(5, roles._heads[VALUE].in_features), read_spec(reward)
    raw = roles._heads["reward_1_1"](hidden)[:, 0].detach()
    first, second = spec.members[0], spec.members[-1]
    agreeing = (raw - first.offset) / first.scale * second.scale + second.offset
    expected = (normalise if normalised else combine)(torch.stack([raw, agreeing][:members]), spec)
    assert torch.allclose(roles._heads[VALUE](hidden)[:, 0], 3.0 * expected, atol=1e-5)


def test_an_adapters_parameters_are_not_a_layers_of_its_name():
    """Some architectures have a layer called `value`."""

    class Attention(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.key, self.value = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.value(x)

    config = LoraConfig(r=2, target_modules=["value", "key"])
    model: Any = get_peft_model(torch.nn.Sequential(Attention()), config, adapter_name="default")
    model.add_adapter("value", config)
    found = {name for name, p in model.named_parameters() if any(p is q for q in adapter_parameters(model, "value"))}
    assert found == {name for name, _ in model.named_parameters() if name.endswith(".value.weight") and "lora_" in name}
    assert len(found) == 4


def test_two_trainings_share_nothing(tmp_path, llama):
    """Policy and value own different tensors in either form."""
    for number, adapter in enumerate((LORA, "none")):
        parts = make_parts(tmp_path / str(number), llama, adapter)
        places = [{p.data_ptr() for p in parts.roles.trainable(role)} for role in (POLICY, VALUE)]
        assert places[0] and places[1] and not places[0] & places[1]
