"""The recipe: one YAML file that says everything a run does. Loading it never imports torch. Layer 0.

Reading order: `schema` (what can be said), `source` (YAML to data and lines), `overrides`, `load`, `checks`, `lineage`.
"""

from pipeline.recipe.batch import accumulation_steps
from pipeline.recipe.checks import check_batches, check_recipe, ds_config_file
from pipeline.recipe.json_schema import recipe_json_schema
from pipeline.recipe.lineage import policy_of, prompts_from, reference_of, used_data
from pipeline.recipe.load import LoadedRecipe, load_recipe, loads_recipe
from pipeline.recipe.places import Problem
from pipeline.recipe.resolved import to_yaml
from pipeline.recipe.schema import (
    STAGE_KINDS,
    AdapterSettings,
    DataSetSettings,
    DataSettings,
    DpoSettings,
    EvaluationSettings,
    ModelSettings,
    PromptSettings,
    Recipe,
    SftSettings,
    SourceSettings,
    StageSettings,
    TrackingSettings,
    WandbSettings,
)

__all__ = [
    "STAGE_KINDS",
    "AdapterSettings",
    "DataSetSettings",
    "DataSettings",
    "DpoSettings",
    "EvaluationSettings",
    "LoadedRecipe",
    "ModelSettings",
    "Problem",
    "PromptSettings",
    "Recipe",
    "SftSettings",
    "SourceSettings",
    "StageSettings",
    "TrackingSettings",
    "WandbSettings",
    "accumulation_steps",
    "check_batches",
    "check_recipe",
    "ds_config_file",
    "load_recipe",
    "loads_recipe",
    "policy_of",
    "prompts_from",
    "recipe_json_schema",
    "reference_of",
    "to_yaml",
    "used_data",
]
