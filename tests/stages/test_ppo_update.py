"""Learning from one rollout: how many steps, along which gradient however rows are batched, and what stops it."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.algorithms.ppo import policy_loss
from pipeline.batches import response_batch
from pipeline.errors import TrivetError
from pipeline.models.roles import POLICY, VALUE
from pipeline.rollouts.collect import MicroBatch
from pipeline.stages import ppo_update
from pipeline.stages.ppo_report import UpdateReport
from pipeline.stages.ppo_update import Learner
from pipeline.stages.ppo_watch import ratio_warnings
from tests.rollouts.ppo_parts import (
    ALONE,
    LORA,
    PAD,
    Parts,
    collected,
    lively_base,
    make_parts,
    some_episodes,
    some_scores,
)

AGGREGATIONS = ["token_mean", "sequence_mean", "sequence_sum", "constant"]
EPISODES, SCORES = some_episodes(), some_scores()
ROWS: list[Any] = [([1, 40, 41, 50, 51, 2], [False] * 3 + [True] * 3), ([1, 60, 2], [False, True, True])] * 2
"""Demonstrations for PPO-ptx."""


@pytest.fixture(scope="module")
def llama(tiny_folder, tmp_path_factory) -> Path:
    return lively_base(tmp_path_factory.mktemp("llama"), tiny_folder)


@pytest.fixture(scope="module")
def gpt2(tiny_folder, tmp_path_factory) -> Path:
    return lively_base(tmp_path_factory.mktemp("gpt2"), tiny_folder, "gpt2")


@pytest.fixture
def make(tmp_path, llama):
    """Parts of a stage with given settings, one rollout of which is three micro-batches of four rows."""
    count = 0

    def made(base: Path = llama, adapter: Any = LORA, members: int = 0, **ppo: Any) -> Parts:
        nonlocal count
        count += 1
        settings = {"learning_rate": 1e-3, "max_new_tokens": 12, "max_grad_norm": 1e9, "epochs": 1, **ppo}
        return make_parts(tmp_path / str(count), base, adapter, members=members, **settings)

    return made


def learner(parts: Parts, draw: Any = None, rollouts: int = 4) -> Learner:
    return Learner(parts.roles, parts.settings, rollouts, ALONE, draw, PAD)


def rollout(parts: Parts) -> list[list[MicroBatch]]:
    return collected(parts, EPISODES, SCORES)


def learn(parts: Parts, minibatches: Any = None, *, value_only: bool = False, draw: Any = None) -> UpdateReport:
    found = rollout(parts) if minibatches is None else minibatches
    return learner(parts, draw).learn(found, 0, value_only=value_only)


def trainable(parts: Parts, role: str) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in parts.roles.trainable(role)]


def both_gradients(parts: Parts, minibatches: Any, draw: Any = None) -> dict[str, torch.Tensor]:
    """What the first step of each role goes along, as one vector; no parameter moves."""
    found: dict[str, torch.Tensor] = {}
    taught = learner(parts, draw)
    for each, optimiser in taught.optimisers.items():

        def keep(each: str = each) -> None:
            found.setdefault(each, flat([p.grad for p in parts.roles.trainable(each)]))

        optimiser.step = keep
    taught.learn(minibatches, 0, value_only=False)
    return found


def gradients(parts: Parts, minibatches: Any, role: str = POLICY, draw: Any = None) -> torch.Tensor:
    return both_gradients(parts, minibatches, draw)[role]


def flat(tensors: Any) -> torch.Tensor:
    return torch.cat([tensor.detach().reshape(-1).double() for tensor in tensors])


def by_autograd(parts: Parts, loss: torch.Tensor, role: str = POLICY) -> torch.Tensor:
    """Gradient of a loss that was written down elsewhere."""
    parts.roles._forward = None
    return flat(torch.autograd.grad(loss, parts.roles.trainable(role), materialize_grads=True))


def all_rows(minibatches: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """Every episode in one batch, with what belongs to its tokens, in the episodes' order."""
    batch = response_batch([e.prompt_ids for e in EPISODES], [e.answer.ids for e in EPISODES], PAD)
    names = ("old_logps_BR", "values_BR", "advantages_BR", "returns_BR")
    fields = {name: torch.zeros(batch.response_mask_BR.shape) for name in names}
    for micro in (micro for minibatch in minibatches for micro in minibatch):
        for place, row in enumerate(micro.rows):
            width = len(EPISODES[row].answer.ids)
            for name in names:
                fields[name][row, :width] = getattr(micro, name)[place, :width]
    return batch, fields


