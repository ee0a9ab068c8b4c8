"""Exact batch arithmetic: gradient accumulation is never written in a recipe, it follows."""

from __future__ import annotations

from pipeline.errors import RecipeError


def row_groups(world_size: int, sequence_parallel_size: int, where: str) -> int:
    """Groups of processes that compute different rows.

    Args:
        world_size: number of processes.
        sequence_parallel_size: processes that compute each row together.
        where: the recipe path named in the error, such as `stages.sft`.

    Raises:
        RecipeError: a process would be left over.
    """
    groups, rest = divmod(world_size, sequence_parallel_size)
    if rest or not groups:
        raise RecipeError(
            f"{where}: sequence_parallel_size {sequence_parallel_size} needs a multiple of so many processes, and this "
            f"launch has {world_size}; start it with torchrun --nproc_per_node {sequence_parallel_size}, or leave the "
            "key out"
        )
    return groups


def draws_of_step(
    step_rows: int,
    per_device_batch_size: int,
    tokens_per_device: int | None,
    world_size: int,
    where: str,
    name: str = "global_batch_size",
) -> tuple[int, int]:
    """Rows that a process draws at once, and how often it draws in an optimiser step.

    Args:
        step_rows: rows per optimiser step over all processes.
        per_device_batch_size: rows per forward pass on one process, where `tokens_per_device` is None.
        tokens_per_device: most tokens of a forward pass: a process then draws all its rows of a step at once, and
            their lengths say how many passes they take.
        world_size: number of processes.
        where: the recipe path named in the error, such as `stages.sft`.
        name: the key that says the rows per step.

    Raises:
        RecipeError: the rows cannot be shared out evenly.
    """
    if tokens_per_device is None:
        return per_device_batch_size, accumulation_steps(step_rows, per_device_batch_size, world_size, where, name)
    return accumulation_steps(step_rows, 1, world_size, where, name), 1


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
