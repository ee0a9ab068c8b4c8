"""PPO's roles from its parents: adapters and heads on the policy's base, or full models beside one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import Linear, Parameter

from pipeline.artefact import Artefact
from pipeline.context import StageContext, engine_of
from pipeline.errors import RecipeError
from pipeline.models import adapters
from pipeline.models.forward import trunk_of, vocabulary_head, without_dropout
from pipeline.models.load import device, load_base
from pipeline.models.reward_model import RewardSpec, head_of, member_folders, read_spec
from pipeline.models.roles import POLICY, REFERENCE, VALUE, Roles, Trunk
from pipeline.recipe.lineage import WATCHED, reward_role, reward_sources
from pipeline.recipe.stage_settings import PpoSettings
from pipeline.stages.policy import Policy, load_policy, load_reference
from pipeline.stages.ppo_spreading import Spreader
from pipeline.stages.shared_trunk import trunk_cache


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModel:
    """One sealed reward model among a stage's rewards."""

    artefact: Artefact
    spec: RewardSpec
    weight: float
    members: tuple[str, ...]
    """Role of each member."""
    watched: bool = False
    """Kept for judging: no part of the reward."""


def reward_models(context: StageContext) -> list[RewardModel]:
    """The sealed reward models among the stage's rewards, in order, and behind them the one that it watches."""
    found = []
    for index, source in enumerate(reward_sources(context.recipe, context.stage)):
        parent = context.parents.get(reward_role(index))
        if parent is not None:
            members = tuple(f"reward_{index + 1}_{k + 1}" for k in range(len(member_folders(parent))))
            found.append(
                RewardModel(artefact=parent, spec=read_spec(parent), weight=source.weight, members=members)
            )  # fmt: skip
    watched = context.parents.get(WATCHED)
    if watched is not None:
        members = tuple(f"{WATCHED}_{k + 1}" for k in range(len(member_folders(watched))))
        found.append(RewardModel(artefact=watched, spec=read_spec(watched), weight=0.0, members=members, watched=True))
    return found


def make_roles(
    context: StageContext, settings: PpoSettings, precision: str, spreader: Spreader | None = None
) -> tuple[Policy, Roles]:
    """Load the policy and every other role.

    Args:
        context: of the stage.
        settings: of the stage.
        precision: of the forward passes.
        spreader: spreads what nothing trains, where the stage's engine does.

    Raises:
        TrivetError: parents of another base, tokenizer, template or form; a reward model without its head.
        RecipeError: fp16, or an engine that cannot do what the stage asks.
    """
    if precision == "fp16":
        raise RecipeError(f"stages.{context.stage}.precision: PPO computes in bf16 or fp32; choose one of them")
    spreader = spreader or Spreader(context, settings)
    parent = context.parents.get("policy")
    policy = load_policy(context, parent, precision=precision, dropout=False, prepare=spreader.spread_base)
    models = reward_models(context)
    if policy.form == "adapter":
        trunks, heads = _on_one_base(policy.model, parent, models, settings)
        reference: Any = policy.model
    else:
        trunks, heads, reference = _separate(context, policy.model, parent, models, settings, precision)
    _prepare(trunks, heads, policy.model, settings)
    below = trunk_cache(context, policy.model)
    spreader.require_plain_output(policy.model)
    known = spreader.base is not None
    head, reference_head = (vocabulary_head(model, known=known) for model in (policy.model, reference))
    if policy.form == "model":
        for role, trunk in trunks.items():
            if role not in (POLICY, VALUE):
                spreader.spread_frozen(reference if role == REFERENCE else trunk.module, trunk.module)
    return policy, Roles(trunks, head, reference_head, heads, policy.model, precision, below, spreader.base)


def _on_one_base(
    model: Any, parent: Artefact | None, models: Sequence[RewardModel], settings: PpoSettings
) -> tuple[dict[str, Trunk], dict[str, Linear]]:
    """Every role an adapter, and perhaps a head, on the policy's base."""
    trunk = trunk_of(model)
    heads: dict[str, Linear] = {}
    adapters_of: dict[str, str | None] = {POLICY: adapters.TRAINED, REFERENCE: None}
    if parent is not None:
        adapters.attach_frozen(model, parent.weights, REFERENCE)
        adapters_of[REFERENCE] = REFERENCE

    def attach(found: RewardModel) -> None:
        for role, folder in zip(found.members, member_folders(found.artefact), strict=True):
            adapters.attach_reward(model, folder, role)
            adapters_of[role], heads[role] = role, head_of(folder)

    for found in models:
        if not found.watched:
            attach(found)
    start = _value_start(models, settings)
    if settings.has_value_model:
        adapters_of[VALUE] = _attach_value(model, parent, start, settings)
        heads[VALUE] = _value_head(start, trunk.config.hidden_size, settings)
    for found in models:
        # Behind the value model, whose new weights are drawn at random: watching must not change them.
        if found.watched:
            attach(found)
    trained = ((POLICY, adapters.TRAINED), (VALUE, VALUE))
    trunks = {
        role: Trunk(
            module=trunk,
            shared=model,
            adapter=name,
            # Layers that policy and value share are the policy's optimiser's.
            trainable=adapter_parameters(model, name) if name and (role, name) in trained else (),
        )
        for role, name in adapters_of.items()
    }
    return trunks, heads