# Steps


@pytest.mark.parametrize(("epochs", "minibatches", "size"), [(1, 1, 12), (3, 1, 4), (2, 3, 2), (4, 2, 3)])
def test_steps_are_passes_times_minibatches(make, epochs, minibatches, size):
    """However many forward passes a minibatch takes."""
    parts = make(epochs=epochs, minibatches=minibatches, per_device_batch_size=size)
    taught = learner(parts)
    report = taught.learn(rollout(parts), 0, value_only=False)
    assert report.steps == taught.steps == epochs * minibatches
    for optimiser in taught.optimisers.values():
        assert {int(state["step"]) for state in optimiser.state.values()} == {epochs * minibatches}


def test_every_pass_has_an_order_of_its_own(make, monkeypatch):
    parts = make(epochs=6, minibatches=3)
    seen: list[tuple[int, ...]] = []
    monkeypatch.setattr(Learner, "_step", lambda self, minibatch, *rest: seen.append(minibatch[0].rows) or True)
    minibatches = rollout(parts)
    learner(parts).learn(minibatches, 0, value_only=False)
    passes = [tuple(seen[start : start + 3]) for start in range(0, 18, 3)]
    assert all(set(each) == {minibatch[0].rows for minibatch in minibatches} for each in passes)
    assert len(set(passes)) > 2
    again, other = list(seen), []
    seen.clear()
    learner(parts).learn(minibatches, 0, value_only=False)
    assert seen == again
    seen.clear()
    learner(parts).learn(minibatches, 1, value_only=False)
    other = list(seen)
    assert other != again


# The ratio before the first step


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("adapter", [LORA, {"r": 4, "type": "dora"}, "none"])
def test_the_first_ratio_is_exactly_one(make, adapter, temperature):
    parts = make(adapter=adapter, temperature=temperature, minibatches=2, per_device_batch_size=2)
    report = learn(parts)
    assert report.first_maxdev == 0.0
    assert report.ratio_max > 1.0, "the second minibatch comes after a step"


def test_the_ratios_variance_is_over_all_tokens_of_a_step(make, monkeypatch):
    """Micro-batches of different lengths; the mean over steps is what is reported."""
    seen = []

    def spied(logps: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor, **rest: Any) -> Any:
        seen.append((logps.detach() - old)[mask].double().exp())
        return policy_loss(logps, old, advantages, mask, **rest)

    monkeypatch.setattr("pipeline.stages.ppo_update.policy_loss", spied)
    found = learn(make(minibatches=2, per_device_batch_size=2, learning_rate=0.02)).means()["policy/ratio_var"]
    steps = [torch.cat(seen[:3]), torch.cat(seen[3:])]
    assert len(seen) == 6 and float(steps[0].var(correction=0)) == 0.0
    assert found == pytest.approx(float(sum(step.var(correction=0) for step in steps)) / 2, rel=1e-3) and found > 1e-4


def test_in_bfloat16_too(make):
    parts = make(per_device_batch_size=4)
    parts.roles._precision = "bf16"
    assert learn(parts).first_maxdev == 0.0


def test_with_absolute_positions_too(make, gpt2):
    assert learn(make(base=gpt2, per_device_batch_size=4)).first_maxdev == 0.0


def test_with_checkpointing_too(make):
    assert learn(make(gradient_checkpointing=True, per_device_batch_size=4)).first_maxdev == 0.0


def test_control_dropout_left_on(make, monkeypatch):
    monkeypatch.setattr("pipeline.stages.ppo_roles.without_dropout", lambda model: model)
    parts = make(adapter={"r": 4, "dropout": 0.1})
    minibatches = rollout(parts)
    parts.policy.model.train()
    assert learn(parts, minibatches).first_maxdev > 1e-3


def test_control_temperature_forgotten_in_training(make, monkeypatch):
    parts = make(temperature=0.7)
    minibatches = rollout(parts)
    logps = parts.roles.logps
    monkeypatch.setattr(parts.roles, "logps", lambda role, batch, temperature, **rest: logps(role, batch, 1.0, **rest))
    assert learn(parts, minibatches).first_maxdev > 0.1


