"""`results.json`: the headline figures of all stages and policies, gathered from sealed artefacts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.benchmarks.record import read_entries
from pipeline import artefact
from pipeline.durable import read_json, write_json_atomically
from pipeline.faults import reach
from pipeline.ledger import Ledger
from pipeline.plan import EVALUATION, Node
from pipeline.recipe.lineage import BASE

RESULTS = "results.json"


def write_results(folder: Path, name: str, nodes: Sequence[Node], ledger: Ledger) -> None:
    """Write the figures of every node that is sealed; the others stand with their status alone."""
    entries = {entry["name"]: entry for entry in ledger.stages}
    evaluation = _evaluation(nodes, entries)
    benchmarks = read_entries(folder)
    if benchmarks:
        evaluation["benchmarks"] = benchmarks
    stages = {}
    for node in nodes:
        if node.name == EVALUATION:
            continue
        found = _manifest(node)
        metrics = dict(found["metrics"]) if found else {}
        if node.kind == "dpo":
            metrics["kl_to_reference"] = _kl_to_start(node, evaluation)
        stages[node.name] = {
            "status": entries[node.name]["status"],
            "seconds": found["seconds"] if found else None,
            "metrics": metrics,
        }
    reach("results.begun", folder)
    write_json_atomically(folder / RESULTS, {"name": name, "stages": stages, "evaluation": evaluation})


def headline(kind: str, metrics: Mapping[str, Any]) -> str:
    """The one figure of a stage that a person wants to see at once."""
    tell = _HEADLINES.get(kind)
    return (tell(metrics) if tell else "") or "nothing held out to measure it on"


def _loss(metrics: Mapping[str, Any]) -> str:
    if metrics.get("eval_loss") is None:
        return ""
    return f"held-out loss {metrics['eval_loss_before']:.3f} -> {metrics['eval_loss']:.3f}"


def _accuracy(metrics: Mapping[str, Any]) -> str:
    if metrics.get("eval_accuracy") is None:
        return ""
    low, high = metrics["eval_accuracy_ci95"]
    calibration = f", calibration error {metrics['ece']:.2f}" if metrics.get("ece") is not None else ""
    return (
        f"held-out preference accuracy {metrics['eval_accuracy_before']:.2f} -> {metrics['eval_accuracy']:.2f} "
        f"[{low:.2f}, {high:.2f}] on {metrics['eval_n']} pairs{calibration}"
    )


def _score(metrics: Mapping[str, Any]) -> str:
    if metrics.get("score") is None:
        return f"{metrics['episodes']} episodes, nothing held out to measure it on"
    kept, prompts = metrics["selected_rollout"], f"on {metrics['eval_n']} prompts"
    if kept == 0:
        return f"held-out score {metrics['score']:.2f} {prompts}, kept the policy it started from"
    low, high = metrics["score_gain_ci95"]
    return (
        f"held-out score {metrics['score_before']:.2f} -> {metrics['score']:.2f} (gain [{low:.2f}, {high:.2f}]) "
        f"{prompts} at {metrics['kl_to_reference']:.1f} nats, kept the policy after rollout {kept} of "
        f"{metrics['rollouts']}"
    )


def _policies(metrics: Mapping[str, Any]) -> str:
    return f"{len(metrics['policies'])} policies measured"


_HEADLINES: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "sft": _loss, "dpo": _accuracy, "reward": _accuracy, "ppo": _score, EVALUATION: _policies
}  # fmt: skip


def _kl_to_start(node: Node, evaluation: dict[str, Any]) -> float | None:
    """A policy's divergence from the one it started from: evaluation measures all from one and the same reference."""
    if node.parents.get("policy", BASE) != evaluation.get("reference"):
        return None
    found: float | None = evaluation["policies"].get(node.name, {}).get("kl_to_reference")
    return found


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
