"""Weights & Biases runs: where they belong, how one is opened, fed and closed. One per stage, grouped by run. Layer 2.

What is the same for a stage that is mirrored while it runs (`wandb_mirror`) and one that is pushed afterwards
(`wandb_push`), so that both make one and the same run.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.recipe.schema import WandbSettings


def run_options(settings: WandbSettings, run_dir: Path, run_name: str, stage: str, key: str) -> dict[str, Any]:
    """One group per run, one job type per stage, an id that stays the same as long as run, stage and key do."""
    return {
        "project": settings.project,
        "entity": settings.entity,
        "group": run_name,
        "job_type": stage,
        "name": f"{run_name}/{stage}",
        "id": hashlib.sha256(f"{run_dir.resolve()}\0{stage}\0{key}".encode()).hexdigest()[:16],
        "resume": "allow",
        "dir": str(run_dir),
    }


def mode() -> str:
    """What WANDB_MODE asks for: `online`, `offline` or `disabled`."""
    said = os.environ.get("WANDB_MODE", "").lower()
    return "offline" if said in ("offline", "dryrun") else "disabled" if said == "disabled" else "online"


def has_key() -> bool:
    """Whether someone has logged in on this machine."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    import netrc

    try:
        return any("wandb" in host for host in netrc.netrc().hosts)
    except (OSError, netrc.NetrcParseError):
        return False


def default_entity() -> str:
    """The team or user of whoever is logged in, as the server says."""
    import wandb

    return str(wandb.Api().default_entity)


def require_library() -> None:
    """Import it.

    Raises:
        ImportError: it is not there, or broken.
    """
    import wandb  # noqa: F401


def open_run(options: Mapping[str, Any], *, offline: bool, live: bool) -> Any:
    """Begin a run, or go on with it.

    Args:
        options: by `run_options`, with its config.
        offline: write a file for `wandb sync`, in the place of any earlier one that nobody has synced.
        live: whether the stage is running here and now: only then do figures of this machine belong to it.
    """
    import wandb

    if offline:
        drop_unsynced(Path(options["dir"]), options["id"])
    settings = wandb.Settings(silent=True, init_timeout=init_seconds(), console="off", x_disable_stats=not live)
    return wandb.init(mode="offline" if offline else "online", settings=settings, **options)


def by_step(lines: Iterable[Mapping[str, Any]]) -> list[tuple[int, dict[str, Any]]]:
    """All values of each step under the names they have in W&B, steps in order."""
    found: dict[int, dict[str, Any]] = {}
    for line in lines:
        found.setdefault(line["step"], {})[series(line["stage"], line["split"], line["name"])] = line["value"]
    return sorted(found.items())


def series(stage: str, split: str, name: str) -> str:
    """What a metric is called in W&B: `sft/loss`, `sft/eval/loss`."""
    return f"{stage}/{name}" if split == "train" else f"{stage}/{split}/{name}"


def tables(stage: str, rows_by_name: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Rows of one shape as W&B's tables, by their names there; those without a row are left out."""
    import wandb

    found = {}
    for name, rows in rows_by_name.items():
        if rows:
            columns: list[Any] = list(rows[0])
            data: list[Any] = [[_cell(row.get(column)) for column in columns] for row in rows]
            found[f"{stage}/{name}"] = wandb.Table(columns=columns, data=data)
    return found


def within(seconds: float, action: Callable[[], object]) -> None:
    """Do something that may never end, for so long at most.

    Raises:
        TimeoutError: it has not ended by now.
    """
    failed: list[Exception] = []

    def act() -> None:
        try:
            action()
        except Exception as error:
            failed.append(error)

    # A daemon: the process ends without waiting for it.
    waiting = threading.Thread(target=act, daemon=True)
    waiting.start()
    waiting.join(seconds)
    if waiting.is_alive():
        raise TimeoutError(f"not everything arrived within {seconds:.0f} s; `trivet push` sends what is missing")
    if failed:
        raise failed[0]


def drop_unsynced(folder: Path, run_id: str) -> None:
    """Take away what an earlier attempt wrote offline of a run and nobody has synced.

    An offline run is written whole, from `metrics.jsonl`: the new one holds all that the others did, those torn by a
    kill among them, and `wandb sync` of several with one id would send steps twice, or let one overwrite another.
    """
    for old in (folder / "wandb").glob(f"offline-run-*-{run_id}"):
        if not any(old.glob("*.wandb.synced")):
            shutil.rmtree(old, ignore_errors=True)


def init_seconds() -> float:
    """How long to wait for W&B to answer; the library's own variable says otherwise."""
    return float(os.environ.get("WANDB_INIT_TIMEOUT") or 30)


def _cell(value: Any) -> Any:
    """What a table of W&B can hold: conversations become text."""
    return value if isinstance(value, (str, int, float, bool, type(None))) else json.dumps(value, ensure_ascii=False)