def test_control_positions_forgotten_in_training(make, gpt2, monkeypatch):
    parts = make(base=gpt2)
    minibatches = rollout(parts)
    hidden_states = ppo_update.Roles._hidden.__globals__["hidden_states"]

    def counted(trunk: Any, ids: torch.Tensor, mask: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        return hidden_states(trunk, ids, mask, torch.arange(ids.shape[1]).expand_as(ids))

    monkeypatch.setattr("pipeline.models.forward.attends_in_streams", lambda _: False)
    monkeypatch.setattr("pipeline.models.roles.hidden_states", counted)
    assert learn(parts, minibatches).first_maxdev > 0.1


def test_control_other_micro_batches_round_otherwise(make):
    """Not exactly 1 any more, and not far from it: this is why micro-batches stay as they are."""
    parts = make(per_device_batch_size=4)
    _, old = all_rows(rollout(parts))
    parts.settings.__dict__["per_device_batch_size"] = 1
    apart = 0.0
    for row, episode in enumerate(EPISODES):
        batch = response_batch([episode.prompt_ids], [episode.answer.ids], PAD)
        with torch.no_grad():
            new = parts.roles.logps(POLICY, batch, 1.0).logps_BR[0]
        apart = max(apart, float((new - old["old_logps_BR"][row, : len(new)]).abs().max()))
    assert 0.0 < apart < 1e-4


# The gradient


def test_the_first_loss_is_zero_and_its_gradient_is_not(make):
    """Whitened advantages have mean 0."""
    parts = make(per_device_batch_size=4)
    means = learn(parts).means()
    assert abs(means["policy/loss"]) < 1e-6
    assert means["policy/grad_norm"] > 1e-2


def test_the_first_gradient_is_that_of_reinforce_with_a_baseline(make):
    """-sum A grad log pi / N, written out and differentiated in one batch."""
    parts = make(per_device_batch_size=4, temperature=0.7)
    minibatches = rollout(parts)
    batch, fields = all_rows(minibatches)
    found = gradients(parts, minibatches)
    logps = parts.roles.logps(POLICY, batch, 0.7).logps_BR
    loss = -(fields["advantages_BR"] * logps).sum() / batch.response_mask_BR.sum()
    expected = by_autograd(parts, loss)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))
    assert float(expected.norm()) > 1e-2


def test_the_value_gradient_is_that_of_half_the_mean_square(make):
    parts = make(per_device_batch_size=4, members=1)
    minibatches = rollout(parts)
    batch, fields = all_rows(minibatches)
    found = gradients(parts, minibatches, VALUE)
    apart = torch.where(batch.response_mask_BR, parts.roles.values(batch) - fields["returns_BR"], 0.0)
    expected = by_autograd(parts, 0.5 * apart.square().sum() / batch.response_mask_BR.sum(), VALUE)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("adapter", [LORA, "none"])
def test_on_shared_layers_the_gradient_is_that_of_both_losses(make, adapter):
    """-sum A log pi / N + value_coef sum (V - Ret)^2 / 2N, written out and differentiated in one batch."""
    parts = make(adapter=adapter, per_device_batch_size=4, value_trunk="policy", value_coef=0.4)
    stir_head(parts)
    minibatches = rollout(parts)
    batch, fields = all_rows(minibatches)
    found = both_gradients(parts, minibatches)
    scores, values = parts.roles.logps_and_values(batch, 1.0)
    apart = torch.where(batch.response_mask_BR, values - fields["returns_BR"], 0.0)
    tokens = batch.response_mask_BR.sum()
    of_policy = -(fields["advantages_BR"] * scores.logps_BR).sum() / tokens
    both = of_policy + 0.4 * 0.5 * apart.square().sum() / tokens
    for role in (POLICY, VALUE):
        expected = flat(
            torch.autograd.grad(both, parts.roles.trainable(role), materialize_grads=True, retain_graph=True)
        )
        assert torch.allclose(found[role], expected, rtol=1e-4, atol=2e-6 * float(expected.abs().max())), role
        assert float(expected.norm()) > 1e-3
    # Control: without the value's part the policy's layers would go another way.
    alone = by_autograd(parts, of_policy)
    assert not torch.allclose(found[POLICY], alone, rtol=1e-2, atol=1e-3 * float(alone.abs().max()))


def stir_head(parts: Parts) -> None:
    torch.manual_seed(5)
    for parameter in parts.roles.trainable(VALUE):
        torch.nn.init.normal_(parameter, std=0.1)


