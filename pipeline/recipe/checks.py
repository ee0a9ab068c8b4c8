"""What must hold between the fields of a recipe that are each fine on their own.

Every check yields problems with the key to point at; `load` places them at their lines. Nothing here depends on the
number of processes except `check_batches`, which the launcher calls once it knows it.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from pipeline.errors import RecipeError
from pipeline.recipe.batch import draws_of_step, row_groups
from pipeline.recipe.checks_heldout import check_heldout, check_watch
from pipeline.recipe.checks_ppo import check_ppo
from pipeline.recipe.foreign import NO_SECRETS, secrets_in, trainer_arg_problem
from pipeline.recipe.lineage import (
    BASE,
    POLICY_KINDS,
    earlier,
    heldout_reward,
    used_data,
    why_not,
    written_start,
)
from pipeline.recipe.places import KeyPath, Places, Problem
from pipeline.recipe.schema import DataSetSettings, Recipe
from pipeline.recipe.source import REPOSITORY
from pipeline.recipe.stage_settings import (
    STAGE_KINDS,
    STREAMS_ALONE,
    DpoSettings,
    OfflineSettings,
    PpoSettings,
    RewardSettings,
    SftSettings,
    StageSettings,
)
from pipeline.recipe.vocabulary import article, nearest
from pipeline.redaction import holds_secret

DS_CONFIGS = REPOSITORY / "ds_configs"
RESERVED_STAGES = {
    BASE: "the base model",
    "logs": "the folder of log files",
    "evaluation": "the folder of results",
    "slurm": "the folder of job scripts",
    "benchmarks": "the folder of public benchmarks",
}
SMOOTHED_LOSSES = ("sigmoid", "robust", "exo_pair", "aot", "aot_unpaired")
_BATCH_KEYS = ("global_batch_size", "rollout_batch_size", "minibatches", "per_device_batch_size")
_NOT_IN_PIECES = (
    "accelerator_config", "average_tokens_across_devices", "include_num_input_tokens_seen", "neftune_noise_alpha",
    "pad_to_multiple_of",
)  # fmt: skip
"""Of `trainer_args`, beside all of the data loader's."""
CHAT_TEMPLATES = ("auto", "plain", "alpaca", "chatml")


def check_recipe(recipe: Recipe) -> list[Problem]:
    """Return all problems between the fields of a recipe, in no particular order."""
    return [
        *_model(recipe),
        *_data(recipe),
        *_split(recipe),
        *(problem for name in recipe.stages for problem in _stage(recipe, name)),
        *_evaluation(recipe),
        *_secrets(recipe.model_dump(mode="json", by_alias=True)),
        *check_heldout(recipe),
    ]


def check_batches(recipe: Recipe, world_size: int, places: Places | None = None) -> dict[str, int]:
    """Return the gradient accumulation of every stage for a number of processes.

    Args:
        recipe: the recipe.
        world_size: number of processes that train together.
        places: where the recipe's values were written (`LoadedRecipe.places`), to point at them.

    Raises:
        RecipeError: some stage's batch does not divide; all such stages are named, one a line.
    """
    steps: dict[str, int] = {}
    wrong: list[str] = []
    for name, stage in recipe.stages.items():
        try:
            groups = _groups(stage, world_size, _placed(places, name, ("sequence_parallel_size",)))
            steps[name] = _accumulation(stage, groups, _placed(places, name, _BATCH_KEYS))
        except RecipeError as error:
            wrong.append(str(error))
    if wrong:
        raise RecipeError("\n".join(wrong))
    return steps


def _groups(stage: StageSettings, world_size: int, where: str) -> int:
    """Return how many groups of processes, most often of one each, compute different rows."""
    return row_groups(world_size, stage.sequence_parallel_size, where) if isinstance(stage, SftSettings) else world_size