def _attach_value(model: Any, parent: Artefact | None, start: RewardModel | None, settings: PpoSettings) -> str:
    """Put on the value model's adapter, unless it reads the policy's; returns whose adapter it reads."""
    if settings.value_trunk == "policy":
        return adapters.TRAINED
    if start is not None:
        adapters.attach_reward(model, member_folders(start.artefact)[0], VALUE)
    elif parent is not None:
        adapters.attach_frozen(model, parent.weights, VALUE)
    else:
        model.add_adapter(VALUE, model.peft_config[adapters.TRAINED])
    return VALUE


def _separate(
    context: StageContext,
    model: Any,
    parent: Artefact | None,
    models: Sequence[RewardModel],
    settings: PpoSettings,
    precision: str,
) -> tuple[dict[str, Trunk], dict[str, Linear], Any]:
    """Every role a model of its own, for full fine-tuning."""

    def load(weights: Any, *, frozen: bool) -> Any:
        loaded = load_base(
            context.base_folder,
            context.recipe.model,
            frozen=frozen,
            precision=precision,
            weights=weights,
            on_host=engine_of(context).spreads_parameters,
        )
        return trunk_of(loaded)

    reference = load_reference(context, parent, precision)
    heads: dict[str, Linear] = {}
    trunks = {
        POLICY: Trunk(module=trunk_of(model), trainable=tuple(model.parameters())),
        REFERENCE: Trunk(module=trunk_of(reference)),
    }
    for found in models:
        for role, folder in zip(found.members, member_folders(found.artefact), strict=True):
            trunks[role] = Trunk(module=load(folder, frozen=True).requires_grad_(False))
            heads[role] = head_of(folder)
    start = _value_start(models, settings)
    if settings.has_value_model:
        if settings.value_trunk == "policy":
            trunks[VALUE] = Trunk(module=trunks[POLICY].module)
        else:
            weights = member_folders(start.artefact)[0] if start else (parent.weights if parent else None)
            value = load(weights, frozen=False)
            trunks[VALUE] = Trunk(module=value, trainable=tuple(value.parameters()))
        heads[VALUE] = _value_head(start, trunks[VALUE].module.config.hidden_size, settings)
    return trunks, heads, reference


def _prepare(trunks: dict[str, Trunk], heads: dict[str, Linear], model: Any, settings: PpoSettings) -> None:
    """No dropout anywhere, heads where the trunks compute, and activations recomputed where asked."""
    for role, head in heads.items():
        head.to(device()).requires_grad_(role == VALUE)
    for module in {id(each): each for each in (model, *(trunk.module for trunk in trunks.values()))}.values():
        without_dropout(module).eval()
    if settings.gradient_checkpointing:
        for trunk in (trunks[role].module for role in (POLICY, VALUE) if role in trunks):
            trunk.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            # It happens in training mode alone; the layers inside stay in theirs, as some have dropout of their own.
            for module in trunk.modules():
                module.training = bool(getattr(module, "gradient_checkpointing", False))


def _value_start(models: Sequence[RewardModel], settings: PpoSettings) -> RewardModel | None:
    """The reward model that the value model starts as a copy of, if any."""
    rewarding = [model for model in models if not model.watched]
    copies = settings.value_init != "zero" and settings.value_trunk == "own"
    return rewarding[0] if copies and rewarding else None


def _value_head(start: RewardModel | None, hidden_size: int, settings: PpoSettings) -> Linear:
    """A head that predicts the reward model's part of the score at once, or 0."""
    head = Linear(hidden_size, 1, bias=True, dtype=torch.float32)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    if start is not None:
        spec, first = start.spec, start.spec.members[0]
        # Of an ensemble the first member's score, as if the others agreed with it.
        offset, scale = (first.offset, first.scale) if len(spec.members) > 1 else (0.0, 1.0)
        if settings.normalise_scores:
            offset, scale = offset + scale * spec.offset, scale * spec.scale
        factor = start.weight / scale
        with torch.no_grad():
            head.weight.copy_(head_of(member_folders(start.artefact)[0]).weight * factor)
            head.bias.fill_(-offset * factor)
    return head


def adapter_parameters(model: Any, name: str) -> tuple[Parameter, ...]:
    """Parameters of one adapter; a layer of the base may bear its name (`attention.value`)."""
    found = [(key.rpartition(".lora_")[2], parameter) for key, parameter in model.named_parameters() if ".lora_" in key]
    return tuple(parameter for inner, parameter in found if f".{name}." in f"{inner}.")
