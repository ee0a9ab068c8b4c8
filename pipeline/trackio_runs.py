"""Stages in trackio's database on this machine, each rebuilt whole: each step once, however often. Layer 2.

The names are those that the metrics have in W&B. Headline figures stand as `<stage>/final/<name>` at the last step.
trackio's `init` looks up who is logged in, gives runs an id and a time of its own, and turns failures into warnings;
so rows go to its storage directly, as those of its own `import_csv` do.
"""

from __future__ import annotations

import math
import os
import sqlite3
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.errors import DiskError, RecipeError
from pipeline.wandb_runs import series

_TESTED = "0.43"
"""Releases whose storage is used here; it is not part of what the library promises to keep."""
_ELSEWHERE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_BUCKET_ID", "TRACKIO_DATASET_ID")
"""Variables by which trackio sends to or fetches from another machine."""
_INSTALL = '`pip install -e ".[trackio]" -c constraints.txt`'


def require_trackio() -> None:
    """Refuse where nothing could be written, or not only on this machine.

    Raises:
        RecipeError: the library is missing or another release, or the environment names a place elsewhere.
    """
    try:
        import trackio  # noqa: F401
    except ImportError as error:
        raise RecipeError(f"push: --to trackio needs the library trackio; {_INSTALL}") from error
    found = metadata.version("trackio")
    if not found.startswith(f"{_TESTED}."):
        raise RecipeError(f"push: trackio {found} may store runs otherwise than the tested {_TESTED}; {_INSTALL}")
    if elsewhere := [name for name in _ELSEWHERE if os.environ.get(name)]:
        raise RecipeError(
            f"push: --to trackio writes on this machine only, and {elsewhere[0]} is set; unset it, push, and send what "
            "lies here with `trackio sync`"
        )


def require_project(project: str) -> None:
    """Refuse a project that trackio would keep under another name, or in files of another project.

    Raises:
        RecipeError: with what names may be.
    """
    from trackio.sqlite_storage import SQLiteStorage
    from trackio.utils import canonical_project_name

    try:
        SQLiteStorage.validate_project_name(project)
    except ValueError as error:
        raise RecipeError(f"push: {error}; name another with --project") from error
    if (kept := canonical_project_name(project)) != project:
        raise RecipeError(
            f"push: trackio would keep project '{project}' as '{kept}'; name one of letters, digits, - and _ with "
            "--project"
        )


def write_run(
    options: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], figures: Mapping[str, float]
) -> tuple[int, Path]:
    """Write a stage's metrics as one run, in the place of what was written of it before.

    Killed in between, the run is missing or whole, never there twice; two pushes at once write its steps once.

    Args:
        options: as `wandb_runs.run_options` gives them, with `config`: the id tells runs apart.
        lines: of its `metrics.jsonl`; of a value that was logged twice at one step the later counts.
        figures: headline figures by name.

    Returns:
        How many steps were logged, and the database's file.

    Raises:
        DiskError: the database is full, damaged, held by another program or cannot be written.
    """
    from trackio.sqlite_storage import SQLiteStorage

    project, name, run_id = (options[field] for field in ("project", "name", "id"))
    rows, times = _rows(options["job_type"], lines, figures)
    place = SQLiteStorage.get_project_db_path(project)
    try:
        # Databases of releases that knew runs by name alone are brought up to date: ours are deleted by their id.
        SQLiteStorage.init_db(project)
        SQLiteStorage.delete_run(project, name, run_id=run_id)
        # Its failure is not raised, and rows that it left would keep the new ones out.
        _require_rows(place, 0, SQLiteStorage.get_log_count(project, run_id=run_id))
        SQLiteStorage.bulk_log(
            project, name, [*rows.values()], steps=[*rows], timestamps=times, run_id=run_id,
            config=_config(options, times[0]),
            # Rows of one id are never stored twice.
            log_ids=[f"{run_id}-{step}" for step in rows],
        )  # fmt: skip
        _require_rows(place, len(rows), SQLiteStorage.get_log_count(project, run_id=run_id))
    except (OSError, sqlite3.Error) as error:
        raise _unwritable(place, str(error)) from error
    return len({line["step"] for line in lines}), place


def _rows(
    stage: str, lines: Sequence[Mapping[str, Any]], figures: Mapping[str, float]
) -> tuple[dict[int, dict[str, float]], list[str]]:
    """All values of each step by name, and when each step was logged: steps in order, at least one of them."""
    rows: dict[int, dict[str, float]] = {}
    logged: dict[int, float] = {}
    for line in lines:
        step, value = line["step"], line["value"]
        row = rows.setdefault(step, {})
        row[series(line["stage"], line["split"], line["name"])] = math.nan if value is None else value
        if line.get("time"):
            logged[step] = max(line["time"], logged.get(step, 0.0))
    last = max(rows, default=0)
    rows.setdefault(last, {}).update({f"{stage}/final/{name}": figure for name, figure in figures.items()})
    rows = dict(sorted(rows.items()))
    now = datetime.now(UTC).timestamp()
    when = min(logged.values(), default=now)
    times = []
    for step in rows:
        # trackio reads rows in the order of their times: a step without one counts as logged with the step before it.
        when = logged.get(step, when)
        times.append(datetime.fromtimestamp(when, UTC).isoformat(timespec="microseconds"))
    return rows, times


def _config(options: Mapping[str, Any], created: str) -> dict[str, Any]:
    """The recipe beside what runs are grouped by, W&B's job type as `stage`; names with `_` are the library's own."""
    recipe = {name: value for name, value in options["config"].items() if not str(name).startswith("_")}
    found = {"stage": options["job_type"], "_Group": options["group"], "_Created": created, "_Username": None}
    return {**recipe, **found}


def _require_rows(place: Path, expected: int, found: int) -> None:
    if found != expected:
        raise _unwritable(place, f"it holds {found} rows of this run where {expected} were expected")


def _unwritable(place: Path, reason: str) -> DiskError:
    return DiskError(
        f"trackio's {place} cannot be written ({reason}); free space, end what else writes to it, or name another "
        "folder with TRACKIO_DIR, and push again: no step is written twice"
    )