def _accumulation(stage: StageSettings, groups: int, where: str) -> int:
    """Return how often each process draws rows in an optimiser step of a stage."""
    sizes = (stage.per_device_batch_size, stage.tokens_per_device, groups, where)
    if isinstance(stage, PpoSettings):
        step, rest = divmod(stage.rollout_batch_size, stage.minibatches)
        if rest:
            raise RecipeError(
                f"{where}: rollout_batch_size {stage.rollout_batch_size} does not divide into {stage.minibatches} "
                "minibatches; make it a multiple"
            )
        return draws_of_step(step, *sizes, name="rollout_batch_size / minibatches")[1]
    assert isinstance(stage, OfflineSettings)
    return draws_of_step(stage.global_batch_size, *sizes)[1]


def _placed(places: Places | None, name: str, keys: tuple[str, ...]) -> str:
    """Return a stage's path behind the place of the first of its keys that is written, else its own."""
    where = f"stages.{name}"
    if places is None:
        return where
    paths = [("stages", name, key) for key in keys]
    written = next((path for path in paths if path in places.marks or path in places.changes), ("stages", name))
    return f"{places.find(written)}: {where}"


def ds_config_file(deepspeed: str, folder: Path | None = None) -> Path | None:
    """Return the file that a stage's `deepspeed` names; None for `inherit`, `none` and what does not exist."""
    if deepspeed in ("inherit", "none"):
        return None
    if "/" not in deepspeed:
        named = (folder or DS_CONFIGS) / f"{deepspeed.removesuffix('.json')}.json"
        if named.is_file():
            return named
    path = Path(deepspeed).expanduser()
    return path if path.suffix == ".json" and path.is_file() else None


def _secrets(value: Any, path: KeyPath = ()) -> Iterator[Problem]:
    """Refuse values that hold a secret: what stands in a recipe stands in every run, report and script made of it."""
    if isinstance(value, str) and holds_secret(value):
        yield Problem(path, f"holds a password or token; {NO_SECRETS}")
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, inner in inside:
        yield from _secrets(inner, (*path, step))


def _model(recipe: Recipe) -> Iterator[Problem]:
    model = recipe.model
    if model.adapter == "none" and model.quantization != "none":
        text = f"quantised weights ({model.quantization}) cannot be trained: keep an adapter, or set quantization: none"
        yield Problem(("model", "quantization"), text)
    if model.adapter != "none" and "lm_head" in model.adapter.target_modules:
        yield Problem(("model", "adapter", "target_modules"), "the output head (lm_head) cannot carry an adapter")
    if model.revision is not None and model.base.startswith("builtin:"):
        yield Problem(("model", "revision"), f"{model.base} has no revisions; this key is for hub ids")
    if not model.base.strip():
        yield Problem(("model", "base"), "is empty; expected a `builtin:` name, a hub id, or a folder")
    if recipe.output_dir is not None and not recipe.output_dir.strip():
        yield Problem(("output_dir",), "is empty; expected a folder (leave the key out for runs/<name>)")


def _evaluation(recipe: Recipe) -> Iterator[Problem]:
    asked = recipe.evaluation
    judging = heldout_reward(recipe)
    rewards = [name for name, stage in recipe.stages.items() if stage.kind == "reward" and name != judging]
    scores = "score" in asked.tasks and bool(rewards)
    if asked.best_of_n and not scores:
        text = "there is nothing to choose the best by; add a reward stage, and keep score in evaluation.tasks"
        yield Problem(("evaluation", "best_of_n"), text)
    policies = [BASE, *(name for name, stage in recipe.stages.items() if stage.kind in POLICY_KINDS)]
    for index, name in enumerate(asked.policies):
        if name not in policies:
            near = nearest(name, policies)
            meant = f"; did you mean '{near}'?" if near else f" (there are: {', '.join(policies)})"
            yield Problem(("evaluation", "policies", index), f"'{name}' is no policy of this recipe{meant}")
    if asked.judge is not None and not asked.tasks:
        text = "evaluation.tasks is empty, so nothing is evaluated; write at least one task"
        yield Problem(("evaluation", "judge"), text)


