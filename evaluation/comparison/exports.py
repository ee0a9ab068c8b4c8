"""The comparison for programs: everything as JSON, the policies as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from evaluation.comparison.by_value import ValueTable
from evaluation.comparison.equal_kl import Frontier, Pair
from evaluation.comparison.rows import table
from evaluation.comparison.sweeps import Sweep
from evaluation.comparison.view import Comparison


def as_json(found: Comparison) -> dict[str, Any]:
    """All figures; what was not measured, or was not a finite number, is null."""
    runs = [compared.label for compared in found.runs]
    return {
        "runs": [
            {
                "run": compared.label, "folder": str(compared.run.directory), "name": compared.run.name,
                "state": state.text, "reference": compared.run.reference or None,
                "score_by": compared.score_by or None, "gaps": list(compared.run.gaps),
            }
            for compared, state in zip(found.runs, found.states, strict=True)
        ],
        "evaluation_set": {"prompts": len(found.set.prompts), "digest": found.set.digest} if found.set else None,
        "differences": [{"key": one.key, **dict(zip(runs, one.values, strict=True))} for one in found.differences],
        "policies": [_policy(found, at) for at in range(len(found.rows))],
        "frontiers": [_frontier(one) for one in found.frontiers],
        "seeds": [
            {
                "policy": one.policy, "metric": one.measure.name, "mean": one.mean, "deviation": one.deviation,
                "values": dict(zip(one.runs, one.values, strict=True)),
            }
            for one in found.spreads
        ],
        "noise": dict(found.noise),
        "sft": {
            "pairs": [{"metric": pair.metric, **_pair(pair)} for pair in found.tuned],
            "noise": dict(found.tuned_noise),
            "verdicts": [sentence.text for sentence in found.tuned_verdicts],
        },
        "sweeps": [_sweep(one, found) for one in found.sweeps],
        "verdicts": [sentence.text for sentence in found.verdicts],
        "votes": [
            {"a": pair.a, "b": pair.b, "votes": pair.votes, "voters": pair.voters, **pair.figures}
            for pair in found.voted
        ],
        "notes": list(found.notes),
        "costs": [
            {"stage": cost.stage, "seconds": dict(zip(runs, cost.seconds, strict=True)),
             "process_gib": dict(zip(runs, cost.process_gib, strict=True)),
             "peak_gib": dict(zip(runs, cost.peak_gib, strict=True))}
            for cost in found.costs
        ],
    }  # fmt: skip


def as_csv(found: Comparison) -> str:
    """One line per policy: its runs, its kind, and every measure with the ends of its interval and its n.

    Where runs are a sweep there is a column for each of its keys, empty for what several values share.
    """
    measures = [measure.name for measure, _ in table(found.rows)]
    keys = list(dict.fromkeys(key for sweep in found.sweeps for key in sweep.keys))
    figures_of = (f"{name}{end}" for name in measures for end in ("", "_low", "_high", "_n"))
    heads = ["policy", "kind", "runs", *keys, *figures_of]
    out = io.StringIO()
    writer = csv.DictWriter(out, heads, lineterminator="\n")
    writer.writeheader()
    for at, row in enumerate(found.rows):
        line: dict[str, Any] = {"policy": row.policy, "kind": row.kind, "runs": " ".join(row.runs)}
        line |= _values(found, row.runs)
        for name, figures in _policy(found, at)["figures"].items():
            low, high = figures["ci95"] or (None, None)
            line |= {name: figures["value"], f"{name}_low": low, f"{name}_high": high, f"{name}_n": figures["n"]}
        writer.writerow(line)
    return out.getvalue()


def _values(found: Comparison, runs: Sequence[str]) -> dict[str, Any]:
    """The values of the swept keys that all these runs have, by key."""
    for sweep in found.sweeps:
        for point in sweep.points:
            if set(runs) <= set(point.runs):
                return dict(zip(sweep.keys, point.values, strict=True))
    return {}


def _sweep(sweep: Sweep, found: Comparison) -> dict[str, Any]:
    return {
        "keys": list(sweep.keys),
        "points": [
            {"values": dict(zip(sweep.keys, point.values, strict=True)), "runs": list(point.runs)}
            for point in sweep.points
        ],
        "policies": [_by_value(table) for table in found.by_value if table.sweep == sweep],
    }


def _by_value(table: ValueTable) -> dict[str, Any]:
    """A policy value by value; `range` is over seeds, `ci95` over prompts."""
    chosen = table.chosen
    return {
        "policy": table.policy,
        "rows": [
            {
                "values": dict(zip(table.sweep.keys, row.values, strict=True)), "runs": list(row.runs),
                "seeds": row.seeds,
                "figures": {
                    measure.name: {
                        "value": cell.value, "n": cell.n,
                        "range" if row.seeds > 1 else "ci95": list(cell.bounds or ()) or None,
                    }
                    for measure, cell in zip(table.measures, row.cells, strict=True)
                },
            }
            for row in table.rows
        ],
        "highest": chosen and {
            "metric": chosen.measure.name, "values": list(chosen.best), "value": chosen.value, "tried": chosen.tried,
            "not_told_from_it": list(chosen.level_with), "n": chosen.n,
        },
    }  # fmt: skip


def _policy(found: Comparison, at: int) -> dict[str, Any]:
    row = found.rows[at]
    figures = {
        measure.name: {
            "value": cells[at].value, "ci95": list(cells[at].bounds or ()) or None, "n": cells[at].n
        }
        for measure, cells in table(found.rows)
    }  # fmt: skip
    return {
        "policy": row.policy, "name": row.name, "kind": row.kind, "runs": list(row.runs),
        "score_by": row.score_by or None, "figures": figures,
    }  # fmt: skip


def _frontier(one: Frontier) -> dict[str, Any]:
    return {
        "metric": one.metric,
        "score_by": one.group or None,
        "paths": [
            {
                "name": path.name, "run": path.run, "runs": list(path.runs), "reference": path.reference,
                "policies": [{"name": p.name, "kl": p.kl, "value": p.value} for p in path.places],
                "band": [{"sqrt_kl": x, "low": low, "high": high} for x, low, high in path.band],
            }
            for path in one.paths
        ],
        "other_policies": [{"name": p.name, "kl": p.kl, "value": p.value} for p in one.others],
        "while_training": [
            {"name": p.name, "points": [{p.counter: at, "kl": kl, "score": value} for at, kl, value in p.points]}
            for p in one.passed
        ],
        "at_equal_kl": [_pair(pair) for pair in one.pairs],
    }  # fmt: skip


def _pair(pair: Pair) -> dict[str, Any]:
    found = pair.difference
    return {
        "a": pair.a, "b": pair.b, "kl": pair.kl, "value_a": pair.value_a, "value_b": pair.value_b,
        "difference": found.estimate, "ci95": found.bounds, "n": found.n, "same_reference": pair.same_reference,
        "nearest_measured_a": pair.near_a, "nearest_measured_b": pair.near_b,
    }  # fmt: skip
