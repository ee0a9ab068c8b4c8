"""Why a launch that splits sequences, layers or rows among ranks is refused. Layer 0.

Accelerate reads its `parallelism_config` from environment variables by itself, whatever engine a stage has.
"""

from __future__ import annotations

from collections.abc import Mapping

_PREFIX = "PARALLELISM_CONFIG_"


def against_parallelism(environment: Mapping[str, str]) -> str | None:
    """Why a launch cannot have what it asks of accelerate's parallelism: a stage says whether it splits sequences."""
    if environment.get("ACCELERATE_USE_PARALLELISM_CONFIG", "").lower() != "true":
        return None
    sizes = {
        key.removeprefix(_PREFIX).lower(): value
        for key, value in sorted(environment.items())
        if key.startswith(_PREFIX) and key.endswith("_SIZE") and value != "1"
    }
    asked = ", ".join(f"{name}: {size}" for name, size in sizes.items()) or "sizes of 1"
    return (
        f"the launch configures accelerate's parallelism ({asked}) for all stages alike, whatever they can do with it; "
        "leave parallelism_config out of the launch's file, and where sequences do not fit write "
        "sequence_parallel_size in the sft stage, under DeepSpeed, or for any stage gradient_checkpointing: true, a "
        "smaller per_device_batch_size, or zero3"
    )
