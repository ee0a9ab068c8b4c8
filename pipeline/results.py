"""`results.json`: the headline figures of all stages and policies, gathered from sealed artefacts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline import artefact
from pipeline.durable import read_json, write_json_atomically
from pipeline.ledger import Ledger
from pipeline.plan import EVALUATION, Node

RESULTS = "results.json"


def write_results(folder: Path, name: str, nodes: Sequence[Node], ledger: Ledger) -> None:
    """Write the figures of every node that is sealed; the others stand with their status alone."""
    entries = {entry["name"]: entry for entry in ledger.stages}
    evaluation = _evaluation(nodes, entries)
    stages = {}
    for node in nodes:
        if node.name == EVALUATION:
            continue
        found = _manifest(node)
        metrics = dict(found["metrics"]) if found else {}
        measured = evaluation.get("policies", {}).get(node.name, {})
        if node.kind == "dpo":
            metrics["kl_to_reference"] = measured.get("kl_to_reference")
        stages[node.name] = {
            "status": entries[node.name]["status"],
            "seconds": found["seconds"] if found else None,
            "metrics": metrics,
        }
    write_json_atomically(folder / RESULTS, {"name": name, "stages": stages, "evaluation": evaluation})


def _evaluation(nodes: Sequence[Node], entries: dict[str, dict[str, Any]]) -> dict[str, Any]:
    node = next((node for node in nodes if node.name == EVALUATION), None)
    if node is None:
        return {"status": "not asked for", "policies": {}, "families": {}, "comparisons": []}
    found = _manifest(node)
    status = {"status": entries[EVALUATION]["status"], "seconds": found["seconds"] if found else None}
    return {**status, **(found["metrics"] if found else {"policies": {}, "families": {}, "comparisons": []})}


def _manifest(node: Node) -> dict[str, Any] | None:
    if not artefact.is_sealed(node.folder):
        return None
    return dict(read_json(node.folder / artefact.MANIFEST))