@pytest.mark.parametrize(("value_trunk", "passes"), [("own", 18), ("policy", 9)])
def test_shared_layers_are_gone_through_once_for_both(make, monkeypatch, value_trunk, passes):
    """Three micro-batches in three epochs; and one pass less when log-probabilities and values are taken."""
    parts = make(epochs=3, per_device_batch_size=4, value_trunk=value_trunk)
    counted: list[str] = []
    hidden = parts.roles._hidden
    monkeypatch.setattr(parts.roles, "_hidden", lambda role, batch: counted.append(role) or hidden(role, batch))
    minibatches = rollout(parts)
    assert len(counted) == 3 * (3 if value_trunk == "own" else 2)
    counted.clear()
    report = learn(parts, minibatches)
    assert len(counted) == passes and report.first_maxdev == 0.0
    assert {"policy/loss", "policy/grad_norm", "value/loss", "value/grad_norm", "value/clipfrac"} <= set(report.means())


@pytest.mark.parametrize("adapter", [LORA, "none"])
def test_warming_up_a_head_on_shared_layers_moves_the_head_alone(make, adapter):
    parts = make(adapter=adapter, value_trunk="policy")
    before = {role: trainable(parts, role) for role in (POLICY, VALUE)}
    learn(parts, value_only=True)
    assert all(map(torch.equal, before[POLICY], trainable(parts, POLICY)))
    assert not any(map(torch.equal, before[VALUE], trainable(parts, VALUE)))


def test_what_ends_a_rollouts_passes_keeps_a_shared_value_from_learning_too(make):
    """Else its head would step on from a gradient that the policy's layers did not follow."""
    parts = make(value_trunk="policy", stop_kl=1e-9, epochs=3, learning_rate=0.02)
    taught = learner(parts)
    minibatches = rollout(parts)
    assert taught.learn(minibatches, 0, value_only=False).stopped_early
    assert taught.steps == 1
    for role in (POLICY, VALUE):
        assert all(parameter.grad is None for parameter in parts.roles.trainable(role))


@pytest.mark.parametrize("role", [POLICY, VALUE])
def test_on_shared_layers_nothing_steps_along_what_is_not_finite(make, role):
    parts = make(value_trunk="policy")
    minibatches = rollout(parts)
    name = "advantages_BR" if role == POLICY else "returns_BR"
    bad = [[dataclasses.replace(micro, **{name: getattr(micro, name) * math.nan}) for micro in minibatches[0]]]
    before = {each: trainable(parts, each) for each in (POLICY, VALUE)}
    with pytest.raises(TrivetError, match=f"the {role}'s loss became nan at optimiser step 1"):
        learn(parts, bad)
    for each, kept in before.items():
        assert all(map(torch.equal, kept, trainable(parts, each)))


OPTIONS: list[Any] = [
    {"value_trunk": "policy", "value_coef": 0.5},
    {"loss_aggregation": "token_mean", "entropy_coef": 0.3},
    {"loss_aggregation": "sequence_mean"},
    *(pytest.param({"loss_aggregation": mode}, marks=pytest.mark.slow) for mode in AGGREGATIONS[2:]),
    {"clip_range": 0.05, "clip_range_high": 0.1, "dual_clip": 1.1, "value_clip": 0.05},
]


def shifted(minibatches: Any, size: float = 0.3) -> list[list[MicroBatch]]:
    """As if policy and value had moved since the rollout, differently at every token; and weighed like a sampler's."""
    found = []
    for micro in minibatches[0]:
        draw = torch.stack(
            [torch.randn(micro.mask_BR.shape[1], generator=torch.Generator().manual_seed(row)) for row in micro.rows]
        )
        found.append(
            dataclasses.replace(
                micro, old_logps_BR=micro.old_logps_BR + size * draw, values_BR=micro.values_BR + size * draw,
                weights_BR=(1 + 0.5 * draw).clamp(0, 2),
            )
        )  # fmt: skip
    return [found]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_how_rows_are_cut_into_passes_does_not_matter(make, options):
    """Twelve rows of 1 to 12 tokens at once, in threes, or one by one: one gradient of policy and value each."""
    whole = make(per_device_batch_size=12, **options)
    # Noise is drawn per row and column, so that a row's is the same in batches of any width.
    noisy = shifted(rollout(whole))
    expected = both_gradients(whole, noisy)
    for size in (1, 3):
        parts = make(per_device_batch_size=size, **options)
        found = both_gradients(parts, same_noise(rollout(parts), noisy))
        for role, gradient in expected.items():
            assert torch.allclose(found[role], gradient, rtol=1e-4, atol=2e-6 * float(gradient.abs().max())), (
                size,
                role,
            )
            assert float(gradient.norm()) > 1e-3


