"""Metrics as TensorBoard's event files, rebuilt whole from `metrics.jsonl`: each step once, however often. Layer 2.

The names are those that the metrics have in W&B. Headline figures stand as `<stage>/final/<name>` at the last step.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.durable import full_disk_named
from pipeline.errors import RecipeError
from pipeline.wandb_runs import series

SUFFIX = ".trivet"
"""Ends the names of files that are ours to replace."""
_PATTERN = f"events.out.tfevents.*{SUFFIX}"


def require_tensorboard() -> None:
    """Refuse where the library is missing.

    Raises:
        RecipeError: with what to install.
    """
    try:
        import tensorboard  # noqa: F401
    except ImportError as error:
        raise RecipeError(
            'push: --to tensorboard needs the library tensorboard; `pip install -e ".[tensorboard]" -c constraints.txt`'
        ) from error


def write_events(
    folder: Path, stage: str, lines: Sequence[Mapping[str, Any]], figures: Mapping[str, float], recipe: str
) -> int:
    """Write a stage's metrics into a folder of its own, in the place of what was written there before.

    Args:
        folder: of the stage; other files in it stay.
        stage: its name.
        lines: of its `metrics.jsonl`; of a value that was logged twice at one step the later counts.
        figures: headline figures by name.
        recipe: shown as text; empty for none.

    Returns:
        How many steps there are.

    Raises:
        DiskError: the disk is full; what was there before stays.
    """
    from torch.utils.tensorboard import SummaryWriter

    values = {(line["step"], series(line["stage"], line["split"], line["name"])): line for line in lines}
    steps = {step for step, _ in values}
    last = max(steps, default=0)
    when = max((line["time"] for line in lines if line.get("time")), default=None)
    aside = folder.with_name(f".{folder.name}.tmp")
    with full_disk_named(folder.parent):
        shutil.rmtree(aside, ignore_errors=True)
        writer = SummaryWriter(str(aside), filename_suffix=SUFFIX)
        for (step, name), line in sorted(values.items(), key=lambda item: item[0]):
            value = line["value"]
            writer.add_scalar(name, math.nan if value is None else value, step, walltime=line.get("time"))
        for name, figure in figures.items():
            writer.add_scalar(f"{stage}/final/{name}", figure, last, walltime=when)
        if recipe:
            writer.add_text("recipe", f"```yaml\n{recipe}\n```", 0, walltime=when)
        writer.close()
        _replace(folder, aside)
    return len(steps)


def _replace(folder: Path, aside: Path) -> None:
    """Take our earlier files away and put the new ones there."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(_PATTERN):
        old.unlink()
    for new in aside.glob(_PATTERN):
        new.rename(folder / new.name)
    shutil.rmtree(aside, ignore_errors=True)
