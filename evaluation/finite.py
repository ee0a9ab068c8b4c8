"""What a model of the run says of a row must be a number: one NaN would make every mean, interval and verdict one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipeline.errors import TrivetError
from pipeline.recipe.lineage import BASE


def require_finite(values: Sequence[float], *, by: str, figure: str, of: str, task: str) -> None:
    """Refuse figures that are no finite numbers.

    Args:
        values: one per row.
        by: the stage whose model gave them, or `base`.
        figure: what they are: a score, a log-probability.
        of: what the rows are, in the singular.
        task: of `evaluation.tasks`, that asked for them.

    Raises:
        TrivetError: naming the model, the first such row and how many there are.
    """
    broken = [index for index, value in enumerate(values) if not math.isfinite(value)]
    if not broken:
        return
    many = f", as to {len(broken) - 1} more of them" if len(broken) > 1 else ""
    remedy = (
        "look at model.base and at the stages' precision"
        if by == BASE
        else f"look at the curves of stage {by} and make it anew with `--force {by}`"
    )
    raise TrivetError(
        f"evaluation: {by} gives a {figure} of {values[broken[0]]} to {of} {broken[0] + 1} of {len(values)}{many}: its "
        f"weights, or what it computes in its precision, are no finite numbers; {remedy}, or take {task} out of "
        "evaluation.tasks"
    )
