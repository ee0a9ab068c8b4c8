"""`trivet push RUN ...`: metrics of runs as they lie on disk, rebuilt in W&B, TensorBoard or trackio. Layer 5.

A run that was trained without W&B, or while it was out of reach, is pushed afterwards; what arrives is what live
mirroring would have sent: one group per run, one job type per stage, each step once.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pipeline.errors import RecipeError
from pipeline.recipe.schema import WandbSettings
from pipeline.redaction import redacted_in

if TYPE_CHECKING:
    from pipeline.finished_runs import FinishedRun

DESTINATIONS = {"wandb": ("project", "entity", "workspace"), "tensorboard": ("output_dir",), "trackio": ("project",)}
"""Where to, and what may be said about it."""
_LONGEST_TITLE = 120
"""Characters; many runs have long names."""


def register(commands: Any) -> None:
    """Add `push` to the subcommands of `trivet`."""
    push = commands.add_parser("push", help="send runs' metrics to Weights & Biases, TensorBoard or trackio afterwards")
    push.add_argument("runs", metavar="RUN", nargs="+", help="a run directory, such as runs/alpaca-dpo")
    push.add_argument("--to", choices=tuple(DESTINATIONS), default="wandb", help="where to (default: wandb)")
    push.add_argument("--project", help="project in W&B or trackio (default: the recipe's, else trivet)")
    push.add_argument("--entity", help="team or user in W&B (default: the recipe's, else the logged-in user's)")
    push.add_argument(
        "--workspace", metavar="NAME", nargs="?", const="", help="also save a view in W&B that compares the runs"
    )
    push.add_argument(
        "--output-dir", metavar="DIR", help="folder of TensorBoard's files (default: tensorboard in each run)"
    )
    push.add_argument("--json", action="store_true", help="print what was sent as JSON")
    push.set_defaults(action=_push)


def _push(options: argparse.Namespace) -> int:
    from pipeline.finished_runs import read_run

    _require_sense(options)
    # All are read before any is sent: a name that is mistyped costs nothing.
    runs = [read_run(Path(place)) for place in options.runs]
    for note in (note for run in runs for note in run.notes):
        print(f"({note})", file=sys.stderr)
    send = {"wandb": _to_wandb, "tensorboard": _to_tensorboard, "trackio": _to_trackio}[options.to]
    sent = send(runs, options)
    if options.json:
        print(json.dumps(sent, indent=2))
    return 0


def _require_sense(options: argparse.Namespace) -> None:
    """Options of another destination would be read by nobody.

    Raises:
        RecipeError: naming the option.
    """
    read = DESTINATIONS[options.to]
    other = dict.fromkeys(name for names in DESTINATIONS.values() for name in names if name not in read)
    given = [f"--{name.replace('_', '-')}" for name in other if getattr(options, name) is not None]
    if given:
        raise RecipeError(f"push: {', '.join(given)} means nothing to --to {options.to}; leave it out")


def _to_wandb(runs: Sequence[FinishedRun], options: argparse.Namespace) -> list[dict[str, Any]]:
    from pipeline.wandb_artefacts import stage_lineage
    from pipeline.wandb_push import StageToPush, push
    from pipeline.wandb_workspace import require_workspaces

    if options.workspace is not None:
        require_workspaces()
        _require_one_project(runs, options)
    sent: list[dict[str, Any]] = []
    for run in runs:
        settings = _settings(run.recipe, options)
        for stage in run.stages:
            lineage = stage.made and stage_lineage(stage.made, stage.parents, run.name, weights=settings.log_weights)
            found = StageToPush(
                name=stage.name, key=stage.key, lines=stage.lines, summary=stage.figures, tables=stage.tables,
                lineage=lineage or None,
            )  # fmt: skip
            steps = push(settings, run.folder, run.name, found, run.recipe)
            sent.append({"stage": stage.name, "steps": steps, "group": run.name, "project": settings.project})
            _say(options, runs, run, stage.name, steps, "sent")
    if options.workspace is not None:
        address = _save_workspace(runs, options)
        sent.append({"workspace": address})
        if not options.json:
            print(f"workspace saved: {address}")
    return sent


def _require_one_project(runs: Sequence[FinishedRun], options: argparse.Namespace) -> None:
    """A view shows one project.

    Raises:
        RecipeError: the runs' recipes name several.
    """
    found = {(one.project, one.entity) for one in (_settings(run.recipe, options) for run in runs)}
    if len(found) > 1:
        named = ", ".join(sorted(f"{entity or 'your own'}/{project}" for project, entity in found))
        raise RecipeError(f"push: the runs belong to several projects ({named}); name one with --project and --entity")


def _save_workspace(runs: Sequence[FinishedRun], options: argparse.Namespace) -> str:
    from pipeline.wandb_runs import default_entity
    from pipeline.wandb_workspace import SeenStage, save_workspace

    found: dict[tuple[str, str], tuple[set[tuple[str, str]], set[str]]] = {}
    for run in runs:
        for stage in run.stages:
            series, figures = found.setdefault((stage.name, stage.kind), (set(), set()))
            series |= {(line["split"], line["name"]) for line in stage.lines}
            figures |= set(stage.figures)
    stages = [
        SeenStage(name=name, kind=kind, series=frozenset(series), figures=frozenset(figures))
        for (name, kind), (series, figures) in found.items()
    ]
    names = list(dict.fromkeys(run.name for run in runs))
    title = options.workspace or f"trivet: {', '.join(names)}"[:_LONGEST_TITLE]
    return save_workspace(_settings(runs[0].recipe, options), title, names, stages, default_entity)


def _to_tensorboard(runs: Sequence[FinishedRun], options: argparse.Namespace) -> list[dict[str, Any]]:
    from pipeline.event_files import require_tensorboard, write_events

    require_tensorboard()
    names = [run.name for run in runs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if options.output_dir and twice:
        raise RecipeError(f"push: several runs are called {twice[0]}; push each with an --output-dir of its own")
    sent: list[dict[str, Any]] = []
    for run in runs:
        folder = Path(options.output_dir) / run.name if options.output_dir else run.folder / "tensorboard"
        for stage in run.stages:
            text = yaml.safe_dump(redacted_in(dict(run.recipe)), sort_keys=False, allow_unicode=True)
            steps = write_events(folder / stage.name, stage.name, stage.lines, stage.figures, text)
            sent.append({"stage": stage.name, "steps": steps, "run": run.name, "folder": str(folder / stage.name)})
            _say(options, runs, run, stage.name, steps, f"written to {folder / stage.name}")
    return sent


def _to_trackio(runs: Sequence[FinishedRun], options: argparse.Namespace) -> list[dict[str, Any]]:
    from pipeline.trackio_runs import require_project, require_trackio, write_run
    from pipeline.wandb_runs import run_options

    require_trackio()
    for project in dict.fromkeys(_settings(run.recipe, options).project for run in runs):
        require_project(project)
    sent: list[dict[str, Any]] = []
    for run in runs:
        settings, config = _settings(run.recipe, options), redacted_in(dict(run.recipe))
        for stage in run.stages:
            found = {**run_options(settings, run.folder, run.name, stage.name, stage.key), "config": config}
            steps, place = write_run(found, stage.lines, stage.figures)
            at = {"group": run.name, "project": settings.project, "database": str(place)}
            sent.append({"stage": stage.name, "steps": steps, **at})
            _say(options, runs, run, stage.name, steps, f"written to {place}")
    return sent


def _say(
    options: argparse.Namespace, runs: Sequence[FinishedRun], run: FinishedRun, stage: str, steps: int, done: str
) -> None:
    if not options.json:
        name = stage if len(runs) == 1 else f"{run.name}/{stage}"
        print(f"{name:<14} {steps} {'step' if steps == 1 else 'steps'} {done}")


def _settings(recipe: Mapping[str, Any], options: argparse.Namespace) -> WandbSettings:
    written = ((recipe.get("tracking") or {}).get("wandb")) or {}
    changed = {name: value for name in ("project", "entity") if (value := getattr(options, name))}
    return WandbSettings.model_validate({**written, **changed})
