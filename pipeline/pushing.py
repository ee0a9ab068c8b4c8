"""`trivet push RUN`: a run's metrics as they lie on disk, rebuilt in Weights & Biases. Layer 5.

`metrics.jsonl` is the truth. A run that was trained without W&B, or while it was out of reach, is pushed afterwards;
what arrives is what live mirroring would have sent: one group per run, one job type per stage, each step once.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from pipeline.durable import read_json
from pipeline.errors import DataError
from pipeline.ledger import LEDGER
from pipeline.plan import EVALUATION
from pipeline.recipe.schema import WandbSettings
from pipeline.results import RESULTS


def register(commands: Any) -> None:
    """Add `push` to the subcommands of `trivet`."""
    push = commands.add_parser("push", help="send a run's metrics to Weights & Biases afterwards")
    push.add_argument("run", metavar="RUN", help="a run directory, such as runs/alpaca-dpo")
    push.add_argument("--project", help="project in W&B (default: the recipe's, else trivet)")
    push.add_argument("--entity", help="team or user in W&B (default: the recipe's, else the logged-in user's)")
    push.add_argument("--json", action="store_true", help="print what was sent as JSON")
    push.set_defaults(action=_push)


def _push(options: argparse.Namespace) -> int:
    from pipeline.tracking import push

    folder = Path(options.run)
    ledger, recipe = _object(folder / LEDGER, folder), _recipe(folder)
    settings = _settings(recipe, options)
    name = str(ledger.get("name") or folder.resolve().name)
    sent = []
    for stage in _stages(folder, ledger):
        steps = push(settings, folder, name, stage, recipe)
        sent.append({"stage": stage.name, "steps": steps, "group": name, "project": settings.project})
        if not options.json:
            print(f"{stage.name:<14} {steps} {'step' if steps == 1 else 'steps'} sent")
    if not sent:
        raise DataError(f"{folder}: no stage of this run has logged anything yet")
    if options.json:
        print(json.dumps(sent, indent=2))
    return 0


def _stages(folder: Path, ledger: Mapping[str, Any]) -> Iterator[Any]:
    """Every stage that logged something, and the evaluation where there is one."""
    from pipeline.tracking import StageToPush, read_metrics

    results = _object(folder / RESULTS, folder) if (folder / RESULTS).is_file() else {}
    for entry in ledger.get("stages") or ():
        stage, key = str(entry.get("name")), str(entry.get("key"))
        lines = read_metrics(folder / stage / "metrics.jsonl")
        if stage == EVALUATION:
            figures = _flat((results.get(EVALUATION) or {}).get("policies") or {})
        else:
            figures = _flat(((results.get("stages") or {}).get(stage) or {}).get("metrics") or {})
        if lines or (stage == EVALUATION and figures):
            yield StageToPush(name=stage, key=key, lines=lines, summary=figures)


def _flat(figures: Mapping[str, Any], before: str = "") -> dict[str, float]:
    """Finite numbers by their path: `ppo/rule_accuracy`."""
    found: dict[str, float] = {}
    for name, value in figures.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{before}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            found[f"{before}{name}"] = value
    return found


def _settings(recipe: Mapping[str, Any], options: argparse.Namespace) -> WandbSettings:
    written = ((recipe.get("tracking") or {}).get("wandb")) or {}
    changed = {name: value for name in ("project", "entity") if (value := getattr(options, name))}
    return WandbSettings.model_validate({**written, **changed})


def _recipe(folder: Path) -> dict[str, Any]:
    try:
        return dict(yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8")) or {})
    except (OSError, ValueError, TypeError, yaml.YAMLError):
        # Runs are pushed for their metrics; a recipe that cannot be read costs its settings only.
        return {}


def _object(path: Path, folder: Path) -> dict[str, Any]:
    try:
        return dict(read_json(path))
    except FileNotFoundError as error:
        raise DataError(f"{folder} holds no run (no {path.name}); name a run directory, as in runs/NAME") from error
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} cannot be read ({error}); it is damaged or half written") from error
