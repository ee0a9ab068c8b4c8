"""How a run is made again from nothing: which code, which recipe, which command, and what of it cannot be had again.

The call that a run directory remembers is only its last one, which may have made a single stage anew.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from evaluation.report.load import Run
from evaluation.report.provenance import Provenance

_RECIPE = "recipe.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reproduction:
    """Commands to type, one a line, and what they do not bring back."""

    commands: tuple[str, ...]
    notes: tuple[str, ...]


def reproduction(run: Run) -> Reproduction | None:
    """What makes the run again; None as long as no stage is sealed, or where its recipe is gone."""
    made = {stage.name: stage.provenance for stage in run.stages if stage.provenance is not None}
    if not made or not run.recipe:
        return None
    by_commit = _by_commit(made)
    # Stages that were taken over may be older than the run; the last one was made by it.
    commit = next(reversed(made.values())).commit
    processes = max(one.world_size or 1 for one in made.values())
    commands = [
        *([f"git checkout {shlex.quote(commit)}"] if commit else []),
        "pip install -e . -c constraints.txt",
        " ".join([*_launch(processes), _RECIPE, *_reward(run.command), *_apart(run.name)]),
    ]
    return Reproduction(commands=tuple(commands), notes=tuple(_notes(run, made, by_commit, commit, processes)))


def _by_commit(made: Mapping[str, Provenance]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, one in made.items():
        found.setdefault(one.commit, []).append(name)
    return found


def _launch(processes: int) -> list[str]:
    if processes == 1:
        return ["trivet", "run"]
    return ["accelerate", "launch", "--num_processes", str(processes), "pipeline/run.py"]


def _reward(command: str) -> list[str]:
    """The one thing of a call that the resolved recipe does not hold."""
    try:
        words = shlex.split(command)
    except ValueError:
        return []
    for at, word in enumerate(words):
        if word.startswith("--reward="):
            return ["--reward", shlex.quote(word.partition("=")[2])]
        if word == "--reward" and at + 1 < len(words):
            return ["--reward", shlex.quote(words[at + 1])]
    return []


def _apart(name: str) -> list[str]:
    return ["--output-dir", shlex.quote(f"runs/{name}-again"), "--no-reuse"]


def _notes(
    run: Run, made: Mapping[str, Provenance], by_commit: Mapping[str, Sequence[str]], commit: str, processes: int
) -> Iterable[str]:
    yield (
        f"In a clone of the project. {_RECIPE} is the one in the run's folder, which stands below as well, resolved: "
        "what the command line had changed is in it."
    )
    if not commit:
        yield "Which commit the code was at is not recorded; the versions below are those that ran."
    others = [
        f"{', '.join(names)} at {one[:12] or 'an unknown one'}" for one, names in by_commit.items() if one != commit
    ]
    if commit and others:
        yield f"Taken over from earlier runs, by code at another commit: {'; '.join(others)}."
    if dirty := [name for name, one in made.items() if one.dirty]:
        yield f"Made by code with uncommitted changes, which no commit holds: {', '.join(dirty)}."
    if fewer := [f"{name} by {one.world_size}" for name, one in made.items() if (one.world_size or 1) != processes]:
        yield f"Not every stage was made by {processes} processes: {', '.join(fewer)}."
    files = dict.fromkeys(s.path for one in made.values() for data in one.data for s in data.sources)
    if own := [path for path in files if path and not path.startswith("builtin:")]:
        yield f"Data must lie where the recipe names it: {', '.join(own)}."