def _data(recipe: Recipe) -> Iterator[Problem]:
    data = recipe.data
    present = {name: found for name, found in (("sft", data.sft), ("preference", data.preference)) if found}
    for name, data_set in present.items():
        yield from _data_set(name, data_set)
        duplicates = data_set.clean.near_duplicates
        if duplicates is not None and duplicates.other_set and not (duplicates.held_out and len(present) == 2):
            why = "there is only one data set" if duplicates.held_out else "held_out is false"
            at = ("data", name, "clean", "near_duplicates", "other_set")
            yield Problem(at, f"has no effect, as {why}; leave it out")
    source = data.prompts.from_
    if source is not None and source not in present:
        have = " or ".join(present) or "a data set"
        yield Problem(
            ("data", "prompts", "from"), f"there is no data.{source}; write it, or take the prompts of {have}"
        )
    template = data.chat_template
    if template not in CHAT_TEMPLATES and not (template.endswith(".jinja") and Path(template).is_file()):
        near = nearest(template, list(CHAT_TEMPLATES))
        meant = f"; did you mean '{near}'?" if near else ""
        text = f"expected {', '.join(CHAT_TEMPLATES)}, or a .jinja file that exists, found '{template}'{meant}"
        yield Problem(("data", "chat_template"), text)


def _split(recipe: Recipe) -> Iterator[Problem]:
    """Check that the parts belong to stages and are no more than the whole."""
    parts, at = recipe.data.split, ("data", "split")
    kinds = {stage.kind for stage in recipe.stages.values()}
    possible = list(dict.fromkeys([*recipe.stages, *kinds]))
    for name in parts:
        if name not in possible:
            near = nearest(name, possible)
            meant = f"; did you mean '{near}'?" if near else f" (there are: {', '.join(sorted(possible))})"
            yield Problem((*at, name), f"is neither a stage of this recipe nor the kind of one{meant}", at_key=True)
    total = sum(Fraction(str(part)) for part in parts.values())
    if total > 1:
        yield Problem(at, f"the parts add up to {float(total):g}, expected at most 1")


def _data_set(name: str, data_set: DataSetSettings) -> Iterator[Problem]:
    weighted = [source.weight is not None for source in data_set.sources]
    for i, source in enumerate(data_set.sources):
        at: KeyPath = ("data", name, "sources", i)
        if any(weighted) and not weighted[i] and source.count is None:
            having = [str(j) for j, has in enumerate(weighted) if has]
            yield Problem(at, f"has no weight although source {', '.join(having)} has one; write all weights or none")
        if source.count is not None and (source.limit is not None or source.weight is not None):
            other = "limit" if source.limit is not None else "weight"
            yield Problem(
                (*at, "count"), f"says exactly how many rows to take, so {other} has no say; keep one of them"
            )
        if not source.path.strip():
            yield Problem((*at, "path"), "is empty; expected a file, folder, hub id or `builtin:` name")
        if source.revision is not None and source.path.startswith("builtin:"):
            yield Problem((*at, "revision"), f"{source.path} has no revisions; this key is for hub ids")


def _stage(recipe: Recipe, name: str) -> Iterator[Problem]:
    stage, at = recipe.stages[name], ("stages", name)
    if name in RESERVED_STAGES:
        yield Problem(at, f"a stage cannot be named '{name}': that is {RESERVED_STAGES[name]}", at_key=True)
    if name in STAGE_KINDS and stage.kind != name:
        yield Problem(
            (*at, "kind"), f"a stage named '{name}' is of that kind; give a stage of kind {stage.kind} another name"
        )
    data = used_data(recipe, name)[0]
    if getattr(recipe.data, data) is None:
        yield Problem(at, f"{article(stage.kind)} stage trains on data.{data}, which is absent", at_key=True)
    yield from _start(recipe, name)
    yield from _deepspeed(stage, at)
    if isinstance(stage, OfflineSettings):
        yield from _trainer_args(stage, stage.kind, at)
        for key in STREAMS_ALONE:
            if stage.engine == "trl" and getattr(stage, key, None):
                yield Problem((*at, key), "TRL's trainer knows no such thing here; remove it, or engine: trl")
    if isinstance(stage, SftSettings):
        yield from _sft(stage, at)
    if isinstance(stage, DpoSettings):
        yield from _dpo(stage, at)
        yield from check_watch(recipe, name, stage)
    if isinstance(stage, RewardSettings):
        yield from _reward(stage, at)
    if isinstance(stage, PpoSettings):
        yield from check_ppo(recipe, name, stage)