def same_noise(minibatches: Any, whole: Any) -> list[list[MicroBatch]]:
    """The old values of one layout in another."""
    kept: dict[int, dict[str, torch.Tensor]] = {}
    names = ("old_logps_BR", "values_BR", "weights_BR", "advantages_BR", "returns_BR")
    for micro in whole[0]:
        for place, row in enumerate(micro.rows):
            kept[row] = {name: getattr(micro, name)[place] for name in names}
    found = []
    for micro in minibatches[0]:
        width = micro.mask_BR.shape[1]
        fields = {name: torch.stack([kept[row][name][:width] for row in micro.rows]) for name in names}
        found.append(dataclasses.replace(micro, **fields))
    return [found]


def test_control_a_mean_of_means_would_fail_that(make, monkeypatch):
    """Dividing each micro-batch by its own count, and by their number."""

    def own(self: Learner, minibatch: Any, report: Any, value_only: bool) -> float:
        for micro in minibatch:
            self._policy_step([micro], float(micro.mask_BR.sum()) * len(minibatch), report)
        return 0.0

    whole, parts = make(per_device_batch_size=12), make(per_device_batch_size=1)
    right = gradients(whole, rollout(whole))
    total = torch.zeros_like(right)

    def add(self: Learner, role: str, *rest: Any) -> None:
        total.add_(flat([p.grad if p.grad is not None else torch.zeros_like(p) for p in self._roles.trainable(role)]))
        for parameter in self._roles.trainable(role):
            parameter.grad = None

    monkeypatch.setattr(Learner, "_step", own)
    monkeypatch.setattr(Learner, "_apply", add)
    learn(parts, rollout(parts))
    assert float((total - right).norm() / right.norm()) > 0.2


def test_aggregations_differ(make):
    """Control: each of them is another gradient, by more than its length."""
    found = []
    for mode in AGGREGATIONS:
        parts = make(loss_aggregation=mode, per_device_batch_size=4)
        found.append(gradients(parts, rollout(parts)))
    cosines = [float(torch.nn.functional.cosine_similarity(found[0], other, dim=0)) for other in found]
    assert cosines[1] < 0.99 and cosines[2] == pytest.approx(1, abs=1e-5) == cosines[3]
    tokens = sum(len(e.answer.ids) for e in EPISODES)
    assert float(found[2].norm() / found[0].norm()) == pytest.approx(tokens / 12, rel=1e-4)
    assert float(found[3].norm() / found[2].norm()) == pytest.approx(1 / 12, rel=1e-4), "max_new_tokens is 12"


def test_settings_reach_the_losses(make, monkeypatch):
    """Clips are the functions' own business; here is that each gets what the recipe says."""
    seen: dict[str, Any] = {}

    def spy(name: str) -> Any:
        original = getattr(ppo_update, name)

        def called(*args: Any, **kwargs: Any) -> Any:
            seen[name] = (args, kwargs)
            return original(*args, **kwargs)

        return called

    for name in ("policy_loss", "value_loss"):
        monkeypatch.setattr(ppo_update, name, spy(name))
    parts = make(clip_range=0.11, clip_range_high=0.22, dual_clip=3.0, value_clip=0.33)
    learn(parts)
    given = seen["policy_loss"][1]
    assert (given["clip_low"], given["clip_high"], given["dual_clip"]) == (0.11, 0.22, 3.0)
    assert seen["value_loss"][0][4] == 0.33
    learn(make(clip_range=0.11))
    assert seen["policy_loss"][1]["clip_high"] == 0.11 and seen["policy_loss"][1]["dual_clip"] is None


def test_the_samplers_weights_scale_tokens(make):
    """Weights of 2 double the gradient; half of them at 0 take their tokens out."""
    parts = make(per_device_batch_size=4)
    minibatches = rollout(parts)
    plain = gradients(parts, minibatches)
    doubled = [[dataclasses.replace(m, weights_BR=torch.full_like(m.old_logps_BR, 2.0)) for m in minibatches[0]]]
    assert torch.allclose(gradients(parts, doubled), 2 * plain, rtol=1e-5, atol=1e-9)
    gone = [[dataclasses.replace(m, weights_BR=torch.zeros_like(m.old_logps_BR)) for m in minibatches[0]]]
    assert not gradients(parts, gone).any()


