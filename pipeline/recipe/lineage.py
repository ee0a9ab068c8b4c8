"""Which earlier stages each stage stands on, and which data it reads: the recipe's defaults made explicit."""

from __future__ import annotations

from typing import Literal

from pipeline.recipe.schema import Recipe
from pipeline.recipe.stage_settings import (
    DpoSettings,
    PpoSettings,
    RewardSettings,
    RewardSource,
    SftSettings,
    StageSettings,
)
from pipeline.recipe.vocabulary import nearest

BASE = "base"
POLICY_KINDS = ("sft", "dpo", "ppo")
DataName = Literal["sft", "preference"]
WATCHED = "watched"
"""Role of the reward stage that a PPO or DPO stage watches, among its parents."""
ASKING_TASKS = ("rules", "kl", "score", "overlap")
"""Tasks of the evaluation that need prompts to be answered."""


def earlier(recipe: Recipe, stage_name: str, kinds: tuple[str, ...] = POLICY_KINDS) -> list[str]:
    """Return the stages of the given kinds that run before a stage, in order."""
    names = list(recipe.stages)
    before = names[: names.index(stage_name)]
    return [name for name in before if recipe.stages[name].kind in kinds]


def why_not(recipe: Recipe, stage_name: str, found: str, possible: list[str], what: str = "policy") -> str:
    """Say why a stage cannot stand on what it names.

    Args:
        recipe: the recipe.
        stage_name: the stage that names it.
        found: what it names.
        possible: what it could name.
        what: what a stage it stands on must leave.
    """
    if found == stage_name:
        text = "a stage cannot start from itself" if what == "policy" else "a stage cannot reward itself"
    elif found in recipe.stages:
        names = list(recipe.stages)
        later = names.index(found) > names.index(stage_name)
        text = f"stage '{found}' runs later; move it up" if later else f"stage '{found}' leaves no {what}"
    else:
        near = nearest(found, [*recipe.stages])
        text = f"there is no stage '{found}'" + (f"; did you mean '{near}'?" if near else "")
    return f"{text} (can be: {', '.join(possible) or 'nothing yet, there is no earlier one'})"


def written_start(stage: StageSettings) -> tuple[Literal["init", "policy"], str | None]:
    """Return the key by which a stage says where it starts from (`init` or `policy`), and what was written there."""
    if isinstance(stage, (DpoSettings, PpoSettings)):
        return "policy", stage.policy
    assert isinstance(stage, (SftSettings, RewardSettings))
    return "init", stage.init


def policy_of(recipe: Recipe, stage_name: str) -> str | None:
    """Return the earlier stage that a stage starts from; None for the base model.

    What the recipe writes counts (`base` asks for the base model). Unsaid, SFT starts from the base, and every other
    kind from the last SFT stage before it, else from the base.
    """
    stage = recipe.stages[stage_name]
    written = written_start(stage)[1]
    if written is not None:
        return None if written == BASE else written
    if isinstance(stage, SftSettings):
        return None
    return next(reversed(earlier(recipe, stage_name, ("sft",))), None)


def reference_of(recipe: Recipe, stage_name: str) -> str | None:
    """Return the stage whose policy is held fixed as the reference: the one started from; None for the base model."""
    return policy_of(recipe, stage_name)


def reward_sources(recipe: Recipe, stage_name: str) -> tuple[RewardSource, ...]:
    """Return what a PPO stage is rewarded by: `rewards`, else `reward_model`, else the last reward stage before it."""
    stage = recipe.stages[stage_name]
    if not isinstance(stage, PpoSettings):
        return ()
    if stage.rewards is not None:
        return stage.rewards
    judging = (stage.watch, heldout_reward(recipe))
    to_train_on = [name for name in earlier(recipe, stage_name, ("reward",)) if name not in judging]
    found = stage.reward_model or next(reversed(to_train_on), None)
    return () if found is None else (RewardSource.model_validate({"from": found}),)