def _sft(stage: SftSettings, at: KeyPath) -> Iterator[Problem]:
    if stage.packing and stage.group_by_length:
        text = "packed rows have no padding, so that grouping them has no effect; remove one of the two"
        yield Problem((*at, "group_by_length"), text)
    if stage.sequence_parallel_size == 1:
        return
    if stage.packing:
        text = (
            "rows that processes compute together are cut into pieces, behind which nothing keeps packed rows apart; "
            "remove one of the two"
        )
        yield Problem((*at, "packing"), text)
    if stage.engine == "streams":
        text = "streams hold rows whole, and sequence_parallel_size cuts them up; leave it at auto"
        yield Problem((*at, "engine"), text)
    for key in stage.trainer_args:
        if key.startswith("dataloader_") or key in _NOT_IN_PIECES:
            text = "rows that sequence_parallel_size cuts into pieces know no such thing; remove it"
            yield Problem((*at, "trainer_args", key), text, at_key=True)


def _trainer_args(stage: OfflineSettings, kind: str, at: KeyPath) -> Iterator[Problem]:
    for key in stage.trainer_args:
        if text := trainer_arg_problem(key, kind):
            yield Problem((*at, "trainer_args", key), text, at_key=True)
    for path in secrets_in(stage.trainer_args):
        yield Problem((*at, "trainer_args", *path), NO_SECRETS, at_key=True)


def _start(recipe: Recipe, name: str) -> Iterator[Problem]:
    """Check that `init` or `policy` names an earlier stage that leaves a policy, or the base model."""
    key, start = written_start(recipe.stages[name])
    possible = [*earlier(recipe, name), BASE]
    if start is not None and start not in possible:
        yield Problem(("stages", name, key), why_not(recipe, name, start, possible))


def _deepspeed(stage: StageSettings, at: KeyPath) -> Iterator[Problem]:
    known = stage.deepspeed in ("inherit", "none") or ds_config_file(stage.deepspeed) is not None
    if known:
        return
    names = ["inherit", "none", *sorted(path.stem for path in DS_CONFIGS.glob("*.json"))]
    near = nearest(stage.deepspeed, names)
    meant = f"; did you mean '{near}'?" if near else ""
    text = f"expected one of {', '.join(names)}, or a .json file that exists, found '{stage.deepspeed}'{meant}"
    yield Problem((*at, "deepspeed"), text)


def _reward(stage: RewardSettings, at: KeyPath) -> Iterator[Problem]:
    """Check that what shapes an ensemble's score has an ensemble."""
    fields = RewardSettings.model_fields
    if stage.ensemble == 1 and stage.aggregate != fields["aggregate"].default:
        yield Problem((*at, "aggregate"), "has no effect on one model; set ensemble: 3 or so, or remove it")
    if stage.aggregate != "mean_minus_variance" and stage.variance_weight != fields["variance_weight"].default:
        yield Problem((*at, "variance_weight"), f"aggregate {stage.aggregate} ignores it; remove it")


def _dpo(stage: DpoSettings, at: KeyPath) -> Iterator[Problem]:
    """Check the loss's own settings; a value equal to the default is never a problem: resolved recipes write it."""
    if stage.loss_type == "exo_pair" and stage.label_smoothing == 0:
        yield Problem((*at, "loss_type"), "exo_pair needs label_smoothing above 0 (its paper: 1.0e-3)")
    if stage.label_smoothing > 0 and stage.loss_type not in SMOOTHED_LOSSES:
        text = f"loss_type {stage.loss_type} ignores it; remove it or use one of {', '.join(SMOOTHED_LOSSES)}"
        yield Problem((*at, "label_smoothing"), text)
    if stage.loss_type != "rpo" and stage.rpo_alpha != DpoSettings.model_fields["rpo_alpha"].default:
        yield Problem((*at, "rpo_alpha"), f"loss_type {stage.loss_type} ignores it; write loss_type: rpo, or remove it")
