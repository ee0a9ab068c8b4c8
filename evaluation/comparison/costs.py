"""What each stage of each run cost: time, and memory where a stage logged it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evaluation.comparison.load import ComparedRun
from evaluation.report.load import EVALUATION, Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """One stage in all runs; None where a run has no such stage or has not finished it."""

    stage: str
    seconds: tuple[float | None, ...]
    peak_gib: tuple[float | None, ...]
    """The largest of what the stage logged as `mem/peak_...`: memory of the accelerator."""
    reused: tuple[bool, ...]
    """Whether the run took the stage over; the time is then that of the run that made it."""


def costs(runs: Sequence[ComparedRun]) -> list[Cost]:
    """Every stage that any run has, in order."""
    names = dict.fromkeys(stage.name for compared in runs for stage in compared.run.stages)
    last = [name for name in names if name == EVALUATION]
    found = []
    for name in [*(name for name in names if name not in last), *last]:
        stages = [compared.stage(name) for compared in runs]
        found.append(
            Cost(
                stage=name,
                seconds=tuple(stage.seconds if stage else None for stage in stages),
                peak_gib=tuple(_peak(stage) if stage else None for stage in stages),
                reused=tuple(stage is not None and stage.status == "skipped" for stage in stages),
            )
        )
    return found


def total(runs: Sequence[ComparedRun]) -> tuple[float | None, ...]:
    """Seconds of all stages of each run, those it took over included; None where nothing has been timed."""
    sums = [[stage.seconds for stage in compared.run.stages if stage.seconds is not None] for compared in runs]
    return tuple(sum(seconds) if seconds else None for seconds in sums)


def _peak(stage: Stage) -> float | None:
    peaks = [p.value for p in stage.points if p.name.startswith("mem/peak") and p.value is not None]
    return max(peaks, default=None)
