"""Where tasks run: on this machine, or as an array of Slurm. datatrove's executors with this project's steps."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor
from loguru import logger

from data_prep.distributed.job import Job
from data_prep.distributed.steps import steps

if "SLURM_ARRAY_TASK_ID" not in os.environ:
    # On a terminal the account says what its log says, and a mistake is one sentence without a traceback.
    logger.disable("datatrove")


def local_executor(job: Job, output: Path, tasks: int, workers: int) -> LocalPipelineExecutor:
    """All tasks on this machine, so many at a time."""
    # The library keeps folders by their name, whatever the process's own folder has become.
    output = output.absolute()
    return LocalPipelineExecutor(steps(job, output), tasks=tasks, workers=workers, logging_dir=str(output / "log"))


def slurm_executor(
    job: Job, output: Path, tasks: int, workers: int, *, partition: str, time: str, memory: int
) -> SlurmPipelineExecutor:
    """Every task a task of a Slurm array, in this process's environment.

    Args:
        job: what to do.
        output: on a disk that all machines see.
        tasks: of the array.
        workers: most that run at a time; -1 for no limit.
        partition: of Slurm.
        time: limit of a task, as Slurm writes it.
        memory: of a task, in GB.
    """
    output = output.absolute()
    return SlurmPipelineExecutor(
        steps(job, output),
        tasks=tasks,
        workers=workers,
        time=time,
        partition=partition,
        mem_per_cpu_gb=memory,
        qos="",
        job_name="trivet-data",
        env_command=f'export PATH="{Path(sys.executable).parent}:$PATH"',
        logging_dir=str(output / "log"),
    )
