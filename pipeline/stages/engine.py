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
from pipeline.recipe.engines import stage_engine
from pipeline.recipe.stage_settings import STREAMS_ALONE, OfflineSettings

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
    attention = context.recipe.model.attention
    why = lacks or _setting_against(settings, attention) or _engine_against(settings, models) or _model_against(models)
    if why is None:
        return STREAMS
    if settings.engine == STREAMS:
        raise RecipeError(f"stages.{context.stage}.engine: streams are not possible here: {why}; leave it at auto")
    for key in STREAMS_ALONE:
        if getattr(settings, key, None):
            raise RecipeError(
                f"stages.{context.stage}.{key}: TRL's trainer has to compute the steps, and knows no such thing: "
                f"{why}; leave it out"
            )
    context.console.say(f"TRL's trainer computes the steps: {why}")
    return TRL


def _setting_against(settings: OfflineSettings, attention: str) -> str | None:
    if attention != "auto":
        return f"model.attention is {attention}, which pads rows"
    ours = {field.name for field in dataclasses.fields(TrainingArguments)}
    foreign = sorted(set(settings.trainer_args) - ours)
    if foreign:
        return f"trainer_args.{foreign[0]} is for TRL's trainer"
    return None


def _engine_against(settings: OfflineSettings, models: list[Any]) -> str | None:
    """Ranks' streams differ in length, so under ZeRO-3 no layer may be called per piece; FSDP gathers for a pass."""
    engine = stage_engine(settings.deepspeed, os.environ)
    if engine.zero_stage != 3:
        return None
    if settings.gradient_checkpointing:
        return f"{engine} recomputes activations in a way of TRL's"
    return f"{engine} spreads the output layer, which is trained" if any(map(_trains_its_output, models)) else None


def _trains_its_output(model: Any) -> bool:
    inner = causal_model(model)
    output = inner.get_output_embeddings() if getattr(inner, "score", None) is None else None
    return output is not None and output.weight.requires_grad


def _model_against(models: list[Any]) -> str | None:
    for model in models:
        if _balances_experts(causal_model(model)):
            return "the model's router has a loss of its own"
        if why := attend_in_streams(model) or take_streams(model):
            return why
    return None


def _balances_experts(inner: Any) -> bool:
    """Whether TRL adds a load-balancing loss of the router, as it does by default to language models with experts."""
    config = inner.config.get_text_config()
    if getattr(config, "output_router_logits", False):
        return True
    is_causal = getattr(inner, "score", None) is None
    return is_causal and hasattr(config, "output_router_logits") and getattr(config, "router_aux_loss_coef", 0.0) != 0.0