@pytest.mark.parametrize("size", [1, 4])
def test_demonstrations_add_their_gradient_exactly(make, size):
    """ptx_coef times the gradient of their loss per token, all tokens of the step alike."""
    parts = make(ptx_coef=0.3, per_device_batch_size=size)
    minibatches = rollout(parts)
    without, with_them = gradients(parts, minibatches), gradients(parts, minibatches, draw=lambda step: ROWS)
    batch = ppo_update.scoring_batch(ROWS, PAD)
    tokens = sum(sum(mask) for _, mask in ROWS)
    expected = by_autograd(parts, -parts.roles.demonstration_logps(batch).sum() / tokens)
    found = (with_them - without) / 0.3
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))
    report = learn(parts, minibatches, draw=lambda step: ROWS)
    with torch.no_grad():
        assert report.means()["policy/ptx_loss"] == pytest.approx(
            float(-make().roles.demonstration_logps(batch).sum() / tokens), rel=1e-5
        )


def test_demonstrations_are_drawn_for_each_step(make):
    parts = make(ptx_coef=0.1, epochs=2, minibatches=3, per_device_batch_size=4)
    steps: list[int] = []
    learn(parts, draw=lambda step: steps.append(step) or ROWS)
    assert steps == [0, 1, 2, 3, 4, 5]


def test_the_entropy_bonus_raises_entropy(make):
    """Its part of the gradient is that of minus the mean entropy, at the temperature used."""
    plain, parts = (make(entropy_coef=coef, temperature=0.7, per_device_batch_size=4) for coef in (0.0, 0.5))
    minibatches = rollout(parts)
    found = gradients(parts, minibatches) - gradients(plain, rollout(plain))
    batch, _ = all_rows(minibatches)
    entropies = parts.roles.logps(POLICY, batch, 0.7, entropy=True).entropies_BR
    loss = -0.5 * torch.where(batch.response_mask_BR, entropies, 0.0).sum() / batch.response_mask_BR.sum()
    expected = by_autograd(parts, loss)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))
    before = entropy_of(parts, batch)
    flat_scores = make(entropy_coef=10.0, temperature=0.7, learning_rate=1e-2, epochs=3)
    learn(flat_scores)
    assert entropy_of(flat_scores, batch) > before + 0.05


@torch.no_grad()
def entropy_of(parts: Parts, batch: Any) -> float:
    found = parts.roles.logps(POLICY, batch, 0.7, entropy=True).entropies_BR
    return float(found[batch.response_mask_BR].mean())


def test_gradients_are_clipped_role_by_role(make):
    """To the global norm; reported as they were before."""
    for role in (POLICY, VALUE):
        free, clipped = make(per_device_batch_size=4), make(per_device_batch_size=4, max_grad_norm=1e-3)
        whole, cut = gradients(free, rollout(free), role), gradients(clipped, rollout(clipped), role)
        assert float(cut.norm()) == pytest.approx(1e-3, rel=1e-3)
        assert float(torch.nn.functional.cosine_similarity(whole, cut, dim=0)) == pytest.approx(1, abs=1e-5)
        norm = learn(clipped).means()[f"{role}/grad_norm"]
        assert norm == pytest.approx(float(whole.norm()), rel=1e-3)


# Rates and passes


def test_a_rate_of_almost_nothing_changes_nothing(make):
    """Ratios stay 1 through all passes, and every figure is that of a single one."""
    once, often = (
        learn(make(learning_rate=1e-30, epochs=epochs, minibatches=2, per_device_batch_size=2)) for epochs in (1, 4)
    )
    assert often.ratio_max == 1.0 and often.first_maxdev == 0.0
    assert often.steps == 4 * once.steps
    assert often.means() == pytest.approx(once.means(), rel=1e-9)
    assert often.means()["policy/approx_kl_k3"] == 0.0 == often.means()["policy/clipfrac_high"]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.3])
