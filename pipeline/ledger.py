"""`run.json`: what a run has done and is doing, kept up to date after every step. Stdlib only."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.artefact import is_sealed
from pipeline.durable import read_json, write_json_atomically
from pipeline.faults import reach
from pipeline.plan import Decision
from pipeline.redaction import redacted_in

LEDGER = "run.json"


class Ledger:
    """The ledger of one run directory.

    Args:
        folder: the run directory.
        name: the run's name.
        command: how it was started.
        versions: of the libraries.
    """

    def __init__(self, folder: Path, name: str, command: Sequence[str], versions: dict[str, str]):
        self._path = folder / LEDGER
        self._value: dict[str, Any] = {
            "name": name,
            "order": 1 + max(run_orders(folder.parent).values(), default=0),
            "command": list(command),
            "versions": versions,
            "started": _now(),
            "finished": None,
            "stages": [],
        }

    def plan(self, decisions: Sequence[Decision]) -> None:
        """Enter every node: pending, or skipped where it is done and nobody asked for it."""
        self._value["stages"] = [
            {
                "name": decision.node.name,
                "kind": decision.node.kind,
                "key": decision.node.key,
                "status": "skipped" if decision.action == "leave" and is_sealed(decision.node.folder) else "pending",
                "reason": decision.reason,
                "started": None,
                "seconds": None,
                "artefact": str(decision.node.folder),
            }
            for decision in decisions
        ]
        self._write()

    def update(self, stage: str, **values: Any) -> None:
        """Change a stage's entry: status (pending, running, done, skipped, failed, interrupted), seconds, reason."""
        entry = next(entry for entry in self._value["stages"] if entry["name"] == stage)
        if values.get("status") == "running":
            entry["started"] = _now()
        entry.update(values)
        self._write()

    def stop(self, status: str, reason: str) -> None:
        """Enter what became of a stage that was running when the run came to a sudden end."""
        for entry in self._value["stages"]:
            if entry["status"] == "running":
                entry.update(status=status, reason=reason)
        self._write()

    def finish(self) -> None:
        """Note that the run came to its end."""
        self._value["finished"] = _now()
        self._write()

    @property
    def stages(self) -> list[dict[str, Any]]:
        """The entries, in order."""
        return [dict(entry) for entry in self._value["stages"]]

    def _write(self) -> None:
        reach("ledger.begun", self._path.parent)
        write_json_atomically(self._path, redacted_in(self._value))
        reach("ledger.written", self._path.parent)


def previous_keys(folder: Path) -> dict[str, str]:
    """Stage name to key, of the last run in a folder; empty when there was none."""
    try:
        return {entry["name"]: entry["key"] for entry in read_json(folder / LEDGER)["stages"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def run_orders(parent: Path) -> dict[Path, int]:
    """The runs in a folder, each with its place in the order in which they were last begun.

    Counted and not timed: clocks of machines differ, and copies of files have other times.
    """
    return {path.parent: _order(path) for path in parent.glob(f"*/{LEDGER}")}


def _order(ledger: Path) -> int:
    try:
        return int(read_json(ledger)["order"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
