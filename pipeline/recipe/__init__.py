"""The recipe: one YAML file that says everything a run does. Loading it never imports torch. Layer 0.

Reading order: `schema` and `stage_settings` (what can be said), `source` (YAML to data and lines), `overrides`, `load`,
`checks`, `lineage`.
"""

from pipeline.recipe.batch import draws_of_step, row_groups
from pipeline.recipe.checks import check_batches, check_recipe, ds_config_file
from pipeline.recipe.checks_ppo import check_reward_function
from pipeline.recipe.engines import check_engines
from pipeline.recipe.json_schema import recipe_json_schema
from pipeline.recipe.lineage import parents_of, policy_of, prompts_from, reference_of, reward_sources, used_data
from pipeline.recipe.load import LoadedRecipe, load_recipe, loads_recipe
from pipeline.recipe.places import Problem
from pipeline.recipe.resolved import to_yaml
from pipeline.recipe.schema import (
    AdapterSettings,
    DataSetSettings,
    DataSettings,
    EvaluationSettings,
    ModelSettings,
    PromptSettings,
    Recipe,
    SourceSettings,
    TrackingSettings,
    WandbSettings,
)
from pipeline.recipe.stage_settings import (
    STAGE_KINDS,
    DpoSettings,
    PpoSettings,
    RewardSettings,
    SftSettings,
    StageSettings,
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
    "PpoSettings",
    "Problem",
    "PromptSettings",
    "Recipe",
    "RewardSettings",
    "SftSettings",
    "SourceSettings",
    "StageSettings",
    "TrackingSettings",
    "WandbSettings",
    "check_batches",
    "check_engines",
    "check_recipe",
    "check_reward_function",
    "draws_of_step",
    "ds_config_file",
    "load_recipe",
    "loads_recipe",
    "parents_of",
    "policy_of",
    "prompts_from",
    "recipe_json_schema",
    "reference_of",
    "reward_sources",
    "row_groups",
    "to_yaml",
    "used_data",
]
