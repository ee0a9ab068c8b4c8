"""Exact batch arithmetic: gradient accumulation is never written in a recipe, it follows."""

from __future__ import annotations

from pipeline.errors import RecipeError


def accumulation_steps(
    global_batch_size: int,
    per_device_batch_size: int,
    world_size: int,
    where: str,
    name: str = "global_batch_size",
) -> int:
    """Forward passes per optimiser step on each process: global / (per device x processes), exactly.

    Args:
        global_batch_size: rows per optimiser step over all processes.
        per_device_batch_size: rows per forward pass on one process.
        world_size: number of processes.
        where: the recipe path named in the error, such as `stages.sft`.
        name: the key that says the rows per step.

    Raises:
        RecipeError: the division leaves a remainder; the message names the three numbers and values that would do.
    """
    rows_per_pass = per_device_batch_size * world_size
    steps, rest = divmod(global_batch_size, rows_per_pass)
    if rest == 0 and steps > 0:
        return steps
    fits = [n for n in range(1, global_batch_size + 1) if global_batch_size % (n * world_size) == 0]
    advice = (
        f"set per_device_batch_size to one of {', '.join(map(str, fits))}"
        if fits
        else f"set {name} to a multiple of {world_size}"
    )
    raise RecipeError(
        f"{where}: {name} {global_batch_size} is not a multiple of per_device_batch_size "
        f"{per_device_batch_size} x {world_size} process{'es' if world_size > 1 else ''} = {rows_per_pass}; {advice}"
    )
