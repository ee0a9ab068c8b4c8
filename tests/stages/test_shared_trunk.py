"""Stages that share what the layers below the adapter give: the same trainings from less work, resumed to the bit."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerCallback
from trl import DPOConfig, RewardConfig, SFTConfig

from pipeline.models import adapters
from pipeline.models.frozen_trunk import Split
from pipeline.models.heads import new_head, with_head
from pipeline.models.load import load_base, load_classifier
from pipeline.models.roles import POLICY, REFERENCE, VALUE
from pipeline.models.stream_forward import take_streams
from pipeline.recipe.schema import AdapterSettings, ModelSettings
from pipeline.recipe.stage_settings import DpoSettings, RewardSettings, SftSettings
from pipeline.rollouts.collect import MicroBatch
from pipeline.rollouts.rewards import StageReward
from pipeline.stages import shared_trunk as module
from pipeline.stages.dpo_objective import Preference
from pipeline.stages.dpo_reference import add_reference, reference_call
from pipeline.stages.ppo_update import Learner
from pipeline.stages.reward_objective import Comparison, MarginPair
from pipeline.stages.sft_objective import Imitation
from pipeline.stages.shared_trunk import SharedTrunk, share_trunk
from pipeline.stages.stream_trainer import StreamTrainer
from tests.rollouts.ppo_parts import ALONE, PAD, REWARD, collected, lively_base, make_parts, some_episodes
from tests.stages.short_runs import PER_STEP, demonstrations, pairs, trained

STEPS = 4
TOP = AdapterSettings(r=4, alpha=8, layers="top-1")
SETTINGS: dict[str, Any] = {"sft": SftSettings, "dpo": DpoSettings, "reward": RewardSettings}
CONFIGS: dict[str, Any] = {"sft": SFTConfig, "dpo": DPOConfig, "reward": RewardConfig}


class Ear:
    def __init__(self) -> None:
        self.heard: list[str] = []

    def say(self, text: str) -> None:
        self.heard.append(text)


def context_of(adapter: AdapterSettings = TOP, deepspeed: str = "inherit") -> Any:
    recipe = SimpleNamespace(
        model=ModelSettings(base="x", adapter=adapter), stages={"x": SftSettings(deepspeed=deepspeed)}
    )
    return SimpleNamespace(stage="x", console=Ear(), recipe=recipe)


def model_of(stage: str, folder: Path) -> Any:
    """A two-layer model with an adapter that does something on the upper one."""
    settings = ModelSettings(base="x")
    base: Any
    if stage == "reward":
        base = load_classifier(folder, settings, frozen=True, precision="fp32")
        with_head(base, new_head(48, 0))
        found: Any = adapters.attach_for_scores(base, TOP, None)
    else:
        base = load_base(folder, settings, frozen=True, precision="fp32")
        found = adapters.attach_new(base, TOP, dropout=False)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3, generator=draw)
    assert take_streams(found) is None
    return found


def rows_of(stage: str) -> list[Any]:
    count = STEPS * PER_STEP
    if stage == "sft":
        return demonstrations()[:count]
    return pairs()[:count] if stage == "dpo" else [MarginPair(row, 0.0) for row in pairs()[:count]]


def objective_of(stage: str, model: Any) -> Any:
    if stage == "sft":
        return Imitation()
    if stage == "reward":
        return Comparison(use_margins=False, center_coefficient=0.0)
    add_reference(model)
    return Preference(DpoSettings(beta=0.3), reference_call(model, None, "fp32"))


class Short:
    """A short training; tokens through either layer are counted."""

    def __init__(self, stage: str, tiny: Path, output: Path, *, share: bool, epochs: int = 1, **more: Any):
        model, rows = model_of(stage, tiny), rows_of(stage)
        self.objective = objective = objective_of(stage, model)
        self.context = context_of()
        settings = SETTINGS[stage](epochs=epochs, global_batch_size=PER_STEP)
        self.trunk = share_trunk(self.context, settings, model, rows, objective) if share else None
        self.tokens = [0, 0]
        for index, layer in enumerate(model.get_base_model().model.layers):

            def note(_: Any, inputs: Any, index: int = index) -> None:
                self.tokens[index] += inputs[0].shape[-2]

            # Before it: what is computed again ends where the last tensor that is wanted has been made.
            layer.mlp.register_forward_pre_hook(note)
        common: dict[str, Any] = {
            "output_dir": str(output), "per_device_train_batch_size": 3, "gradient_accumulation_steps": 2,
            "learning_rate": 1e-3, "logging_steps": 1, "save_strategy": "no", "use_cpu": True, "bf16": False,
            "report_to": "none", "disable_tqdm": True, "max_length": None, "gradient_checkpointing": False,
            "lr_scheduler_type": "constant", "num_train_epochs": epochs,
        }  # fmt: skip
        arguments = CONFIGS[stage](**(common | more))
        self.trainer = StreamTrainer(model=model, args=arguments, rows=rows, objective=objective, trunk=self.trunk)

    def train(self) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
        return trained(self.trainer)


@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.parametrize("stage", ["sft", "dpo", "reward"])
def test_training_is_that_of_the_whole_model(stage, epochs, tiny_folder, tmp_path):
    """Two micro-batches a step: losses and the first gradient norm to 1e-5, and the weights in the end."""
    shared, whole = (
        Short(stage, tiny_folder, tmp_path, share=share, epochs=epochs) for share in (True, False)
    )  # fmt: skip
    assert isinstance(shared.trunk, SharedTrunk) and shared.trunk.by_row == (epochs > 1)
    assert shared.context.console.heard == ["layers below the adapter, computed once and without gradient: 1"]
    (ours, our_weights), (theirs, their_weights) = shared.train(), whole.train()
    assert len(ours) == len(theirs) == epochs * STEPS
    for a, b in zip(ours, theirs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5, abs=1e-6)
    assert ours[0]["grad_norm"] == pytest.approx(theirs[0]["grad_norm"], rel=1e-5)
    assert len(our_weights) >= 14
    for name, value in our_weights.items():
        assert torch.allclose(value, their_weights[name], rtol=1e-3, atol=1e-5), name
    # Below the adapter: once for policy and reference together, and once in all passes.
    assert shared.tokens[1] == whole.tokens[1] == whole.tokens[0]
    readers = 2 if stage == "dpo" else 1
    if epochs == 1:
        assert shared.tokens[0] * readers == whole.tokens[0]
    else:
        assert shared.tokens[0] == sum(len(shared.objective.stream([row]).ids_N) for row in rows_of(stage))
        assert shared.tokens[0] < whole.tokens[0] / readers


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("stage", ["sft", "dpo", "reward"])
def test_recomputing_activations_changes_nothing(stage, share, tiny_folder, tmp_path):
    """On streams, above a frozen trunk and without one: losses, norms and weights of the same training."""
    plain = Short(stage, tiny_folder, tmp_path, share=share)
    again = Short(stage, tiny_folder, tmp_path, share=share, gradient_checkpointing=True)
    (theirs, their_weights), (ours, our_weights) = plain.train(), again.train()
    for a, b in zip(ours, theirs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-6) and a["grad_norm"] == pytest.approx(
            b["grad_norm"], rel=1e-5
        )
    assert len(our_weights) >= 14
    for name, value in our_weights.items():
        assert torch.allclose(value, their_weights[name], rtol=1e-5, atol=1e-7), name
    # Once more for each backward pass, which DPO's reference has none of; and the frozen layers never.
    assert again.tokens[1] * 2 == plain.tokens[1] * (3 if stage == "dpo" else 4)
    assert again.tokens[0] == plain.tokens[0] if share else again.tokens[0] > plain.tokens[0]


def test_control_states_of_other_rows_are_another_training(tiny_folder, tmp_path, monkeypatch):
    whole, wrong = (Short("dpo", tiny_folder, tmp_path, share=share, max_steps=2) for share in (False, True))
    assert wrong.trunk is not None
    below = wrong.trunk.cache.trunk.below

    def mixed(self: Any, stream: Any, rows: Any, objective: Any) -> Any:
        found = below(stream)
        return type(found)(found.by, found.states_NH.roll(1, 0))

    monkeypatch.setattr(SharedTrunk, "below", mixed)
    (ours, _), (theirs, _) = wrong.train(), whole.train()
    assert abs(ours[1]["loss"] - theirs[1]["loss"]) > 1e-3


class StopAt(TrainerCallback):
    """Saves and stops after so many steps."""

    def __init__(self, step: int):
        self._step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        control.should_save = control.should_training_stop = state.global_step == self._step
        return control


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_a_resumed_training_is_the_same_to_the_bit(stage, tiny_folder, tmp_path):
    """Stopped in its second pass, over rows of which the first process had kept all and the second none."""
    straight, stopped, resumed = (
        Short(stage, tiny_folder, tmp_path, share=True, epochs=2, save_strategy=strategy)
        for strategy in ("no", "epoch", "no")
    )
    _, expected = straight.train()
    stopped.trainer.add_callback(StopAt(STEPS + 2))
    stopped.train()
    resumed.trainer.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{STEPS + 2}"))
    found = {name: value for name, value in resumed.trainer.model.named_parameters() if value.requires_grad}
    assert resumed.trainer.state.global_step == 2 * STEPS and 0 < resumed.tokens[0] < straight.tokens[0]
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_rows_that_do_not_fit_are_computed_in_every_pass(tiny_folder, tmp_path):
    model, rows = model_of("sft", tiny_folder), demonstrations()
    objective = Imitation()
    context = context_of(TOP.model_copy(update={"trunk_cache_gib": 1e-5}))
    found = share_trunk(context, SftSettings(epochs=2), model, rows, objective)
    assert found is not None and not found.by_row
    assert "more than model.adapter.trunk_cache_gib: it is computed anew in every pass" in context.console.heard[1]
    for settings, by_row in (
        (SftSettings(max_steps=4, global_batch_size=len(rows)), True),
        (SftSettings(epochs=9, max_steps=1, global_batch_size=len(rows)), False),
    ):
        found = share_trunk(context_of(), settings, model, rows, objective)
        assert found is not None and found.by_row == by_row


def test_what_cannot_be_shared_is_said(tiny_folder, monkeypatch):
    model = model_of("sft", tiny_folder)
    monkeypatch.setattr(module, "split_trunk", lambda model: Split(None, "it is so"))
    context = context_of()
    assert share_trunk(context, SftSettings(), model, [], Imitation()) is None
    assert "computed again for every role and pass: it is so" in context.console.heard[0]


@pytest.mark.parametrize(("engine", "shares"), [("zero2", True), ("zero3", False)])
def test_layers_that_all_ranks_gather_together_are_not_skipped_by_one(tiny_folder, engine, shares):
    context = context_of(deepspeed=engine)
    found = share_trunk(context, SftSettings(), model_of("sft", tiny_folder), [], Imitation())
    assert (found is not None) == shares
    assert ("under DeepSpeed ZeRO-3 every layer is gathered" in context.console.heard[0]) != shares


# PPO


@pytest.fixture(scope="module")
def llama(tiny_folder, tmp_path_factory) -> Path:
    return lively_base(tmp_path_factory.mktemp("llama"), tiny_folder)


EPISODES = some_episodes()


def rollout(
    folder: Path, base: Path, *, recomputing: bool = False, **adapter: Any
) -> tuple[Any, list[float], list[list[MicroBatch]], list[int]]:
    """A rollout scored, collected and learnt from: the parts, the scores, the micro-batches, tokens by layer."""
    settings: dict[str, Any] = {
        "learning_rate": 1e-3, "max_new_tokens": 12, "epochs": 2, "per_device_batch_size": 4,
        "gradient_checkpointing": recomputing,
    }  # fmt: skip
    parts = make_parts(folder, base, {"r": 4, "layers": "top-1", **adapter}, **settings)
    seen = [0, 0]
    for index, layer in enumerate(parts.policy.model.get_base_model().model.layers):

        def note(_: Any, inputs: Any, index: int = index) -> None:
            seen[index] += inputs[0].shape[-2]

        layer.mlp.register_forward_pre_hook(note)
    judge = StageReward(
        name="reward", roles=parts.roles, members=(REWARD,), spec=SPEC, normalised=False, pad_id=PAD, batch_size=4,
        ranks=ALONE,
    )  # fmt: skip
    scores = judge.scores(EPISODES)
    minibatches = collected(parts, EPISODES, scores)
    Learner(parts.roles, parts.settings, 4, ALONE, None, PAD).learn(minibatches, 0, value_only=False)
    return parts, scores, minibatches, seen


SPEC: Any = SimpleNamespace(
    members=(SimpleNamespace(offset=0.0, scale=1.0),), aggregate="mean", variance_weight=0.1, offset=0.0, scale=1.0
)


def test_all_roles_and_passes_of_ppo_share_it(llama, tmp_path):
    """Reward, policy, reference and value once each, then two passes of policy and value: eight readers.

    A second rollout starts afresh; without memory for it the frozen layer is computed for each reader, to the bit.
    """
    parts, scores, kept, seen = rollout(tmp_path / "kept", llama)
    others, other_scores, anew, counted = rollout(tmp_path / "anew", llama, trunk_cache_gib=0)
    assert seen[1] == counted[1] == counted[0] == 8 * seen[0] > 0
    assert scores == other_scores
    for role in (POLICY, VALUE):
        for a, b in zip(parts.roles.trainable(role), others.roles.trainable(role), strict=True):
            assert torch.equal(a, b)
    for one, other in zip(kept[0], anew[0], strict=True):
        for name in ("old_logps_BR", "ref_logps_BR", "values_BR", "advantages_BR"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name
    before = seen[0]
    parts.roles.forget()
    parts.roles.values(kept[0][0].batch)
    assert seen[0] > before


def test_ppo_with_it_is_ppo_without(llama, tmp_path, monkeypatch):
    """Against roles that know no split: log-probabilities, values, scores and the parameters learnt."""
    parts, scores, micros, _ = rollout(tmp_path / "split", llama)
    monkeypatch.setattr("pipeline.stages.ppo_roles.trunk_cache", lambda context, model: None)
    others, other_scores, other_micros, counted = rollout(tmp_path / "whole", llama)
    assert counted[0] == counted[1]
    assert scores == pytest.approx(other_scores, rel=1e-5)
    for one, other in zip(micros[0], other_micros[0], strict=True):
        for name in ("old_logps_BR", "ref_logps_BR", "values_BR", "returns_BR"):
            assert torch.allclose(getattr(one, name), getattr(other, name), rtol=1e-5, atol=1e-5), name
    for role in (POLICY, REFERENCE, VALUE):
        for a, b in zip(parts.roles.trainable(role), others.roles.trainable(role), strict=True):
            assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)
    assert len(parts.roles.trainable(POLICY)) == 14


def test_ppo_above_it_recomputes_activations_to_the_same_end(llama, tmp_path):
    """Old and new log-probabilities, and the parameters learnt; the frozen layer is not computed again."""
    parts, _, micros, seen = rollout(tmp_path / "plain", llama)
    others, _, other_micros, counted = rollout(tmp_path / "again", llama, recomputing=True)
    assert counted[0] == seen[0] and counted[1] == seen[1] * 12 / 8
    for one, other in zip(micros[0], other_micros[0], strict=True):
        assert torch.equal(one.old_logps_BR, other.old_logps_BR) and torch.equal(one.values_BR, other.values_BR)
    for role in (POLICY, VALUE):
        for a, b in zip(parts.roles.trainable(role), others.roles.trainable(role), strict=True):
            assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)
