"""The data reports of a recipe's stages, made before any of them runs."""

from __future__ import annotations

from evaluation.inspection.stage_rows import StageRows, formatter_of, require_stage, stage_rows
from pipeline.recipe.schema import Recipe


def data_reports(recipe: Recipe, stage: str | None = None) -> list[StageRows]:
    """Rows and report of one stage, or of all that train, in order.

    Args:
        recipe: validated.
        stage: the only one to look at.

    Raises:
        RecipeError: there is no such stage.
        DataError, SourceUnreachableError: as the stage itself would end.
    """
    names = [*recipe.stages] if stage is None else [require_stage(recipe, stage)]
    formatter = formatter_of(recipe)
    return [stage_rows(recipe, name, formatter) for name in names]


def grouped(found: list[StageRows]) -> list[tuple[StageRows, tuple[str, ...]]]:
    """Each report once, with the stages that it holds for."""
    uses: list[tuple[StageRows, list[str]]] = []
    for rows in found:
        same = next((names for one, names in uses if one.data == rows.data and one.report == rows.report), None)
        if same is None:
            uses.append((rows, [rows.stage]))
        else:
            same.append(rows.stage)
    return [(rows, tuple(names)) for rows, names in uses]
