"""Which engine spreads a stage's training over the ranks: what the recipe names, what the launch configured. Layer 0.

`deepspeed: inherit` takes the launch's engine, `none` none whatever the launch says, a file DeepSpeed with that file.
Two that contradict each other are refused with both named: neither is overruled in silence.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import RecipeError
from pipeline.recipe.checks import ds_config_file
from pipeline.recipe.fsdp_launch import against_fsdp
from pipeline.recipe.parallelism import against_parallelism
from pipeline.recipe.places import Places, Problem
from pipeline.recipe.schema import Recipe
from pipeline.recipe.stage_settings import DpoSettings, PpoSettings, RewardSettings, StageSettings

USE_DEEPSPEED, USE_FSDP = "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"
_CONFIG_FILE, _ZERO_STAGE = "ACCELERATE_DEEPSPEED_CONFIG_FILE", "ACCELERATE_DEEPSPEED_ZERO_STAGE"


@dataclass(frozen=True, slots=True)
class Engine:
    """What spreads a stage's training over the ranks."""

    kind: str
    """`none` (every rank holds everything, gradients are averaged), `deepspeed` or `fsdp`."""
    zero_stage: int = 0
    """DeepSpeed's: 1 spreads the optimiser's state, 2 gradients too, 3 parameters too."""
    file: Path | None = None
    """DeepSpeed's configuration, where one is named."""

    @property
    def spreads_parameters(self) -> bool:
        """Whether no rank holds the whole model."""
        return self.zero_stage == 3 or self.kind == "fsdp"

    @property
    def path_name(self) -> str:
        """Name of its file, where there is one."""
        return "" if self.file is None else self.file.stem

    def __str__(self) -> str:
        if self.kind == "deepspeed":
            return f"DeepSpeed ZeRO-{self.zero_stage}"
        return "FSDP" if self.kind == "fsdp" else "no engine"


NO_ENGINE = Engine("none")
WITHOUT_OFFLOADING = (
    "which a ppo stage has not been taught; use zero3, and rollout_engine: vllm_server where the policy does not fit "
    "on a GPU"
)
"""End of a refusal."""


def stage_engine(deepspeed: str, environment: Mapping[str, str]) -> Engine:
    """The engine of a stage.

    Args:
        deepspeed: the stage's key of that name.
        environment: of the launch; accelerate tells its processes there what it was configured for.
    """
    if deepspeed == "inherit":
        return launched_engine(environment)
    file = ds_config_file(deepspeed)
    return NO_ENGINE if file is None else Engine("deepspeed", _zero_stage(file), file)


def launched_engine(environment: Mapping[str, str]) -> Engine:
    """The engine that the launch configured."""
    if environment.get(USE_DEEPSPEED, "").lower() == "true":
        named = environment.get(_CONFIG_FILE)
        file = Path(named) if named and named != "none" else None
        return Engine("deepspeed", _zero_stage(file) if file else int(environment.get(_ZERO_STAGE) or 2), file)
    return Engine("fsdp") if environment.get(USE_FSDP, "").lower() == "true" else NO_ENGINE


def check_engines(recipe: Recipe, environment: Mapping[str, str], places: Places | None = None) -> dict[str, Engine]:
    """Each stage's engine, once nothing contradicts it.

    Args:
        recipe: the recipe.
        environment: of the launch.
        places: where the recipe's values were written (`LoadedRecipe.places`), to point at them.

    Raises:
        RecipeError: a stage names another engine than the launch, or one that cannot do what the stage asks; all such
            stages are named, one a line.
    """
    problems = [
        Problem(("stages", name, "deepspeed"), text)
        for name, stage in recipe.stages.items()
        for text in _problems(recipe, name, stage, environment)
    ]
    (places or Places(recipe.name)).refuse(problems)
    return {name: stage_engine(stage.deepspeed, environment) for name, stage in recipe.stages.items()}


def _problems(recipe: Recipe, name: str, stage: StageSettings, environment: Mapping[str, str]) -> Iterator[str]:
    launched, asked = launched_engine(environment), stage_engine(stage.deepspeed, environment)
    named = stage.deepspeed not in ("inherit", "none")
    if named and launched.kind != "none" and not _same_file(asked.file, launched.file):
        yield (
            f"the recipe names {stage.deepspeed} ({asked}), the launch configures {_described(launched)}; write "
            "inherit to take the launch's, or launch without an engine (--config_file ds_configs/accelerate/ddp.yaml)"
        )
        return
    if why := against_parallelism(environment):
        yield why
    if asked.kind == "none":
        return
    if isinstance(stage, DpoSettings) and stage.watch is not None and asked.spreads_parameters:
        yield (
            "watch answers prompts while training goes on, for which a rank needs the whole policy, and "
            f"{asked} spreads it; use zero2, or write `stages.{name}.watch: null`"
        )
    if asked.kind == "fsdp":
        yield from against_fsdp(recipe, name, stage, environment)
    else:
        yield from _against_deepspeed(recipe, name, stage, asked)


def _against_deepspeed(recipe: Recipe, name: str, stage: StageSettings, asked: Engine) -> Iterator[str]:
    if asked.spreads_parameters and recipe.model.quantization != "none":
        yield (
            f"ZeRO-3 cannot spread a base in {recipe.model.quantization} here: bitsandbytes packs its weights into "
            "blocks with scales of their own, which DeepSpeed does not see; use zero2, which keeps the base whole on "
            "every GPU, or set model.quantization: none"
        )
    if isinstance(stage, PpoSettings):
        yield from _against_ppo(recipe, name, stage, asked)
    if isinstance(stage, RewardSettings) and stage.ensemble > 1:
        yield (
            f"{asked} serves one model per process, and ensemble: {stage.ensemble} trains several; write "
            f"`stages.{name}.ensemble: 1` or `deepspeed: none`"
        )


def _against_ppo(recipe: Recipe, name: str, stage: PpoSettings, asked: Engine) -> Iterator[str]:
    adapter = recipe.model.adapter
    if adapter != "none" and adapter.type == "dora" and asked.spreads_parameters:
        yield (
            f"DoRA takes norms of the base's weights in every pass, and under {asked} no rank has them; use zero2, or "
            "model.adapter.type: lora"
        )
    if stage.stop_kl is not None and (adapter == "none" or not asked.spreads_parameters):
        yield (
            f"{asked} holds gradients that stop_kl would have to take back, for which it has no call; write "
            f"`stages.{name}.stop_kl: null` or `deepspeed: none`"
        )
    if "offload" in asked.path_name:
        yield f"{asked.path_name} offloads, {WITHOUT_OFFLOADING}"


def _described(engine: Engine) -> str:
    return f"{engine} from {engine.file}" if engine.file else str(engine)


def _same_file(one: Path | None, other: Path | None) -> bool:
    return one is not None and other is not None and one.resolve() == other.resolve()


def _zero_stage(file: Path) -> int:
    """The stage that a configuration asks for.

    Raises:
        RecipeError: the file is not there or is no DeepSpeed configuration.
    """
    try:
        found: Any = json.loads(file.read_text(encoding="utf-8"))
        return int(found.get("zero_optimization", {}).get("stage", 0))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise RecipeError(f"{file} cannot be read as a DeepSpeed configuration: {error}") from error
