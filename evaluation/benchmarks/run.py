"""Benchmarks of a run's policies, one after another, each kept as soon as it is through. Layer 4; imports torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from evaluation.benchmarks import harness
from evaluation.benchmarks.harness import Asked, TaskFigures
from evaluation.benchmarks.local import BENCHMARKS, local_tasks
from evaluation.benchmarks.record import FOLDER, keep, read_entries, values_by_question, write_entries
from evaluation.benchmarks.task_files import write_tasks
from evaluation.intervals import SHARE, paired_bootstrap_ci
from evaluation.policies import BASE, Policies
from pipeline.artefact import Artefact
from pipeline.console import duration
from pipeline.context import require_one_tokenizer
from pipeline.models.load import describe_tokenizer, load_tokenizer
from pipeline.recipe.schema import Recipe

LIBRARIES = ("lm_eval", "transformers", "torch", "datasets")
TASK_FILES = f"{FOLDER}/tasks"
"""In the run directory: local data as task files of the harness."""


def run_benchmarks(
    run_dir: Path,
    recipe: Recipe,
    base_folder: Path,
    artefacts: dict[str, Artefact],
    policies: Sequence[str],
    names: Sequence[str],
    data: Path | None,
    asked: Asked,
    precision: str,
    say: Callable[[str], None],
) -> None:
    """Ask every policy every benchmark, and keep what comes out; what stands there already is not asked again.

    Args:
        run_dir: of the run.
        recipe: of the run.
        base_folder: of its base model.
        artefacts: its sealed policies by stage.
        policies: names of those to ask, `base` among them.
        names: benchmarks.
        data: folder of published files; None for the hub.
        asked: how.
        precision: of the forward pass.
        say: tells the user how far it is.

    Raises:
        TrivetError: a policy was made with another tokenizer than the run's.
        DataError, SourceUnreachableError: see `local_tasks` and `harness.ask`.
    """
    tokenizer = load_tokenizer(base_folder, recipe.data.chat_template)
    require_one_tokenizer(str(run_dir), artefacts, describe_tokenizer(tokenizer))
    sources = {name: _source(name, data, run_dir) for name in names}
    # The harness builds its batches itself: padded rows, as any model takes them.
    attention = "sdpa" if recipe.model.attention == "auto" else recipe.model.attention
    settings = recipe.model.model_copy(update={"attention": attention})
    loaded = Policies(artefacts, base_folder, settings, precision)
    for name in names:
        tasks, folder, digest = sources[name]
        settled = {**asdict(asked), "data": digest, "precision": precision, **_versions()}
        for policy in policies:
            key = "base" if policy == BASE else artefacts[policy].manifest.key
            if _stands(run_dir, name, policy, key, settled):
                say(f"{BENCHMARKS[name].title}, {policy}: asked before")
                continue
            say(f"{BENCHMARKS[name].title}, {policy}: {len(tasks)} {'task' if len(tasks) == 1 else 'tasks'}")
            started = time.monotonic()
            with loaded.use(policy) as model:
                found = harness.ask(model, tokenizer, tasks, folder, asked)
            _keep(run_dir, name, policy, key, settled, found)
            say(f"{BENCHMARKS[name].title}, {policy}: done in {duration(time.monotonic() - started)}")
    _compare(run_dir)


def _source(name: str, data: Path | None, run_dir: Path) -> tuple[list[str], Path | None, str]:
    """The harness's tasks, the folder of their files, and what tells one edition of the data from another."""
    if data is None:
        return list(BENCHMARKS[name].hub), None, "hub"
    tasks = local_tasks(name, data)
    folder = run_dir / TASK_FILES / name
    return [task.task for task in tasks], folder, write_tasks(folder, tasks)


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _stands(run_dir: Path, name: str, policy: str, key: str, settled: dict[str, Any]) -> bool:
    return any(
        (one["benchmark"], one["policy"], one["key"], one["settings"]) == (name, policy, key, settled)
        for one in read_entries(run_dir)
    )


def _keep(
    run_dir: Path, name: str, policy: str, key: str, settled: dict[str, Any], found: Sequence[TaskFigures]
) -> None:
    tasks = [
        {"task": task.task, "version": task.version, "few_shot": task.few_shot, "n": task.n,
         "values": dict(task.values), "stderr": dict(task.errors)}
        for task in found
    ]  # fmt: skip
    entry = {
        "benchmark": name, "policy": policy, "key": key, "figures": harness.headline(name, found),
        "settings": settled, "tasks": tasks,
    }  # fmt: skip
    questions = [
        {"benchmark": name, "policy": policy, "task": task.task, "metric": label, "question": number, "value": value}
        for label, (metric, tasks_of_it) in harness.measured(name, found).items()
        for task in tasks_of_it
        for number, value in task.by_question.get(metric, {}).items()
    ]
    keep(run_dir, entry, questions)


def _compare(run_dir: Path) -> None:
    """Set every policy's figures against the base model's, question by question, where both were asked alike."""
    entries = read_entries(run_dir)
    base = {one["benchmark"]: one for one in entries if one["policy"] == BASE}
    for entry in entries:
        for figure in entry["figures"].values():
            figure.pop("against_base", None)
        before = base.get(entry["benchmark"])
        if before is None or entry["policy"] == BASE or before["settings"] != entry["settings"]:
            continue
        for metric, figure in entry["figures"].items():
            mine, theirs = (
                values_by_question(run_dir, entry["benchmark"], policy, metric) for policy in (entry["policy"], BASE)
            )
            shared = sorted(mine.keys() & theirs.keys())
            found = paired_bootstrap_ci([theirs[one] for one in shared], [mine[one] for one in shared], within=SHARE)
            figure["against_base"] = {"difference": found.estimate, "ci95": found.bounds, "n": found.n}
    write_entries(run_dir, entries)
