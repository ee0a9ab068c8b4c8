"""`trivet submit`: a recipe's stages as Slurm jobs, checked as a run would check it before anything is queued.

Each run directory gets a frozen copy of its recipe, so that an edit while jobs wait changes nothing of theirs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import reward_function
from pipeline.combinations import changes_of, run_dir_of, stem_of
from pipeline.console import Console
from pipeline.durable import write_json_atomically, write_text_atomically
from pipeline.errors import BusyError, DiskError, TrivetError
from pipeline.recipe import check_batches, check_reward_function, load_recipe
from pipeline.run_dir import require_run_dir
from pipeline.runtime import ROOT, Ranks
from pipeline.slurm import scheduler
from pipeline.slurm.jobs import Manner, Run, Step, array, chain, one_job
from pipeline.slurm.record import FOLDER, job_states, read_jobs
from pipeline.slurm.script import render
from pipeline.slurm.site_file import Site, load_site
from pipeline.supervisor import RunOptions, Supervisor

_SITE_OPTIONS = ("nodes", "gpus_per_node", "cpus_per_task", "mem", "time", "partition", "account", "qos")


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """All that is about to be written and queued."""

    runs: Sequence[Run]
    steps: Sequence[Step]
    scripts: Sequence[str]
    """Text of each step's script."""
    is_array: bool


def submit(options: argparse.Namespace) -> int:
    """Check, render, write and queue; or print the scripts."""
    site = load_site(options.site, {name: getattr(options, name) for name in _SITE_OPTIONS})
    found = _prepare(options, site)
    if options.dry_run or not found.steps:
        _show(options, found, ["" for _ in found.steps])
        return 0
    scheduler.require()
    _require_idle(found.runs)
    _write(found)
    _show(options, found, _queue(found))
    return 0


def _prepare(options: argparse.Namespace, site: Site) -> Submission:
    if not options.array_over:
        runs = [_run(options, site, (), None)]
        steps = (one_job if options.one_job else chain)(runs[0], _manner(options, site))
    else:
        changes = changes_of(options.array_over, "--array-over")
        stem = stem_of(options.recipe, options.overrides, changes, options.output_dir).absolute()
        runs = [_run(options, site, each, run_dir_of(stem, index)) for index, each in enumerate(changes)]
        steps = array(runs, stem, runs[0].loaded.recipe.name, _manner(options, site))
    scripts = [render(step.job, site) for step in steps]
    return Submission(runs=runs, steps=steps, scripts=scripts, is_array=bool(options.array_over))


def _run(options: argparse.Namespace, site: Site, changes: tuple[str, ...], output_dir: str | None) -> Run:
    """A run directory to be, with the same checks as a run's own."""
    loaded = load_recipe(
        Path(options.recipe), [*options.overrides, *changes], output_dir=output_dir or options.output_dir
    )
    check_batches(loaded.recipe, site.world_size, loaded.places)
    check_reward_function(loaded.recipe, options.reward, loaded.places)
    function = reward_function.find(options.reward) if options.reward else None
    chosen = RunOptions(store=options.store, reward_function=function)
    require_run_dir(loaded.output_dir.absolute())
    decisions = Supervisor(loaded, chosen, Ranks(0, 0, site.world_size), Console(None)).plan()
    return Run(loaded=loaded, folder=loaded.output_dir.absolute(), decisions=decisions, changes=changes)


def _manner(options: argparse.Namespace, site: Site) -> Manner:
    program = site.program or (sys.executable, str(ROOT / "pipeline" / "run.py"))
    further: list[tuple[str, ...]] = []
    if options.reward:
        further.append(("--reward", options.reward))
    if options.store:
        further.append(("--store", str(Path(options.store).expanduser().absolute())))
    return Manner(start_folder=Path.cwd(), program=(*site.container, *program), options=tuple(further))


def _require_idle(runs: Sequence[Run]) -> None:
    """Refuse a run directory whose earlier jobs may still run: two would stand in one another's way.

    Raises:
        BusyError: naming the jobs, and what to type.
    """
    for run in runs:
        states = job_states(read_jobs(run.folder))
        live = [f"{job} ({state})" for job, state in states.items() if state in scheduler.LIVE]
        if live:
            numbers = " ".join(job for job, state in states.items() if state in scheduler.LIVE)
            raise BusyError(
                f"{run.folder} has jobs in the queue: {', '.join(live)}; wait for them, take them back with "
                f"`scancel {numbers}`, or choose another --output-dir"
            )


def _write(found: Submission) -> None:
    try:
        for run in found.runs:
            (run.folder / FOLDER).mkdir(parents=True, exist_ok=True)
            (run.folder / "logs").mkdir(exist_ok=True)
            write_text_atomically(run.folder / FOLDER / "recipe.yaml", run.loaded.resolved_yaml())
        for step, text in zip(found.steps, found.scripts, strict=True):
            path = step.job.script
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text_atomically(path, text)
    except OSError as error:
        raise DiskError(
            f"{error.filename}: cannot be written: {error.strerror}; choose another --output-dir"
        ) from error


def _queue(found: Submission) -> list[str]:
    """Hand the scripts to Slurm in order; all or none. Returns the jobs' ids."""
    ids: list[str] = []
    try:
        for step in found.steps:
            after = [ids[place] for place in step.after]
            ids.append(scheduler.submit(step.job.script, after, step.job.start_folder))
    except TrivetError:
        scheduler.cancel(ids)
        raise
    for index, run in enumerate(found.runs):
        rows = [
            {"name": step.job.label, "job_id": f"{job}_{index}" if step.job.elements else job}
            for step, job in zip(found.steps, ids, strict=True)
            if step.job.elements or step.job.folder == run.folder
        ]
        write_json_atomically(run.folder / FOLDER / "jobs.json", {"jobs": rows})
    return ids


def _show(options: argparse.Namespace, found: Submission, ids: Sequence[str]) -> None:
    if options.json:
        print(json.dumps(_as_json(found, ids), indent=2))
        return
    if not found.steps:
        print("nothing to submit: all stages are done")
        return
    remark = "# " if options.dry_run else ""
    if found.is_array:
        for index, run in enumerate(found.runs):
            print(f"{remark}{index:>3}  {run.folder}  {'  '.join(run.changes)}")
    for step, text, job in zip(found.steps, found.scripts, ids, strict=True):
        waits = [ids[place] or found.steps[place].job.label for place in step.after]
        behind = f", after {', '.join(waits)}" if waits else ""
        if options.dry_run:
            print(f"{remark}{step.job.script}{behind}\n{text}")
        else:
            print(f"{step.job.label:<14} job {job}{behind}")
    if not options.dry_run:
        print(f"`trivet status {found.runs[0].folder}` shows how they do; scripts in {FOLDER}/, logs in logs/ there")


def _as_json(found: Submission, ids: Sequence[str]) -> dict[str, Any]:
    jobs = [
        {
            "name": step.job.name, "job_id": job or None, "script": str(step.job.script), "text": text,
            "after": [ids[place] or found.steps[place].job.name for place in step.after],
        }
        for step, text, job in zip(found.steps, found.scripts, ids, strict=True)
    ]  # fmt: skip
    return {
        "jobs": jobs,
        "runs": [{"output_dir": str(run.folder), "changes": list(run.changes)} for run in found.runs],
    }
