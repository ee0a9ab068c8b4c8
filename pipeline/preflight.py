"""A look at the first row of every local source, and at the base model's kind, before anything is trained.

Called by the supervisor on the first rank: a later stage's data set that has no pairs, or whose fields nobody knows,
is found now and not after an hour of training on another, and so is a base that a later stage cannot train. Hub data
sets are not looked at; they may have to be fetched.
Layer 5.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from data_prep.data_sets import spec_of
from data_prep.readers import Reading
from data_prep.readers.containers import local_files
from pipeline.durable import read_json
from pipeline.errors import DataError
from pipeline.plan import EVALUATION
from pipeline.recipe.lineage import DataName, evaluation_reads, used_data
from pipeline.recipe.schema import Recipe
from pipeline.recipe.stage_settings import PpoSettings

Purpose = Literal["demonstrations", "pairs", "prompts"]


def check_data(recipe: Recipe, nodes: Sequence[str]) -> None:
    """Refuse sources whose rows cannot be what a stage wants of them.

    Args:
        recipe: validated.
        nodes: names of the stages that will run, and `evaluation` where that will.

    Raises:
        DataError: as reading would later on; the message names the source's key and the stage.
    """
    seen: set[tuple[DataName, Purpose]] = set()
    for node in nodes:
        for which, purpose in _reads(recipe, node):
            if (which, purpose) not in seen:
                seen.add((which, purpose))
                _check(recipe, which, purpose, node)


def check_base(recipe: Recipe, nodes: Sequence[str], folder: Path) -> None:
    """Refuse a base that reads images where a stage to come takes text models alone.

    Args:
        recipe: validated.
        nodes: as for `check_data`.
        folder: of the base model.

    Raises:
        TrivetError: as the stage would later on.
    """
    stages = {node: recipe.stages[node].kind for node in nodes if node != EVALUATION}
    wanting = {node: kind for node, kind in stages.items() if kind in ("reward", "ppo")}
    if not wanting or "vision_config" not in read_json(folder / "config.json"):
        return
    # Behind the look at the file: it imports transformers, which the supervisor does without.
    from pipeline.models.seeing import require_text_model

    for node, kind in wanting.items():
        require_text_model(folder, node, kind)


def _reads(recipe: Recipe, node: str) -> Iterator[tuple[DataName, Purpose]]:
    if node == EVALUATION:
        yield from evaluation_reads(recipe)
        return
    stage = recipe.stages[node]
    used = used_data(recipe, node)
    if isinstance(stage, PpoSettings):
        yield used[0], "prompts"
        used = ("sft",) if stage.ptx_coef > 0 else ()
    for which in used:
        yield which, "demonstrations" if which == "sft" else "pairs"


def _check(recipe: Recipe, which: DataName, purpose: Purpose, node: str) -> None:
    settings = recipe.data.sft if which == "sft" else recipe.data.preference
    assert settings is not None  # the recipe was checked: a stage's data set is there
    user = "the evaluation" if node == EVALUATION else f"stage {node}"
    for index, source in enumerate(settings.sources):
        if local_files(source.path) is None:
            continue
        try:
            Reading(spec_of(source), purpose).preview()
        except DataError as error:
            raise DataError(f"data.{which}.sources.{index}, of which {user} wants {purpose}: {error}") from error
