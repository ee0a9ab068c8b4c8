"""What to say when the GPU is full: in which stage, doing what, how much it was, and what to type next. Layer 2.

Each of the edits is valid for the recipe as it stands, keeps its results as far as any can (the global batch stays, as
accumulation follows), and they come in the order in which to try them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from types import TracebackType

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


def out_of_memory(stage: str, recipe: Recipe, engine: Engine, world_size: int, where: str, memory: Memory) -> str:
    """The sentence.

    Args:
        stage: its name; `evaluation` is not among the recipe's stages.
        recipe: of the run.
        engine: that the stage trains under.
        world_size: number of processes.
        where: what was being done, from `phase`.
        memory: of the GPU that was full.
    """
    edits = list(islice(_edits(stage, recipe, engine, world_size), _EDITS))
    tries = "; ".join(f"({number}) --set {edit}" for number, edit in enumerate(edits, start=1))
    gib = 1 << 30
    return (
        f"out of GPU memory in stage {stage}, during {where}: its peak was {memory.peak / gib:.1f} of "
        f"{memory.total / gib:.1f} GiB. Try, in this order: {tries}"
    )


def gpu_memory() -> Memory:
    """Of the GPU of this process, since it started."""
    import torch

    if not torch.cuda.is_available():
        return Memory(0, 0)
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return Memory(torch.cuda.max_memory_allocated(), total)


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
        return
    at = f"stages.{name}"
    if isinstance(stage, PpoSettings) and stage.generation_batch_size > 1:
        yield f"{at}.generation_batch_size={stage.generation_batch_size // 2}"
    if stage.per_device_batch_size > 1:
        yield f"{at}.per_device_batch_size={_smaller(stage.per_device_batch_size)}"
    if not stage.gradient_checkpointing:
        yield f"{at}.gradient_checkpointing=true"
    # What the launch configured cannot be overruled from here.
    if engine.kind == "none" or stage.deepspeed != "inherit":
        yield from _stronger_engine(at, recipe, stage, engine, world_size)
    yield from _smaller_base(recipe)
    data = "sft" if stage.kind == "sft" else "preference"
    settings = getattr(recipe.data, data)
    if settings is not None and settings.max_length > 1:
        yield f"data.{data}.max_length={settings.max_length // 2}"


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
    if recipe.model.adapter != "none" and recipe.model.quantization == "none":
        yield "model.quantization=nf4"
