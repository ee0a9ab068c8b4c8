"""What offloading needs of a machine: code that DeepSpeed compiles when it is first used, and a folder on a disk.

Both are looked for before anything is spread: later they fail within the library, on some ranks only, or not at all, as
a folder that is missing is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.context import StageContext, engine_of
from pipeline.errors import TrivetError

_PARTS = ("offload_optimizer", "offload_param")
_LONGEST_REASON = 200


def require_offloading(config: Mapping[str, Any], context: StageContext) -> None:
    """Compile now what an engine that offloads will ask for, and look at the folder that it offloads to.

    Args:
        config: of DeepSpeed.
        context: of the stage.

    Raises:
        TrivetError: naming what is missing, how to have it, and how to go without it.
    """
    parts = {name: config["zero_optimization"].get(name) or {} for name in _PARTS}
    places = {name: str(part.get("device", "none")) for name, part in parts.items()}
    if "nvme" in places.values():
        for name, place in places.items():
            if place == "nvme":
                _require_folder(f"zero_optimization.{name}.nvme_path", parts[name].get("nvme_path"), context)
        _compile("AsyncIOBuilder", "install g++, ninja and libaio-dev, or use zero3_offload_cpu", context)
    forced = "optimizer" in config or config.get("zero_force_ds_cpu_optimizer", True)
    if places["offload_optimizer"] != "none" and forced:
        without = (
            "install g++ and ninja, or use zero3_offload_cpu, whose `zero_force_ds_cpu_optimizer: false` has torch's "
            "AdamW step there, as fast"
        )
        _compile("CPUAdamBuilder", without, context)


def _require_folder(key: str, found: str | None, context: StageContext) -> None:
    if found is None or not Path(found).is_dir():
        raise TrivetError(
            f"stage {context.stage}: {engine_of(context).file or 'the launch'} offloads to {found}, which is no folder "
            f"of this machine; name one on a fast local disk in a copy of the file, as {key}"
        )


def _compile(builder: str, way_out: str, context: StageContext) -> None:
    from deepspeed.ops import op_builder

    made = getattr(op_builder, builder)()
    try:
        made.load(verbose=False)
    except Exception as error:
        raise TrivetError(
            f"stage {context.stage}: {engine_of(context)} needs DeepSpeed's {made.name}, which could not be compiled "
            f"on this machine ({_reason(error)}); {way_out}"
        ) from error


def _reason(error: Exception) -> str:
    """What a compiler says among the commands that led to it, or what the error begins with."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    telling = next((line for line in lines if "error:" in line or "not found" in line), lines[0])
    return telling[:_LONGEST_REASON].rstrip(".")
