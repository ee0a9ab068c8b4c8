"""What to say when the GPU is full: in which stage, doing what, how much it was, and what to type next. Layer 2.

The edits come in the order in which to try them: first those that keep the results (the global batch stays, as
accumulation follows), last those that shorten rows. Only what the recipe takes as it stands is proposed: each edit is
tried on it as the command line would.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from types import TracebackType

from pipeline.errors import RecipeError
from pipeline.peak_memory import gpu_peak
from pipeline.recipe import check_batches, check_engines, loads_recipe
from pipeline.recipe.engines import Engine
from pipeline.recipe.schema import Recipe
from pipeline.recipe.stage_settings import PpoSettings, StageSettings

_EDITS = 3
_PHASES = {
    "pipeline.models.load": "loading a model",
    "pipeline.models.roles": "loading a model",
    "pipeline.rollouts": "sampling answers",
    "evaluation": "scoring held-out rows",
    "pipeline.stages.round_trip": "checking the saved weights",
    "pipeline.stages.policy": "saving",
    "pipeline.models.adapters": "saving",
    "pipeline.stages.offline": "a training step",
    "pipeline.stages.stream_trainer": "a training step",
    "pipeline.stages.ppo_update": "a training step",
}
"""By module, the innermost of ours that the failed allocation was made under."""
_OPTIMISER = ("torch.optim", "deepspeed.runtime.zero", "deepspeed.ops.adam")


@dataclass(frozen=True, slots=True)
class Memory:
    """Of this process's GPU, in bytes."""

    peak: int
    total: int


def out_of_memory(
    stage: str,
    recipe: Recipe,
    engine: Engine,
    world_size: int,
    where: str,
    memory: Memory,
    environment: Mapping[str, str] = os.environ,
) -> str:
    """The sentence.

    Args:
        stage: its name; `evaluation` is not among the recipe's stages.
        recipe: of the run.
        engine: that the stage trains under.
        world_size: number of processes.
        where: what was being done, from `phase`.
        memory: of the GPU that was full.
        environment: of the launch.
    """
    possible = _edits(stage, recipe, engine, world_size)
    edits = list(islice((each for each in possible if _is_taken(each, recipe, world_size, environment)), _EDITS))
    tries = "; ".join(f"({number}) --set {edit}" for number, edit in enumerate(edits, start=1))
    gib = 1 << 30
    return (
        f"out of GPU memory in stage {stage}, during {where}: its peak was {memory.peak / gib:.1f} of "
        f"{memory.total / gib:.1f} GiB. Try, in this order: {tries}"
    )


def gpu_memory() -> Memory:
    """Of the GPU of this process, since its stage began."""
    import torch

    if not torch.cuda.is_available():
        return Memory(0, 0)
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return Memory(gpu_peak() or 0, total)


def phase(traceback: TracebackType | None) -> str:
    """What was being done when an error was raised, read off the modules that it came through."""
    found = "its work"
    while traceback is not None:
        name = str(traceback.tb_frame.f_globals.get("__name__", ""))
        known = [module for module in _PHASES if name == module or name.startswith(f"{module}.")]
        if known:
            found = _PHASES[max(known, key=len)]
        elif name.startswith(_OPTIMISER) and found == "a training step":
            found = "the optimiser's step"
        traceback = traceback.tb_next
    return found


def _edits(name: str, recipe: Recipe, engine: Engine, world_size: int) -> Iterator[str]:
    stage = recipe.stages.get(name)
    if stage is None:
        if recipe.evaluation.batch_size > 1:
            yield f"evaluation.batch_size={recipe.evaluation.batch_size // 2}"
        yield f"evaluation.max_new_tokens={max(1, recipe.evaluation.max_new_tokens // 2)}"
        yield from _smaller_base(recipe)
        yield from _shorter_rows(recipe, "preference")
        yield from _shorter_rows(recipe, "sft")
        return
    at = f"stages.{name}"
    if isinstance(stage, PpoSettings) and stage.generation_batch_size > 1:
        yield f"{at}.generation_batch_size={stage.generation_batch_size // 2}"
    if stage.tokens_per_device is None:
        if stage.per_device_batch_size > 1:
            yield f"{at}.per_device_batch_size={_smaller(stage.per_device_batch_size)}"
    elif stage.tokens_per_device > 1:
        yield f"{at}.tokens_per_device={stage.tokens_per_device // 2}"
    if not stage.gradient_checkpointing:
        yield f"{at}.gradient_checkpointing=true"
    # What the launch configured cannot be overruled from here.
    if engine.kind == "none" or stage.deepspeed != "inherit":
        yield from _stronger_engine(at, recipe, stage, engine, world_size)
    yield from _smaller_base(recipe)
    if stage.precision == "fp32":
        yield f"{at}.precision=bf16"
    yield from _shorter_rows(recipe, "sft" if stage.kind == "sft" else "preference")
    if isinstance(stage, PpoSettings):
        yield f"{at}.max_new_tokens={max(1, stage.max_new_tokens // 2)}"
    if recipe.model.adapter != "none":
        yield f"model.adapter.r={max(1, recipe.model.adapter.r // 2)}"


def _is_taken(edit: str, recipe: Recipe, world_size: int, environment: Mapping[str, str]) -> bool:
    """Whether a run of the recipe with the edit gets past all checks, and is another one."""
    try:
        loaded = loads_recipe(json.dumps(recipe.model_dump(mode="json", by_alias=True)), "recipe", [edit])
        check_batches(loaded.recipe, world_size, loaded.places)
        check_engines(loaded.recipe, environment, loaded.places)
    except RecipeError:
        return False
    return loaded.recipe != recipe


def _smaller(size: int) -> int:
    """The largest proper divisor, so that every global batch that divided before divides again."""
    return max(divisor for divisor in range(1, size) if size % divisor == 0)


def _stronger_engine(at: str, recipe: Recipe, stage: StageSettings, engine: Engine, world_size: int) -> Iterator[str]:
    quantised = recipe.model.quantization != "none"
    adapter = recipe.model.adapter
    if isinstance(stage, PpoSettings) and (stage.stop_kl is not None or (adapter != "none" and adapter.type == "dora")):
        # Both go without some engines.
        return
    if world_size > 1 and engine.kind == "none":
        yield f"{at}.deepspeed=zero2"
    if world_size > 1 and not engine.spreads_parameters and not quantised:
        yield f"{at}.deepspeed=zero3"
    if not quantised and not engine.offloads_to:
        yield f"{at}.deepspeed=zero3_offload_cpu"


def _smaller_base(recipe: Recipe) -> Iterator[str]:
    """Only of a base that is not trained itself."""
    if recipe.model.adapter != "none" and recipe.model.quantization == "none":
        yield "model.quantization=nf4"
        if recipe.model.dtype in ("auto", "float32"):
            yield "model.dtype=bfloat16"


def _shorter_rows(recipe: Recipe, data: str) -> Iterator[str]:
    settings = getattr(recipe.data, data)
    if settings is not None and settings.max_length > 1:
        yield f"data.{data}.max_length={settings.max_length // 2}"
