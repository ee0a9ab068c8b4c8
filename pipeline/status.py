"""`trivet status`: how far a run is, told from what it writes down as it goes, and from Slurm where it has jobs there.

Looks only: takes no lock and asks no process, so it can be typed at any time, on any machine that sees the folder.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.artefact import is_sealed
from pipeline.console import duration
from pipeline.durable import read_json
from pipeline.errors import RecipeError
from pipeline.holders import holder_is_gone
from pipeline.ledger import LEDGER, run_orders
from pipeline.slurm.record import SubmittedJob, job_states, read_jobs
from pipeline.tracking import read_metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStatus:
    """One stage."""

    name: str
    state: str
    """pending, running, killed, interrupted, failed or done."""
    reason: str
    step: int | None
    """Optimiser steps, or rollouts, in `metrics.jsonl`."""
    steps: int | None
    """How many there will be."""
    seconds: float | None
    """Spent: by a running stage in this attempt, by a finished one in its last."""
    seconds_left: float | None
    """Until the last step, at the pace of this attempt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """One run directory."""

    folder: str
    stages: tuple[StageStatus, ...]
    jobs: tuple[tuple[str, str, str], ...]
    """Stage, number and state of each Slurm job; where Slurm has forgotten it, the code it ended with."""
    exit: dict[str, Any] | None
    """How the last attempt ended, once it has: code and sentence."""


def register(parser: argparse.ArgumentParser) -> None:
    """Add what `trivet status` takes."""
    parser.add_argument("run", nargs="?", metavar="RUN", help="run directory (default: the one in runs/ begun last)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.set_defaults(action=_status)


def _status(options: argparse.Namespace) -> int:
    found = look(Path(options.run) if options.run else _latest())
    if options.json:
        jobs = [dict(zip(("stage", "job_id", "state"), job, strict=True)) for job in found.jobs]
        print(json.dumps({**asdict(found), "jobs": jobs}, indent=2))
    else:
        print("\n".join(_lines(found)))
    return 0


def look(folder: Path) -> RunStatus:
    """Read a run directory.

    Raises:
        RecipeError: it is none.
    """
    jobs = read_jobs(folder)
    ledger = _read(folder / LEDGER)
    if ledger is None and not jobs:
        raise RecipeError(f"{folder}: is no run directory (it has no {LEDGER}); {_others(folder)}")
    gone = holder_is_gone(folder)
    states = job_states(jobs)
    stages = [_stage(entry, gone) for entry in (ledger or {}).get("stages", [])]
    running = any(stage.state == "running" for stage in stages)
    return RunStatus(
        folder=str(folder),
        stages=tuple(stages),
        jobs=tuple((job.name, job.job_id, states.get(job.job_id) or _ended(folder, job)) for job in jobs),
        # Whoever speaks last on a run, itself or a job script in its place, says it there.
        exit=None if running else _read(folder / "exit.json"),
    )


def _stage(entry: Mapping[str, Any], gone: bool) -> StageStatus:
    folder, state = Path(entry["artefact"]), str(entry["status"])
    if state == "skipped" and is_sealed(folder):
        state = "done"
    if state == "running" and gone:
        state = "killed"
    manifest = _read(folder / "manifest.json") or {}
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if line["split"] == "train"]
    step = max((line["step"] for line in lines), default=None)
    steps = (_read(folder / "work" / "steps.json") or {}).get("steps", step if state == "done" else None)
    began = datetime.fromisoformat(entry["started"]).timestamp() if entry["started"] else None
    spent = entry["seconds"] or manifest.get("seconds")
    left = None
    if state == "running" and began is not None:
        spent = max(0.0, time.time() - began)
        left = _left([line for line in lines if line["time"] >= began], steps)
    return StageStatus(
        name=entry["name"], state=state, reason=str(entry["reason"]), step=step, steps=steps, seconds=spent,
        seconds_left=left,
    )  # fmt: skip


def _left(lines: Sequence[Mapping[str, Any]], steps: int | None) -> float | None:
    """Seconds to the last step at the pace so far; None where there is none yet."""
    if not lines or steps is None:
        return None
    first, last = lines[0], lines[-1]
    done = last["step"] - first["step"]
    if done <= 0:
        return None
    return max(0.0, (last["time"] - first["time"]) / done * (steps - last["step"]))


def _ended(folder: Path, job: SubmittedJob) -> str:
    left = _read(folder / "slurm" / f"exit-{job.job_id}.json")
    return "unknown" if left is None else f"ended with code {left.get('code')}"


def _lines(found: RunStatus) -> list[str]:
    table = [("stage", "state", "step", "time", "left")] + [
        (
            stage.name, stage.state, _progress(stage), "" if stage.seconds is None else duration(stage.seconds),
            "" if stage.seconds_left is None else duration(stage.seconds_left),
        )
        for stage in found.stages
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [found.folder]
    if found.stages:
        lines += [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table
        ]
    else:
        lines.append("nothing has run yet")
    if found.jobs:
        lines.append("Slurm: " + ", ".join(f"{stage} {job} {state}" for stage, job, state in found.jobs))
    if found.exit is not None:
        said = found.exit.get("sentence")
        lines.append(f"last attempt ended with code {found.exit.get('code')}" + (f": {said}" if said else ""))
    return lines


def _progress(stage: StageStatus) -> str:
    if stage.step is None:
        return ""
    return f"{stage.step} of {stage.steps}" if stage.steps is not None else str(stage.step)


def _latest() -> Path:
    """The run directory below `runs` that was begun last.

    Raises:
        RecipeError: there is none.
    """
    orders = run_orders(Path("runs"))
    if not orders:
        raise RecipeError("there is no run in runs/; name a run directory, such as `trivet status runs/alpaca-dpo`")
    return max(sorted(orders), key=lambda folder: orders[folder])


def _others(folder: Path) -> str:
    near = sorted(str(path.parent) for path in folder.parent.glob(f"*/{LEDGER}"))
    return (
        f"beside it: {', '.join(near[:8])}" if near else "expected a folder that `trivet run` or `trivet submit` made"
    )


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return dict(read_json(path))
    except (OSError, ValueError, TypeError):
        return None
