"""A run directory as `trivet push` reads it: every stage that logged something, its tables, artefact and parents.

`metrics.jsonl` is the truth; what is pushed from it afterwards is what live mirroring would have sent. Layer 5.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.artefact import MANIFEST, Artefact, Manifest, is_sealed
from pipeline.durable import read_json
from pipeline.errors import DataError
from pipeline.ledger import LEDGER
from pipeline.plan import EVALUATION
from pipeline.results import RESULTS
from pipeline.tracking import read_lines, read_metrics
from pipeline.wandb_artefacts import flat

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_TABLES = {"ppo": {"rollouts": "rollouts.jsonl"}, EVALUATION: {"answers": "answers.jsonl"}}
"""By kind of stage: rows in its artefact that live mirroring sends as tables."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedStage:
    """One stage as it lies on disk, finished or still going."""

    name: str
    kind: str
    key: str
    lines: Sequence[Mapping[str, Any]]
    """Of its `metrics.jsonl`."""
    figures: Mapping[str, float]
    """Headline figures, by name."""
    tables: Mapping[str, Sequence[Mapping[str, Any]]]
    made: Artefact | None
    """None until it is sealed."""
    parents: tuple[Artefact, ...]
    """Those that this run holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedRun:
    """A run directory."""

    folder: Path
    name: str
    recipe: Mapping[str, Any]
    """As resolved; empty where it cannot be read."""
    stages: tuple[FinishedStage, ...]
    """Those that logged something, and the evaluation where it has figures."""
    notes: tuple[str, ...]
    """What could not be read and is left out."""


def read_run(folder: Path) -> FinishedRun:
    """Read a run directory.

    Raises:
        DataError: the folder holds no run, or one whose ledger is damaged, or that has logged nothing yet.
    """
    notes: list[str] = []
    ledger = _object(folder / LEDGER, folder)
    results = _object(folder / RESULTS, folder) if (folder / RESULTS).is_file() else {}
    entries = [entry for entry in ledger.get("stages") or () if isinstance(entry, Mapping)]
    name = _name(ledger.get("name") or folder.resolve().name, folder)
    for entry in entries:
        _name(entry.get("name"), folder)
    made = {found.manifest.key: found for entry in entries if (found := _made(folder / str(entry.get("name")), notes))}
    stages = [_stage(folder, entry, results, made) for entry in entries]
    logged = tuple(stage for stage in stages if stage.lines or (stage.name == EVALUATION and stage.figures))
    if not logged:
        raise DataError(f"{folder}: no stage of this run has logged anything yet")
    return FinishedRun(folder=folder, name=name, recipe=_recipe(folder), stages=logged, notes=tuple(notes))


def _stage(
    folder: Path, entry: Mapping[str, Any], results: Mapping[str, Any], made: Mapping[str, Artefact]
) -> FinishedStage:
    name, kind, key = (str(entry.get(field)) for field in ("name", "kind", "key"))
    if name == EVALUATION:
        figures = (results.get(EVALUATION) or {}).get("policies") or {}
    else:
        figures = ((results.get("stages") or {}).get(name) or {}).get("metrics") or {}
    own = made.get(key)
    parents = own.manifest.parents if own else ()
    return FinishedStage(
        name=name,
        kind=kind,
        key=key,
        lines=read_metrics(folder / name / "metrics.jsonl"),
        figures=flat(figures),
        tables={table: read_lines(folder / name / file) for table, file in _TABLES.get(kind, {}).items()},
        made=own,
        parents=tuple(made[parent.key] for parent in parents if parent.key in made),
    )


def _made(folder: Path, notes: list[str]) -> Artefact | None:
    """A stage's artefact by its manifest; its files are not checked, as nothing is built on them here."""
    if not is_sealed(folder):
        return None
    try:
        return Artefact(folder, Manifest.model_validate(read_json(folder / MANIFEST)))
    except (OSError, ValueError) as error:
        # Runs of other versions are worth their metrics.
        notes.append(f"{folder / MANIFEST} cannot be read ({_first_line(error)}), so its artefact is left out")
        return None


def _name(value: Any, folder: Path) -> str:
    """A name that can be a folder's: runs may come from strangers, and files are written below it."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise DataError(f"{folder / LEDGER}: '{value}' is no name of a run or stage; the file is damaged or made up")
    return value


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


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