def test_rates_rise_and_then_fall_by_rollout(make, schedule, warmup):
    """From the first rollout on there is one to learn with."""
    parts = make(schedule=schedule, warmup_ratio=warmup, value_learning_rate=1e-4)
    taught, rates = learner(parts, rollouts=10), []
    for rollout in range(10):
        taught.learn([], rollout, value_only=False)
        given = {role: optimiser.param_groups[0]["lr"] for role, optimiser in taught.optimisers.items()}
        assert given == taught.rates(rollout)
        rates.append(given[POLICY] / 1e-3)
        assert given[VALUE] / 1e-4 == pytest.approx(rates[-1])
    rising = round(warmup * 10)
    assert rates[:rising] == pytest.approx([(k + 1) / (rising + 1) for k in range(rising)])
    assert rates[rising] == pytest.approx(1.0) and min(rates) > 0.0
    done = [k / (10 - rising) for k in range(10 - rising)]
    shapes = {"linear": [1 - x for x in done], "constant": [1.0] * len(done)}
    expected = shapes.get(schedule, [(1 + math.cos(math.pi * x)) / 2 for x in done])
    assert rates[rising:] == pytest.approx(expected)


def test_a_policy_that_waits_for_its_value_model_loses_nothing_of_its_schedule(make):
    """Control: the value model, which does not wait, has another."""
    waits, starts = (
        learner(make(value_warmup=3, warmup_ratio=0.3), rollouts=13),
        learner(make(warmup_ratio=0.3), rollouts=10),
    )
    assert [waits.rates(rollout)[POLICY] for rollout in range(3)] == [0.0] * 3
    assert [waits.rates(3 + k)[POLICY] for k in range(10)] == [starts.rates(k)[POLICY] for k in range(10)]
    assert [waits.rates(3 + k)[VALUE] for k in range(10)] != [starts.rates(k)[VALUE] for k in range(10)]


def test_the_value_models_rate_is_the_policys_unless_it_has_one(make):
    assert len(set(learner(make()).rates(0).values())) == 1


def test_passes_end_once_the_sampler_is_left_behind(make):
    far = {"learning_rate": 0.05, "epochs": 5, "minibatches": 2, "per_device_batch_size": 6}
    free = learn(make(**far))
    stopped = learn(make(stop_kl=0.01, **far))
    assert not free.stopped_early and free.steps == 10
    # A step's gradient is there to be looked at, and is not taken.
    assert stopped.stopped_early and 1 <= stopped.steps < 10
    second = learn(make(stop_kl=0.01, **{**far, "epochs": 2, "minibatches": 1, "per_device_batch_size": 12}))
    assert second.stopped_early and second.steps == 1
    near = learn(make(stop_kl=0.01, **{**far, "learning_rate": 1e-6}))
    assert not near.stopped_early and near.steps == 10


def test_the_step_that_would_leave_is_not_taken(make):
    """Of neither role: the weights are those of the passes before it, and no gradient is left for the next rollout."""
    rates = {"learning_rate": 0.05, "ptx_coef": 0.1, "per_device_batch_size": 4}
    once, stopped = make(**rates), make(stop_kl=0.01, **{**rates, "epochs": 3})
    learn(once, draw=lambda step: ROWS)
    assert learn(stopped, draw=lambda step: ROWS).stopped_early
    for role in (POLICY, VALUE):
        assert all(torch.equal(a, b) for a, b in zip(trainable(once, role), trainable(stopped, role), strict=True))
        assert all(parameter.grad is None for parameter in stopped.roles.trainable(role))


