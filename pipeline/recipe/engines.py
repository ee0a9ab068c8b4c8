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
from pipeline.recipe.stage_settings import DpoSettings, PpoSettings, RewardSettings, SftSettings, StageSettings

USE_DEEPSPEED, USE_FSDP = "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"
_CONFIG_FILE, _ZERO_STAGE = "ACCELERATE_DEEPSPEED_CONFIG_FILE", "ACCELERATE_DEEPSPEED_ZERO_STAGE"
_OFFLOADING = ("offload_optimizer", "offload_param")
"""Parts of DeepSpeed's configuration; accelerate's launcher has a variable for the device of each."""
_PLACES = {"cpu": "the host's memory", "nvme": "a disk"}
_OF_ITS_OWN_ADAM = {"ratio": 1.0, "super_offload": False}
"""What DeepSpeed offers of `offload_optimizer` with no optimiser but its own, and without it."""


@dataclass(frozen=True, slots=True)
class Engine:
    """What spreads a stage's training over the ranks."""

    kind: str
    """`none` (every rank holds everything, gradients are averaged), `deepspeed` or `fsdp`."""
    zero_stage: int = 0
    """DeepSpeed's: 1 spreads the optimiser's state, 2 gradients too, 3 parameters too."""
    file: Path | None = None
    """DeepSpeed's configuration, where one is named."""
    offloads_to: str = ""
    """DeepSpeed's: `cpu` or `nvme`, the farthest place where optimiser or parameters lie; empty for the GPU."""

    @property
    def spreads_parameters(self) -> bool:
        """Whether no rank holds the whole model."""
        return self.zero_stage == 3 or self.kind == "fsdp"

    def __str__(self) -> str:
        if self.kind == "deepspeed":
            offloading = f" offloaded to {_PLACES[self.offloads_to]}" if self.offloads_to else ""
            return f"DeepSpeed ZeRO-{self.zero_stage}{offloading}"
        return "FSDP" if self.kind == "fsdp" else "no engine"


NO_ENGINE = Engine("none")


def stage_engine(deepspeed: str, environment: Mapping[str, str]) -> Engine:
    """The engine of a stage.

    Args:
        deepspeed: the stage's key of that name.
        environment: of the launch; accelerate tells its processes there what it was configured for.
    """
    if deepspeed == "inherit":
        return launched_engine(environment)
    file = ds_config_file(deepspeed)
    return NO_ENGINE if file is None else _deepspeed(_zero_part(file), file)


def launched_engine(environment: Mapping[str, str]) -> Engine:
    """The engine that the launch configured."""
    if environment.get(USE_DEEPSPEED, "").lower() == "true":
        named = environment.get(_CONFIG_FILE)
        file = Path(named) if named and named != "none" else None
        return _deepspeed(_zero_part(file) if file else _launched_zero_part(environment), file)
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
    if isinstance(stage, SftSettings) and stage.sequence_parallel_size > 1:
        yield from _against_pieces(name, stage, asked)
    if asked.kind == "none":
        return
    if stage.tokens_per_device is not None:
        yield (
            f"with tokens_per_device a process makes as many passes as its own rows need, and {asked} has all make "
            f"the same number; write `stages.{name}.tokens_per_device: null` and set per_device_batch_size"
        )
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
    adapter = recipe.model.adapter
    if adapter != "none" and adapter.type == "dora" and asked.spreads_parameters:
        yield (
            f"DoRA takes norms of the base's weights in every pass, and under {asked} no rank has them; use zero2, or "
            "model.adapter.type: lora"
        )
    if isinstance(stage, PpoSettings):
        yield from _against_ppo(recipe, name, stage, asked)
    if isinstance(stage, RewardSettings) and stage.ensemble > 1:
        yield (
            f"{asked} serves one model per process, and ensemble: {stage.ensemble} trains several; write "
            f"`stages.{name}.ensemble: 1` or `deepspeed: none`"
        )


def _against_pieces(name: str, stage: SftSettings, asked: Engine) -> Iterator[str]:
    """Why processes cannot compute rows together."""
    if asked.kind != "deepspeed":
        yield (
            f"sequence_parallel_size: {stage.sequence_parallel_size} takes DeepSpeed's Ulysses, and the stage has "
            f"{asked}; write `stages.{name}.deepspeed: zero3` (or zero2), or leave sequence_parallel_size out"
        )
    elif asked.zero_stage == 3 and asked.file and not _zero_part(asked.file).get("reduce_scatter", True):
        yield (
            f"{asked.file} sets reduce_scatter to false, under which DeepSpeed divides gradients of pieces of rows by "
            "one number for small weights and another for large ones; remove it, or leave sequence_parallel_size out"
        )


def _against_ppo(recipe: Recipe, name: str, stage: PpoSettings, asked: Engine) -> Iterator[str]:
    adapter = recipe.model.adapter
    if stage.stop_kl is not None and (adapter == "none" or not asked.spreads_parameters):
        yield (
            f"{asked} holds gradients that stop_kl would have to take back, for which it has no call; write "
            f"`stages.{name}.stop_kl: null` or `deepspeed: none`"
        )
    if stage.value_trunk == "policy" and (adapter == "none" or not asked.spreads_parameters):
        yield (
            f"{asked} steps the policy's layers and the value's head by engines of their own, and value_trunk: policy "
            f"has one loss for both; write `stages.{name}.value_trunk: own` or `deepspeed: none`"
        )
    if asked.offloads_to == "nvme" or (asked.offloads_to and not asked.spreads_parameters):
        yield (
            f"a ppo stage offloads under ZeRO-3 alone, and no farther than to the host's memory, not under {asked}; "
            "use zero3_offload_cpu, and rollout_engine: vllm_server where the policy does not fit on a GPU"
        )
    offloading = (_zero_part(asked.file) if asked.file else {}).get("offload_optimizer") or {}
    for key, plain in _OF_ITS_OWN_ADAM.items():
        if offloading.get(key, plain) != plain:
            yield (
                f"{asked.file} sets offload_optimizer.{key} to {offloading[key]}, which DeepSpeed does with an Adam of "
                "its own alone, and a ppo stage steps with torch's; remove it"
            )


def _described(engine: Engine) -> str:
    return f"{engine} from {engine.file}" if engine.file else str(engine)


def _same_file(one: Path | None, other: Path | None) -> bool:
    return one is not None and other is not None and one.resolve() == other.resolve()


def _deepspeed(zero: Mapping[str, Any], file: Path | None) -> Engine:
    """The engine of DeepSpeed's `zero_optimization`."""
    devices = [str((zero.get(name) or {}).get("device", "none")) for name in _OFFLOADING]
    farthest = next((place for place in ("nvme", "cpu") if place in devices), "")
    return Engine("deepspeed", int(zero.get("stage", 0)), file, farthest)


def _launched_zero_part(environment: Mapping[str, str]) -> dict[str, Any]:
    """What a launch without a file says, in the file's words."""
    devices = {name: environment.get(f"ACCELERATE_DEEPSPEED_{name.upper()}_DEVICE", "none") for name in _OFFLOADING}
    offloading = {name: {"device": device} for name, device in devices.items()}
    return {"stage": environment.get(_ZERO_STAGE) or 2, **offloading}


def _zero_part(file: Path) -> dict[str, Any]:
    """What a configuration says of ZeRO.

    Raises:
        RecipeError: the file is not there or is no DeepSpeed configuration.
    """
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")).get("zero_optimization", {})
        _deepspeed(found, file)
        return found
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise RecipeError(f"{file} cannot be read as a DeepSpeed configuration: {error}") from error
