"""From the decisions of a plan to jobs: one per stage that is to be made, each after the one before; or an array.

A run directory takes one process at a time, so the jobs of one run follow one another. The elements of an array have
run directories of their own and share a store: a stage that several of them would make is made first, once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.plan import Decision
from pipeline.recipe import LoadedRecipe
from pipeline.slurm.script import Job


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run directory to be: a recipe that is frozen there, and what a run of it would do now."""

    loaded: LoadedRecipe
    folder: Path
    """The run directory, absolute."""
    decisions: Sequence[Decision]
    changes: tuple[str, ...] = ()
    """Of an array's element: what tells it from the others, as `key=value`."""

    @property
    def to_make(self) -> list[Decision]:
        """What is not there yet, in order."""
        return [decision for decision in self.decisions if decision.action == "run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """What all jobs of a submission have in common."""

    start_folder: Path
    program: tuple[str, ...]
    options: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Step:
    """A job among others."""

    job: Job
    after: tuple[int, ...] = ()
    """Places of the jobs that must have succeeded."""


def chain(run: Run, manner: Manner) -> list[Step]:
    """A job per stage that is to be made, one after another."""
    steps: list[Step] = []
    for decision in run.to_make:
        steps.append(Step(_stage_job(run, decision.node.name, manner), (len(steps) - 1,) if steps else ()))
    return steps


def one_job(run: Run, manner: Manner) -> list[Step]:
    """A single job for all that is to be made."""
    if not run.to_make:
        return []
    names = ", ".join(decision.node.name for decision in run.to_make)
    name = run.loaded.recipe.name
    return [Step(_job(run.folder, name, f"Of {name}: {names}.", manner))]


def array(runs: Sequence[Run], stem: Path, name: str, manner: Manner) -> list[Step]:
    """A job array over run directories `stem-0`, `stem-1`, ..., after jobs for what several of them need.

    Args:
        runs: the elements, in order.
        stem: of their run directories.
        name: of the whole.
        manner: of all jobs.
    """
    wanted = Counter(decision.node.key for run in runs for decision in run.to_make)
    if not wanted:
        return []
    steps: list[Step] = []
    made: dict[str, int] = {}
    for run in runs:
        last: list[int] = []
        keys = {decision.node.name: decision.node.key for decision in run.decisions}
        for decision in run.to_make:
            node = decision.node
            if wanted[node.key] < 2 or node.key in made:
                continue
            parents = [made[keys[parent]] for parent in node.parents.values() if keys[parent] in made]
            made[node.key] = len(steps)
            steps.append(Step(_stage_job(run, node.name, manner), tuple(sorted({*parents, *last}))))
            last = [len(steps) - 1]
    about = f"Elements of {name}: run directories {len(runs)}, one after each number."
    whole = _job(stem, name, about, manner, elements=len(runs))
    return [*steps, Step(whole, tuple(range(len(steps))))]


def _stage_job(run: Run, stage: str, manner: Manner) -> Job:
    # `--only`: should an earlier stage's artefact be gone by then, that is said, not silently made anew in this
    # job's time.
    name = run.loaded.recipe.name
    about = f"Stage {stage} of {name}."
    return _job(run.folder, f"{name}-{stage}", about, manner, ("--only", stage), label=stage)


def _job(
    folder: Path,
    name: str,
    about: str,
    manner: Manner,
    *options: tuple[str, ...],
    label: str = "all",
    elements: int = 0,
) -> Job:
    return Job(
        name=name, about=about, folder=folder, start_folder=manner.start_folder, program=manner.program,
        options=(*manner.options, *options), label=label, elements=elements,
    )  # fmt: skip
