"""Metrics: an append-only `metrics.jsonl` that is the truth, and Weights & Biases as a mirror of it.

Every step stands in the file exactly once, whatever was killed in between: resuming drops the lines of steps that
will run again. The mirror can fail in any way without stopping a run. Only the first rank tracks. Layer 2.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.console import Console
from pipeline.durable import full_disk_named, json_lines, write_text_atomically
from pipeline.errors import SourceUnreachableError
from pipeline.faults import reach, write_torn
from pipeline.recipe.schema import WandbSettings

FINISH_SECONDS = 120.0
"""How long the end of a stage waits for W&B."""


class Tracker:
    """Records a stage's metrics.

    Args:
        path: the stage's `metrics.jsonl`.
        stage: its name, written into every line.
        mirror: where else the lines go, or None.
    """

    def __init__(self, path: Path, stage: str, mirror: WandbMirror | None = None):
        self._path = path
        self._stage = stage
        self._mirror = mirror

    def log(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Append one line per value; a value that is not finite is written as null."""
        lines = [
            {
                "stage": self._stage,
                "step": step,
                "split": split,
                "name": name,
                "value": value if math.isfinite(value) else None,
                "time": round(time.time(), 3),
            }
            for name, value in values.items()
        ]
        with full_disk_named(self._path.parent), self._path.open("a", encoding="utf-8") as stream:
            reach("metrics.begun", self._path.parent)
            write_torn(stream, "".join(json.dumps(line) + "\n" for line in lines), "metrics.torn")
        reach("metrics.written", self._path.parent)
        if self._mirror is not None:
            self._mirror.log(lines)

    def rewind(self, step: int, *, keep_held_out: bool = False) -> None:
        """Forget everything after a step, and a torn last line: training goes on from there.

        Args:
            step: of the checkpoint; -1 without one.
            keep_held_out: whether held-out results up to the step stay: those of a stage that measures while it
                trains. Other stages write theirs last, and will again.
        """
        splits = ("train", "eval") if keep_held_out else ("train",)
        kept = [line for line in read_metrics(self._path) if line["split"] in splits and line["step"] <= step]
        write_text_atomically(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        reach("metrics.rewound", self._path.parent)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Hand rows of one shape, such as samples, to the mirror; the stage itself keeps them in a file."""
        if self._mirror is not None and rows:
            self._mirror.table(name, rows)

    def finish(self) -> None:
        """Close the mirror; call once, when the stage's work is done."""
        if self._mirror is not None:
            self._mirror.finish(read_metrics(self._path))


class SilentTracker(Tracker):
    """The tracker of every rank but the first."""

    def __init__(self) -> None:
        super().__init__(Path(os.devnull), "")

    def log(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Nothing: the first rank speaks."""

    def rewind(self, step: int, *, keep_held_out: bool = False) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, without a torn last one; empty when there is no file."""
    if not path.is_file():
        return []
    lines = []
    for text in json_lines(path):
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


class WandbMirror:
    """Copies metrics to Weights & Biases: one group per run, one job type per stage, an id that survives resuming.

    Online it follows live. Offline runs of one id overwrite each other when they are synced, so an offline mirror
    writes once, at the end, from `metrics.jsonl`.
    """

    def __init__(self, settings: WandbSettings, run_dir: Path, run_name: str, stage: str, key: str, console: Console):
        self._console = console
        self._run: Any = None
        self._tables: dict[str, Sequence[Mapping[str, Any]]] = {}
        self._offline = os.environ.get("WANDB_MODE", "").lower() in ("offline", "dryrun")
        self._options = _run_options(settings, run_dir, run_name, stage, key)

    def start(self, config: Mapping[str, Any]) -> None:
        """Connect, unless W&B is switched off, not logged in, or unreachable: then say so and go on without."""
        self._options["config"] = dict(config)
        if os.environ.get("WANDB_MODE", "").lower() == "disabled":
            return
        if not self._offline and not _has_key():
            self._console.say(
                "W&B: no API key on this machine, so this run is tracked in metrics.jsonl only; `wandb login` or "
                "WANDB_MODE=offline turns it on"
            )
            return
        if not self._offline:
            self._guarded(self._connect)

    def log(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Mirror freshly written lines, when online."""
        if self._run is not None and not self._offline:
            self._guarded(lambda: self._send(lines))

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep a table until the end of the run, when it is sent whole."""
        self._tables[name] = rows

    def finish(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """End the W&B run; an offline one is written here, whole."""
        if self._offline and "config" in self._options:
            self._guarded(self._connect)
            self._guarded(lambda: self._send(lines))
        if self._run is not None and self._tables:
            self._guarded(self._send_tables)
        if self._run is not None:
            self._guarded(lambda: _finished(self._run))
            self._run = None

    def _connect(self) -> None:
        import wandb

        if self._offline:
            _drop_unsynced(Path(self._options["dir"]), self._options["id"])
        settings = wandb.Settings(silent=True, init_timeout=_init_seconds(), console="off")
        self._run = wandb.init(mode="offline" if self._offline else "online", settings=settings, **self._options)

    def _send(self, lines: Iterable[Mapping[str, Any]]) -> None:
        if self._run is None:
            return
        for step, values in _by_step(lines):
            self._run.log(values, step=step)

    def _send_tables(self) -> None:
        import wandb

        for name, rows in self._tables.items():
            columns: list[Any] = list(rows[0])
            data: list[Any] = [[_cell(row.get(column)) for column in columns] for row in rows]
            self._run.log({f"{self._options['job_type']}/{name}": wandb.Table(columns=columns, data=data)})

    def _guarded(self, action: Any) -> None:
        try:
            action()
        except Exception as error:
            self._console.say(
                f"W&B failed ({type(error).__name__}: {error}); the run goes on, tracked in metrics.jsonl"
            )
            self._run = None
            self._offline = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StageToPush:
    """A stage of a run as it lies on disk, to be rebuilt in W&B."""

    name: str
    key: str
    lines: Sequence[Mapping[str, Any]]
    """Of its `metrics.jsonl`."""
    summary: Mapping[str, Any]
    """Headline figures, by name."""


def push(settings: WandbSettings, run_dir: Path, run_name: str, stage: StageToPush, config: Mapping[str, Any]) -> int:
    """Rebuild one stage in W&B, under the same id as its live mirror: what is there already is not sent again.

    Returns:
        How many steps were sent.

    Raises:
        SourceUnreachableError: W&B is switched off, not logged in, or fails.
    """
    offline = os.environ.get("WANDB_MODE", "").lower() in ("offline", "dryrun")
    if os.environ.get("WANDB_MODE", "").lower() == "disabled":
        raise SourceUnreachableError("WANDB_MODE is disabled; unset it, or set it to offline, and push again")
    if not offline and not _has_key():
        raise SourceUnreachableError(
            "W&B: no API key on this machine; `wandb login`, or set WANDB_MODE=offline to write runs for `wandb sync`"
        )
    try:
        return _push(_run_options(settings, run_dir, run_name, stage.name, stage.key), stage, config, offline)
    except Exception as error:
        raise SourceUnreachableError(
            f"W&B failed at stage {stage.name} ({type(error).__name__}: {error}); push again: no step is sent twice"
        ) from error


def _push(options: Mapping[str, Any], stage: StageToPush, config: Mapping[str, Any], offline: bool) -> int:
    import wandb

    if offline:
        _drop_unsynced(Path(options["dir"]), options["id"])
    mode = wandb.Settings(silent=True, init_timeout=_init_seconds(), console="off")
    run = wandb.init(mode="offline" if offline else "online", settings=mode, config=dict(config), **options)
    # A run that was mirrored, or pushed before, goes on behind its last step; W&B would drop earlier ones anyway.
    steps = [(step, values) for step, values in _by_step(stage.lines) if step >= run.starting_step]
    for step, values in steps:
        run.log(values, step=step)
    run.summary.update({f"{stage.name}/{name}": value for name, value in stage.summary.items()})
    run.finish()
    return len(steps)


def _init_seconds() -> float:
    """How long to wait for W&B to answer; the library's own variable says otherwise."""
    return float(os.environ.get("WANDB_INIT_TIMEOUT") or 30)


def _finished(run: Any) -> None:
    """Close a W&B run, which waits until everything has arrived: for ever, where nothing does.

    Raises:
        TimeoutError: it has not all arrived by now.
    """
    failed: list[Exception] = []

    def finish() -> None:
        try:
            run.finish()
        except Exception as error:
            failed.append(error)

    # A daemon: the worker ends without waiting for it.
    waiting = threading.Thread(target=finish, daemon=True)
    waiting.start()
    waiting.join(FINISH_SECONDS)
    if waiting.is_alive():
        raise TimeoutError(f"not everything arrived within {FINISH_SECONDS:.0f} s; `trivet push` sends what is missing")
    if failed:
        raise failed[0]


def _run_options(settings: WandbSettings, run_dir: Path, run_name: str, stage: str, key: str) -> dict[str, Any]:
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


def _drop_unsynced(folder: Path, run_id: str) -> None:
    """Take away what an earlier attempt wrote offline of a run and nobody has synced.

    An offline run is written whole, from `metrics.jsonl`: the new one holds all that the others did, those torn by a
    kill among them, and `wandb sync` of several with one id would send steps twice, or let one overwrite another.
    """
    for old in (folder / "wandb").glob(f"offline-run-*-{run_id}"):
        if not any(old.glob("*.wandb.synced")):
            shutil.rmtree(old, ignore_errors=True)


def _by_step(lines: Iterable[Mapping[str, Any]]) -> list[tuple[int, dict[str, Any]]]:
    """All values of each step under the names they have in W&B, steps in order."""
    found: dict[int, dict[str, Any]] = {}
    for line in lines:
        name = line["name"] if line["split"] == "train" else f"{line['split']}/{line['name']}"
        found.setdefault(line["step"], {})[f"{line['stage']}/{name}"] = line["value"]
    return sorted(found.items())


def _cell(value: Any) -> Any:
    """What a table of W&B can hold: conversations become text."""
    return value if isinstance(value, (str, int, float, bool, type(None))) else json.dumps(value, ensure_ascii=False)


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    import netrc

    try:
        return any("wandb" in host for host in netrc.netrc().hosts)
    except (OSError, netrc.NetrcParseError):
        return False
