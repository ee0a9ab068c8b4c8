"""Which engine computes a stage's steps: streams where they are exact, TRL's trainer elsewhere."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from transformers import TrainingArguments

from pipeline.context import StageContext
from pipeline.errors import RecipeError
from pipeline.models.forward import causal_model
from pipeline.models.stream_forward import attend_in_streams, take_streams
from pipeline.recipe.stage_settings import OfflineSettings

STREAMS, TRL = "streams", "trl"


def choose_engine(context: StageContext, settings: OfflineSettings, models: list[Any], lacks: str | None = None) -> str:
    """`streams` or `trl`, said to the person; models are taught streams where that is the choice.

    Args:
        context: of the stage.
        settings: of the stage.
        models: all that the stage calls on training rows.
        lacks: why the stage's loss is TRL's alone, or None.

    Raises:
        RecipeError: the recipe asks for streams where they cannot be had.
    """
    if settings.engine == TRL:
        return TRL
    why = lacks or _setting_against(settings) or _model_against(models)
    if why is None:
        return STREAMS
    if settings.engine == STREAMS:
        raise RecipeError(f"stages.{context.stage}.engine: streams are not possible here: {why}; leave it at auto")
    context.console.say(f"TRL's trainer computes the steps: {why}")
    return TRL


def _setting_against(settings: OfflineSettings) -> str | None:
    ours = {field.name for field in dataclasses.fields(TrainingArguments)}
    foreign = sorted(set(settings.trainer_args) - ours)
    if foreign:
        return f"trainer_args.{foreign[0]} is for TRL's trainer"
    if settings.deepspeed not in ("inherit", "none") or os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        return "DeepSpeed is on"
    return "FSDP is on" if os.environ.get("ACCELERATE_USE_FSDP") == "true" else None


def _model_against(models: list[Any]) -> str | None:
    for model in models:
        if getattr(causal_model(model).config, "output_router_logits", False):
            return "the model's router has a loss of its own"
        if why := attend_in_streams(model) or take_streams(model):
            return why
    return None
