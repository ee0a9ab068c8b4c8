"""What a launch that configures FSDP must say for a stage to train as its recipe asks. Layer 0.

Accelerate hands its configuration to the processes in environment variables, and fills in what a file leaves out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pipeline.recipe.schema import Recipe
from pipeline.recipe.stage_settings import PpoSettings, RewardSettings, StageSettings

OURS = "ds_configs/accelerate/fsdp2.yaml"
_WANTED = {
    "FSDP_VERSION": ("1", "2", "fsdp_version", "FSDP1 keeps trained and frozen parameters in one flat tensor"),
    "FSDP_AUTO_WRAP_POLICY": (
        "NO_WRAP",
        "TRANSFORMER_BASED_WRAP",
        "fsdp_auto_wrap_policy",
        "layers are what is gathered together",
    ),
    "FSDP_STATE_DICT_TYPE": (
        "SHARDED_STATE_DICT",
        "FULL_STATE_DICT",
        "fsdp_state_dict_type",
        "checkpoints in pieces come with a pickle, which could run code",
    ),
    "FSDP_CPU_RAM_EFFICIENT_LOADING": (
        "false",
        "false",
        "fsdp_cpu_ram_efficient_loading",
        "adapters and heads are put on a model that every process has loaded",
    ),
    "FSDP_OFFLOAD_PARAMS": ("false", "false", "fsdp_offload_params", "zero3_offload_cpu is what offloads here"),
    "FSDP_ACTIVATION_CHECKPOINTING": (
        "false",
        "false",
        "fsdp_activation_checkpointing",
        "the recipe's gradient_checkpointing says so",
    ),
}
"""By variable: what its absence means, what is wanted, its key in a file for accelerate, and why."""


def resharding(environment: Mapping[str, str]) -> bool:
    """Whether layers are given back after their forward pass: yes, where the launch says nothing."""
    return environment.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() not in ("false", "0", "no")


def against_fsdp(recipe: Recipe, name: str, stage: StageSettings, environment: Mapping[str, str]) -> Iterator[str]:
    """Why a stage cannot train under the launch's FSDP, one reason after the other.

    Args:
        recipe: the recipe.
        name: of the stage.
        stage: its settings.
        environment: of the launch.
    """
    off = f"--set stages.{name}.deepspeed=none"
    if isinstance(stage, PpoSettings):
        why = "does not run"
        if stage.has_value_model:
            why = "would have to train two models that share a base, each with an optimiser of its own"
        yield (
            f"the launch configures FSDP, under which a ppo stage {why}; "
            f"launch with ds_configs/accelerate/zero3.yaml, or add {off}"
        )
        return
    for variable, (absent, wanted, key, why) in _WANTED.items():
        found = environment.get(variable, absent)
        if found.lower() != wanted.lower():
            yield f"the launch configures FSDP with {key}: {found}, but {why}; write {key}: {wanted}, as {OURS} does"
    if recipe.model.quantization != "none":
        yield (
            f"FSDP cannot spread a base in {recipe.model.quantization} here: bitsandbytes packs its weights into "
            "blocks with scales of their own; launch with ds_configs/accelerate/zero2.yaml, which keeps the base whole "
            "on every GPU, or set model.quantization: none"
        )
    if stage.precision == "fp16":
        yield (
            "fp16 scales gradients, which FSDP's shares of them have not been tried with; write "
            f"`stages.{name}.precision: bf16`, or launch with ds_configs/accelerate/zero3.yaml"
        )
    if isinstance(stage, RewardSettings) and stage.ensemble > 1:
        yield (
            f"FSDP serves one model per process, and ensemble: {stage.ensemble} trains several; write "
            f"`stages.{name}.ensemble: 1` or add {off}"
        )
