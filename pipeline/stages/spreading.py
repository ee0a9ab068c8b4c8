"""What a library trainer needs to train under an engine, and what it must show before it is believed to.

Accelerate passes over an engine that it cannot use here without a word, so each stage looks at what it got.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pipeline import checkpoint
from pipeline.context import StageContext, engine_of
from pipeline.errors import RecipeError, TrivetError
from pipeline.models import fully_sharded
from pipeline.models.shards import spread_over_ranks
from pipeline.recipe.engines import NO_ENGINE
from pipeline.recipe.fsdp_launch import resharding
from pipeline.runtime import resolve_precision
from pipeline.stages.fully_sharded import reference_beside, take_fsdp
from pipeline.stages.offloading import require_offloading

_SHORT = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Before:
    """What a stage measures of its model before training: at once, or under an engine when that has the model.

    There its weights have the engine's type, and spread ones are not whole on any rank or device until then.

    Args:
        context: of the stage.
        measure: every rank calls it once.
    """

    def __init__(self, context: StageContext, measure: Callable[[], dict[str, Any]]):
        self._measure = measure
        self._found: dict[str, Any] | None = None
        if engine_of(context).kind == "none":
            self.take()

    def take(self) -> None:
        """Measure, unless that is done; no generator of random numbers moves."""
        if self._found is None:
            with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
                self._found = self._measure()

    @property
    def found(self) -> dict[str, Any]:
        """What was measured; training must have begun."""
        assert self._found is not None
        return self._found


class BeginCallback(TrainerCallback):
    """Takes what is measured before training, at its last moment before the first step."""

    def __init__(self, before: Before):
        self._before = before

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure, with the model where training finds it."""
        fully_sharded.begin(kwargs["model"])
        self._before.take()


def without_compiling() -> None:
    """Keep DeepSpeed from compiling a kernel for sums over shared memory, which gloo does as well.

    On a machine without a GPU it would at its first use, for minutes, and only where a compiler is.
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def require_engine(trainer: Trainer, context: StageContext) -> None:
    """Refuse to train without the engine that was asked for.

    Raises:
        RecipeError: naming it, and what would run instead.
    """
    asked = engine_of(context)
    state = trainer.accelerator.state
    plugin = getattr(state, "deepspeed_plugin", None)
    got = "deepspeed" if plugin is not None else "fsdp" if getattr(state, "fsdp_plugin", None) is not None else "none"
    if got != asked.kind:
        where = "without a GPU" if not torch.cuda.is_available() else f"in a launch of type {state.distributed_type}"
        raise RecipeError(
            f"stage {context.stage}: {asked} was asked for, but accelerate would train with {_NAMES[got]} {where}; "
            "launch with ds_configs/accelerate/zero3.yaml to spread parameters there, or write "
            f"--set stages.{context.stage}.deepspeed=none"
        )
    if plugin is not None and plugin.zero_stage != asked.zero_stage:
        raise RecipeError(
            f"stage {context.stage}: {asked} was asked for, accelerate configured ZeRO-{plugin.zero_stage}; make the "
            "launch's configuration and the recipe's file the same"
        )


_NAMES = {"none": "plain data parallelism", "deepspeed": "DeepSpeed", "fsdp": "FSDP"}


def take_engine(trainer: Trainer, context: StageContext) -> None:
    """Make sure of the engine, and give every rank its share of the model for ZeRO-3, before any GPU holds it whole.

    Raises:
        RecipeError: the engine that was asked for is not the one that would train.
        TrivetError: the machine lacks what offloading needs.
    """
    require_engine(trainer, context)
    engine = engine_of(context)
    if engine.kind == "fsdp":
        take_fsdp(trainer, context)
        return
    if engine.offloads_to:
        require_offloading(_configuration(trainer.args), context)
    if engine.spreads_parameters:
        spread_over_ranks(cast(torch.nn.Module, trainer.model), _zero(trainer.args), _computed_in(context))


def beside_the_engine(reference: Any, arguments: TrainingArguments, context: StageContext) -> Any:
    """A second, frozen model as the engine makes the trained one: in its type, and spread where that is.

    Args:
        reference: the model, or None.
        arguments: of the trainer.
        context: of the stage.
    """
    engine = engine_of(context)
    if reference is None or engine.kind == "none":
        return reference
    if engine.kind == "fsdp":
        return reference_beside(reference, context, reshard=resharding(os.environ))
    if engine.offloads_to:
        require_offloading(_configuration(arguments), context)
    if engine.spreads_parameters:
        spread_over_ranks(reference, _zero(arguments), _computed_in(context))
        return reference
    return reference.to(_computed_in(context))


def _configuration(arguments: TrainingArguments) -> dict[str, Any]:
    plugin: Any = arguments.deepspeed_plugin
    return dict(plugin.hf_ds_config.config)


def _zero(arguments: TrainingArguments) -> dict[str, Any]:
    return dict(_configuration(arguments)["zero_optimization"])


def _computed_in(context: StageContext) -> torch.dtype:
    return _SHORT.get(resolve_precision(context.recipe.stages[context.stage].precision), torch.float32)


def made_by(context: StageContext) -> dict[str, Any]:
    """What a checkpoint's parts depend on: how many ranks wrote them, and through which engine."""
    return {"ranks": context.ranks.world_size, "engine": str(engine_of(context))}


def require_resumable(found: Path, context: StageContext, *, on_any_ranks: bool = False) -> None:
    """Refuse a checkpoint that other ranks or another engine wrote, where the steps after it would not be the same.

    Args:
        found: the checkpoint.
        context: of the stage.
        on_any_ranks: whether without an engine nothing of a step but rounding depends on the number of ranks; the order
            of rows never does, dropout's noise does.

    Raises:
        TrivetError: naming both sides and what to do.
    """
    theirs, mine = checkpoint.made_by(found), made_by(context)
    if on_any_ranks and theirs.get("engine") == mine["engine"] == str(NO_ENGINE):
        if theirs != mine:
            context.console.say(f"the checkpoint is of {_ranks(theirs)}; the same rows follow in the same order")
        return
    if theirs and theirs != mine:
        raise TrivetError(
            f"stage {context.stage}: its checkpoint at step {checkpoint.step_of(found)} was written by "
            f"{_ranks(theirs)}, this launch has {_ranks(mine)}; launch as before to go on from it, or begin the stage "
            f"again with `--force {context.stage}`"
        )
    if engine_of(context).offloads_to == "nvme":
        raise TrivetError(
            f"stage {context.stage}: its checkpoint at step {checkpoint.step_of(found)} is of {mine['engine']}, from "
            "where DeepSpeed does not bring back all weights, so that other steps would "
            f"follow; begin the stage again with `--force {context.stage}`"
        )


def _ranks(made: dict[str, Any]) -> str:
    return f"{made['ranks']} rank{'s' if made['ranks'] != 1 else ''} with {made['engine']}"