def heldout_reward(recipe: Recipe) -> str | None:
    """Return the reward stage that is kept for judging: what evaluation names, else what a PPO or DPO stage watches.

    DPO may also watch what PPO is trained against: what a recipe writes as a reward, or all that there is to be one.
    """
    by_ppo = [stage for stage in recipe.stages.values() if isinstance(stage, PpoSettings)]
    by_dpo = [stage.watch for stage in recipe.stages.values() if isinstance(stage, DpoSettings)]
    rewards = {name for name, stage in recipe.stages.items() if stage.kind == "reward"}
    trained_on = {stage.reward_model for stage in by_ppo} | {one.from_ for ppo in by_ppo for one in ppo.rewards or ()}
    spare = [name for name in by_dpo if name not in trained_on and (not by_ppo or rewards - {name})]
    return recipe.evaluation.heldout_reward or next(filter(None, [*(ppo.watch for ppo in by_ppo), *spare]), None)


def reward_role(index: int) -> str:
    """Return the role that the reward stage at a place of `reward_sources` plays among a PPO stage's parents."""
    return f"reward_{index + 1}"


def parents_of(recipe: Recipe, stage_name: str) -> dict[str, str]:
    """Return the earlier stages whose artefacts a stage is given, by the role they play."""
    start = policy_of(recipe, stage_name)
    parents: dict[str, str] = {} if start is None else {written_start(recipe.stages[stage_name])[0]: start}
    for index, source in enumerate(reward_sources(recipe, stage_name)):
        if source.from_ in recipe.stages:
            parents[reward_role(index)] = source.from_
    stage = recipe.stages[stage_name]
    if isinstance(stage, (PpoSettings, DpoSettings)) and stage.watch is not None:
        parents[WATCHED] = stage.watch
    return parents


def used_data(recipe: Recipe, stage_name: str) -> tuple[DataName, ...]:
    """Return the data sets that a stage reads; it cannot do without the first."""
    stage = recipe.stages[stage_name]
    if isinstance(stage, SftSettings):
        return ("sft",)
    if isinstance(stage, DpoSettings):
        prompts = (prompts_from(recipe) or "preference") if stage.watch is not None else "preference"
        return ("preference",) if prompts == "preference" else ("preference", prompts)
    if isinstance(stage, RewardSettings):
        # Scores are shifted and scaled by those of the demonstrations, where there are any.
        return ("preference", "sft") if recipe.data.sft is not None else ("preference",)
    prompts = prompts_from(recipe) or "preference"
    with_demonstrations = isinstance(stage, PpoSettings) and stage.ptx_coef > 0 and prompts != "sft"
    return (prompts, "sft") if with_demonstrations else (prompts,)


def asks_policies(recipe: Recipe) -> bool:
    """Return whether the evaluation has policies answer prompts."""
    return recipe.evaluation.judge is not None or not set(recipe.evaluation.tasks).isdisjoint(ASKING_TASKS)


def evaluation_reads(recipe: Recipe) -> list[tuple[DataName, Literal["demonstrations", "prompts"]]]:
    """Return the data sets that the evaluation reads, and what it makes of their rows."""
    found: list[tuple[DataName, Literal["demonstrations", "prompts"]]] = []
    tasks = set(recipe.evaluation.tasks)
    prompts = prompts_from(recipe)
    if prompts is not None and asks_policies(recipe):
        found.append((prompts, "prompts"))
    if recipe.data.sft is not None and "perplexity" in tasks:
        found.append(("sft", "demonstrations"))
    return found


def split_part(recipe: Recipe, stage_name: str) -> str | None:
    """Return the entry of `data.split` that says which prompts a stage trains on; None where it takes all.

    A stage's own name goes before its kind; stages of one kind that go by it have the same prompts.
    """
    kind = recipe.stages[stage_name].kind
    return next((name for name in (stage_name, kind) if name in recipe.data.split), None)


def prompts_from(recipe: Recipe) -> DataName | None:
    """Return the data set whose prompts are answered: what is written, else preference, else sft."""
    if recipe.data.prompts.from_ is not None:
        return recipe.data.prompts.from_
    if recipe.data.preference is not None:
        return "preference"
    return "sft" if recipe.data.sft is not None else None
