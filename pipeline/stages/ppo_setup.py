"""What a PPO stage works with besides its roles: rewards, prompts, demonstrations, and what it samples and judges with.

A reward model must pass the gate before anything is loaded.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from data_prep.build import encode_demonstrations
from data_prep.chat import ChatFormatter
from data_prep.cleaning import Dropped
from data_prep.prompt_rows import encode_prompts
from pipeline.context import StageContext
from pipeline.errors import DataError, TrivetError
from pipeline.models.roles import Roles
from pipeline.recipe.lineage import WATCHED, reward_role, reward_sources
from pipeline.recipe.schema import Recipe
from pipeline.recipe.stage_settings import FUNCTION, RULES, PpoSettings, RewardSource
from pipeline.rollouts.answers import Engine, Progress, Sampling
from pipeline.rollouts.foreign import foreign_reward
from pipeline.rollouts.rewards import (
    Episode,
    FunctionReward,
    Penalties,
    Reward,
    RuleReward,
    Scores,
    StageReward,
    score,
)
from pipeline.runtime import Ranks, StopRequest
from pipeline.stages.policy import Policy
from pipeline.stages.ppo_engine import make_engine
from pipeline.stages.ppo_roles import RewardModel, reward_models
from pipeline.stages.ppo_update import Draw, Row
from pipeline.stages.prompts import PromptRow, require_room


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSet:
    """Prompts with their ids: to train on, and to measure on."""

    train: list[PromptRow]
    held_out: list[PromptRow]
    report: dict[str, Any]
    dropped: list[Dropped]
    """Prompts that cleaning and tokenising took out of training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What answers are made and judged with, in training and on held-out prompts alike."""

    context: StageContext
    settings: PpoSettings
    roles: Roles
    engine: Engine
    rewards: Sequence[tuple[Reward, float]]
    penalties: Penalties
    formatter: ChatFormatter
    pad_id: int
    watched: Reward | None = None
    """Scores held-out answers too, and is no part of the reward."""

    def answer(
        self,
        prompts: Sequence[PromptRow],
        seed: int,
        progress: Progress | None = None,
        stop: StopRequest | None = None,
    ) -> list[Episode]:
        """One sampled answer per prompt, on every rank.

        Raises:
            SamplingStopped: `stop` was asked for on some rank.
        """
        self.roles.forget()
        sampling = Sampling(self.settings.max_new_tokens, self.settings.temperature, seed)
        answers = self.engine.answers([ids for _, ids in prompts], sampling, progress, stop)
        return [
            Episode(prompt, ids, answer, self.formatter.response_text(answer.ids))
            for (prompt, ids), answer in zip(prompts, answers, strict=True)
        ]

    def judge(self, episodes: Sequence[Episode]) -> Scores:
        """Scores by all rewards, and as PPO uses them."""
        return score(episodes, self.rewards, self.penalties)


def make_bench(
    context: StageContext, settings: PpoSettings, roles: Roles, policy: Policy, formatter: ChatFormatter, precision: str
) -> Bench:
    """Engine, rewards and penalties as the recipe asks for them."""
    pad_id = policy.description.pad_id
    return Bench(
        context=context,
        settings=settings,
        roles=roles,
        engine=make_engine(context, settings, roles, formatter, pad_id, precision),
        rewards=make_rewards(context, settings, roles, pad_id),
        penalties=Penalties(
            settings.max_new_tokens,
            settings.missing_eos_penalty,
            settings.overlong_buffer,
            settings.overlong_penalty,
            settings.score_clip,
        ),
        formatter=formatter,
        pad_id=pad_id,
        watched=make_watched(context, settings, roles, pad_id),
    )


def require_gate(context: StageContext, settings: PpoSettings) -> None:
    """Refuse reward models that have not shown that they can tell good answers from bad.

    Raises:
        TrivetError: with the model's figures, and how to override.
    """
    asked = settings.gate.min_accuracy
    named = [(source.from_, reward_role(i)) for i, source in enumerate(reward_sources(context.recipe, context.stage))]
    for name, role in [*named, (settings.watch, WATCHED)]:
        parent = context.parents.get(role)
        if parent is None or asked == 0:
            continue
        accuracy, interval = (parent.manifest.metrics.get(k) for k in ("eval_accuracy", "eval_accuracy_ci95"))
        override = (
            f"train it longer or on more pairs, or override with `--set stages.{context.stage}.gate.min_accuracy=0`"
        )
        if accuracy is None or interval is None:
            raise TrivetError(
                f"stage {context.stage}: reward model {name} was measured on no held-out pairs, so nothing "
                f"says that its scores mean anything; raise data.preference.eval_fraction, or {override}"
            )
        if interval[0] <= asked:
            raise TrivetError(
                f"stage {context.stage}: reward model {name} prefers the better answer in {accuracy:.0%} of "
                f"{parent.manifest.metrics['eval_n']} held-out pairs [{interval[0]:.2f}, {interval[1]:.2f}]; the gate "
                f"asks for a lower end above {asked:.2f}: {override}"
            )


def make_rewards(context: StageContext, settings: PpoSettings, roles: Roles, pad_id: int) -> list[tuple[Reward, float]]:
    """The stage's rewards with their weights."""
    sealed = iter(reward_models(context))

    def one(source: RewardSource) -> Reward:
        if source.from_ in context.recipe.stages:
            stage = stage_reward(source.from_, next(sealed), context, settings, roles, pad_id)
            return replace(stage, normalised=settings.normalise_scores)
        if source.from_ == RULES:
            return RuleReward()
        if source.from_ == FUNCTION:
            assert context.reward_function is not None
            return FunctionReward(context.reward_function)
        return foreign_reward(source.from_, settings.per_device_batch_size, context.ranks, source.revision)

    return [(one(source), source.weight) for source in reward_sources(context.recipe, context.stage)]


