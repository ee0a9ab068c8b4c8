"""Under FSDP: what transformers' trainer and accelerate leave open, and what of the plugin the stage decides."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import Trainer

from pipeline.context import StageContext
from pipeline.errors import RecipeError
from pipeline.models.adapters import TRAINED
from pipeline.models.fully_sharded import precision_policy, rest_together, shard
from pipeline.models.shards import whole_state
from pipeline.runtime import resolve_precision

_TYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def spread_each_batch() -> dict[str, Any]:
    """Of accelerate's settings: spread gradients after each micro-batch.

    Otherwise every rank would hold all of them whole until a step's last one. A new dictionary for each trainer, as
    transformers writes into it.
    """
    return {"gradient_accumulation_kwargs": {"sync_each_batch": True}}


class FullyShardedTrainer(Trainer):
    """Mixin for a library trainer; does nothing where it trains without FSDP."""

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        if not self.is_fsdp_enabled:
            return super()._prepare_for_training(*args, **kwargs)
        with rest_together(self.model):
            return super()._prepare_for_training(*args, **kwargs)

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> Any:
        """Autocast around a step, which accelerate otherwise puts around the model, but not around FSDP's."""
        if not self.is_fsdp_enabled:
            return super().autocast_smart_context_manager(cache_enabled)
        return self.accelerator.autocast()

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Whole weights, of an adapter without its base, for people; resuming reads the files beside them."""
        if not self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)
            return
        model: Any = self.model
        is_adapter = hasattr(model, "peft_config")
        state = whole_state(model, trained_only=is_adapter)
        if self.args.should_save:
            # DPO's reference lies beside the adapter that is trained, and comes from the stage's start.
            only = {"selected_adapters": [TRAINED], "save_embedding_layers": False} if is_adapter else {}
            model.save_pretrained(output_dir or self.args.output_dir, state_dict=state, **only)


def take_fsdp(trainer: Trainer, context: StageContext) -> None:
    """Decide what the launch leaves to the recipe: the types that weights are gathered in and gradients summed up in.

    Raises:
        RecipeError: fp16, whose scaled gradients have not been tried on shares.
    """
    plugin: Any = trainer.accelerator.state.fsdp_plugin
    plugin.mixed_precision_policy = _policy(context)


def reference_beside(reference: Any, context: StageContext, *, reshard: bool) -> Any:
    """A second, frozen model, spread as the trained one is.

    Args:
        reference: in the host's memory.
        context: of the stage.
        reshard: whether layers are given back after their forward pass.

    Raises:
        RecipeError: as for `take_fsdp`.
    """
    shard(reference, _policy(context), reshard=reshard)
    return reference


def _policy(context: StageContext) -> Any:
    precision = resolve_precision(context.recipe.stages[context.stage].precision)
    if precision not in _TYPES:
        raise RecipeError(
            f"stage {context.stage}: {precision} scales gradients, which FSDP's shares of them have not been tried "
            f"with here; add --set stages.{context.stage}.precision=bf16 (or fp32), or launch with "
            "ds_configs/accelerate/zero3.yaml"
        )
    return precision_policy(_TYPES[precision], whole=context.recipe.model.adapter == "none")
