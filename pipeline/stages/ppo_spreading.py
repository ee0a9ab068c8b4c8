"""PPO under DeepSpeed: its configuration filled in, and who is trained through an engine of their own.

Under ZeRO-1 and ZeRO-2 policy and value model are, in either form. Under ZeRO-3 full models are, and all others are
spread beside them; with adapters the base is spread once for all roles, and what is trained stays whole (the reasons
stand in `models.role_engine`).
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from pipeline.context import StageContext, engine_of
from pipeline.errors import RecipeError
from pipeline.models.forward import causal_model, trunk_of, vocabulary_head
from pipeline.models.role_engine import Config, RoleEngine, SpreadModel, join_deepspeed
from pipeline.models.roles import Roles
from pipeline.models.shards import spread_over_ranks
from pipeline.recipe.stage_settings import PpoSettings
from pipeline.stages.ppo_update import Learner
from pipeline.stages.spreading import without_compiling

_OURS = ("optimizer", "scheduler")


class Spreader:
    """Spreads a stage's models and trainings as its engine says.

    Args:
        context: of the stage.
        settings: of the stage.
    """

    def __init__(self, context: StageContext, settings: PpoSettings):
        self._context = context
        self._settings = settings
        self._engine = engine_of(context)
        self.is_on = self._engine.kind == "deepspeed"
        """Whether anything is spread."""
        self.spreads_parameters = self._engine.spreads_parameters
        self.base: SpreadModel | None = None
        """The base under all adapters, once it has been spread."""
        if self.is_on:
            if not torch.cuda.is_available():
                without_compiling()
            join_deepspeed()

    def spread_base(self, base: Any) -> None:
        """Spread the base, before any adapter is put on it; nothing happens where it stays whole.

        Raises:
            TrivetError: its output layer cannot be taken apart from the rest.
        """
        if not self.spreads_parameters:
            return
        # Whoever asks later would have to call all of the model, whose output layer no engine looks after.
        vocabulary_head(base)
        self.base = SpreadModel(base, trunk_of(base), self._config(base))

    def require_plain_output(self, model: Any) -> None:
        """Refuse an adapter on the output layer of a spread base.

        Raises:
            RecipeError: naming the setting.
        """
        if self.base is not None and hasattr(causal_model(model).get_output_embeddings(), "base_layer"):
            raise RecipeError(
                f"model.adapter.target_modules: under {self._engine} a ppo stage has no adapter on the output layer, "
                "which ranks would gather for each other's answers; leave it out of target_modules, or use zero2"
            )

    def spread_frozen(self, model: Any, trunk: Any) -> None:
        """Spread a full model that nothing trains; nothing happens where it stays whole.

        Args:
            model: causal, or no more than the trunk.
            trunk: the part of it that is called.
        """
        if self.spreads_parameters:
            SpreadModel(model, trunk, self._config(trunk))

    def train(self, roles: Roles, learner: Learner) -> None:
        """Give each role that is trained its engine, where it has one."""
        if not self.is_on or self.base is not None:
            return
        for role in roles.learning:
            held: Any = list(roles.trainable(role))
            config = self._config(roles.module(role)[0])
            if self.spreads_parameters:
                held = list(roles.module(role))
                for module in held:
                    spread_over_ranks(module, config["zero_optimization"], torch.float32)
            optimiser = learner.optimisers[role]
            offloading = config["zero_optimization"].get("offload_optimizer") or {}
            if offloading.get("device", "none") != "none":
                # One pass over the host's memory instead of one per operation: nine times as fast, equal to rounding.
                for group in optimiser.param_groups:
                    group["fused"] = True
            roles.train_through(role, RoleEngine(held, optimiser, config))

    def _config(self, model: Any) -> Config:
        """DeepSpeed's configuration for a model, with the recipe's values and none of them left open.

        Raises:
            RecipeError: the file decides what the recipe does, or asks for what PPO cannot have.
        """
        from accelerate import DeepSpeedPlugin

        settings, file = self._settings, self._engine.file
        plugin = DeepSpeedPlugin(hf_ds_config=str(file) if file else None, zero3_init_flag=False)
        config: dict[str, Any] = copy.deepcopy(plugin.deepspeed_config)
        owned: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": settings.per_device_batch_size,
            "train_batch_size": settings.per_device_batch_size * self._context.ranks.world_size,
            # A step's losses are divided by all its tokens already, and its last backward pass is named.
            "gradient_accumulation_steps": 1,
            "gradient_clipping": settings.max_grad_norm,
            "bf16": {"enabled": False},
            "fp16": {"enabled": False},
        }
        self._require_possible(config, owned)
        zero: dict[str, Any] = config["zero_optimization"]
        hidden = int(causal_model(model).config.get_text_config().hidden_size)
        sizes = {"reduce_bucket_size": hidden * hidden, "stage3_param_persistence_threshold": 10 * hidden}
        zero.update((name, value) for name, value in sizes.items() if zero.get(name) == "auto")
        # Passes with and without a backward one follow in no fixed order: what would be fetched ahead may not be used,
        # and would still be on its way when the weights are wanted whole.
        zero["stage3_prefetch_bucket_size"] = 0
        # Torch's own AdamW steps wherever its parameters lie, and needs no compiler, as DeepSpeed's for the host does.
        return {**config, **owned, "zero_force_ds_cpu_optimizer": False}

    def _require_possible(self, config: Config, owned: Config) -> None:
        at = f"stages.{self._context.stage}.deepspeed"
        where = self._engine.file or "the launch's configuration"
        for name, ours in owned.items():
            found = config.get(name, "auto")
            found = found.get("enabled", "auto") if isinstance(found, dict) else found
            if found not in ("auto", False, ours):
                raise RecipeError(f"{at}: {where} sets {name} to {found}, which the recipe decides; write auto there")
        for name in _OURS:
            if name in config:
                raise RecipeError(
                    f"{at}: {where} has a block `{name}`, but a ppo stage has two trainings with the recipe's own; "
                    "remove the block"
                )
