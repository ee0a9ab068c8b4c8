"""What each stage of each run cost: time, and the most memory that it took."""

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
    process_gib: tuple[float | None, ...]
    """The most memory of the machine that one of its processes took; None where an older version made it."""
    peak_gib: tuple[float | None, ...]
    """The same of the GPU, from the manifest, or of a stage under way from what it logged as `mem/peak_...`."""
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
                process_gib=tuple(_of_process(stage) for stage in stages),
                peak_gib=tuple(_of_gpu(stage) for stage in stages),
                reused=tuple(stage is not None and stage.status == "skipped" for stage in stages),
            )
        )
    return found


def total(runs: Sequence[ComparedRun]) -> tuple[float | None, ...]:
    """Seconds of all stages of each run, those it took over included; None where nothing has been timed."""
    sums = [[stage.seconds for stage in compared.run.stages if stage.seconds is not None] for compared in runs]
    return tuple(sum(seconds) if seconds else None for seconds in sums)


def _of_process(stage: Stage | None) -> float | None:
    return stage.provenance.process_gib if stage and stage.provenance else None


def _of_gpu(stage: Stage | None) -> float | None:
    if stage is None:
        return None
    peaks = [p.value for p in stage.points if p.name.startswith("mem/peak") and p.value is not None]
    if stage.provenance is not None and stage.provenance.gpu_gib is not None:
        peaks.append(stage.provenance.gpu_gib)
    return max(peaks, default=None)
