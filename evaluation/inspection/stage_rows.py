"""The rows that a stage trains on, made by the very functions that the stage calls, before it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data_prep.build import encode_demonstrations, encode_pairs
from data_prep.chat import ChatFormatter
from data_prep.prompt_rows import encode_prompts
from pipeline.batch_order import pair_padding, sft_padding
from pipeline.errors import DataError, RecipeError
from pipeline.models.load import load_tokenizer
from pipeline.models.source import tokenizer_folder
from pipeline.recipe.lineage import prompts_from, reward_sources, split_part
from pipeline.recipe.schema import DataSetSettings, Recipe
from pipeline.recipe.stage_settings import RULES, OfflineSettings, PpoSettings, SftSettings
from pipeline.recipe.vocabulary import nearest


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRows:
    """A stage's training rows with their records, in the order in which the trainer is given them."""

    stage: str
    kind: str
    data: str
    """Name of the data set, as in the stage's report."""
    max_length: int
    records: Sequence[Any]
    rows: Sequence[Any]
    """`EncodedDemonstration`, `EncodedPair` or `EncodedPrompt`, in step with the records."""
    report: dict[str, Any]
    """The data report that the stage will leave, less what only its parents' artefacts tell."""


def formatter_of(recipe: Recipe) -> ChatFormatter:
    """The formatter that every stage of a recipe uses; fetches the tokenizer, where need be, but no weights."""
    folder = tokenizer_folder(recipe.model.base, recipe.model.revision)
    return ChatFormatter(load_tokenizer(folder, recipe.data.chat_template))


def require_stage(recipe: Recipe, name: str) -> str:
    """The name itself, if the recipe has such a stage.

    Raises:
        RecipeError: it has none.
    """
    if name not in recipe.stages:
        near = nearest(name, [*recipe.stages])
        meant = f"; did you mean '{near}'?" if near else ""
        raise RecipeError(f"--stage {name}: there is no such stage (has: {', '.join(recipe.stages)}){meant}")
    return name


def stage_rows(recipe: Recipe, stage: str, formatter: ChatFormatter) -> StageRows:
    """Read, choose and encode as the stage does.

    Raises:
        DataError, SourceUnreachableError: as the stage would: a source is missing, nothing is left to train on.
    """
    settings = recipe.stages[stage]
    data, part = recipe.data, split_part(recipe, stage)
    common = {"stage": stage, "kind": settings.kind}
    if isinstance(settings, PpoSettings):
        rules = any(source.from_ == RULES for source in reward_sources(recipe, stage))
        held_out = settings.eval_prompts
        prompts, _, report = encode_prompts(data, formatter, recipe.seed, with_rule=rules, held_out=held_out, part=part)
        if not prompts.rows:
            dropped = ", ".join(f"{reason} {count}" for reason, count in report["dropped"].items()) or "none was read"
            raise DataError(f"stage {stage}: no prompt is left to train on ({dropped})")
        return StageRows(
            **common, data=prompts_from(recipe) or "preference", max_length=data.prompts.max_prompt_length,
            records=prompts.records, rows=prompts.rows, report=report,
        )  # fmt: skip
    assert isinstance(settings, OfflineSettings)
    if isinstance(settings, SftSettings):
        demonstrations, _, report = encode_demonstrations(data, formatter, recipe.seed, part)
        report["padding"] = sft_padding(settings, demonstrations.rows, _required(data.sft), recipe.seed)
        return StageRows(
            **common, data="sft", max_length=_required(data.sft).max_length, records=demonstrations.records,
            rows=demonstrations.rows, report=report,
        )  # fmt: skip
    pairs, _, report = encode_pairs(data, formatter, recipe.seed, part)
    report["padding"] = pair_padding(settings, pairs.rows, _required(data.preference), recipe.seed)
    return StageRows(
        **common, data="preference", max_length=_required(data.preference).max_length, records=pairs.records,
        rows=pairs.rows, report=report,
    )  # fmt: skip


def _required(settings: DataSetSettings | None) -> DataSetSettings:
    assert settings is not None  # the recipe was checked: a stage's data set is there
    return settings
