"""What two runs of one recipe must have in common to the last bit, however often one of them was killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.tracking import read_metrics

_OF_THE_CLOCK = ("time/", "mem/", "tok_per_s")
"""Metrics that measure the machine."""
_UNLIKE = {"created", "seconds", "memory", "digest", "files", "code"}
"""Fields of a manifest that tell when, how long, in how much memory; and the hashes of files, compared one by one."""


def account(run_dir: Path) -> dict[str, Any]:
    """Everything a run leaves but times: manifest and files of stages, metrics line by line, ledger and figures."""
    ledger = json.loads((run_dir / "run.json").read_text())
    found: dict[str, Any] = {"finished": ledger["finished"] is not None}
    for entry in ledger["stages"]:
        if entry["status"] == "pending":
            continue
        folder = run_dir / entry["name"]
        manifest = json.loads((folder / "manifest.json").read_text())
        hashes = {each["path"]: each["sha256"] for each in manifest["files"] if each["path"] != "metrics.jsonl"}
        found[entry["name"]] = {
            "entry": (entry["name"], entry["kind"], entry["key"], entry["status"] in ("done", "skipped")),
            "files": hashes,
            "metrics": metrics_of(folder),
            "manifest": {name: value for name, value in manifest.items() if name not in _UNLIKE},
            "left": sorted(
                path.name for path in folder.resolve().iterdir() if path.name not in ("manifest.json", ".lock")
            ),
        }
    results = json.loads((run_dir / "results.json").read_text())
    for stage in (*results["stages"].values(), results["evaluation"]):
        stage.pop("seconds", None)
        stage.pop("status", None)
    return {**found, "results": results, "outcome": json.loads((run_dir / "exit.json").read_text())["code"]}


def metrics_of(folder: Path) -> list[tuple[Any, ...]]:
    """Lines of a stage's `metrics.jsonl`, in order, without their times."""
    return [
        (line["stage"], line["step"], line["split"], line["name"], line["value"])
        for line in read_metrics(folder / "metrics.jsonl")
        if not line["name"].startswith(_OF_THE_CLOCK)
    ]


def differences(mine: Any, theirs: Any, where: str = "") -> list[str]:
    """Where two accounts differ, for people."""
    if isinstance(mine, dict) and isinstance(theirs, dict):
        return [
            text
            for name in sorted({*mine, *theirs}, key=str)
            for text in differences(mine.get(name), theirs.get(name), f"{where}/{name}")
        ]
    return [] if mine == theirs else [f"{where}: {_short(mine)} and not {_short(theirs)}"]


def debris(run_dir: Path) -> list[str]:
    """What no finished run leaves behind: files written aside, checkpoints, intermediate results."""
    places = (run_dir, run_dir.parent / ".store")
    found = [path for place in places for path in place.rglob("*") if path.name.endswith(".tmp")]
    found += [path for path in places[1].glob("*/*") if path.name in ("checkpoints", "work")]
    return sorted(str(path.relative_to(run_dir.parent)) for path in found)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 400 else f"{text[:300]} ... ({len(text)} characters)"
