"""Which Slurm jobs were made for a run directory, written down there, and how they do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.durable import read_json
from pipeline.slurm import scheduler

FOLDER = "slurm"
"""In a run directory: the frozen recipe, the scripts, `jobs.json`, and each job's outcome."""


@dataclass(frozen=True, slots=True)
class SubmittedJob:
    """A job of a run directory."""

    name: str
    """The stage, or `all`."""
    job_id: str
    """Of an array's element with its number: 7_2."""


def read_jobs(folder: Path) -> list[SubmittedJob]:
    """The jobs last submitted for a run directory; empty where there were none."""
    try:
        rows = read_json(folder / FOLDER / "jobs.json")["jobs"]
        return [SubmittedJob(str(row["name"]), str(row["job_id"])) for row in rows]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def job_states(jobs: Sequence[SubmittedJob]) -> Mapping[str, str]:
    """State of each job that Slurm still knows, by id."""
    return scheduler.states([job.job_id for job in jobs])
