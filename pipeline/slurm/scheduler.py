"""What is asked of Slurm: take a script, and say how jobs do. Argument lists only, no shell."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.errors import RecipeError, SourceUnreachableError

_SECONDS = 60
LIVE = frozenset({"PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING", "REQUEUED", "RESIZING", "STOPPED"})
"""States of a job that may still do something."""


def is_there() -> bool:
    """Whether jobs can be submitted from this machine."""
    return shutil.which("sbatch") is not None


def require() -> None:
    """Refuse where there is no Slurm.

    Raises:
        SourceUnreachableError: with what to do.
    """
    if not is_there():
        raise SourceUnreachableError(
            "sbatch is not on this machine's PATH; submit from a login node of the cluster, or look at the scripts "
            "with --dry-run"
        )


def submit(script: Path, after: Sequence[str], start_folder: Path) -> str:
    """Hand a script to Slurm; returns the job's id.

    Args:
        script: to be run.
        after: ids of jobs that must succeed first; should one fail, this one is cancelled.
        start_folder: where the job starts.

    Raises:
        RecipeError: Slurm refuses the script.
        SourceUnreachableError: Slurm does not answer.
    """
    command = ["sbatch", "--parsable", f"--chdir={start_folder}"]
    if after:
        command += [f"--dependency=afterok:{':'.join(after)}", "--kill-on-invalid-dep=yes"]
    done = _called([*command, str(script)])
    if done.returncode:
        raise RecipeError(f"sbatch refused {script}: {_reason(done.stderr)}; correct the option or the site file")
    return done.stdout.strip().partition(";")[0]


def cancel(jobs: Sequence[str]) -> None:
    """Take jobs back, as far as they are still there."""
    if jobs:
        _called(["scancel", *jobs])


def states(jobs: Sequence[str]) -> Mapping[str, str]:
    """State of each job that Slurm still knows: PENDING, RUNNING, COMPLETED, FAILED, ...; elements of an array as 7_2.

    The queue is asked first; what has left it, the accounting, where the cluster keeps one.
    """
    found: dict[str, str] = {}
    if not jobs or not is_there():
        return found
    queue = ["squeue", "--noheader", "--array", "--states=all", "--format=%i %T", f"--jobs={','.join(jobs)}"]
    found.update(_pairs(queue))
    unknown = [job for job in jobs if job not in found]
    if unknown and shutil.which("sacct"):
        accounting = ["sacct", "--noheader", "--allocations", "--parsable2", "--format=JobID,State"]
        found.update(_pairs([*accounting, f"--jobs={','.join(unknown)}"], "|"))
    return found


def _pairs(command: list[str], separator: str = " ") -> dict[str, str]:
    """First and second word of each line; nothing where the command fails, as it does for jobs long forgotten."""
    try:
        done = _called(command)
    except SourceUnreachableError:
        return {}
    if done.returncode:
        return {}
    rows = (line.strip().split(separator, 1) for line in done.stdout.splitlines())
    return {row[0]: row[1].split()[0] for row in rows if len(row) == 2 and row[1].strip()}


def _called(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SourceUnreachableError(f"{command[0]} did not answer ({error}); is Slurm up? Try `sinfo`") from None
    if done.returncode and "contact slurm controller" in done.stderr:
        raise SourceUnreachableError(f"{command[0]}: {_reason(done.stderr)}; is Slurm up? Try `sinfo`")
    return done


def _reason(text: str) -> str:
    """The last of Slurm's complaints, without its own label."""
    lines = [line.partition("error: ")[2] or line for line in text.splitlines() if line.strip()]
    return lines[-1].strip().rstrip(".") if lines else "no reason given"
