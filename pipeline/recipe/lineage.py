"""Which earlier stage each stage starts from, and which data it reads: the recipe's defaults made explicit."""

from __future__ import annotations

from typing import Literal

from pipeline.recipe.schema import DpoSettings, Recipe, SftSettings, StageSettings

BASE = "base"
POLICY_KINDS = ("sft", "dpo")


def earlier(recipe: Recipe, stage_name: str, kinds: tuple[str, ...] = POLICY_KINDS) -> list[str]:
    """Return the stages of the given kinds that run before a stage, in order."""
    names = list(recipe.stages)
    before = names[: names.index(stage_name)]
    return [name for name in before if recipe.stages[name].kind in kinds]


def written_start(stage: StageSettings) -> tuple[str, str | None]:
    """Return the key by which a stage says where it starts from (`init` or `policy`), and what was written there."""
    if isinstance(stage, DpoSettings):
        return "policy", stage.policy
    return "init", stage.init if isinstance(stage, SftSettings) else None


def policy_of(recipe: Recipe, stage_name: str) -> str | None:
    """Return the earlier stage that a stage starts from; None for the base model.

    What the recipe writes counts (`base` asks for the base model). Unsaid, SFT starts from the base, and DPO from the
    last SFT stage before it, else from the base.
    """
    stage = recipe.stages[stage_name]
    written = written_start(stage)[1]
    if written is not None:
        return None if written == BASE else written
    if isinstance(stage, DpoSettings):
        return next(reversed(earlier(recipe, stage_name, ("sft",))), None)
    return None


def reference_of(recipe: Recipe, stage_name: str) -> str | None:
    """Return the stage whose policy is held fixed as the reference: the one started from; None for the base model."""
    return policy_of(recipe, stage_name)


def used_data(recipe: Recipe, stage_name: str) -> Literal["sft", "preference"]:
    """Return the data set that a stage trains on."""
    return "preference" if isinstance(recipe.stages[stage_name], DpoSettings) else "sft"


def prompts_from(recipe: Recipe) -> Literal["sft", "preference"] | None:
    """Return the data set whose prompts are answered in evaluation: what is written, else preference, else sft."""
    if recipe.data.prompts.from_ is not None:
        return recipe.data.prompts.from_
    if recipe.data.preference is not None:
        return "preference"
    return "sft" if recipe.data.sft is not None else None