def test_the_value_model_alone(make):
    """Critic warm-up: the policy stays bit for bit, and so does its optimiser."""
    parts = make(members=1)
    before, value = trainable(parts, POLICY), trainable(parts, VALUE)
    taught = learner(parts)
    report = taught.learn(rollout(parts), 0, value_only=True)
    assert all(torch.equal(a, b) for a, b in zip(before, trainable(parts, POLICY), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(value, trainable(parts, VALUE), strict=True))
    assert not taught.optimisers[POLICY].state and taught.optimisers[VALUE].state
    assert "value/loss" in report.means() and "policy/loss" not in report.means()
    assert report.first_maxdev == 0.0


def test_learning_raises_what_was_good(make):
    """The point of it all: answers with positive advantages become likelier, the others less so."""
    parts = make(learning_rate=3e-3, epochs=4, per_device_batch_size=12)
    minibatches = rollout(parts)
    learn(parts, minibatches)
    micro = minibatches[0][0]
    with torch.no_grad():
        moved = parts.roles.logps(POLICY, micro.batch, 1.0).logps_BR - micro.old_logps_BR
    assert float((moved * micro.advantages_BR).sum()) > 0.1


def test_the_value_model_learns_returns(make):
    # After 30 passes 0.22 is left on one machine, less on another; after 60 about 0.06.
    parts = make(value_learning_rate=1e-2, learning_rate=1e-30, epochs=60, per_device_batch_size=12)
    minibatches = rollout(parts)
    learn(parts, minibatches)
    micro = minibatches[0][0]
    with torch.no_grad():
        left = (parts.roles.values(micro.batch) - micro.returns_BR)[micro.mask_BR]
    assert float(left.var() / micro.returns_BR[micro.mask_BR].var()) < 0.2


# What is not finite


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_reaches_no_weight(make, value):
    parts = make(per_device_batch_size=4)
    minibatches = rollout(parts)
    minibatches[0][1].advantages_BR[0, 0] = value
    before = trainable(parts, POLICY)
    with pytest.raises(TrivetError, match=r"the policy's loss became \S+ at optimiser step 1; it did not reach"):
        learn(parts, minibatches)
    assert all(torch.equal(a, b) for a, b in zip(before, trainable(parts, POLICY), strict=True))


def test_a_gradient_that_is_not_finite_reaches_no_weight(make):
    parts = make()
    minibatches = rollout(parts)
    before = trainable(parts, VALUE)
    parts.roles.trainable(VALUE)[0].register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(TrivetError, match="the value's gradient norm became nan at optimiser step 1"):
        learn(parts, minibatches)
    assert all(torch.equal(a, b) for a, b in zip(before, trainable(parts, VALUE), strict=True))


def test_padding_may_hold_anything(make):
    """What stands behind a response is no part of any loss, NaN included."""
    parts = make(per_device_batch_size=4)
    minibatches = rollout(parts)
    expected = gradients(parts, minibatches), gradients(parts, minibatches, VALUE)
    for micro in minibatches[0]:
        for field in (micro.old_logps_BR, micro.advantages_BR, micro.returns_BR, micro.values_BR):
            field[~micro.mask_BR] = math.nan
    assert torch.equal(gradients(parts, minibatches), expected[0])
    assert torch.equal(gradients(parts, minibatches, VALUE), expected[1])


def test_full_models_in_bfloat16_weights_learn_too(make, monkeypatch):
    """A recipe may ask for them (`model.dtype`); the value head stays float32 beside them."""
    parts = make(adapter="none")
    for trunk in (parts.policy.model, parts.roles._trunks[VALUE].module):
        trunk.to(torch.bfloat16)
    report = learn(parts)
    assert report.first_maxdev == 0.0 and math.isfinite(report.means()["value/loss"])


# Ratios that no rounding explains


def planted(parts, minibatches, shift):
    """Old log-probabilities as of another temperature or template: all of them off by as much."""
    for micro in minibatches[0]:
        micro.old_logps_BR.sub_(shift)
    return learn(parts, minibatches)


def test_an_honest_rollout_says_nothing(make):
    report = learn(make())
    assert report.first_mean == 1.0 and report.exploded is None
    assert ratio_warnings(report, 0.05, 1, "fp32") == []


def test_a_mismatch_before_the_first_step_is_said(make):
    parts = make(per_device_batch_size=4)
    report = planted(parts, rollout(parts), 0.1)
    [told] = ratio_warnings(report, 0.0, 3, "bf16")
    assert told.startswith("rollout 3: the mean ratio is 1.1") and "precision, temperature or template" in told


def test_a_sampler_that_disagrees_is_said(make):
    [told] = ratio_warnings(UpdateReport(), 0.4, 2, "bf16")
    assert "sampling engine's log-probabilities are 0.4 nats" in told and "temperature, chat template" in told


def test_ratios_beyond_all_bounds_teach_nothing(make):
    parts = make(per_device_batch_size=4)
    before = trainable(parts, POLICY)
    report = planted(parts, rollout(parts), 3.0)
    assert report.exploded == pytest.approx(math.exp(3), rel=1e-3) and report.stopped_early and report.steps == 0
    assert all(torch.equal(a, b) for a, b in zip(before, trainable(parts, POLICY), strict=True))
    assert all(parameter.grad is None for parameter in parts.roles.trainable(POLICY))
    assert "over 10: nothing is learnt" in ratio_warnings(report, 0.0, 1, "fp32")[-1]