def make_watched(context: StageContext, settings: PpoSettings, roles: Roles, pad_id: int) -> Reward | None:
    """The reward model that is watched, in units of its reference answers; None without one."""
    found = next((model for model in reward_models(context) if model.watched), None)
    return None if found is None else stage_reward(settings.watch or "", found, context, settings, roles, pad_id)


def stage_reward(
    name: str, model: RewardModel, context: StageContext, settings: PpoSettings, roles: Roles, pad_id: int
) -> StageReward:
    """A sealed reward model as a reward, its scores shifted and scaled."""
    return StageReward(
        name=name,
        roles=roles,
        members=model.members,
        spec=model.spec,
        normalised=True,
        pad_id=pad_id,
        batch_size=settings.per_device_batch_size,
        ranks=context.ranks,
    )


def make_prompts(
    context: StageContext,
    settings: PpoSettings,
    formatter: ChatFormatter,
    seen: frozenset[str],
    positions: int | None = None,
) -> PromptSet:
    """Prompts to train on and held-out ones that no ancestor was trained on.

    Args:
        context: of the stage.
        settings: of the stage.
        formatter: turns prompts into ids.
        seen: hashes of prompts that ancestors were trained on.
        positions: tokens that the model can see at once, where it says so.

    Raises:
        DataError: nothing is left to train on, or nothing that its rules could score; a KL budget without held-out
            prompts to keep it on.
        RecipeError: prompts and answers do not fit in the model's context.
    """
    recipe = context.recipe
    train, held_out, report = encode_prompts(
        recipe.data,
        formatter,
        recipe.seed,
        with_rule=any(source.from_ == RULES for source in reward_sources(recipe, context.stage)),
        held_out=settings.eval_prompts,
        seen=seen,
        part=context.data_part,
        aside=context.aside,
    )
    if not train.rows:
        reasons = ", ".join(f"{reason} {count}" for reason, count in report["dropped"].items()) or "none was read"
        raise DataError(f"stage {context.stage}: no prompt is left to train on ({reasons})")
    if settings.kl_max is not None and not held_out.rows:
        raise DataError(
            f"stages.{context.stage}.kl_max: which policy lies within the budget is seen on held-out prompts, and "
            "there are none; raise the data set's eval_fraction, or remove kl_max"
        )
    longest = max(len(row.ids) for part in (train, held_out) for row in part.rows)
    require_room(context, settings.max_new_tokens, longest, positions)
    train_rows, held_out_rows = (
        [(prompt, row.ids) for prompt, row in zip(part.records, part.rows, strict=True)] for part in (train, held_out)
    )
    return PromptSet(train=train_rows, held_out=held_out_rows, report=report, dropped=train.dropped)


def demonstrations_to_mix(recipe: Recipe, settings: PpoSettings, formatter: ChatFormatter, ranks: Ranks) -> Draw | None:
    """For PPO-ptx: this rank's share of as many demonstrations as a step has answers, drawn by the step's number."""
    if settings.ptx_coef == 0:
        return None
    train, _, _ = encode_demonstrations(recipe.data, formatter, recipe.seed)
    rows: list[Row] = [(row.input_ids, row.response_mask) for row in train.rows]
    size = settings.rollout_batch_size // settings.minibatches

    def draw(step: int) -> Sequence[Row]:
        picked = random.Random(f"{recipe.seed}:{step}").choices(rows, k=size)
        return picked[ranks.rank :: ranks.world_size]

    return draw
