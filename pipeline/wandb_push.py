"""A stage as it lies on disk, rebuilt in Weights & Biases under the id of its live mirror. Layer 2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import SourceUnreachableError
from pipeline.recipe.schema import WandbSettings
from pipeline.redaction import redacted_in
from pipeline.wandb_artefacts import Lineage, log_lineage
from pipeline.wandb_runs import by_step, has_key, mode, open_run, run_options, tables


@dataclass(frozen=True, slots=True, kw_only=True)
class StageToPush:
    """A stage of a run as it lies on disk, to be rebuilt in W&B."""

    name: str
    key: str
    lines: Sequence[Mapping[str, Any]]
    """Of its `metrics.jsonl`."""
    summary: Mapping[str, Any]
    """Headline figures, by name."""
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    """Rows of one shape, such as samples, by name."""
    lineage: Lineage | None = None
    """Its artefact and what that was made from; None for a stage that is not finished."""


def require_wandb() -> None:
    """Refuse where nothing could be sent.

    Raises:
        SourceUnreachableError: W&B is switched off, or nobody has logged in.
    """
    if mode() == "disabled":
        raise SourceUnreachableError("WANDB_MODE is disabled; unset it, or set it to offline, and push again")
    if mode() == "online" and not has_key():
        raise SourceUnreachableError(
            "W&B: no API key on this machine; `wandb login`, or set WANDB_MODE=offline to write runs for `wandb sync`"
        )


def push(settings: WandbSettings, run_dir: Path, run_name: str, stage: StageToPush, config: Mapping[str, Any]) -> int:
    """Rebuild one stage in W&B, under the same id as its live mirror: what is there already is not sent again.

    Returns:
        How many steps were sent.

    Raises:
        SourceUnreachableError: W&B is switched off, not logged in, or fails.
    """
    require_wandb()
    options = {**run_options(settings, run_dir, run_name, stage.name, stage.key), "config": redacted_in(dict(config))}
    try:
        return _push(options, stage, offline=mode() == "offline")
    except Exception as error:
        raise SourceUnreachableError(
            f"W&B failed at stage {stage.name} ({type(error).__name__}: {error}); push again: no step is sent twice"
        ) from error


def _push(options: Mapping[str, Any], stage: StageToPush, *, offline: bool) -> int:
    run = open_run(options, offline=offline, live=False)
    # A run that was mirrored, or pushed before, goes on behind its last step; W&B would drop earlier ones anyway.
    last = max((line["step"] for line in stage.lines), default=0)
    steps = [(step, values) for step, values in by_step(stage.lines) if step >= run.starting_step]
    for step, values in steps:
        run.log(values, step=step)
    if last >= run.starting_step and (found := tables(stage.name, stage.tables)):
        run.log(found, step=last)
    run.summary.update({f"{stage.name}/{name}": value for name, value in stage.summary.items()})
    if stage.lineage is not None:
        # W&B knows an artefact by its content: what is there already becomes no second version.
        log_lineage(run, stage.lineage, Path(options["dir"]), offline=offline)
    run.finish()
    return len(steps)
